"""Saves a paged stream: reads it once, keeps what the parent has, stores the changed pages.

Two threads examine batches of it (examine.py). An unchanged extent keeps its leaf. The caller's thread adds the
results, in order, to packs and makes the leaves.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait

import zstandard

from dbguardd.frozen import frozen
from dbguardd.repository.examine import BATCH, FRAME, Change, Examined, Examiner, Old
from dbguardd.repository.frames import FRAME_LIMIT, LEAVES, ROOT, TAG, Frame, compress
from dbguardd.repository.pagemap import DIGEST, EXTENT, HOLE, SELF, PackUse, PageMap, Root, Row, encode_leaves
from dbguardd.repository.writing import PackHandle, PackWriter

LEAVES_PER_FRAME = 256
MAP_LEVEL = 3
_AHEAD = 4
_WAITING = 2048
ROOT_FRAMES = 4096


@frozen
class Saved:
    """The result. `place` is where the root lies; None if the parent's root is still valid."""

    size: int
    digest: bytes
    place: tuple[PackHandle, int] | None
    needs: tuple[str | PackHandle, ...]  # besides the pack of the root
    inherited: bool  # some pages are the parent's
    kept_bytes: int  # bytes of the stream that lie where they lay in the parent


class PagesSaver:
    """Saves one paged stream into packs."""

    def __init__(
        self,
        writer: PackWriter,
        examiner: Examiner,
        page_size: int,
        parent: PageMap | None,
        progress: Callable[[int], None],
    ) -> None:
        self._writer, self._examiner, self._page_size, self._parent = writer, examiner, page_size, parent
        self._progress = progress
        self._unit = examiner.unit
        self._units = EXTENT // self._unit
        self._per_frame = FRAME // self._unit
        self._slots = array("H", range(self._per_frame))
        self._extents = -(-examiner.size // EXTENT)
        self._squeezer = zstandard.ZstdCompressor(level=MAP_LEVEL)
        old = parent.root if parent else None
        self._old = old
        self._packs = (
            {number: PackUse(use.name, use.live, use.size) for number, use in old.packs.items()} if old else {}
        )
        self._next = old.next_number if old else 0
        self._numbers: dict[PackHandle, int] = {}
        self._leaf_packs = old.leaf_packs[:] if old else array("I")
        self._leaf_frames = old.leaf_frames[:] if old else array("H")
        self._leaf_digests = bytearray(old.leaf_digests if old else b"")
        self._leaf_of = old.leaf_of[: self._extents] if old else array("I")
        self._leaf_of.extend(array("I", [HOLE]) * (self._extents - len(self._leaf_of)))
        self._rows: list[Row] = []
        self._tail = bytearray()
        self._tail_rows: list[tuple[Row, int]] = []
        self._stored = self._changed = 0  # bytes in frames, and of the stream

    def run(self) -> Saved:
        """Read everything and store what is new. May raise Damaged or ObjectMissing for the parent at any time."""
        size = self._examiner.size
        stream = self._examiner.digests.stream(size)
        under_way: deque[tuple[int, Future[Examined]]] = deque()
        try:
            for batch in range(-(-self._extents // BATCH)):
                self._examiner.filling.wait(min((batch + 1) * BATCH * EXTENT, size))
                under_way.append((batch, self._writer.submit(self._examiner.examine, batch, self._known(batch))))
                if len(under_way) > _AHEAD:
                    stream.update(self._collect(*under_way.popleft()))
            while under_way:
                stream.update(self._collect(*under_way.popleft()))
        finally:
            wait(
                [future for _batch, future in under_way if not future.cancel()]
            )  # no thread uses the caller's descriptor any more
        digest = stream.digest()
        if (
            self._parent is not None
            and digest == self._parent.root.digest
            and self._page_size == self._parent.root.page_size
        ):
            return Saved(size, digest, None, tuple(self._parent.names.values()), True, size)
        self._forget_behind_end()
        self._flush_tail()
        self._make_leaves(1)
        return self._finish(size, digest)

    def _known(self, batch: int) -> Old | None:
        if self._parent is None:
            return None
        parent, first = self._parent, batch * BATCH
        last = min(first + BATCH, self._extents, len(parent.root.leaf_of))
        if first >= last:
            return None
        size = parent.root.size

        def tags(number: int) -> bytes:
            if first + number >= last:
                return b""
            leaves, place = parent.locate(first + number)
            have = min(self._units, -(-(size - (first + number) * EXTENT) // self._unit))
            return leaves.tags[TAG * self._units * place : TAG * (self._units * place + have)]

        return Old(parent.digests(first, last), tags, self._examiner.differing(batch, size))

    def _collect(self, batch: int, future: Future[Examined]) -> bytes:
        examined = future.result()
        placed = [self._add(frame) for frame in examined.frames]
        for change in examined.changes:
            row = self._row(batch * BATCH + change.number, change)
            for first, count, position in change.runs:
                self._place(row, (first, count, position), placed)
            self._count(row, 1)
            self._changed += sum([count for _, count, _ in change.runs]) * self._unit if change.runs else EXTENT
            self._rows.append(row)
        self._tail += examined.tail
        while len(self._tail_rows) >= self._per_frame:
            self._flush_tail()
        if self._tail_rows and len(self._rows) > _WAITING:
            self._flush_tail()
        self._make_leaves(LEAVES_PER_FRAME)
        if self._writer.full():
            self._writer.flush()
        self._progress(min(BATCH * EXTENT, self._examiner.size - batch * BATCH * EXTENT))
        return examined.digests

    def _row(self, extent: int, change: Change) -> Row:
        units = self._units
        blank = Row(
            extent,
            change.digest,
            change.tags,
            array("I", [HOLE]) * units,
            array("H", [0]) * units,
            array("H", [0]) * units,
        )
        if self._parent is None or extent >= len(self._parent.root.leaf_of):
            return blank
        leaves, place = self._parent.locate(extent)
        at, end = units * place, units * place + units
        for pack in leaves.packs[at:end]:
            if pack != HOLE:
                self._packs[pack].live -= 1
        if change.fresh:
            return blank
        have = len(change.tags) // TAG
        gone = units - have
        return Row(
            extent,
            change.digest,
            change.tags,
            leaves.packs[at : at + have] + array("I", [HOLE]) * gone,
            leaves.frames[at : at + have] + array("H", [0]) * gone,
            leaves.slots[at : at + have] + array("H", [0]) * gone,
        )

    def _place(self, row: Row, run: tuple[int, int, int], placed: list[tuple[int, int]]) -> None:
        first, count, position = run
        whole = len(placed) * self._per_frame
        while count and position < whole:
            frame, slot = divmod(position, self._per_frame)
            here = min(count, self._per_frame - slot)
            number, index = placed[frame]
            row.packs[first : first + here] = array("I", [number]) * here
            row.frames[first : first + here] = array("H", [index]) * here
            row.slots[first : first + here] = self._slots[slot : slot + here]
            first, count, position = first + here, count - here, position + here
        self._tail_rows.extend([(row, unit) for unit in range(first, first + count)])
        row.pending += count
        for unit in range(first, first + count):
            row.packs[unit] = HOLE

    def _flush_tail(self) -> None:
        rows = self._tail_rows[: self._per_frame]
        if not rows:
            return
        data = bytes(self._tail[:FRAME])
        del self._tail_rows[: self._per_frame], self._tail[:FRAME]
        number, index = self._add(self._examiner.frame(data))
        for slot, (row, unit) in enumerate(rows):
            row.packs[unit], row.frames[unit], row.slots[unit] = number, index, slot
            row.pending -= 1
        self._packs[number].live += len(rows)

    def _count(self, row: Row, by: int) -> None:
        for pack in row.packs:
            if pack != HOLE:
                self._packs[pack].live += by

    def _make_leaves(self, least: int) -> None:
        while len(self._rows) >= least:
            rows = self._rows[:LEAVES_PER_FRAME]
            if any([row.pending for row in rows]):
                return
            del self._rows[:LEAVES_PER_FRAME]
            frame = compress(LEAVES, encode_leaves(rows, self._units), self._examiner.digests, self._squeezer)
            number, index = self._add(frame)
            for row in rows:
                self._leaf_of[row.extent] = len(self._leaf_packs)
            self._leaf_packs.append(number)
            self._leaf_frames.append(index)
            self._leaf_digests += frame.digest[:DIGEST]

    def _add(self, frame: Frame) -> tuple[int, int]:
        handle, index = self._writer.add(frame)
        self._stored += len(frame.body)
        if handle not in self._numbers:
            self._numbers[handle] = self._next
            self._packs[self._next] = PackUse(SELF, 0, 0)
            self._next += 1
        return self._numbers[handle], index

    def _forget_behind_end(self) -> None:
        if self._parent is None:
            return
        for extent in range(self._extents, len(self._parent.root.leaf_of)):
            leaves, place = self._parent.locate(extent)
            for pack in leaves.packs[self._units * place : self._units * (place + 1)]:
                if pack != HOLE:
                    self._packs[pack].live -= 1

    def _finish(self, size: int, digest: bytes) -> Saved:
        self._writer.reserve(ROOT_FRAMES)  # the currently open pack must be the one with the root
        for handle, number in self._numbers.items():
            use = self._packs[number]
            use.size = handle.size
            use.name = SELF if handle.open else bytes.fromhex(handle.name())
        used = sorted(set(self._leaf_of))
        new = {old: place for place, old in enumerate(used)}
        leaf_packs = array("I", [self._leaf_packs[number] for number in used])
        leaf_frames = array("H", [self._leaf_frames[number] for number in used])
        leaf_of = array("I", [new[number] for number in self._leaf_of])
        known = memoryview(self._leaf_digests)
        leaf_digests = b"".join([known[DIGEST * number : DIGEST * number + DIGEST] for number in used])
        needed = set(leaf_packs)
        packs = {number: use for number, use in self._packs.items() if use.live or number in needed}
        base = self._old.base if self._old else self._stored
        lead = (size, self._page_size, self._unit, base, digest, self._next)
        root = Root(*lead, packs, leaf_packs, leaf_frames, leaf_of, leaf_digests).encode()
        parts = [root[at : at + FRAME_LIMIT] for at in range(0, len(root), FRAME_LIMIT)]
        frames = [compress(ROOT, part, self._examiner.digests, self._squeezer) for part in parts]
        place = self._writer.add_all(frames)
        needs: list[str | PackHandle] = [use.name.hex() for use in packs.values() if use.name != SELF]
        inherited = self._old is not None and any([number < self._old.next_number for number in packs])
        kept = max(0, size - self._changed) if self._old else 0
        return Saved(size, digest, place, tuple(needs), inherited, kept)
