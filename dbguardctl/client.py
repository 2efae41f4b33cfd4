"""The client of dbguardd's API: HTTP/1.1 over its Unix socket, with the standard library."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlencode

from dbguardctl.lean import http
from dbguardd.errors import DaemonUnreachable, GuardError, Internal, from_problem
from dbguardd.places import SOCKET

Json = dict[str, Any]

# A request that changes something may have to wait, for example a hold for the end of a sweep.
_ANSWER_SECONDS = {"GET": 30.0, "POST": 300.0}
_MAX_ANSWER_BYTES = 256 << 20
_PORTION_BYTES = 1 << 16
_HEARTBEAT_SECONDS = 90.0
_CUT_BY_A_RESTART = 2


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a Unix socket. At the socket of the service, it waits for a service that is starting."""

    def __init__(self, path: str, timeout: float, tell: Callable[[str], None]) -> None:
        super().__init__("dbguard", timeout=timeout)
        self._path = path
        self._tell = tell

    def connect(self) -> None:
        try:
            self._open()
        except (FileNotFoundError, ConnectionRefusedError):
            if self._path != SOCKET:
                raise
            from dbguardctl.waiting import wait_for_start  # noqa: PLC0415 - needed only if nothing answers

            if not wait_for_start(self._opened, self._tell):
                raise

    def _open(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def _opened(self) -> bool:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            self._open()
            return True
        return False


class Daemon:
    """A dbguardd at a socket. Every method raises GuardError: the daemon's error, or DaemonUnreachable.

    `tell` receives messages for the user during a call, one line at a time.
    """

    def __init__(self, path: str, tell: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._tell = tell

    def get(self, *parts: str, **query: Any) -> Json:
        """Return the answer to GET /v1/PARTS; a query value of None is left out."""
        return self._ask("GET", _target(parts, query), None, {}, query.get("wait"))

    def post(self, *parts: str, body: Mapping[str, Any] | None = None, key: str = "", **query: Any) -> Json:
        """Return the answer to POST /v1/PARTS; if sent twice with the same `key`, the daemon acts once."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._ask("POST", _target(parts, query), dict(body or {}), headers, query.get("wait"))

    def download(self, *parts: str) -> Iterator[bytes]:
        """Yield the bytes of GET /v1/PARTS; raise an error if fewer arrive than announced."""
        connection = _Connection(self.path, _ANSWER_SECONDS["GET"], self._tell)
        try:
            response = self._send(connection, "GET", _target(parts, {}), None, {})
            if response.status >= 400:
                raise _problem(response, response.read())
            left = response.length
            while portion := response.read(_PORTION_BYTES):
                left = None if left is None else left - len(portion)
                yield portion
            if left:
                raise http.client.IncompleteRead(b"", left)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.path, error) from error
        finally:
            connection.close()

    def follow(self, *parts: str, after: int | None = None, **query: Any) -> Iterator[Json]:
        """Yield events as they occur, until the daemon ends the stream. `after` resumes after the last id seen."""
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        connection = _Connection(self.path, _HEARTBEAT_SECONDS, self._tell)
        try:
            # Closed here: Ctrl-C while the interpreter finalizes an open response would be lost silently.
            with self._send(connection, "GET", _target(parts, query), None, headers) as response:
                if response.status >= 400:
                    raise _problem(response, response.read())
                yield from _events(response)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.path, error) from error
        finally:
            connection.close()

    def _ask(self, method: str, target: str, body: Json | None, headers: Mapping[str, str], wait: Any) -> Json:
        seconds = _ANSWER_SECONDS[method] + float(wait or 0)
        # A request that only reads is sent again if the service ends before it answers. One restart interrupts it
        # at most twice: by the daemon that ends, and in the queue of the socket that is removed with it.
        again = _CUT_BY_A_RESTART if method == "GET" and self.path == SOCKET else 0
        while True:
            try:
                status, data = self._answered(method, target, body, headers, seconds)
            except ConnectionError as error:
                if again == 0:
                    raise _unreachable(self.path, error) from error
                again -= 1
            else:
                return _object(data, status)

    def _answered(
        self, method: str, target: str, body: Json | None, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        """Send one request. Raises ConnectionError if the daemon is gone, and the daemon's own error if it refuses."""
        connection = _Connection(self.path, seconds, self._tell)
        try:
            response = self._send(connection, method, target, body, headers)
            data = response.read(_MAX_ANSWER_BYTES)
        except ConnectionError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.path, error) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _problem(response, data)
        return response.status, data

    def _send(
        self, connection: _Connection, method: str, target: str, body: Json | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method, target, data, {**kind, **headers})
        return connection.getresponse()


def _target(parts: tuple[str, ...], query: Mapping[str, Any]) -> str:
    path = "/".join(quote(part, safe="") for part in parts)
    given = {
        key: ("true" if value else "false") if isinstance(value, bool) else value
        for key, value in query.items()
        if value is not None
    }
    return f"/v1/{path}" + (f"?{urlencode(given)}" if given else "")


def _object(data: bytes, status: int) -> Json:
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise Internal("dbguardd: the answer is not JSON", detail=f"HTTP status {status}, {len(data)} bytes") from error
    if not isinstance(answer, dict):
        raise Internal("dbguardd: the answer is not a JSON object", detail=f"HTTP status {status}")
    return answer


def _problem(response: http.client.HTTPResponse, data: bytes) -> GuardError:
    problem = _object(data, response.status)
    return from_problem({"message": f"dbguardd: HTTP status {response.status} {response.reason}", **problem})


def _unreachable(path: str, error: Exception) -> DaemonUnreachable:
    hints, detail = ["systemctl status dbguardd"], ""
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            why = "the socket does not exist" if isinstance(error, FileNotFoundError) else "nobody listens there"
            hints, detail = _starting(path), "A restore does not need the daemon: dbguardd run restore NAME --to PLACE"
        case PermissionError():
            there = "" if path == SOCKET else f"--socket {shlex.quote(path)} "
            why, hints = "you may not open the socket", [f"sudo dbguardctl {there}status"]
        case TimeoutError():
            why = "no answer in time"
        case http.client.RemoteDisconnected() | ConnectionError() | http.client.IncompleteRead():
            why, hints = "the daemon ended the connection", ["journalctl -u dbguardd -n 20"]
        case OSError() if "too long" in str(error):
            why, hints = "the path of a Unix socket has at most 107 bytes", ["dbguardctl --socket PATH status"]
        case _:
            why = str(error) or type(error).__name__
    message = f"cannot reach dbguardd: {path}: {why}"
    return DaemonUnreachable(message, detail=detail, hints=hints, facts={"socket": path})


def _starting(path: str) -> list[str]:
    """Return how to start what should listen there: the service, or the user's own daemon."""
    from dbguardctl.waiting import ways_to_start  # noqa: PLC0415 - needed only if nothing answers

    own = f"dbguardd --policy FILE --state DIRECTORY --socket {shlex.quote(path)}"
    return (ways_to_start() or ["dbguardd &"]) if path == SOCKET else [own]


def _events(response: http.client.HTTPResponse) -> Iterator[Json]:
    data: list[str] = []
    while raw := response.readline(1 << 20):
        line = raw.decode(errors="replace").rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield _object("\n".join(data).encode(), response.status)
            data.clear()
