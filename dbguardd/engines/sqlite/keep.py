"""Keeps the log of a live WAL database from beginning anew before it was read. Runs as a script, in its own process.

Arguments: the file: URI (up to its question mark), the time to wait for locks and the longest time to keep writers out,
in seconds. Answers with JSON lines: {"held": version} once the first read mark stands, or {"error": text, "code":
SQLite result code}. On standard input it is asked for:

``ping``
    Answer {"here": true}: all marks stood until now.
``renew``
    Take a newer mark, then give the old one up. Answers {"renewed": true}, or an error, and then the old one stays.
``move``
    As renew, and at once bring into the main file what the mark allows, beside writers. Answers {"renewed": true,
    "seconds": what the second took, "frames": what the log had when it began, -1 if it did not}. What kept it from
    that is no error: then it stays in the log.
``bring``
    Bring into the main file what the mark that stands allows, beside writers. Answers {"brought": true}, also if
    something kept it from that. Only to be asked for where that mark is above 0.
``turn``
    Let the log begin anew. Answers {"still": true} when it keeps writers out, so that the rest of the log can be read;
    on the line ``go`` checkpoints that too, takes a mark, lets writers in again and answers {"turned": whether all of
    the log is in the main file}. On any other line, or none in time, it lets them in at once: {"turned": false}, as
    where writers could not be kept out.

The marks are held by connections that may only read, and those that may write are closed first: so the log stays when
this process ends, also where no application has the database open, and can be followed from the same frame later.

At least one mark stands from the first answer to the end (why that is enough: `follow`). It never writes a page that
the application has not committed, makes no table and changes no setting of the database. The checkpoints are PASSIVE:
they wait for nobody. Those beside which a writer might begin the log anew (there SQLite before 3.51.3 can lose pages;
sqlite.org/wal.html) run either under a mark above 0 or with writers kept out, and both forbid that.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
import time
from contextlib import suppress

_PAUSE_SECONDS = 0.002


def _say(**message: object) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


class Asked:
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


def _refuse(error: sqlite3.Error) -> None:
    _say(error=str(error), code=getattr(error, "sqlite_errorcode", 0))


class Keeper:
    """The connections: two that take turns in holding a mark, one that checkpoints, one that keeps writers out."""

    def __init__(self, uri: str, timeout_seconds: float, block_seconds: float, asked: Asked) -> None:
        self._block_seconds, self._asked = block_seconds, asked
        self._checkpointer, self._barrier = self._open(f"{uri}mode=rw", 0), self._open(f"{uri}mode=rw", block_seconds)
        self._checkpointer.execute("PRAGMA user_version").fetchall()  # makes -wal and -shm where there are none
        self._mark, self._spare = (self._open(f"{uri}mode=ro", timeout_seconds) for _ in range(2))
        self._begin(self._mark)

    @staticmethod
    def _open(uri: str, timeout_seconds: float) -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout_seconds)
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

        What keeps it from that is no error; a full disk is one such thing.
        """
        with suppress(sqlite3.Error):
            frames, _ = self.checkpoint()
            return frames
        return -1

    def checkpoint(self) -> tuple[int, bool]:
        """Write into the main file what the marks allow; return the frames of the log, and True if that was all of it.

        Waits for a checkpoint of the application to end, but no longer than writers may be kept out.
        """
        deadline = time.monotonic() + self._block_seconds / 2
        while True:
            busy, frames, done = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not busy or time.monotonic() >= deadline:
                return frames, bool(frames == done and not busy)
            time.sleep(_PAUSE_SECONDS)

    def turn(self) -> bool:
        """Bring all of the log into the main file, so that the next writer begins it anew. Asks for `go` meanwhile."""
        try:
            self._barrier.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        try:
            _say(still=True)
            if self._asked.line(self._block_seconds / 2) != b"go":  # the other half is for the checkpoint
                return False
            self.renew()
            _, done = self.checkpoint()
            if done:
                self.renew()  # a mark of 0: from now on no checkpoint writes, so it begins anew with frames only once
            return done
        finally:
            self._barrier.execute("ROLLBACK")


def main(uri: str, timeout_seconds: float, block_seconds: float) -> int:
    """Take the first mark, do as standard input says, let go at its end."""
    asked = Asked()
    try:
        keeper = Keeper(uri, timeout_seconds, block_seconds, asked)
    except sqlite3.Error as error:
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
            elif line == b"turn":
                _say(turned=keeper.turn())
        except sqlite3.Error as error:
            _refuse(error)
    keeper.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
