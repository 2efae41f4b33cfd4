"""Handles one request: identifies the peer, checks its role and every part of the request, and sends the answer.

The order is part of the contract. Nothing is looked up before the role is known to suffice, so that a refusal is the
same whether an object exists or not. Answers are JSON, problem objects, events or bytes; a bug is logged with its
trace, and the peer gets an Internal error without it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from inspect import isawaitable

from dbguardd.api import strict
from dbguardd.api.ask import Ask, Download, Reply, Stream
from dbguardd.api.lean import web
from dbguardd.api.peer import identify
from dbguardd.api.routes import ROUTES, Route, find
from dbguardd.api.service import Actor, Json, Service
from dbguardd.errors import DaemonUnreachable, GuardError, Internal, NotFound, NotPermitted, TooLarge, Usage
from dbguardd.frozen import frozen
from dbguardd.serialize import to_json
from dbguardd.states import Role
from dbguardd.wire import MAX_REQUEST_BYTES, Event

_RANKS: Mapping[Role, int] = {Role.READ: 0, Role.OPERATE: 1, Role.ADMIN: 2}
_PORTION_BYTES = 1 << 16
_DOWNLOAD_BYTES = 1 << 18
_JSON: Mapping[str, str] = {"Content-Type": "application/json", "Cache-Control": "no-store", "Server": "dbguard"}

Finish = Callable[[Awaitable[Json]], Awaitable[Json]]


@frozen
class Limits:
    """How much peers may use, and how long one may keep the server waiting."""

    connections: int = 64
    connections_per_uid: int = 16
    connections_of_strangers: int = 8  # peers without a role, together: enough to tell them so, too few to block others
    request_seconds: float = 5.0  # from connecting to the end of the first request's head
    body_seconds: float = 10.0
    answer_seconds: float = 30.0  # for reading an answer, or one event
    denied_seconds: float = 0.5  # a refusal is recorded; this limits how fast one peer can make us write
    idle_seconds: float = 30.0  # from an answer to the end of the next request's head


class _Refused(Exception):  # noqa: N818 - not an error of the table: it carries a status that no row has
    """A Usage error for which HTTP has a specific status."""

    def __init__(self, status: int, error: GuardError, headers: Mapping[str, str]) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers


async def exchange(service: Service, request: web.BaseRequest, finish: Finish, limits: Limits) -> web.StreamResponse:
    """Answer one request. Raises nothing but cancellation; a peer that has hung up gets no answer."""
    try:
        answer = await _answer(service, request, finish, limits.body_seconds)
        body = _encoded(answer) if isinstance(answer, Reply) else b""
    except Exception as error:
        if isinstance(error, NotPermitted):
            await asyncio.sleep(limits.denied_seconds)
        answer = _failure(error, request)
        body = _encoded(answer)
    if isinstance(answer, Stream):
        return await _stream(request, answer, limits.answer_seconds)
    if isinstance(answer, Download):
        return await _download(request, answer, limits.answer_seconds)
    return await _reply(request, answer, body, limits.answer_seconds)


async def _answer(
    service: Service, request: web.BaseRequest, finish: Finish, body_seconds: float
) -> Reply | Stream | Download:
    actor = _who(request)
    role = service.role(actor)
    action = f"{request.method} {request.rel_url.raw_path}"[:200]
    if role is None:
        raise _denied(service, actor, None, _least(request), action)
    route, names = _route(request)
    if _RANKS[role] < _RANKS[route.role]:
        raise _denied(service, actor, role, route.role, action)
    query = strict.query(route.query, request.rel_url.raw_query_string)
    fields = await _fields(request, route, body_seconds)
    if route.stricter is not None and _RANKS[role] < _RANKS[route.stricter(fields)]:
        raise _denied(service, actor, role, route.stricter(fields), action)
    ask = Ask(service, actor, role, names, query, fields, request.headers, finish)
    result = route.handler(ask)
    if isawaitable(result):
        result = await result
    if isinstance(result, Stream | Download):
        return result
    reply = result if isinstance(result, Reply) else Reply(200, result)
    if not route.answer:
        return reply
    return Reply(reply.status, {"schema": f"dbguard.{route.answer}/1", **reply.content}, reply.headers)


def _least(request: web.BaseRequest) -> Role:
    """Return the least role that may ask this; a peer without a role does not even learn which paths exist."""
    with suppress(GuardError, _Refused):
        return _route(request)[0].role
    return Role.READ


def _who(request: web.BaseRequest) -> Actor:
    connection = request.get_extra_info("socket")
    try:
        return identify(connection)
    except (OSError, AttributeError) as error:  # it has hung up; nobody will read this
        raise DaemonUnreachable("connection: closed before the request was read") from error


def _denied(service: Service, actor: Actor, role: Role | None, needed: Role, action: str) -> NotPermitted:
    service.denied(actor, action)
    may = "has no role" if role is None else f"may {role}, not {needed}"
    return NotPermitted(
        f"{actor.user} (uid {actor.uid}): {may}",
        detail=f"{action} needs the role {needed}.",
        # A peer without a role could not run it either.
        hints=() if role is None else (f"dbguardctl config explain access.{needed}",),
        facts={"needed_role": str(needed), "uid": actor.uid},
    )


def _route(request: web.BaseRequest) -> tuple[Route, dict[str, str]]:
    path = request.rel_url.raw_path
    found = find(request.method, strict.segments(path))
    if isinstance(found, tuple):
        return found
    if not found:
        near = strict.suggestion(path, (route.path for route in ROUTES))
        raise NotFound(f"{path[:200]}: no such path{near}", hints=("curl … http://d/v1/openapi.json",))
    allow = ", ".join(sorted(found))
    error = Usage(f"{path[:200]}: does not take {request.method}", detail=f"It takes {allow}.")
    raise _Refused(405, error, {"Allow": allow})


async def _fields(request: web.BaseRequest, route: Route, body_seconds: float) -> Mapping[str, object]:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Usage("request: compressed bodies are not read")
    if route.body is None:
        if request.body_exists:
            raise Usage(f"{route.method} {route.path}: takes no body")
        return {}
    return strict.body(route.body, strict.parse(await _read(request, body_seconds)))


async def _read(request: web.BaseRequest, body_seconds: float) -> bytes:
    """Return the body, at most MAX_REQUEST_BYTES, if it arrives in time."""
    limit = f"A request has at most {MAX_REQUEST_BYTES} bytes."
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise TooLarge("request: too large", detail=limit)
    body = bytearray()
    try:
        async with asyncio.timeout(body_seconds):
            while portion := await request.content.read(_PORTION_BYTES):
                body += portion
                if len(body) > MAX_REQUEST_BYTES:
                    raise TooLarge("request: too large", detail=limit)
    except TimeoutError as error:
        raise TooLarge("request: the body did not come in time", detail=f"Waited {body_seconds:g} s.") from error
    except web.RequestPayloadError as error:
        raise Usage("request: the body breaks off or is not valid HTTP") from error
    return bytes(body)


def _failure(error: Exception, request: web.BaseRequest) -> Reply:
    """Return the problem object of an error; any other exception is a bug and reveals nothing more than that."""
    path = request.rel_url.raw_path[:200]
    headers: Mapping[str, str] = {}
    status, told = None, error
    if isinstance(error, _Refused):
        status, headers, told = error.status, error.headers, error.error
    if not isinstance(told, GuardError):
        logging.getLogger(__name__).error("api.failed", extra={"facts": {"path": path}}, exc_info=error)
        told = Internal(f"{request.method} {path}: failed because of a bug")
    problem = {**told.problem(), "instance": path, "status": status or told.http_status}
    return Reply(problem["status"], problem, {"Content-Type": "application/problem+json", **headers})


def _encoded(reply: Reply) -> bytes:
    """Return an answer as ASCII JSON: file names may be any bytes, and some appear as surrogates."""
    return (json.dumps(reply.content, separators=(",", ":"), allow_nan=False) + "\n").encode()


async def _reply(request: web.BaseRequest, reply: Reply, body: bytes, seconds: float) -> web.StreamResponse:
    response = web.Response(body=body, status=reply.status, headers={**_JSON, **reply.headers})
    if reply.status == TooLarge.http_status:
        response.force_close()  # the rest of the request is not read
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
            await response.write_eof()
    except (TimeoutError, ConnectionError):  # the peer does not read, or has hung up: not an error of ours
        _cut(request)
    return response


async def _stream(request: web.BaseRequest, stream: Stream, seconds: float) -> web.StreamResponse:
    """Send events as they occur until the peer hangs up, or is disconnected because it does not read."""
    response = web.StreamResponse(headers={**_JSON, "Content-Type": "text/event-stream"})
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
            await response.write(b": dbguard.events/1\n\n")
        async with aclosing(stream.events) as events:  # type: ignore[type-var]  # a generator, as `yield` makes it
            async for event in events:
                async with asyncio.timeout(seconds):
                    await response.write(_event(event))
        await response.write_eof()
    except (TimeoutError, ConnectionError):  # the peer does not read, or has hung up: not an error of ours
        _cut(request)
    return response


async def _download(request: web.BaseRequest, download: Download, seconds: float) -> web.StreamResponse:
    """Send the bytes of a file as fast as the peer reads them; disconnect a peer that stops reading."""
    response = web.StreamResponse(headers={**_JSON, "Content-Type": "application/octet-stream"})
    with download.file as file:
        try:
            response.content_length = await asyncio.to_thread(file.seek, 0, os.SEEK_END)
            await asyncio.to_thread(file.seek, 0)
            async with asyncio.timeout(seconds):
                await response.prepare(request)
            while portion := await asyncio.to_thread(file.read, _DOWNLOAD_BYTES):
                async with asyncio.timeout(seconds):
                    await response.write(portion)
            await response.write_eof()
        except (TimeoutError, OSError):  # the peer stopped reading or hung up, or the disk failed: the answer is short
            _cut(request)
    return response


def _event(event: Event | None) -> bytes:
    if event is None:
        return b":\n\n"
    data = json.dumps({"schema": "dbguard.event/1", **to_json(event)}, separators=(",", ":"), allow_nan=False)
    return f"id: {event.id}\nevent: {event.event}\ndata: {data}\n\n".encode()


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
