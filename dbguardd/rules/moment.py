"""Decides which moment of a log a restore reaches, and with which backup it begins. Pure.

Every restore, its plan, a proof and a question about the past use these rules. The names of the log's objects tell
which segments they contain and which moment the last one reaches; an object is opened only if that does not suffice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby, takewhile

from dbguardd.facts import LogPosition, turns_in
from dbguardd.frozen import frozen
from dbguardd.rules.backup_state import made_by
from dbguardd.rules.chains import BYTES, Chain, Link, LogView, Piece, end_of

_BURST = timedelta(minutes=1)  # within which many objects may be stored that have the same moment


@frozen
class Base:
    """A backup and where its log continues: after segment `after` of a chain. `place` is its position, if known."""

    id: str
    created_at: datetime
    chain: str = ""  # empty: no log continues from it
    after: int = 0
    place: LogPosition | None = None


@frozen
class Ending:
    """A base and its log up to a segment; the moment is `at`, which is within that segment if it contains bytes."""

    base: Base
    chain: Chain
    link: Link
    at: datetime


def newest(log: LogView, bases: Sequence[Base], alone: Base, wanted: datetime | None) -> Ending | None:
    """Return the newest moment at or before `wanted`; None if that is the backup `alone`, without a log.

    `bases` are all reliable backups, newest first. `alone` is the newest proven one, if any is: a newer log may
    continue from another.
    """
    best: Ending | None = None
    for ending in _endings(log, bases, alone, wanted):
        own = ending.base.id == alone.id
        if ending.at >= best.at if best is not None else own or ending.at >= alone.created_at:
            best = ending
        if own:
            break  # errors of an older log do not matter, whatever the clock said
    return best


def _endings(log: LogView, bases: Sequence[Base], alone: Base, wanted: datetime | None) -> Iterator[Ending]:
    """Yield the newest moment of each chain that has a base, the newest chain first.

    A chain that ends before the backup `alone` and does not continue from it is not even read: it may be damaged. Nor
    is a chain that is older than the one which continues from it, whatever the clock said: ids increase.
    """
    for chain in reversed(log.chains):
        if chain.id < alone.chain or (chain.id != alone.chain and chain.until < alone.created_at):
            continue
        for base in bases_of(chain, bases, wanted):
            link = last_segment(log, chain, base, wanted)
            if link is None or not continues(base.place, end_of(link)):
                continue  # perhaps the log leads there from an older base
            if link.form == BYTES and wanted is not None:
                # At the last segment, too: all in it was committed by then, and perhaps more.
                yield Ending(base, chain, link, min(link.at, wanted))
            else:
                yield Ending(base, chain, link, link.at)
            break


def bases_of(chain: Chain, bases: Iterable[Base], wanted: datetime | None = None) -> Iterator[Base]:
    """Yield the bases of a chain: the backups from which it continues, if made at or before `wanted`."""
    for base in bases:
        goes_on = base.chain == chain.id and chain.first <= base.after + 1 <= chain.last + 1
        if goes_on and (wanted is None or made_by(base.created_at, wanted)):
            yield base


def last_segment(
    log: LogView, chain: Chain, base: Base, wanted: datetime | None, most: int | None = None
) -> Link | None:
    """Return the last segment at or before `wanted` that ends a transaction and reaches past the base.

    Its number is at most `most`. If segments contain bytes of the log, the moment may be within the segment after that.
    """
    reaching = next((link for link in log.links(chain, base.after) if reaches(link, base.place, base.created_at)), None)
    if reaching is None:
        return None
    least, most = max(reaching.number, base.after + 1), chain.last if most is None else most
    pieces = [piece for piece in chain.pieces if piece.last >= least and piece.first <= most]

    def ends(piece: Piece) -> list[Link]:
        return [link for link in log.open(piece) if least <= link.number <= most and link.size]

    past = len(pieces) if wanted is None else sum(1 for _ in takewhile(lambda piece: piece.until <= wanted, pieces))
    found = next((link for piece in reversed(pieces[:past]) for link in reversed(ends(piece))), None)
    for piece in pieces[past:]:  # one, unless the clock was set back: names never go back
        for link in ends(piece):
            if wanted is not None and link.at > wanted:
                return link if link.form == BYTES and not _turns_after(link, wanted) else found
            found = link
    return found


def at_position(log: LogView, bases: Sequence[Base], position: int) -> Ending | None:
    """Return the end of the log at a position: in the newest log, and from the newest base, that reach it."""
    for chain in reversed(log.chains):
        for base in bases_of(chain, bases):
            if base.place is not None and base.place.position < position:
                link = reaching(log, chain, base, position)
                if link is None:
                    break  # an older base does not reach further
                if continues(base.place, end_of(link)):
                    return Ending(base, chain, link, link.at)
    return None


def reaching(log: LogView, chain: Chain, base: Base, position: int) -> Link | None:
    """Return the segment that reaches a position on the way to the end of the log, by the rounds that lead there.

    What was stored of a round beyond the position where it was left is not on that way.
    """
    way = end_of(log.end(chain))
    for link in log.links(chain, base.after + 1):
        until = end_of(link)
        left = way.left(until.round)
        if until.position >= position and (left is None or left >= position):
            return link
    return None


def before(other: Base, later: Base) -> bool:
    """Return whether a backup was made before another one and is not at a later position: a standby lags."""
    if other.place is None or later.place is None or other.place.round != later.place.round:
        return other.id < later.id
    return other.id < later.id and other.place.position <= later.place.position


def up_to(log: LogView, chain: Chain, bases: Sequence[Base], later: Base) -> Ending | None:
    """Return the log that led up to a `later` backup, from one of `bases`, newest first; None if it ends earlier.

    It ends with the last segment that was stored when the later backup began. But if that backup contains the log up to
    an `end`, the moment is that of the backup itself: then replaying the log must result in exactly its state. The log
    must continue past the end, so that a recovery knows that nothing is missing in between.
    """
    if later.place is None or later.place.end is None:
        link = last_segment(log, chain, bases[0], None, later.after)
        return None if link is None else Ending(bases[0], chain, link, link.at)
    far = replace(later.place, position=later.place.end)
    link = next((one for one in log.links(chain, later.after) if reaches(one, far, one.at)), None)
    base = None if link is None else next((base for base in bases if continues(base.place, end_of(link))), None)
    return None if link is None or base is None else Ending(base, chain, link, later.created_at)


def reaches(link: Link, place: LogPosition | None, at: datetime) -> bool:
    """Return whether a segment reaches the place in the log at which a backup was made; see flow.Segment.

    A log that was empty then may have another round when the next commit comes. So it suffices that everything in a
    segment was committed by a moment not before that of the backup.
    """
    if place is None:
        return False
    if not place.position and link.at >= at:
        return True
    until = end_of(link)
    return until.round == place.round and until.position >= place.position


def continues(base: LogPosition | None, until: LogPosition) -> bool:
    """Return whether the log that ends at `until` continues from the place of a backup, without a turn before it.

    What was stored of a round beyond the position where it was left is not part of what follows; see flow.Segment.
    """
    if base is None or base.round == until.round or not until.turns:
        return True
    left = until.left(base.round)
    return left is not None and base.position <= left


def missing_segments(log: LogView, chain: Chain, wanted: datetime | None) -> tuple[int, int] | None:
    """Return the segments that are missing after a part of a chain, if `wanted` is beyond its end; else None."""
    after = next((other for other in log.chains if other.id == chain.id and other.first > chain.last), None)
    if after is None or (wanted is not None and wanted <= chain.until):
        return None
    return chain.last + 1, after.first - 1


def shown_again(log: LogView, ending: Ending, wanted: datetime) -> bool:
    """Return whether the clock showed a moment again after the end of what is restored, because it had been set back.

    Then consecutive objects have the same moment in their names: the greatest that was reached before. The objects of a
    burst do, too; they are not read, because they were stored within a short time.
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
    """Return whether a segment leaves a round after a moment: then the moment is in the old round, all of it."""
    turns = turns_in(link.until)
    return len(turns) > len(turns_in(link.since)) and datetime.fromisoformat(turns[-1].at) > wanted
