"""Writes a database as SQL text that any sqlite3 shell restores exactly, and replays such text into a new file.

Neither the shell's own .dump nor Python's iterdump is exact: both cut text at a NUL and lose rowids, and iterdump fails
at infinities and at text that is not UTF-8 (man/decisions has the trials). So the text is written here, and tested by
restoring it through the real shell. What the shell needs to be exact:

- floats with 17 digits, which any parser with an error below 0.04 of the last place reads back to the same bits, and
  as a fraction of integers where SQLite's parser is less precise (very large, very small);
- text with NUL, CR, bytes that are not UTF-8, or code points that SQLite does not convert: CAST(x'...' AS TEXT), in the
  encoding of the database;
- rowids, on which contentless FTS indexes and the order of the fingerprint depend;
- virtual tables as rows of sqlite_schema, with their shadow tables as ordinary tables: no module runs.

No text value contains a line that ends with a semicolon, so statements can be separated without parsing values.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

from dbguardd.engines.sqlite import content
from dbguardd.engines.sqlite.content import ROWID_NAMES, quoted
from dbguardd.errors import Unsupported

Tick = Callable[[int], None]

_ODD = re.compile("[\0\r\ud800-\udfff\ufeff\ufffe\uffff]|;\n")
_EXACT_FLOATS = (1e-280, 1e280)
_STATEMENT_BYTES, _STATEMENT_ROWS = 32 << 10, 64
_OWN_TABLES = ("sqlite_sequence", "sqlite_stat1", "sqlite_stat3", "sqlite_stat4")
_PRAGMAS = frozenset(
    (
        *("page_size", "encoding", "auto_vacuum", "user_version", "application_id", "journal_mode"),
        *("foreign_keys", "ignore_check_constraints", "writable_schema"),
    )
)


def write_script(connection: sqlite3.Connection, wal: bool, tick: Tick) -> Iterator[bytes]:
    """Yield the text in pieces. `tick` is called with the bytes produced so far.

    Raises sqlite3.Error for damage, Unsupported for a schema that cannot be restored from text (such as an index on a
    function that only the application has).
    """
    connection.text_factory = content.text
    made = 0
    for piece in _pieces(connection, wal):
        data = piece.encode()
        made += len(data)
        tick(made)
        yield data


def _pieces(connection: sqlite3.Connection, wal: bool) -> Iterator[str]:
    schema = connection.execute(
        "SELECT type, name, tbl_name, sql, rootpage FROM main.sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
    ).fetchall()
    tables = [(name, sql) for kind, name, _, sql, root in schema if kind == "table" and root]
    plain = [(name, sql) for name, sql in tables if name not in _OWN_TABLES]
    own = {name: sql for name, sql in tables if name in _OWN_TABLES}
    virtual = [row for row in schema if row[0] == "table" and not row[4]]
    rest = [sql for kind, _, _, sql, _ in schema if kind != "table"]
    made = _rehearse([sql for _, sql in plain], own, rest)

    yield from _opening(connection)
    encoding = _pragma(connection, "encoding")
    for name, sql in plain:
        yield f"{sql};\n"
        yield from _rows(connection, name, encoding)
    for name, sql in own.items():
        # Creating an AUTOINCREMENT table has already created it, with rows.
        yield f"DELETE FROM {name};\n" if name in made else f"{sql};\n"  # noqa: S608 - one of four fixed names
        yield from _rows(connection, name, encoding)
    for kind, name, table, sql, _ in virtual:
        values = ", ".join(_text(value, encoding) for value in (kind, name, table, sql))
        yield f"INSERT INTO sqlite_schema(type, name, tbl_name, sql, rootpage) VALUES({values}, 0);\n"
    for sql in rest:
        yield f"{sql};\n"
    yield from _closing(connection, wal)


def _opening(connection: sqlite3.Connection) -> Iterator[str]:
    yield f"-- Made by dbguard from SQLite {sqlite3.sqlite_version}. Restore: sqlite3 NEW.db < THIS\n"
    for name in ("page_size", "encoding", "auto_vacuum"):
        yield f"PRAGMA {name}='{_pragma(connection, name)}';\n"
    yield "PRAGMA foreign_keys=OFF;\nPRAGMA ignore_check_constraints=ON;\nBEGIN;\nPRAGMA writable_schema=ON;\n"


def _closing(connection: sqlite3.Connection, wal: bool) -> Iterator[str]:
    for name in ("user_version", "application_id"):
        yield f"PRAGMA {name}={_pragma(connection, name)};\n"
    yield "PRAGMA writable_schema=OFF;\nCOMMIT;\n"
    if wal:
        yield "PRAGMA journal_mode=WAL;\n"


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA main.{name}").fetchone()[0]


def _rehearse(tables: list[str], own: dict[str, str], rest: list[str]) -> set[str]:
    """Create the schema in memory, with the restrictions of replay(); return the names of SQLite's own tables in it.

    This proves, before anything is stored, that each definition is one statement that does what it says, and does not
    need anything that only the application has.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
        scratch.execute("PRAGMA writable_schema=ON")
        scratch.set_authorizer(_authorize)
        try:
            for sql in tables:
                scratch.execute(sql)
            names = {name for (name,) in scratch.execute("SELECT name FROM sqlite_schema WHERE type='table'")}
            for sql in [*(sql for name, sql in own.items() if name not in names), *rest]:
                scratch.execute(sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise Unsupported(
                "method dump: the schema cannot be written as SQL text",
                detail=f"{error}; in: {sql[:200]!r}",
                hints=['method = "pages"'],
            ) from error
    return names & set(_OWN_TABLES)


# ------------------------------------------------------------------------------------------------ values


def _rows(connection: sqlite3.Connection, table: str, encoding: str) -> Iterator[str]:
    columns = [row for row in connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})") if row[6] == 0]
    names = [quoted(row[1]) for row in columns]
    rowid = _rowid_name(connection, table)
    names = [rowid, *names] if rowid else names
    listed = ", ".join(names)
    query = f"SELECT {listed} FROM main.{quoted(table)} NOT INDEXED"  # noqa: S608 - names come from the catalog
    rows = (",".join([_LITERALS[type(value)](value, encoding) for value in row]) for row in connection.execute(query))
    for statement, _ in inserts(table, listed, rows):
        yield f"{statement};\n"


