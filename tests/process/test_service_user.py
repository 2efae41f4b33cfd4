"""The daemon as its unit starts it: a user without rights, who may become the owners of databases and nothing else."""

from __future__ import annotations

import os
import pwd
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.house import House, add, halves, held, rows, until

POWERS = "-all,+setuid,+setgid,+kill"


@pytest.fixture
def served(house: House, users: list[int], program) -> House:
    """A daemon that runs as a user of its own; the database belongs to another one, in a place only for that one."""
    owner, _, service = users
    group = pwd.getpwuid(service).pw_gid
    house.become = [program("setpriv"), f"--reuid={service}", f"--regid={group}", "--clear-groups",
                    f"--bounding-set={POWERS}", f"--inh-caps={POWERS}", f"--ambient-caps={POWERS}",
                    "--no-new-privs"]  # fmt: skip
    for path in (house.place, house.log):
        os.chown(path, service, service)
    home = house.place / "home"
    home.mkdir(mode=0o700)
    path = house.database("app", wal=True).rename(home / "app.db")
    for entry, mode in ((home, 0o700), (path, 0o600)):
        os.chown(entry, owner, owner)
        entry.chmod(mode)
    house.protects(house.table("app", 'lock_timeout = "1h"', path=path))
    os.chown(house.policy, service, service)
    house.start()
    return house


def of(pid: int, field: str) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{field}:"))


def test_all_that_matters_works_for_a_service_without_rights(served: House, users: list[int]) -> None:
    owner, reader, service = users
    path = served.place / "home" / "app.db"
    first = served.does("backup", "app")
    assert first["proof"]["grade"] == "proven"
    lost_with = "the same file system as app: one failure there loses both"  # although only its owner sees it there
    until(lambda: lost_with in served.ctl("status").out, lambda: served.ctl("status").out)
    served.does("restore", "app", "--to", str(path.with_name("again.db")))
    found = path.with_name("again.db").stat()
    assert (found.st_uid, found.st_mode & 0o7777, rows(path.with_name("again.db"))) == (owner, 0o600, 50)
    with_owner(owner, lambda: add(path, 25))
    served.does("restore", "app", "--id", first["backup"]["id"], "--in-place", "--confirm", "app")
    assert with_owner(owner, lambda: rows(path)) == 50
    assert (path.stat().st_uid, path.stat().st_mode & 0o7777) == (owner, 0o600)
    served.does("restore", "undo", "app", "--confirm", "app")
    assert with_owner(owner, lambda: rows(path)) == 75
    served.idle()
    for kept in ("machine.key", "catalog.db", "audit.jsonl", "store"):
        about = (served.state / kept).stat()
        assert (about.st_uid, about.st_mode & 0o077) == (service, 0), kept
    assert served.ctl("status", uid=reader).status == 5  # who is not in the policy
    served.is_sound()


def test_it_protects_what_it_cannot_even_see(served: House, users: list[int]) -> None:
    owner, _, _ = users
    home = served.place / "home"
    path = served.database("shop", rows=7).rename(home / "shop.db")
    os.chown(path, owner, owner)
    path.chmod(0o600)
    missing = served.fails("DBG-2001", 1, "protect", str(home / "gone.db"))
    assert "no such file" in missing["message"]
    (link := served.place / "link.db").symlink_to("home/shop.db")
    linked = served.fails("DBG-2007", 1, "protect", str(link))
    assert f"is a link to {path}" in linked["message"] and linked["hints"] == [f"dbguardctl protect {path}"]
    done = served.does("protect", str(path))
    assert (done["database"], done["found"]) == ("shop", f"SQLite database, 8 KiB, owned by uid {owner}")
    assert (done["proof"]["grade"], done["job"]["state"]) == ("proven", "done")
    served.idle()
    served.is_sound()


