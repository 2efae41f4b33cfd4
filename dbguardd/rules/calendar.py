"""Decides when something runs: the next time, whether it is due now, and what to do about missed runs.

Pure. The daemon asks at every tick, after a restart and after a clock change; the answer depends only on the timing, on
now, and on when the job last started.

1. Missed runs become at most one.
2. A late run is skipped if the next regular one is nearer than a quarter of the interval, but not twice in a row: a
   machine that is off at that time each night would never be backed up. With missed = skip, it is also skipped if it is
   later than its window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Literal
from zoneinfo import ZoneInfo

from dbguardd.frozen import frozen
from dbguardd.policy.schedule import Schedule

LEAST_JITTER_SHARE = 10
CATCH_UP_SHARE = 4
MAX_COUNTED = 1000
CLOCK_TOLERANCE = timedelta(minutes=1)


@frozen
class Timing:
    """One schedule with everything that decides when it runs. `shift` is its jitter, from jitter()."""

    schedule: Schedule
    zone: ZoneInfo
    window: timedelta = timedelta(hours=4)
    missed: Literal["run-once", "skip"] = "run-once"
    shift: timedelta = timedelta(0)


class Verdict(StrEnum):
    """What to do now."""

    WAIT = "wait"
    RUN = "run"
    SKIP = "skip"


@frozen
class Due:
    """What to do now and why. `planned_at` is the latest time that was due; `missed` counts the runs it makes up for.

    `overdue`: it is later than the window allows. `next_at` is the next regular time.
    """

    verdict: Verdict
    next_at: datetime | None
    planned_at: datetime | None = None
    missed: int = 0
    overdue: bool = False
    reason: str = ""


def upcoming(timing: Timing, after: datetime) -> Iterator[datetime]:
    """Yield the planned times strictly after a moment, jitter included, in UTC."""
    return (planned + timing.shift for planned in timing.schedule.after(after - timing.shift, timing.zone))


def next_due(timing: Timing, after: datetime) -> datetime | None:
    """Return the first planned time strictly after a moment; None if there is none for 50 years."""
    return next(upcoming(timing, after), None)


def due(timing: Timing, now: datetime, last_started_at: datetime | None, known_since: datetime) -> Due:
    """Decide whether to run now.

    `last_started_at` is when the job last started, whatever the result; it is the time of the latest start, not the
    greatest time. If it is None, the times since `known_since` count (when the database came into the policy). A start
    more than a minute in the future means that the clock was set back since, and is ignored: that causes one run too
    many, while waiting for that moment would leave a gap of an hour or of seventy years.
    """
    if last_started_at is not None and last_started_at - now > CLOCK_TOLERANCE:
        last_started_at, known_since = None, min(known_since, now - timing.window)
    after = min(last_started_at or known_since, now)
    next_at = next_due(timing, now)
    latest = timing.schedule.latest(now - timing.shift, timing.zone)
    planned = None if latest is None else latest + timing.shift
    if planned is None or planned <= after:
        return Due(Verdict.WAIT, next_at, reason="nothing is due")
    late = now - planned
    overdue = late > timing.window
    missed = _count(timing, after, planned) - 1
    found = Due(Verdict.RUN, next_at, planned, missed, overdue, "catches up on a missed run" if overdue else "planned")
    if overdue and timing.missed == "skip":
        return _skip(found, "missed, and missed = skip")
    if not missed and next_at is not None and (next_at - now) * CATCH_UP_SHARE < next_at - planned:
        return _skip(found, "late, and the next regular run is soon")
    return found


def _skip(found: Due, reason: str) -> Due:
    return Due(Verdict.SKIP, found.next_at, found.planned_at, found.missed, found.overdue, reason)


def _count(timing: Timing, after: datetime, planned: datetime) -> int:
    """Return how many planned times are in (after, planned], at most MAX_COUNTED."""
    times = islice(upcoming(timing, after), MAX_COUNTED)
    return max(1, sum(1 for _ in _until(times, planned)))


def _until(times: Iterator[datetime], last: datetime) -> Iterator[datetime]:
    for moment in times:
        if moment > last:
            return
        yield moment


def jitter(host: str, name: str, bound: timedelta, schedule: Schedule) -> timedelta:
    """Return the fixed delay of this job on this host, in whole seconds.

    It is at least 0, and less than `bound` and than a tenth of the schedule's shortest interval. `host` is any stable
    id of the machine, so that many machines with one policy do not start at the same time.
    """
    gaps = schedule.gaps()
    most = bound if gaps is None else min(bound, gaps[0] / LEAST_JITTER_SHARE)
    seconds = int(most.total_seconds())
    digest = hashlib.blake2b(f"{host}\0{name}".encode(), digest_size=8).digest()
    return timedelta(seconds=int.from_bytes(digest) % seconds if seconds else 0)


def full_due(now: datetime, last_full_at: datetime | None, full_every: timedelta | None) -> bool:
    """Return whether the next backup should store every page again."""
    return full_every is not None and (last_full_at is None or now - last_full_at >= full_every)
