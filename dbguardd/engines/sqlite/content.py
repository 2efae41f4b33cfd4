"""Fingerprints the content of a database: a digest of its schema, and per table the number and digest of its rows.

Only tables that own pages are read: never views (a hostile recursive one runs forever), never virtual tables (their
content is in ordinary shadow tables). Rows are read in the order of the table's own key (rowid, or the primary key of a
WITHOUT ROWID table), which both backup methods keep, so the digest does not depend on where rows lie in the file. A
table's digest is the BLAKE3 of the concatenated rows. A row is encoded by marshal, version 2, as a tuple of None, int,
float, str and bytes; this is exact, typed, prefix-free and implemented in C. Bytes in a text value that are not UTF-8
are escaped as lone surrogates, which no other text produces. A test pins the encoding.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from blake3 import blake3

from dbguardd.engines.fingerprint import Fingerprint, TablePrint

ROWID_NAMES = ("rowid", "_rowid_", "oid")
"""The names of the hidden row id; a column of that name hides it."""

Tick = Callable[[int], None]
"""Called with the bytes encoded so far; raises to stop."""

_LIST_HEADER = 5  # marshal: type code and length of the list around the rows
_BATCH_BYTES = 128 << 10
_BATCH_ROWS = 256
_SMALL_VALUE = 256 << 10


class Endless(sqlite3.DatabaseError):
    """A table yields more rows than its file has room for: its pages form a cycle."""


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(raw: bytes) -> str:
    """Decode text without losing bytes that are not UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def stored_tables(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables that own pages, sorted."""
    with texts(connection, text):
        found = connection.execute("SELECT name FROM main.sqlite_schema WHERE type='table' AND rootpage>0")
        return sorted(name for (name,) in found)


def fingerprint(connection: sqlite3.Connection, file_bytes: int, tick: Tick) -> Fingerprint:
    """Return the content of the main database of `connection`, which must not change meanwhile.

    `file_bytes` limits the number of rows. Raises sqlite3.Error (Endless for cyclic pages).
    """
    tables: dict[str, TablePrint] = {}
    done = 0

    def passed(count: int) -> None:
        tick(done + count)

    for name in stored_tables(connection):
        found, size = _table(connection, name, file_bytes, passed)
        done += size
        tables[_shown(name)] = found
    return Fingerprint(schema_digest(connection), tables)


def schema_digest(connection: sqlite3.Connection) -> str:
    """Return the digest of everything that defines the database except its rows."""
    with texts(connection, text):
        rows: list[tuple[Any, ...]] = connection.execute(
            "SELECT type, name, tbl_name, sql FROM main.sqlite_schema"
        ).fetchall()
        settings = [
            (name, *connection.execute(f"PRAGMA main.{name}").fetchone())
            for name in ("encoding", "user_version", "application_id")
        ]
    digest = blake3()
    for row in [*sorted(rows, key=repr), *settings]:
        digest.update(marshal.dumps(row, 2))
    return digest.hexdigest()


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def stored_columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return the columns whose values are stored: all except VIRTUAL generated ones."""
    with texts(connection, text):
        return [row[1] for row in connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})") if row[6] in (0, 3)]


def _table(connection: sqlite3.Connection, name: str, file_bytes: int, tick: Tick) -> tuple[TablePrint, int]:
    """Compute the digest of one table: first by the fast method, then by a slow one if a value requires it.

    The fast method needs strict UTF-8 and values up to 256 KiB (so that a batch is bounded). Both give the same digest.
    """
    columns = ", ".join(quoted(column) for column in stored_columns(connection, name))
    query = f"SELECT {columns} FROM main.{quoted(name)} NOT INDEXED"  # noqa: S608 - names come from the catalog
    small = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _SMALL_VALUE)
    try:
        with texts(connection, str):
            return _scan(connection.execute(query), _BATCH_ROWS, file_bytes, tick)
    except (sqlite3.DataError, sqlite3.OperationalError, UnicodeError) as error:
        if isinstance(error, Endless):
            raise
    finally:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, small)
    with texts(connection, text):
        return _scan(connection.execute(query), 1, file_bytes, tick)


def _scan(cursor: sqlite3.Cursor, batch: int, file_bytes: int, tick: Tick) -> tuple[TablePrint, int]:
    digest, rows, size, limit = blake3(), 0, 0, file_bytes
    count = min(batch, 16)
    while found := cursor.fetchmany(count):
        data = memoryview(marshal.dumps(found, 2))[_LIST_HEADER:]
        digest.update(data)
        rows += len(found)
        size += len(data)
        if rows > limit:
            raise Endless("a table has more rows than its file has bytes")
        count = max(1, min(batch, _BATCH_BYTES * len(found) // len(data)))
        tick(size)
    return TablePrint(rows, digest.hexdigest()), size


@contextmanager
def texts(connection: sqlite3.Connection, factory: Any) -> Iterator[None]:
    """Use `factory` to create text values inside the block."""
    before = connection.text_factory
    connection.text_factory = factory
    try:
        yield
    finally:
        connection.text_factory = before
