"""The list of chunks of a flow stream, and reading the stream.

The root of a flow is one byte string, cut into frames of at most 1 MiB (kind 4) that are adjacent in one pack. Integers
are little-endian::

    0   4   bytes of the root, all frames together
    4   4   "FLOW"
    8   8   bytes of the stream
    16  32  digest of the stream: keyed BLAKE3 of its size (u64, big-endian) || the digests of its chunks,
            key = derive("stream")
    48  4   P, packs         52  4   N, chunks
    56      32-byte name of a pack[P] | 32-byte digest[N] | u32 length[N] | u32 pack, from 0[N] | u16 frame[N]

A chunk is a frame of kind 2. A name of 32 zero bytes means the pack that contains the root itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from struct import Struct

from blake3 import blake3

from dbguardd.errors import Damaged
from dbguardd.frozen import frozen
from dbguardd.repository.delivery import Batch
from dbguardd.repository.frames import CHUNK
from dbguardd.repository.pagemap import SELF, column, read_root, stored
from dbguardd.repository.reading import PackReader, Plain

DIGEST = 32

_HEAD = Struct("<I4sQ32sII")
_BATCH = 4 << 20


@frozen
class FlowRoot:
    """The list, as stored. The name of the pack that contains the root is "" until it is read back."""

    size: int
    digest: bytes
    names: list[str]
    digests: bytes
    lengths: array[int]
    packs: array[int]
    frames: array[int]

    def encode(self) -> bytes:
        """Return the bytes that are cut into frames."""
        counts = len(self.names), len(self.lengths)
        total = _HEAD.size + 32 * counts[0] + (DIGEST + 10) * counts[1]
        return b"".join(
            (
                _HEAD.pack(total, b"FLOW", self.size, self.digest, *counts),
                *(bytes.fromhex(name) or SELF for name in self.names),
                self.digests,
                stored(self.lengths),
                stored(self.packs),
                stored(self.frames),
            )
        )

    @classmethod
    def decode(cls, raw: bytes, pack: str) -> FlowRoot:
        """Parse what encode() returned; `pack` is the name of the pack in which it lay."""
        total, magic, size, digest, packs, chunks = _HEAD.unpack_from(raw)
        if magic != b"FLOW" or not total == len(raw) == _HEAD.size + 32 * packs + (DIGEST + 10) * chunks:
            raise Damaged(f"pack {pack}: invalid list of chunks", detail=f"{len(raw)} bytes, {magic!r}")
        cuts, at = [], _HEAD.size
        for length in (32 * packs, DIGEST * chunks, 4 * chunks, 4 * chunks, 2 * chunks):
            cuts.append(raw[at : at + length])
            at += length
        names = [cuts[0][at : at + 32] for at in range(0, 32 * packs, 32)]
        numbers = column("I", cuts[3])
        if chunks and max(numbers) >= packs:
            raise Damaged(f"pack {pack}: a list of chunks names pack {max(numbers)} of {packs}")
        own = [pack if name == SELF else name.hex() for name in names]
        return cls(size, digest, own, cuts[1], column("I", cuts[2]), numbers, column("H", cuts[4]))


class FlowMap:
    """The chunks of one stream."""

    def __init__(self, reader: PackReader, pack: str, frame: int) -> None:
        self.reader = reader
        self.root = FlowRoot.decode(read_root(reader, pack, frame), pack)

    def known(self) -> Iterator[tuple[bytes, tuple[str, int]]]:
        """Yield digest and place of every chunk."""
        root = self.root
        for number, (pack, frame) in enumerate(zip(root.packs, root.frames, strict=True)):
            yield root.digests[DIGEST * number : DIGEST * number + DIGEST], (root.names[pack], frame)


class FlowReader:
    """Assembles a flow stream batch by batch. Raises Damaged, ObjectMissing, Unreachable."""

    def __init__(self, flow: FlowMap, name: str) -> None:
        self._flow, self.name = flow, name
        self.size, self.digest = flow.root.size, flow.root.digest
        self._starts = _sums(flow.root.lengths)

    def hash(self) -> blake3:
        """Return the hash that takes the digests of all batches."""
        return self._flow.reader.digests.stream(self.size)

    def batches(self) -> Iterator[range]:
        """Yield the numbers of the chunks of each batch."""
        first, size = 0, 0
        for number, length in enumerate(self._flow.root.lengths):
            if size and size + length > _BATCH:
                yield range(first, number)
                first, size = number, 0
            size += length
        if size:
            yield range(first, len(self._flow.root.lengths))

    def assemble(self, numbers: range) -> Batch:
        """Return some chunks, verified."""
        root, by_pack = self._flow.root, dict[int, set[int]]()
        for number in numbers:
            by_pack.setdefault(root.packs[number], set()).add(root.frames[number])
        plains: dict[tuple[int, int], Plain] = {}
        for pack, frames in by_pack.items():
            for frame, plain in self._flow.reader.frames(root.names[pack], sorted(frames), CHUNK).items():
                plains[pack, frame] = plain
        pieces = []
        for number in numbers:
            data, parts = plains[root.packs[number], root.frames[number]]
            digest = root.digests[DIGEST * number : DIGEST * number + DIGEST]
            if len(data) != root.lengths[number] or self._flow.reader.digests.frame(parts, len(data)) != digest:
                raise Damaged(f"{self.name}: chunk {number} differs from what was backed up")
            pieces.append(data)
        return Batch(self._starts[numbers.start], pieces, root.digests[DIGEST * numbers.start : DIGEST * numbers.stop])


def _sums(lengths: array[int]) -> array[int]:
    starts, at = array("Q"), 0
    for length in lengths:
        starts.append(at)
        at += length
    return starts
