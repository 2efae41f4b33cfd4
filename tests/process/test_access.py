"""Who may do what, asked by real users: the kernel says who they are, the policy what that means."""

from __future__ import annotations

import os
import pwd
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.process.house import House, held, rows, until

ACCESS = '[access]\nread = ["daemon"]\noperate = ["group:games"]\nadmin = ["root"]\n'


@pytest.fixture
def guarded(house: House, users: list[int]) -> House:
    house.database("app")
    house.protects(house.table("app"), more=ACCESS)
    house.start()
    house.does("backup", "app")
    house.idle()
    return house


def test_a_stranger_learns_nothing(guarded: House, users: list[int]) -> None:
    stranger, *_ = users
    id = guarded.backups("app")[0]["id"]
    for words, there, not_there in ((["list"], "app", "abb"), (["backup"], "app", "abb"), (["show"], id, id[::-1])):
        seen = [
            str(guarded.fails("DBG-0003", 5, *words, name, uid=stranger)).replace(name, "*")
            for name in (there, not_there)
        ]
        assert seen[0] == seen[1]
    for words in (["status"], ["reload"], ["config", "show"], ["audit", "show"]):
        said = guarded.ctl(*words, uid=stranger)
        assert said.status == 5
        assert "app.db" not in said.out + said.err
    assert [row["verb"] for row in guarded.jobs()] == ["expire", "verify", "backup"]


def test_what_a_reader_may(guarded: House, users: list[int]) -> None:
    _, reader, _ = users
    id = guarded.backups("app")[0]["id"]
    for words in (["status"], ["list", "app", "--why"], ["show", id], ["job", "list"], ["schedule"], ["events"],
                  ["log"], ["log", "app"], ["config", "check"], ["audit", "show"], ["key", "list"]):  # fmt: skip
        assert guarded.ctl(*words, uid=reader).status in (0, 3), words
    refused = (["backup", "app"], ["verify", "app"], ["restore", "app", "--dry-run"], ["check", "app"],
               ["pause", "app"], ["job", "cancel", id], ["reload"], ["hold", id, "--reason", "x"],
               ["prune", "app", "--dry-run"], ["key", "recovery-sheet", "main"])  # fmt: skip
    for words in refused:
        assert guarded.ctl("--json", *words, uid=reader).status == 5, words
    assert len(guarded.jobs()) == 3


def test_what_an_operator_may(guarded: House, users: list[int]) -> None:
    *_, operator = users
    id = guarded.backups("app")[0]["id"]
    assert guarded.ctl("backup", "app", uid=operator).status == 0
    guarded.idle()
    target = guarded.place / "again.db"
    assert guarded.ctl("restore", "app", "--to", str(target), uid=operator).status == 0
    assert rows(target) == 50
    assert guarded.ctl("prune", "app", "--dry-run", uid=operator).status in (0, 3)
    assert guarded.ctl("pause", "app", uid=operator).status == 0
    assert guarded.ctl("resume", "app", uid=operator).status == 0
    before = Path(guarded.place / "app.db").stat()
    for words in (
        ["restore", "app", "--in-place", "--confirm", "app"], ["restore", "undo", "app", "--confirm", "app"],
        ["prune", "app"], ["hold", id, "--reason", "x"], ["release", id], ["recall", id],
        ["reload"], ["config", "accept"],
        ["protect", str(target)], ["key", "recovery-sheet", "main"],
    ):  # fmt: skip
        said = guarded.ctl("--json", *words, uid=operator)
        assert said.status == 5, (words, said)
    after = Path(guarded.place / "app.db").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    jobs = {row["verb"]: row["actor"] for row in guarded.jobs() if row["verb"] == "restore"}
    assert jobs == {"restore": "games"}


def test_refusals_stand_in_the_audit_log(guarded: House, users: list[int]) -> None:
    stranger, reader, _ = users
    began = time.monotonic()
    guarded.ctl("status", uid=stranger)
    guarded.ctl("backup", "app", uid=reader)
    denied = [e for e in guarded.audit() if e["outcome"] == "denied"]
    assert [(e["actor"]["uid"], e["action"]) for e in denied] == [
        (stranger, "GET /v1/status"),
        (reader, "POST /v1/jobs/backup"),
    ]
    for _ in range(5):
        guarded.ctl("status", uid=stranger)  # one peer cannot fill the log: a line for each minute
    found = [e for e in guarded.audit() if e["outcome"] == "denied"]
    assert found[:2] == denied and len(found) - 2 <= (time.monotonic() - began) // 60
    guarded.does("backup", "app")
    asked = [e for e in guarded.audit() if e["action"] == "job.backup"]
    assert {e["actor"]["uid"] for e in asked} == {os.geteuid()}
    guarded.idle()
    guarded.is_sound()


