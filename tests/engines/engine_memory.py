"""A sink and a tree in memory: the other side of the seam, for tests of engines."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from dbguardd.errors import NotFound


class MemorySink:
    """Stores the streams of one backup. `before` is called with the name of each stream before it is read."""

    def __init__(self, before: Any = None) -> None:
        self.streams: dict[str, bytes] = {}
        self.page_sizes: dict[str, int] = {}
        self._before = before or (lambda name: None)

    def admit(self, facts: Any) -> None:
        self.admitted = facts

    def parent(self) -> Any:
        return {}

    @contextmanager
    def write(self, name: str, *, stamp: str = "") -> Iterator[BinaryIO]:
        self._before(name)
        buffer = io.BytesIO()
        yield buffer
        self.streams[name] = buffer.getvalue()

    def adopt(
        self,
        name: str,
        file: int,
        page_size: int,
        *,
        stamp: str = "",
        filled: Iterable[int] | None = None,
        on_demand: bool = False,
        changing: bool = False,
        changed: bytes | None = None,
    ) -> None:
        assert 512 <= page_size <= 65536
        self._before(name)
        size, data = os.fstat(file).st_size, bytearray()
        for there in filled or ():
            assert there <= size
            data += os.pread(file, max(0, there - len(data)), len(data))  # now: what is said to be final must be
        assert changing or os.fstat(file).st_size == size
        while len(data) < size:
            data += os.pread(file, size - len(data), len(data)) or (bytes(size - len(data)) if changing else b"")
        self.streams[name] = bytes(data)
        self.page_sizes[name] = page_size

    def reuse(self, name: str, stamp: str) -> bool:
        return False


class MemoryTree:
    """Reads back what a MemorySink has."""

    def __init__(self, sink: MemorySink, facts: Any) -> None:
        self._streams = sink.streams
        self.facts = facts

    def names(self) -> Iterator[str]:
        return iter(self._streams)

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        if name not in self._streams:
            raise NotFound(f"stream {name}: not in the backup")
        yield io.BytesIO(self._streams[name])

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        data = self._streams[name]
        for at in range(0, len(data), 1 << 20):
            os.pwrite(file, data[at : at + (1 << 20)], at)
        os.ftruncate(file, len(data))
        return len(data)


def no_progress(step: str, done: int, total: int | None) -> None:
    """Ignore progress."""
