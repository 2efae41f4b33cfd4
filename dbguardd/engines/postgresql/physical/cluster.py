"""What the server says about its cluster: what a physical backup must know first and cannot read from files."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, major_of, row, rows, shown, text, version_of
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.segments import WalTimeline
from dbguardd.engines.postgresql.refusals import no_answer
from dbguardd.engines.postgresql.typed import statements
from dbguardd.errors import SourceDenied, SourceInvalid, Unsupported
from dbguardd.frozen import frozen

OLDEST = 15
"""The first version whose backup mode ends with the session that began it."""

_BEAT_SECONDS, _GRACE_SECONDS = 0.25, 5.0
_ABOUT = b"""
SELECT current_setting('data_directory'), current_setting('block_size')::int,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'), current_setting('wal_level'),
       current_setting('data_checksums') = 'on', current_setting('full_page_writes') = 'on',
       pg_is_in_recovery(), system_identifier, catalog_version_no,
       CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8
         ELSE coalesce((SELECT received_tli FROM pg_stat_wal_receiver), (pg_control_checkpoint()).timeline_id) END,
       current_setting('max_prepared_transactions')::int,
       current_setting('max_locks_per_transaction')::int8 * (
         SELECT sum(setting::int8) FROM pg_settings WHERE name IN ('max_connections', 'max_prepared_transactions',
           'max_worker_processes', 'max_wal_senders', 'autovacuum_max_workers', 'autovacuum_worker_slots'))::int8,
       (SELECT setting::bigint >= 0 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
       pg_postmaster_start_time()::text
FROM pg_control_system()
"""
_KINDS = (bytes, int, int, bytes, bool, bool, bool, int, int, int, int, int, bool, bytes)
_SAME = b"SELECT system_identifier, pg_postmaster_start_time()::text FROM pg_control_system()"
_PAGE_BYTES = tuple(1 << bits for bits in range(10, 16))
_SEGMENT_BYTES = tuple(1 << bits for bits in range(20, 31))
_TABLESPACES = b"SELECT oid::int8, spcname, pg_tablespace_location(oid) FROM pg_tablespace ORDER BY oid"


@frozen
class Cluster:
    """A running server: a primary, or (where the url asks for one) a `standby`.

    `tablespaces` outside the data directory: name and place, by OID. `configuration`: configuration files outside the
    data directory, place by name in the backup.
    """

    version: str
    major: int
    directory: str
    page: int
    checksums: bool
    whole_pages: bool  # full_page_writes: the first change of a page after a checkpoint logs the whole page
    catalog: int
    prepared: int
    locks: int  # room in the lock table: prepared transactions may hold all of it
    bounded: bool  # whether the server limits how much WAL a slot keeps
    started: bytes  # when the server started: together with the system identifier it is unique
    standby: bool
    log: WalTimeline
    tablespaces: Mapping[str, tuple[bytes, str]]
    configuration: Mapping[str, str]

    @property
    def version_directory(self) -> str:
        """The name of this version's directory in a tablespace."""
        return f"PG_{self.major}_{self.catalog}"


def look(connection: Connection, about: str, *, standby: bool = False) -> Cluster:
    """Ask the server. Raises SourceDenied, and Unsupported for a server that cannot be backed up physically."""
    major = major_of(connection)
    if major < OLDEST:
        raise Unsupported(
            f"{about}: a physical backup needs PostgreSQL {OLDEST} or later",
            detail=f"This is {version_of(connection)}.",
            hints=['set method = "dump"'],
        )
    told = row(connection, _KINDS, _ABOUT)
    directory, page, segment, level, checksums, whole, follows, system, catalog, timeline, prepared, locks = told[:12]
    bounded, started = told[12:]
    if page not in _PAGE_BYTES or segment not in _SEGMENT_BYTES or not 0 < timeline < 1 << 32 or b"\0" in directory:
        raise no_answer(told)
    if follows and not standby:
        raise Unsupported(
            f"{about}: the server is a standby",
            detail="Its log is followed at the primary, and backups are made of a standby only where the url says so: "
            "target_session_attrs=standby, or prefer-standby.",
        )
    if text(level) == "minimal":
        raise Unsupported(
            f"{about}: wal_level is minimal",
            detail="The server writes too little into its log for a backup beside running transactions.",
            hints=[statements(connection, "ALTER SYSTEM SET wal_level = 'replica'") + "  # then restart the server"],
        )
    if not directory:
        raise SourceDenied(f"{about}: the server does not say where its data directory is")
    spaces = tablespaces(connection)
    for number, (name, place) in spaces.items():
        if place == f"pg_tblspc/{number}":
            raise Unsupported(
                f"{about}: the tablespace {shown(name)} lies within the data directory",
                detail="It was made with allow_in_place_tablespaces, for PostgreSQL's own tests: a server does "
                "not send what is in it, and starts on no copy of it.",
                hints=["ALTER TABLE ... SET TABLESPACE for what is in it, then DROP TABLESPACE", 'set method = "dump"'],
            )
    return Cluster(
        version_of(connection),
        major,
        os.fsdecode(directory),
        page,
        checksums,
        whole,
        catalog,
        prepared,
        locks,
        bounded,
        started,
        follows,
        WalTimeline(system, timeline, segment),
        spaces,
        configuration.outside(connection, os.fsdecode(directory)),
    )


def check_same(connection: Connection, cluster: Cluster, about: str) -> None:
    """Raise SourceInvalid if a connection reached a different server than that of `cluster`."""
    if rows(connection, _SAME) != [(cluster.log.system, cluster.started)]:
        raise two_servers(about)


def two_servers(about: str) -> SourceInvalid:
    """Return an error: a backup is of one server, but our connections reached several."""
    return SourceInvalid(
        f"{about}: two connections reached two servers",
        detail="A backup is of one server. Something in between picks a server for each connection, or the server "
        "was restarted.",
        hints=["name the server itself in the url"],
    )


def tablespaces(connection: Connection) -> dict[str, tuple[bytes, str]]:
    """Return name and place of each tablespace outside the data directory, by OID."""
    found = rows(connection, _TABLESPACES)
    if any(tuple(map(type, one)) != (int, bytes, bytes) for one in found):
        raise no_answer(found)
    told = ((str(oid), bytes(name), os.fsdecode(place)) for oid, name, place in found)
    return {oid: (name, place) for oid, name, place in told if place}


def clock(connection: Connection) -> datetime:
    """Return the time on the server's clock. Whatever is read from the server afterwards includes commits up to it."""
    return cast(datetime, row(connection, (datetime,), b"SELECT clock_timestamp()")[0])


def waited(connection: Connection, alive: Alive, query: bytes, *values: Any) -> list[tuple[Any, ...]]:
    """Return all rows of a query that may take long. `alive` is called while it runs; if it raises, the query ends.

    A function in the query can catch the cancellation: then the socket is shut down, and the server ends the session.
    """
    outcome: list[list[tuple[Any, ...]] | BaseException] = []

    def ask() -> None:
        try:
            outcome.append(rows(connection, query, *values))
        except BaseException as error:  # noqa: BLE001 it is raised by the thread that waits
            outcome.append(error)

    asking = threading.Thread(target=ask, name="ask")
    asking.start()
    try:
        while asking.is_alive():
            asking.join(_BEAT_SECONDS)
            alive()
    except BaseException:
        connection.cancel_safe()
        asking.join(_GRACE_SECONDS)
        if asking.is_alive():
            with socket.socket(fileno=os.dup(connection.fileno())) as connected:
                connected.shutdown(socket.SHUT_RDWR)
        raise
    finally:
        asking.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found
