"""The content of a cluster as its server sees it in one snapshot: the fingerprint of a physical backup.

A physical backup keeps numbers, names and rows of the system catalogs as they are, so the schema is their content: no
function that could see another moment than the snapshot is asked to describe it. Two columns of digests are sums of
64-bit hashes of each row's text, made by the server: rows may lie in any order, and nothing of them leaves the server.
Row text comes from record_out() of ROW(...), which calls the output functions of types: a cast or a function that the
owner of a table has defined is not called.

Not in it: unlogged and temporary tables, whose rows a physical backup does not have; the current values of sequences,
which are of no snapshot; and what statements change in the catalogs outside of any transaction (`_NOT_OF_A_SNAPSHOT`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from psycopg import errors

from dbguardd.engines.base import Fingerprint, TablePrint
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.physical.cluster import waited
from dbguardd.errors import SourceChanged

_NOT_OF_A_SNAPSHOT: Mapping[bytes, tuple[bytes, ...]] = {
    b"pg_class": (
        *(b"relpages", b"reltuples", b"relallvisible", b"relallfrozen", b"relfrozenxid", b"relminmxid"),
        *(b"relhasindex", b"relhasrules", b"relhastriggers"),
    ),
    b"pg_database": (b"datfrozenxid", b"datminmxid", b"datconnlimit", b"dathasloginevt"),
}
_USERS_OWN = (b"pg_largeobject", b"pg_largeobject_metadata")
"""Catalogs that hold what users put there: told as tables."""
_LOCK_MILLISECONDS = 3000

_TABLES = b"""
SELECT c.oid::int8, n.nspname, c.relname, c.relfilenode::int8
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relispopulated AND c.relpersistence = 'p' AND n.nspname <> 'pg_toast'
ORDER BY n.nspname, c.relname
"""
_COLUMNS = b"""
SELECT attname FROM pg_attribute WHERE attrelid = %s::int8::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_STILL = b"""
SELECT pg_relation_filenode(relation)::int8 FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation = %s::int8::oid AND mode = 'AccessShareLock'
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with rows, as the snapshot knows it."""

    number: int
    schema: bytes
    name: bytes
    node: int

    @property
    def catalog(self) -> bool:
        """Whether it is the server's own, and part of the schema."""
        return self.schema in (b"pg_catalog", b"information_schema") and self.name not in _USERS_OWN


def fingerprint(connections: Mapping[bytes, Connection], alive: Alive) -> Fingerprint:
    """Return the content of all databases in the snapshots of these transactions. Raises SourceChanged, SourceDamaged.

    A table is locked (ACCESS SHARE) only while it is read: whoever changes its definition waits for that one table.
    """
    schema, tables = hashlib.sha256(), dict[str, TablePrint]()
    for database, connection in sorted(connections.items()):
        connection.execute(b"SET LOCAL max_parallel_workers_per_gather = 0", prepare=False)
        connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}".encode(), prepare=False)
        schema.update(b"%d %s\n" % (len(database), database))
        for table in _listed(connection):
            found = _read(connection, table, alive)
            if found is None:
                continue
            if table.catalog:
                schema.update(b"%s %d %s\n" % (table.name, found.rows, found.digest.encode()))
            else:
                tables[".".join(shown(name) for name in (database, table.schema, table.name))] = found
    return Fingerprint(schema.hexdigest(), tables)


def _listed(connection: Connection) -> Iterator[Table]:
    for number, schema, name, node in rows(connection, _TABLES):
        yield Table(number, bytes(schema), bytes(name), node)


def _read(connection: Connection, table: Table, alive: Alive) -> TablePrint | None:
    """Return the content of one table, its lock gone again; None for one without a column that is of a snapshot."""
    connection.execute(b"SAVEPOINT one", prepare=False)
    quoted = _identifier(table.schema) + b"." + _identifier(table.name)
    try:
        if not table.catalog:
            connection.execute(b"SELECT FROM ONLY " + quoted + b" LIMIT 0", prepare=False)  # takes the lock
            if rows(connection, _STILL, table.number) not in ([(table.node,)], [(0,)] if not table.node else []):
                raise _changed(table)
        columns = [bytes(column) for (column,) in rows(connection, _COLUMNS, table.number)]
        ((count, one, two),) = waited(connection, alive, _query(quoted, table, columns))
    except (errors.UndefinedTable, errors.LockNotAvailable) as error:
        raise _changed(table) from error
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return TablePrint(count, f"{int(one) % (1 << 64):016x}{int(two) % (1 << 64):016x}")


def _query(quoted: bytes, table: Table, columns: list[bytes]) -> bytes:
    left_out = _NOT_OF_A_SNAPSHOT.get(table.name, ()) if table.catalog else ()
    kept = b", ".join(b"x." + _identifier(column) for column in columns if column not in left_out)
    return (
        b"SELECT count(*), coalesce(sum(hashtextextended(r, 0)), 0), coalesce(sum(hashtextextended(r, 1)), 0) "
        b"FROM (SELECT record_out(ROW(" + kept + b"))::text AS r FROM ONLY " + quoted + b" AS x OFFSET 0) AS s"
    ).replace(b"%", b"%%")


def _identifier(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'


def _changed(table: Table) -> SourceChanged:
    name = f"{shown(table.schema)}.{shown(table.name)}"
    return SourceChanged(f"{name}: its definition was changed while its content was read")
