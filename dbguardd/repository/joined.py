"""Joins pieces of bytes into one readable file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast


def joined(pieces: Iterator[bytes | bytearray | memoryview]) -> BinaryIO:
    """Return the file; each piece is requested when it is read."""
    return cast(BinaryIO, io.BufferedReader(_Joined(pieces), 1 << 16))


class _Joined(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes | bytearray | memoryview]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (piece := next(self._pieces, None)) is None:
                return 0
            self._rest = memoryview(piece)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken
