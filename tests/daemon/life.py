"""A whole daemon in this process: real policy files, catalog, audit log and schedule; the test plays the workers."""

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dbguardd.daemon import Clock, Service, Setup, run
from dbguardd.states import JobState
from dbguardd.wire import JobRow
from dbguardd.worker.look import look
from dbguardd.worker.staging import sweep
from tests.daemon.conftest import SECONDS, START, FakeWorker, Told

POLICY = """version = 1
[defaults]
timezone = "Europe/Berlin"
verify = "off"
expire = "off"
"""


@dataclass(frozen=True)
class Caller:
    """Stands for api.Actor."""

    uid: int = field(default_factory=os.geteuid)
    gid: int = 4242
    pid: int = 77
    user: str = "alice"
    groups: frozenset[int] = frozenset()


class Place:
    """A directory with a policy, a state directory and databases."""

    def __init__(self, path: Path) -> None:
        path.chmod(0o755)
        self.path = path
        self.policy = path / "policy.toml"
        self.state = path / "state"
        self.log = Told()
        self.wall: datetime = START
        self.steady = 500.0
        self.closed = False
        self.write(POLICY)

    def write(self, text: str) -> None:
        self.policy.write_text(text)
        self.policy.chmod(0o644)

    def database(self, name: str = "app") -> Path:
        file = self.path / f"{name}.db"
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
        connection.close()
        return file

    def guard(self, name: str = "app", **settings: str) -> None:
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        path = self.database(name) if not (self.path / f"{name}.db").exists() else self.path / f"{name}.db"
        self.write(f'{self.policy.read_text()}\n[database.{name}]\nengine = "sqlite"\npath = "{path}"\n{lines}')

    @asynccontextmanager
    async def daemon(self, *acts: Any) -> AsyncIterator[tuple[Service, FakeWorker]]:
        """Live until the block ends, then stop by SIGTERM as systemd would."""
        lives = sum(event == "daemon.ready" for _, event, _ in self.log.events)
        worker, born = FakeWorker(acts=list(acts)), asyncio.get_running_loop().create_future()
        place = self

        class Api:
            async def close(self) -> None:
                place.closed = True

        async def serve(service: Service) -> Api:
            born.set_result(service)
            return Api()

        clock = Clock(lambda: self.wall, lambda: self.steady)
        setup = Setup(self.policy, self.state, worker, serve, self.log, "db1", "0123", clock, look, sweep)
        life = asyncio.create_task(run(setup))
        await asyncio.wait([life, born], timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        service = await asyncio.wait_for(born, SECONDS)
        await self.until("daemon.ready", lives + 1)  # not before does it listen to signals
        try:
            yield service, worker
        finally:
            if not life.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(life, SECONDS)

    async def until(self, event: str, times: int = 1) -> dict[str, Any]:
        """Wait until an event was logged `times` times; return its facts."""
        async with asyncio.timeout(SECONDS):
            while True:
                facts = [facts for _, name, facts in self.log.events if name == event]
                if len(facts) >= times:
                    return facts[times - 1]
                await asyncio.sleep(0.005)

    def hangup(self) -> None:
        os.kill(os.getpid(), signal.SIGHUP)


class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.path = path

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


async def done(service: Service, job: JobRow) -> JobRow:
    row = await service.wait(job.id, SECONDS)
    assert row.state not in (JobState.QUEUED, JobState.RUNNING)
    return row


def stored(number: int, created_at: str, grade: str = "proven", **more: Any) -> dict[str, Any]:
    """Return the facts that a worker reports of a backup."""
    return {
        **{"id": f"01JB{number:022d}", "database": "app", "engine": "sqlite", "created_at": created_at},
        **{"kind": "full", "method": "pages", "grade": grade, "source_bytes": 10, "stored_bytes": 5, "note": ""},
        **{"proven_at": created_at, "restore_seconds": 1.5, **more},
    }


def reporting(*reports: tuple[str, dict[str, Any]], result: dict[str, Any] | None = None) -> Any:
    async def act(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        for event, facts in reports:
            on_message({"type": "report", "event": event, "facts": facts})
        return result or {}

    return act


ALICE = Caller()
Test = Callable[[Service, FakeWorker], Awaitable[None]]


def live(place: Place, test: Test) -> None:
    async def main() -> None:
        async with place.daemon() as (service, worker):
            await test(service, worker)
            service._do.audit.verify()

    asyncio.run(main())


def actions(service: Service) -> list[tuple[str, str]]:
    return [(entry.action, entry.outcome) for entry in service._do.audit.show(-1, 1000)]
