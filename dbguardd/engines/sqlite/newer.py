"""A database that a newer SQLite wrote, in words that the one of this host does not know.

A schema is text, and SQLite reads all of it before anything else. A trigger, a view or a table in words that came later
makes it call the whole file malformed, as it does with damage. With `writable_schema` it goes on with what it does
understand (prepare.c, SQLITE_NoSchemaError): views and triggers have no rows, so all content can be read without them.
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
    """A table or an index is defined in words that the SQLite of this host does not know: nothing is wrong with it."""


def version_of(path: Path) -> tuple[int, ...]:
    """Return which SQLite wrote a file last. This process may have no connection to the file yet (see `live`)."""
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except OSError:  # whoever opens it says why
        return ()
    number = int.from_bytes(head[96:100], "big")
    return number // _NUMBER**2, number // _NUMBER % _NUMBER, number % _NUMBER


def bear(connection: sqlite3.Connection, version: tuple[int, ...]) -> None:
    """Go on without what is not understood, if SQLite of `version` wrote the database and that is a newer one."""
    if version <= sqlite3.sqlite_version_info:
        return
    try:
        connection.execute("SELECT 1 FROM main.sqlite_schema LIMIT 0").close()
    except sqlite3.DatabaseError as error:  # what else it may be is told when something is read
        if _WORDS.match(str(error)):
            connection.execute("PRAGMA writable_schema=ON")


def bears(connection: sqlite3.Connection) -> bool:
    """Say if a connection goes on without something."""
    return bool(connection.execute("PRAGMA writable_schema").fetchone()[0])


def check_all_read(connection: sqlite3.Connection) -> None:
    """Raise Unread if it goes on without what has rows, or without an index, which owns pages, too."""
    if not bears(connection):
        return
    with texts(connection, text):
        lost = [f"{kind} {name}" for kind, name in connection.execute(_ROOTED)]
    if lost:
        named = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        said = named.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise Unread(f"SQLite {sqlite3.sqlite_version} on this host does not know the words of a newer one in {said}")
