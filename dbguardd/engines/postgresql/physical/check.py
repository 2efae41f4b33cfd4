"""The structure of a recovered database: PostgreSQL's own checks of tables and B-trees (amcheck)."""

from __future__ import annotations

import psycopg
from psycopg import errors

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.physical.cluster import waited

LOCK_MILLISECONDS = 1000
"""A lock is not waited for longer: nobody is here who would let it go."""
LOCKED = "a prepared transaction has locked it (end it in the original: pg_prepared_xacts; and back up again)"

_TOLD = 5
_WHERE = b"SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'amcheck'"
_MAKE = (b"CREATE SCHEMA dbguard_amcheck", b"CREATE EXTENSION amcheck SCHEMA dbguard_amcheck")
_HEAPS = b"""
SELECT c.oid::int8, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_am a ON a.oid = c.relam WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p' AND a.amname = 'heap'
ORDER BY c.oid
"""
_BTREES = b"""
SELECT c.oid::int8, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relkind = 'i' AND c.relpersistence = 'p' AND a.amname = 'btree' AND i.indisvalid AND i.indisready ORDER BY c.oid
"""


def check_structure(connection: Connection, database: str, alive: Alive) -> Finding:
    """Check every table and every B-tree, with all rows looked up in it. In a transaction that is rolled back."""
    name = f"structure of {database}"
    found = rows(connection, _WHERE)
    if found:
        schema = bytes(found[0][0])
    else:
        schema = b"dbguard_amcheck"
        try:
            for statement in _MAKE:
                connection.execute(statement, prepare=False)
        except errors.LockNotAvailable:
            raise
        except psycopg.Error as error:
            said = str(error).strip().splitlines()[0]
            return Finding(name, "not configured", f"amcheck is not installed here: {said}")
    calls = b'"' + schema.replace(b'"', b'""') + b'".'
    heap = b"SELECT count(*), min(msg) FROM " + calls + b"verify_heapam(relation => %s::int8::oid, check_toast => true)"
    tree = b"SELECT 0, NULL FROM (SELECT " + calls + b"bt_index_check(%s::int8::oid, true)) AS done"
    told = {"failed": list[str](), "inconclusive": list[str](), "ok": list[str]()}
    for query, listed in ((heap, _HEAPS), (tree, _BTREES)):
        for number, namespace, relation in rows(connection, listed):
            outcome, said = _asked(connection, query, number, alive)
            told[outcome].append(f"{shown(bytes(namespace))}.{shown(bytes(relation))}: {said}")
    for outcome in ("failed", "inconclusive"):
        if bad := told[outcome]:
            more = "" if len(bad) <= _TOLD else f" and {len(bad)} in all"
            return Finding(name, outcome, "; ".join(bad[:_TOLD]) + more)
    return Finding(name, "ok", f"{len(told['ok'])} tables and B-trees")


def _asked(connection: Connection, query: bytes, number: int, alive: Alive) -> tuple[str, str]:
    """Return outcome and detail for one relation."""
    connection.execute(b"SAVEPOINT one", prepare=False)
    try:
        ((count, said),) = waited(connection, alive, query, number)
        found = "failed" if count else "ok", bytes(said or b"").decode(errors="replace")
    except errors.LockNotAvailable:
        found = "inconclusive", LOCKED
    except psycopg.Error as error:
        found = "failed", str(error).strip().splitlines()[0]
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return found
