"""Keeps the log of a live WAL database from beginning anew before it was read. Runs as a script, in its own process.

Arguments: the file: URI (up to its question mark) and the path of the database, the time to wait for locks and that to
wait for who writes, in seconds. Answers with JSON lines: {"held": version} once the first read mark stands, or
{"error": text, "code": SQLite result code}. On standard input it is asked for:

``ping``
    Answer {"here": true}: all marks stood until now.
``renew``
    Take a newer mark, then give the old one up. Answers {"renewed": true}, or an error, and then the old one stays.
``move``
    As renew, and at once bring into the main file what the mark allows, and that onto the disk, beside writers. Answers
    {"renewed": true, "seconds": what the second took, "frames": what the log had when it began, -1 if it did not}. What
    kept it from that is no error: then it stays in the log.
``bring``
    The same under the mark that stands. Answers {"brought": true}, also if something kept it from that. Only to be
    asked for where that mark is above 0.
``turn SECONDS``
    Let the log begin anew. Answers {"still": true} when it keeps writers out, so that the rest of the log can be read;
    on the line ``go`` checkpoints that too, takes a mark, lets writers in again and answers {"turned": whether all of
    the log is in the main file}. On any other line, or none in half of the time, it lets them in at once: {"turned":
    false}, as where writers could not be kept out. So it does when the time is over, whatever the disk is doing then.

The marks are held by connections that may only read, and those that may write are closed first: so the log stays when
this process ends, also where no application has the database open, and can be followed from the same frame later.

At least one mark stands from the first answer to the end (why that is enough: `follow`). It never writes a page that
the application has not committed, makes no table and changes no setting of the database. The checkpoints are PASSIVE:
they wait for nobody. Those beside which a writer might begin the log anew (there SQLite before 3.51.3 can lose pages;
sqlite.org/wal.html) run either under a mark above 0 or with writers kept out, and both forbid that.

The main file and the index are open here beside SQLite, which has its locks on them, and so are never closed.
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
_FRAMES, _MOVED = 16, 96  # where the index says how many the log has, and how many are in the main file (walformat 2.1)


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


class Requests:
    """The lines on standard input, one by one: two of them can arrive together."""

    def __init__(self) -> None:
        self._text = b""

    def line(self, seconds: float | None = None) -> bytes:
        """Return the next line, the last one empty; an empty one, too, if none comes in time."""
        while b"\n" not in self._text:
            if not select.select([0], [], [], seconds)[0] or not (piece := os.read(0, 512)):
                return b""
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        return line


def _refuse(error: Exception) -> None:
    _say(error=str(error), code=getattr(error, "sqlite_errorcode", 0))


class Keeper:
    """The connections: two that take turns in holding a mark, one that checkpoints, one that keeps writers out."""

    def __init__(self, uri: str, path: str, timeout_seconds: float, block_seconds: float, asked: Requests) -> None:
        self._block_seconds, self._asked = block_seconds, asked
        self._checkpointer = self._open(f"{uri}mode=rw", timeout_seconds)
        self._barrier = self._open(f"{uri}mode=rw", block_seconds)
        self._checkpointer.execute("PRAGMA user_version").fetchall()  # makes -wal and -shm where there are none
        self._mark, self._spare = (self._open(f"{uri}mode=ro", timeout_seconds) for _ in range(2))
        self._begin(self._mark)
        self._main, self._index = (os.open(f"{path}{side}", os.O_RDONLY) for side in ("", "-shm"))

    @staticmethod
    def _open(uri: str, timeout_seconds: float) -> sqlite3.Connection:
        # One thread at a time, which is not always the same: see turn().
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
        """End it all, the connections that may write first."""
        for connection in (self._barrier, self._checkpointer, self._spare, self._mark):
            connection.close()

    def renew(self) -> None:
        """Take a newer mark, then give the old one up."""
        try:
            self._begin(self._spare)
        except sqlite3.Error:
            if self._spare.in_transaction:
                self._spare.execute("ROLLBACK")
            raise
        self._mark.execute("ROLLBACK")
        self._mark, self._spare = self._spare, self._mark

    def move(self) -> tuple[float, int]:
        """Take a newer mark and write into the main file what it allows; return the seconds, and the frames there were.

        Nothing may come in between: the next commit of the application would do it, and whoever waits for that commit.
        """
        self.renew()
        began = time.monotonic()
        frames = self.bring()
        return time.monotonic() - began, frames

    def bring(self) -> int:
        """Write into the main file what the mark that stands allows; return the frames of the log, -1 if it failed.

        What keeps it from that is no error; a full disk is one such thing. SQLite leaves it in the cache of the kernel
        if frames have come meanwhile, for a checkpoint that gets to the end: that would be ours with writers kept out.
        """
        with suppress(sqlite3.Error, OSError):
            frames = self.checkpoint()
            os.fdatasync(self._main)
            return frames
        return -1

    def checkpoint(self) -> int:
        """Write into the main file what the marks allow; return the frames of the log.

        Waits for a checkpoint of the application to end, but no longer than writers may be kept out.
        """
        deadline = time.monotonic() + self._block_seconds / 2
        while True:
            busy, frames, _ = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not busy or time.monotonic() >= deadline:
                return int(frames)
            time.sleep(_PAUSE_SECONDS)

    def turn(self, seconds: float) -> bool:
        """Bring all of the log into the main file, so that the next writer begins it anew. Asks for `go` meanwhile.

        When the time is over writers are let in, and what the disk has not done by then it does beside them.
        """
        mover = Thread(target=self.checkpoint)  # if that fails, something is left
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
                return False  # and the mark that was just taken is above 0, so writers may come
            mover.join()
            self.renew()  # a mark of 0: from now on no checkpoint writes, so it begins anew with frames only once
            return True
        finally:
            self._barrier.execute("ROLLBACK")
            if mover.ident is not None:
                mover.join()

    def _left(self) -> bool:
        """Say if frames are not in the main file. Only while writers are kept out, else one of them may change it."""
        frames, moved = (unpack("=I", os.pread(self._index, 4, at))[0] for at in (_FRAMES, _MOVED))
        return bool(moved < frames)


def main(uri: str, path: str, timeout_seconds: float, block_seconds: float) -> int:
    """Take the first mark, do as standard input says, let go at its end."""
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