def inserts(table: str, columns: str, rows: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield INSERT statements, without their end, and how many rows each has. `rows` are lists of literals."""
    opening, waiting, size = f"INSERT INTO {quoted(table)}({columns}) VALUES\n", list[str](), 0
    for row in rows:
        waiting.append(f"({row})")
        size += len(row) + 2
        if size >= _STATEMENT_BYTES or len(waiting) >= _STATEMENT_ROWS:
            yield opening + ",\n".join(waiting), len(waiting)
            waiting, size = [], 0
    if waiting:
        yield opening + ",\n".join(waiting), len(waiting)


def _rowid_name(connection: sqlite3.Connection, table: str) -> str:
    """Return a name for the hidden rowid; "" if there is none, a column is the rowid, or all names are taken."""
    info = connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})").fetchall()
    kinds = [row[3] for row in connection.execute(f"PRAGMA main.index_list({quoted(table)})")]
    if any(row[5] for row in info) and "pk" not in kinds:
        return ""  # INTEGER PRIMARY KEY
    taken = {row[1].lower() for row in info}
    name = next((name for name in ROWID_NAMES if name not in taken), "")
    try:
        connection.execute(f"SELECT {name or 'NULL'} FROM main.{quoted(table)} LIMIT 0")  # noqa: S608 - as above
    except sqlite3.OperationalError:
        return ""  # WITHOUT ROWID
    return name


def _text(value: str, encoding: str) -> str:
    if not _ODD.search(value):
        return "'" + value.replace("'", "''") + "'"
    raw = value.encode("utf-8", "surrogateescape")
    if encoding != "UTF-8":
        raw = raw.decode("utf-8", "surrogatepass").encode(encoding, "surrogatepass")
    return f"CAST(x'{raw.hex()}' AS TEXT)"


def _float(value: float, encoding: str) -> str:
    least, most = _EXACT_FLOATS
    if value == 0 or least < abs(value) < most:
        digits = f"{value:.17g}"
        return digits if "e" in digits or "." in digits else digits + ".0"
    if value in (float("inf"), float("-inf")):
        return "9e999" if value > 0 else "-9e999"
    return _fraction(value)


def _fraction(value: float) -> str:
    """Return an exact product: an integer of 53 bits and powers of two, each exact as a double."""
    over, under = value.as_integer_ratio()
    shift = max(0, over.bit_length() - 53)
    return f"({over >> shift}.0{_powers('*', shift)}{_powers('/', under.bit_length() - 1)})"


def _powers(sign: str, bits: int) -> str:
    whole, rest = divmod(bits, 52)
    return f"{sign}{1 << 52}.0" * whole + (f"{sign}{1 << rest}.0" if rest else "")


_LITERALS: dict[type, Callable[[Any, str], str]] = {
    type(None): lambda value, encoding: "NULL",
    int: lambda value, encoding: repr(value),
    float: _float,
    str: _text,
    bytes: lambda value, encoding: f"x'{value.hex()}'",
}


def literal(value: Any, encoding: str) -> str:
    """Return a value as an SQL expression that yields it exactly in a database with that encoding."""
    return _LITERALS[type(value)](value, encoding)


# ------------------------------------------------------------------------------------------------ replay


def replay(connection: sqlite3.Connection, script: BinaryIO, tick: Tick) -> None:
    """Run the text in a new, empty database. Only what write_script() writes is allowed. Raises sqlite3.Error."""
    connection.execute("PRAGMA trusted_schema=0")
    connection.set_authorizer(_authorize)
    done = 0
    for statement in _statements(script):
        connection.execute(statement).fetchall()
        done += len(statement)
        tick(done)


def _statements(lines: Iterable[bytes]) -> Iterator[str]:
    parts: list[bytes] = []
    for line in lines:
        parts.append(line)
        if line.endswith(b";\n"):
            statement = b"".join(parts).decode()
            if sqlite3.complete_statement(statement):
                yield statement
                parts = []
    if b"".join(parts).strip():
        raise sqlite3.DatabaseError("the text ends in the middle of a statement")


_ALLOWED = frozenset(
    (
        *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW),
        *(sqlite3.SQLITE_CREATE_TRIGGER, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_REINDEX),
        *(sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_TRANSACTION),
    )
)
_DENIED_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"))


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    allowed = (
        action in _ALLOWED
        or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS)
        or (action == sqlite3.SQLITE_FUNCTION and second not in _DENIED_FUNCTIONS)
        or (action == sqlite3.SQLITE_DELETE and first in _OWN_TABLES)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
