"""How full the storages are, measured in a thread: a file system that hangs must not hang the daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass

_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Level:
    """Bytes of one file system; `error` says why they are not known."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    error: str = ""


class Gauge:
    """The last measurement of each path."""

    def __init__(self) -> None:
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
            future = asyncio.ensure_future(asyncio.to_thread(_measure, path))
            try:
                self._levels[path] = await asyncio.wait_for(asyncio.shield(future), _SECONDS)
                self._hanging.pop(path, None)
            except TimeoutError:
                self._hanging[path] = future
                self._levels[path] = Level(error=f"{path} does not answer since {_SECONDS:g} s")


def _measure(path: str) -> Level:
    try:
        status = os.statvfs(path)
    except OSError as error:
        return Level(error=f"{path}: {error.strerror}")
    return Level(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
