"""SQLite databases and the processes that use them, for tests."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

from engine_memory import MemorySink, MemoryTree, no_progress

from dbguardd.engines import ENGINES

_USER = Path(__file__).with_name("sqlite_user.py")


class User:
    """A running sqlite_user.py."""

    def __init__(self, child):
        self.child = child

    def hear(self):
        line = self.child.stdout.readline()
        return json.loads(line) if line else {}

    def end(self):
        """Close its input and return the rest of its output."""
        self.child.stdin.close()
        heard = {}
        while words := self.hear():
            heard.update(words)
        self.child.wait(30)
        return heard


@contextmanager
def using(path, action, number=0.0):
    """Let another process use the database until the block ends."""
    command = [sys.executable, str(_USER), str(path), action, str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        user = User(child)
        try:
            assert user.hear() == {"ready": True}
            yield user
        finally:
            if not child.stdin.closed:
                child.stdin.close()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()


def ledger(path, journal_mode="wal", accounts=50, filler=0, page_size=4096):
    """Make a database whose two sums always add up to 0."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={page_size}")
        db.execute(f"PRAGMA journal_mode={journal_mode}")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        for table in ("a", "b"):
            db.execute(f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, amount INTEGER NOT NULL)")
            db.executemany(f"INSERT INTO {table} VALUES(?, 0)", [(n,) for n in range(accounts)])
        db.execute("CREATE TABLE moves(id INTEGER PRIMARY KEY, note TEXT)")
        db.execute("CREATE INDEX moves_note ON moves(note)")
        db.execute("CREATE TABLE filler(data BLOB)")
        db.executemany("INSERT INTO filler VALUES(randomblob(?))", [(50_000,)] * (filler // 50_000))
        db.execute("COMMIT")


def balance(path):
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
        return db.execute("SELECT (SELECT sum(amount) FROM a) + (SELECT sum(amount) FROM b)").fetchone()[0]


def directory(path):
    """Return names and sizes of everything in a directory."""
    return {entry.name: entry.stat().st_size for entry in Path(path).iterdir()}


def shell(path, sql):
    """Run SQL in another process and return what it prints."""
    command = ["sqlite3", "-bail", "-cmd", ".timeout 5", str(path), sql]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def locks_on(path, pid):
    """The POSIX locks that a process holds on a database and its WAL index, as the kernel lists them.

    The kernel passes over a line when somebody else's lock goes while it lists them, so it is asked a few times.
    """
    inodes = {os.stat(name).st_ino for name in (str(path), f"{path}-shm") if os.path.exists(name)}
    found = set()
    for line in "".join(Path("/proc/locks").read_text() for _ in range(5)).splitlines():
        fields = line.split()
        if fields[1] == "POSIX" and int(fields[4]) == pid and int(fields[5].split(":")[2]) in inodes:
            found.add(tuple(fields[1:]))
    return sorted(found)


def make(live, staging, **settings):
    """Open the engine for a live file."""
    return ENGINES["sqlite"](
        {"path": str(live), "staging": str(staging), "beat_seconds": 0, "step_bytes": 1 << 20, **settings}
    ).snapshots


def round_trip(engine, target):
    """Back up and restore; return facts, the source's fingerprint and the examination of the restored file."""
    sink = MemorySink()
    facts = engine.dump(sink, no_progress)
    taken = engine.fingerprint(no_progress, MemoryTree(sink, facts))
    engine.release()
    engine.restore(MemoryTree(sink, facts), target, no_progress)
    return facts, taken, engine.examine(target, [], no_progress)
