"""A job that has not ended, what it claims while it runs, and which waiting jobs may start."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dbguardd.catalog import Who
from dbguardd.errors import Busy
from dbguardd.frozen import frozen
from dbguardd.requests import QUESTION_VERBS
from dbguardd.verbs import has_engine_half
from dbguardd.wire import JobRow

BY_DATABASE = frozenset(("backup", "verify", "restore", "undo", "check", "expire"))
"""The verbs of which one job at a time runs for each database."""

ALONE_IN_STORAGE = frozenset(("sweep", "scan"))
"""The verbs during which nothing else works on the storage."""

ERRANDS = frozenset(("hold", "release", "recall", "recovery-sheet", "recovery-test", "recovery-drop", "recover"))
"""Short jobs for a user who waits: they do not count against max_jobs."""

RETRIED = frozenset(("backup", "verify", "expire", "sweep", "scan"))
"""The verbs that are tried again after a transient failure; for a restore that would be unwanted."""

UNIQUE = frozenset(("backup", "verify", "expire", "sweep", "scan"))
"""The verbs of which a second request is refused with Busy while the same job waits or runs."""


DELETING = frozenset(("expire", "sweep"))
"""The verbs that the daemon does not start by itself while the clock is in doubt."""


SECRET = frozenset(("recovery-sheet",))
"""The verbs whose result is secret: it is returned once and not stored."""


@frozen
class JobTerms:
    """What the policy says about one job: the spec's members database, storage and key, its retries and time limits."""

    spec: Mapping[str, Any]
    retries: int = 0
    wait_seconds: float = 120.0
    backoff: float = 2.0
    window_seconds: float = 14400.0
    stall_seconds: float = 600.0
    limit_seconds: float = 86_400.0
    verify_after: bool = False
    expire_after: bool = False

    @property
    def storage(self) -> str:
        """The name of the storage."""
        return str(self.spec["storage"]["name"])


@frozen
class Order:
    """What to do, for whom, on which database. `storage` is set if no database determines it.

    `hidden` members of the request (secrets) are passed to the worker only and never stored.
    """

    verb: str
    request: Mapping[str, Any]
    who: Who
    database: str | None = None
    storage: str | None = None
    hidden: Mapping[str, Any] = field(default_factory=dict, repr=False)
    after_backup: bool = False  # it verifies a backup that was just made
    once: bool = False  # do not retry: a user waits, who can correct what is wrong

    @property
    def dry(self) -> bool:
        """True if the job changes nothing."""
        return bool(self.request.get("dry_run"))


@dataclass(slots=True, eq=False)
class LiveJob:
    """One job from submit to its end. `outcome` may be secret: it never leaves memory."""

    row: JobRow
    order: Order
    terms: JobTerms
    outcome: Mapping[str, Any] = field(default_factory=dict, repr=False)
    not_before: float = 0.0  # seconds of the event loop's clock
    attempt_started_at: str = ""
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled_by: str = ""
    unheard: bool = False  # a message of its worker could not be recorded
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def errand(self) -> bool:
        """True if the job does not count against max_jobs."""
        return self.row.verb in ERRANDS

    @property
    def dry(self) -> bool:
        """True if the job changes nothing."""
        return self.order.dry

    @property
    def target(self) -> str:
        """What its schedule is kept under: the database, or `storage:NAME`."""
        return self.row.database or f"storage:{self.terms.storage}"

    def claims(self) -> tuple[tuple[str, bool], ...]:
        """Return what the job claims while it runs, and whether exclusively."""
        storage = (f"storage:{self.terms.storage}", self.row.verb in ALONE_IN_STORAGE)
        if self.row.verb in BY_DATABASE and self.row.database is not None:
            return storage, (f"database:{self.row.database}", True)
        if self.row.verb in QUESTION_VERBS and has_engine_half(self.row.verb, self.terms.spec["database"]["engine"]):
            return storage, (f"question:{self.row.database}", True)  # beside other jobs, in a directory of its own
        return (storage,)

    def advance(self, progress: Mapping[str, Any]) -> None:
        """Take over the progress that its worker reports."""
        total = progress.get("total_bytes")
        self.row.step, self.row.done_bytes = str(progress.get("step", "")), int(progress.get("done_bytes") or 0)
        self.row.total_bytes = None if total is None else int(total)

    def awaited_by(self, order: Order) -> bool:
        """True if the job waits for a retry and a user asks for the same, who may have corrected what was wrong.

        A scan counts even if the daemon asks for it: it does so only for a reason, and all work on a storage waits for
        its scan.
        """
        meant = order.verb == "scan" or order.who.uid is not None
        return self.row.problem is not None and meant and order.request == self.order.request

    def in_the_way(self, of: str) -> Busy:
        """Return the error with which a second request for the same job is refused."""
        cancel = [f"dbguardctl job cancel {self.row.id}"] if self.row.attempt > 1 else []  # then a new try is possible
        return Busy(
            f"{of}: {self.row.verb} is already {self.row.state}",
            detail=f"job {self.row.id}, asked for by {self.row.actor}",
            hints=[f"dbguardctl job watch {self.row.id}", *cancel],
            facts={"job": self.row.id},
        )

    def same_as(self, order: Order, storage: str) -> bool:
        """True if the order asks for what this job does."""
        mine = self.order
        if (mine.verb, mine.database, self.terms.storage) != (order.verb, order.database, storage):
            return False
        return mine.dry == order.dry and mine.request.get("backup") == order.request.get("backup")


def startable(waiting: Sequence[LiveJob], running: Iterable[LiveJob], now: float, limit: int) -> list[LiveJob]:
    """Return the jobs that may start now, in order. While a job waits for a claim, none behind it can take that."""
    running = list(running)
    alone = {name for live in running for name, exclusive in live.claims() if exclusive}
    shared = Counter(name for live in running for name, exclusive in live.claims() if not exclusive)
    busy = sum(not live.errand for live in running)
    chosen = []
    for live in waiting:
        if live.not_before > now:
            continue
        free = all(name not in alone and not (exclusive and shared[name]) for name, exclusive in live.claims())
        room = live.errand or busy < limit
        if free and room:
            chosen.append(live)
            busy += not live.errand
        for name, exclusive in live.claims():
            if exclusive:
                alone.add(name)
            else:
                shared[name] += 1
    return chosen
