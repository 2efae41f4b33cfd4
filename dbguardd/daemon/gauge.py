"""How full the storages are, measured in a thread: a file system that hangs must not hang the daemon."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """Bytes of one file system; `error` says why they are not known."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    error: str = ""


class Gauge:
    """The last measurement of each path. One that takes longer than `seconds` hangs."""

    def __init__(self, look: Callable[[str], Level] | None = None, seconds: float = 5.0) -> None:
        self._look = look or _look
        self._seconds = seconds
        self._levels: dict[str, Level] = {}
        self._hanging: dict[str, asyncio.Future[Level]] = {}

    def level(self, path: str) -> Level:
        """What was measured last; nothing known before the first time."""
        return self._levels.get(path, Level())

    async def measure(self, paths: Mapping[str, str]) -> None:
        """Measure the directories (by name of the storage); one that hangs is left behind and said to hang."""
        for path in paths.values():
            hanging = self._hanging.get(path)
            if hanging is not None and not hanging.done():
                continue
            future = self._hanging[path] = _measured(self._look, path)
            try:
                async with asyncio.timeout(self._seconds):  # see bell.py
                    self._levels[path] = await asyncio.shield(future)
                self._hanging.pop(path, None)
            except TimeoutError:
                self._levels[path] = Level(error=f"{path} does not answer since {self._seconds:g} s")


def _measured(look: Callable[[str], Level], path: str) -> asyncio.Future[Level]:
    """Measure in a thread that nobody waits for: one of the loop's own would keep a daemon from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Level] = loop.create_future()

    def tell(level: Level) -> None:
        if not future.done():
            future.set_result(level)

    def measure() -> None:
        level = look(path)
        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(tell, level)

    threading.Thread(target=measure, name="gauge", daemon=True).start()
    return future


def _look(path: str) -> Level:
    try:
        status = os.statvfs(path)
    except OSError as error:
        return Level(error=f"{path}: {error.strerror}")
    return Level(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
