"""Writes down what jobs do: rows, events and what the schedule goes by in the catalog, destruction in the audit log.

An end that cannot be written is kept in memory and written as soon as that can be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dbguardd.catalog import Audit, Catalog, Run, to_moment
from dbguardd.daemon.around import Surroundings
from dbguardd.daemon.bell import Bell
from dbguardd.daemon.live import Live
from dbguardd.errors import GuardError, Internal
from dbguardd.wire import Event, JobRow, JobState

_AUDITED = frozenset(
    ("restore", "undo", "expire", "sweep", "hold", "release", "recall", "recovery-sheet", "recovery-test", "recover")
)
_NOT_LOGGED = frozenset(("problem", "verb", "event", "level", "exc_info", "findings"))


class Chronicle:
    """The books of one runner. Use it from the thread of the event loop."""

    def __init__(self, catalog: Catalog, audit: Audit, around: Surroundings, bell: Bell) -> None:
        self._catalog = catalog
        self._audit = audit
        self._around = around
        self._log = around.log
        self._bell = bell
        self._unkept: dict[str, tuple[JobRow, Callable[[], None]]] = {}  # ends that the catalog does not have yet
        self.trouble: GuardError | None = None  # what kept the last end from being written

    def announce(self, live: Live) -> None:
        """Write the intent of a job that destroys or replaces data. Raises what keeps it from that: do not start it."""
        if live.row.verb in _AUDITED and not live.dry:
            self._witness(live, "intent", {"request": live.row.request})

    def end(self, live: Live, error: GuardError | None) -> None:
        """Write the end that the row of a job tells, everywhere. Raises nothing: see trouble."""
        row = live.row
        seconds = (to_moment(row.finished_at or "") - to_moment(row.started_at or row.created_at)).total_seconds()

        def keep() -> None:
            with self._catalog.transaction():
                self._catalog.jobs.put(row, live.terms.storage)
                self._remember(live, error)
                facts = {"verb": row.verb, "seconds": round(seconds, 3), "problem": row.problem}
                self.tell(f"job.{row.state}", live, facts)

        self._unkept[row.id] = (replace(row), keep)
        self.trouble = self._keep()
        if row.verb in _AUDITED and not live.dry and row.started_at is not None:
            facts = {"problem": error.code} if error else {}
            self.trouble = self.tried(lambda: self._witness(live, str(row.state), facts)) or self.trouble

    def known(self, row: JobRow) -> JobRow:
        """The row of the catalog, or its end if the catalog does not have that yet."""
        return replace(self._unkept[row.id][0]) if row.id in self._unkept else row

    def _keep(self) -> GuardError | None:
        """Write the ends that the catalog does not have yet, oldest first; return what keeps it from that."""
        found: GuardError | None = None
        for id, (_, keep) in list(self._unkept.items()):
            trouble = self.tried(keep)
            if trouble is None or isinstance(trouble, Internal):  # a bug stays one
                del self._unkept[id]
            found = found or trouble
        return found

    def tried(self, act: Callable[[], None]) -> GuardError | None:
        """Do what must not keep a job from its end; return why it failed."""
        try:
            act()
        except GuardError as trouble:
            self._log.error("catalog.failed", code=trouble.code, problem=trouble.message)
            return trouble
        except Exception as bug:  # noqa: BLE001 - nor may a bug
            self._log.error("job.crashed", exc_info=True)
            return Internal("the end of a job could not be told because of a bug", detail=repr(bug))
        return None

    def _remember(self, live: Live, error: GuardError | None) -> None:
        """Write what the schedule goes by. An interrupted run does not count: it is due again."""
        row = live.row
        if live.dry or row.state is JobState.INTERRUPTED or not live.attempt_started_at:
            return
        old = self._catalog.runs.get(live.target, row.verb) or Run(live.target, row.verb, known_at=row.created_at)
        failed, done = row.state is JobState.FAILED, row.state is JobState.DONE  # else cancelled: nothing was learnt
        self._catalog.runs.put(
            replace(
                old,
                started_at=live.attempt_started_at,
                finished_at=row.finished_at,
                succeeded_at=row.finished_at if done else old.succeeded_at,
                failures=0 if done else old.failures + failed,
                failing_since_at=None if done else old.failing_since_at or (row.finished_at if failed else None),
                job=row.id,
                problem=None if done else error.problem() if failed and error is not None else old.problem,
            )
        )

    def tell(self, event: str, live: Live, facts: Mapping[str, Any]) -> None:
        """Keep an event of a job, with its effect, and log it. Raises Internal on bad facts, NoSpace, Degraded."""
        row, problem = live.row, facts.get("problem")
        self.record(event, row.database, row.id, facts)
        known = {name: value for name, value in facts.items() if name not in _NOT_LOGGED}
        if problem:
            known |= {"code": problem["code"], "problem": problem["message"], "detail": problem["detail"]}
        known |= {"job": row.id, "database": row.database, "action": row.verb, "storage": live.terms.storage}
        (self._log.error if event == "job.failed" else self._log.info)(event, **known)

    def record(self, event: str, database: str | None, job: str | None, facts: Mapping[str, Any]) -> Event:
        """Keep an event, with its effect, and wake who waits. Raises as tell() does."""
        kept = self._catalog.record(self._around.now(), event, database, job, facts)
        self._bell.ring()
        return kept

    def _witness(self, live: Live, outcome: str, facts: Mapping[str, Any]) -> None:
        self._audit.append(
            self._around.now(),
            live.order.who,
            action=f"job.{live.row.verb}",
            object=live.target,
            outcome=outcome,
            facts={"job": live.row.id, **facts},
        )
