"""Copies a restored database into the live file. Runs in its own process, with arguments LIVE SOURCE.

It uses one transaction of SQLite's backup interface under an exclusive lock: the live file keeps its inode, owner and
permissions, a crash or cancellation rolls back, and an application that opens it later sees all of it or nothing. Then
the content is read back and compared. Answers with JSON lines: {"done": pages, "total": pages}, and last {"poured":
true} or {"error": text, "code": SQLite result code, "at": "lock" | "pour" | "verify"}. If standard input is closed
before the commit, it stops; after the commit it continues and reports the outcome, so that a cancelling caller knows
which of the two happened.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from dbguardd.engines.sqlite import newer
from dbguardd.engines.sqlite.child import uri
from dbguardd.engines.sqlite.content import fingerprint
from dbguardd.engines.sqlite.still import open_still, page_span

_PAGES = 1024
_BEAT_SECONDS = 0.25


class Stopped(Exception):  # noqa: N818 - an event, not an error
    """Standard input was closed: the caller no longer waits."""


class Entered(sqlite3.OperationalError):
    """The live database is in use after all."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class Pouring:
    """What has been done so far, and whether to continue."""

    def __init__(self) -> None:
        self.at = "lock"
        self._beat = 0.0

    def step(self, status: int, remaining: int, total: int) -> None:
        """After a batch of pages: report, or raise Stopped if standard input is closed. Nothing is committed yet.

        Raises Entered if another process began to use the file after the lock was tried: the backup would wait for it.
        """
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise Entered("somebody began to use it")
        if select.select([0], [], [], 0)[0] and not os.read(0, 512):
            raise Stopped
        self.show(total - remaining, total)

    def show(self, done: int, total: int) -> None:
        """Report at intervals."""
        now = time.monotonic()
        if now - self._beat >= _BEAT_SECONDS:
            self._beat = now
            say(done=done, total=total)


def say(**message: object) -> None:
    """Write one answer."""
    os.write(1, json.dumps(message).encode() + b"\n")


def pour(live: str, source: Path, pouring: Pouring) -> None:
    """Replace the content of `live` by that of `source`. Raises sqlite3.Error, Stopped."""
    address, version = uri(live, "mode=rw"), newer.version_of(Path(live))
    with (
        open_still(source) as origin,
        closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=0)) as target,
    ):
        target.execute("PRAGMA trusted_schema=0")
        _lock(target, origin, version)
        pouring.at = "pour"
        origin.backup(target, pages=_PAGES, progress=pouring.step)
        pouring.at = "verify"
        size = max(source.stat().st_size, 1)

        def tick(done: int) -> None:
            pouring.show(min(done, size), size)

        newer.ignore_newer_syntax(target, newer.version_of(source))
        with suppress(newer.Unread):  # what cannot be read cannot be compared: SQLite itself has copied its pages
            newer.check_all_read(origin)
            if fingerprint(origin, size, tick) != fingerprint(target, size, tick):
                raise sqlite3.DatabaseError("the content read back differs from the restored database")


def _lock(target: sqlite3.Connection, origin: sqlite3.Connection, version: tuple[int, ...]) -> None:
    """Verify that no other process uses the file. Raises sqlite3.OperationalError (busy).

    In WAL mode all others are kept out while the connection exists. In a rollback mode the lock is only tried: if it
    were kept it would leave a journal behind, and the transaction of the backup interface takes its own.
    """
    target.execute("PRAGMA locking_mode=EXCLUSIVE")
    newer.ignore_newer_syntax(target, version)
    target.execute("BEGIN EXCLUSIVE")
    target.execute("COMMIT")
    (mode,) = target.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal" and page_span(target)[1] != page_span(origin)[1]:
        # The backup interface cannot change the page size of a WAL database.
        (mode,) = target.execute("PRAGMA journal_mode=DELETE").fetchone()
    if mode != "wal":
        target.execute("PRAGMA locking_mode=NORMAL")
        target.execute("PRAGMA user_version").fetchall()


def main(live: str, source: str) -> int:
    """Run pour(), and report the outcome."""
    pouring = Pouring()
    try:
        pour(live, Path(source), pouring)
    except sqlite3.Error as error:
        say(error=str(error), code=getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT), at=pouring.at)
        return 1
    except Stopped:
        return 1
    say(poured=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