def test_what_left_the_policy_is_restored_for_its_owner_by_what_the_error_says(served: House, users: list[int]) -> None:
    owner, _, service = users
    served.does("backup", "app")
    served.idle()
    served.protects()
    served.does("reload")
    rooted = served.place / "rooted"
    rooted.mkdir(mode=0o755)
    denied = served.fails("DBG-0012", 5, "restore", "app", "--to", str(rooted / "app.db"))
    command, _, _ = denied["hints"][0].partition("  #")
    looked = served.fails("DBG-0012", 5, "restore", "app", "--to", str(rooted / "app.db"), "--dry-run")
    assert looked["hints"] == denied["hints"]
    assert command == f"install -d -o {pwd.getpwuid(owner).pw_name} -m 0700 {rooted}/restored"
    missing = served.fails("DBG-0001", 2, "restore", "app", "--to", str(rooted / "restored" / "app.db"))
    assert missing["hints"] == [command]
    subprocess.run(command.split(), check=True)
    target = rooted / "restored" / "app.db"
    assert served.ctl("restore", "app", "--to", str(target)).status == 0
    assert target.stat().st_uid == owner

    rooted.chmod(0o777)  # anybody may write there: the job acts as the service, which may give nothing away
    said = served.ctl("restore", "app", "--to", str(rooted / "app.db"))
    assert (said.status, (rooted / "app.db").stat().st_uid) == (3, service)
    assert "not with all its permissions" in said.out and f"chown {pwd.getpwuid(owner).pw_name}:" in said.out
    served.is_sound()


def test_its_workers_keep_no_power(served: House, users: list[int]) -> None:
    owner, _, service = users
    path = served.place / "home" / "app.db"
    with with_lock(path, owner):
        job = served.submit("backup", "app")
        until(lambda: set(served.workers()) == {"repository", "engine"}, served.workers)
        until(lambda: of(served.workers()["engine"], "NoNewPrivs") == ["1"], "it settles")
        until(lambda: served.job(job)["step"] == "snapshot", lambda: served.job(job))
        for half, uid in (("repository", service), ("engine", owner)):
            pid = served.workers()[half]
            assert of(pid, "Uid") == [str(uid)] * 4
            assert of(pid, "Gid") == [str(pwd.getpwuid(uid).pw_gid)] * 4
            for kind in ("CapPrm", "CapEff", "CapAmb"):
                assert int(of(pid, kind)[0], 16) == 0, (half, kind)
            assert not may_look_into(uid, pid), half
        assert served.process is not None and not may_look_into(service, served.process.pid)
        group = pwd.getpwuid(owner).pw_gid
        with subprocess.Popen(["sleep", "60"], user=owner, group=group, extra_groups=[], cwd="/") as ordinary:
            assert may_look_into(owner, ordinary.pid), "whoever is the same user may, of a program that allows it"
            ordinary.kill()
        os.kill(served.workers()["engine"], signal.SIGSTOP)  # it does not listen any more, and belongs to another user
        served.does("job", "cancel", job)
        assert served.ended(job)["state"] == "cancelled"
    until(lambda: not served.workers(), served.workers)
    assert served.does("backup", "app")["proof"]["grade"] == "proven"
    served.idle()
    served.is_sound()


ENDLESS = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"


def test_a_backup_is_read_for_a_question_by_nobody(served: House, users: list[int]) -> None:
    nobody = pwd.getpwnam("nobody")
    _, _, service = users
    served.does("backup", "app")
    served.idle()
    assert served.does("query", "app", "select count(*) from note")["rows"] == [[50]]
    job = served.submit("query", "app", sql=ENDLESS, seconds=600)
    until(lambda: served.job(job)["step"] == "answer", lambda: served.job(job))
    for half, uid in (("repository", service), ("question", nobody.pw_uid)):
        assert of(served.workers()[half], "Uid") == [str(uid)] * 4
    pid = served.workers()["question"]
    assert of(pid, "Gid") == [str(nobody.pw_gid)] * 4
    assert {int(of(pid, kind)[0], 16) for kind in ("CapPrm", "CapEff", "CapAmb", "CapInh")} == {0}
    assert not may_look_into(nobody.pw_uid, pid)
    os.kill(pid, signal.SIGSTOP)  # it does not listen any more, and belongs to another user
    served.does("job", "cancel", job)
    assert served.ended(job)["state"] == "cancelled"
    until(lambda: not served.workers(), served.workers)
    served.is_sound()


