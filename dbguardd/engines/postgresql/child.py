"""Runs PostgreSQL's own programs. Each ends when we do, whatever happens, and its error output is kept."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.errors import GuardError, ToolMissing, WorkerDied, of_file
from dbguardd.frozen import frozen

_CONFINE = Path(__file__).with_name("confine.py")
_WITH_US = ("/usr/bin/setpriv", "--no-new-privs", "--pdeathsig", "KILL", "--")
"""A program of util-linux: an interpreter that does the same takes 16 ms to start, several times in each backup."""
_BEAT_SECONDS = 0.25
_GRACE_SECONDS = 10.0
_TAIL_BYTES = 16_000
_PIECE_BYTES = 256 << 10
_MOST_OUTPUT_BYTES = 256 << 20  # the list of a dump: 100 bytes for each object

Work = Generator[Sequence[int], None, None]
"""Something that is done beside others; see side_by_side()."""

Alive = Callable[[], None]
"""Called several times a second while waiting. Raises Cancelled when the job is to end."""


def nothing() -> None:
    """Do nothing."""


def confined(kind: str, number: int, places: Sequence[str]) -> list[str]:
    """Return the beginning of a command line: confine.py becomes the server, which gets signal `number` when we die.

    `places` are where it may write.
    """
    words = [sys.executable, "-I", "-S", str(_CONFINE), str(os.getpid()), str(number), kind]
    return [*words, str(len(places)), *places]


def environment(passwords: Path | None = None) -> dict[str, str]:
    """Return the environment of a program: its messages are in English; passwords are never in the environment."""
    kept = {name: os.environ[name] for name in ("HOME", "PGSERVICEFILE", "PGPASSFILE") if name in os.environ}
    clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    return {**kept, **clean, **({} if passwords is None else {"PGPASSFILE": str(passwords)})}


@frozen
class Completed:
    """How a program ended, and what it wrote."""

    status: int
    output: bytes
    errors: str


class Tool:
    """A running program. Its standard error is read meanwhile, and the beginning and end of it are kept."""

    def __init__(self, process: subprocess.Popen[bytes], path: str) -> None:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - for the type checker
        self._process, self._path = process, path
        self._output, self._errors = process.stdout.fileno(), process.stderr.fileno()
        self._first, self._last = b"", b""
        self._heard_all = False

    def read(self, alive: Alive) -> bytes:
        """Return its next output; b"" at the end. Calls `alive` while waiting."""
        while True:
            ready = self._listen([self._output])
            if self._output in ready:
                return os.read(self._output, _PIECE_BYTES)
            alive()

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def files(self) -> Sequence[int]:
        """The descriptors of which one is readable when take() returns something."""
        return [self._output] if self._heard_all else [self._output, self._errors]

    def take(self) -> bytes | None:
        """Return its next output without waiting; b"" at the end, None if there is none yet."""
        ready = self._listen([self._output], 0)
        return os.read(self._output, _PIECE_BYTES) if self._output in ready else None

    def wait(self, alive: Alive) -> int:
        """Return its exit status. Calls `alive` while waiting. Raises WorkerDied if it was killed."""
        while self._process.poll() is None:
            if self._heard_all:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_BEAT_SECONDS)
            else:
                self._listen([])
            alive()
        while not self._heard_all and self._listen([], 0):
            pass  # read the last error output
        if self._process.returncode == -signal.SIGKILL:
            raise was_killed(self._path)
        return self._process.returncode

    def last_words(self) -> str:
        """Return its standard error: all of it, or its beginning and end if it is long."""
        gap = b"\n...\n" if len(self._last) > _TAIL_BYTES else b""
        return (self._first + gap + self._last[-_TAIL_BYTES:]).decode(errors="replace").strip()

    def _listen(self, files: Sequence[int], seconds: float = _BEAT_SECONDS) -> Sequence[int]:
        """Wait until a file, or standard error, is readable; read the latter."""
        ready = select.select([*files, *([] if self._heard_all else [self._errors])], [], [], seconds)[0]
        if self._errors in ready:
            said = os.read(self._errors, _PIECE_BYTES)
            self._heard_all = not said
            room = _TAIL_BYTES - len(self._first)
            self._first += said[:room]
            self._last = (self._last + said[room:])[-2 * _TAIL_BYTES :]
        return ready


@contextmanager
def tool(program: Sequence[str], *, passwords: Path | None = None, keep: Sequence[int] = ()) -> Iterator[Tool]:
    """Run a program (an absolute path and its arguments); it is ended when the block is left.

    Its output is read with read(). It inherits the descriptors in `keep`. The kernel kills it when we die. If we die
    before that is arranged, its next output ends it.
    """
    try:
        process = subprocess.Popen(
            [*_WITH_US, *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(passwords),
            pass_fds=keep,
            cwd="/",
        )
    except FileNotFoundError as error:
        raise ToolMissing(
            f"{_WITH_US[0]} is not here: {program[0]} is started by it",
            detail="Each program that is started has to end when dbguardd does.",
            hints=["apt-get install util-linux"],
        ) from error
    except OSError as error:
        raise of_file(f"{program[0]}: cannot be started", error) from error
    try:
        yield Tool(process, program[0])
    finally:
        end(process)


def was_killed(path: str) -> WorkerDied:
    """Return the error for a program that was killed: what it had written until then says nothing about the data."""
    return WorkerDied(
        f"{path}: was killed",
        detail="This says nothing about the data. A host that is out of memory kills its largest process.",
        hints=["journalctl -k  # what ended it"],
    )


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """End a program, with SIGKILL if it takes too long."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def run(program: Sequence[str], alive: Alive, *, passwords: Path | None = None, keep: Sequence[int] = ()) -> Completed:
    """Run a program to its end; return its exit status, its output (which must be small) and its error output."""
    with tool(program, passwords=passwords, keep=keep) as child:
        output = bytearray()
        while piece := child.read(alive):
            output += piece
            if len(output) > _MOST_OUTPUT_BYTES:
                raise WorkerDied(f"{program[0]}: wrote more than {_MOST_OUTPUT_BYTES} bytes")
        return Completed(child.wait(alive), bytes(output), child.last_words())


def side_by_side(works: Iterable[Work], most: int, alive: Alive) -> None:
    """Do several things in one thread, at most so many at a time, and begin them in their order.

    Each yields the descriptors that it waits for, as often as it has nothing to do; none if it waits for a time. If one
    fails, the others end.
    """
    waiting, coming = dict[Work, Sequence[int]](), iter(works)
    try:
        while True:
            while len(waiting) < most and (work := next(coming, None)) is not None:
                waiting[work] = ()
                _advance(work, waiting)
            if not waiting:
                return
            ready = set(select.select({file for files in waiting.values() for file in files}, [], [], _BEAT_SECONDS)[0])
            alive()
            for work in [work for work, files in waiting.items() if not files or not ready.isdisjoint(files)]:
                _advance(work, waiting)
    finally:
        for work in waiting:
            with suppress(GuardError):  # the first error is the one to tell
                work.close()


def _advance(work: Work, waiting: dict[Work, Sequence[int]]) -> None:
    """Let a work continue until it waits again, or ends."""
    try:
        waiting[work] = next(work)
    except StopIteration:
        del waiting[work]
