"""Reads a database whose schema uses syntax of a newer SQLite than the one on this host.

A schema is text, and SQLite parses all of it first. A trigger, a view or a table with newer syntax makes it report the
whole file as malformed, as it does for damage. With `writable_schema` it continues with the part that it understands
(prepare.c, SQLITE_NoSchemaError). Views and triggers have no rows, so all content can be read without them.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from dbguardd.engines.sqlite.content import text, texts

_WORDS = re.compile(
    "malformed database schema .* - .*(syntax error|unrecognized token|unknown (datatype|table option))"
)
_NUMBER = 1000  # a version is stored as 3054001
_ROOTED = (
    "SELECT type, name FROM main.sqlite_schema AS it WHERE rootpage > 0 AND "
    "(type = 'table' AND NOT EXISTS (SELECT 1 FROM pragma_table_xinfo(it.name)) OR "
    "type = 'index' AND NOT EXISTS (SELECT 1 FROM pragma_index_xinfo(it.name))) ORDER BY type DESC, name"
)
_SHOWN = 5


class Unread(sqlite3.DatabaseError):
    """The SQLite on this host does not understand the definition of a table or an index; nothing is wrong with it."""


def version_of(path: Path) -> tuple[int, ...]:
    """Return which SQLite version wrote a file last. This process must not have a connection to it yet (see `live`)."""
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError:  # opening it will raise the reason
        return ()
    number = int.from_bytes(head[96:100], "big")
    return number // _NUMBER**2, number // _NUMBER % _NUMBER, number % _NUMBER


def ignore_newer_syntax(connection: sqlite3.Connection, version: tuple[int, ...]) -> None:
    """Ignore what is not understood, if SQLite `version`, which wrote the database, is newer than ours."""
    if version <= sqlite3.sqlite_version_info:
        return
    try:
        connection.execute("SELECT 1 FROM main.sqlite_schema LIMIT 0").close()
    except sqlite3.DatabaseError as error:  # any other error will be raised when something is read
        if _WORDS.match(str(error)):
            connection.execute("PRAGMA writable_schema=ON")


def ignores_schema(connection: sqlite3.Connection) -> bool:
    """Return whether a connection ignores parts of the schema."""
    return bool(connection.execute("PRAGMA writable_schema").fetchone()[0])


def check_all_read(connection: sqlite3.Connection) -> None:
    """Raise Unread if a table with rows or an index, which owns pages too, is ignored."""
    if not ignores_schema(connection):
        return
    with texts(connection, text):
        lost = [f"{kind} {name}" for kind, name in connection.execute(_ROOTED)]
    if lost:
        named = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        said = named.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise Unread(f"SQLite {sqlite3.sqlite_version} on this host is older than the one that made {said}")
