"""Decides which backups stay and why, and which expire and when.

Pure: no clock, no input or output; it runs in the daemon and in workers.

1. A backup stays if any reason keeps it. Every backup has its reasons, whether it stays or expires.
2. The newest backup stays: the last made, whatever the clock said. The newest `min_proven` proven ones stay. Held ones
   stay.
3. Days, weeks, months and years are those of the policy's zone, and only those that have a backup count; `within` is
   measured from the newest backup, not from now. So if no backups are made, none are lost, whatever the clock says.
   Backups with a later time than the newest one, made while the clock was ahead, are kept in addition.
4. The newest backup of a day (week, ...) represents it; if another one of that day is proven, the newest proven one.
5. A backup whose verification failed represents nothing, and stays for a week after that as evidence. Nor does the
   safety copy of a restore in place: it stays as long as its hold, which is the time for an undo.
6. Deciding twice gives the same result as deciding once, and asking for more never drops more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from dbguardd.frozen import frozen
from dbguardd.rules.backup_state import BackupState, newest_first

EVIDENCE = timedelta(days=7)
BREAKER_COUNT = 3
BREAKER_SHARE = 0.25
_UTC = ZoneInfo("UTC")
_DAY_SECONDS = 86_400


@frozen
class Keep:
    """What the policy asks for."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None
    min_proven: int = 1
    zone: ZoneInfo = _UTC

    @classmethod
    def from_spec(cls, database: Mapping[str, Any]) -> Keep:
        """Return what the member `database` of a job's spec asks for.

        The base of a log stays as long as the log, which could not be restored without it. Where the log is made
        coarser, one backup a day suffices.
        """
        keep = dict(database["keep"])
        seconds = keep.get("within_seconds")
        if database.get("continuous"):
            whole = float(database["keep_log_seconds"])
            fine = min((age for _, age in database.get("thin_log") or ()), default=whole)
            seconds = max(float(seconds or 0), fine)
            keep["daily"] = max(int(keep.get("daily", 0)), math.ceil(whole / _DAY_SECONDS) if fine < whole else 0)
        return cls(
            **{unit: int(keep.get(unit, 0)) for unit in ("last", *_BUCKETS)},
            within=None if seconds is None else timedelta(seconds=float(seconds)),
            min_proven=int(database["min_proven"]),
            zone=ZoneInfo(str(database.get("timezone", "UTC"))),
        )

    @property
    def empty(self) -> bool:
        """True if no rule is set: then everything stays."""
        return self.within is None and not (self.last or any(getattr(self, unit) for unit in _BUCKETS))

    def __str__(self) -> str:
        counts = [f"{unit} {count}" for unit in ("last", *_BUCKETS) if (count := getattr(self, unit))]
        return ", ".join(counts + ([] if self.within is None else [f"within {_days(self.within)}"]))


@frozen
class Verdict:
    """What to do with the backups of one database: reasons by id, newest first.

    `breaker` says why one run may not delete so many without confirmation; empty if it may.
    """

    keep: Mapping[str, tuple[str, ...]]
    drop: Mapping[str, tuple[str, ...]]
    breaker: str = ""


@frozen
class _Claim:
    """A reason to keep one backup; it ends after `ahead` more backups (or days, weeks, ... with a backup)."""

    backup: BackupState
    reason: str
    unit: str
    ahead: int = 0
    until: datetime | None = None


def decide(backups: Sequence[BackupState], keep: Keep, now: datetime) -> Verdict:
    """Return which backups stay and which expire, with reasons."""
    ordered = newest_first(backups)
    kept: dict[str, list[str]] = {}
    for claim in _claims(ordered, keep, now):
        kept.setdefault(claim.backup.id, []).append(claim.reason)
    dropped = {backup.id: (_why_not(backup, keep),) for backup in ordered if backup.id not in kept}
    return Verdict(
        {backup.id: tuple(kept[backup.id]) for backup in ordered if backup.id in kept},
        dropped,
        breaker(len(ordered), len(dropped)),
    )


def breaker(total: int, dropped: int) -> str:
    """Return why one run may not delete `dropped` of `total` backups without confirmation; empty if it may."""
    if dropped <= BREAKER_COUNT or dropped <= total * BREAKER_SHARE:
        return ""
    return f"{dropped} of {total} backups would go; one run deletes at most {BREAKER_COUNT} or {BREAKER_SHARE:.0%}."


def shrinks(backups: Sequence[BackupState], old: Keep, new: Keep, now: datetime) -> Mapping[str, tuple[str, ...]]:
    """Return what a new policy would delete at once that the old one would keep: reasons by id, newest first."""
    stays = decide(backups, old, now).keep
    return {id: reasons for id, reasons in decide(backups, new, now).drop.items() if id in stays}


def departures(
    backups: Sequence[BackupState], keep: Keep, now: datetime, next_run: Callable[[datetime], datetime | None]
) -> Mapping[str, datetime | None]:
    """Return when each backup that stays will expire if all goes well; None: not under present conditions.

    An estimate: it assumes that every planned backup (`next_run`: the first one after a moment) is made and proven.
    """
    ordered = newest_first(backups)
    calendar = _Future(ordered[0] if ordered else None, keep.zone, now, next_run)
    ends: dict[str, datetime | None] = {}
    for claim in _claims(ordered, keep, now):
        end = calendar.end(claim)
        known = ends.get(claim.backup.id, end)
        ends[claim.backup.id] = None if end is None or known is None else max(end, known)
    return ends


def _why_not(backup: BackupState, keep: Keep) -> str:
    if backup.failed:
        return "its verification failed a while ago"
    return "a safety copy that is no longer held" if backup.safety else f"beyond {keep}"


