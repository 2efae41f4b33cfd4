"""Follows logs: runs one worker for each database with `continuous = true` that has a backup, as long as it lives.

A follower that ends is started again, each time after a longer pause. When a log could not be continued, a backup from
which the new log continues is made at once: until then, nothing after the gap can be restored to the second.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dbguardd.catalog import Catalog, Who, coverage, servers, to_moment, to_text
from dbguardd.daemon.environment import Environment
from dbguardd.daemon.inforce import PolicyInForce
from dbguardd.daemon.live import Order
from dbguardd.daemon.runner import Runner
from dbguardd.errors import Busy, GuardError, Internal, from_problem
from dbguardd.humanize import size
from dbguardd.requests import REQUESTS
from dbguardd.serialize import to_json
from dbguardd.wire import LogProof

FOLLOWER = Who("follower")
_STALL_SECONDS = 120.0
_WAIT_SECONDS = 1.0, 60.0
_KEEP_SECONDS = 30.0
_RECENT = timedelta(days=1)  # how long a failed test restore of the log is reported
_LEAVE_SECONDS = 30.0
_LEAVE = timedelta(days=7)  # how long a server that is down is told again that its log is no longer followed
_BASE_SECONDS = 5.0, 600.0  # between two backups for broken logs: the pause doubles until a log lasts for long

Facts = Mapping[str, Any]


@dataclass(slots=True)
class Follower:
    """One worker that follows a log, and its spec."""

    spec: Facts
    cancel: asyncio.Event
    problem: GuardError | None = None
    waits: GuardError | None = None  # what keeps it from storing the log now: it tries again, and then ends
    chain: str = ""
    begun_at: str = ""  # when the chain began, if this follower began it
    until_at: str = ""
    segment: int = 0
    kept: float = 0.0
    heard: float = math.inf  # event loop time at which it began, or last said up to when everything is stored
    held: str = ""  # the processes that hold the log of the database, which therefore grows
    over: bool = False  # the log will not be followed any more: the server may stop keeping it for us
    no_more: asyncio.Event = field(default_factory=asyncio.Event)  # the server need not be told so (any more)


@dataclass(slots=True)
class Base:
    """The backup from which the log of a database continues. A log that keeps breaking asks for it ever less often."""

    needed: bool = False
    asked: float = -math.inf  # when it was last asked for, by the clock of the event loop
    pause: float = _BASE_SECONDS[0]

    def ask(self, now: float) -> bool:
        """Return whether it is time to ask for the backup; if so, note the time."""
        if now < self.asked + self.pause:
            return False
        again = now < self.asked + _BASE_SECONDS[1]
        self.asked, self.pause = now, min(2 * self.pause, _BASE_SECONDS[1]) if again else _BASE_SECONDS[0]
        return True


class Following:
    """All followers of this daemon. Use it from the thread of the event loop."""

    def __init__(self, catalog: Catalog, inforce: PolicyInForce, environment: Environment, runner: Runner) -> None:
        self._catalog, self._inforce, self._environment, self._runner = catalog, inforce, environment, runner
        self._followers: dict[str, Follower] = {}
        self._leaving: dict[str, Follower] = {}
        self._alive: set[asyncio.Task[None]] = set()
        self._quiet: set[str] = set()
        self._bases = defaultdict[str, Base](Base)
        self._open = True

    # ------------------------------------------------------------------------------------------ what is known

    def covered(self, name: str) -> list[coverage.Covered]:
        """Return the time ranges that the log of a database covers, up to the last message of its follower."""
        return self._covered(name, self._followers.get(name))

    def _covered(self, name: str, follower: Follower | None) -> list[coverage.Covered]:
        rows = coverage.read(self._catalog.settings, name)
        if follower is None or not follower.until_at:
            return rows
        return coverage.reached(rows, coverage.Covered(follower.chain, follower.begun_at, follower.until_at))

    def proof(self, name: str) -> LogProof | None:
        """Return what the test restores of a database's log have shown."""
        return coverage.proof(self._catalog.settings, name)

    def problem(self, name: str) -> GuardError | None:
        """Return what keeps the log of a database from being followed now; None if it is followed."""
        follower = self._followers.get(name)
        return None if follower is None else follower.waits or follower.problem

    def silent_seconds(self, name: str) -> float:
        """For how long nobody could tell that all of the log of a database is stored."""
        follower = self._followers.get(name)
        return 0.0 if follower is None else max(0.0, time.monotonic() - follower.heard)

    def trouble(self, name: str, now: datetime) -> list[str]:
        """Return what is wrong with the log of a database, in words: who holds it, and what a test restore found."""
        follower, proof = self._followers.get(name), self.proof(name)
        found = [follower.held] if follower is not None and follower.held else []
        if proof is not None and proof.failed_at and to_moment(proof.failed_at) > now - _RECENT:
            found.append(f"its log failed a test restore at {proof.failed_at}: {proof.failure}")
        return found

    def left_behind(self) -> list[str]:
        """Return which servers could not be told yet that a log is no longer followed, in words."""
        return [
            f"{name}: its log is no longer followed, but its server may still retain WAL for it; this is tried again "
            f"every minute, for {_LEAVE.days} days: {one.problem.message}"
            for name, one in sorted(self._leaving.items())
            if one.problem is not None
        ]

    # ------------------------------------------------------------------------------------------ life

    def reconsider(self) -> None:
        """Start and stop followers according to the policy and the backups. A pause is about the schedule only."""
        wanted = self._wanted() if self._open else {}
        for name, follower in list(self._followers.items()):
            if follower.spec != wanted.get(name):
                self._end(name)
        for name, leaving in self._leaving.items():
            if name in wanted or (not self._open and leaving.problem is not None):
                leaving.no_more.set()
        for name, kept in servers.read(self._catalog.settings).items() if self._open else ():
            if name not in self._followers and name not in self._leaving and not self._asked(name):
                self._leave_of_before(name, kept)
        for name, spec in wanted.items():
            if name not in self._followers:
                follower = self._followers[name] = Follower(spec, asyncio.Event())
                before = [*self._tasks(name), *self._tasks(name, "leave")]
                self._begin(f"follow-{name}", self._follow(name, follower, before))

    async def stop(self) -> None:
        """End all followers; the end of what they stored is written to the catalog."""
        self._open = False
        self.reconsider()
        await asyncio.gather(*self._alive, return_exceptions=True)

    @asynccontextmanager
    async def undisturbed(self, spec: Facts) -> AsyncIterator[None]:
        """Keep the log of a database unfollowed while a job replaces the database: a follower is one of its users."""
        request, name = spec["request"], str((spec["database"] or {}).get("name", ""))
        replaces = spec["verb"] == "undo" or (request.get("in_place") and not request.get("dry_run"))
        if not replaces or (name in self._followers and await self._in_use(spec)):
            yield
            return
        self._quiet.add(name)  # also if nothing follows it now: a reload may come during the block
        self.reconsider()
        try:
            if leaving := self._tasks(name):
                await asyncio.wait(leaving)
            yield
        finally:
            self._quiet.discard(name)
            self.reconsider()

    async def _in_use(self, spec: Facts) -> bool:
        """Return whether a restore in place would be refused because of other users; then following need not stop."""
        request = {**to_json(REQUESTS["restore"](spec["database"]["name"])), "in_place": True, "dry_run": True}  # type: ignore[call-arg]
        asked = {name: spec["request"][name] for name in ("backup", "at", "lsn", "name") if spec["request"].get(name)}
        trial = {**spec, "verb": "restore", "request": {**request, **asked}}
        try:
            found = await self._environment.run_worker(trial, _unheard, asyncio.Event(), stall_timeout=_STALL_SECONDS)
        except GuardError:
            return False  # the job itself reports the error
        return bool(found["plan"].get("in_use"))

    def _wanted(self) -> dict[str, Facts]:
        """Return the specs of the databases to follow, by name."""
        found: dict[str, Facts] = {}
        for name in self._inforce.policy.names():
            if not self._inforce.policy.guarded(name).continuous or name in self._quiet:
                continue
            if self._catalog.backups.summary(name).newest is None:
                continue  # the first backup creates the repository, and shows that the database can be read
            with suppress(GuardError):  # a backup fails for the same reason, and reports it
                terms = self._environment.terms(Order("follow", {"database": name}, FOLLOWER, name))
                seen = self._catalog.settings.get(f"repository:{terms.storage}")
                found[name] = {**terms.spec, "storage": {**terms.spec["storage"], "repository_id": seen}}
        return found

    def _begin(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._alive.add(task)
        task.add_done_callback(self._alive.discard)

    def _tasks(self, name: str, what: str = "follow") -> list[asyncio.Task[None]]:
        """Return the tasks that follow a database, or are about to stop; or that only "leave" its server."""
        return [task for task in self._alive if task.get_name() == f"{what}-{name}"]

    def _end(self, name: str) -> None:
        """Stop a follower; permanently if the policy no longer asks to follow the log."""
        follower = self._followers.pop(name)
        follower.over = self._open and not self._asked(name)
        follower.problem = None
        if follower.over:
            self._leaving[name] = follower
        follower.cancel.set()

    def _asked(self, name: str) -> bool:
        """Return whether the policy asks to follow the log of a database."""
        return name in self._inforce.policy.names() and bool(self._inforce.policy.guarded(name).continuous)

    def _leave_of_before(self, name: str, kept: servers.Kept) -> None:
        """Leave the server of a log that an earlier daemon followed, and that the policy no longer asks to follow."""
        follower = self._leaving[name] = Follower({"database": kept.database}, asyncio.Event(), over=True)
        self._begin(f"leave-{name}", self._leave(name, follower))

    def _is_due(self, name: str, follower: Follower) -> bool:
        """Return whether to tell a server again, whose slot has a limit anyway; remember since when that is so."""
        settings, now = self._catalog.settings, self._environment.now()
        known = servers.read(settings).get(name)
        left_at = (known and known.left_at) or to_text(now)
        due = now - to_moment(left_at) < _LEAVE
        servers.remember(settings, name, servers.Kept(follower.spec["database"], left_at) if due else None)
        return due

    # ------------------------------------------------------------------------------------------ one follower

    async def _follow(self, name: str, follower: Follower, before: Collection[asyncio.Task[None]]) -> None:
        """Follow until stopped, once all tasks `before` have ended: two writers would make one log unreadable."""
        wait, cancel = _WAIT_SECONDS[0], follower.cancel
        if before:
            await asyncio.wait(before)
        if url := servers.url_before(self._catalog.settings, name, follower.spec["database"]):
            self._runner.events.note("log.moved", name, {"before": url})
        servers.remember(self._catalog.settings, name, servers.Kept(follower.spec["database"]))
        while not cancel.is_set():
            began = asyncio.get_running_loop().time()
            error = await self._once(name, follower)
            follower.held, follower.heard, follower.waits = "", math.inf, None
            self._keep(name, follower)
            if cancel.is_set():
                await self._leave(name, follower)
                return
            if follower.problem is None or follower.problem.message != error.message:
                self._runner.events.note("log.interrupted", name, {"problem": error.problem()})
            follower.problem = error
            lived = asyncio.get_running_loop().time() - began
            wait = _WAIT_SECONDS[0] if lived > _WAIT_SECONDS[1] else min(2 * wait, _WAIT_SECONDS[1])
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await cancel.wait()
        await self._leave(name, follower)

    async def _leave(self, name: str, follower: Follower) -> None:
        """Tell the server to stop keeping a log that is no longer followed, and report it."""
        if not follower.over:
            return
        follower.problem = None if follower.no_more.is_set() else await self._release(name, follower)
        if follower.problem is not None:
            self._runner.events.note("log.left", name, {"problem": follower.problem.problem()})
            if self._open and self._is_due(name, follower):
                self._begin(f"leave-{name}", self._keep_leaving(name, follower))  # a task that no restore waits for
                return
        if self._leaving.get(name) is follower:
            del self._leaving[name]

    async def _keep_leaving(self, name: str, follower: Follower) -> None:
        """Tell a server that is down when it is back, unless the log is followed again by then."""
        wait = _WAIT_SECONDS[0]
        while follower.problem is not None and not follower.no_more.is_set() and self._is_due(name, follower):
            wait = min(2 * wait, _WAIT_SECONDS[1])
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await follower.no_more.wait()
                    break
            follower.problem = await self._release(name, follower)
        if self._leaving.get(name) is follower:
            del self._leaving[name]

    async def _release(self, name: str, follower: Follower) -> GuardError | None:
        """Let the server stop keeping a log. Return what prevented it; None if nothing is left to do."""
        try:
            await self._environment.run_worker(
                self._spec(follower, end=True), _unheard, asyncio.Event(), stall_timeout=_LEAVE_SECONDS
            )
        except GuardError as error:
            return error
        except Exception as bug:  # noqa: BLE001 - a bug ends this, not the daemon
            self._runner.events.log("log.crashed", {"database": name}, bug)
        else:
            servers.remember(self._catalog.settings, name, None)
            self._runner.events.note("log.left", name, {"problem": None})
        return None

    def _spec(self, follower: Follower, *, end: bool = False) -> Facts:
        """Return the spec for a worker."""
        spec = {**follower.spec, "job": self._environment.new_id(self._environment.now()), "verb": "follow"}
        return {**spec, "request": {"end": end}, "actor": FOLLOWER.user, "state": self._environment.state}

    async def _once(self, name: str, follower: Follower) -> GuardError:
        """Run one worker until it ends, and return the error with which it ended."""
        try:
            await self._environment.run_worker(
                self._spec(follower),
                lambda message: self._heard(name, follower, message),
                follower.cancel,
                stall_timeout=_STALL_SECONDS,
            )
        except GuardError as error:
            return error
        except Exception as bug:  # noqa: BLE001 - a bug ends this follower, not the daemon
            self._runner.events.log("log.crashed", {"database": name}, bug)
            return Internal(f"{name}: its log is not followed because of a bug", detail=repr(bug))
        return Internal(f"{name}: following its log ended without a reason")

    def _heard(self, name: str, follower: Follower, message: Facts) -> None:
        if message.get("type") != "report":
            return
        event, facts = str(message["event"]), dict(message.get("facts") or {})
        if event == "waits":
            follower.waits = from_problem(facts["problem"])
            return
        if event == "reached":
            self._reached(name, follower, facts)
            return
        if event == "log.held":
            who, log = ", ".join(facts["by"]), size(int(facts["log_bytes"]))
            follower.held = who and f"its WAL of {log} cannot be reset: {who} keeps a read transaction open"
        if event == "log.turned":  # the first backup from the new server shows that the log leads to it
            self._bases[name].needed = True
        if event == "log.begun":
            follower.chain, follower.until_at = str(facts["chain"]), ""
            follower.heard = asyncio.get_running_loop().time()
            follower.begun_at = "" if facts["continued"] else str(facts["begun_at"])
            newest = self._catalog.backups.summary(name).newest
            older = newest is None or newest.created_at < str(facts["begun_at"])  # also if an earlier daemon began it
            if older or not facts["continued"]:
                self._bases[name].needed = True
        try:
            self._runner.events.tell(event, name, None, facts)
        except GuardError as error:  # a full catalog must not stop the following; a later scan reports the event
            self._runner.events.log("catalog.failed", {"problem": error.problem()})
            self._runner.on_doubt(str(follower.spec["storage"]["name"]))

    def _reached(self, name: str, follower: Follower, facts: Facts) -> None:
        follower.problem = follower.waits = None
        grown, follower.segment = follower.segment != int(facts["segment"]), int(facts["segment"])
        follower.until_at = str(facts["until_at"])
        now = follower.heard = asyncio.get_running_loop().time()
        if grown and now - follower.kept >= _KEEP_SECONDS:  # for an idle database nothing is written
            follower.kept = now
            self._keep(name, follower)
        if self._bases[name].needed:
            self._make_base(name, now)

    def _keep(self, name: str, follower: Follower) -> None:
        """Write to the catalog up to when the log is stored, for the next daemon.

        Not if the policy has given the storage another path since: the log there may end earlier.
        """
        storage = follower.spec["storage"]
        with suppress(GuardError):
            if self._inforce.storage(str(storage["name"])).path != storage["path"]:
                return
        if follower.until_at:
            with suppress(GuardError):
                coverage.write(self._catalog.settings, name, self._covered(name, follower))

    def _make_base(self, name: str, now: float) -> None:
        """Submit the backup from which the log continues, unless a job of the database is waiting or running."""
        if self._runner.active(name) is not None:
            self._runner.wake(name)  # a job that waits for a retry may run at once: its storage accepts writes again
            return
        if name in self._catalog.pauses.active(to_text(self._environment.now())) or not self._bases[name].ask(now):
            return
        try:
            self._runner.submit(Order("backup", to_json(REQUESTS["backup"](name)), FOLLOWER, name))  # type: ignore[call-arg]
        except Busy:
            return
        except GuardError as error:
            self._runner.events.note("job.refused", name, {"verb": "backup", "problem": error.problem()})
            return
        self._bases[name].needed = False


def _unheard(message: dict[str, Any]) -> None:
    """Ignore the messages of a worker."""
