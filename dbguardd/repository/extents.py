"""Reads a paged stream: extents are assembled from frames and verified before they are handed out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blake3 import blake3

from dbguardd.errors import Damaged, Usage
from dbguardd.repository.delivery import Batch, Old, Piece
from dbguardd.repository.frames import PAGES
from dbguardd.repository.pagemap import DIGEST, EXTENT, HOLE, Leaves, PageMap
from dbguardd.repository.reading import Plain

BATCH = 32  # extents


class PagesReader:
    """Assembles a paged stream batch by batch. Raises Damaged, ObjectMissing, Unreachable."""

    def __init__(self, pages: PageMap, name: str) -> None:
        self._map, self.name = pages, name
        self.size, self.digest = pages.root.size, pages.root.digest
        self._unit, self._units = pages.root.unit, pages.units

    def hash(self) -> blake3:
        """Return the hash that takes the digests of all batches."""
        return self._map.reader.digests.stream(self.size)

    def batches(self) -> Iterator[range]:
        """Yield the numbers of the extents of each batch."""
        count = len(self._map.root.leaf_of)
        for first in range(0, count, BATCH):
            yield range(first, min(first + BATCH, count))

    def assemble(self, numbers: range) -> Batch:
        """Return some extents, verified."""
        places = [self._map.locate(extent) for extent in numbers]
        frames = self._frames(places)
        pieces = [
            self._extent(extent, leaves, place, frames) for extent, (leaves, place) in zip(numbers, places, strict=True)
        ]
        digests = b"".join([leaves.digests[DIGEST * at : DIGEST * at + DIGEST] for leaves, at in places])
        return Batch(numbers.start * EXTENT, pieces, digests)

    def span(self, numbers: range) -> tuple[int, int]:
        """Return where some extents lie: their first byte, and their length."""
        start = numbers.start * EXTENT
        return start, min(numbers.stop * EXTENT, self.size) - start

    def digests(self, numbers: range) -> bytes:
        """Return the digests of those of the extents that exist."""
        end = min(numbers.stop, len(self._map.root.leaf_of))
        return self._map.digests(numbers.start, end) if numbers.start < end else b""

    def differing(self, numbers: range, old: Old, known: bytes = b"") -> tuple[list[tuple[int, Piece]], bytes]:
        """Return the runs of pages in which extents differ from `old`, each with its place; and the digests.

        An extent is not fetched if the file there has the same digest; the file is not even read if its digest is
        `known`.
        """
        digests, all_of_it = self._map.digests(numbers.start, numbers.stop), memoryview(b"")
        if not known:
            all_of_it = old(*self.span(numbers))
        found = known or self._map.reader.digests.parts(all_of_it)
        if found == digests:
            return [], digests
        places = {
            number: self._map.locate(numbers[number])
            for number in range(len(numbers))
            if found[DIGEST * number : DIGEST * number + DIGEST] != digests[DIGEST * number : DIGEST * number + DIGEST]
        }
        frames = self._frames([*places.values()])
        pieces: list[tuple[int, Piece]] = []
        for number, place in places.items():
            piece = self._extent(numbers[number], *place, frames)
            new, at = memoryview(bytes(piece) if isinstance(piece, int) else piece), numbers[number] * EXTENT
            was = old(at, len(new)) if known else all_of_it[number * EXTENT : number * EXTENT + EXTENT]
            pieces += [(at + start, new[start:end]) for start, end in _runs(new, was, self._unit)]
        return pieces, digests

    @property
    def page_size(self) -> int:
        """Bytes of a page, as given by the engine."""
        return self._map.root.page_size

    def block(self, number: int) -> bytes:
        """Return one extent by itself; see flow.Pages. Raises Usage if it does not exist.

        The digest of the whole stream is not needed to verify it: the manifest authenticates the root of the map, the
        root the leaves, and a leaf the extent.
        """
        if not 0 <= number < len(self._map.root.leaf_of):
            raise Usage(f"{self.name}: has no block {number}", detail=f"{self.size} bytes")
        (piece,) = self.assemble(range(number, number + 1)).pieces
        return bytes(piece)  # a number means that many zeros

    def _length(self, extent: int) -> int:
        return min(EXTENT, self.size - extent * EXTENT)

    def _frames(self, places: Sequence[tuple[Leaves, int]]) -> dict[tuple[int, int], Plain]:
        wanted: set[tuple[int, int]] = set()
        for leaves, place in places:
            at, end = self._units * place, self._units * (place + 1)
            wanted.update(zip(leaves.packs[at:end], leaves.frames[at:end], strict=True))
        by_pack: dict[int, list[int]] = {}
        for pack, frame in sorted(wanted):
            if pack != HOLE:
                by_pack.setdefault(pack, []).append(frame)
        found: dict[tuple[int, int], Plain] = {}
        for pack, numbers in by_pack.items():
            plains = self._map.reader.frames(self._map.pack_name(pack), numbers, PAGES)
            found.update({(pack, number): plain for number, plain in plains.items()})
        return found

    def _extent(self, extent: int, leaves: Leaves, place: int, frames: dict[tuple[int, int], Plain]) -> Piece | int:
        length, unit = self._length(extent), self._unit
        digest = leaves.digests[DIGEST * place : DIGEST * place + DIGEST]
        at = self._units * place
        end = at + -(-length // unit)
        packs, numbers, slots = leaves.packs[at:end], leaves.frames[at:end], leaves.slots[at:end]
        if packs[0] == HOLE and packs.count(HOLE) == len(packs):
            piece: Piece = bytes(length)
            parts = self._map.reader.digests.parts(piece)
        elif _in_a_row(packs, numbers, slots):
            data, known = frames[packs[0], numbers[0]]
            start = slots[0] * unit
            piece = memoryview(data)[start : start + length]
            whole, off = divmod(start, EXTENT)
            aligned = not off and (length == EXTENT or start + length == len(data))
            parts = (
                known[DIGEST * whole : DIGEST * whole + DIGEST] if aligned else self._map.reader.digests.parts(piece)
            )
        else:
            piece = self._gather(length, packs, numbers, slots, frames)
            parts = self._map.reader.digests.parts(piece)
        if parts != digest or len(piece) != length:
            raise Damaged(
                f"{self.name}: bytes {extent * EXTENT} to {extent * EXTENT + length} differ from what was backed up",
                detail=f"digest {parts.hex()} instead of {digest.hex()}",
            )
        return length if packs[0] == HOLE and packs.count(HOLE) == len(packs) else piece

    def _gather(
        self,
        length: int,
        packs: Sequence[int],
        numbers: Sequence[int],
        slots: Sequence[int],
        frames: dict[tuple[int, int], Plain],
    ) -> Piece:
        unit, pieces = self._unit, []
        for pack, number, slot in zip(packs, numbers, slots, strict=True):
            if pack == HOLE:
                pieces.append(memoryview(bytes(unit)))
            else:
                pieces.append(memoryview(frames[pack, number][0])[slot * unit : slot * unit + unit])
        return memoryview(b"".join(pieces))[:length]


def _in_a_row(packs: Sequence[int], numbers: Sequence[int], slots: Sequence[int]) -> bool:
    count = len(packs)
    same = packs.count(packs[0]) == count and numbers.count(numbers[0]) == count
    return same and list(slots) == list(range(slots[0], slots[0] + count))


def _runs(new: memoryview, old: memoryview, unit: int) -> list[tuple[int, int]]:
    """Return the byte ranges of pages that differ, joining neighbours."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(new), unit):
        end = min(start + unit, len(new))
        if bytes(new[start:end]) != bytes(old[start:end]):  # comparing a memoryview would go byte by byte
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs
