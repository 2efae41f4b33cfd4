"""Starts the child that holds a read transaction on the live database, and ends it."""

from __future__ import annotations

import json
import os
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

_SCRIPT = Path(__file__).with_name("hold.py")
_BEAT_SECONDS = 0.25
_GRACE_SECONDS = 10.0
_ENVIRONMENT = {"LANG": "C.UTF-8"}


def uri(path: str, query: str) -> str:
    """Return the file: URI of a path, whatever bytes are in it."""
    return f"file:{quote(os.fsencode(path))}?{query}"


class Hold:
    """A read transaction held by a child. `seconds` is how long the mark stood, known after release()."""

    def __init__(self, path: str, child: subprocess.Popen[bytes]) -> None:
        self._path = path
        self._child = child
        self._lines = b""
        self._since = 0.0
        self.seconds = 0.0
        self.version = ""

    def wait(self, alive: Callable[[], None]) -> None:
        """Return when the read mark stands. Raises what kept it from standing."""
        answer = self._answer(alive)
        if "held" not in answer:
            raise refusal(self._path, str(answer.get("error", "no answer")), int(answer.get("code", 0)))
        self._since = time.monotonic()
        self.version = str(answer["held"])

    def release(self) -> None:
        """End the transaction and return when it is over. Raises WorkerDied if the child had ended before."""
        assert self._child.stdin is not None  # noqa: S101 - for the type checker
        self._child.stdin.close()
        answer = self._answer(lambda: None)
        self.seconds = time.monotonic() - self._since
        if "released" not in answer:
            raise WorkerDied(f"{self._path}: the process that held the read transaction ended too early")

    def _answer(self, alive: Callable[[], None]) -> dict[str, Any]:
        """Read one JSON line; an empty object if the child ended."""
        assert self._child.stdout is not None  # noqa: S101 - for the type checker
        stream = self._child.stdout.fileno()
        while b"\n" not in self._lines:
            if select.select([stream], [], [], _BEAT_SECONDS)[0]:
                piece = os.read(stream, 4096)
                if not piece:
                    return {}
                self._lines += piece
            else:
                alive()
        line, _, self._lines = self._lines.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}


@contextmanager
def hold(path: str, timeout_seconds: float) -> Iterator[Hold]:
    """Start the child; leaving the block ends it in any case."""
    command = [sys.executable, "-I", "-S", str(_SCRIPT), uri(path, "mode=ro"), str(timeout_seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_ENVIRONMENT
    ) as child:
        try:
            yield Hold(path, child)
        finally:
            if child.stdin and not child.stdin.closed:
                child.stdin.close()
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def refusal(path: str, text: str, code: int) -> GuardError:
    """Return the outcome that a SQLite result code on the live database stands for."""
    primary = code & 0xFF
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
    }.get(primary, SourceChanged)
    return kind(f"{path}: SQLite cannot read it", detail=f"{text} (result code {code})")
