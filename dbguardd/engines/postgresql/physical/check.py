"""Checks the structure of a recovered database with PostgreSQL's own checks of tables and B-trees (amcheck)."""

from __future__ import annotations

import secrets
import time

import psycopg
from psycopg import errors

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.meaning import outcome
from dbguardd.engines.postgresql.physical.cluster import waited

LOCK_MILLISECONDS = 1000
"""A lock is waited for no longer than this: no other session exists that could release it."""
LOCKED = "a prepared transaction has locked it (end it in the original: pg_prepared_xacts; and back up again)"

_ELSEWHERE = "this host has another version of its collation than the server, and so may sort it otherwise"
_TOLD = 5
_LEAST_SECONDS, _LEAST_BYTES_A_SECOND = 600.0, 4 << 20
_TRIGGERS = b"SELECT format('ALTER EVENT TRIGGER %I DISABLE', evtname) FROM pg_event_trigger WHERE evtenabled <> 'D'"
_INSTALLED = b"SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'amcheck')"
_HEAPS = b"""
SELECT c.oid::int8, n.nspname, c.relname, false
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam
WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' AND a.amname = 'heap' ORDER BY c.oid
"""
_BTREES = b"""
SELECT c.oid::int8, n.nspname, c.relname, EXISTS (
  SELECT FROM unnest(i.indcollation::oid[]) AS used(number)
  JOIN pg_collation k ON k.oid = used.number CROSS JOIN pg_database d
  WHERE d.datname = current_database() AND CASE WHEN k.collprovider = 'd'
    THEN d.datcollversion IS DISTINCT FROM pg_database_collation_actual_version(d.oid)
    ELSE k.collversion IS DISTINCT FROM pg_collation_actual_version(k.oid) END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am a ON a.oid = c.relam
JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relkind = 'i' AND c.relpersistence = 'p' AND a.amname = 'btree' AND i.indisvalid AND i.indisready ORDER BY c.oid
"""
"""Last column: this host may sort the index's text differently from the original server (other collation version)."""

_SIZE = b"""
SELECT pg_relation_size(c.oid) + coalesce(pg_relation_size(i.indrelid), 0)
FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid WHERE c.oid = %s::int8::oid
"""


def check_structure(
    connection: Connection, database: str, alive: Alive, *, least_seconds: float = _LEAST_SECONDS
) -> Finding:
    """Check every table and every B-tree, looking up all rows in it, in a transaction that is rolled back.

    An index expression may run forever, so each relation gets `least_seconds`, plus time in proportion to its size.
    """
    name = f"structure of {database}"
    try:
        calls = _amcheck(connection) + b"."
    except errors.LockNotAvailable:
        raise
    except psycopg.Error as error:
        said = str(error).strip().splitlines()[0]
        lacking = isinstance(error, errors.UndefinedFile | errors.FeatureNotSupported)  # missing on this host
        return Finding(name, "not configured" if lacking else "inconclusive", f"amcheck is not installed here: {said}")
    heap = b"SELECT count(*), min(msg) FROM " + calls + b"verify_heapam(relation => %s::int8::oid, check_toast => true)"
    tree = b"SELECT 0, NULL FROM (SELECT " + calls + b"bt_index_check(%s::int8::oid, true)) AS done"
    told = {"failed": list[str](), "inconclusive": list[str](), "ok": list[str]()}
    for query, listed in ((heap, _HEAPS), (tree, _BTREES)):
        for number, namespace, relation, elsewhere in rows(connection, listed):
            about = f"{shown(bytes(namespace))}.{shown(bytes(relation))}"
            try:
                outcome, said = _asked(connection, query, number, alive, least_seconds)
            except _Expired as expired:
                return Finding(name, "inconclusive", f"{about}: its check did not end in {expired.seconds:.0f} s")
            if elsewhere and outcome == "failed":
                outcome, said = "inconclusive", f"{said}: {_ELSEWHERE}"
            told[outcome].append(f"{about}: {said}")
    for outcome in ("failed", "inconclusive"):
        if bad := told[outcome]:
            more = "" if len(bad) <= _TOLD else f" and {len(bad)} in all"
            return Finding(name, outcome, "; ".join(bad[:_TOLD]) + more)
    return Finding(name, "ok", f"{len(told['ok'])} tables and B-trees")


class _Expired(Exception):
    """A check took longer than the `seconds` allowed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _amcheck(connection: Connection) -> bytes:
    """Put amcheck into a new schema that contains nothing else, and return the schema's name.

    Where amcheck is now, the owner of the schema may be anybody, and could have added functions of the same names that
    match our calls better: these would run as the superuser and report no errors. Event triggers are disabled, since
    their functions would run, too, or could prevent the creation.
    """
    for (disable,) in rows(connection, _TRIGGERS):
        connection.execute(bytes(disable), prepare=False)
    schema = f"dbguard_{secrets.token_hex(8)}".encode()
    connection.execute(b"CREATE SCHEMA " + schema, prepare=False)
    ((installed,),) = rows(connection, _INSTALLED)
    made = b"ALTER EXTENSION amcheck SET SCHEMA " if installed else b"CREATE EXTENSION amcheck SCHEMA "
    connection.execute(made + schema, prepare=False)
    if installed:  # the installed version may be too old for verify_heapam
        connection.execute(b"ALTER EXTENSION amcheck UPDATE", prepare=False)
    return schema


def _asked(connection: Connection, query: bytes, number: int, alive: Alive, least_seconds: float) -> tuple[str, str]:
    """Return outcome and detail for one relation. After _Expired the connection is unusable."""
    connection.execute(b"SAVEPOINT one", prepare=False)
    began = time.monotonic()

    def within() -> None:
        alive()
        if time.monotonic() - began > seconds:
            raise _Expired(seconds)

    try:
        ((size,),) = rows(connection, _SIZE, number)
        seconds = least_seconds + int(size) / _LEAST_BYTES_A_SECOND
        ((count, said),) = waited(connection, within, query, number)
        found = "failed" if count else "ok", bytes(said or b"").decode(errors="replace")
    except errors.LockNotAvailable:
        found = "inconclusive", LOCKED
    except psycopg.Error as error:
        said = str(error).strip().splitlines()[0]
        found = outcome(said, error.sqlstate), said
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return found
