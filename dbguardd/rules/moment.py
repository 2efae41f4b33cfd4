"""Which moment of a log a restore reaches, and which backup it begins with. Pure.

Every restore, its plan, a proof and a question about the past ask here. What was stored lies in objects whose names say
which segments they have and what moment the last one reaches; only where that does not settle it, one is looked into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import groupby, takewhile

from dbguardd.facts import LogPosition, turns_in
from dbguardd.rules.chains import BYTES, Chain, Link, LogView, Piece, end_of

_BURST = timedelta(minutes=1)  # in which much is stored that has one moment


@dataclass(frozen=True, slots=True)
class Base:
    """A backup, and where a log goes on from it: behind the segment `after` of a chain. It is of `place`, if known."""

    id: str
    created_at: datetime
    chain: str = ""  # nothing: no log does
    after: int = 0
    place: LogPosition | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """A base with the log put over it, up to a segment, as it was `at`: in the middle of that, if it has bytes."""

    base: Base
    chain: Chain
    link: Link
    at: datetime


def newest(log: LogView, bases: Sequence[Base], alone: Base, wanted: datetime | None) -> Ending | None:
    """Return the newest moment at or before `wanted`; None if that is the backup `alone`, without a log over it.

    `bases` are all that can be relied on, newest first.
    """
    best: Ending | None = None
    for ending in _endings(log, bases, alone, wanted):
        if ending.base.id == alone.id:
            return ending  # it is the newest, whatever the clock said; and what is wrong with an older log is no matter
        if ending.at >= (alone.created_at if best is None else best.at):
            best = ending
    return best


def _endings(log: LogView, bases: Sequence[Base], alone: Base, wanted: datetime | None) -> Iterator[Ending]:
    """Yield the newest moment of each chain that has a backup to begin with, the newest chain first.

    What ends before the backup that is restored alone, and does not go on from it, is not even read: it may be damaged.
    An older log than that which goes on from it does, whatever the clock said: their ids rise.
    """
    for chain in reversed(log.chains):
        if chain.id < alone.chain or (chain.id != alone.chain and chain.until < alone.created_at):
            continue
        for base in bases_of(chain, bases, wanted):
            link = last_segment(log, chain, base, wanted)
            if link is None or not leads(base.place, end_of(link)):
                continue  # from an older one, the log leads there
            if link.form == BYTES and wanted is not None:
                # Also of the last one: what it has was committed by then, and more, perhaps.
                yield Ending(base, chain, link, min(link.at, wanted))
            else:
                yield Ending(base, chain, link, link.at)
            break


def bases_of(chain: Chain, bases: Iterable[Base], wanted: datetime | None = None) -> Iterator[Base]:
    """Yield the backups that a chain goes on from and that were made at or before `wanted`."""
    for base in bases:
        goes_on = base.chain == chain.id and chain.first <= base.after + 1 <= chain.last + 1
        if goes_on and (wanted is None or base.created_at <= wanted):
            yield base


def last_segment(
    log: LogView, chain: Chain, base: Base, wanted: datetime | None, most: int | None = None
) -> Link | None:
    """Return the last segment at or before `wanted` that ends a transaction and reaches past the base.

    Its number is at most `most`. If segments have bytes of the log, the moment may lie within the one after that.
    """
    reaching = next((link for link in log.links(chain, base.after) if holds(link, base.place, base.created_at)), None)
    if reaching is None:
        return None
    least, most = max(reaching.number, base.after + 1), chain.last if most is None else most
    pieces = [piece for piece in chain.pieces if piece.last >= least and piece.first <= most]

    def ends(piece: Piece) -> list[Link]:
        return [link for link in log.open(piece) if least <= link.number <= most and link.size]

    past = len(pieces) if wanted is None else sum(1 for _ in takewhile(lambda piece: piece.until <= wanted, pieces))
    found = next((link for piece in reversed(pieces[:past]) for link in reversed(ends(piece))), None)
    for piece in pieces[past:]:  # one, unless the clock was set back: names do not go back with it
        for link in ends(piece):
            if wanted is not None and link.at > wanted:
                return link if link.form == BYTES and not _turns_after(link, wanted) else found
            found = link
    return found


def at_position(log: LogView, bases: Sequence[Base], position: int) -> Ending | None:
    """Return the end of the log at a position: of the newest log, and from the newest base, that come to it."""
    for chain in reversed(log.chains):
        for base in bases_of(chain, bases):
            if base.place is not None and base.place.position < position:
                link = reaching(log, chain, base, position)
                if link is None:
                    break  # no older one goes on further
                if leads(base.place, end_of(link)):
                    return Ending(base, chain, link, link.at)
    return None


def reaching(log: LogView, chain: Chain, base: Base, position: int) -> Link | None:
    """Return the segment that comes to a position on the way to the end of the log, by the rounds that lead there.

    What is stored of a round behind the position where it was left is on no such way.
    """
    way = end_of(log.end(chain))
    for link in log.links(chain, base.after + 1):
        until = end_of(link)
        left = way.left(until.round)
        if until.position >= position and (left is None or left >= position):
            return link
    return None


def before(other: Base, later: Base) -> bool:
    """Say if a backup was made before another one, and is of no place behind it: a standby lags."""
    if other.place is None or later.place is None or other.place.round != later.place.round:
        return other.id < later.id
    return other.id < later.id and other.place.position <= later.place.position


def up_to(log: LogView, chain: Chain, bases: Sequence[Base], later: Base) -> Ending | None:
    """Return the log that led up to a `later` backup, from one of `bases`, newest first; None if it ends earlier.

    It ends with the last segment that was stored when that one began. But if the log of that is known up to an `end`,
    the moment is that of the backup itself: then the log comes to what that is, or is wrong. It has to go on behind the
    end: so a recovery knows that nothing lies between.
    """
    if later.place is None or later.place.end is None:
        link = last_segment(log, chain, bases[0], None, later.after)
        return None if link is None else Ending(bases[0], chain, link, link.at)
    far = replace(later.place, position=later.place.end)
    link = next((one for one in log.links(chain, later.after) if holds(one, far, one.at)), None)
    base = None if link is None else next((base for base in bases if leads(base.place, end_of(link))), None)
    return None if link is None or base is None else Ending(base, chain, link, later.created_at)


def holds(link: Link, place: LogPosition | None, at: datetime) -> bool:
    """Say if a segment reaches the place in the log that a backup is of; see flow.Segment.

    A log that was empty then may have another round when the next commit comes. So it is enough that all of a segment
    was committed by a moment not before that of the backup.
    """
    if place is None:
        return False
    if not place.position and link.at >= at:
        return True
    until = end_of(link)
    return until.round == place.round and until.position >= place.position


def leads(base: LogPosition | None, until: LogPosition) -> bool:
    """Say if the log that ends at a place goes on from the one that a backup is of, and has not left its round before.

    What was stored of a round behind the position where it was left is no part of what follows; see flow.Segment.
    """
    if base is None or base.round == until.round or not until.turns:
        return True
    left = until.left(base.round)
    return left is not None and base.position <= left


def hole(log: LogView, chain: Chain, wanted: datetime | None) -> tuple[int, int] | None:
    """Return the segments that a log lacks after a chain that ends before its end, if that was wanted."""
    after = next((other for other in log.chains if other.id == chain.id and other.first > chain.last), None)
    if after is None or (wanted is not None and wanted <= chain.until):
        return None
    return chain.last + 1, after.first - 1


def shown_again(log: LogView, ending: Ending, wanted: datetime) -> bool:
    """Say if the clock came to a moment once more, behind the end of what is restored: it had been set back.

    Then objects in a row have the same moment in their names: the one that was reached before. So have those of a
    burst, which are not read: they were stored one after the other, and soon.
    """
    end = ending.link.number
    rest = [piece for piece in ending.chain.pieces if piece.last >= end]
    for number, (reached, row) in enumerate(groupby(rest, key=lambda piece: piece.until)):
        same = list(row)
        burst = timedelta() <= same[-1].stored_at - same[0].stored_at < _BURST
        if (number and burst) or log.open(same[-1])[-1].at >= reached:
            continue
        behind = (link for piece in same for link in log.open(piece) if link.number > end)
        if any(link.at < reached and link.at <= wanted for link in behind):
            return True
    return False


def _turns_after(link: Link, wanted: datetime) -> bool:
    """Say if a segment leaves a round later than a moment: then that is of this round, with all that was stored."""
    turns = turns_in(link.until)
    return len(turns) > len(turns_in(link.since)) and datetime.fromisoformat(turns[-1].at) > wanted
