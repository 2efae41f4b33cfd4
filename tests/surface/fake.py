"""A daemon that answers from a table: HTTP on a Unix socket, without any database."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from dbguardd.api import strict
from dbguardd.api.routes import find
from dbguardd.errors import GuardError, NotFound
from dbguardd.requests import REQUESTS
from tests.surface import answers

Answer = Any


class FakeDaemon:
    """Serves until stop(). `routes` maps 'METHOD /path' to an answer, an error, or a function of query and body."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "api.sock"
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.keys: list[str] = []
        self.lose_answers = 0
        """The number of POSTs that are carried out but whose answers are lost."""
        self.misfits: list[str] = []
        """What the API of the real daemon would have refused to read."""
        self.routes: dict[str, Answer] = dict(ROUTES)
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        """By id: the rows that a job goes through; the last one stays."""
        self.verb_jobs: dict[str, Any] = {}
        """By verb: what happens to a job of it, instead of running and then done: a list of job()s."""
        self._server = _Server(str(self.socket), _Handler, self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def bodies(self, route: str) -> list[Any]:
        return [body for method, path, _, body in self.asked if f"{method} {path}" == route]

    def check(self, method: str, path: str, query: str, body: Any) -> None:
        """Record what the strict API of the real daemon would refuse."""
        found = find(method, strict.segments(path))
        if isinstance(found, set):
            self.misfits.append(f"no route {method} {path}")
            return
        try:
            strict.query(found[0].query, query)
            if found[0].body is not None:
                strict.body(found[0].body, body or {})
        except GuardError as error:
            self.misfits.append(f"{method} {path}?{query} {body}: {error.message}")

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.asked.append((method, path, query, body))
        parts = path.split("/")
        found = self.routes.get(f"{method} {path}")
        if found is None and parts[1:2] == ["jobs"]:
            return self._job(method, parts[2:], query, body)
        if isinstance(found, Callable):  # type: ignore[arg-type]
            found = found(query, body)
        if found is None:
            found = NotFound(f"{parts[-1]}: there is nothing of that name")
        if isinstance(found, GuardError):
            return found.http_status, {**found.problem(), "instance": f"/v1{path}"}
        return 200, found

    def _job(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> tuple[int, Any]:
        if method == "GET" and len(parts) == 1 and parts[0] in self.jobs:
            rows = self.jobs[parts[0]]
            return 200, {"schema": "dbguard.job/1", "job": rows.pop(0) if len(rows) > 1 else rows[0]}
        if method == "GET" and parts[1:] == ["answer"] and parts[0] in self.jobs:
            row = self.jobs[parts[0]][0]
            text = row["verb"] == "undelete" and row["request"]["sql"]
            return 200, answers.ANSWERS["get" if text else row["verb"]]
        if method == "POST" and parts and parts[0] in REQUESTS:
            return self._start(parts[0], body)
        return 404, NotFound(f"{parts[0] if parts else ''}: there is no such job").problem()

    def _start(self, verb: str, body: dict[str, Any]) -> tuple[int, Any]:
        if isinstance(error := self.verb_jobs.get(verb), GuardError):
            return error.http_status, error.problem()
        id = f"{answers.JOB[:-2]}{len(self.jobs) + 10}"
        rows = self.verb_jobs.get(verb) or [
            answers.job(verb, "running", step="snapshot", done_bytes=512 << 20, total_bytes=1 << 30),
            answers.job(verb, result=answers.RESULTS[verb]),
        ]
        self.jobs[id] = [{**row, "id": id, "request": body, "database": body.get("database")} for row in rows]
        queued = {**self.jobs[id][0], "state": "queued", "step": "", "finished_at": None, "result": None}
        return 202, {"schema": "dbguard.job/1", "job": {**queued, "problem": None}}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, handler: Any, daemon: FakeDaemon) -> None:
        self.fake = daemon
        super().__init__(path, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), BrokenPipeError):  # a client that was interrupted
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._do("GET")

    def do_POST(self) -> None:
        self._do("POST")

    def _do(self, method: str) -> None:
        target = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.fake.check(method, target.path, target.query, body)  # type: ignore[attr-defined]
        path = unquote(target.path).removeprefix("/v1")
        query = dict(parse_qsl(target.query))
        if self.headers.get("Accept") == "text/event-stream":
            return self._stream(path, query)
        fake: FakeDaemon = self.server.fake  # type: ignore[attr-defined]
        fake.keys += [self.headers["Idempotency-Key"]] if "Idempotency-Key" in self.headers else []
        status, answer = fake.answer(method, path, query, body)
        if method == "POST" and fake.lose_answers:
            fake.lose_answers -= 1
            self.close_connection = True
            return None
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def _stream(self, path: str, query: dict[str, str]) -> None:
        fake: FakeDaemon = self.server.fake  # type: ignore[attr-defined]
        after = int(self.headers.get("Last-Event-ID") or query.get("after") or 0)
        fake.asked.append(("STREAM", path, query, after))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b": heartbeat\n\n")
        for event in [event for event in answers.EVENTS if event["id"] > after][:1]:
            self.wfile.write(f"id: {event['id']}\nevent: {event['event']}\ndata: {json.dumps(event)}\n\n".encode())
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


def _show(id: str) -> Answer:
    def answer(_query: dict[str, str], _body: Any) -> Answer:
        return {"schema": "dbguard.show/1", "kind": "backup", "backup": answers.listing()["backups"][0],
                "fingerprint": {"tables": 41, "rows": 9016812}}  # fmt: skip

    return answer