def test_by_hand_too(served: House) -> None:
    """Typed by root, on the state of the service."""
    served.does("backup", "app")
    served.idle()
    served.stop()
    for path in (served.place, served.policy):  # a policy that nobody but root can have written
        os.chown(path, 0, 0)
    served.policy.chmod(0o644)
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    argv = [served.python, "-m", "dbguardd", "--policy", served.policy, "--state", served.state, "run", "query", "app"]
    with subprocess.Popen([*argv, ENDLESS, "--seconds", "600"], cwd="/", stderr=subprocess.DEVNULL) as process:
        until(lambda: "question" in halves(process.pid), "the half that reads")
        until(lambda: of(halves(process.pid)["question"], "Uid") == [nobody] * 4, "it is nobody")
        process.terminate()
    asked = subprocess.run([*argv, "select count(*) from note"], cwd="/", capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (0, '["count(*)"]\n[50]\n'), asked.stderr


def with_owner(uid: int, act):
    """Do something in this process with the rights of another user."""
    os.seteuid(uid)
    try:
        return act()
    finally:
        os.seteuid(0)


def may_look_into(uid: int, pid: int) -> bool:
    """True if a user can read what only the process itself should know."""
    argv = ["cat", f"/proc/{pid}/environ"]
    group = pwd.getpwuid(uid).pw_gid
    done = subprocess.run(argv, user=uid, group=group, extra_groups=[], cwd="/", capture_output=True, check=False)
    return done.returncode == 0


def with_lock(path: Path, owner: int):
    """Hold the lock of a long transaction; files that this makes belong to the owner."""
    with_owner(owner, lambda: to_rollback_journal(path))
    return held(path)


def to_rollback_journal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = delete")


def test_a_daemon_that_can_be_nobody_else_lends_its_rights_to_no_link_of_others(
    house: House, users: list[int], program
) -> None:
    owner, _, service = users
    group = pwd.getpwuid(service).pw_gid
    house.become = [program("setpriv"), f"--reuid={service}", f"--regid={group}", "--clear-groups"]
    for path in (house.place, house.log):
        os.chown(path, service, service)
    secret = house.database("secret", rows=7)
    secret.chmod(0o600)
    os.chown(secret, service, service)
    home = house.place / "home"
    home.mkdir()
    path = house.database("app").rename(home / "app.db")
    for entry in (home, path):
        os.chown(entry, owner, owner)
    house.protects(house.table("app", path=path))
    os.chown(house.policy, service, service)
    house.start()
    assert house.does("backup", "app")["proof"]["grade"] == "proven"
    with_owner(owner, path.unlink)
    with_owner(owner, lambda: path.symlink_to(secret))
    problem = house.fails("DBG-2007", 1, "backup", "app")
    assert "symbolic link of another user" in problem["message"]
    house.idle()
    assert len(house.backups("app")) == 1


def test_a_storage_that_it_may_not_enter_is_told_and_keeps_it_from_nothing(served: House) -> None:
    served.does("backup", "app")
    served.idle()
    served.stop()
    os.chown(served.store, 0, 0)
    served.start()
    served.idle()
    served.does("reload")
    problem = until(lambda: served.api.get("status")["storages"][0]["problem"], served.jobs)
    assert (problem["code"], "Permission denied" in problem["detail"]) == ("DBG-3001", True)
    assert served.status("app")["recoverable_to_at"] is None
    served.stop()

    for path in served.state.glob("catalog.db*"):  # of a disk that comes from another machine nothing is known
        path.unlink()
    served.protects()
    served.start()
    served.does("reload")
    until(lambda: not served.api.get("status")["storages"][0]["ok"], served.jobs)
    said = served.ctl("status").out
    assert "is not known: see below" in said and "Permission denied" in said
    assert not any(lie in said for lie in ("0 B", "No database is protected yet", "no recovery recipient")), said
    os.chown(served.store, served.state.stat().st_uid, served.state.stat().st_gid)
    served.does("reload")
    until(lambda: [row["backups"] for row in served.api.get("status")["databases"]] == [1], served.jobs)
    served.is_sound()
