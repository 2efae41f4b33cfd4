"""The log of a database in a repository: segments in a row, in objects of their own.

A chain is a log without a gap: segments numbered from 0. Number 0 has no pages and says where and why the chain begins.
An object holds segments of one chain and lies at ``log/<domain>/<slot>-<sha256>``: the id of the domain in hex, the
SHA-256 of the stored bytes, and the slot ``<chain>-<first>-<last>-<until>``: the ULID of the chain, the numbers of its
first and last segment (10 digits), and the moment that the last one reaches, in milliseconds since 1970 (13 digits). An
object that was made coarser (thin.py) has one moment in so many seconds, which its slot says at its end (5 digits). It
is sealed for its domain as kind "log" and that slot (seal.py), so a name that was made up does not open.

What is sealed is one segment after the other (integers are big-endian)::

    4  length of the head
    n  the head: JSON, sorted keys (Head)
    4  length of the body
    m  the body: one zstd frame of the page numbers, 4 bytes each, and the pages; or of bytes of the log itself

Each second may make an object, so they are folded: 32 in a row become one, and 32 of those again, as long as the result
is not too large. The new object is durable before the old ones go; a reader that meets both takes the longer, and one
that comes too late for the old ones looks for the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import zstandard

from dbguardd.errors import Damaged, ObjectMissing
from dbguardd.facts import Target
from dbguardd.flow import Facts, Images, Segment
from dbguardd.repository.frames import decompress
from dbguardd.repository.model import encode, moment, rfc3339
from dbguardd.repository.records import Records
from dbguardd.repository.seal import Domain, Randomness, seal, unseal
from dbguardd.rules.chains import BYTES, Chain, Piece
from dbguardd.storage.base import Entry, Storage
from dbguardd.ulids import ulid

if TYPE_CHECKING:
    from dbguardd.repository.moment import LogTree, MomentTree, StretchTree
    from dbguardd.repository.thin import Thinned
    from dbguardd.repository.tree import Tree

FOLD = 32
FOLDED_BYTES = 8 << 20
_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"log/[0-9a-f]{32}/([0-9A-Z]{26})-([0-9]{10})-([0-9]{10})-([0-9]{13})(?:-([0-9]{5}))?-[0-9a-f]{64}")
LEVEL = 1  # 3 takes twice the processor time and 6 % fewer bytes (measured)
_LARGEST = 128 << 20  # bytes of what a segment has
_MORE_LOOKS = 2
_KEPT = 8 * FOLD  # pieces that a writer knows: more than folding looks at, and no more however long it writes


@dataclass(frozen=True, slots=True)
class Link:
    """One segment of a chain, as it is stored. `body` is compressed; content() opens it.

    `size` is what the stream has afterwards, or how many BYTES are in the body: nothing where it is no moment.
    """

    number: int
    at: datetime
    stream: str
    since: Facts
    until: Facts
    page_size: int
    size: int
    count: int
    because: str
    body: bytes | memoryview = field(repr=False)
    sum: str = ""  # of all pages of the stream afterwards; the first logs did not say it
    form: str = ""  # BYTES, or images of pages
    merged: int = 0  # so many segments before this number are in it as well (thin.py)

    @property
    def first(self) -> int:
        """The number of the first segment that is in it."""
        return self.number - self.merged

    def follows(self, number: int, place: Facts | None) -> bool:
        """Say if it goes on from a segment that ends at a place, if that is known; some of that may be in it, too."""
        if self.first == number + 1:
            return place is None or self.since == place
        return self.first <= number < self.number

    def content(self) -> memoryview:
        """Return what the body holds: bytes of the log, or numbers and images of pages. Raises Damaged."""
        length = self.size if self.form == BYTES else self.count * (4 + self.page_size)
        if self.form not in ("", BYTES) or not 0 <= length <= _LARGEST:
            raise Damaged(f"segment {self.number}: is none", detail=f"{length} bytes of the form {self.form!r}")
        if not length:
            return memoryview(b"")
        return memoryview(decompress(self.body, length, f"segment {self.number}", zstandard.ZstdDecompressor()))

    def pages(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the number of each page and its image. Raises Damaged."""
        if self.form:
            raise Damaged(f"segment {self.number}: has no pages")
        data = self.content()
        for place, (number,) in enumerate(_LENGTH.iter_unpack(data[: 4 * self.count])):
            start = 4 * self.count + place * self.page_size
            yield number, data[start : start + self.page_size]


