"""The log of a server as it streams it, byte after byte (the protocol of a physical standby, PostgreSQL 55.4).

libpq implements the protocol; nothing is written to disk or requested twice. What was stored is confirmed to the
server, which keeps all later WAL for the slot.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import pq

from dbguardd.engines.postgresql.connect import Address, Connection, connect_bare
from dbguardd.engines.postgresql.physical.cluster import two_servers
from dbguardd.engines.postgresql.physical.segments import format_lsn
from dbguardd.engines.postgresql.physical.slot import patiently
from dbguardd.engines.postgresql.refusals import no_answer, refusals
from dbguardd.errors import LogBroken, ServerUnreachable

_DATA, _ALIVE = struct.Struct(">cQQq"), struct.Struct(">cQqB")
_CONFIRMED = struct.Struct(">cQQQqB")
_EPOCH = 946_684_800  # 2000-01-01, PostgreSQL's epoch
_CONFIRM_SECONDS = 10.0  # the server ends a connection that is silent for a minute (wal_sender_timeout)


class Stream:
    """A connection that receives the log. `at` is the place of the next byte."""

    def __init__(self, connection: Connection, about: str) -> None:
        self._pq, self._about = connection.pgconn, about
        self.at = 0
        self._confirmed, self._told = 0, 0.0

    def start(self, slot: str, timeline: int, at: int) -> None:
        """Start streaming from a place. Without a `slot` nothing is confirmed, and the server keeps no WAL for us."""
        held = f'SLOT "{slot}" ' if slot else ""
        words = f"START_REPLICATION {held}PHYSICAL {format_lsn(at)} TIMELINE {timeline}"
        patiently(lambda: self._asked(words.encode()))
        self.at, self._confirmed = at, at if slot else 0

    def _asked(self, words: bytes) -> None:
        found = self._pq.exec_(words)
        if found.status != pq.ExecStatus.COPY_BOTH:
            raise psycopg.errors.error_from_result(found)

    def receive(self, seconds: float) -> memoryview:
        """Return the next bytes; none if nothing arrives in time. Raises LogBroken at the end of a timeline."""
        deadline = time.monotonic() + seconds
        while True:
            size, data = self._pq.get_copy_data(1)
            if size < 0:
                raise self._ended()
            kind = bytes(data[:1])
            if kind == b"w" and len(data) >= _DATA.size:
                return self._taken(data)
            if kind == b"k" and len(data) == _ALIVE.size:
                self._told = 0.0 if _ALIVE.unpack(data)[3] else self._told
            elif size:
                raise LogBroken(f"{self._about}: what it sends is not WAL", detail=repr(bytes(data[:50])))
            self.confirm(self._confirmed)
            left = deadline - time.monotonic()
            if left <= 0:
                return memoryview(b"")
            if not size:
                select.select([self._pq.socket], [], [], left)
                self._pq.consume_input()

    def _taken(self, data: memoryview) -> memoryview:
        _, at, _end, _sent = _DATA.unpack_from(data)
        if at != self.at:
            raise LogBroken(f"{self._about}: its log does not continue where it ended", detail=f"{format_lsn(at)}")
        body = data[_DATA.size :]
        self.at += len(body)
        return body

    def confirm(self, at: int) -> None:
        """Confirm that everything before a place is stored, so the server need not keep it. Also a sign of life."""
        now = time.monotonic()
        if at != self._confirmed or now - self._told >= _CONFIRM_SECONDS:
            self._confirmed, self._told = at, now
            clock = int((time.time() - _EPOCH) * 1e6)
            self._pq.put_copy_data(_CONFIRMED.pack(b"r", at, at, 0, clock, 0))
            self._pq.flush()

    def _ended(self) -> Exception:
        """Return the error for the end of the stream."""
        found = self._pq.get_result()
        match None if found is None else found.status:
            case pq.ExecStatus.FATAL_ERROR if found is not None:
                return psycopg.errors.error_from_result(found)
            case pq.ExecStatus.COPY_IN:
                return LogBroken(
                    f"{self._about}: its timeline has ended", detail="The server continues on another timeline."
                )
        return ServerUnreachable(f"{self._about}: the server has ended the connection", detail="It is shut down.")


@contextmanager
def streaming(address: Address, about: str) -> Iterator[Stream]:
    """Connect as a standby does, for the length of a block; the server's errors become ours."""
    with replicating(address, about) as connection:
        yield Stream(connection, about)


@contextmanager
def replicating(address: Address, about: str, slot: str = "") -> Iterator[Connection]:
    """Open a connection for the replication protocol, for the length of a block; the server's errors become ours.

    Raises SourceInvalid if the server does not have the `slot`: then it is not the one that created it.
    """
    options = f"{address.get('options', '')} -c client_min_messages=warning"  # it reports files that it skips
    connection = connect_bare({**address, "options": options, "replication": "true"}, "", about)
    try:
        with refusals(about):
            if slot and asked(connection, f'READ_REPLICATION_SLOT "{slot}"', 3)[0] is None:
                raise two_servers(about)
            yield connection
    finally:
        connection.close()


def history(connection: Connection, timeline: int) -> bytes:
    """Return the history file of a timeline."""
    return asked(connection, f"TIMELINE_HISTORY {timeline}", 2)[1] or b""


def asked(connection: Connection, words: str, columns: int) -> list[bytes | None]:
    """Return the single row of the server's answer."""
    found = connection.pgconn.exec_(words.encode())
    if found.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(found)
    if (found.ntuples, found.nfields) != (1, columns):
        raise no_answer(words)
    return [found.get_value(0, column) for column in range(found.nfields)]
