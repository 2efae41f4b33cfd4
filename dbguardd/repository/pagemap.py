"""The page map: where each page of a paged stream lies, and how to detect that it has changed.

A paged stream is cut into extents of 65536 bytes, and these into units of max(page size, 4096) bytes; the last extent
and unit may be shorter. Integers of the map are little-endian and stored in columns, which compress well and are used
in place.

A leaf describes one extent. A frame (kind 3) contains many leaves, and children share it as long as one of its leaves
is valid; n leaves of U units::

    u32 n | u32 U | u32 extent[n], ascending | 16-byte digest[n] | 8-byte tag[n][U]
    | u32 pack[n][U] | u16 frame[n][U] | u16 slot[n][U]

A unit lies at slot * (bytes of a unit) in its frame (kind 1). Pack 4294967295 is a hole: zeros. Units beyond the end of
the stream are holes with tag 0. The digest is the part digest of the whole extent.

The root is one byte string, cut into frames of at most 1 MiB (kind 4) that are adjacent in one pack::

    0   4   bytes of the root, all frames together
    4   4   "PMAP"
    8   8   bytes of the stream
    16  4   page size        20  4   bytes of a unit
    24  8   bytes of the frames that the full backup at the start of this line stored
    32  32  digest of the stream: keyed BLAKE3 of its size (u64, big-endian) || the digests of its extents,
            key = derive("stream")
    64  4   next pack number
    68  4   P, packs         72  4   L, leaf frames      76  4   E, extents
    80      u32 number[P], ascending | u32 units in use[P] | u32 bytes[P] | 32-byte name[P]
            | u32 pack number of leaf frame[L] | u16 frame of leaf frame[L] | u32 leaf frame of extent[E]
            | 16-byte digest of leaf frame[L]

The digest of a frame is truncated to 16 bytes here. It authenticates the leaves through the root, as their digests
authenticate the extents, so a single extent can be read safely: an older frame of ours, in a pack stored under a false
name, does not match this map.

Pack numbers are valid for the whole line of children, so that leaves can be shared. The name of the pack that contains
the root is unknown when the root is written, so it is stored as 32 zero bytes. The names are all packs that the stream
needs, except that one.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from threading import Lock

from dbguardd.errors import Damaged
from dbguardd.repository.frames import FRAME_LIMIT, LEAVES, PART, ROOT, TAG
from dbguardd.repository.packs import Pack, object_name
from dbguardd.repository.reading import PackReader

EXTENT = PART
UNIT = 4096
HOLE = 0xFFFFFFFF
DIGEST = 16
SELF = bytes(32)

_HEAD = Struct("<I4sQIIQ32sIIII")
_LEAVES_HEAD = Struct("<II")
_LEAVES_KEPT = 192


def column(code: str, data: bytes | memoryview) -> array[int]:
    """Return a column of little-endian integers as an array."""
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def stored(values: array[int]) -> bytes:
    """Return a column as little-endian bytes."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


class Leaves:
    """The leaves of one frame, read-only."""

    __slots__ = ("digests", "extents", "frames", "index", "packs", "slots", "tags", "units")

    def __init__(self, raw: bytes, name: str) -> None:
        count, units = _LEAVES_HEAD.unpack_from(raw)
        widths = (4, DIGEST, TAG * units, 4 * units, 2 * units, 2 * units)
        if len(raw) != _LEAVES_HEAD.size + count * sum(widths):
            raise Damaged(f"{name}: invalid leaf of a page map", detail=f"{len(raw)} bytes, {count} leaves")
        cuts, at = [], _LEAVES_HEAD.size
        for width in widths:
            cuts.append(raw[at : at + width * count])
            at += width * count
        self.units = units
        self.extents = column("I", cuts[0])
        self.digests, self.tags = cuts[1], cuts[2]
        self.packs, self.frames, self.slots = column("I", cuts[3]), column("H", cuts[4]), column("H", cuts[5])
        self.index = {extent: place for place, extent in enumerate(self.extents)}


@dataclass(slots=True)
class Row:
    """One leaf being made. `pending` counts units whose place is not known yet."""

    extent: int
    digest: bytes
    tags: bytes
    packs: array[int]
    frames: array[int]
    slots: array[int]
    pending: int = 0


def encode_leaves(rows: Sequence[Row], units: int) -> bytes:
    """Return the plaintext of a frame of leaves."""
    return b"".join(
        (
            _LEAVES_HEAD.pack(len(rows), units),
            stored(array("I", [row.extent for row in rows])),
            b"".join([row.digest for row in rows]),
            b"".join([row.tags.ljust(TAG * units, b"\0") for row in rows]),
            b"".join([stored(row.packs) for row in rows]),
            b"".join([stored(row.frames) for row in rows]),
            b"".join([stored(row.slots) for row in rows]),
        )
    )


@dataclass(slots=True)
class PackUse:
    """What a root says about one pack: its name (32 bytes), units in use, bytes."""

    name: bytes
    live: int
    size: int


