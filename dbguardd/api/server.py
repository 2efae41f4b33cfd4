"""The HTTP server on the Unix socket: accepts peers, limits what each may hold, and disconnects slow ones.

aiohttp parses HTTP. A connection counts from accept to close, and has a deadline whenever the server waits for the
peer: for its first request, a body, reading an answer, the next request. The kernel closes descriptors that a peer
passes along, because nothing here receives ancillary data.
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

from dbguardd.api.exchange import Limits, exchange
from dbguardd.api.lean import web
from dbguardd.api.listen import Listener, listen
from dbguardd.api.peer import identify
from dbguardd.api.service import Json, Service
from dbguardd.errors import Overloaded

_FINISH_SECONDS = 10.0
_ANSWER_SECONDS = 0.2  # at shutdown, for answers under way; streams and waits would never end


@dataclass(slots=True)
class _Visit:
    """One connection: its user, and the deadline for the peer's next move (None: the server is working)."""

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
            handler_cancellation=True,  # do not wait for a job on behalf of a peer that has hung up
            access_log=None,
            # aiohttp answers what is not HTTP with an error and logs nothing: any user may connect, and a flooded
            # journal drops what matters. exchange() reports what goes wrong in a handler.
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
        """Accept no more connections, let requests that change state finish, then disconnect all peers."""
        # asyncio may be about to accept for a cancelled task, which it would log as a bug.
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
            except OSError as error:  # out of descriptors: closing connections will free some
                logging.getLogger(__name__).warning("api.accept_failed", extra={"facts": {"reason": str(error)}})
                await asyncio.sleep(1.0)
                continue
            try:
                await self._admit(connection)
            except OSError:  # the peer hung up before it was accepted
                connection.close()
            except Exception:  # a bug must not end the accepting
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
        """Return whether there is no place for a new connection; strangers do not take places of peers with a role."""
        here = set(self._http.connections)
        self._visits = {protocol: visit for protocol, visit in self._visits.items() if protocol in here}
        same = sum(visit.uid == new.uid for visit in self._visits.values())
        alike = sum(visit.stranger == new.stranger for visit in self._visits.values())
        limit = self._limits.connections_of_strangers if new.stranger else self._limits.connections
        return alike >= limit or same >= self._limits.connections_per_uid

    async def _watch(self) -> None:
        """Disconnect peers whose deadline has passed."""
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
        """Complete an operation even if the peer that asked for it hangs up."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)


async def serve(
    service: Service, socket_path: Path, *, group: str | None = None, mode: int = 0o660, limits: Limits | None = None
) -> Running:
    """Answer at `socket_path` (owned by `group` if given) or on the socket that systemd passed.

    The service decides on roles, so `mode` may be 0666 if several groups have roles. Raises SecondInstance,
    PolicyUnsafe, PolicyInvalid, Usage.
    """
    listener = listen(socket_path, group, mode, os.environ, os.getpid())
    return Running(service, listener, limits or Limits())


def _turn_away(connection: socket.socket) -> None:
    """Send the reason and disconnect without waiting: a peer that does not read misses it."""
    problem = Overloaded("dbguardd: too many connections", hints=("ss -xp | grep dbguard",)).problem()
    body = json.dumps(problem).encode()
    head = (
        f"HTTP/1.1 {problem['status']} Service Unavailable\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with connection:
        connection.send(head.encode() + body)
