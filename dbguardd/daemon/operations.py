"""The parts of one daemon, and the operations of the service that need several of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field
from datetime import datetime, timedelta
from typing import Any

from dbguardd.catalog import Audit, Catalog, Who, coverage, to_moment, to_text
from dbguardd.daemon.clock import Clock
from dbguardd.daemon.environment import Look
from dbguardd.daemon.following import Following
from dbguardd.daemon.inforce import PolicyInForce
from dbguardd.daemon.live import Order
from dbguardd.daemon.notify import Notify
from dbguardd.daemon.runner import Runner
from dbguardd.daemon.scheduler import Planned, Scheduler
from dbguardd.daemon.status import Views
from dbguardd.daemon.timetable import timetable
from dbguardd.daemon.wakeup import Wakeup
from dbguardd.errors import Busy, GuardError
from dbguardd.frozen import frozen
from dbguardd.requests import BY_SCHEDULE, REQUESTS
from dbguardd.rules.calendar import full_due
from dbguardd.serialize import to_json
from dbguardd.states import Grade, JobState

SCHEDULE = Who(BY_SCHEDULE)
LOOK_AGAIN = timedelta(seconds=30)  # the least time between two reads of a storage that could not be read


@frozen
class Operations:
    """The parts of which a daemon has one each. `nudge` wakes the scheduler."""

    catalog: Catalog
    audit: Audit
    clock: Clock
    inforce: PolicyInForce
    runner: Runner
    scheduler: Scheduler
    following: Following
    views: Views
    look: Look
    host: str
    machine_id: str
    nudge: Wakeup
    notify: Notify
    unread: set[str] = field(default_factory=set)  # storages for which a scan could not be submitted

    def now(self) -> datetime:
        """Return the time of the wall clock."""
        return self.clock.now()

    def tell(self, event: str, database: str | None, facts: Mapping[str, Any]) -> None:
        """Store and log an event that no job reported."""
        self.runner.events.tell(event, database, None, facts)

    def replan(self, target: str | None = None) -> None:
        """Recompute when jobs run next."""
        self.scheduler.reconsider(target)
        self.following.reconsider()
        self.nudge.wake()

    def reload(self) -> None:
        """Put the policy files into force, or raise why not and keep the present policy."""
        self.inforce.reload()
        self.take_over()

    def accept(self) -> None:
        """Put the policy files into force although they delete backups."""
        self.inforce.reload(accepted=True)
        self.take_over()

    def line(self) -> str:
        """Return the line that systemctl status shows."""
        databases = len(self.inforce.policy.names())
        return f"Guarding {databases} {'database' if databases == 1 else 'databases'}"

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell systemd that the policy is being reloaded, and when that is over, however the block ends."""
        self.notify.reloading()
        try:
            yield
        except GuardError as error:
            self.runner.events.note("policy.refused", None, {"problem": error.problem()})
            raise
        finally:
            self.notify.ready(self.line())

    def take_over(self, *, at_start: bool = False) -> None:
        """Apply the policy in force to all parts."""
        self.runner.max_jobs = self.inforce.policy.daemon.max_jobs
        self.scheduler.plan(timetable(self.inforce, self.machine_id))
        self.tell("policy.loaded", None, {"databases": len(self.inforce.policy.names())})
        for warning in self.inforce.loaded.warnings:
            place = f"{warning.file}:{warning.line}" if warning.line else warning.file
            self.runner.events.note("policy.warned", None, {"problem": warning.message, "place": place})
        self.runner.wake()
        get, names, backups = self.catalog.settings.get, self.inforce.storages(), self.catalog.backups
        newest = [row for name in backups.databases() if (row := backups.summary(name).newest)]
        left = {get(f"repository:{row.storage}") for row in newest if row.storage not in names}
        for name in names:  # the content of a storage that left the policy may be here under another name
            seen = get(f"repository:{name}")
            moved = self._has_moved(name)
            if at_start or moved or seen is None or seen in left or self.views.storages.is_unread(name):
                self.index(name)
        if at_start:
            self._go_on()
        self.following.reconsider()
        self.nudge.wake()

    def _has_moved(self, storage: str) -> bool:
        """Return whether a storage has another path than before; then forget how far the logs in it reach.

        There may be an older copy at the new path: only a scan tells what that contains.
        """
        settings, path = self.catalog.settings, self.inforce.storage(storage).path
        before = settings.get(f"path:{storage}")
        if before == path:
            return False
        with suppress(GuardError):  # a daemon must be able to start on a full disk
            for name in self.inforce.policy.names() if before is not None else ():
                if self.inforce.policy.guarded(name).storage[0] == storage:
                    coverage.write(settings, name, [])
            settings.put(f"path:{storage}", path)  # last: if the claims could not be forgotten, the next start does it
        return before is not None

    def _go_on(self) -> None:
        """Continue the work of an earlier daemon: repeat interrupted backups, verify finished ones."""
        paused = self.catalog.pauses.active(to_text(self.now()))
        for name in self.inforce.policy.names():
            order = None if name in paused else self._left(name)
            if order is not None:
                try:
                    self.runner.submit(order)
                except GuardError as error:
                    facts = {"verb": order.verb, "problem": error.problem()}
                    self.runner.events.note("job.refused", name, facts)

    def _left(self, name: str) -> Order | None:
        """Return what an earlier daemon left to do for a database: an interrupted backup, or the newest one's proof."""
        last = self.catalog.jobs.last(name, "backup")
        if last is not None and last.state is JobState.INTERRUPTED:
            return Order("backup", last.request, SCHEDULE, name)
        newest = self.catalog.backups.summary(name).newest
        unproven = newest is not None and newest.grade is Grade.STORED and newest.failure is None
        if newest is None or not unproven or self.inforce.policy.guarded(name).verify != "after-backup":
            return None
        return Order("verify", {"database": name, "backup": newest.id}, SCHEDULE, name, after_backup=True)

    def index(self, name: str) -> None:
        """Submit a scan of a repository if the catalog may not know all that happened in it.

        That is so for a new catalog, for a disk from another host, after jobs by hand, and after a worker or a daemon
        was killed between an action and its report.
        """
        self.unread.discard(name)
        if name not in self.inforce.storages() or not self.inforce.holds_repository(name):
            return
        try:
            self.runner.submit(Order("scan", {}, SCHEDULE, storage=name))
        except Busy:
            pass  # a scan waits or runs already
        except GuardError as error:
            self.unread.add(name)
            self.runner.events.note("scan.refused", None, {"storage": name, "problem": error.problem()})

    def look_again(self) -> None:
        """Scan the storages that could not be read and seem available now: a user may have repaired them."""
        for name in self.inforce.storages():
            storages = self.views.storages
            if storages.is_unread(name) and storages.is_there(name) and self._may_be_mended(name):
                self.index(name)

    def _may_be_mended(self, storage: str) -> bool:
        """Return whether a storage was absent before, or its scan failed for a transient reason and no retry waits."""
        waits, ended = self.runner.active(f"storage:{storage}"), self.catalog.runs.get(f"storage:{storage}", "scan")
        if waits is not None:
            return waits.problem is not None
        if ended is None:  # it was mounted later
            return True
        if ended.problem is None or ended.finished_at is None or not ended.problem.get("retryable"):
            return False
        return self.now() - to_moment(ended.finished_at) > LOOK_AGAIN

    @contextmanager
    def audited(self, who: Who, action: str, object: str, facts: Mapping[str, Any]) -> Iterator[None]:
        """Write the intent to the audit log before the block and its outcome after it."""
        self.audit.append(self.now(), who, action=action, object=object, outcome="intent", facts=facts)
        try:
            yield
        except GuardError as error:
            problem = {"problem": error.code}
            self.audit.append(self.now(), who, action=action, object=object, outcome="failed", facts=problem)
            raise
        self.audit.append(self.now(), who, action=action, object=object, outcome="done")


def scheduled(planned: Planned, inforce: PolicyInForce, catalog: Catalog, now: datetime) -> Order:
    """Return the order for a planned run."""
    storage = planned.target.removeprefix("storage:")
    if storage != planned.target:
        return Order(planned.verb, to_json(REQUESTS[planned.verb](storage)), SCHEDULE, storage=storage)  # type: ignore[call-arg]
    request = to_json(REQUESTS[planned.verb](planned.target))  # type: ignore[call-arg]
    if planned.verb == "backup":
        full_at = catalog.backups.summary(planned.target).full_at
        every = inforce.policy.guarded(planned.target).full_every
        request["full"] = full_due(now, None if full_at is None else to_moment(full_at), every)
    return Order(planned.verb, request, SCHEDULE, planned.target)
