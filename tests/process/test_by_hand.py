"""`dbguardd run`: what a person reads of a job without a daemon, of what went wrong, and what to do then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.process.house import House


@pytest.fixture
def run(house: House):
    """Run `dbguardd run WORDS` on a house without a daemon."""
    house.database("app")
    more = "verify = 'off'", "expire = 'off'", "keep = { last = 1 }", "min_proven = 1"
    house.protects(house.table("app", *more), house.table("lost", *more))

    def run(*words: str, cwd: Path = house.place) -> subprocess.CompletedProcess[str]:
        where = ["--policy", house.policy, "--state", house.state]
        argv = [house.python.with_name("dbguardd"), *where, "run", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)

    return run


def test_a_life_by_hand(run, house: House) -> None:
    first = run("backup", "app")
    assert first.returncode == 0, first.stderr
    assert re.search(r"^note  storage local was empty", first.stdout, re.M)
    assert re.search(r"^ok  backup \w{26} of app is stored, not yet proven \(", first.stdout, re.M)
    proven = run("backup", "app", "--verify").stdout
    assert "content equals the snapshot" in proven
    id = re.findall(r"^proven  backup (\w{26}) of app can be restored in \d", proven, re.M)[0]
    assert f"proven  backup {id}" in run("verify", "app").stdout

    planned = run("expire", "app", "--dry-run").stdout
    assert re.search(r"^  \w{26}  goes  beyond last 1$", planned, re.M)
    assert "1 would go, 1 stay; nothing was deleted" in planned
    assert "1 gone, 1 stay" in run("expire", "app").stdout
    assert "nothing could be freed now" in run("sweep", "local", "--dry-run").stdout
    assert "ok  storage local: freed 0 B" in run("sweep", "local").stdout

    plan = run("restore", "app", "--dry-run").stdout
    assert plan.splitlines()[-1] == "Nothing was done."
    assert f"from   backup {id}, proven" in plan
    back = run("restore", "app", "--to", "back.db").stdout
    assert f"(backup {id}) is at {house.place / 'back.db'} (" in back
    assert (house.place / "back.db").exists()
    replaced = run("restore", "app", "--in-place", "--confirm", "app").stdout
    assert re.search(r"the state before is kept as backup \w{26}; run undo app --confirm app puts it back", replaced)
    assert run("undo", "app", "--confirm", "app").returncode == 0

    checked = run("check", "app")
    assert checked.returncode == 3
    assert re.search(r"^  key main +FAIL +no recovery recipient", checked.stdout, re.M)
    assert re.search(r"^FAIL  app: 1 of \d checks did not pass", checked.stdout, re.M)
    assert not [line for line in checked.stdout.splitlines() if line.startswith(("{", "check.finding"))]


def test_json_stays_json(run) -> None:
    lines = [json.loads(line) for line in run("--json", "backup", "app").stdout.splitlines()]
    assert {"report", "result"} <= {line["type"] for line in lines}
    done = run("--json", "backup")
    assert (done.returncode, json.loads(done.stderr)["code"]) == (2, "DBG-0001")


@pytest.mark.parametrize(
    ("words", "status", "code", "said"),
    [
        (["backup"], 2, "DBG-0001", "run backup --help"),
        (["backup", ""], 2, "DBG-0001", "argument database: it is empty"),
        (["restore", "app", "--backup", ""], 2, "DBG-0001", "argument --backup: it is empty"),
        (["bakcup", "app"], 2, "DBG-0001", "invalid choice"),
        (["backup", "lost"], 1, "DBG-2001", "dbguardctl status lost says what of it can be restored."),
        (["backup", "nosuch"], 8, "DBG-0004", "Databases: app, lost."),
        (["restore", "app", "--in-place"], 10, "DBG-6004", "--in-place --confirm app"),
        (["restore", "app", "--to", "app.db"], 10, "DBG-6002", "run restore app --to "),
        (["restore", "app", "--at", "soon"], 2, "DBG-0001", "Write it like"),
        (["sweep", "nosuch"], 8, "DBG-0004", "nosuch"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said_once_with_what_to_do(run, words: list[str], status: int, code: str, said: str) -> None:
    if words[0] == "restore":
        assert run("backup", "app").returncode == 0
    done = run(*words)
    assert done.returncode == status, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"error[{code}]: ")
    assert all(line.startswith("       ") for line in lines[1:])
    assert re.match(r" {7}(fix|try)  ", lines[-1]) or (code, lines[-1]) == ("DBG-0001", "       Nothing was done.")
    assert said in done.stderr
    assert done.stderr.lower().count("no such file") <= 1
    assert "NAME" not in done.stderr or status == 8  # where there is a name, it stands there
