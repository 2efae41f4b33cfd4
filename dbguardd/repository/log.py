"""The log of a database in a repository: consecutive segments, in objects of their own.

A chain is a log without a gap: segments numbered from 0. Number 0 has no pages; it says where and why the chain begins.
An object holds segments of one chain and lies at ``log/<domain>/<slot>-<sha256>``: the id of the domain in hex, the
SHA-256 of the stored bytes, and the slot ``<chain>-<first>-<last>-<until>``: the ULID of the chain, the numbers of its
first and last segment (10 digits), and the moment that the last one reaches, in milliseconds since 1970 (13 digits). An
object that was made coarser (thin.py) has one moment per grain; the grain in seconds is at the end of its slot (5
digits). The object is sealed for its domain as kind "log" and that slot (seal.py), so it does not open under another
name.

The plaintext is one segment after the other (integers are big-endian)::

    4  length of the head
    n  the head: JSON, sorted keys (Head)
    4  length of the body
    m  the body: one zstd frame of the page numbers, 4 bytes each, and the pages; or of bytes of the log itself

Every second may add an object, so objects are folded: 32 consecutive ones become one, and so do 32 of those, as long as
the result is not too large. The new object is durable before the old ones are deleted. A reader that finds both uses
the longer one, and a reader that no longer finds an old one looks for the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import zstandard

from dbguardd.errors import Damaged, ObjectMissing
from dbguardd.flow import Facts, Images, Segment
from dbguardd.frozen import frozen
from dbguardd.repository.frames import decompress
from dbguardd.repository.model import encode, moment, rfc3339
from dbguardd.repository.records import Records
from dbguardd.repository.seal import Domain, Randomness, seal, unseal
from dbguardd.rules.chains import BYTES, Chain, LogRange, Piece
from dbguardd.storage.base import Entry, Storage
from dbguardd.ulids import ulid

if TYPE_CHECKING:
    from dbguardd.repository.moment import ChangesTree, LogTree, MomentTree
    from dbguardd.repository.thin import Thinned
    from dbguardd.repository.tree import Tree

FOLD = 32
FOLDED_BYTES = 8 << 20
_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"log/[0-9a-f]{32}/([0-9A-Z]{26})-([0-9]{10})-([0-9]{10})-([0-9]{13})(?:-([0-9]{5}))?-[0-9a-f]{64}")
LEVEL = 1  # level 3 takes twice the processor time for 6 % fewer bytes (measured)
_LARGEST = 128 << 20  # bytes of a segment's content
_MORE_LOOKS = 2
_KEPT = 8 * FOLD  # pieces that a writer remembers: more than folding looks at, and bounded however long it writes


@frozen
class Link:
    """One segment of a chain, as stored. `body` is compressed; content() opens it.

    `size` is the size of the stream after it, or the number of BYTES in the body; 0 in the middle of a transaction,
    which is no moment.
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
    sum: str = ""  # of all pages of the stream after it; missing in the oldest logs
    form: str = ""  # BYTES, or "" for images of pages
    merged: int = 0  # how many segments before this number are merged into it (thin.py)

    @property
    def first(self) -> int:
        """The number of the first segment that is in it."""
        return self.number - self.merged

    def follows(self, number: int, place: Facts | None) -> bool:
        """Return whether it continues after segment `number` and its end, if known.

        It may also contain that segment.
        """
        if self.first == number + 1:
            return place is None or self.since == place
        return self.first <= number < self.number

    def content(self) -> memoryview:
        """Return the body's content: bytes of the log, or numbers and images of pages. Raises Damaged."""
        length = self.size if self.form == BYTES else self.count * (4 + self.page_size)
        if self.form not in ("", BYTES) or not 0 <= length <= _LARGEST:
            raise Damaged(f"segment {self.number}: invalid", detail=f"{length} bytes of the form {self.form!r}")
        if not length:
            return memoryview(b"")
        return memoryview(decompress(self.body, length, f"segment {self.number}", zstandard.ZstdDecompressor()))

    def pages(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the number and image of each page. Raises Damaged."""
        if self.form:
            raise Damaged(f"segment {self.number}: has no pages")
        data = self.content()
        for place, (number,) in enumerate(_LENGTH.iter_unpack(data[: 4 * self.count])):
            start = 4 * self.count + place * self.page_size
            yield number, data[start : start + self.page_size]


class StoredLog:
    """Reads and writes the log of one database. One process writes it; any number may read."""

    def __init__(self, storage: Storage, records: Records, domain: Domain, randomness: Randomness) -> None:
        self._storage, self._records, self._domain, self._randomness = storage, records, domain, randomness
        self._prefix = f"log/{domain.id.hex()}/"

    # ------------------------------------------------------------------------------------------ reading

    def chains(self) -> list[Chain]:
        """Return the chains, oldest first, from the names of objects.

        A chain with a gap is returned as several with one id.

        Listing takes time. Objects that are folded meanwhile may be missing in both forms: then another listing is
        made.
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
                continue  # it was just made coarser, together with others
            for link in held:
                if link.number < number or number > last:
                    continue
                if link.number > last:
                    raise ObjectMissing(f"the log {chain.id} has segment {last} only merged into {link.number}")
                if not link.follows(number - 1, place):
                    raise Damaged(f"{piece.name}: segment {link.number} does not follow {number - 1}")
                number, place = link.number + 1, link.until
                yield link
        if number <= last:
            raise ObjectMissing(f"the log {chain.id} lacks its segment {number}", detail=f"of {first} to {last}")

    def open(self, piece: Piece) -> list[Link]:
        """Return the segments of an object, wherever they are now. Raises Damaged, ObjectMissing."""
        return [link for link in self._held(piece) if piece.first <= link.number and link.first <= piece.last]

    def over(self, base: Tree, until: LogRange, beat: Callable[[int], None]) -> MomentTree:
        """Return a backup for reading with the images of pages in a part of this log applied."""
        from dbguardd.repository.moment import MomentTree  # noqa: PLC0415 - here and below: most workers need none of it

        return MomentTree(base, self, until, beat)

    def behind(self, base: Tree, until: LogRange, beat: Callable[[int], None]) -> LogTree:
        """Return a backup for reading, followed by the bytes of a part of this log."""
        from dbguardd.repository.moment import LogTree  # noqa: PLC0415

        return LogTree(base, self, until, beat)

    def changes(self, until: LogRange, last: Link) -> ChangesTree:
        """Return a part of this log for reading that ends with the segment `last`: a standby applies it in one step."""
        from dbguardd.repository.moment import ChangesTree  # noqa: PLC0415

        return ChangesTree(self, until, last)

    def _held(self, piece: Piece) -> list[Link]:
        """Return the segments in an object, or in the larger one into which it was folded meanwhile."""
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
            raise Damaged(f"{piece.name}: its bytes do not match the hash in its name", detail=f"{len(data)} bytes")
        domain, plain = unseal(self._records.keyring_of(self._domain), "log", piece.slot, data, piece.name)
        if domain.id != self._domain.id:
            raise Damaged(f"{piece.name}: belongs to the log of another database", detail=f"of {domain.name!r}")
        try:
            links = list(_split(plain))
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise Damaged(f"{piece.name}: not a log of this format", detail=repr(error)) from error
        if not _are(links, piece.first, piece.last):
            raise Damaged(f"{piece.name}: contains other segments than its name says")
        return links

    def _pieces(self, chain: str = "") -> Iterator[Piece]:
        return (
            piece for entry in self._storage.list(f"{self._prefix}{chain}") if (piece := piece_of(entry)) is not None
        )

    # ------------------------------------------------------------------------------------------ writing

    def begin(self, place: Facts, because: str, now: datetime) -> Chain:
        """Begin a chain at a place in the database's log; it sorts after all others."""
        last = max((chain.id for chain in self.chains()), default="")
        id = ulid(now, self._randomness, after=last)
        head = {"because": because, "count": 0, "page_size": 0, "size": 0, "stream": ""}
        head |= {"at": rfc3339(now), "number": 0, "since": dict(place), "until": dict(place)}
        return Chain(id, (self._put(id, (0, 0), now, _join(head, b"")),))

    def append(self, chain: Chain, segment: Segment) -> Chain:
        """Store the next segment; it is durable and was read back on return. Fold objects that have become many.

        Return the last objects of the chain, which suffice to continue it.
        """
        number = chain.last + 1
        head = {"because": "", "number": number, "at": rfc3339(segment.at), "stream": segment.stream}
        head |= {"since": dict(segment.since), "until": dict(segment.until)}
        match segment.body:
            case Images(page_size, size, plain, sum):
                head |= {"page_size": page_size, "size": size, "count": segment.body.count, "sum": sum}
            case plain:
                head |= {"form": BYTES, "page_size": 0, "size": len(plain), "count": 0}
        until = max(segment.at, chain.until)  # a clock that was set back does not undo what was reached
        body = zstandard.ZstdCompressor(level=LEVEL).compress(plain)  # as a stream it would be copied first
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
            except (Damaged, ObjectMissing):  # a check reports damage; some may have expired
                return Chain(chain.id, pieces)
            if not _are(links, tail[0].first, tail[-1].last):  # some were just made coarser
                return Chain(chain.id, pieces)
            plain = b"".join(_join(_head(link), link.body) for link in links)
            whole = self._put(chain.id, (tail[0].first, tail[-1].last), tail[-1].until, plain)
            for piece in tail:
                self._storage.delete(piece.name)
            pieces = (*pieces[:-FOLD], whole)

    def store(self, chain: Chain, links: Sequence[Link], grain: int) -> Piece:
        """Store merged segments; they are durable and were read back on return. The original ones stay."""
        plain, numbers = b"".join(_join(_head(link), link.body) for link in links), (links[0].first, links[-1].number)
        until = max([*(link.at for link in links), *(p.until for p in chain.pieces if p.last <= numbers[1])])
        return self._put(chain.id, numbers, until, plain, grain)

    def objects(self, chain: Chain) -> list[Piece]:
        """Return all objects of a chain, including those whose content is also in others."""
        return list(self._pieces(chain.id))

    def _put(self, chain: str, numbers: tuple[int, int], until: datetime, plain: bytes, grain: int = 0) -> Piece:
        milliseconds = int(until.timestamp() * 1000)
        slot = f"{chain}-{numbers[0]:010d}-{numbers[1]:010d}-{milliseconds:013d}" + (f"-{grain:05d}" if grain else "")
        data = seal(self._domain, "log", slot, plain, self._randomness)
        del plain  # it may be large
        name = f"{self._prefix}{slot}-{hashlib.sha256(data).hexdigest()}"
        self._storage.put(name, data)
        piece = Piece(name, chain, *numbers, until, len(data), until, grain)
        self._read(piece, data)  # verifies the stored bytes, the seal and the content
        return piece

    def forget(self, pieces: Sequence[Piece]) -> None:
        """Delete objects, oldest first, so that the rest is always a log without a gap."""
        for piece in pieces:
            self._storage.delete(piece.name)

    def make_coarser(
        self,
        grains: Mapping[int, timedelta],
        now: datetime,
        others: Sequence[datetime] = (),
        beat: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Thinned]:
        """Keep one moment in so many seconds where the log is of that age by the storage's own time; see thin.py."""
        from dbguardd.repository.thin import Grain, make_coarser  # noqa: PLC0415

        return make_coarser(self, [Grain(*grain) for grain in grains.items()], now, others, beat)


def piece_of(entry: Entry) -> Piece | None:
    """Parse the name of an object; None if it is not one of a log."""
    found = _NAME.fullmatch(entry.name)
    if found is None:
        return None
    chain, first, last, until, grain = found.groups()
    moment = datetime.fromtimestamp(int(until) / 1000, UTC)
    return Piece(entry.name, chain, int(first), int(last), moment, entry.size, entry.modified_at, int(grain or 0))


def _ending(piece: Piece) -> tuple[str, int, int, int]:
    return piece.chain, piece.last, -piece.grain, -piece.first


def _not_repeated(pieces: Iterable[Piece]) -> list[Piece]:
    """Return objects in order of their ends, without those whose content another one has, folded or coarser."""
    found: list[Piece] = []
    begun = dict[int, int]()  # by grain: the start of the later objects of the same chain
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
    """Return whether segments are exactly those from `first` to `last`."""
    ends = [first - 1, *(link.number for link in links)]
    return ends[-1] == last and all(link.first == end + 1 for link, end in zip(links, ends, strict=False))


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
