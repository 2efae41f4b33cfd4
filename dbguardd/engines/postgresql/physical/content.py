"""The content of a cluster as its server sees it in one snapshot: the fingerprint of a physical backup.

A physical backup keeps OIDs, names and rows of the system catalogs as they are, so their content is the schema. The
server computes it as a sum of 64-bit hashes of each row's text. Output functions write names as they are now, whatever
the snapshot is. So references to functions, relations and roles are hashed by OID, and the planner's statistics values,
which may have any type, are left out. For names in users' values, see names.

Users' tables are locked with LOCK and read with COPY, neither of which plans a query: planning would run functions of
the table's owner, from expressions in an index or in statistics, with the rights of the reading role. A table is read
only after checking that the lock is on the very table that the snapshot knows, with the same columns: a view may have
taken its name. The output functions of types belong to the server. See dbguardd.engines.postgresql.content for the
digest of a table.

Not included: unlogged and temporary tables, whose rows are not in a physical backup; materialized views, which cannot
be read without planning and are derived from the rest; the current values of sequences, which are outside any snapshot;
and what statements change in the catalogs non-transactionally (`_NOT_OF_A_SNAPSHOT`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from psycopg import errors

from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.content import naming_table, print_of
from dbguardd.engines.postgresql.meaning import TOO_LONG
from dbguardd.engines.postgresql.physical.cluster import waited
from dbguardd.engines.postgresql.physical.names import binary_rows, naming
from dbguardd.errors import SourceChanged
from dbguardd.frozen import frozen

FORM = 2
"""The version of this fingerprint. Fingerprints of different forms differ even for the same content."""

_NOT_OF_A_SNAPSHOT: Mapping[bytes, tuple[bytes, ...]] = {
    b"pg_class": (
        *(b"relpages", b"reltuples", b"relallvisible", b"relallfrozen", b"relfrozenxid", b"relminmxid"),
        *(b"relhasindex", b"relhasrules", b"relhastriggers"),
    ),
    b"pg_database": (b"datfrozenxid", b"datminmxid", b"datconnlimit", b"dathasloginevt"),
    b"pg_statistic_ext_data": (b"stxdexpr",),  # the text of its values depends on no snapshot
}
_LARGE = b"pg_largeobject"
_USERS_OWN = (_LARGE, b"pg_largeobject_metadata")
"""Catalogs that hold users' data: compared like tables."""
_LOCK_MILLISECONDS = 3000