@dataclass(frozen=True, slots=True)
class Until:
    """Which segments of a chain lie between a backup and a moment: those after `after`, up to `last`.

    Of a log whose segments have bytes (`form`), the engine finds the moment in them: `target` says which.
    """

    chain: Chain
    after: int
    last: int
    form: str = ""
    target: Target = field(default_factory=Target)


class Log:
    """Reads and writes the log of one database. One process writes it; any number may read."""

    def __init__(self, storage: Storage, records: Records, domain: Domain, randomness: Randomness) -> None:
        self._storage, self._records, self._domain, self._randomness = storage, records, domain, randomness
        self._prefix = f"log/{domain.id.hex()}/"

    # ------------------------------------------------------------------------------------------ reading

    def chains(self) -> list[Chain]:
        """Return what is there by name, oldest first. A chain that lacks something is several of the same id.

        A listing takes time. What is folded meanwhile may be in it neither as it was nor as it is: then it lacks that,
        and another one does not.
        """
        found = self._listed()
        for _ in range(_MORE_LOOKS):
            if len({chain.id for chain in found}) == len(found):
                break
            found = self._listed()
        return found

    def _listed(self) -> list[Chain]:
        found: list[Chain] = []
        row: list[Piece] = []
        for piece in _not_repeated(self._pieces()):
            if row and (piece.chain != row[-1].chain or piece.first > row[-1].last + 1):
                found.append(Chain(row[0].chain, tuple(row)))
                row = []
            row.append(piece)
        return [*found, Chain(row[0].chain, tuple(row))] if row else found

    def links(self, chain: Chain, first: int, last: int) -> Iterator[Link]:
        """Yield the segments `first` to `last` of a chain, in order. Raises Damaged, ObjectMissing."""
        number, pieces = first, deque(chain.pieces)
        place: Facts | None = None
        while number <= last and pieces:
            piece = pieces.popleft()
            if not piece.first <= number <= piece.last:
                continue
            try:
                held = self._held(piece)
            except ObjectMissing:
                pieces = deque(p for other in self.chains() if other.id == chain.id for p in other.pieces)
                if piece in pieces:
                    raise
                continue  # it was just made coarser, with others beside it
            for link in held:
                if link.number < number or number > last:
                    continue
                if link.number > last:
                    raise ObjectMissing(f"the log {chain.id} has segment {last} within {link.number} only")
                if not link.follows(number - 1, place):
                    raise Damaged(f"{piece.name}: segment {link.number} does not follow {number - 1}")
                number, place = link.number + 1, link.until
                yield link
        if number <= last:
            raise ObjectMissing(f"the log {chain.id} lacks its segment {number}", detail=f"of {first} to {last}")

    def open(self, piece: Piece) -> list[Link]:
        """Return the segments in an object, wherever they are by now. Raises Damaged, ObjectMissing."""
        return [link for link in self._held(piece) if piece.first <= link.number and link.first <= piece.last]

    def over(self, base: Tree, until: Until, beat: Callable[[int], None]) -> MomentTree:
        """Return a backup for reading, with the images of pages in a stretch of this log put over it."""
        from dbguardd.repository.moment import MomentTree  # noqa: PLC0415 - here and below: what most workers never do

        return MomentTree(base, self, until, beat)

    def behind(self, base: Tree, until: Until, beat: Callable[[int], None]) -> LogTree:
        """Return a backup for reading, with the bytes of a stretch of this log behind it."""
        from dbguardd.repository.moment import LogTree  # noqa: PLC0415

        return LogTree(base, self, until, beat)

    def stretch(self, until: Until, last: Link) -> StretchTree:
        """Return a stretch that ends with the segment `last`, for reading: what is put over a copy in one step."""
        from dbguardd.repository.moment import StretchTree  # noqa: PLC0415

        return StretchTree(self, until, last)

    def _held(self, piece: Piece) -> list[Link]:
        """Return the segments in an object, or in the larger one that it was folded into meanwhile."""
        while True:
            try:
                return self._read(piece)
            except ObjectMissing:
                first, last, size = piece.first, piece.last, (piece.last - piece.first, piece.grain)
                others = (other for other in self._pieces() if other.chain == piece.chain)
                larger = (o for o in others if o.first <= first and last <= o.last)
                found = next((o for o in larger if (o.last - o.first, o.grain) > size), None)
                if found is None:
                    raise
                piece = found

    def _read(self, piece: Piece, written: bytes = b"") -> list[Link]:
        data = self._storage.get(piece.name)
        if data != written and hashlib.sha256(data).hexdigest() != piece.name[-64:]:
            raise Damaged(f"{piece.name}: its bytes are not those it is named after", detail=f"{len(data)} bytes")
        domain, plain = unseal(self._records.keyring_of(self._domain), "log", piece.slot, data, piece.name)
        if domain.id != self._domain.id:
            raise Damaged(f"{piece.name}: it is of the log of another database", detail=f"of {domain.name!r}")
        try:
            links = list(_split(plain))
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise Damaged(f"{piece.name}: not a log of this format", detail=repr(error)) from error
        if not _are(links, piece.first, piece.last):
            raise Damaged(f"{piece.name}: other segments are in it than its name says")
        return links

    def _pieces(self, chain: str = "") -> Iterator[Piece]:
        return (
            piece for entry in self._storage.list(f"{self._prefix}{chain}") if (piece := piece_of(entry)) is not None
        )

    # ------------------------------------------------------------------------------------------ writing

    def begin(self, place: Facts, because: str, now: datetime) -> Chain:
        """Begin a chain at a place in the log of the database; it sorts behind all others."""
        last = max((chain.id for chain in self.chains()), default="")
        id = ulid(now, self._randomness, after=last)
        head = {"because": because, "count": 0, "page_size": 0, "size": 0, "stream": ""}
        head |= {"at": rfc3339(now), "number": 0, "since": dict(place), "until": dict(place)}
        return Chain(id, (self._put(id, (0, 0), now, _join(head, b"")),))

    def append(self, chain: Chain, segment: Segment) -> Chain:
        """Store the next segment; durable and read back on return. Folds what has become many.

        Returns the end of the chain: enough to go on with it.
        """
        number = chain.last + 1
        head = {"because": "", "number": number, "at": rfc3339(segment.at), "stream": segment.stream}
        head |= {"since": dict(segment.since), "until": dict(segment.until)}
        match segment.body:
            case Images(page_size, size, numbers, pages, sum):
                head |= {"page_size": page_size, "size": size, "count": len(numbers), "sum": sum}
                body = _compressed(_numbers(numbers), pages)
            case plain:
                head |= {"form": BYTES, "page_size": 0, "size": len(plain), "count": 0}
                body = _compressed(plain)
        until = max(segment.at, chain.until)  # a clock that went back does not undo what was reached
        piece = self._put(chain.id, (number, number), until, _join(head, body))
        return self._fold(Chain(chain.id, (*chain.pieces[-_KEPT:], piece)))

    def _fold(self, chain: Chain) -> Chain:
        pieces = chain.pieces
        while True:
            tail = pieces[-FOLD:]
            ripe = len(tail) == FOLD and len({_level(piece) for piece in tail}) == 1 and not any(p.grain for p in tail)
            if not ripe or sum(piece.size for piece in tail) > FOLDED_BYTES:
                return Chain(chain.id, pieces)
            try:
                links = [link for piece in tail for link in self.open(piece)]
            except (Damaged, ObjectMissing):  # a check says so, and what was forgotten is; the log goes on
                return Chain(chain.id, pieces)
            if not _are(links, tail[0].first, tail[-1].last):  # some of it was just made coarser
                return Chain(chain.id, pieces)
            plain = b"".join(_join(_head(link), link.body) for link in links)
            whole = self._put(chain.id, (tail[0].first, tail[-1].last), tail[-1].until, plain)
            for piece in tail:
                self._storage.delete(piece.name)
            pieces = (*pieces[:-FOLD], whole)

    def store(self, chain: Chain, links: Sequence[Link], grain: int) -> Piece:
        """Store segments that came of others; durable and read back on return. What they came of stays."""
        plain, numbers = b"".join(_join(_head(link), link.body) for link in links), (links[0].first, links[-1].number)
        until = max([*(link.at for link in links), *(p.until for p in chain.pieces if p.last <= numbers[1])])
        return self._put(chain.id, numbers, until, plain, grain)

    def objects(self, chain: Chain) -> list[Piece]:
        """Return all objects of a chain, also those that others hold, too."""
        return list(self._pieces(chain.id))

    def _put(self, chain: str, numbers: tuple[int, int], until: datetime, plain: bytes, grain: int = 0) -> Piece:
        milliseconds = int(until.timestamp() * 1000)
        slot = f"{chain}-{numbers[0]:010d}-{numbers[1]:010d}-{milliseconds:013d}" + (f"-{grain:05d}" if grain else "")
        data = seal(self._domain, "log", slot, plain, self._randomness)
        name = f"{self._prefix}{slot}-{hashlib.sha256(data).hexdigest()}"
        self._storage.put(name, data)
        piece = Piece(name, chain, *numbers, until, len(data), until, grain)
        self._read(piece, data)  # as it lies there now: its bytes, its seal and what is in it
        return piece

    def forget(self, pieces: Sequence[Piece]) -> None:
        """Delete objects, oldest first: what is left is always a log without a gap."""
        for piece in pieces:
            self._storage.delete(piece.name)

    def make_coarser(
        self, grains: Mapping[int, timedelta], now: datetime, beat: Callable[[int], None] = lambda _: None
    ) -> Iterator[Thinned]:
        """Keep one moment in so many seconds of what is of that age by the storage's own time; see thin.py."""
        from dbguardd.repository.thin import Grain, make_coarser  # noqa: PLC0415

        return make_coarser(self, [Grain(*one) for one in grains.items()], now, beat)


