"""The limits of a storage: how much must stay free on its file system, and how much it may hold."""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dbguardd.errors import NoSpace, PolicyInvalid
from dbguardd.frozen import frozen

_PRUNE = "dbguardctl prune --dry-run"
_PERCENT = re.compile(r"(\d{1,2}(?:\.\d{1,3})?)%", re.ASCII)


@frozen
class Limits:
    """`keep_free` bytes stay free (below 1: that fraction of the file system); all objects fit in `max_bytes`."""

    keep_free: float = 0
    max_bytes: int | None = None

    @classmethod
    def of(cls, keep_free: int | str, max_bytes: int | None) -> Limits:
        """Parse the values of a policy: bytes, or "10%" of the file system. Raises PolicyInvalid."""
        if isinstance(keep_free, str):
            if not (match := _PERCENT.fullmatch(keep_free)):
                raise PolicyInvalid(f"keep_free {keep_free!r} is neither a number of bytes nor a percentage")
            keep_free_value = float(match[1]) / 100
        else:
            keep_free_value = float(keep_free)
        if keep_free_value < 0 or (max_bytes is not None and max_bytes < 0):
            raise PolicyInvalid("a storage cannot have less than nothing", detail=f"keep_free {keep_free}")
        return cls(keep_free_value, max_bytes)

    def keep_free_bytes(self, disk: os.statvfs_result) -> int:
        """Return how many bytes of the file system must stay free."""
        total = disk.f_blocks * disk.f_frsize
        return int(self.keep_free * total if self.keep_free < 1 else self.keep_free)


@dataclass(slots=True)
class Room:
    """The room that is left under Limits. The used bytes are counted (`count`) once, and again before a refusal.

    Processes that write at the same time can exceed max_bytes by what they write in that time; keep_free is checked
    with the file system each time.
    """

    limits: Limits
    _used: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def need(self, path: Path, size: int, disk: os.statvfs_result, count: Callable[[], int]) -> None:
        """Raise NoSpace unless `size` more bytes fit into the storage at `path`."""
        keep = self.limits.keep_free_bytes(disk)
        free = disk.f_bavail * disk.f_frsize
        facts = {"needed_bytes": size, "free_bytes": free, "keep_free_bytes": keep}
        if free - size < keep:
            kept = f", and {keep} bytes must stay free (keep_free)" if keep else ""
            raise NoSpace(
                f"{path}: the file system of the storage is {'too ' * bool(keep)}full",
                detail=f"{size} bytes are needed, {free} bytes are free{kept}.",
                hints=[f"df -h {shlex.quote(str(path))}", _PRUNE],
                facts=facts,
            )
        limit = self.limits.max_bytes
        if limit is None or self._sum(count) + size <= limit:
            return
        if (used := self._sum(count, again=True)) + size > limit:
            raise NoSpace(
                f"{path}: the storage has reached its limit",
                detail=f"{size} bytes are needed, {used} bytes of {limit} bytes are used (max_size).",
                hints=[_PRUNE],
                facts={**facts, "used_bytes": used, "max_bytes": limit},
            )

    def _sum(self, count: Callable[[], int], *, again: bool = False) -> int:
        with self._lock:
            if self._used is None or again:
                self._used = count()
            return self._used

    def changed(self, size: int) -> None:
        """Note that `size` bytes were added (or removed, if negative)."""
        with self._lock:
            if self._used is not None:
                self._used += size

    def usable(self, disk: os.statvfs_result, count: Callable[[], int]) -> tuple[int, int, int]:
        """Return free, total and keep-free bytes, so that free minus keep-free is what may still be written."""
        keep, unit = self.limits.keep_free_bytes(disk), disk.f_frsize
        free, total = disk.f_bavail * unit, disk.f_blocks * unit
        if (limit := self.limits.max_bytes) is not None:
            free, total = min(free, keep + max(0, limit - self._sum(count, again=True))), min(total, limit)
        return free, total, keep
