"""Runs the child processes that use SQLite on the live database, so that this process never does (see `live`).

A child answers in JSON lines on its standard output, and ends when its standard input is closed, so none outlives us.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dbguardd.errors import (
    GuardError,
    SourceChanged,
    SourceDamaged,
    SourceDenied,
    SourceEncrypted,
    SourceLocked,
    WorkerDied,
)

_HOLD = Path(__file__).with_name("hold.py")
_BEAT_SECONDS = 0.25
_GRACE_SECONDS = 30.0
_ENVIRONMENT = {"LANG": "C.UTF-8"}


def uri(path: str, query: str) -> str:
    """Return the file: URI of a path, whatever bytes it contains."""
    return f"file:{quote(os.fsencode(path))}?{query}"


class Child:
    """A running child."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - for the type checker
        self.pid = process.pid
        self._input = process.stdin
        self._output = process.stdout.fileno()
        self._lines = b""

    def ask(self, line: str) -> None:
        """Send a line to the child. If it has ended, answer() will show that."""
        with suppress(BrokenPipeError):
            self._input.write(line.encode() + b"\n")
            self._input.flush()

    def end_input(self) -> None:
        """Ask the child to finish."""
        self._input.close()

    def silent(self) -> bool:
        """Return whether the child, which was asked nothing, is still running; False if it has ended."""
        return not select.select([self._output], [], [], 0)[0]

    def answer(self, alive: Callable[[], None]) -> dict[str, Any]:
        """Return the next answer; an empty one if the child ended. Calls `alive` while waiting."""
        while b"\n" not in self._lines:
            if not select.select([self._output], [], [], _BEAT_SECONDS)[0]:
                alive()
                continue
            piece = os.read(self._output, 4096)
            if not piece:
                return {}
            self._lines += piece
        line, _, self._lines = self._lines.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}


@contextmanager
def child(arguments: Sequence[str], place: Path | None = None) -> Iterator[Child]:
    """Run this Python with `arguments`, isolated; the child is ended when the block is left.

    The arguments are visible to all users, the working directory (`place`) is not.
    """
    with subprocess.Popen(
        [sys.executable, "-I", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_ENVIRONMENT,
        cwd=place,
    ) as process:
        try:
            yield Child(process)
        finally:
            if process.stdin and not process.stdin.closed:
                with suppress(BrokenPipeError):  # it has ended before it received the last line
                    process.stdin.close()
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


class Hold:
    """A read transaction held by a child.

    `longest`: how long (seconds) one read mark was held, known after release().
    """

    def __init__(self, path: str, process: Child) -> None:
        self._path = path
        self._child = process
        self._since = 0.0
        self.longest = 0.0

    def wait(self, alive: Callable[[], None]) -> None:
        """Wait until the read mark is set. Raises the reason if it cannot be."""
        answer = self._child.answer(alive)
        if "held" not in answer:
            raise refusal(self._path, str(answer.get("error", "no answer")), int(answer.get("code", 0)))
        self._since = time.monotonic()

    def renew(self, meanwhile: Callable[[], None]) -> bool:
        """Take a newer read mark and release the old one; return False if only the old one can be held.

        `meanwhile` is called while both are held. Raises WorkerDied if the child had already ended.
        """
        self._child.ask("again")
        answer = self._child.answer(lambda: None)
        if "error" in answer:
            return False
        if "held" in answer:
            meanwhile()
            self._child.ask("drop")
            answer = self._child.answer(lambda: None)
        if "dropped" not in answer:
            raise WorkerDied(f"{self._path}: the process that held the read transaction ended too early")
        self.longest, self._since = max(self.longest, time.monotonic() - self._since), time.monotonic()
        return True

    def release(self) -> None:
        """End the transaction and wait until it is over. Raises WorkerDied if the child had already ended."""
        self._child.end_input()
        answer = self._child.answer(lambda: None)
        self.longest = max(self.longest, time.monotonic() - self._since)
        if "released" not in answer:
            raise WorkerDied(f"{self._path}: the process that held the read transaction ended too early")


@contextmanager
def hold(path: str, timeout_seconds: float) -> Iterator[Hold]:
    """Start a child that takes a read transaction on the live WAL database."""
    with child(["-S", str(_HOLD), uri(path, "mode=ro"), str(timeout_seconds)]) as process:
        yield Hold(path, process)


def refusal(path: str, text: str, code: int) -> GuardError:
    """Return our error for a SQLite result code on the live database."""
    kind: type[GuardError] = {
        sqlite3.SQLITE_BUSY: SourceLocked,
        sqlite3.SQLITE_LOCKED: SourceLocked,
        sqlite3.SQLITE_PROTOCOL: SourceLocked,
        sqlite3.SQLITE_CANTOPEN: SourceDenied,
        sqlite3.SQLITE_READONLY: SourceDenied,
        sqlite3.SQLITE_PERM: SourceDenied,
        sqlite3.SQLITE_NOTADB: SourceEncrypted,
        sqlite3.SQLITE_CORRUPT: SourceDamaged,
        sqlite3.SQLITE_IOERR: SourceDamaged,
        0: WorkerDied,
    }.get(code & 0xFF, SourceChanged)
    return kind(f"{path}: SQLite cannot read it", detail=f"{text} (result code {code})")