def _claims(ordered: Sequence[BackupState], keep: Keep, now: datetime) -> Iterator[_Claim]:
    """Yield every reason to keep any backup; `ordered` is newest first."""
    for backup in ordered:
        for hold in backup.holds:
            yield _Claim(backup, f'hold "{hold}"', "never")
        if keep.empty:
            yield _Claim(backup, "no rule", "never")
        until = (backup.failed_at or backup.created_at) + EVIDENCE
        if backup.failed and now < until:
            yield _Claim(backup, "evidence", "until", until=until)
    good = [backup for backup in ordered if not (backup.failed or backup.safety)]
    yield from _guarantees(ordered, good, max(1, keep.min_proven))
    for rank, backup in enumerate(good[: keep.last]):
        yield _Claim(backup, f"last {rank + 1} of {keep.last}", "run", keep.last - rank)
    by_time = sorted(good, key=lambda backup: (backup.created_at, backup.id), reverse=True)
    for unit in _BUCKETS if good else ():
        yield from _bucket_claims(by_time, good[0], unit, getattr(keep, unit), keep.zone)
    if keep.within is not None:
        for backup in good:
            if good[0].created_at - backup.created_at <= keep.within:
                end = backup.created_at + keep.within
                yield _Claim(backup, f"within {_days(keep.within)}", "after", until=end)


def _guarantees(ordered: Sequence[BackupState], good: Sequence[BackupState], min_proven: int) -> Iterator[_Claim]:
    if ordered:
        yield _Claim(ordered[0], "newest", "run", 1)
    if good and good[0] is not ordered[0]:
        yield _Claim(good[0], "newest that did not fail", "run", 1)
    for rank, backup in enumerate([backup for backup in good if backup.proven][:min_proven]):
        reason = "newest proven" if rank == 0 else f"proven {rank + 1} of {min_proven}"
        yield _Claim(backup, reason, "run", min_proven - rank)


def _bucket_claims(
    good: Sequence[BackupState], newest: BackupState, unit: str, count: int, zone: ZoneInfo
) -> Iterator[_Claim]:
    """Yield the backups that represent the newest days (weeks, ...); `good` is by time, `newest` the last made."""
    standing: dict[Any, BackupState] = {}
    for backup in good if count else ():
        bucket = _BUCKETS[unit](backup.created_at.astimezone(zone))
        first = standing.setdefault(bucket, backup)
        if backup.proven and not first.proven:
            standing[bucket] = backup
    ahead = [*standing].index(_BUCKETS[unit](newest.created_at.astimezone(zone))) if standing else 0
    for rank, backup in enumerate(standing.values()):
        if rank < ahead:
            yield _Claim(backup, f"{unit}, later than what was made last", "never")
        elif rank < ahead + count:
            yield _Claim(backup, f"{unit} {rank - ahead + 1} of {count}", unit, count - rank + ahead)


def _week(local: datetime) -> date:
    return local.date() - timedelta(days=local.weekday())


_BUCKETS: Mapping[str, Callable[[datetime], Any]] = {
    "hourly": lambda local: (local.date(), local.hour, local.utcoffset()),
    "daily": lambda local: local.date(),
    "weekly": _week,
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: local.year,
}
"""What distinguishes two hours, days, ..., by the wall time of a backup."""

_NEXT_BUCKETS: Mapping[str, Callable[[datetime], date]] = {
    "daily": lambda local: local.date() + timedelta(days=1),
    "weekly": lambda local: _week(local) + timedelta(days=7),
    "monthly": lambda local: (local.date().replace(day=1) + timedelta(days=32)).replace(day=1),
    "yearly": lambda local: date(local.year + 1, 1, 1),
}


@frozen
class _Future:
    """The future backups."""

    newest: BackupState | None
    zone: ZoneInfo
    now: datetime
    next_run: Callable[[datetime], datetime | None]
    ahead: dict[str, list[datetime | None]] = field(default_factory=dict)  # the steps computed so far, by unit

    def end(self, claim: _Claim) -> datetime | None:
        """Return when a claim ends; None: not under present conditions."""
        match claim.unit:
            case "never":
                return None
            case "until":
                return claim.until
            case "after" if claim.until is not None:
                return self.next_run(max(self.now, claim.until))
            case "run":
                return self._steps("run", claim.ahead, self.now, lambda moment: moment)
        first = self.next_run(self.now)
        if first is None or self.newest is None:
            return None
        bucket = _BUCKETS[claim.unit]
        here = bucket(claim.backup.created_at.astimezone(self.zone))
        if bucket(first.astimezone(self.zone)) == here:
            return first  # the next backup will represent this day
        newest = self.newest.created_at
        return self._steps(claim.unit, claim.ahead, newest, lambda moment: self._last_moment(moment, claim.unit))

    def _steps(self, unit: str, count: int, start: datetime, skip: Callable[[datetime], datetime]) -> datetime | None:
        """Return the moment `count` steps after `start`. All claims of a unit share the steps, computed once."""
        moments = self.ahead.setdefault(unit, [start])
        while len(moments) <= count:
            last = moments[-1]
            moments.append(None if last is None else self.next_run(max(self.now, skip(last))))
        return moments[count]

    def _last_moment(self, moment: datetime, unit: str) -> datetime:
        """Return the last microsecond of the hour, day, ... of a moment."""
        local = moment.astimezone(self.zone)
        if unit == "hourly":
            return (
                moment
                + timedelta(hours=1, microseconds=-1)
                - (local - local.replace(minute=0, second=0, microsecond=0))
            )
        start = datetime.combine(_NEXT_BUCKETS[unit](local), time(), self.zone)
        return start.astimezone(UTC) - timedelta(microseconds=1)


def _days(length: timedelta) -> str:
    whole = length == timedelta(days=length.days)
    return f"{length.days}d" if whole else f"{length / timedelta(hours=1):g}h"