ROUTES: dict[str, Answer] = {
    "GET /status": answers.status(),
    "GET /databases/app/backups": answers.listing(),
    "GET /databases/crm/backups": {"schema": "dbguard.list/1", "database": "crm", "backups": []},
    f"GET /show/{answers.APP_1}": _show(answers.APP_1),
    f"GET /show/{answers.APP_1[:10]}": _show(answers.APP_1),
    "GET /show/app": {"schema": "dbguard.show/1", "kind": "database", "database": answers.status()["databases"][0]},
    f"GET /show/{answers.JOB}": {"schema": "dbguard.show/1", "kind": "job", "job": answers.job()},
    f"POST /backups/{answers.APP_1}/hold": {"schema": "dbguard.hold/1", "backup": answers.APP_1, "reason": "audit"},
    f"POST /backups/{answers.APP_1}/release": {"schema": "dbguard.release/1", "backup": answers.APP_1},
    f"POST /backups/{answers.APP_5}/recall": {
        "schema": "dbguard.recall/1", "backup": answers.APP_5, "database": "app", "holds": [], "kept_because": [],
    },
    "GET /jobs": {"schema": "dbguard.jobs/1", "jobs": [answers.job()]},
    f"GET /jobs/{answers.JOB}": {"schema": "dbguard.job/1", "job": answers.job(result=answers.RESULTS["backup"])},
    f"POST /jobs/{answers.JOB}/cancel": {"schema": "dbguard.job/1", "job": answers.job(state="cancelled")},
    "GET /events": lambda query, body: answers.events(query),
    "POST /databases/app/pause": lambda query, body: {
        "schema": "dbguard.pause/1", "database": "app",
        "paused_until_at": "2026-09-12T09:14:07Z" if body["seconds"] else None,
    },
    "POST /databases/app/resume": {"schema": "dbguard.resume/1", "database": "app"},
    "GET /schedule": {
        "schema": "dbguard.schedule/1", "timezone": "Europe/Berlin",
        "runs": [{"at": "2026-09-12T23:00:00Z", "database": "app", "verb": "backup", "schedule": "daily 01:00"}],
    },
    "POST /protect": lambda query, body: {
        "schema": "dbguard.protect/1",
        "database": "app", "engine": "sqlite", "path": body["path"], "found": "SQLite database, 1.04 GiB",
        "would_write": "/etc/dbguard/conf.d/app.toml" if body["dry_run"] else None,
        "wrote": None if body["dry_run"] else "/etc/dbguard/conf.d/app.toml",
        "text": '[database.app]\nengine = "sqlite"\n',
        "job": None if body["dry_run"] else answers.job(result=answers.RESULTS["backup"]),
    },
    "POST /databases/app/unprotect": lambda query, body: {
        "schema": "dbguard.unprotect/1", "database": "app", "path": "/var/lib/app/app.db", "backups": 34,
        "removed": None if body["dry_run"] else "/etc/dbguard/conf.d/app.toml",
        "would_remove": "/etc/dbguard/conf.d/app.toml" if body["dry_run"] else None,
    },
    "GET /config": lambda query, body: {
        "schema": "dbguard.config/1", "files": ["/etc/dbguard/policy.toml"], "problem": None,
        "policy": {"database": {"app": {"engine": "sqlite", "keep": {"last": 3}, "on": True, "storage": ["local"]}}},
        **({"origins": {"database.app.engine": "/etc/dbguard/policy.toml:9"}} if query.get("origin") == "true" else {}),
    },
    "POST /config/check": {
        "schema": "dbguard.config_check/1", "ok": True, "errors": [], "warnings": [],
        "files": ["/etc/dbguard/policy.toml"],
    },
    "GET /config/diff": {
        "schema": "dbguard.config-diff/1",
        "changes": [{"key": "database.app.keep.daily", "old": 7, "new": 1}],
        "deletes": [{"id": answers.APP_2, "database": "app", "created_at": "2026-09-10T23:00:00Z",
                     "reasons": ["beyond daily 1"]}],
    },
    "POST /reload": {"schema": "dbguard.reload/1", "databases": 4, "warnings": []},
    "POST /config/accept": {"schema": "dbguard.config-accept/1"},
    "GET /config/explain": lambda query, body: {
        "schema": "dbguard.config-explain/1", "key": query["key"],
        "text": "How many backups are kept.", "type": "table", "default": None,
    },
    "GET /config/schema": {"type": "object"},
    "GET /keys": {"schema": "dbguard.keys/1", "keys": answers.status()["keys"]},
    "POST /keys/main/recovery-sheet": {
        "schema": "dbguard.recovery-sheet/1", "identity": "AGE-SECRET-KEY-1TEST", "recipient": "age1test",
        "sheet_text": "dbguard recovery sheet\nAGE-SECRET-KEY-1TEST\n", "qr_svg": "<svg/>",
    },
    "POST /keys/main/recover": {
        "schema": "dbguard.recover/1", "ok": True, "key": "main",
        "repositories": [
            {"storage": "local", "recipient": "age1test", "repository": "00", "mark": "12ab-34cd", "backups": 34}
        ],
    },
    "GET /credentials": {"schema": "dbguard.credentials/1", "credentials": []},
    "POST /keys/main/recovery-test": {"schema": "dbguard.recovery-test/1", "ok": True},
    "GET /audit": {
        "schema": "dbguard.audit/1",
        "entries": [{"seq": 7, "at": "2026-09-12T07:14:00Z",
                     "actor": {"user": "alice", "uid": 1000, "pid": 1, "role": "admin"},
                     "action": "job.restore", "object": "app", "outcome": "intent", "facts": {"job": answers.JOB},
                     "prev": "00", "hash": "00"}],
    },
    "POST /audit/verify": {"schema": "dbguard.audit-verify/1", "ok": True, "entries": 7},
}  # fmt: skip
