"""One moment of the databases of a server, held: a read transaction in each, and a lock on each table.

The lock (ACCESS SHARE, as every query takes it) comes first and the snapshot after it: a table that is truncated or
rewritten between the two would be read empty, since that is not undone for older snapshots. It keeps nobody from
reading or writing; who wants to alter or drop a table waits until the backup has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from dbguardd.engines.postgresql.connect import (
    Address,
    Connection,
    connect,
    connected,
    major_of,
    place_of,
    refusals,
    rows,
    shown,
    text,
)
from dbguardd.engines.postgresql.content import Stored, has_large, schema_lines, stored_tables
from dbguardd.errors import SourceLocked, SourceMissing, Unsupported

_TRIES = 3
_PER_STATEMENT = 500  # tables that one statement locks


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of a database; names as text."""

    name: str
    schema: str
    version: str


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a server: how it was made."""

    name: str
    encoding: str
    provider: str  # of its collation: c, i (ICU) or b (built in)
    collate: str
    ctype: str
    locale: str  # of ICU or built in; else empty
    size_bytes: int


@dataclass(slots=True)
class Held:
    """A database whose moment is held."""

    database: Database
    connection: Connection
    snapshot: str = ""  # its exported name
    at: datetime = datetime.min.replace(tzinfo=UTC)  # by the server's clock
    tables: list[Stored] = field(default_factory=list)
    extensions: list[Extension] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)  # its definitions
    large: bool = False


def list_databases(connection: Connection, only: str = "") -> list[Database]:
    """Return the databases that have content: all that take connections and are no templates, or the one named.

    Raises Unsupported for a name that is not UTF-8, SourceMissing if the one named is not there.
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
        b"FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
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
        raise SourceMissing(f"{only}: there is no such database, or it is a template or takes no connections")
    return [one for one in found if only in ("", one.name)]


class Snapshot:
    """The moment of all databases that are backed up. close() lets it go."""

    def __init__(self, address: Address, lock_seconds: float) -> None:
        self._address = address
        self._lock_milliseconds = max(1, int(lock_seconds * 1000))
        self.held: list[Held] = []

    @property
    def at(self) -> datetime:
        """What was committed before is in the snapshot of every database."""
        return min(one.at for one in self.held)

    @property
    def spread_seconds(self) -> float:
        """How far the moments of the databases lie from each other at most."""
        return (max(one.at for one in self.held) - self.at).total_seconds()

    def take(self, databases: Sequence[Database], only: str = "") -> None:
        """Lock what is there, then hold one moment after the other, as close together as can be."""
        for database in databases:
            try:
                self.held.append(Held(database, connect(self._address, database.name, about=self._about(database))))
            except SourceMissing:
                if only:
                    raise  # else it was dropped since it was listed: there is nothing to be lost of it
        for held in self.held:
            with refusals(self._about(held.database)):
                self._lock(held)
        for held in self.held:
            with refusals(self._about(held.database)):
                ((name, at),) = rows(held.connection, b"SELECT pg_export_snapshot(), clock_timestamp()")
                held.snapshot, held.at = text(name), at
        for held in self.held:
            with refusals(self._about(held.database)):
                self._take_stock(held)

    def _about(self, database: Database) -> str:
        return f"{place_of(self._address)}, database {database.name}"

    def _lock(self, held: Held) -> None:
        """Begin the transaction with a lock on every table, before it has a snapshot."""
        for attempt in range(_TRIES):
            held.tables = stored_tables(held.connection)
            held.connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            held.connection.execute(f"SET LOCAL lock_timeout = {self._lock_milliseconds}".encode())
            try:
                lock(held.connection, held.tables)
            except psycopg.errors.LockNotAvailable as error:
                raise SourceLocked(
                    f"{self._about(held.database)}: somebody alters a table, and keeps the lock on it",
                    detail=f"It was waited for {self._lock_milliseconds / 1000:g} s (lock_timeout).",
                    hints=["SELECT pid, query FROM pg_stat_activity WHERE state <> 'idle'  -- who it is"],
                ) from error
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                held.connection.execute(b"ROLLBACK")  # dropped since it was listed
                if attempt == _TRIES - 1:
                    raise
            else:
                return

    def _take_stock(self, held: Held) -> None:
        """See what is in the snapshot; a table that came after the list was made is locked now, as pg_dump does."""
        known = {table.quoted for table in held.tables}
        held.tables = stored_tables(held.connection)
        lock(held.connection, [table for table in held.tables if table.quoted not in known])
        held.extensions = extensions_of(held.connection)
        held.lines = schema_lines(held.connection)  # now: a function may be dropped before the dump has ended
        held.large = has_large(held.connection)

    def close(self) -> None:
        """Let go. Safe to call at any time."""
        while self.held:
            self.held.pop().connection.close()


def lock(connection: Connection, tables: Sequence[Stored]) -> None:
    """Take the lock of a reader on these tables."""
    for start in range(0, len(tables), _PER_STATEMENT):
        names = b", ".join(b"ONLY " + table.quoted for table in tables[start : start + _PER_STATEMENT])
        connection.execute(b"LOCK TABLE " + names + b" IN ACCESS SHARE MODE")


def extensions_of(connection: Connection) -> list[Extension]:
    """Return the extensions of a database."""
    asked = (
        b"SELECT e.extname, n.nspname, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        b"ORDER BY e.oid"  # as they were made: one may need another
    )
    return [
        Extension(*(bytes(part).decode(errors="surrogateescape") for part in row)) for row in rows(connection, asked)
    ]


def roles_of(address: Address) -> tuple[list[str], bool]:
    """Return the names of all roles but PostgreSQL's own, and whether their passwords may be read.

    The first one made the cluster, and is its first superuser.
    """
    with connected(address) as connection:
        names = rows(connection, b"SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY oid <> 10, rolname")
        ((readable,),) = rows(connection, b"SELECT has_table_privilege('pg_authid', 'SELECT')")
    return [bytes(name).decode(errors="surrogateescape") for (name,) in names], bool(readable)
