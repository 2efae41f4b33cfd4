"""Decides which part of a stored log may be deleted because of its age. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile

from dbguardd.rules.chains import Chain, Piece
from dbguardd.rules.clock import LONGEST_REST
from dbguardd.rules.moment import Base


def begin_of(age: timedelta, now: datetime, stored: Iterable[datetime]) -> datetime:
    """Return the moment before which a log is older than `age`. `stored`: when its objects and backups were stored.

    A pause of more than LONGEST_REST between two of them does not count: it may be a clock that has jumped ahead.
    """
    later = now
    for at in sorted((at for at in stored if at <= now), reverse=True):
        if later - at <= LONGEST_REST:
            if later - at >= age:
                break
            age -= later - at
        later = at
    return later - age


def outlived(
    chains: Sequence[Chain], bases: Sequence[Base], start: datetime, ages: Mapping[int, timedelta]
) -> list[Piece]:
    """Return the objects of a log that may be deleted: a prefix of the log, all stored before `start`.

    An object that was made coarser had already reached the age of its grain (`ages`) when it was stored again. These
    stay whatever their age: the log after the newest of `bases` (reliable backups, newest first); the log after each
    base that was made since `start`, because a backup may take hours; the end of the log, from which the follower and
    the next backup continue; and the whole newest chain, as long as no kept backup is its base.
    """
    ends = dict[str, int]()
    for base in [*bases[:1], *(base for base in bases[1:] if base.created_at >= start)]:
        if base.chain:
            ends[base.chain] = min(base.after, ends.get(base.chain, base.after))
    if chains:
        ends[chains[-1].id] = min(ends.get(chains[-1].id, -1), chains[-1].last - 1)
    found: list[Piece] = []
    for chain in chains:
        end = ends.get(chain.id, chain.last)
        old = list(takewhile(lambda piece: _is_old(piece, start, ages) and piece.last <= end, chain.pieces))  # noqa: B023
        found += old
        if len(old) < len(chain.pieces):
            break
    return found


def _is_old(piece: Piece, start: datetime, ages: Mapping[int, timedelta]) -> bool:
    return piece.stored_at < start + ages.get(piece.grain, timedelta())
