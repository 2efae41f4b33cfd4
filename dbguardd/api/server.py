"""The HTTP server on the Unix socket: lets peers in, bounds what each holds, shows out the slow.

Parsing HTTP is aiohttp's. A connection is counted from accept to its end, and has a deadline whenever it is the peer's
turn: for its first request, for a body, for taking an answer, for the next request. Descriptors that a peer passes
along are closed by the kernel: nothing here receives ancillary data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from dbguardd.api.exchange import Limits, exchange
from dbguardd.api.listen import Listener, listen
from dbguardd.api.peer import identify
from dbguardd.api.service import Json, Service
from dbguardd.errors import Overloaded

_FINISH_SECONDS = 10.0
_ANSWER_SECONDS = 0.2  # at the end, for answers under way; streams and waits have no end of their own


@dataclass(slots=True)
class _Visit:
    """One connection: whose, and until when it may leave us waiting (None: it is our turn)."""

    uid: int
    stranger: bool
    deadline: float | None


class Running:
    """A server that answers until close()."""

    def __init__(self, service: Service, listener: Listener, limits: Limits) -> None:
        self._service = service
        self._listener = listener
        self._limits = limits
        self._http = web.Server(
            self._handle,
            handler_cancellation=True,  # nobody waits for a job on behalf of a peer that hung up
            access_log=None,
            # What is no HTTP is answered so. It writes no line: anybody may connect, and a journal that is flooded
            # leaves out what matters. What goes wrong in a handler, exchange() tells.
            logger=logging.Logger("aiohttp", logging.CRITICAL),  # noqa: LOG001 - of this server alone
            auto_decompress=False,
            tcp_keepalive=False,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=1.0,
        )
        self._visits: dict[web.RequestHandler, _Visit] = {}
        self._unfinished: set[asyncio.Future[Json]] = set()
        self._tasks = (asyncio.create_task(self._accept()), asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """Let nobody in any more, let what changes something come to its end, then hang up on everybody."""
        # asyncio may be about to accept for a task that is cancelled, which it takes for a bug and logs as one.
        asyncio.get_running_loop().remove_reader(self._listener.socket)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=_FINISH_SECONDS)
        await self._http.shutdown(_ANSWER_SECONDS)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener.socket)
            except OSError as error:  # out of descriptors: those of others will be given back
                logging.getLogger(__name__).warning("api.accept_failed", extra={"facts": {"reason": str(error)}})
                await asyncio.sleep(1.0)
                continue
            try:
                await self._admit(connection)
            except OSError:  # it hung up before it was let in
                connection.close()
            except Exception:  # a bug must not make us deaf
                logging.getLogger(__name__).exception("api.accept_failed")
                connection.close()

    async def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        actor = identify(connection)
        loop = asyncio.get_running_loop()
        visit = _Visit(actor.uid, self._service.role(actor) is None, loop.time() + self._limits.request_seconds)
        if self._is_full(visit):
            _turn_away(connection)
        else:
            await loop.connect_accepted_socket(partial(self._welcome, visit), connection)

    def _welcome(self, visit: _Visit) -> web.RequestHandler:
        protocol = self._http()
        self._visits[protocol] = visit
        return protocol

    def _is_full(self, new: _Visit) -> bool:
        """Count those who are here now, forget the others; strangers do not take the places of those with a role."""
        here = set(self._http.connections)
        self._visits = {protocol: visit for protocol, visit in self._visits.items() if protocol in here}
        same = sum(visit.uid == new.uid for visit in self._visits.values())
        alike = sum(visit.stranger == new.stranger for visit in self._visits.values())
        limit = self._limits.connections_of_strangers if new.stranger else self._limits.connections
        return alike >= limit or same >= self._limits.connections_per_uid

    async def _watch(self) -> None:
        """Hang up on peers whose turn it has been for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(self._limits.request_seconds, self._limits.idle_seconds) / 2)
            for protocol, visit in self._visits.items():
                late = visit.deadline is not None and visit.deadline < loop.time()
                if late and protocol.transport is not None:
                    protocol.transport.abort()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        loop, limits = asyncio.get_running_loop(), self._limits
        visit = self._visits.get(request.protocol)
        if visit is not None:
            visit.deadline = None
        try:
            return await exchange(self._service, request, self._finish, limits)
        finally:
            if visit is not None:
                visit.deadline = loop.time() + limits.idle_seconds

    async def _finish(self, work: Awaitable[Json]) -> Json:
        """Do something to its end even when the peer that asked for it hangs up."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)


async def serve(
    service: Service, socket_path: Path, *, group: str | None = None, mode: int = 0o660, limits: Limits | None = None
) -> Running:
    """Answer at `socket_path` (of `group` if given) or on the socket that systemd passed.

    Who may do what is the service's to say, so `mode` may be 0666 where several groups have roles. Raises
    SecondInstance, PolicyUnsafe, PolicyInvalid, Usage.
    """
    listener = listen(socket_path, group, mode, os.environ, os.getpid())
    return Running(service, listener, limits or Limits())


def _turn_away(connection: socket.socket) -> None:
    """Say why and hang up, without waiting: a peer that does not listen misses it."""
    problem = Overloaded("dbguardd: too many connections", hints=("ss -xp | grep dbguard",)).problem()
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {problem['status']} Service Unavailable\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with connection:
        connection.send(head.encode() + body)
