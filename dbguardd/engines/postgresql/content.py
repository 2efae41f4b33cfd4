"""Fingerprints the content of a database: a digest of its schema, and per table the number and digest of its rows.

A row is the text that COPY writes: the same bytes as in a dump, under settings that do not depend on the server (see
connect), with columns in the order of their names. The digest of a table is the sum of the BLAKE3 hashes of its rows,
modulo 2^256, so it is equal exactly when the rows are, in any order. Rows are read from the table that stores them:
from partitions, not from the partitioned table. Not included: materialized views and indexes, which are derived; tables
of extensions, which the extension creates; sequences, whose values belong to no snapshot.

The schema digest covers what exists and how it is declared, but not the text of expressions: PostgreSQL itself writes
the same expression differently after a restore (casts in an IN list).
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from blake3 import blake3
from psycopg import errors
from psycopg.pq import ExecStatus

from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.frozen import frozen

_MODULUS_BITS = 256
_TICK_ROWS = 1024
_BEAT_SECONDS = 0.25

Data = bytes | bytearray | memoryview
Tick = Callable[[int], None]
"""Called with the bytes read so far, also while nothing comes; raises to stop."""


@frozen
class Stored:
    """A table that stores rows. All names are the bytes of the database."""

    schema: bytes
    name: bytes
    quoted: bytes  # as SQL names it
    copy: bytes  # the statement that reads it

    @property
    def shown(self) -> str:
        """Its name as people read it."""
        return shown(self.quoted)


_OF_USERS = rb"""
  n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND NOT EXISTS (
    SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
"""
_TABLES = (
    rb"""
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname),
  format('COPY %I.%I %s TO STDOUT', n.nspname, c.relname, (
    SELECT '(' || string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname) || ')' FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND """
    + _OF_USERS
    + rb" ORDER BY n.nspname, c.relname"
)

_LARGE = (
    b"COPY (SELECT loid, pageno, rtrim(data, '\\000') FROM pg_largeobject "
    b"WHERE length(rtrim(data, '\\000')) > 0) TO STDOUT"
)
"""A hole in a large object is restored as zeros, so pages that contain only zeros are treated as absent."""

_SCHEMA: Sequence[bytes] = (
    rb"""SELECT 'schema', quote_ident(n.nspname) FROM pg_namespace n
    WHERE n.nspname <> ALL ('{information_schema,public}') AND n.nspname !~ '^pg_' AND NOT EXISTS (
      SELECT FROM pg_depend e WHERE e.classid = 'pg_namespace'::regclass AND e.objid = n.oid AND e.deptype = 'e')""",
    rb"""SELECT 'relation', format('%I.%I', n.nspname, c.relname), c.relkind, c.relpersistence, c.relrowsecurity,
      c.relforcerowsecurity, c.relispartition, c.relreplident, (SELECT string_agg(i.inhparent::regclass::text, ', '
        ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c', 'S') AND c.relpersistence <> 't' AND """
    + _OF_USERS,
    rb"""SELECT 'column', format('%I.%I.%I', n.nspname, c.relname, a.attname),
      format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated, (
        SELECT format('%I', o.collname) FROM pg_collation o WHERE o.oid = a.attcollation)
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
      AND c.relpersistence <> 't' AND """
    + _OF_USERS,
    rb"""SELECT 'constraint', format('%I.%I.%I', n.nspname, c.relname, o.conname), o.contype, o.condeferrable,
      o.condeferred, o.convalidated, o.confupdtype, o.confdeltype, o.confmatchtype,
      nullif(o.confrelid, 0)::regclass::text, (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.place)
        FROM unnest(o.conkey) WITH ORDINALITY k (number, place)
        JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.number)
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE o.contype IN ('p', 'u', 'f', 'c', 'x') AND """
    + _OF_USERS,
    rb"""SELECT 'index', format('%I.%I', n.nspname, c.relname), i.indrelid::regclass::text, m.amname, i.indisunique,
      i.indisprimary, i.indisclustered, i.indisreplident, i.indpred IS NOT NULL, (
        SELECT string_agg(coalesce(quote_ident(a.attname), '?'), ', ' ORDER BY k.place)
        FROM unnest(i.indkey) WITH ORDINALITY k (number, place)
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number AND k.number > 0)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_am m ON m.oid = c.relam JOIN pg_class t ON t.oid = i.indrelid
    WHERE i.indisvalid AND t.relpersistence <> 't' AND NOT EXISTS (SELECT FROM pg_depend e
      WHERE e.classid = 'pg_class'::regclass AND e.objid = i.indrelid AND e.deptype = 'e') AND """
    + _OF_USERS,
    rb"""SELECT 'function', p.oid::regprocedure::text, p.prokind, l.lanname, format_type(p.prorettype, NULL),
      p.proretset, p.provolatile, p.proisstrict, p.prosecdef, p.proleakproof, p.proparallel, md5(p.prosrc)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND NOT EXISTS (
      SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')""",
    rb"""SELECT 'trigger', format('%I.%I.%I', n.nspname, c.relname, g.tgname), g.tgtype, g.tgenabled, g.tgdeferrable,
      g.tginitdeferred, g.tgfoid::regprocedure::text
    FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT g.tgisinternal AND g.tgparentid = 0 AND """
    + _OF_USERS,
    rb"""SELECT 'type', format('%I.%I', n.nspname, t.typname), t.typtype, t.typnotnull,
      format_type(nullif(t.typbasetype, 0), t.typtypmod), (
        SELECT string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder) FROM pg_enum l
        WHERE l.enumtypid = t.oid)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.typtype IN ('d', 'e', 'r') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND NOT EXISTS (
      SELECT FROM pg_depend e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid AND e.deptype = 'e')""",
    rb"""SELECT 'policy', format('%I.%I.%I', n.nspname, c.relname, y.polname), y.polcmd, y.polpermissive
    FROM pg_policy y JOIN pg_class c ON c.oid = y.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE """
    + _OF_USERS,
    rb"""SELECT 'rule', format('%I.%I.%I', n.nspname, c.relname, r.rulename), r.ev_type, r.ev_enabled, r.is_instead
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE r.rulename <> '_RETURN' AND """
    + _OF_USERS,
    rb"""SELECT 'sequence', format('%I.%I', n.nspname, c.relname), format_type(s.seqtypid, NULL), s.seqstart,
      s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND """
    + _OF_USERS,
    rb"""SELECT 'statistics', format('%I.%I', n.nspname, s.stxname), s.stxrelid::regclass::text, s.stxkind::text
    FROM pg_statistic_ext s JOIN pg_class c ON c.oid = s.stxrelid JOIN pg_namespace n ON n.oid = s.stxnamespace
    WHERE """
    + _OF_USERS,
)


class Content:
    """The content of the databases read so far."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._tables: dict[str, TablePrint] = {}

    def add(self, name: bytes, lines: Sequence[bytes], prints: Mapping[str, TablePrint]) -> None:
        """Add the definitions of a database (its name as SQL has it) and the content of its tables."""
        self._lines += [name + b"\0" + line for line in lines]
        self._tables.update(prints)

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of everything added."""
        digest = blake3()
        for line in self._lines:
            digest.update(len(line).to_bytes(8, "little"))
            digest.update(line)
        return Fingerprint(digest.hexdigest(), self._tables)


def prints_of(connection: Connection, excluded: Collection[str], tick: Tick, *, large: bool) -> dict[str, TablePrint]:
    """Read the tables of a connection's database, but not the rows of those in `excluded` (see Stored.shown).

    With `large`, its large objects too.
    """
    name, found, done = shown(name_of(connection)), dict[str, TablePrint](), 0

    def read(copy: bytes) -> TablePrint:
        nonlocal done
        before = done

        def told(size: int) -> None:
            nonlocal done
            done = before + size
            tick(done)

        return print_of(connection, copy, told)

    for table in stored_tables(connection):
        if table.shown not in excluded:
            with naming_table(f"{name}.{table.shown}"):
                found[f"{name}.{table.shown}"] = read(table.copy)
    if large:
        found[f"{name}: large objects"] = read(_LARGE)
    return found


@contextmanager
def naming_table(table: str) -> Iterator[None]:
    """Note in the server's errors which table was read: of a damaged page it names only the file."""
    try:
        yield
    except psycopg.Error as error:
        error.add_note(f"This happened while the table {table} was read.")
        raise


def name_of(connection: Connection) -> bytes:
    """Return the name of a connection's database as SQL has it."""
    ((name,),) = rows(connection, b"SELECT quote_ident(current_database())")
    return bytes(name)


def stored_tables(connection: Connection) -> list[Stored]:
    """Return the tables that store rows, by name."""
    return [Stored(*map(bytes, row)) for row in rows(connection, _TABLES)]


def schema_lines(connection: Connection) -> list[bytes]:
    """Return one line for every definition in a database, sorted."""
    lines = []
    for query in _SCHEMA:
        for row in rows(connection, query):
            lines.append(b"\0".join(map(_told, row)))
    return sorted(lines)


def _told(value: object) -> bytes:
    if value is None:
        return b"~"
    return value if isinstance(value, bytes) else str(value).encode()


def has_large(connection: Connection) -> bool:
    """Return whether there are large objects, all of which may be read."""
    ((found,),) = rows(
        connection,
        b"SELECT has_table_privilege('pg_largeobject', 'SELECT') AND EXISTS (SELECT FROM pg_largeobject_metadata)",
    )
    return bool(found)


def print_of(
    connection: Connection,
    copy: bytes,
    tick: Tick,
    rows_in: Callable[[Iterable[Data]], Iterable[Data]] = iter,
) -> TablePrint:
    """Read the output of a COPY and return its fingerprint. `rows_in` extracts the rows from its messages."""
    total = count = size = 0

    def told() -> None:
        tick(size)

    number = int.from_bytes
    for row in rows_in(_copied(connection, copy, told)):
        total += number(blake3(row).digest(), "little")
        count += 1
        size += len(row)
        if not count % _TICK_ROWS:
            total %= 1 << _MODULUS_BITS
            told()
    told()
    return TablePrint(count, f"{total % (1 << _MODULUS_BITS):064x}")


def _copied(connection: Connection, copy: bytes, beat: Callable[[], None]) -> Iterator[Data]:
    """Yield the messages of a COPY; call `beat` when none has come for a while.

    They are taken from libpq directly: psycopg's own iteration takes twice as long as the hash of a row.
    """
    with connection.cursor() as cursor, cursor.copy(copy):
        server = connection.pgconn
        while True:
            size, data = server.get_copy_data(1)
            if size > 0:
                yield data
            elif size < 0:
                break
            else:
                if not select.select([server.socket], [], [], _BEAT_SECONDS)[0]:
                    beat()
                server.consume_input()
        for failed in [result for result in iter(server.get_result, None) if result.status != ExecStatus.COMMAND_OK]:
            raise errors.error_from_result(failed)