def piece_of(entry: Entry) -> Piece | None:
    """Read the name of an object; None if it is not that of a log."""
    found = _NAME.fullmatch(entry.name)
    if found is None:
        return None
    chain, first, last, until, grain = found.groups()
    moment = datetime.fromtimestamp(int(until) / 1000, UTC)
    return Piece(entry.name, chain, int(first), int(last), moment, entry.size, entry.modified_at, int(grain or 0))


def _ending(piece: Piece) -> tuple[str, int, int, int]:
    return piece.chain, piece.last, -piece.grain, -piece.first


def _not_repeated(pieces: Iterable[Piece]) -> list[Piece]:
    """Return objects in the order in which they end, without those that another one has, folded or made coarser."""
    found: list[Piece] = []
    begun = dict[int, int]()  # where those of a grain begin that end later, in the same chain
    for piece in sorted(pieces, key=_ending, reverse=True):
        if found and found[-1].chain != piece.chain:
            begun.clear()
        if any(grain >= piece.grain and first <= piece.first for grain, first in begun.items()):
            continue
        begun[piece.grain] = min(piece.first, begun.get(piece.grain, piece.first))
        found.append(piece)
    return found[::-1]


def _level(piece: Piece) -> int:
    return ((piece.last - piece.first + 1).bit_length() - 1) // (FOLD.bit_length() - 1)