_TABLES = b"""
SELECT c.oid::int8, n.nspname, c.relname, c.relfilenode::int8, format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'pg_toast' ORDER BY n.nspname, c.relname
"""
_COLUMNS = b"""
SELECT attname, CASE
  WHEN atttypid IN (SELECT oid FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typname ~ '^reg')
  THEN format('x.%%I::oid', attname)
  WHEN atttypid = 'aclitem[]'::regtype THEN format('CASE WHEN x.%%1$I IS NOT NULL THEN ARRAY(
    SELECT ROW(grantor, grantee, privilege_type, is_grantable)::text FROM aclexplode(x.%%1$I) ORDER BY 1) END', attname)
  ELSE format('x.%%I', attname) END
FROM pg_attribute WHERE attrelid = %s::int8::oid AND attnum > 0 AND NOT attisdropped
AND atttypid <> 'anyarray'::regtype ORDER BY attnum
"""
_LOCKED = b"""
SELECT pg_relation_filenode(relation)::int8 FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation = %s::int8::oid AND mode = 'AccessShareLock'
"""
_KNOWN = b"""
SELECT CASE WHEN attgenerated = '' THEN quote_ident(attname) END, attnum::int8, attname, (
  WITH RECURSIVE base (oid, of) AS (
    SELECT oid, typbasetype FROM pg_type WHERE oid = atttypid
    UNION ALL SELECT t.oid, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.of
  ) SELECT oid::int8 FROM base WHERE of = 0)
FROM pg_attribute WHERE attrelid = %s::int8::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


@frozen
class Table:
    """A table with rows, as the snapshot knows it."""

    number: int
    schema: bytes
    name: bytes
    node: int
    quoted: bytes

    @property
    def catalog(self) -> bool:
        """Whether it belongs to the server: then no user owns it or an index on it."""
        return self.schema in (b"pg_catalog", b"information_schema")


def fingerprint(databases: Iterable[tuple[bytes, Connection]], alive: Alive) -> Fingerprint:
    """Return the content of all databases in these transactions' snapshots. Raises SourceChanged, SourceDamaged.

    Each table is locked (ACCESS SHARE) only while it is read, so a change of its definition waits only that long. A
    connection is no longer used once the next one is requested. The order of databases does not affect the result.
    """
    schemas, tables = dict[bytes, bytes](), dict[str, TablePrint]()
    for database, connection in databases:
        schema = hashlib.sha256()
        connection.execute(b"SET LOCAL max_parallel_workers_per_gather = 0", prepare=False)
        connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}".encode(), prepare=False)
        schema.update(b"%d %s\n" % (len(database), database))
        ((named,),) = rows(connection, b"SELECT quote_ident(current_database())")
        names = naming(connection)
        for number, space, name, node, quoted in rows(connection, _TABLES):
            table = Table(number, bytes(space), bytes(name), node, bytes(quoted))
            read = f"{shown(bytes(named))}.{shown(table.quoted)}"
            with naming_table(read):
                if table.catalog and table.name != _LARGE:
                    found = _of_catalog(connection, table, alive)
                else:
                    what = names.get(number)
                    found = _of_users(connection, table, what is not None and not what.roles, alive)
            if table.catalog and table.name not in _USERS_OWN:
                schema.update(b"%s %d %s\n" % (table.name, found.rows, found.digest.encode()))
            else:
                tables[read] = found
        schemas[database] = schema.digest()
    return Fingerprint(hashlib.sha256(b"".join(schemas[name] for name in sorted(schemas))).hexdigest(), tables)


def _of_users(connection: Connection, table: Table, binary: bool, alive: Alive) -> TablePrint:
    """Return the content of a table that any user may own; its lock is released again."""
    known = rows(connection, _KNOWN, table.number)
    listed = b", ".join(quoted for quoted, *_ in known if quoted is not None)
    copy = b"COPY " + table.quoted + (b" (" + listed + b")") * bool(listed)
    connection.execute(b"SAVEPOINT one", prepare=False)
    try:
        connection.execute(b"LOCK TABLE ONLY " + table.quoted + b" IN ACCESS SHARE MODE", prepare=False)
        if rows(connection, _LOCKED, table.number) != [(table.node,)]:
            raise _changed(table)
        if [tuple(column) for _, *column in known] != _columns_now(connection, table):
            raise _changed(table)
        copy += b" TO STDOUT" + b" (FORMAT binary)" * binary
        found = print_of(connection, copy, lambda _: alive(), binary_rows if binary else iter)
    except (errors.UndefinedTable, errors.InvalidSchemaName, errors.WrongObjectType, errors.LockNotAvailable) as error:
        raise _changed(table) from error
    except (errors.InternalError_, errors.ProgramLimitExceeded) as error:
        if binary or not TOO_LONG.search(str(error)):
            raise
        connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
        return _of_users(connection, table, binary=True, alive=alive)
    connection.execute(b"ROLLBACK TO SAVEPOINT one", prepare=False)
    return found


def _columns_now(connection: Connection, table: Table) -> list[tuple[int, bytes | None, int]]:
    """Return number, name and type of the columns that a COPY writes now, whatever the snapshot has. Runs nothing."""
    connection.pgconn.prepare(b"", b"SELECT * FROM ONLY " + table.quoted)
    found = connection.pgconn.describe_prepared(b"")
    return [(found.ftablecol(n), found.fname(n), found.ftype(n)) for n in range(found.nfields)]


def _of_catalog(connection: Connection, table: Table, alive: Alive) -> TablePrint:
    """Return the content of a catalog. References are hashed by OID, because names are those of now."""
    left_out = _NOT_OF_A_SNAPSHOT.get(table.name, ())
    columns = [bytes(told) for name, told in rows(connection, _COLUMNS, table.number) if bytes(name) not in left_out]
    query = (
        b"SELECT count(*), coalesce(sum(hashtextextended(r, 0)), 0), coalesce(sum(hashtextextended(r, 1)), 0) "
        b"FROM (SELECT record_out(ROW(" + b", ".join(columns) + b"))::text AS r FROM ONLY " + table.quoted
    ) + b" AS x OFFSET 0) AS s"
    ((count, one, two),) = waited(connection, alive, query)
    return TablePrint(count, f"{int(one) % (1 << 64):016x}{int(two) % (1 << 64):016x}")


def _changed(table: Table) -> SourceChanged:
    return SourceChanged(f"{shown(table.quoted)}: its definition was changed while its content was read")
