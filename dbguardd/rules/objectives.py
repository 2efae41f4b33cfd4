"""Decides the state of a database: safe, late, failing, ..., why, and what to do about it.

Pure. Only a proven backup counts: what could be restored is what a real restore has shown. The state is the worst that
applies; everything else that needs a person is in `attention`, each with a command to paste in `hints`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from dbguardd.frozen import frozen
from dbguardd.states import Health

PATIENCE = 1.5
"""Without an rpo, a database is late if nothing was proven for this many times the planned interval."""

_ORDER = (Health.FAILING, Health.LATE, Health.UNPROVEN, Health.PAUSED, Health.ORPHANED, Health.SAFE)


@frozen
class Facts:
    """What is known of one database. Unknown is None; times are UTC.

    `recoverable_to_at`: when the newest proven backup was made, or up to when the log since then is stored. `interval`:
    the longest planned time between two backups, or between two proofs if that is longer. `overdue_since_at`: the
    planned time of a run that is later than its window. `failures`: failed backups or verifications since the last
    successful one.
    """

    name: str
    in_policy: bool = True
    missing: str = ""  # the path of the live database, or of its server's socket, if nothing is there
    served: bool = False  # it belongs to a server
    lost: str = ""  # why its storage or its key is not available
    unread: bool = False  # its storage has not been read yet: it is not known which backups there are
    backups: int = 0
    newest_at: datetime | None = None
    newest_failure: str = ""  # why the last verification of the newest backup, or a check since then, failed
    newest_doubt: str = ""  # why it is not proven although it was restored and nothing failed
    failed: int = 0  # how many backups failed
    recoverable_to_at: datetime | None = None
    restore_seconds: float | None = None
    rpo: timedelta | None = None
    rto: timedelta | None = None
    interval: timedelta | None = None
    verified: bool = True  # False: verify = "off"
    overdue_since_at: datetime | None = None
    failures: int = 0
    failing_since_at: datetime | None = None
    problem: str = ""
    failed_job: str = ""
    log_problem: str = ""  # why nothing could be restored from its log now, although it should be followed
    paused: bool = False
    paused_until_at: datetime | None = None
    key: str = "main"
    has_recovery: bool | None = None  # None: not known yet


@frozen
class Judgement:
    """What `status` shows: the state, sentences for the user, and commands that help."""

    state: Health
    attention: tuple[str, ...]
    hints: tuple[str, ...]


@frozen
class _Point:
    state: Health
    attention: str = ""
    hint: str = ""


def judge(facts: Facts, now: datetime) -> Judgement:
    """Return the state of a database with all reasons, worst first."""
    points = sorted(_points(facts, now), key=lambda point: _ORDER.index(point.state))
    return Judgement(
        points[0].state if points else Health.SAFE,
        tuple(dict.fromkeys(point.attention for point in points if point.attention)),
        tuple(dict.fromkeys(point.hint for point in points if point.hint)),
    )


def _points(facts: Facts, now: datetime) -> Iterator[_Point]:
    name = facts.name
    if facts.lost:
        what = f"{name}: no backup can be made or restored now: {facts.lost}"
        yield _Point(Health.FAILING if facts.in_policy else Health.ORPHANED, what, f"dbguardctl check {name}")
    if facts.in_policy:
        yield from _of_guarded(facts, now)
        return
    stay = "its backup stays" if facts.backups == 1 else f"its {facts.backups} backups stay"
    what = f"{name}: no longer in the policy; {stay}, no new ones are made"
    yield _Point(Health.ORPHANED, what, f"dbguardctl list {name}")


def _of_guarded(facts: Facts, now: datetime) -> Iterator[_Point]:
    name = facts.name
    if facts.missing and facts.served:
        what = f"{name}: its server is not running: no socket {facts.missing}"
        yield _Point(Health.FAILING, what, f"dbguardctl check {name}")
    elif facts.missing:
        way = f"dbguardctl restore {name} --in-place" if facts.backups else f"ls -l {facts.missing}"
        yield _Point(Health.FAILING, f"{name}: the database file is missing: {facts.missing}", way)
    elif facts.failures:
        yield _failing(facts)
    elif facts.newest_failure:  # another backup was verified since, or it was found damaged
        what = f"{name}: the newest backup is not reliable: {facts.newest_failure}"
        yield _Point(Health.FAILING, what, f"dbguardctl backup {name} --verify")
    if older := facts.failed - bool(facts.newest_failure):
        what = f"{name}: {older} of its older backups are not reliable; without a hold they are deleted after a week"
        yield _Point(Health.SAFE, what, f"dbguardctl list {name} --all --why")
    if facts.paused:
        until = "until it is resumed" if facts.paused_until_at is None else f"until {_utc(facts.paused_until_at)}"
        yield _Point(Health.PAUSED, f"{name}: paused {until}", f"dbguardctl resume {name}")
    yield from _behind(facts, now)
    if (
        facts.rto is not None
        and facts.restore_seconds is not None
        and facts.restore_seconds > facts.rto.total_seconds()
    ):
        took, goal = length(timedelta(seconds=facts.restore_seconds)), length(facts.rto)
        yield _Point(Health.SAFE, f"{name}: a restore takes {took}, longer than the goal of {goal}")
    if facts.has_recovery is False:
        what = f"{name}: without this machine nobody can read its backups: key {facts.key} has no recovery recipient"
        yield _Point(Health.SAFE, what, f"dbguardctl key recovery-sheet {facts.key}")


def _behind(facts: Facts, now: datetime) -> Iterator[_Point]:
    """Yield what keeps the newest data from being restorable."""
    name = facts.name
    if facts.recoverable_to_at is None:
        yield _unproven(facts)
    else:
        yield from _late(facts, now, facts.recoverable_to_at)
    if facts.newest_doubt:
        what = f"{name}: the newest backup is not proven: {facts.newest_doubt}"
        yield _Point(Health.UNPROVEN, what, f"dbguardctl list {name}")
    if facts.log_problem:
        yield _Point(Health.LATE, f"{name}: {facts.log_problem}", f"dbguardctl log {name}")
    if facts.overdue_since_at is not None and not facts.paused:
        what = f"{name}: overdue, due at {_utc(facts.overdue_since_at)}"
        yield _Point(Health.LATE, what, f"dbguardctl job list --database {name}")


def _failing(facts: Facts) -> _Point:
    times = "the last run" if facts.failures == 1 else f"{facts.failures} runs"
    since = f" since {_utc(facts.failing_since_at)}" if facts.failing_since_at and facts.failures > 1 else ""
    problem = facts.problem.removeprefix(f"{facts.name}: ")
    what = f"{facts.name}: {times} failed{since}" + (f": {problem}" if problem else "")
    look = f"show {facts.failed_job}" if facts.failed_job else f"list --database {facts.name}"
    return _Point(Health.FAILING, what, f"dbguardctl job {look}")


def _unproven(facts: Facts) -> _Point:
    name = facts.name
    if facts.newest_at is None and facts.unread:
        return _Point(Health.UNPROVEN, f"{name}: its backups have not been read yet, so none are known")
    if facts.newest_at is None:
        return _Point(Health.UNPROVEN, f"{name}: there is no backup yet", f"dbguardctl backup {name} --verify")
    why = "" if facts.verified else ' (verify = "off")'
    what = f"{name}: a backup exists, but none has ever been proven by a restore{why}"
    return _Point(Health.UNPROVEN, what, f"dbguardctl verify {name}")


def _late(facts: Facts, now: datetime, proven_at: datetime) -> Iterator[_Point]:
    age = now - proven_at
    if facts.rpo is not None:
        limit, goal = facts.rpo, f"the goal is {length(facts.rpo)}"
    elif facts.interval is not None:
        limit, goal = facts.interval * PATIENCE, f"the schedule is every {length(facts.interval)}"
    else:
        return
    if age <= limit:
        return
    what = f"{facts.name}: the newest proven backup is {length(age)} old, {goal}"
    newer = facts.newest_at is not None and facts.newest_at > proven_at
    yield _Point(Health.LATE, what, f"dbguardctl {'verify' if newer else 'backup'} {facts.name}")


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def length(span: timedelta) -> str:
    """Return a duration for people, in its two largest units: "3 d 4 h", "15 min"."""
    seconds = span.total_seconds()
    if seconds < 60:
        return f"{seconds:.3g} s"
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)
