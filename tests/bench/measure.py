"""Times processes from outside: wall, CPU and the peak of memory of a command with all its children."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """What one piece of work cost. `whole` is the wall time until the process ended, if that is later than `wall`."""

    wall: float
    cpu: float
    peak: int
    stored: int = 0
    whole: float = 0.0
    profile: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)


class PeakMemory:
    """Samples the resident memory of a process (or only its descendants), added up, until the block ends.

    Processes named `without` do not count: servers, whose processes share most of their memory.
    """

    def __init__(self, pid: int, *, children_only: bool = False, without: str = "") -> None:
        self.pid, self._without = pid, without
        self._own = [] if children_only else [pid]
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            counted = [pid for pid in descendants(self.pid) if not self._without or name_of(pid) != self._without]
            self.bytes = max(self.bytes, sum(map(resident, [*self._own, *counted])))


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found: list[int] = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def name_of(pid: int) -> str:
    """Return the name of a process, nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def resident(pid: int) -> int:
    """Return the private and shared memory of a process in bytes, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def proportional(pid: int) -> int:
    """Return the memory of a process in bytes, with its share only of what others have mapped, too; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of all its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run(commands: Sequence[Sequence[str]], cwd: Path, environment: Mapping[str, str]) -> Figures:
    """Run commands one after the other. Raises SystemExit with their output if one fails."""
    total = Figures(0.0, 0.0, 0)
    for argv in commands:
        started = time.monotonic()
        process = subprocess.Popen(
            argv, cwd=cwd, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        with PeakMemory(process.pid) as memory:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        total.wall += time.monotonic() - started
        total.cpu += usage.ru_utime + usage.ru_stime
        total.peak = max(total.peak, memory.bytes)
        if process.returncode:
            raise SystemExit(f"{argv}: {process.returncode}\n{output.decode(errors='replace')[-2000:]}")
    total.whole = total.wall
    return total


def size_of(place: Path) -> int:
    """Return the bytes of all files below a place, each counted once whatever its number of names."""
    found = {(facts.st_dev, facts.st_ino): facts.st_size for facts in map(Path.lstat, _files(place))}
    return sum(found.values())


def _files(place: Path) -> Iterator[Path]:
    return (path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
