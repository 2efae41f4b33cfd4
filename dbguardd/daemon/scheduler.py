"""Starts what is due. The only importer of `schedule`, which serves as the registry and the ticker.

`schedule` does not decide when something is due: it computes local times without zones, so that "every 15 min" leaves a
gap of 75 minutes in autumn, and it forgets everything at a restart. Due times come from rules/calendar, and the last
runs from the catalog. So _Recurring replaces both of schedule's decisions (should_run, _schedule_next_run), and keeps
its list of jobs, their order and their running.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import schedule

from dbguardd.catalog import Catalog, Run, to_moment, to_text
from dbguardd.daemon.clock import Clock
from dbguardd.daemon.events import Events
from dbguardd.daemon.live import DELETING
from dbguardd.errors import Busy, GuardError, Interrupted
from dbguardd.frozen import frozen
from dbguardd.rules.calendar import CLOCK_TOLERANCE, Due, Timing, Verdict, due, upcoming
from dbguardd.rules.clock import Reading, doubt

NEVER = datetime.max.replace(tzinfo=UTC)
LONGEST_SLEEP = 60.0  # seconds for which a step of the clock or a suspension may go unnoticed
STEP = timedelta(seconds=2)
DOUBT_SECONDS = 86_400.0
REFUSED_FOR = timedelta(minutes=15)
_DOUBT = "clock_doubt"  # until when (steady seconds), a space, and why


@frozen
class Planned:
    """One verb on one target (a database, or `storage:NAME`) with its timing."""

    target: str
    verb: str
    timing: Timing


@frozen
class Upcoming:
    """A future run."""

    at: datetime
    target: str
    verb: str
    paused: bool


class Scheduler:
    """All planned runs. `start` submits one; it raises Busy if the same job waits or runs already."""

    def __init__(self, catalog: Catalog, clock: Clock, start: Callable[[Planned], None], events: Events) -> None:
        self._catalog = catalog
        self._clock = clock
        self._start = start
        self._events = events
        self._registry = schedule.Scheduler()
        self._served: dict[tuple[str, str], datetime] = {}  # submitted by this daemon, perhaps not ended yet
        self._skipped: dict[tuple[str, str], datetime] = {}
        self._refused: dict[tuple[str, str], datetime] = {}  # when to try again
        self._known: dict[tuple[str, str], datetime] = {}  # since when new ones are planned, until the catalog has it
        self._read = (clock.now(), clock.steady())
        self._doubt_until: float | None = None
        self._doubted = ""
        self._resume_doubt()
        alive_at = catalog.settings.get("alive_at")
        if alive_at is not None:
            self._check(Reading(to_moment(alive_at), 0.0, "before"), Reading(*self._read))

    def plan(self, planned: Iterable[Planned]) -> None:
        """Replace everything that is planned, or nothing; a new item is due from now on.

        A catalog that cannot be written does not keep a run from being planned. Raises an error if it cannot be read.
        """
        registry, now = schedule.Scheduler(), self._clock.now()
        items = list(planned)
        self._refused.clear()  # the reason may be gone
        new = [key for item in items if self._catalog.runs.get(*(key := (item.target, item.verb))) is None]
        self._known = {key: self._known.get(key, now) for key in new}
        try:
            with self._catalog.transaction():
                for key, since in self._known.items():
                    self._catalog.runs.put(Run(*key, known_at=to_text(since)))
        except GuardError as error:
            self._events.log("schedule.failed", {"problem": error.problem()})
        for item in items:
            _Recurring(registry, item, self._clock, self.next_look).do(self._serve, item)
        self._registry = registry

    def tick(self) -> float:
        """Start what is due; return the number of seconds until the next look."""
        self.doubt()
        self._registry.run_pending()
        times = [job.when for job in self._jobs()]
        wait = (min(times) - self._clock.now()).total_seconds() if times else LONGEST_SLEEP
        return min(max(wait, 0.0), LONGEST_SLEEP)

    def reconsider(self, target: str | None = None) -> None:
        """Recompute when the jobs of a target (or all) are next: a run ended, a pause began or ended."""
        for job in self._jobs():
            if target is None or job.planned.target == target:
                job._schedule_next_run()

    def judge(self, planned: Planned) -> Due:
        """Return what the calendar says about one planned run now."""
        key, now = (planned.target, planned.verb), self._clock.now()
        memory = self._catalog.runs.get(*key)
        known = self._known.get(key, now) if memory is None else to_moment(memory.known_at)
        starts = [self._served[key]] if key in self._served else []
        if memory is not None and memory.started_at is not None:
            starts.append(to_moment(memory.started_at))
        # A start in the future dates from before the clock was set back: only starts since then count.
        starts = [at for at in starts if at - now <= CLOCK_TOLERANCE] or starts
        return due(planned.timing, now, max(starts, default=None), known)

    def next_look(self, planned: Planned) -> datetime:
        """Return when to look at this planned run next: now if it is due."""
        now = self._clock.now()
        pause = self._catalog.pauses.active(to_text(now)).get(planned.target)
        if pause is not None:
            return NEVER if pause.until_at is None else to_moment(pause.until_at)
        verdict = self.judge(planned)
        if verdict.verdict is Verdict.RUN and not (planned.verb in DELETING and self.doubt() is not None):
            return max(now, self._refused.get((planned.target, planned.verb), now))
        return verdict.next_at or NEVER

    def next_run(self, target: str, verbs: Collection[str]) -> tuple[datetime, str] | None:
        """Return the next planned run of one of these verbs on a target; None if there is none."""
        jobs = [job for job in self._jobs() if job.planned.target == target and job.planned.verb in verbs]
        jobs = [job for job in jobs if job.when != NEVER]
        first = min(jobs, key=lambda job: job.when, default=None)
        return None if first is None else (first.when, first.planned.verb)

    def planned(self) -> list[Planned]:
        """Return everything that is planned."""
        return [job.planned for job in self._jobs()]

    def upcoming(self, count: int) -> list[Upcoming]:
        """Return the next `count` planned runs in order; those that fall into a pause are marked."""
        now = self._clock.now()
        pauses = self._catalog.pauses.active(to_text(now))
        found = []
        for item in self.planned():
            pause = pauses.get(item.target)
            end = None if pause is None else NEVER if pause.until_at is None else to_moment(pause.until_at)
            for at in islice(upcoming(item.timing, now), count):
                found.append(Upcoming(at, item.target, item.verb, end is not None and at < end))
        return sorted(found, key=lambda run: (run.at, run.target, run.verb))[:count]

    def doubt(self) -> str | None:
        """Return why the daemon deletes nothing by itself now; None if the clock is trusted."""
        self._watch_clock()
        if self._doubt_until is None:
            return None
        left = self._doubt_until - self._clock.steady()
        if left <= 0:
            self._doubt_until = None
            self._keep_doubt("")
            self.reconsider()
            return None
        return f"{self._doubted} Nothing is deleted by schedule for another {left / 3600:.1f} h."

    def _jobs(self) -> list[_Recurring]:
        return [job for job in self._registry.get_jobs() if isinstance(job, _Recurring)]

    def _serve(self, planned: Planned) -> None:
        key, now = (planned.target, planned.verb), self._clock.now()
        if planned.target in self._catalog.pauses.active(to_text(now)):
            return
        if planned.verb in DELETING and self.doubt() is not None:
            return
        verdict = self.judge(planned)
        if verdict.verdict is Verdict.SKIP and verdict.planned_at and self._skipped.get(key) != verdict.planned_at:
            self._skipped[key] = verdict.planned_at
            self._events.note("run.skipped", *_about(planned, {"reason": verdict.reason}))
        if verdict.verdict is not Verdict.RUN:
            return
        facts: Mapping[str, Any] = {"planned_at": verdict.planned_at and to_text(verdict.planned_at)}
        if verdict.missed or verdict.overdue:
            facts = {**facts, "missed": verdict.missed, "overdue": verdict.overdue}
        try:
            self._start(planned)
        except Busy:
            pass  # the same job was started otherwise, which serves as well
        except Interrupted:  # the daemon is stopping; the next one finds it due
            self._refused[key] = now + REFUSED_FOR
            return
        except GuardError as error:
            self._refused[key] = now + REFUSED_FOR
            self._events.note("run.refused", *_about(planned, {**facts, "problem": error.problem()}))
            self._remember_refusal(planned, error)
            return
        self._served[key] = now
        database, about = _about(planned, facts)
        self._events.log("run.started", {"database": database, **about})

    def _remember_refusal(self, planned: Planned, error: GuardError) -> None:
        """Record a refusal as a failure of the run: no job exists that status could report. It stays due."""
        now = to_text(self._clock.now())
        with suppress(GuardError):  # the catalog itself is the usual reason of a refusal
            old = self._catalog.runs.get(planned.target, planned.verb) or Run(planned.target, planned.verb, now)
            self._catalog.runs.put(
                replace(
                    old,
                    finished_at=now,
                    failures=old.failures + 1,
                    failing_since_at=old.failing_since_at or now,
                    job=None,
                    problem=error.problem(),
                )
            )

    def _watch_clock(self) -> None:
        wall, steady = self._clock.now(), self._clock.steady()
        before, self._read = self._read, (wall, steady)
        step = (wall - before[0]) - timedelta(seconds=steady - before[1])
        if abs(step) <= STEP:
            return
        self._events.note("clock.stepped", None, {"seconds": round(step.total_seconds(), 3)})
        self._served = {key: min(at, wall) for key, at in self._served.items()}
        self._refused = {key: min(at, wall + REFUSED_FOR) for key, at in self._refused.items()}
        self._check(Reading(*before), Reading(*self._read))
        self.reconsider()

    def _check(self, before: Reading, after: Reading) -> None:
        why = doubt(before, after)
        if why:
            self._doubt(why, DOUBT_SECONDS)
            self._events.note("clock.doubted", None, {"problem": why})

    def _doubt(self, why: str, seconds: float) -> None:
        self._doubted, self._doubt_until = why, self._clock.steady() + seconds
        self._keep_doubt(f"{self._doubt_until} {why}")

    def _keep_doubt(self, text: str) -> None:
        with suppress(GuardError):  # a full catalog must not stop the schedule
            self._catalog.settings.put(_DOUBT, text)

    def _resume_doubt(self) -> None:
        """Continue the doubt of an earlier daemon, which alone saw the clock jump.

        A reboot restarts the steady clock: then the doubt lasts for what it had left of the earlier uptime, but for a
        day at most.
        """
        until, _, why = (self._catalog.settings.get(_DOUBT) or "").partition(" ")
        left = float(until or 0) - self._clock.steady()
        if left > 0:
            self._doubt(why, min(left, DOUBT_SECONDS))


def _about(planned: Planned, facts: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the database of a planned run, None if it is on a storage, and its facts."""
    storage = planned.target.removeprefix("storage:")
    known = {"verb": planned.verb, **facts}
    return (planned.target, known) if storage == planned.target else (None, {**known, "storage": storage})


class _Recurring(schedule.Job):
    """A job of the registry whose times come from the calendar and the catalog: aware, in UTC."""

    def __init__(
        self,
        registry: schedule.Scheduler,
        planned: Planned,
        clock: Clock,
        next_look: Callable[[Planned], datetime],
    ) -> None:
        super().__init__(1, registry)
        self.planned = planned
        self._clock = clock
        self._next_look = next_look
        self.next_run = NEVER

    @property
    def when(self) -> datetime:
        """When to look at it next."""
        return self.next_run or NEVER

    @property
    def should_run(self) -> bool:
        """True if it is time to look at it."""
        return self._clock.now() >= self.when

    def _schedule_next_run(self) -> None:
        self.next_run = self._next_look(self.planned)
