"""Where the time goes: py-spy samples which functions are busy, in each process of dbguard and in each thread."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SAMPLES_A_SECOND = 250
SHOWN = 8
_PY_SPY = str(Path(sys.executable).with_name("py-spy"))
_HALF = re.compile(r"^process \d+:.*dbguardd\.worker (\w+)")
_WAITS = re.compile(r"(threading|selectors|concurrent/futures/thread|asyncio/unix_events)\.py|Channel\._receive")
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::\d+)?\)")

Seconds = dict[str, float]
"""By function, the longest first. Threads that are busy at the same time add up."""


@contextmanager
def sampled(pid: int) -> Iterator[Seconds]:
    """Sample a process and those that it starts until the block ends, when the yielded dict is filled.

    It stays empty where that cannot be done, which is printed with the reason: `make bench` installs py-spy, and to
    look into the halves of a worker takes root.
    """
    found: Seconds = {}
    with tempfile.TemporaryDirectory() as place:
        stacks = Path(place) / "stacks"
        try:
            spy = subprocess.Popen(
                _argv(stacks, "--pid", str(pid)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            print(f"functions are not sampled: {error}", flush=True)
            yield found
            return
        assert spy.stdout is not None
        begun = spy.stdout.readline()  # comes when it samples, or when it cannot
        try:
            yield found
        finally:
            spy.send_signal(signal.SIGINT)
            found |= _read(stacks, begun + spy.communicate()[0])


def sampled_command(argv: Sequence[str | Path], environment: Mapping[str, str], seconds: int) -> Seconds:
    """Run a command and sample it from its beginning until it ends, or is killed after some seconds."""
    with tempfile.TemporaryDirectory() as place:
        stacks = Path(place) / "stacks"
        whole = _argv(stacks, "--duration", str(seconds), "--", *map(str, argv))
        try:
            done = subprocess.run(whole, env=dict(environment), capture_output=True, text=True, check=False)
        except OSError as error:
            print(f"functions are not sampled: {error}", flush=True)
            return {}
        return _read(stacks, done.stderr)


def sampled_call(function: Callable[[], object]) -> Seconds:
    """Call a function and sample this process meanwhile."""
    with sampled(os.getpid()) as found:
        function()
    return found


def _argv(stacks: Path, *words: str) -> list[str]:
    how = ["--subprocesses", "--function", "--rate", str(SAMPLES_A_SECOND), "--format", "raw"]
    return [_PY_SPY, "record", *how, "--output", str(stacks), *words]


def _read(stacks: Path, said: str) -> Seconds:
    found = busy(stacks.read_text()) if stacks.exists() else {}
    if not found:
        print(f"functions are not sampled: {' '.join(said.split())}", flush=True)
    return found


def busy(stacks: str) -> Seconds:
    """Return the seconds for which each function was the innermost one, and those of all that belongs to an import."""
    counted: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        if _WAITS.search(frames[-1]):
            continue  # on a busy host that looks like work, too
        half = _HALF.search(stack)
        where = f"{half[1]} half: " if half else ""
        counted[where + _what(frames)] += int(samples)
    return {what: round(samples / SAMPLES_A_SECOND, 3) for what, samples in counted.most_common(SHOWN)}


def _what(frames: list[str]) -> str:
    if any("importlib._bootstrap" in frame for frame in frames):
        return "imports"
    found = _FRAME.fullmatch(frames[-1])
    return f"{found['function']} ({found['file']})" if found else frames[-1]


def told(seconds: Seconds) -> str:
    """Return the line that is printed: who was busy for how long."""
    return ", ".join(f"{what} {took:.2f} s" for what, took in seconds.items()) or "nothing was seen"
