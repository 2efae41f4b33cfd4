"""How much of a stored log may go, by its age. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile

from dbguardd.rules.chains import Chain, Piece
from dbguardd.rules.moment import Base


def outlived(
    chains: Sequence[Chain], bases: Sequence[Base], start: datetime, ages: Mapping[int, timedelta]
) -> list[Piece]:
    """Return the objects of a log that may go: those that were stored before `start`, from the beginning of the log on.

    An object that was made coarser had the age of its grain (`ages`) already when it was stored anew. These stay
    however old they are: what goes on from the newest of `bases` (backups that can be relied on, newest first); what
    goes on from one that was made since `start`, as a backup may take hours; the end of the log, from which the
    follower and the next backup go on; and all of the newest chain, as long as no backup that is kept goes on from it.
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
