"""Runs jobs: each in its own worker, as many at a time as the policy allows, none twice, all to a recorded end.

1. An accepted job ends as done, failed, cancelled or interrupted, and its end is recorded in the catalog. Jobs that an
   earlier daemon left unfinished are marked as interrupted.
2. A report of a worker is in the catalog (event and effect in one transaction) before anything follows from it.
3. Before a job that destroys or replaces data starts, its intent is in the audit log.
4. Progress lives in memory; only its last state is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from dbguardd.catalog import Audit, Catalog, to_moment, to_text
from dbguardd.catalog.effects import EFFECTS
from dbguardd.daemon.answers import Answers
from dbguardd.daemon.environment import Environment
from dbguardd.daemon.events import Events
from dbguardd.daemon.live import DELETING, RETRIED, SECRET, UNIQUE, LiveJob, Order, startable
from dbguardd.daemon.recorder import Recorder
from dbguardd.errors import (
    Busy,
    Cancelled,
    ClockDoubt,
    GuardError,
    Internal,
    Interrupted,
    Overloaded,
    Stalled,
    WorkerDied,
    from_problem,
)
from dbguardd.states import JobState
from dbguardd.wire import JobRow

MAX_WAITING = 500
_RING_SECONDS = 0.5
_CUT_SHORT = (WorkerDied, Stalled, Cancelled)
Reports = list[tuple[str, Mapping[str, Any]]]


class Runner:
    """All jobs of this daemon. Use it from the thread of the event loop."""

    def __init__(self, catalog: Catalog, audit: Audit, environment: Environment, max_jobs: int = 2) -> None:
        self._catalog = catalog
        self._environment = environment
        self._waiting: list[LiveJob] = []
        self._running: dict[str, LiveJob] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rung = 0.0
        self.max_jobs = max_jobs
        self.accepting = True
        self.events = Events(catalog, environment.now, environment.log)
        self.wakeup = self.events.wakeup
        self.answers = Answers()
        self._recorder = Recorder(catalog, audit, environment, self.events)
        self.on_end: Callable[[JobRow], None] = lambda row: None
        self.on_doubt: Callable[[str], None] = lambda storage: None
        """Called with a storage when a job may have done more there than it reported, or when it can be read again."""
        self.clock_doubt: Callable[[], str | None] = lambda: None
        """Returns why nothing may be deleted now unless a user asks for it; None if the clock is trusted."""

    @property
    def trouble(self) -> GuardError | None:
        """Why the last end of a job could not be recorded; None if it was."""
        return self._recorder.trouble

    # ------------------------------------------------------------------------------------------------ asking

    def submit(self, order: Order) -> JobRow:
        """Queue a job and return its row. Raises Busy, Overloaded, Interrupted, and what `terms` raises."""
        if not self.accepting:
            raise Interrupted("dbguardd is stopping and accepts no new jobs")
        terms = self._environment.terms(order)
        for live in self._live():
            if order.verb in UNIQUE and live.same_as(order, terms.storage):
                if live in self._waiting and live.awaited_by(order):
                    live.not_before = 0.0
                    self._pump()
                    return replace(live.row)
                raise live.in_the_way(order.database or terms.storage)
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{len(self._waiting)} jobs are waiting already")
        now = self._environment.now()
        row = JobRow(
            id=self._environment.new_id(now),
            verb=order.verb,
            database=order.database,
            state=JobState.QUEUED,
            actor=order.who.user,
            request=dict(order.request),
            created_at=to_text(now),
        )
        live = LiveJob(row, order, terms)
        with self._catalog.transaction():
            self._catalog.jobs.put(row, terms.storage)
            self._recorder.tell("job.queued", live, {"actor": row.actor})
        self._waiting.append(live)
        self._pump()
        return replace(row)

    def job(self, prefix: str) -> JobRow:
        """Return the job whose id is, or begins with, `prefix`, in its present state. Raises NotFound, Usage."""
        return self._as_it_is(self._catalog.jobs.get(prefix))

    def jobs(self, database: str | None, state: str | None, limit: int) -> list[JobRow]:
        """Return jobs in their present state, the newest first."""
        return [self._as_it_is(row) for row in self._catalog.jobs.find(database, state, limit)]

    def active(self, target: str) -> JobRow | None:
        """Return the job that runs for a database, or the scan of `storage:NAME`; else the first that waits."""
        verb = "scan" if target.startswith("storage:") else ""
        jobs = [live for live in self._live() if live.target == target and verb in ("", live.row.verb)]
        return replace(jobs[0].row) if jobs else None

    async def wait(self, id: str, seconds: float) -> JobRow:
        """Return the job when it has ended, or its state after `seconds`. Raises NotFound."""
        live = self._find(id)
        if live is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await live.ended.wait()
            return replace(live.row)
        return self.job(id)

    async def perform(self, order: Order) -> Mapping[str, Any]:
        """Run a job to its end and return the result including its secrets. Raises the job's problem."""
        live = self._find(self.submit(order).id)
        if live is None:
            raise Internal(f"{order.verb}: the job was lost")
        await live.ended.wait()
        if live.row.problem is not None:
            raise from_problem(live.row.problem)
        return live.outcome

    def cancel(self, prefix: str, by: str) -> JobRow:
        """Remove a waiting job, or ask a running one to stop. Raises NotFound; Busy if it has ended."""
        row = self.job(prefix)
        live = self._find(row.id)
        if live is None:
            raise Busy(f"job {row.id} has already ended: {row.state}", hints=[f"dbguardctl job show {row.id}"])
        live.cancelled_by = by
        live.cancel.set()
        if live in self._waiting:
            self._waiting.remove(live)
            self._end(live, JobState.CANCELLED, Cancelled(f"job {row.id} was cancelled by {by} before it started"))
            self._pump()
        return replace(live.row)

    # ------------------------------------------------------------------------------------------------ life

    def close_leftovers(self) -> int:
        """Mark the jobs that an earlier daemon left unfinished as interrupted; return how many."""
        rows = self._catalog.jobs.unfinished()
        now = to_text(self._environment.now())
        for row in rows:
            error = Interrupted(f"job {row.id} was interrupted when dbguardd stopped", detail=f"It was {row.state}.")
            self._recorder.say_what_is_live(row, error)
            ended = replace(row, state=JobState.INTERRUPTED, finished_at=now, problem=error.problem())
            with self._catalog.transaction():
                self._catalog.jobs.put(ended, None)
                facts = {"verb": row.verb, "problem": ended.problem}
                self.events.tell("job.interrupted", row.database, row.id, facts)
        return len(rows)

    async def stop(self, seconds: float) -> None:
        """Accept no more jobs, ask the running ones to stop at their next safe point, and wait for their ends."""
        self.accepting = False
        self.answers.close()
        if self._timer is not None:
            self._timer.cancel()
        for live in (*self._waiting,):
            self._waiting.remove(live)
            never = Interrupted(f"job {live.row.id} did not start before the daemon ended")
            self._end(live, JobState.INTERRUPTED, never)
        for live in self._running.values():
            live.cancel.set()
        tasks = [live.task for live in self._running.values() if live.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def idle(self) -> bool:
        """True if no job runs or waits."""
        return not self._waiting and not self._running

    def wake(self, database: str = "") -> None:
        """Start what may run now: the policy may have changed. Retries of `database` that wait need not wait longer."""
        for live in self._waiting if database else ():
            live.not_before = 0.0 if live.row.database == database else live.not_before
        self._pump()

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()  # read once: a job due between two reads would be neither started nor waited for
        for live in startable(self._waiting, self._running.values(), now, self.max_jobs):
            self._waiting.remove(live)
            self._running[live.row.id] = live
            live.task = loop.create_task(self._run(live), name=f"job-{live.row.id}")
        later = [live.not_before for live in self._waiting if live.not_before > now]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(min(later), self._pump) if later else None

    async def _run(self, live: LiveJob) -> None:
        """Run one attempt, from start to consequences; whatever happens, the job gets an end and other jobs can run."""
        error: GuardError | None = None
        try:
            self._start(live)
            live.outcome = await self._work(live)
        except GuardError as problem:
            error = problem
        except asyncio.CancelledError:
            error = Interrupted(f"job {live.row.id} did not stop in time and was killed with the daemon")
        except Exception as bug:  # noqa: BLE001 - a bug fails this job, not the daemon
            error = self._crashed(live, bug)
        del self._running[live.row.id]
        try:
            self._conclude(live, error)
        except Exception as bug:  # noqa: BLE001 - as above
            error = self._crashed(live, bug)
            if not live.ended.is_set():
                self._end(live, JobState.FAILED, error)
        finally:
            if self.accepting:
                self._pump()

    def _crashed(self, live: LiveJob, bug: Exception) -> Internal:
        self.events.log("job.crashed", {"job": live.row.id, "database": live.row.database}, bug)
        return Internal(f"job {live.row.id} failed because of a bug", detail=repr(bug))

    def _conclude(self, live: LiveJob, error: GuardError | None) -> None:
        """End the job or queue it for a retry, and submit the jobs that follow from it."""
        if error is None:
            self._follow(live)
            self._end(live, JobState.DONE, None)
        elif not self.accepting and isinstance(error, Cancelled | Interrupted) and not live.cancelled_by:
            self._end(live, JobState.INTERRUPTED, Interrupted(f"job {live.row.id} was stopped with the daemon"))
        elif isinstance(error, Cancelled):
            self._end(live, JobState.CANCELLED, error)
        elif not self._again(live, error):
            self._end(live, JobState.FAILED, error)
        if live.row.verb == "scan" or not self.accepting:
            return
        scan = self._catalog.runs.get(f"storage:{live.terms.storage}", "scan")
        readable_again = error is None and not live.errand and scan is not None and scan.problem is not None
        if isinstance(error, _CUT_SHORT) or live.unheard or readable_again:
            self.on_doubt(live.terms.storage)

    def _start(self, live: LiveJob) -> None:
        row, now = live.row, self._environment.now()
        live.attempt_started_at = to_text(now)
        live.terms = self._environment.terms(live.order)  # the policy may have changed since submit
        row.state = JobState.RUNNING
        row.started_at = row.started_at or live.attempt_started_at
        self._recorder.announce(live)
        with self._catalog.transaction():
            self._catalog.jobs.put(row, live.terms.storage)
            self._recorder.tell("job.started", live, {"attempt": row.attempt})

    async def _work(self, live: LiveJob) -> Mapping[str, Any]:
        row = live.row
        storage = dict(live.terms.spec["storage"])
        seen = self._catalog.settings.get(f"repository:{live.terms.storage}")
        if seen is not None:
            storage["repository_id"] = seen
        spec = {
            **live.terms.spec,
            "storage": storage,
            "job": row.id,
            "verb": row.verb,
            "request": {**row.request, **live.order.hidden},
            "actor": row.actor,
            "state": self._environment.state,
        }
        index: Reports | None = [] if row.verb == "scan" else None

        def on_message(message: dict[str, Any]) -> None:
            live.unheard = True  # if this raises, the worker has done something that the catalog does not know
            self._heard(live, message, index)
            live.unheard = False

        terms = live.terms
        try:
            async with asyncio.timeout(terms.limit_seconds) as limit:
                result = await self._environment.run_worker(
                    spec, on_message, live.cancel, stall_timeout=terms.stall_seconds
                )
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Stalled(
                f"the job did not finish within job_timeout, {terms.limit_seconds:g} s",
                detail=f"It was at step {row.step or 'none'}, {row.done_bytes} bytes.",
            ) from error
        if index is not None:
            count = self._catalog.replay(live.terms.storage, index, self._environment.now())
            self._recorder.tell("catalog.indexed", live, {"storage": live.terms.storage, "facts_read": count})
        return result

    def _heard(self, live: LiveJob, message: Mapping[str, Any], index: Reports | None) -> None:
        if message.get("type") == "progress":
            live.advance(message)
            now = asyncio.get_running_loop().time()
            if now - self._rung >= _RING_SECONDS:
                self._rung = now
                self.wakeup.wake()
        elif message.get("type") == "answer":
            self.answers.put(live.row.id, live.order.who.uid, message["file"])
        elif message.get("type") == "report":
            event, facts = str(message["event"]), dict(message.get("facts") or {})
            if event == "backup.stored":
                facts.setdefault("storage", live.terms.storage)
            if index is not None and event in EFFECTS:
                index.append((event, facts))
            else:
                self._recorder.tell(event, live, facts)

    def _follow(self, live: LiveJob) -> None:
        """Submit the job that follows from a success, and name it in the result: a verification, or an expiry.

        A backup is verified first if that was asked for; then old backups may expire. After a failed proof they do not:
        it is evidence.
        """
        row, terms = live.row, live.terms
        if row.database is None or not self.accepting or live.dry:
            return
        proving = row.verb == "backup" and bool(row.request.get("verify") or terms.verify_after)
        if proving:
            request = {"database": row.database, "backup": live.outcome.get("backup", {}).get("id", "")}
            job = self._submit_quietly(Order("verify", request, live.order.who, row.database, after_backup=True))
            live.outcome = {**live.outcome, "verify_job": job}
        elif terms.expire_after and (row.verb == "backup" or live.order.after_backup):
            job = self._submit_quietly(Order("expire", {"database": row.database}, live.order.who, row.database))
            live.outcome = {**live.outcome, "expire_job": job}

    def _submit_quietly(self, order: Order) -> str | None:
        try:
            if order.verb in DELETING and (why := self.clock_doubt()) is not None:
                raise ClockDoubt(why)
            return self.submit(order).id
        except GuardError as error:
            self.events.note("job.refused", order.database, {"verb": order.verb, "problem": error.problem()})
            return None

    def _again(self, live: LiveJob, error: GuardError) -> bool:
        """Queue the job for a retry if that can help and the window is still open; a dry run is never retried."""
        row, terms = live.row, live.terms
        in_vain = live.dry or row.verb not in RETRIED or not error.transient
        if in_vain or row.attempt > terms.retries or not self.accepting:
            return False
        wait = terms.wait_seconds * terms.backoff ** (row.attempt - 1) * (0.75 + 0.5 * self._environment.random())
        if (self._environment.now() - to_moment(row.created_at)).total_seconds() + wait > terms.window_seconds:
            return False
        row.state, row.attempt = JobState.QUEUED, row.attempt + 1
        row.step, row.done_bytes, row.total_bytes = "", 0, None
        row.problem = {**error.problem(), "next_try_at": to_text(self._environment.now() + timedelta(seconds=wait))}
        live.not_before = asyncio.get_running_loop().time() + wait
        try:
            with self._catalog.transaction():
                self._catalog.jobs.put(row, terms.storage)
                facts = {"wait_seconds": round(wait, 3), "attempt": row.attempt, "problem": row.problem}
                self._recorder.tell("job.retrying", live, facts)
        except GuardError:
            return False
        self._waiting.append(live)
        return True

    def _end(self, live: LiveJob, state: JobState, error: GuardError | None) -> None:
        row = live.row
        row.state, row.finished_at = state, to_text(self._environment.now())
        if isinstance(error, WorkerDied | Internal):
            row.stderr_tail = error.detail
        if isinstance(error, (*_CUT_SHORT, Interrupted)):
            self._recorder.say_what_is_live(row, error)
        row.problem = None if error is None else error.problem()
        row.result = None if error is not None else {} if row.verb in SECRET else dict(live.outcome)
        self._recorder.end(live, error)
        live.ended.set()
        self.wakeup.wake()
        self._recorder.tried(lambda: self.on_end(replace(row)))

    def _live(self) -> list[LiveJob]:
        return [*self._running.values(), *self._waiting]

    def _as_it_is(self, row: JobRow) -> JobRow:
        """Return the present state of a job of which `row` is the catalog's state."""
        live = self._find(row.id)
        return self._recorder.known(row) if live is None else replace(live.row)

    def _find(self, id: str) -> LiveJob | None:
        return next((live for live in self._live() if live.row.id == id), None)
