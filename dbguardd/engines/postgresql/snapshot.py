"""One moment of a database, held open: a read transaction, and a lock on each table.

The lock (ACCESS SHARE, like that of any query) comes first and the snapshot after it: a table that is truncated or
rewritten between the two would be read as empty, because old snapshots do not protect against that. The lock keeps
nobody from reading or writing. But altering or dropping a table has to wait, and so does every later user of it. So a
database is held no longer than its own dump and fingerprint take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import psycopg

from dbguardd.engines.postgresql.connect import (
    Address,
    Connection,
    connected,
    give_way,
    major_of,
    place_of,
    rows,
    shown,
    text,
)
from dbguardd.engines.postgresql.content import Stored, has_large, name_of, schema_lines, stored_tables
from dbguardd.engines.postgresql.typed import in_one_line
from dbguardd.errors import SourceLocked, SourceMissing, Unsupported
from dbguardd.frozen import frozen

_PER_STATEMENT = 500  # tables that one statement locks
_EXPORT = b"""
SELECT pg_export_snapshot(), statement_timestamp(), pg_backend_pid()::text,
  (SELECT oid::int8 FROM pg_database WHERE datname = current_database())
"""


@frozen
class Extension:
    """An extension of a database; names as text. `filled`: its tables that users may add rows to, which a dump has."""

    name: str
    schema: str
    version: str
    filled: tuple[str, ...] = ()


@frozen
class Database:
    """One database of a server: how it was created."""

    name: str
    encoding: str
    provider: str  # of its collation: c, i (ICU) or b (built in)
    collate: str
    ctype: str
    locale: str  # of ICU or built in; else empty
    size_bytes: int


@frozen
class Held:
    """A database whose snapshot and locks are held."""

    database: Database
    name: bytes  # of the database, as SQL has it
    connection: Connection
    snapshot: str  # the exported name
    at: datetime  # by the server's clock: everything committed by then is in it
    tables: Sequence[Stored]
    extensions: Sequence[Extension]
    lines: Sequence[bytes]  # its definitions
    large: bool  # it has large objects that can be read
    process: str  # the number of the server's process
    number: int  # of the database: its OID, which it keeps under any name


def list_databases(connection: Connection, only: str = "") -> list[Database]:
    """Return the databases with content: all that accept connections, except template0 and template1; or only one.

    Templates made by users have content like any other database. One whose DROP DATABASE was interrupted has none.

    Raises Unsupported for a name that is not UTF-8, SourceMissing if `only` is not there.
    """
    major = major_of(connection)
    provider = b"datlocprovider" if major >= 15 else b"'c'"
    locale = b"datlocale" if major >= 17 else b"daticulocale" if major >= 15 else b"NULL"
    asked = (
        b"SELECT datname, pg_encoding_to_char(encoding), "
        + provider
        + b"::text, datcollate, datctype, "
        + locale
        + b", "
        b"CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) ELSE 0 END "
        b"FROM pg_database WHERE datallowconn AND datconnlimit <> -2 AND datname <> ALL ('{template0,template1}') "
        b"ORDER BY datname"
    )
    found = []
    for name, *rest in rows(connection, asked):
        try:
            decoded = bytes(name).decode()
        except UnicodeDecodeError:
            raise Unsupported(
                f"{shown(name)}: the name of the database is not UTF-8", hints=["ALTER DATABASE ... RENAME TO ..."]
            ) from None
        encoding, kind, collate, ctype, named = ("" if value is None else text(value) for value in rest[:5])
        found.append(Database(decoded, encoding, kind, collate, ctype, named, int(rest[5])))
    if only and only not in [one.name for one in found]:
        raise SourceMissing(f"{only}: there is no such database, or it is the server's template, or takes none in")
    return [one for one in found if only in ("", one.name)]


def list_closed(connection: Connection) -> list[tuple[str, str]]:
    """Return the databases that nobody can connect to, each with the SQL statement that changes that."""
    asked = (
        b"SELECT datname, quote_ident(datname), datconnlimit = -2 FROM pg_database "  # a DROP was interrupted
        b"WHERE (NOT datallowconn OR datconnlimit = -2) AND datname <> 'template0' ORDER BY datname"
    )
    mends = {True: "DROP DATABASE {};", False: "ALTER DATABASE {} ALLOW_CONNECTIONS true;"}
    found = rows(connection, asked)
    return [(shown(bytes(name)), mends[dropped].format(in_one_line(quoted))) for name, quoted, dropped in found]


@contextmanager
def holding(address: Address, database: Database) -> Iterator[Held]:
    """Hold one moment of a database for the length of a block, if all its tables can be locked at once.

    Raises SourceMissing if it is gone, SourceLocked, SourceChanged if a table was dropped just now, and others.
    """
    about = f"{place_of(address)}, database {database.name}"
    with connected(address, database.name, about=about) as connection:
        give_way(connection, connection.info.backend_pid, reads_much=True)
        tables = _locked(connection, about)
        ((name, at, process, number),) = rows(connection, _EXPORT)  # a time before the snapshot
        known = {table.quoted for table in tables}
        tables = stored_tables(connection)
        lock(connection, [table for table in tables if table.quoted not in known])  # new since the list was made
        extensions, large = extensions_of(connection), has_large(connection)
        # Read now: a function may be dropped before the dump ends.
        lines, quoted = schema_lines(connection), name_of(connection)
        known_as = text(process), number
        yield Held(database, quoted, connection, text(name), at, tables, extensions, lines, large, *known_as)


def _locked(connection: Connection, about: str) -> list[Stored]:
    """Begin the transaction with a lock on every table, before it has a snapshot; return the tables.

    No lock is waited for: a waiting session can block others, and be part of a deadlock.
    """
    tables = stored_tables(connection)
    connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        lock(connection, tables)
    except psycopg.errors.LockNotAvailable as error:
        raise SourceLocked(
            f"{about}: a session keeps an exclusive lock on a table",
            detail="It was retried until lock_timeout was over.",
            hints=["SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle'  -- the sessions"],
        ) from error
    return tables


def lock(connection: Connection, tables: Sequence[Stored]) -> None:
    """Take a reader's lock on these tables."""
    for start in range(0, len(tables), _PER_STATEMENT):
        names = b", ".join(b"ONLY " + table.quoted for table in tables[start : start + _PER_STATEMENT])
        connection.execute(b"LOCK TABLE " + names + b" IN ACCESS SHARE MODE NOWAIT")


def extensions_of(connection: Connection) -> list[Extension]:
    """Return the extensions of a database."""
    asked = (
        b"SELECT e.extname, n.nspname, e.extversion, ARRAY(SELECT format('%I.%I', s.nspname, c.relname) "
        b"FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace "
        b"WHERE c.oid = ANY (e.extconfig) AND c.relkind IN ('r', 'p') ORDER BY 1) "
        b"FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        b"ORDER BY e.oid"  # in order of creation: one may need another
    )
    found = []
    for *row, filled in rows(connection, asked):
        name, schema, version = (bytes(part).decode(errors="surrogateescape") for part in row)
        found.append(Extension(name, schema, version, tuple(shown(bytes(one)) for one in filled)))
    return found


def roles_of(address: Address) -> tuple[list[str], bool]:
    """Return the names of all roles except predefined ones, and whether their passwords may be read.

    The first one is the bootstrap superuser, whose role created the cluster.
    """
    with connected(address) as connection:
        names = rows(connection, b"SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY oid <> 10, rolname")
        ((readable,),) = rows(connection, b"SELECT has_table_privilege('pg_authid', 'SELECT')")
    return [bytes(name).decode(errors="surrogateescape") for (name,) in names], bool(readable)
