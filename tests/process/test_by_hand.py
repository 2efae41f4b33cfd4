"""`dbguardd run`: what a person reads of a job without a daemon, of what went wrong, and what to do then."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from dbguardd.__main__ import _parser
from tests.process.house import House, halves, rows


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


def test_an_option_for_several_may_be_repeated() -> None:
    words = ["run", "restore", "db", "--tablespace", "a=/srv/a", "--tablespace", "b=/srv/b"]
    assert _parser().parse_args(words).tablespace == "a=/srv/a,b=/srv/b"


def test_the_policy_is_checked_with_places_that_are_relative(house: House) -> None:
    (house.place / "own.toml").write_text('version = 1\n[database.app]\nengine = "sqlite"\npath = "/srv/app.db"\n')
    argv = [house.python.with_name("dbguardd"), "--policy", "own.toml", "--state", "state", "--check-config"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=house.place)
    assert "own.toml: ok, 1 database in 1 file" in done.stdout, done.stderr


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
    assert re.search(r"^  \w{26}  expire  beyond last 1$", planned, re.M)
    assert "1 would expire, 1 kept; nothing was deleted" in planned
    assert "1 expired, 1 kept" in run("expire", "app").stdout
    assert "nothing could be freed now" in run("sweep", "local", "--dry-run").stdout
    assert "ok  storage local: freed 0 B" in run("sweep", "local").stdout

    plan = run("restore", "app", "--dry-run").stdout
    assert plan.splitlines()[-1] == "Nothing was done."
    assert f"from   backup {id}, proven" in plan
    back = run("restore", "app", "--to", "back.db").stdout
    assert f"(backup {id}) restored to {house.place / 'back.db'} (" in back
    assert (house.place / "back.db").exists()
    replaced = run("restore", "app", "--in-place", "--confirm", "app").stdout
    assert re.search(r"the previous state is kept as backup \w{26}; run undo app --confirm app puts it back", replaced)
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
        (["backup", "lost"], 1, "DBG-2001", "dbguardctl status lost shows what can be restored."),
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


@pytest.mark.parametrize(("kind", "erases"), [("dumb", False), ("xterm", True)])
def test_a_terminal_that_cannot_erase_is_not_told_to(run, house: House, kind: str, erases: bool) -> None:
    master, slave = pty.openpty()
    argv = [
        house.python.with_name("dbguardd"),
        "--policy",
        house.policy,
        "--state",
        house.state,
        "run",
        "backup",
        "app",
    ]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": kind}, check=False)
    os.write(slave, b".")  # so that there is something to read
    said = os.read(master, 65536)
    os.close(slave)
    os.close(master)
    assert (done.returncode, b"\033" in said) == (0, erases)


def test_a_restore_in_place_that_was_cut_short_says_what_the_live_database_is(run, house: House) -> None:
    path = house.place / "app.db"
    path.unlink()
    house.database("app", 50, blob=1 << 20)  # its restore is under way for long enough to be killed
    assert run("backup", "app").returncode == 0
    where = ["--policy", house.policy, "--state", house.state]
    argv = [house.python.with_name("dbguardd"), *where, "run", "--json", "restore", "app", "--in-place"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    said = ""
    while not said:  # it was quicker than the kill
        with subprocess.Popen([*argv, "--confirm", "app"], **pipes) as job:
            assert job.stdout is not None and job.stderr is not None
            next(line for line in job.stdout if json.loads(line).get("step") == "restore")
            with suppress(KeyError, ProcessLookupError):
                os.kill(halves(job.pid)["repository"], signal.SIGKILL)
            said = job.stderr.read()
    problem = json.loads(said)
    assert problem["code"] == "DBG-8001", problem
    assert problem["detail"].endswith("The live database was not touched.")
    assert rows(path) == 50


# ------------------------------------------------------------------------------------------------ typed by root


@pytest.fixture
def served(house: House, users: list[int]):
    """A house whose state belongs to the user of a service, and a database that its owner alone may read."""
    service, owner, _ = users
    home = house.place / "home"
    home.mkdir(mode=0o700)
    path = house.database("app").rename(home / "app.db")
    house.state.mkdir(mode=0o711)
    for place, uid in ((home, owner), (path, owner), (house.state, service)):
        os.chown(place, uid, uid)
    path.chmod(0o600)
    house.protects(house.table("app", "verify = 'off'", path=path))
    house.policy.chmod(0o644)
    house.write(house.table("again", path=home / "again.db"), name="again")  # as `protect` writes it
    for written in (house.place / "conf.d", house.place / "conf.d/again.toml"):
        os.chown(written, service, service)

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [house.python, "-I", "-m", "dbguardd", "--policy", house.policy, "--state", house.state, *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")

    return run


def test_root_does_it_as_the_service_would(served, house: House, users: list[int]) -> None:
    service, owner, _ = users
    assert "ok, 2 databases" in served("--check-config").stdout
    done = served("run", "backup", "app", "--verify")
    assert done.returncode == 0, done.stderr
    assert "proven  backup" in done.stdout
    back = house.place / "home/back.db"
    assert served("run", "restore", "app", "--to", back).returncode == 0
    assert (back.stat().st_uid, back.stat().st_mode & 0o777) == (owner, 0o600)
    made = [house.state, *house.state.rglob("*")]
    assert house.state / "store/repo.json" in made
    assert {path.lstat().st_uid for path in made} == {service}
    refused = served("run", "restore", "app", "--to", "/root/back.db")  # root's own place is not the service's
    assert (refused.returncode, "DBG-0012" in refused.stderr) == (5, True), refused.stderr


def test_root_lends_no_rights_to_a_policy_that_is_not_roots(served, house: House, users: list[int]) -> None:
    os.chown(house.policy, users[0], users[0])
    done = served("run", "backup", "app")
    assert (done.returncode, "without CAP_SETUID" in done.stderr) == (1, True), done.stderr


def test_the_user_of_the_state_must_be_one(served, house: House) -> None:
    os.chown(house.state, 54321, 54321)
    done = served("run", "backup", "app")
    assert (done.returncode, "belongs to uid 54321" in done.stderr) == (5, True), done.stderr
