"""A service in memory, served on a real Unix socket by a thread of its own, and a client of the standard library."""

import asyncio
import http.client
import io
import json
import os
import socket
import threading
from dataclasses import dataclass, field, replace

import pytest

from dbguardd.api import Limits, serve
from dbguardd.errors import Busy, Held, NotFound
from dbguardd.states import Grade, JobState, Role
from dbguardd.wire import BackupRow, CoverageRow, Event, ExpiredRow, JobRow, LogProof, Status

AT = "2026-09-12T01:00:00Z"
BACKUP = BackupRow("01J1", "app", "sqlite", AT, "full", "pages", Grade.PROVEN, 100, 10, "local", kept_because=["last"])
FAILED = replace(BACKUP, id="01J2", grade=Grade.CHECKED, failure="rows differ")


class Store:
    """The Service protocol over lists; `role_now` decides what the peer may, `calls` says what arrived."""

    def __init__(self):
        self.role_now = Role.ADMIN
        self.actors = []
        self.calls = []
        self.refused = []
        self.rows = {}
        self.by_key = {}
        self.past = [Event(n, AT, "backup.stored", "app", "j1", {"n": n}) for n in range(1, 6)]
        self.payload = ""
        self.request = {}
        self.listed = [FAILED, BACKUP]
        self.ended = threading.Event()  # a job that waits, ends
        self.gate = threading.Event()  # a hold that is being made, may go on
        self.gate.set()
        self.waiting = 0
        self.following = 0

    def role(self, actor):
        self.actors.append(actor)
        return self.role_now

    def denied(self, actor, action):
        self.refused.append((actor.uid, action))

    def _called(self, name, *facts):
        self.calls.append((name, *facts))
        return {"what": name}

    async def look(self):
        """There is nothing to look at."""

    def status(self):
        return Status("dbguard.status/1", "0", "host", AT, None, "UTC", [], [], [], [])

    def backups(self, database):
        if database != "app":
            raise NotFound(f"{database}: no such database", hints=("dbguardctl status",))
        return self.listed

    def coverage(self, database):
        return [CoverageRow(AT, AT)], LogProof(AT, AT)

    def expired(self, database):
        return [ExpiredRow(BACKUP, AT, AT)]

    def show(self, id):
        if id == "bug":
            raise RuntimeError("a secret that must not leave: hunter2")
        if id == "nan":
            return {"kind": float("nan")}
        if id == "bytes":
            return {"kind": "backup", "path": os.fsdecode(b"/srv/\xff.db")}
        return {"kind": "backup", "id": id}

    def submit(self, verb, fields, actor, idempotency_key):
        self._called("submit", verb, dict(fields), idempotency_key)
        if fields.get("database") == "busy":
            raise Busy("busy: is being backed up right now", facts={"job": "j9"})
        key = (actor.uid, idempotency_key)
        if idempotency_key is not None and key in self.by_key:
            return self.rows[self.by_key[key]]
        row = JobRow(f"j{len(self.rows) + 1}", verb, fields.get("database"), JobState.QUEUED, actor.user, {}, AT)
        self.rows[row.id] = row
        self.by_key[key] = row.id
        return row

    async def wait(self, job, seconds):
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                while not self.ended.is_set():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return self.job(job)
        finally:
            self.waiting -= 1
        return replace(self.job(job), state=JobState.DONE, result={"backup": "01J1"})

    def jobs(self, database, state, limit):
        return [row for row in self.rows.values() if database in (None, row.database) and state in (None, row.state)]

    def job(self, id):
        if id not in self.rows:
            raise NotFound(f"{id}: no such job")
        return self.rows[id]

    def answer(self, id, actor):
        self.job(id)
        return io.BytesIO(b"[1]")

    def cancel(self, id, actor):
        return replace(self.job(id), state=JobState.CANCELLED)

    def events(self, asked, limit, last):
        self._called("events", asked, limit, last)
        found = [event for event in self.past if asked.after < event.id < (asked.before or 1 << 60)]
        return found[-limit:] if last else found[:limit]

    async def follow(self, after, database, job):
        self.following += 1
        try:
            sent = after
            while True:
                fresh = [event for event in self.past if event.id > sent]
                for event in fresh:
                    yield event
                    sent = event.id
                if not fresh:
                    yield None
                    await asyncio.sleep(0.01)
        finally:
            self.following -= 1

    def pause(self, database, seconds, actor):
        return self._called("pause", database, seconds)

    def resume(self, database, actor):
        return self._called("resume", database)

    async def hold(self, backup, reason, actor):
        self._called("hold.began", backup, reason)
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        return self._called("hold", backup, reason)

    async def release(self, backup, actor):
        raise Held("01J1: another hold stays")

    async def recall(self, backup, actor):
        return self._called("recall", backup)

    def schedule(self, count):
        return self._called("schedule", count)

    async def reload(self, actor):
        return self._called("reload")

    async def protect(self, fields, actor):
        return self._called("protect", dict(fields))

    async def unprotect(self, database, fields, actor):
        return self._called("unprotect", database, dict(fields))

    def config(self, origin):
        return self._called("config", origin)

    def config_check(self):
        return self._called("config_check")

    def config_diff(self):
        return self._called("config_diff")

    async def config_accept(self, actor):
        return self._called("config_accept")

    def config_explain(self, key):
        return self._called("config_explain", key)

    def config_schema(self):
        return {"$schema": "https://json-schema.org/draft/2020-12/schema"}

    def keys(self):
        return self._called("keys")

    def credentials(self):
        return self._called("credentials")

    async def recovery_sheet(self, key, actor):
        return self._called("recovery_sheet", key)

    async def recovery_drop(self, key, recipient, confirm, actor):
        return self._called("recovery_drop", key, recipient, confirm)

    async def recovery_test(self, key, identity, actor):
        return self._called("recovery_test", key, identity)

    async def recover(self, key, identity, actor):
        return self._called("recover", key, identity)

    async def audit(self, after, limit):
        entry = {"facts": {"request": self.request}, "text": self.payload}
        return {**self._called("audit", after, limit), "entries": [entry]}

    async def audit_verify(self):
        return self._called("audit_verify")


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout=60):
        super().__init__("dbguard", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    content: dict


@dataclass
class Served:
    """A running server: ask() sends one request on a new connection."""

    path: str
    store: Store
    limits: Limits
    loop: asyncio.AbstractEventLoop = field(repr=False)

    def ask(self, method, path, body=None, **headers):
        connection = Connection(self.path)
        try:
            sent = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, sent, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, json.loads(answer.read()))
        finally:
            connection.close()

    def raw(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.path)  # blocks while the queue is full, which it does not with a timeout
        connection.settimeout(60)
        return connection


@pytest.fixture(scope="module")
def loop():
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join()
    running.close()


@pytest.fixture
def start(loop, tmp_path):
    """start(limits) serves a fresh store on a fresh socket; all of them are closed at the end."""
    opened = []

    def begin(limits=None):
        store = Store()
        path = tmp_path / f"{len(opened)}.sock"
        limits = limits or Limits(denied_seconds=0)
        running = asyncio.run_coroutine_threadsafe(serve(store, path, limits=limits), loop).result(20)
        opened.append(running)
        return Served(str(path), store, limits, loop)

    yield begin
    for running in opened:
        asyncio.run_coroutine_threadsafe(running.close(), loop).result(20)


@pytest.fixture
def api(start):
    return start()


@pytest.fixture
def me():
    return os.geteuid()