def test_a_role_is_given_and_taken_by_a_reload(guarded: House, users: list[int]) -> None:
    stranger, reader, _ = users
    guarded.protects(guarded.table("app"), more='[access]\nread = ["nobody"]\n')
    guarded.does("reload")
    assert guarded.ctl("status", uid=stranger).status in (0, 3)
    assert guarded.ctl("status", uid=reader).status == 5


def test_a_job_runs_as_the_owner_of_the_database(house: House, users: list[int]) -> None:
    owner, other, _ = users
    home = house.place / "home"
    path = house.database("app")
    home.mkdir(mode=0o700)
    path = path.rename(home / "app.db")
    for place, mode in ((home, 0o700), (path, 0o640)):
        os.chown(place, owner, owner)
        place.chmod(mode)
    house.protects(house.table("app", 'lock_timeout = "1h"', path=path))
    house.start()
    with held(path):
        job = house.submit("backup", "app")
        until(lambda: house.job(job)["step"] == "snapshot", lambda: house.job(job))
        halves = house.workers()
        for half, uid in (("repository", os.geteuid()), ("engine", owner)):
            lines = Path(f"/proc/{halves[half]}/status").read_text().splitlines()
            (ids,) = [line.split()[1:] for line in lines if line.startswith("Uid:")]
            assert ids == [str(uid)] * 4
            (privileges,) = [line.split()[1] for line in lines if line.startswith("NoNewPrivs:")]
            assert privileges == "1"
        links = set()
        for file in Path(f"/proc/{halves['engine']}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed in between: it looks again and again who holds the lock
                links.add(os.readlink(file))
        assert str(path) in links
        assert not [link for link in links if "/store" in link or "machine.key" in link or "catalog" in link], links
        (staging,) = (house.state / "staging").iterdir()
        assert (staging.stat().st_uid, staging.stat().st_mode & 0o777) == (owner, 0o700)
        for secret in ("machine.key", "catalog.db", "audit.jsonl", "store/repo.json"):
            assert not may_read(house.state / secret, owner), secret
        assert may_read(path, owner)
        assert not may_read(path, other)
    made = house.ended(job)
    assert made["state"] == "done", made["problem"]
    assert house.ended(made["result"]["verify_job"])["state"] == "done"
    house.idle()
    assert house.backups("app")[0]["grade"] == "proven"
    house.does("restore", "app", "--to", str(home / "again.db"))
    found = (home / "again.db").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (owner, owner, 0o640)
    assert rows(home / "again.db") == 50
    away = ("DBG-0012", 5, "restore", "app", "--to", str(house.state / "again.db"))  # not the owner's place
    refused, looked = house.fails(*away), house.fails(*away, "--dry-run")
    assert (looked["detail"], looked["hints"]) == (refused["detail"], refused["hints"])
    user = pwd.getpwuid(owner).pw_name
    assert user in refused["detail"] and refused["hints"][0].startswith(f"install -d -o {user} -m 0700 {house.state}/")
    lost = house.fails("DBG-0001", 2, "restore", "app", "--to", str(house.state / "not there" / "again.db"))
    assert lost["hints"] == [f"install -d -o {user} -m 0700 '{house.state}/not there'"]
    assert sorted(entry.name for entry in home.iterdir()) == ["again.db", "app.db"]
    house.is_sound()


def test_who_is_named_reads_it_and_no_one_else(house: House, users: list[int]) -> None:
    house.database("app").chmod(0o600)
    house.protects(house.table("app", 'run_as = "nobody"'))
    house.start()
    problem = house.fails("DBG-2007", 1, "backup", "app")
    assert "app.db" in problem["message"] + problem["detail"]
    assert house.backups("app") == []


def may_read(path: Path, uid: int) -> bool:
    """Try to read a file as somebody."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            path.open("rb").close()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