def _are(links: Sequence[Link], first: int, last: int) -> bool:
    """Say if segments are those with these numbers, each once."""
    ends = [first - 1, *(link.number for link in links)]
    return ends[-1] == last and all(link.first == end + 1 for link, end in zip(links, ends, strict=False))


def _compressed(*parts: bytes | bytearray) -> bytes:
    """Return one zstd frame of all parts, without another copy of them."""
    work = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=sum(map(len, parts)))
    return b"".join((*map(work.compress, parts), work.flush()))


def _numbers(numbers: Sequence[int]) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


def _head(link: Link) -> dict[str, Any]:
    plain = {name: getattr(link, name) for name in ("number", "stream", "page_size", "size", "count", "because", "sum")}
    plain |= {"form": link.form} if link.form else {}
    plain |= {"merged": link.merged} if link.merged else {}
    return {**plain, "at": rfc3339(link.at), "since": dict(link.since), "until": dict(link.until)}


def _join(head: Mapping[str, Any], body: bytes | memoryview) -> bytes:
    raw = encode(head)
    return b"".join((_LENGTH.pack(len(raw)), raw, _LENGTH.pack(len(body)), body))


def _split(data: bytes) -> Iterator[Link]:
    plain, at = memoryview(data), 0

    def taken() -> memoryview:
        nonlocal at
        (length,) = _LENGTH.unpack_from(plain, at)
        at += 4 + length
        if at > len(plain):
            raise ValueError("it is too short")
        return plain[at - length : at]

    while at < len(plain):
        head, body = json.loads(bytes(taken())), taken()
        yield Link(**{**head, "at": moment(head["at"])}, body=body)
