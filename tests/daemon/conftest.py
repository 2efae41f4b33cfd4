"""A runner with a worker that does what the test says, and a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dbguardd.catalog import Audit, Catalog, Who
from dbguardd.daemon.environment import Environment
from dbguardd.daemon.live import JobTerms, Order
from dbguardd.daemon.runner import Runner
from dbguardd.errors import Cancelled, NotFound
from dbguardd.wire import EventRange, JobRow

START = datetime(2026, 9, 12, 7, 0, tzinfo=UTC)
ALICE = Who("alice", 1000, 4711, "operate")
SECONDS = 60.0


class Told:
    """A log that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **facts: Any) -> None:
        self.events.append(("debug", event, facts))

    def info(self, event: str, **facts: Any) -> None:
        self.events.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.events.append(("warning", event, facts))

    def error(self, event: str, **facts: Any) -> None:
        self.events.append(("error", event, facts))


@dataclass
class FakeWorker:
    """Records every spec; each job ends as `acts` says, or at once."""

    specs: list[Mapping[str, Any]] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    running: int = 0
    most: int = 0
    acts: list[Callable[..., Awaitable[dict[str, Any]]]] = field(default_factory=list)
    started: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def __call__(
        self, spec: Mapping[str, Any], on_message: Any, cancel: asyncio.Event, *, stall_timeout: float
    ) -> dict[str, Any]:
        self.specs.append(spec)
        self.stalls.append(stall_timeout)
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.release()
        try:
            if self.acts:
                return await self.acts.pop(0)(spec, on_message, cancel)
            return {}
        finally:
            self.running -= 1


async def until_cancelled(spec: Any, on_message: Any, cancel: asyncio.Event) -> dict[str, Any]:
    await cancel.wait()
    raise Cancelled("cancelled")


def raising(*errors: Exception) -> list[Callable[..., Awaitable[dict[str, Any]]]]:
    def act(error: Exception) -> Callable[..., Awaitable[dict[str, Any]]]:
        async def run(spec: Any, on_message: Any, cancel: asyncio.Event) -> dict[str, Any]:
            raise error

        return run

    return [act(error) for error in errors]


class World:
    """One daemon's inside with everything around it under the test's control."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.time = START
        self.numbers = count(1)
        self.log = Told()
        self.terms: dict[str, Any] = {}
        self.known = {"app", "shop", "crm"}
        self.open()

    def open(self) -> None:
        self.catalog = Catalog.open(self.path / "catalog.db")
        self.audit = Audit.open(self.path / "audit.jsonl", self.catalog.settings, self.time, lambda entry: None)

    def close(self) -> None:
        self.audit.close()
        self.catalog.close()

    def now(self) -> datetime:
        return self.time

    def pass_time(self, **parts: float) -> None:
        self.time += timedelta(**parts)

    def terms_of(self, order: Order) -> JobTerms:
        name = order.database
        if name is not None and name not in self.known:
            raise NotFound(f"{name}: no such database in the policy")
        spec = {
            "database": None if name is None else {"name": name, "engine": "sqlite"},
            "storage": {"name": order.storage or "local", "type": "directory", "path": "/x"},
            "key": {"name": "main", "type": "machine"},
        }
        return JobTerms(spec, **self.terms)

    @asynccontextmanager
    async def runner(self, max_jobs: int = 4) -> AsyncIterator[tuple[Runner, FakeWorker]]:
        worker = FakeWorker()
        environment = Environment(
            run_worker=worker,
            terms=self.terms_of,
            now=self.now,
            new_id=lambda now: f"01J{next(self.numbers):023d}",
            random=lambda: 0.5,
            log=self.log,
            state=str(self.path),
        )
        runner = Runner(self.catalog, self.audit, environment, max_jobs)
        try:
            yield runner, worker
        finally:
            await runner.stop(SECONDS)

    def events(self) -> list[str]:
        return [event.event for event in self.catalog.events.find(EventRange(), 1000)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def order(verb: str, database: str | None = "app", **fields: Any) -> Order:
    request = dict(fields) if database is None else {"database": database, **fields}
    return Order(verb, request, ALICE, database, fields.get("storage"))


async def started(worker: FakeWorker, times: int = 1) -> None:
    async with asyncio.timeout(SECONDS):
        for _ in range(times):
            await worker.started.acquire()


async def ended(runner: Runner, job: JobRow) -> JobRow:
    row = await runner.wait(job.id, SECONDS)
    assert row.finished_at is not None
    return row
