"""Keeps the WAL of a live database from restarting before it was read. Runs as a script, in its own process.

Arguments: the file: URI (up to its question mark) and the path of the database, the time to wait for locks and the time
to wait for writers, in seconds (but at most one second: meanwhile nobody reads what they commit). Answers with JSON
lines: {"held": version} once the first read mark is set, or {"error": text, "code": SQLite result code}. Commands on
standard input:

``ping``
    Answer {"here": true}: all marks have been held until now.
``renew``
    Take a newer mark, then release the old one. Answers {"renewed": true}, or an error, and then the old one stays.
``move``
    Like renew, then at once checkpoint into the main file what the mark allows, and sync it, while writers continue.
    Answers {"renewed": true, "seconds": the time for the second step, "frames": the frames of the WAL when it began, -1
    if it did not}. A failure of the second step is no error: then the frames stay in the WAL.
``bring``
    The second step alone, under the mark that is held. Answers {"brought": true}, also if it failed. May only be sent
    while that mark is above 0.
``turn SECONDS``
    Restart the WAL. Answers {"still": true} when it blocks writers, so that the rest of the WAL can be read; on the
    line ``go`` it checkpoints that too, takes a mark, admits writers again and answers {"turned": whether all of the
    WAL is in the main file}. On any other line, or none in half of the time, it admits writers at once and answers
    {"turned": false}, as it does if writers could not be blocked. When the time is over it also admits them, whatever
    the disk is doing then.

Marks are held by connections that are read-only, and the connections that may write are closed first. So the WAL stays
when this process ends, even if no application has the database open, and can be followed from the same frame later.

At least one mark is held from the first answer to the end (why that suffices: `follow`). This process never writes a
page that the application has not committed, creates no table and changes no setting of the database. Its checkpoints
are PASSIVE: they wait for nobody. Checkpoints beside which a writer might restart the WAL (where SQLite before 3.51.3
can lose pages; sqlite.org/wal.html) run either under a mark above 0 or with writers blocked; both prevent a restart.

The main file and the WAL index are open here while SQLite has locks on them, and so are never closed.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
import time
from contextlib import suppress
from struct import unpack
from threading import Thread

_PAUSE_SECONDS = 0.002
_WAIT_SECONDS = 1.0  # longest wait for a writer, or for a checkpoint of the application
_FRAMES, _MOVED = 16, 96  # offsets in the WAL index: the number of frames, and of those in the main file


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


class Requests:
    """The lines on standard input, one by one, even if two arrive together."""

    def __init__(self) -> None:
        self._text = b""

    def line(self, seconds: float | None = None) -> bytes:
        """Return the next line; b"" at the end, or if none comes in time."""
        while b"\n" not in self._text:
            if not select.select([0], [], [], seconds)[0] or not (piece := os.read(0, 512)):
                return b""
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        return line


def _refuse(error: Exception) -> None:
    _say(error=str(error), code=getattr(error, "sqlite_errorcode", 0))


class Keeper:
    """The connections: two that alternate in holding a mark, one that checkpoints, one that blocks writers."""

    def __init__(self, uri: str, path: str, timeout_seconds: float, block_seconds: float, asked: Requests) -> None:
        self._block_seconds, self._asked = min(block_seconds, _WAIT_SECONDS), asked
        self._checkpointer = self._open(f"{uri}mode=rw", timeout_seconds)
        self._barrier = self._open(f"{uri}mode=rw", self._block_seconds)
        self._checkpointer.execute("PRAGMA user_version").fetchall()  # creates -wal and -shm if there are none
        self._mark, self._spare = (self._open(f"{uri}mode=ro", timeout_seconds) for _ in range(2))
        self._begin(self._mark)
        self._main, self._index = (os.open(f"{path}{side}", os.O_RDONLY) for side in ("", "-shm"))

    @staticmethod
    def _open(uri: str, timeout_seconds: float) -> sqlite3.Connection:
        # One thread at a time, but not always the same one: see turn().
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=timeout_seconds, check_same_thread=False
        )
        for pragma in ("mmap_size=0", "cell_size_check=1", "trusted_schema=0", "wal_autocheckpoint=0"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @staticmethod
    def _begin(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")  # takes no lock yet; user_version is read without parsing the schema
        connection.execute("PRAGMA user_version").fetchall()

    def close(self) -> None:
        """Close all connections, first those that may write."""
        for connection in (self._barrier, self._checkpointer, self._spare, self._mark):
            connection.close()

    def renew(self) -> None:
        """Take a newer mark, then release the old one."""
        try:
            self._begin(self._spare)
        except sqlite3.Error:
            if self._spare.in_transaction:
                self._spare.execute("ROLLBACK")
            raise
        self._mark.execute("ROLLBACK")
        self._mark, self._spare = self._spare, self._mark

    def move(self) -> tuple[float, int]:
        """Take a newer mark and checkpoint what it allows; return the seconds that took, and the frames of the WAL.

        Nothing may happen between the two: otherwise the next commit of the application checkpoints, and delays its
        users.
        """
        self.renew()
        began = time.monotonic()
        frames = self.bring()
        return time.monotonic() - began, frames

    def bring(self) -> int:
        """Checkpoint what the current mark allows; return the number of frames in the WAL, -1 on failure.

        A failure, of a full disk for example, is no error. If frames have been added meanwhile SQLite does not sync
        what it wrote; a later checkpoint that completes would, and that would be ours with writers blocked. So sync it
        here.
        """
        with suppress(sqlite3.Error, OSError):
            frames = self.checkpoint()
            os.fdatasync(self._main)
            return frames
        return -1

    def checkpoint(self) -> int:
        """Checkpoint what the marks allow; return the number of frames in the WAL.

        Waits for a checkpoint of the application to end, but no longer than half the time that writers may be blocked.
        """
        deadline = time.monotonic() + self._block_seconds / 2
        while True:
            busy, frames, _ = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not busy or time.monotonic() >= deadline:
                return int(frames)
            time.sleep(_PAUSE_SECONDS)

    def turn(self, seconds: float) -> bool:
        """Checkpoint the whole WAL, so that the next writer restarts it. Waits for `go` meanwhile.

        When the time is over writers are admitted, and the disk finishes beside them.
        """
        mover = Thread(target=self.checkpoint)  # if it fails, frames are left
        try:
            self._barrier.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        deadline = time.monotonic() + seconds
        try:
            _say(still=True)
            if self._asked.line(seconds / 2) != b"go":  # the other half is for the checkpoint
                return False
            self.renew()
            mover.start()
            mover.join(max(0.0, deadline - time.monotonic()))
            if self._left():
                return False  # the mark that was just taken is above 0, so writers may come
            mover.join()
            self.renew()  # a mark of 0: from now on no checkpoint writes, so the WAL restarts with frames only once
            return True
        finally:
            self._barrier.execute("ROLLBACK")
            if mover.ident is not None:
                mover.join()

    def _left(self) -> bool:
        """Return whether frames are not in the main file. Only while writers are blocked, as they may change that."""
        frames, moved = (unpack("=I", os.pread(self._index, 4, at))[0] for at in (_FRAMES, _MOVED))
        return bool(moved < frames)


def main(uri: str, path: str, timeout_seconds: float, block_seconds: float) -> int:
    """Take the first mark, follow the commands on standard input, release the marks at its end."""
    asked = Requests()
    try:
        keeper = Keeper(uri, path, timeout_seconds, block_seconds, asked)
    except (sqlite3.Error, OSError) as error:
        _refuse(error)
        return 1
    _say(held=sqlite3.sqlite_version)
    while line := asked.line():
        try:
            if line == b"ping":
                _say(here=True)
            elif line == b"renew":
                keeper.renew()
                _say(renewed=True)
            elif line == b"move":
                seconds, frames = keeper.move()
                _say(renewed=True, seconds=seconds, frames=frames)
            elif line == b"bring":
                keeper.bring()
                _say(brought=True)
            elif line.startswith(b"turn "):
                _say(turned=keeper.turn(float(line[5:])))
        except sqlite3.Error as error:
            _refuse(error)
    keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])))
