"""Records what jobs do: rows, events and the memory of the schedule in the catalog, destructive work in the audit log.

The end of a job that cannot be written is kept in memory and written as soon as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dbguardd.catalog import Audit, Catalog, Run, to_moment
from dbguardd.daemon.environment import Environment
from dbguardd.daemon.events import Events
from dbguardd.daemon.live import LiveJob
from dbguardd.errors import ConfirmMissing, GuardError, Internal, NotFound, TargetExists, TargetInUse, Usage, bare
from dbguardd.humanize import OVERWRITING, REPLACING, UNTOUCHED
from dbguardd.requests import QUESTION_VERBS
from dbguardd.states import JobState
from dbguardd.wire import EventRange, JobRow

_AUDITED = frozenset(
    ("restore", "undo", "expire", "sweep", "hold", "release", "recall", "recovery-sheet", "recovery-test", "recover")
    + ("recovery-drop", *QUESTION_VERBS)
)


_MISTAKES = (Usage, TargetExists, TargetInUse, ConfirmMissing)
"""Errors in a request. Not NotFound: a backup may be listed and missing from the storage."""


class Recorder:
    """Records for one runner. Use it from the thread of the event loop."""

    def __init__(self, catalog: Catalog, audit: Audit, environment: Environment, events: Events) -> None:
        self._catalog = catalog
        self._audit = audit
        self._environment = environment
        self._events = events
        self._unkept: dict[str, tuple[JobRow, Callable[[], None]]] = {}  # ends that are not in the catalog yet
        self.trouble: GuardError | None = None  # why the last end could not be written

    def announce(self, live: LiveJob) -> None:
        """Write the intent of a job that destroys or replaces data. If this raises, the job must not start."""
        if live.row.verb in _AUDITED and not live.dry:
            self._witness(live, "intent", {"request": live.row.request})

    def end(self, live: LiveJob, error: GuardError | None) -> None:
        """Record the end of a job from its row, everywhere. Raises nothing: see trouble."""
        row = live.row
        seconds = (to_moment(row.finished_at or "") - to_moment(row.started_at or row.created_at)).total_seconds()

        def keep() -> None:
            with self._catalog.transaction():
                self._catalog.jobs.put(row, live.terms.storage)
                self._remember(live, error)
                problem = bare(row.problem) if row.problem and row.verb in QUESTION_VERBS else row.problem
                facts = {"seconds": round(seconds, 3), "problem": problem}
                facts |= {"mistaken": True} if _mistaken(live, error) else {}
                self.tell(f"job.{row.state}", live, facts)

        self._unkept[row.id] = (replace(row), keep)
        self.trouble = self._keep()
        if row.verb in _AUDITED and not live.dry and row.started_at is not None:
            facts = {"problem": error.code} if error else {}
            self.trouble = self.tried(lambda: self._witness(live, str(row.state), facts)) or self.trouble

    def known(self, row: JobRow) -> JobRow:
        """Return the row, or the ended job if its end is not in the catalog yet."""
        return replace(self._unkept[row.id][0]) if row.id in self._unkept else row

    def say_what_is_live(self, row: JobRow, error: GuardError) -> None:
        """Add to the error of an interrupted restore in place whether it had begun to change the live database."""
        if row.verb != "undo" and not row.request.get("in_place"):
            return
        said, found = UNTOUCHED, self._catalog.events.find(EventRange(job=row.id), 500)
        if replacing := next((event for event in found if event.event == "restore.replacing"), None):
            said = OVERWRITING if replacing.facts.get("over") else REPLACING
            error.hints = (*error.hints, f"dbguardctl restore undo {row.database} --confirm {row.database}")
        error.detail = f"{error.detail}\n{said}".lstrip()

    def _keep(self) -> GuardError | None:
        """Write the ends that are not in the catalog yet, oldest first; return the first error."""
        found: GuardError | None = None
        for id, (_, keep) in list(self._unkept.items()):
            trouble = self.tried(keep)
            if trouble is None or isinstance(trouble, Internal):  # after a bug, trying again does not help
                del self._unkept[id]
            found = found or trouble
        return found

    def tried(self, act: Callable[[], None]) -> GuardError | None:
        """Do something whose failure must not keep a job from its end; return the error."""
        try:
            act()
        except GuardError as trouble:
            self._events.log("catalog.failed", {"problem": trouble.problem()})
            return trouble
        except Exception as bug:  # noqa: BLE001 - a bug must not either
            self._events.log("job.crashed", {}, bug)
            return Internal("the end of a job could not be recorded because of a bug", detail=repr(bug))
        return None

    def _remember(self, live: LiveJob, error: GuardError | None) -> None:
        """Update the memory of the schedule. An interrupted run does not count: it is due again.

        Nor does a mistyped backup id: it says nothing about the database.
        """
        row = live.row
        if row.request.get("backup") and _by_user(live) and isinstance(error, (*_MISTAKES, NotFound)):
            return
        if live.dry or row.state is JobState.INTERRUPTED or not live.attempt_started_at:
            return
        old = self._catalog.runs.get(live.target, row.verb) or Run(live.target, row.verb, known_at=row.created_at)
        failed, done = row.state is JobState.FAILED, row.state is JobState.DONE  # else cancelled, which says nothing
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

    def tell(self, event: str, live: LiveJob, facts: Mapping[str, Any]) -> None:
        """Store an event of a job with its effect, and log it. Raises Internal on bad facts, NoSpace, Degraded."""
        row, database, who = live.row, live.terms.spec["database"] or {}, live.order.who
        if event.startswith("job."):
            facts = {"verb": row.verb, **({} if row.database else {"storage": live.terms.storage}), **facts}
            facts |= {"dry_run": True} if live.dry else {}  # so that its failure is not taken for one of a real run
        about = {"action": row.verb, "storage": live.terms.storage, "engine": database.get("engine")}
        about |= {"actor": who.user, "actor_uid": who.uid, "step": row.step or None}
        # a check of one database reads the whole repository, and may find damage in backups of others
        self._events.tell(event, facts.get("database", row.database), row.id, facts, about)

    def _witness(self, live: LiveJob, outcome: str, facts: Mapping[str, Any]) -> None:
        self._audit.append(
            self._environment.now(),
            live.order.who,
            action=f"job.{live.row.verb}",
            object=live.target,
            outcome=outcome,
            facts={"job": live.row.id, **facts},
        )


def _mistaken(live: LiveJob, error: GuardError | None) -> bool:
    """Return whether the job failed because of what a user had typed: then nothing is wrong with the database."""
    return _by_user(live) and isinstance(error, _MISTAKES)


def _by_user(live: LiveJob) -> bool:
    """Return whether a user asked for this very job; a proof that follows a user's backup has the same actor."""
    return live.order.who.uid is not None and not live.order.after_backup
