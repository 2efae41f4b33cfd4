"""A file that is read while it is still being written."""

from __future__ import annotations

from collections.abc import Iterable


class GrowingFile:
    """How much of a file exists, from its start, and whether it may shrink; see flow.Sink.adopt."""

    def __init__(self, size: int, filled: Iterable[int] | None, *, changing: bool = False) -> None:
        self.size, self.changing, self._there = size, changing, size if filled is None else 0
        self._filled = iter(filled or ())

    def wait(self, end: int) -> None:
        """Wait until all bytes before `end` exist."""
        while self._there < end:
            self._there = next(self._filled, self.size)

    def finish(self) -> None:
        """Wait until the writer has finished successfully."""
        for _ in self._filled:
            pass
