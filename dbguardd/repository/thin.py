"""Making the log of a database coarser as it gets older: of each minute, hour or day of it one moment stays.

Segments in a row become one, with the newest image of each page; so what is between them is no moment any more, and
what comes after is as it was. A segment that came of merging says how many others are in it (`merged`), and an object
of such segments how fine it is, in its name. Where much was changed, more moments stay: one segment has few pages, and
one ends wherever the database became shorter, because only its size says that.

The new objects are durable before the old ones go, and the log is made coarser from its beginning on. A reader that
meets both may read either, or some of each: what a segment has of before is what is there, or older than what follows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile

import zstandard

from dbguardd.flow import Facts
from dbguardd.repository.log import FOLDED_BYTES, LEVEL, Link, StoredLog
from dbguardd.rules.chains import Chain, Piece

MERGED_BYTES = 16 << 20  # of the pages of a segment: as much is in memory


@dataclass(frozen=True, slots=True)
class Grain:
    """How fine a log is kept from some age on: one moment in so many seconds."""

    seconds: int
    age: timedelta


@dataclass(frozen=True, slots=True)
class Due:
    """What of a chain is to have a coarser grain: the segments after `done`, up to the number `last`."""

    chain: Chain
    grain: int
    last: int
    done: Piece | None = None  # the last object that has it

    @property
    def first(self) -> int:
        """The number of the first of them."""
        return self.chain.first if self.done is None else self.done.last + 1


@dataclass(frozen=True, slots=True)
class Thinned:
    """What was made coarser: a chain up to `until`; so many bytes went, and so many came for them."""

    chain: str
    grain: int
    until: datetime
    freed_bytes: int
    stored_bytes: int


def make_coarser(
    log: StoredLog, grains: Sequence[Grain], now: datetime, beat: Callable[[int], None] = lambda _: None
) -> Iterator[Thinned]:
    """Make coarser what has come of age by the storage's own time, and yield what was."""
    for chain in log.chains():  # what a try left that was killed while it took away what it had replaced
        log.forget([piece for piece in log.objects(chain) if piece not in chain.pieces and _has(chain, piece)])
    for grain in sorted(grains, key=lambda grain: -grain.seconds):  # what is old enough for that needs no other before
        for chain in log.chains():
            what = due(chain, grain, grains, now)
            if what is not None and (thinned := thin(log, what, beat)) is not None:
                yield thinned


def due(chain: Chain, grain: Grain, grains: Sequence[Grain], now: datetime) -> Due | None:
    """Return what of a chain has come of age for a grain."""
    ages = {one.seconds: one.age for one in grains}

    def is_old(piece: Piece) -> bool:
        """Say if an object has the grain, or the age for it. One made coarser was of that age when it was stored."""
        waits = grain.age - ages.get(piece.grain, timedelta())
        return piece.grain >= grain.seconds or piece.stored_at < now - waits

    old = list(takewhile(is_old, chain.pieces))
    done = list(takewhile(lambda piece: piece.grain >= grain.seconds, old))
    if len(old) == len(done):
        return None
    if done and old[-1].until.timestamp() // grain.seconds <= done[-1].until.timestamp() // grain.seconds + 1:
        return None  # the next one is not over
    return Due(chain, grain.seconds, old[-1].last, done[-1] if done else None)


def thin(log: StoredLog, what: Due, beat: Callable[[int], None] = lambda _: None) -> Thinned | None:
    """Make a part of a chain coarser, up to the last minute (hour, day) that is over; None if none is.

    Raises Damaged, ObjectMissing, and what the storage raises, with nothing lost.
    """
    made, waiting, size = list[Piece](), list[Link](), 0
    before = 0 if what.done is None else log.open(what.done)[-1].size
    links = _watched(log.links(what.chain, what.first, what.last), beat)
    for link in merged(links, what.grain, what.first, before):
        waiting.append(link)
        size += len(link.body)
        if size > FOLDED_BYTES:
            made.append(log.store(what.chain, waiting, what.grain))
            waiting, size = [], 0
    if waiting:
        made.append(log.store(what.chain, waiting, what.grain))
    if not made:
        return None
    end, new = made[-1], {piece.name for piece in made}
    gone = [piece for piece in log.objects(what.chain) if _is_in(piece, what, end) and piece.name not in new]
    log.forget(gone)
    sizes = (sum(piece.size for piece in pieces) for pieces in (gone, made))
    return Thinned(what.chain.id, what.grain, end.until, *sizes)


def _has(chain: Chain, piece: Piece) -> bool:
    """Say if an object of a chain has all that another one has, and is not finer."""
    return any(one.first <= piece.first and piece.last <= one.last and one.grain >= piece.grain for one in chain.pieces)


def _is_in(piece: Piece, what: Due, end: Piece) -> bool:
    """Say if what an object has is coarser by now: it came before, or is of a try that was killed.

    What lies before a hole in the log is of another row, of which the last minute may be fine still.
    """
    return what.chain.first <= piece.last <= end.last and (
        piece.grain < what.grain or (piece.grain == what.grain and piece.first >= what.first)
    )


def _watched(links: Iterable[Link], beat: Callable[[int], None]) -> Iterator[Link]:
    for link in links:
        beat(link.number)
        yield link


def merged(links: Iterable[Link], grain: int, first: int, size: int = 0) -> Iterator[Link]:
    """Yield segments, from number `first` on, as fewer: one for each `grain` seconds that are over.

    `size` is what the database had before them, 0 if nobody knows.
    """
    group: _Group | None = None
    place: Facts | None = None
    for link in links:
        if group is not None and group.ends_before(link, grain):
            yield group.link()
            first, place, group = group.last.number + 1, group.last.until, None
        if not link.stream:  # number 0: where the chain begins, and why
            yield link
            first, place = link.number + 1, link.until
            continue
        group = group or _Group(first, place or link.since, link)
        group.take(link)
        if link.size:
            group.full, size = link.size < size or not size, link.size


class _Group:
    """Segments in a row that become one."""

    def __init__(self, first: int, since: Facts, link: Link) -> None:
        self._first, self._since, self._at, self.last = first, since, link.at, link
        self._images: dict[int, bytes] = {}
        self.full = False  # what comes next may be in pages that were cut off

    def take(self, link: Link) -> None:
        """Put the next one in."""
        self.last = link
        for number, page in link.pages():
            self._images[number] = bytes(page)

    def ends_before(self, link: Link, grain: int) -> bool:
        """Say if the merged segment ends before this one: it would be too large, of other pages or of another minute.

        Only the first two are a reason in the middle of a transaction.
        """
        if (link.stream, link.page_size) != (self.last.stream, self.last.page_size):
            return True
        if self.full or len(self._images) * self.last.page_size >= MERGED_BYTES:
            return True
        return self.last.size > 0 and link.at.timestamp() // grain != self._at.timestamp() // grain

    def link(self) -> Link:
        """Return the one that they become."""
        most = self.last.size // self.last.page_size if self.last.size else max(self._images, default=0)
        numbers = sorted(number for number in self._images if number <= most)
        body = struct.pack(f">{len(numbers)}I", *numbers) + b"".join(self._images[number] for number in numbers)
        return replace(
            self.last,
            since=self._since,
            count=len(numbers),
            merged=self.last.number - self._first,
            body=zstandard.ZstdCompressor(level=LEVEL).compress(body) if numbers else b"",
        )
