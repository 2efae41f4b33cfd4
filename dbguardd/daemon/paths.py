"""Measures the paths that backups and restores depend on: databases, storages, key files, the state directory.

Each is measured in a thread, so that a file system that hangs does not hang the daemon.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from dbguardd.frozen import frozen

_MOST_BYTES = 1 << 16


@frozen
class Level:
    """The space of one file system, and the id of the repository that is there; `error` says why they are unknown."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    repository: str | None = None  # empty: there is none
    error: str = ""
    device: int | None = None  # the file system, if it can be seen
    missing: bool = False  # nothing is there, and it would have been visible
    lies_in: tuple[tuple[int, int], ...] = ()  # device and inode of the directory and of its parents


class Paths:
    """The last measurement of each path. A measurement that takes longer than `seconds` is taken to hang."""

    def __init__(self, look: Callable[[str], Level] | None = None, seconds: float = 5.0) -> None:
        self._look = look or _look
        self._seconds = seconds
        self._levels: dict[str, Level] = {}
        self._hanging: dict[str, asyncio.Future[Level]] = {}

    def level(self, path: str) -> Level:
        """Return the last measurement; an empty one before the first."""
        return self._levels.get(path, Level())

    async def measure(self, paths: Collection[str]) -> None:
        """Measure all paths; one that hangs is recorded with that error and not waited for."""
        await asyncio.gather(*map(self._measure, frozenset(paths)))

    async def glance(self, paths: Collection[str], seconds: float = 0.2) -> None:
        """Measure for a caller who waits: a path that does not answer at once keeps its last measurement."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.measure(paths)

    async def _measure(self, path: str) -> None:
        future = self._hanging.get(path)
        if future is None or future.done():
            future = self._hanging[path] = _measured(self._look, path)
        try:
            async with asyncio.timeout(self._seconds):  # see wakeup.py
                self._levels[path] = await asyncio.shield(future)
        except TimeoutError:
            self._levels[path] = Level(error=f"{path} does not answer since {self._seconds:g} s")


def _measured(look: Callable[[str], Level], path: str) -> asyncio.Future[Level]:
    """Measure in a thread that nothing waits for: a thread of the loop's executor would keep the daemon from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Level] = loop.create_future()

    def tell(level: Level) -> None:
        if not future.done():
            future.set_result(level)

    def measure() -> None:
        try:
            level = look(path)
        except Exception as error:  # noqa: BLE001 - a bug must not pass for a storage that does not answer
            level = Level(error=f"{path}: {error!r}")
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, level)

    threading.Thread(target=measure, name="paths", daemon=True).start()
    return future


def _look(path: str) -> Level:
    try:
        status, device = os.statvfs(path), os.stat(path).st_dev
        if not os.access(path, os.R_OK):
            return Level(error=f"{path}: Permission denied", device=device)
        repository = _repository(f"{path}/repo.json")
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        return Level(error=f"{path}: {error.strerror}", device=None if gone else _device_above(path), missing=gone)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    return Level(free, total, repository, device=device, lies_in=_directories(path))


def _directories(path: str) -> tuple[tuple[int, int], ...]:
    """Return device and inode of a directory and its parents, which identify them under any link or mount."""
    real = Path(os.path.realpath(path))
    found = []
    for directory in (real, *real.parents):
        with suppress(OSError):
            seen = directory.stat()
            found.append((seen.st_dev, seen.st_ino))
    return tuple(found)


def _device_above(path: str) -> int | None:
    """Return the device of the nearest visible parent; for a database in a private directory, that of the directory."""
    for above in Path(path).parents:
        with suppress(OSError):
            return above.stat().st_dev
    return None


def _repository(path: str) -> str:
    """Return the id in the description of a repository; empty if there is none. The content is not trusted."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return ""
        return str(json.loads(os.pread(file, _MOST_BYTES, 0))["repo_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    finally:
        os.close(file)
