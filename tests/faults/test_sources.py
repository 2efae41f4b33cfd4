"""Databases that cannot be backed up: the right word for each, nothing hangs, earlier backups stay good."""

import asyncio
import os
import random
import shutil
import socket
import sqlite3
import sys

import pytest

from dbguardd.errors import SourceDenied, WorkerDied
from dbguardd.worker.start import run_worker
from tests.faults.hand import Hand, a_place


def refused(hand: Hand, code: str, *said: str) -> None:
    """The backup is refused with this code, and earlier backups stand."""
    before = hand.listed()
    problem = hand.fails(code, 4 if code == "DBG-2005" else 1, "backup", "shop")
    assert hand.path.name in problem["message"]
    text = f"{problem['message']} {problem['detail']} {' '.join(problem['hints'])}"
    assert all(word in text for word in said), text
    assert hand.listed() == before
    hand.restores(before[0])


@pytest.fixture
def hand(press):
    """A shop with one good backup; its file is then gone."""
    with a_place() as place:
        hand = Hand(place, press, settings='lock_timeout = "200ms"')
        hand.seed()
        hand.backup()
        yield hand


def test_missing(hand):
    hand.path.unlink()
    refused(hand, "DBG-2001")


def test_its_directory_is_missing(hand):
    shutil.rmtree(hand.live)
    problem = hand.run("backup", "shop").problem
    assert problem["code"] == "DBG-2001"
    hand.live.mkdir()
    hand.is_tidy()


def test_empty(hand):
    hand.path.write_bytes(b"")
    refused(hand, "DBG-2002", "0 bytes")


@pytest.mark.parametrize("content", [b"x", b"hello" * 5000, b"SQLite format 3\0", b"\0" * 8192])
def test_not_a_database(hand, content):
    hand.path.write_bytes(content)
    refused(hand, "DBG-2002")


def test_encrypted(hand):
    hand.path.write_bytes(random.Random(1).randbytes(50_000))
    refused(hand, "DBG-2003", "random")


def test_a_directory(hand):
    hand.path.unlink()
    hand.path.mkdir()
    refused(hand, "DBG-2002", "directory")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_could_hang_does_not(hand, make):
    hand.path.unlink()
    make(hand.path)
    problem = hand.fails("DBG-2002", 1, "backup", "shop")
    assert "pipe, socket or device" in problem["detail"]


def test_a_socket(hand):
    hand.path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(hand.path))
        refused(hand, "DBG-2002", "pipe, socket or device")


def test_a_dangling_link(hand):
    hand.path.unlink()
    hand.path.symlink_to(hand.place / "nowhere.db")
    refused(hand, "DBG-2001")


def test_a_link_in_a_circle(hand):
    hand.path.unlink()
    hand.path.symlink_to(hand.path)
    refused(hand, "DBG-2002")


@pytest.mark.parametrize("wal", [True, False])
def test_locked_exclusively(press, wal):
    with a_place() as place:
        hand = Hand(place, press, wal=wal, settings='lock_timeout = "200ms"')
        hand.seed()
        hand.backup()
        application = sqlite3.connect(hand.path, isolation_level=None)
        try:
            application.execute("pragma locking_mode = exclusive")
            application.execute("begin exclusive")
            refused(hand, "DBG-2004")
            application.execute("update account set balance = balance")
            application.execute("commit")
        finally:
            application.close()
        hand.restores(hand.backup())


def test_a_file_without_permission(hand):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    hand.path.chmod(0)
    refused(hand, "DBG-2007")


@pytest.fixture
def run_as(hand, monkeypatch, tmp_path):
    """Run a backup as a user, where nobody can run the interpreter."""
    python = tmp_path / "python"
    python.touch(0o600)
    monkeypatch.setattr(sys, "executable", str(python))

    def run(user):
        settings = {"path": str(hand.path)}
        spec = {
            "request": {},
            "verb": "backup",
            "actor": "root",
            "state": str(tmp_path),
            "database": {
                "name": "shop",
                "engine": "sqlite",
                "run_as": user,
                "place": str(hand.path),
                "settings": settings,
            },
        }
        asyncio.run(run_worker(spec, print, asyncio.Event(), stall_timeout=60))

    return run


def test_a_daemon_that_cannot_run_python(run_as):
    with pytest.raises(WorkerDied, match="engine half"):
        run_as(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: an owner who cannot run Python (only root can become him)")
def test_an_owner_who_cannot_run_python(run_as):
    with pytest.raises(SourceDenied, match="cannot run"):
        run_as(65534)


def test_damaged_pages_are_kept_and_told(hand):
    """The bytes of a damaged database are the best there is of it; but its backup never counts as proven."""
    proven = hand.listed()[0]
    db = sqlite3.connect(hand.path)
    db.execute("pragma wal_checkpoint(truncate)")
    root = db.execute("select rootpage from sqlite_master where name = 'booking'").fetchone()[0]
    db.close()
    with hand.path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    ended = hand.run("backup", "shop")
    assert (ended.status, ended.problem["code"]) == (4, "DBG-2005"), ended.stderr
    hand.is_tidy()
    (backup,) = ended.said("backup.stored")
    verdict = hand.run("verify", "shop", "--backup", backup["id"])
    assert (verdict.status, verdict.problem["code"]) == (4, "DBG-6001"), verdict.stderr
    (graded,) = verdict.said("backup.graded")
    assert graded["grade"] != "proven"
    hand.restores(proven)


def test_replaced_again_and_again_during_backups(hand):
    """Each backup is of the one file or of the other, or is refused as replaced; never a mixture."""
    copies = [hand.place / f"copy-{number}.db" for number in range(2)]
    db = sqlite3.connect(hand.path)
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    for copy in copies:
        shutil.copy(hand.path, copy)
    made = []
    for number in range(6):
        running = hand.start("backup", "shop")
        running.heard("repository.opened")
        while not running.ended(0.001):
            shutil.copy(copies[number % 2], hand.place / "new.db")
            os.replace(hand.place / "new.db", hand.path)
        ended = hand.noted(running.wait())
        if ended.status == 0:
            made.append(ended.result["backup"]["id"])
        else:
            assert ended.problem["code"] in ("DBG-2006", "DBG-2004"), ended.stderr
        hand.is_tidy()
    hand.restores(*made, hand.backup())
    hand.is_clean()


def test_vacuum_and_new_schemas_during_backups(hand):
    db = sqlite3.connect(hand.path, isolation_level=None, timeout=60)
    try:
        made = []
        for number in range(5):
            running = hand.start("backup", "shop")
            running.heard("repository.opened")
            turn = 0
            while not running.ended(0.001):
                turn += 1
                db.execute(f"create table t{number}_{turn} (a, b)")
                db.execute(f"insert into t{number}_{turn} values (1, 2)")
                db.execute(f"create index i{number}_{turn} on t{number}_{turn} (b)")
                db.execute("vacuum")
                db.execute(f"drop table t{number}_{turn}")
            made.append(hand.noted(running.wait()).result["backup"]["id"])
        hand.is_tidy()
        hand.restores(*made)
        for id in made:
            assert hand.run("verify", "shop", "--backup", id).result["proof"]["grade"] == "proven"
    finally:
        db.close()
    hand.is_clean()
