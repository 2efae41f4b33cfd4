"""Finds the parts of a file that differ from the parent backup and compresses them into frames ready to seal.

Threads read batches of 2 MiB, or only those of their extents that may differ (see flow.Sink.adopt), and compute the
digests of the extents. An extent whose digest equals the parent's is unchanged. For the others page tags are computed
per unit: units with the parent's tag keep their place, changed units are collected into frames of 256 KiB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import zstandard

from dbguardd.errors import SourceChanged, SourceDenied
from dbguardd.frozen import frozen
from dbguardd.repository.frames import PAGES, TAG, Digests, Frame, compress
from dbguardd.repository.growing_file import GrowingFile
from dbguardd.repository.pagemap import DIGEST, EXTENT

BATCH = 32  # extents
FRAME = 256 << 10


@frozen
class Change:
    """One extent that differs: `runs` are (first unit, units, position among the new units of the batch)."""

    number: int  # within the batch
    digest: bytes
    tags: bytes
    runs: tuple[tuple[int, int, int], ...]
    fresh: bool  # nothing of the parent is kept


@frozen
class Examined:
    """What a thread found in one batch; `tail` are the new units that did not fill a frame."""

    digests: bytes
    changes: list[Change]
    frames: list[Frame]
    tail: bytes


@frozen
class Old:
    """What the parent knows about a batch."""

    digests: bytes
    tags: Callable[[int], bytes]  # of one extent of the batch, only for units that the parent has
    differing: Sequence[int]  # the extents of the batch that may differ from the parent's, ascending


class Examiner:
    """Examines batches of one file. Several threads may call it."""

    def __init__(
        self,
        file: int,
        name: str,
        digests: Digests,
        *,
        filling: GrowingFile,
        unit: int,
        level: int,
        changed: bytes | None = None,
    ) -> None:
        self._file, self._name, self.unit, self._level = file, name, unit, level
        self.digests, self.filling, self.size = digests, filling, filling.size
        self._marks = changed
        self._own = threading.local()
        self._zeros = bytes(EXTENT)
        self._zero = digests.parts(self._zeros)
        self._zero_tags = digests.tags(memoryview(self._zeros), unit)

    def differing(self, batch: int, old: int) -> Sequence[int]:
        """Return the extents of a batch that may differ from those of the parent, which has `old` bytes."""
        first = batch * BATCH
        here = range(first, min(first + BATCH, -(-self.size // EXTENT)))
        if (marks := self._marks) is None:
            return range(len(here))

        def may_differ(extent: int) -> bool:
            if extent >= len(marks) * 8 or marks[extent // 8] >> extent % 8 & 1:
                return True
            return min(old - extent * EXTENT, EXTENT) != min(self.size - extent * EXTENT, EXTENT)

        return [extent - first for extent in here if may_differ(extent)]

    def examine(self, batch: int, old: Old | None) -> Examined:
        """Read one batch and compare it."""
        view = self._read(batch, None if old is None else old.differing)
        if old is None and not self._holes(view):  # the digests are computed with the frames
            frames, tail = self._frames(view)
            digests = b"".join([frame.parts for frame in frames]) + self.digests.parts(tail)
            return Examined(digests, self._changes(view, digests, None)[0], frames, tail)
        digests = self._digests(view, old)
        if old is not None and digests == old.digests:
            return Examined(digests, [], [], b"")
        changes, pieces = self._changes(view, digests, old)
        return Examined(digests, changes, *self._frames(memoryview(b"".join(pieces))))

    def _digests(self, view: memoryview, old: Old | None) -> bytes:
        """Return the digests of all extents: the parent's of those that were not read."""
        count = -(-len(view) // EXTENT)
        if old is None or len(old.differing) == count:
            return self.digests.parts(view)
        found = bytearray(old.digests.ljust(DIGEST * count, b"\0"))
        for first, end in _ranges(old.differing):
            found[DIGEST * first : DIGEST * end] = self.digests.parts(view[EXTENT * first : EXTENT * end])
        return bytes(found[: DIGEST * count])

    def _changes(self, view: memoryview, digests: bytes, old: Old | None) -> tuple[list[Change], list[memoryview]]:
        """Return the extents that differ, and their new units."""
        changes: list[Change] = []
        pieces: list[memoryview] = []
        position = 0
        for number in range(len(digests) // DIGEST):
            digest = digests[DIGEST * number : DIGEST * number + DIGEST]
            if old is not None and old.digests[DIGEST * number : DIGEST * number + DIGEST] == digest:
                continue
            if digest == self._zero:
                changes.append(Change(number, digest, self._zero_tags, (), True))
                continue
            extent = view[EXTENT * number : EXTENT * number + EXTENT]
            tags = self.digests.tags(extent, self.unit)
            runs = _differing(tags, old.tags(number) if old else b"")
            placed = []
            for first, count in runs:
                pieces.append(extent[first * self.unit : (first + count) * self.unit])
                placed.append((first, count, position))
                position += count
            changes.append(Change(number, digest, tags, tuple(placed), old is None))
        return changes, pieces

    def _holes(self, view: memoryview) -> bool:
        """Return whether an extent consists of zeros (or, at the end of the stream, may)."""
        buffer: bytearray = self._own.buffer
        return any([buffer.startswith(self._zeros, at) for at in range(0, len(view), EXTENT)])

    def _frames(self, fresh: memoryview) -> tuple[list[Frame], bytes]:
        end = len(fresh) // FRAME * FRAME
        return [self.frame(fresh[at : at + FRAME]) for at in range(0, end, FRAME)], bytes(fresh[end:])

    def frame(self, data: memoryview | bytes) -> Frame:
        """Compress pages into a frame."""
        if not hasattr(self._own, "squeezer"):
            self._own.squeezer = zstandard.ZstdCompressor(level=self._level)
        return compress(PAGES, data, self.digests, self._own.squeezer)

    def _read(self, batch: int, numbers: Sequence[int] | None) -> memoryview:
        """Read the extents with these numbers; the other bytes of the result are undefined. None: all of the batch."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = bytearray(BATCH * EXTENT)
        start = batch * BATCH * EXTENT
        length = min(BATCH * EXTENT, self.size - start)
        view = memoryview(self._own.buffer)[:length]
        for first, end in [(0, BATCH)] if numbers is None else _ranges(numbers):
            self._fill(view[EXTENT * first : EXTENT * end], start + EXTENT * first)
        return view

    def _fill(self, view: memoryview, start: int) -> None:
        done, length = 0, len(view)
        while done < length:
            try:
                count = os.preadv(self._file, [view[done:]], start + done)
            except OSError as error:
                raise SourceDenied(
                    f"{self._name}: cannot be read", detail=f"at byte {start + done}: {error}"
                ) from error
            if not count and self.filling.changing:
                view[done:] = bytes(length - done)
                break
            if not count:
                raise SourceChanged(
                    f"{self._name}: became shorter during the backup",
                    detail=f"it had {self.size} bytes, now it ends at {start + done}",
                )
            done += count


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the end of each run of consecutive numbers."""
    for _, run in groupby(enumerate(numbers), lambda one: one[1] - one[0]):
        found = [number for _, number in run]
        yield found[0], found[-1] + 1


def _differing(tags: bytes, old: bytes) -> list[tuple[int, int]]:
    """Return (first, count) for each run of units with different tags."""
    if not old:
        return [(0, len(tags) // TAG)]
    runs: list[tuple[int, int]] = []
    for at in range(0, len(tags), TAG):
        if tags[at : at + TAG] != old[at : at + TAG]:
            unit = at // TAG
            if runs and sum(runs[-1]) == unit:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((unit, 1))
    return runs
