"""Makes the log of a database coarser as it ages: only one moment of each minute, hour or day remains.

Consecutive segments are merged into one with the newest image of each page. So the moments between them are lost, and
what follows is unaffected. A merged segment records how many others it contains (`merged`), and an object of such
segments has its grain in its name. More moments remain where much was changed, because the pages of one segment are
limited, and wherever the database became shorter, because only a segment's size records that.

New objects are durable before the old ones are deleted, and the log is made coarser from its beginning. A reader that
finds both may read either, or some of each: a segment's image of an earlier page is the same as the one already read,
or older than what follows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import takewhile

import zstandard

from dbguardd.flow import Facts
from dbguardd.frozen import frozen
from dbguardd.repository.log import FOLDED_BYTES, LEVEL, Link, StoredLog
from dbguardd.rules.chains import Chain, Piece
from dbguardd.rules.keep_log import begin_of

MERGED_BYTES = 16 << 20  # of the pages in a segment, which are all in memory


@frozen
class Grain:
    """How fine a log is kept from some age on: one moment per `seconds`."""

    seconds: int
    age: timedelta


@frozen
class Due:
    """The part of a chain that is due for a coarser grain: the segments after `done`, up to the number `last`."""

    chain: Chain
    grain: int
    last: int
    done: Piece | None = None  # the last object that already has it

    @property
    def first(self) -> int:
        """The number of the first segment."""
        return self.chain.first if self.done is None else self.done.last + 1


@frozen
class Thinned:
    """What was made coarser: a chain up to `until`, with the bytes deleted and the bytes stored for them."""

    chain: str
    grain: int
    until: datetime
    freed_bytes: int
    stored_bytes: int


def make_coarser(
    log: StoredLog,
    grains: Sequence[Grain],
    now: datetime,
    others: Sequence[datetime] = (),
    beat: Callable[[int], None] = lambda _: None,
) -> Iterator[Thinned]:
    """Make coarser what is old enough by the storage's own time, and yield each part.

    `others`: when other objects were stored, which shows that the clock has not jumped (see keep_log.begin_of).
    """
    for chain in log.chains():  # leftovers of a run that was killed while deleting what it had replaced
        log.forget([piece for piece in log.objects(chain) if piece not in chain.pieces and _has(chain, piece)])
    for grain in sorted(grains, key=lambda grain: -grain.seconds):  # what is old enough for this skips the finer ones
        chains = log.chains()
        stored = [*others, *(piece.stored_at for chain in chains for piece in chain.pieces)]
        for chain in chains:
            what = due(chain, grain, grains, partial(begin_of, now=now, stored=stored))
            if what is not None and (thinned := thin(log, what, beat)) is not None:
                yield thinned


def due(chain: Chain, grain: Grain, grains: Sequence[Grain], begin_of: Callable[[timedelta], datetime]) -> Due | None:
    """Return the part of a chain that is old enough for a grain. `begin_of`: before when something is of an age."""
    ages = {0: timedelta(), **{one.seconds: one.age for one in grains}}
    begins = {seconds: begin_of(grain.age - age) for seconds, age in ages.items()}

    def is_old(piece: Piece) -> bool:
        """Return whether an object has the grain or the age for it.

        A coarser object already had some age when stored.
        """
        return piece.grain >= grain.seconds or piece.stored_at < begins.get(piece.grain, begins[0])

    old = list(takewhile(is_old, chain.pieces))
    done = list(takewhile(lambda piece: piece.grain >= grain.seconds, old))
    if len(old) == len(done):
        return None
    if done and old[-1].until.timestamp() // grain.seconds <= done[-1].until.timestamp() // grain.seconds + 1:
        return None  # the next period is not over
    return Due(chain, grain.seconds, old[-1].last, done[-1] if done else None)


def thin(log: StoredLog, what: Due, beat: Callable[[int], None] = lambda _: None) -> Thinned | None:
    """Make a part of a chain coarser, up to the last minute (hour, day) that is over; return None if there is none.

    Raises Damaged, ObjectMissing, and what the storage raises; nothing is lost then.
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
    """Return whether another object of the chain contains this one, and is not finer."""
    return any(one.first <= piece.first and piece.last <= one.last and one.grain >= piece.grain for one in chain.pieces)


def _is_in(piece: Piece, what: Due, end: Piece) -> bool:
    """Return whether an object has been replaced by coarser ones: it was merged now, or by a run that was killed.

    What lies before a gap in the log is a separate chain, whose last minute may still be fine.
    """
    return what.chain.first <= piece.last <= end.last and (
        piece.grain < what.grain or (piece.grain == what.grain and piece.first >= what.first)
    )


def _watched(links: Iterable[Link], beat: Callable[[int], None]) -> Iterator[Link]:
    for link in links:
        beat(link.number)
        yield link


def merged(links: Iterable[Link], grain: int, first: int, size: int = 0) -> Iterator[Link]:
    """Merge segments, from number `first` on, into one for each `grain` seconds that are over.

    `size` is the size of the database before them, 0 if unknown.
    """
    group: _Group | None = None
    place: Facts | None = None
    for link in links:
        if group is not None and group.ends_before(link, grain):
            yield group.link()
            first, place, group = group.last.number + 1, group.last.until, None
        if not link.stream:  # number 0: where and why the chain begins
            yield link
            first, place = link.number + 1, link.until
            continue
        group = group or _Group(first, place or link.since, link)
        group.take(link)
        if link.size:
            group.full, size = link.size < size or not size, link.size


class _Group:
    """Consecutive segments that become one."""

    def __init__(self, first: int, since: Facts, link: Link) -> None:
        self._first, self._since, self._at, self.last = first, since, link.at, link
        self._images: dict[int, bytes] = {}
        self.full = False  # the database was cut: later images may be of pages beyond its end

    def take(self, link: Link) -> None:
        """Add the next segment."""
        self.last = link
        for number, page in link.pages():
            self._images[number] = bytes(page)

    def ends_before(self, link: Link, grain: int) -> bool:
        """Return whether the merged segment ends before this one.

        It does if it is full, or if this one has other pages or belongs to another period. In the middle of a
        transaction the last reason does not count.
        """
        if (link.stream, link.page_size) != (self.last.stream, self.last.page_size):
            return True
        if self.full or len(self._images) * self.last.page_size >= MERGED_BYTES:
            return True
        return self.last.size > 0 and link.at.timestamp() // grain != self._at.timestamp() // grain

    def link(self) -> Link:
        """Return the merged segment."""
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
