"""The content of a cluster as its server sees it in one snapshot: the fingerprint of a physical backup.

A physical backup keeps numbers, names and rows of the system catalogs as they are, so the schema is their content: no
function that could see another moment than the snapshot is asked to describe it. It is a sum of 64-bit hashes of each
row's text, made by the server.

Tables of users are locked by LOCK and read by COPY, which plan nothing: a query would run functions of their owner with
the rights of who asks, from an expression in an index or in statistics. Only once the lock is seen to be on the very
table that the snapshot knows is it read: a view may have taken its name. The output functions of types are the
server's own. See content for the digest of a table.

A value of an enumeration is written by the name that its label has by then, whatever the snapshot is: see renamed().

Not in it: unlogged and temporary tables, whose rows a physical backup does not have; materialized views, which cannot
be read without a plan, and are made of the rest; the current values of sequences, which are of no snapshot; and what
statements change in the catalogs outside of any transaction (`_NOT_OF_A_SNAPSHOT`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import errors

from dbguardd.engines.base import Fingerprint, TablePrint
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.content import print_of
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
SELECT c.oid::int8, n.nspname, c.relname, c.relfilenode::int8, format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'pg_toast' ORDER BY n.nspname, c.relname
"""
_COLUMNS = b"""
SELECT quote_ident(attname), attname, atttypid IN ('regproc'::regtype, 'regprocedure'::regtype) FROM pg_attribute
WHERE attrelid = %s::int8::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_LABELS = b"SELECT oid::int8, enumlabel FROM pg_enum"
_LOCKED = b"""
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
    quoted: bytes

    @property
    def catalog(self) -> bool:
        """Whether it is the server's own: no user owns it, or an index on it."""
        return self.schema in (b"pg_catalog", b"information_schema")


def fingerprint(connections: Mapping[bytes, Connection], alive: Alive) -> Fingerprint:
    """Return the content of all databases in the snapshots of these transactions. Raises SourceChanged, SourceDamaged.

    A table is locked (ACCESS SHARE) only while it is read: whoever changes its definition waits for that one table.
    """
    schema, tables = hashlib.sha256(), dict[str, TablePrint]()
    for database, connection in sorted(connections.items()):
        connection.execute(b"SET LOCAL max_parallel_workers_per_gather = 0", prepare=False)
        connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}".encode(), prepare=False)
        schema.update(b"%d %s\n" % (len(database), database))
        ((named,),) = rows(connection, b"SELECT quote_ident(current_database())")
        for number, space, name, node, quoted in rows(connection, _TABLES):
            table = Table(number, bytes(space), bytes(name), node, bytes(quoted))
            found = _of_catalog(connection, table, alive) if table.catalog else _of_users(connection, table, alive)
            if table.catalog and table.name not in _USERS_OWN:
                schema.update(b"%s %d %s\n" % (table.name, found.rows, found.digest.encode()))
            else:
                tables[f"{shown(bytes(named))}.{shown(table.quoted)}"] = found
    return Fingerprint(schema.hexdigest(), tables)


def labels(connection: Connection) -> dict[int, bytes]:
    """Return the labels of all enumerations, as this transaction sees them."""
    return {int(number): bytes(label) for number, label in rows(connection, _LABELS)}


def renamed(before: Mapping[int, bytes], connection: Connection) -> bool:
    """Say if a label has another name, or is no more, in a transaction that began after what was read before."""
    now = labels(connection)
    return any(now.get(number) != label for number, label in before.items())


def _of_users(connection: Connection, table: Table, alive: Alive) -> TablePrint:
    """Return the content of a table whose owner may be anybody; its lock is gone again."""
    connection.execute(b"SAVEPOINT one", prepare=False)
    try:
        connection.execute(b"LOCK TABLE ONLY " + table.quoted + b" IN ACCESS SHARE MODE", prepare=False)
        if rows(connection, _LOCKED, table.number) != [(table.node,)]:
            raise _changed(table)
        found = print_of(connection, b"COPY " + table.quoted + b" TO STDOUT", lambda _: alive())
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.WrongObjectType, errors.LockNotAvailable) as error:
        raise _changed(table) from error
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return found


def _of_catalog(connection: Connection, table: Table, alive: Alive) -> TablePrint:
    """Return the content of a catalog. What names a function is told by its number: names are those of today."""
    left_out = _NOT_OF_A_SNAPSHOT.get(table.name, ())
    columns = [
        b"x." + bytes(quoted) + b"::oid" * names_a_function
        for quoted, name, names_a_function in rows(connection, _COLUMNS, table.number)
        if bytes(name) not in left_out
    ]
    query = (
        b"SELECT count(*), coalesce(sum(hashtextextended(r, 0)), 0), coalesce(sum(hashtextextended(r, 1)), 0) "
        b"FROM (SELECT record_out(ROW(" + b", ".join(columns) + b"))::text AS r FROM ONLY " + table.quoted
    ) + b" AS x OFFSET 0) AS s"
    ((count, one, two),) = waited(connection, alive, query)
    return TablePrint(count, f"{int(one) % (1 << 64):016x}{int(two) % (1 << 64):016x}")


def _changed(table: Table) -> SourceChanged:
    return SourceChanged(f"{shown(table.quoted)}: its definition was changed while its content was read")
