"""Decides to which moments a database can be restored by its log. Pure.

A log continues from a backup. So a covered range begins with its oldest reliable backup, and a log without one covers
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime

from dbguardd.frozen import frozen
from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.chains import Chain
from dbguardd.rules.moment import Base, bases_of


@frozen
class TimeRange:
    """Every moment from `since` to `until`; or with a grain, one moment in each period of that many seconds."""

    since: datetime
    until: datetime
    grain_seconds: int = 0


@frozen
class Logged:
    """A log without a gap; `thinned` maps a grain in seconds to the moment up to which the log has that grain."""

    since: datetime
    until: datetime
    thinned: Mapping[int, datetime] = field(default_factory=dict)


def logged(chain: Chain, bases: Iterable[Base]) -> Logged:
    """Return which part of a chain is left. Its beginning may have been deleted, up to where it continues from a base.

    The deletion works like that; and the name of an object tells only the moment of its end, not of its beginning.
    """
    since = chain.begun_at
    if chain.first:
        since = min([chain.pieces[0].until, *(base.created_at for base in bases_of(chain, bases))])
    return Logged(since, chain.until, {piece.grain: piece.until for piece in chain.pieces if piece.grain})


def coverage(logs: Iterable[Logged], backups: Sequence[BackupState]) -> list[TimeRange]:
    """Return what can be restored of the logs, oldest first."""
    sound = sorted(backup.created_at for backup in backups if not backup.failed and not backup.safety)
    found = list[TimeRange]()
    for log in logs:
        begins = next((moment for moment in sound if log.since <= moment <= log.until), None)
        if begins is not None:
            found += _by_grain(begins, log)
    return sorted(found, key=lambda covered: covered.since)


def _by_grain(since: datetime, log: Logged) -> Iterator[TimeRange]:
    """Yield the parts of a log that have one grain, coarsest (and so oldest) first; each continues the one before."""
    for grain, until in sorted([*log.thinned.items(), (0, log.until)], reverse=True):
        if min(until, log.until) > since or not grain:
            yield TimeRange(since, min(until, log.until), grain)
            since = until
