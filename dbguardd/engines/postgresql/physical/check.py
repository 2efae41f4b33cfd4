"""The structure of a recovered database: PostgreSQL's own checks of tables and B-trees (amcheck)."""

from __future__ import annotations

import psycopg

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.physical.cluster import waited

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
        except psycopg.Error as error:
            said = str(error).strip().splitlines()[0]
            return Finding(name, "not configured", f"amcheck is not installed here: {said}")
    calls = b'"' + schema.replace(b'"', b'""') + b'".'
    heap = b"SELECT count(*), min(msg) FROM " + calls + b"verify_heapam(relation => %s::int8::oid, check_toast => true)"
    tree = b"SELECT 0, NULL FROM (SELECT " + calls + b"bt_index_check(%s::int8::oid, true)) AS done"
    bad, count = list[str](), 0
    for query, listed in ((heap, _HEAPS), (tree, _BTREES)):
        for number, namespace, relation in rows(connection, listed):
            count += 1
            if said := _asked(connection, query, number, alive):
                bad.append(f"{shown(bytes(namespace))}.{shown(bytes(relation))}: {said}")
    if bad:
        return Finding(
            name, "failed", "; ".join(bad[:_TOLD]) + ("" if len(bad) <= _TOLD else f" and {len(bad)} in all")
        )
    return Finding(name, "ok", f"{count} tables and B-trees")


def _asked(connection: Connection, query: bytes, number: int, alive: Alive) -> str:
    """Return what is wrong with one relation; nothing if nothing is."""
    connection.execute(b"SAVEPOINT one", prepare=False)
    try:
        ((count, said),) = waited(connection, alive, query, number)
    except psycopg.Error as error:
        count, said = 1, str(error).strip().splitlines()[0].encode()
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return bytes(said or b"").decode(errors="replace") if count else ""
