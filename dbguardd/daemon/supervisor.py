"""The lifecycle of the daemon: start, tick, reload, stop.

It sleeps until something is due, a request arrives, or a minute has passed. Jobs run in workers; nothing here opens a
guarded database. A bug in the loops ends the daemon with an error, and systemd restarts it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from dbguardd.catalog import Entry, Who
from dbguardd.daemon import state_directory
from dbguardd.daemon.clock import Clock, new_id
from dbguardd.daemon.environment import Environment, Logger, Look, OnMessage, RunWorker, Sweep
from dbguardd.daemon.following import Following
from dbguardd.daemon.inforce import PolicyInForce
from dbguardd.daemon.notify import Notify
from dbguardd.daemon.operations import Operations, scheduled
from dbguardd.daemon.paths import Paths
from dbguardd.daemon.runner import Runner
from dbguardd.daemon.scheduler import Planned, Scheduler
from dbguardd.daemon.service import Service
from dbguardd.daemon.status import Views
from dbguardd.daemon.storages import Storages
from dbguardd.daemon.wakeup import Wakeup
from dbguardd.errors import GuardError
from dbguardd.frozen import frozen
from dbguardd.states import JobState
from dbguardd.wire import JobRow

STOP_SECONDS = 60.0
_SIGNAL = Who("signal")
_PROBE_SECONDS = 300.0
_GAUGE_SECONDS = 60.0
_AUDIT_SECONDS = 86_400.0


class Answering(Protocol):
    """An open API."""

    async def close(self) -> None: ...


@frozen
class Setup:
    """The paths, and the parts that the daemon does not import: workers and the API."""

    policy: Path
    state: Path
    run_worker: RunWorker
    serve: Callable[[Service], Awaitable[Answering]]
    log: Logger
    host: str
    machine_id: str
    clock: Clock
    look: Look
    sweep: Sweep


def this_host() -> tuple[str, str]:
    """Return the name of this host and its stable id."""
    name = os.uname().nodename
    try:
        return name, Path("/etc/machine-id").read_text(encoding="ascii").strip() or name
    except (OSError, ValueError):
        return name, name


async def run(setup: Setup) -> None:
    """Run the daemon until a signal ends it. Raises an error that keeps it from starting."""
    with state_directory.owned(setup.state):
        witness = _witness(setup.log)
        with state_directory.opened(setup.state, setup.clock.now(), witness) as books:
            inforce = PolicyInForce(setup.policy, setup.state, books.catalog, setup.clock.now)
            inforce.start()
            notify = Notify(os.environ)
            try:
                await Supervisor(setup, books, inforce, notify).live()
            finally:
                notify.close()


class Supervisor:
    """One run of the daemon."""

    def __init__(self, setup: Setup, books: state_directory.Books, inforce: PolicyInForce, notify: Notify) -> None:
        self._setup = setup
        self._notify = notify
        self._paths = Paths()
        self._stopping = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        environment = Environment(
            run_worker=self._run_worker,
            terms=inforce.terms,
            now=setup.clock.now,
            new_id=new_id,
            random=random.Random().random,  # noqa: S311 - spreads retries
            log=setup.log,
            state=str(setup.state),
        )
        runner = Runner(books.catalog, books.audit, environment, inforce.policy.daemon.max_jobs)
        scheduler = Scheduler(books.catalog, setup.clock, self._start_planned, runner.events)
        host = (setup.host, setup.machine_id)
        following = Following(books.catalog, inforce, environment, runner)
        storages = Storages(books.catalog, inforce, self._paths)
        views = Views(books.catalog, inforce, runner, scheduler, following, storages, *host, books.notes)
        self._do = Operations(
            catalog=books.catalog,
            audit=books.audit,
            clock=setup.clock,
            inforce=inforce,
            runner=runner,
            scheduler=scheduler,
            following=following,
            views=views,
            look=setup.look,
            host=setup.host,
            machine_id=setup.machine_id,
            nudge=Wakeup(),
            notify=notify,
        )
        runner.on_end = self._ended
        runner.on_doubt = self._do.index
        runner.clock_doubt = scheduler.doubt

    async def live(self) -> None:
        """Start, run until a signal arrives, stop."""
        runner, events = self._do.runner, self._do.runner.events
        runner.close_leftovers()
        for database in await self._setup.sweep(self._setup.state):
            events.note("staging.swept", database, {})
        self._do.take_over(at_start=True)
        try:
            api = await self._setup.serve(Service(self._do))
        except BaseException:
            await self._rest()  # jobs may be running already, and recording their ends needs the catalog
            raise
        self._listen_to_signals()
        count = len(self._do.inforce.policy.names())
        first = {} if count else {"next": "dbguardctl protect PATH"}
        events.note("daemon.ready", None, {"databases": count, "pid": os.getpid(), **first})
        self._notify.ready(self._do.line())
        tasks = [asyncio.create_task(loop()) for loop in (self._tick, self._watch, self._measure, self._prove_audit)]
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            events.note("daemon.stopping", None, {})
            self._notify.stopping(STOP_SECONDS + 30)
            await self._rest()
        finally:
            await api.close()
            broken = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
            for task in (*tasks, stop, *self._background):
                task.cancel()
            await asyncio.gather(*tasks, stop, *self._background, return_exceptions=True)
        for task in broken:
            events.log("daemon.broken", {"problem": repr(task.exception())})
            await task  # raises
        events.log("daemon.stopped", {})

    async def _rest(self) -> None:
        """Wait until all workers have ended."""
        await asyncio.gather(self._do.following.stop(), self._do.runner.stop(STOP_SECONDS))

    async def _run_worker(
        self, spec: Mapping[str, Any], on_message: OnMessage, cancel: asyncio.Event, /, *, stall_timeout: float
    ) -> dict[str, Any]:
        covered = self._do.following.covered(str((spec["database"] or {}).get("name", "")))
        spec = {**spec, "log_stored": {row.chain: row.until_at for row in covered}}
        async with self._do.following.undisturbed(spec):
            return await self._setup.run_worker(spec, on_message, cancel, stall_timeout=stall_timeout)

    def stop(self) -> None:
        """Stop the daemon as a signal would."""
        self._stopping.set()

    # ------------------------------------------------------------------------------------------------ going on

    async def _tick(self) -> None:
        while True:
            try:
                seconds = self._do.scheduler.tick()
                self._do.following.reconsider()
            except GuardError as error:  # the catalog cannot be written: look again soon
                self._do.runner.events.log("schedule.failed", {"problem": error.problem()})
                seconds = 60.0
            await self._do.nudge.wait(max(seconds, 0.001))

    async def _watch(self) -> None:
        every = self._notify.watchdog_seconds
        pause = _PROBE_SECONDS if every is None else every / 2
        while True:
            try:
                self._do.catalog.probe(self._do.now())
            except GuardError as error:
                self._do.runner.events.log("catalog.failed", {"problem": error.problem()})
            else:
                self._notify.alive()
                for storage in sorted(self._do.unread):
                    self._do.index(storage)
            await asyncio.sleep(pause)

    async def _measure(self) -> None:
        while True:
            await self._paths.measure(self._do.views.storages.places())
            self._do.look_again()
            await asyncio.sleep(_GAUGE_SECONDS)

    async def _prove_audit(self) -> None:
        """Verify the audit log at start and every day, so that status shows a change without anybody asking."""
        found = self._do.views.found
        while True:
            try:
                await asyncio.to_thread(self._do.audit.verification())
                found.pop("audit", None)
            except GuardError as error:
                found["audit"] = f"{error.message}: dbguardctl audit verify says where"
            await asyncio.sleep(_AUDIT_SECONDS)

    def _start_planned(self, planned: Planned) -> None:
        order = scheduled(planned, self._do.inforce, self._do.catalog, self._do.now())
        self._do.runner.submit(order)

    def _ended(self, row: JobRow) -> None:
        if row.verb == "scan" and row.state is JobState.DONE:
            self._do.inforce.settle()
        target = row.database or f"storage:{row.request.get('storage', '')}"
        self._do.replan(target)
        self._notify.status(self._do.line())
        if row.verb in ("backup", "sweep", "scan"):
            task = asyncio.get_running_loop().create_task(self._paths.measure(self._do.views.storages.places()))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    # ------------------------------------------------------------------------------------------------ signals

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        do, path = self._do, str(self._do.inforce.path)
        # reloading() has reported what was wrong with it, and no caller waits for an answer.
        with suppress(GuardError), do.reloading(), do.audited(_SIGNAL, "policy.reload", path, {}):
            do.reload()


def _witness(log: Logger) -> Callable[[Entry], None]:
    """Return a function that logs each audit entry to the journal, which the daemon cannot rewrite."""

    def tell(entry: Entry) -> None:
        facts: dict[str, Any] = {"actor": entry.actor.user, "actor_uid": entry.actor.uid, "seq": entry.seq}
        facts |= {"hash": entry.hash, "what": entry.action, "object": entry.object, "result": entry.outcome}
        log.info("audit.entry", action="audit", at=entry.at, **facts)

    return tell
