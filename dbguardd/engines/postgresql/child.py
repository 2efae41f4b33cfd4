"""Runs PostgreSQL's own programs: each ends with us whatever happens, and its last words are kept."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dbguardd.errors import of_file

_CONFINE = Path(__file__).with_name("confine.py")
_BEAT_SECONDS = 0.25
_GRACE_SECONDS = 10.0
_TAIL_BYTES = 4000
_PIECE_BYTES = 256 << 10
_MOST_OUTPUT_BYTES = 16 << 20

Alive = Callable[[], None]
"""Called some times a second while something is waited for. Raises Cancelled when the job is to end."""


def command(kind: str, number: int, program: Sequence[str], place: str = "/") -> list[str]:
    """Return the command line by which confine.py becomes `program`, which gets signal `number` when we die.

    `place` is where a server may write.
    """
    return [sys.executable, "-I", "-S", str(_CONFINE), str(os.getpid()), str(number), kind, place, *program]


def environment(passwords: Path | None = None) -> dict[str, str]:
    """Return the environment of a program: what it says is English, and passwords are never in here."""
    kept = {name: os.environ[name] for name in ("HOME", "PGSERVICEFILE", "PGPASSFILE") if name in os.environ}
    clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return {**kept, **clean, **({} if passwords is None else {"PGPASSFILE": str(passwords)})}


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended, and what it said."""

    status: int
    output: bytes
    errors: str


class Tool:
    """A program that runs."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    def read(self, alive: Alive) -> bytes:
        """Return what it wrote next; nothing at its end. Calls `alive` while it waits."""
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        output = self._process.stdout.fileno()
        while not select.select([output], [], [], _BEAT_SECONDS)[0]:
            alive()
        return os.read(output, _PIECE_BYTES)

    def wait(self, alive: Alive) -> int:
        """Return its exit status. Calls `alive` while it waits."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(_BEAT_SECONDS)
            alive()

    def last_words(self) -> str:
        """Return the end of what it said to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        return self._errors.read().decode(errors="replace").strip()


@contextmanager
def tool(program: Sequence[str], *, passwords: Path | None = None, keep: Sequence[int] = ()) -> Iterator[Tool]:
    """Run a program (an absolute path and its arguments); leaving the block ends it in any case.

    Its output is read by read(). `keep` are descriptors that it inherits.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command("tool", signal.SIGKILL, program),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(passwords),
                pass_fds=keep,
                cwd="/",
            )
        except OSError as error:
            raise of_file(f"{program[0]}: cannot be started", error) from error
        try:
            yield Tool(process, errors)
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """End a program, by force if it takes too long."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def run(program: Sequence[str], alive: Alive, *, passwords: Path | None = None, keep: Sequence[int] = ()) -> Said:
    """Run a program to its end; return its exit status, its output (it must be small) and its last words."""
    with tool(program, passwords=passwords, keep=keep) as child:
        output = b""
        while piece := child.read(alive):
            output = (output + piece)[:_MOST_OUTPUT_BYTES]
        return Said(child.wait(alive), output, child.last_words())
