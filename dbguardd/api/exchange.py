"""One request and its answer: who asks, may they, is every part of it right, what came out.

The order is part of the contract. Nothing is looked up before the role is known to suffice, so that a refusal is the
same whether an object exists or not. Nothing leaves but JSON, problem objects and events; a bug leaves a line in the
journal and an Internal error without its trace.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from inspect import isawaitable

from aiohttp import web

from dbguardd.api import strict
from dbguardd.api.ask import Ask, Reply, Stream
from dbguardd.api.peer import identify
from dbguardd.api.routes import ROUTES, Route, find
from dbguardd.api.service import Actor, Json, Service
from dbguardd.errors import DaemonUnreachable, GuardError, Internal, NotFound, NotPermitted, TooLarge, Usage
from dbguardd.wire import MAX_REQUEST_BYTES, Event, Role, to_json

_RANKS: Mapping[Role, int] = {Role.READ: 0, Role.OPERATE: 1, Role.ADMIN: 2}
_DEFAULT_PORTION = 1 << 16

Finish = Callable[[Awaitable[Json]], Awaitable[Json]]


class _Refused(Exception):  # noqa: N818 - not an error of ours: an answer with a status that no row of the table has
    """A Usage error that HTTP has its own status for."""

    def __init__(self, status: int, error: GuardError, headers: Mapping[str, str]) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers


async def exchange(
    service: Service, request: web.BaseRequest, finish: Finish, body_seconds: float, answer_seconds: float
) -> web.StreamResponse:
    """Answer one request. Raises nothing but cancellation (the peer hung up) and ConnectionError."""
    hang_up = False
    try:
        answer = await _answer(service, request, finish, body_seconds)
    except _Refused as refused:
        answer = _problem(refused.error, request, refused.status, refused.headers)
    except GuardError as error:
        hang_up = isinstance(error, TooLarge | DaemonUnreachable)
        answer = _problem(error, request)
    except Exception:
        logging.getLogger(__name__).exception("api.failed", extra={"path": request.path[:200]})
        answer = _problem(Internal(f"{request.method} {request.path[:200]}: failed because of a bug"), request)
    if isinstance(answer, Stream):
        return await _stream(request, answer, answer_seconds)
    return await _reply(request, answer, answer_seconds, hang_up)


async def _answer(service: Service, request: web.BaseRequest, finish: Finish, body_seconds: float) -> Reply | Stream:
    actor = _who(request)
    role = service.role(actor)
    action = f"{request.method} {request.rel_url.raw_path}"[:200]
    if role is None:
        raise _denied(service, actor, None, Role.READ, action)
    route, names = _route(request)
    if _RANKS[role] < _RANKS[route.role]:
        raise _denied(service, actor, role, route.role, action)
    query = strict.query(route.query, request.rel_url.raw_query_string)
    fields = await _fields(request, route, body_seconds)
    if route.stricter is not None and _RANKS[role] < _RANKS[route.stricter(fields)]:
        raise _denied(service, actor, role, route.stricter(fields), action)
    ask = Ask(service, actor, names, query, fields, request.headers, finish)
    result = route.handler(ask)
    if isawaitable(result):
        result = await result
    if isinstance(result, Stream):
        return result
    reply = result if isinstance(result, Reply) else Reply(200, result)
    if not route.answer:
        return reply
    return Reply(reply.status, {"schema": f"dbguard.{route.answer}/1", **reply.content}, reply.headers)


def _who(request: web.BaseRequest) -> Actor:
    connection = request.get_extra_info("socket")
    try:
        return identify(connection)
    except (OSError, AttributeError) as error:  # it hung up meanwhile; nobody will read this
        raise DaemonUnreachable("connection: closed before the request was read") from error


def _denied(service: Service, actor: Actor, role: Role | None, needed: Role, action: str) -> NotPermitted:
    service.denied(actor, action)
    may = "has no role" if role is None else f"may {role}, not {needed}"
    return NotPermitted(
        f"{actor.user} (uid {actor.uid}): {may}",
        detail=f"{action} needs the role {needed}.",
        hints=("dbguardctl config explain access",),
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
    """Return the body, at most MAX_REQUEST_BYTES of it, if it comes in time."""
    limit = f"A request has at most {MAX_REQUEST_BYTES} bytes."
    if (request.content_length or 0) > MAX_REQUEST_BYTES:
        raise TooLarge("request: too large", detail=limit)
    body = bytearray()
    try:
        async with asyncio.timeout(body_seconds):
            while portion := await request.content.read(_DEFAULT_PORTION):
                body += portion
                if len(body) > MAX_REQUEST_BYTES:
                    raise TooLarge("request: too large", detail=limit)
    except TimeoutError as error:
        raise TooLarge("request: the body did not come in time", detail=f"Waited {body_seconds:g} s.") from error
    except web.RequestPayloadError as error:
        raise Usage("request: the body breaks off or is not valid HTTP") from error
    return bytes(body)


def _problem(
    error: GuardError, request: web.BaseRequest, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    problem = error.problem()
    problem["status"] = status or error.http_status
    problem["instance"] = request.rel_url.raw_path[:200]
    kind = {"Content-Type": "application/problem+json"}
    return Reply(problem["status"], problem, {**kind, **(headers or {})})


async def _reply(request: web.BaseRequest, reply: Reply, seconds: float, hang_up: bool) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **reply.headers}
    text = (
        json.dumps(reply.content, separators=(",", ":"), allow_nan=False) + "\n"
    )  # ASCII: file names may be any bytes
    response = web.Response(body=text.encode(), status=reply.status, headers=headers)
    if hang_up:
        response.force_close()
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        _cut(request)
    return response


async def _stream(request: web.BaseRequest, stream: Stream, seconds: float) -> web.StreamResponse:
    """Send events as they come until the peer hangs up, or is cut because it does not read."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    try:
        async with asyncio.timeout(seconds):
            await response.prepare(request)
            await response.write(b": dbguard.events/1\n\n")
        async with aclosing(stream.events) as events:  # type: ignore[type-var]  # a generator, as `yield` makes it
            async for event in events:
                async with asyncio.timeout(seconds):
                    await response.write(_event(event))
        await response.write_eof()
    except TimeoutError:
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