@dataclass(slots=True)
class Root:
    """The root of a paged stream, as stored."""

    size: int
    page_size: int
    unit: int
    base: int
    digest: bytes
    next_number: int
    packs: dict[int, PackUse]
    leaf_packs: array[int]
    leaf_frames: array[int]
    leaf_of: array[int]
    leaf_digests: bytes

    def encode(self) -> bytes:
        """Return the bytes that are cut into frames."""
        numbers = sorted(self.packs)
        uses = [self.packs[number] for number in numbers]
        counts = (len(numbers), len(self.leaf_packs), len(self.leaf_of))
        total = _HEAD.size + 44 * counts[0] + (6 + DIGEST) * counts[1] + 4 * counts[2]
        lead = (self.size, self.page_size, self.unit, self.base, self.digest, self.next_number)
        return b"".join(
            (
                _HEAD.pack(total, b"PMAP", *lead, *counts),
                stored(array("I", numbers)),
                stored(array("I", [use.live for use in uses])),
                stored(array("I", [use.size for use in uses])),
                b"".join([use.name for use in uses]),
                stored(self.leaf_packs),
                stored(self.leaf_frames),
                stored(self.leaf_of),
                self.leaf_digests,
            )
        )

    @classmethod
    def decode(cls, raw: bytes, pack: Pack) -> Root:
        """Parse what encode() returned; `pack` is the pack in which it lay."""
        head = raw[: _HEAD.size].ljust(_HEAD.size, b"\0")  # the root of a flow may be shorter
        total, magic, size, page_size, unit, base, digest, next_number, *counts = _HEAD.unpack(head)
        packs, leaves, extents = counts
        wanted = _HEAD.size + 44 * packs + (6 + DIGEST) * leaves + 4 * extents
        if magic != b"PMAP" or not total == wanted == len(raw) or extents != -(-size // EXTENT):
            raise Damaged(f"pack {pack.name}: invalid root of a page map", detail=f"{len(raw)} bytes, {magic!r}")
        view, at, cuts = memoryview(raw), _HEAD.size, []
        columns = 4 * packs, 4 * packs, 4 * packs, 32 * packs, 4 * leaves, 2 * leaves, 4 * extents, DIGEST * leaves
        for length in columns:
            cuts.append(view[at : at + length])
            at += length
        names, own = bytes(cuts[3]), bytes.fromhex(pack.name)
        table = {
            number: PackUse(own if (name := names[32 * i : 32 * i + 32]) == SELF else name, live, bytes_)
            for i, (number, live, bytes_) in enumerate(
                zip(column("I", cuts[0]), column("I", cuts[1]), column("I", cuts[2]), strict=True)
            )
        }
        places = column("I", cuts[4]), column("H", cuts[5]), column("I", cuts[6])
        return cls(size, page_size, unit, base, digest, next_number, table, *places, bytes(cuts[7]))


def read_root(reader: PackReader, pack: str, frame: int) -> bytes:
    """Return the bytes of a root that starts at a frame, from all of its frames."""
    first, _parts = reader.frame(pack, frame, ROOT)
    total = int.from_bytes(first[:4], "little")
    more = range(frame + 1, frame + -(-total // FRAME_LIMIT))
    plains = reader.frames(pack, more, ROOT) if more else {}
    raw = first + b"".join([plains[number][0] for number in more])
    if len(raw) != total:
        raise Damaged(f"pack {pack}: a root is truncated", detail=f"{len(raw)} of {total} bytes")
    return raw


class PageMap:
    """The page map of one stream, for reading; several threads may use it at once."""

    def __init__(self, reader: PackReader, pack: str, frame: int) -> None:
        self.reader = reader
        self.root = Root.decode(read_root(reader, pack, frame), reader.pack(pack))
        self.names: Mapping[int, str] = {number: use.name.hex() for number, use in self.root.packs.items()}
        self.units = EXTENT // self.root.unit
        self._leaves: OrderedDict[int, Leaves] = OrderedDict()
        self._lock = Lock()

    def locate(self, extent: int) -> tuple[Leaves, int]:
        """Return the leaf of an extent: its frame of leaves, and its number there. Raises Damaged, ObjectMissing."""
        leaves = self.leaves(self.root.leaf_of[extent])
        place = leaves.index.get(extent)
        if place is None or leaves.units != self.units:
            raise Damaged(f"page map of {self.root.size} bytes: no leaf for extent {extent}")
        return leaves, place

    def digests(self, first: int, last: int) -> bytes:
        """Return the digests of the extents from `first` to before `last`, joined."""
        if len(set(self.root.leaf_of[first:last])) == 1:
            leaves, start = self.locate(first)
            end = start + last - first
            if end <= len(leaves.extents) and leaves.extents[end - 1] == last - 1:
                return leaves.digests[DIGEST * start : DIGEST * end]
        found = [self.locate(extent) for extent in range(first, last)]
        return b"".join([leaves.digests[DIGEST * place : DIGEST * place + DIGEST] for leaves, place in found])

    def leaves(self, number: int) -> Leaves:
        """Return a frame of leaves by its number in the root. Raises Damaged if a different one lies there."""
        with self._lock:
            if leaves := self._leaves.get(number):
                self._leaves.move_to_end(number)
                return leaves
        pack = self.pack_name(self.root.leaf_packs[number])
        raw, parts = self.reader.frame(pack, self.root.leaf_frames[number], LEAVES)
        digest = self.root.leaf_digests[DIGEST * number : DIGEST * number + DIGEST]
        if self.reader.digests.frame(parts, len(raw))[:DIGEST] != digest:
            raise Damaged(
                f"pack {pack}: its leaves are not those that the page map names",
                detail="the storage has another pack of this repository under this name",
                facts={"object": object_name(pack)},
            )
        leaves = Leaves(raw, f"pack {pack}")
        with self._lock:
            self._leaves[number] = leaves
            if len(self._leaves) > _LEAVES_KEPT:
                self._leaves.popitem(last=False)
        return leaves

    def pack_name(self, number: int) -> str:
        """Return the name (hex) of a pack by its number."""
        name = self.names.get(number)
        if name is None:
            raise Damaged(f"page map of {self.root.size} bytes: no pack {number}")
        return name
