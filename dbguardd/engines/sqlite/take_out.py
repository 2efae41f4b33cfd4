"""Extracts one table from a backup: as SQL text that any sqlite3 shell runs, or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite import script
from dbguardd.engines.sqlite.ask import stored_names
from dbguardd.engines.sqlite.content import quoted
from dbguardd.engines.sqlite.pages import Opened, opened
from dbguardd.engines.sqlite.tables import Table, Text, encoding, exact, known, tables, values
from dbguardd.errors import TooCostly, Unsupported, Usage
from dbguardd.flow import Facts, Pages


def table(pages: Pages, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
    """See engines.base.Questions."""
    if form not in _FORMS:
        raise Usage(f"{bounds.about}: a table comes as {' or '.join(_FORMS)}, not as {form}")
    with opened({"main": pages}, bounds, answer) as backup:
        found = known(tables(backup.connection), name, bounds.about, stored_names(backup.connection))
        return _FORMS[form](backup, found)


def write_whole(backup: Opened, words: str) -> None:
    """Write a complete text; bytes that are not UTF-8 are written unchanged."""
    if not backup.fits(words.encode("utf-8", "surrogateescape")):
        raise TooCostly(
            f"{backup.bounds.about}: this host has no room for the answer", detail="Half of it would be no answer."
        )


def _rows(backup: Opened, table: Table, columns: tuple[str, ...]) -> Iterator[list[Any]]:
    known_as = encoding(backup.connection)
    query = f"SELECT {exact(columns)} FROM {table.path} NOT INDEXED"  # noqa: S608 - names come from the catalog
    for row in backup.connection.execute(query):
        yield values(row, known_as)


def _csv(backup: Opened, table: Table) -> Facts:
    buffer, rows = io.StringIO(newline=""), 0
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for row in _rows(backup, table, table.columns):
        writer.writerow([_csv_value(item) for item in row])
        rows += 1
        write_whole(backup, _taken(buffer))
    write_whole(backup, _taken(buffer))
    return {"rows": rows, "triggers": 0}


def _csv_value(item: Any) -> Any:
    match item:
        case bytes():
            return item.hex()
        case Text():
            return item.raw.decode("utf-8", "surrogateescape")
        case _:
            return item


def _taken(buffer: io.StringIO) -> str:
    words = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return words


def _sql(backup: Opened, table: Table) -> Facts:
    """Write the table with its rows and indexes. Triggers are left out: they would act on other tables."""
    connection, known_as = backup.connection, encoding(backup.connection)
    write = partial(write_whole, backup)
    beside = connection.execute(
        "SELECT type, sql FROM main.sqlite_schema WHERE lower(tbl_name) = lower(?) AND sql IS NOT NULL"
        " AND type IN ('index', 'trigger') ORDER BY rowid",
        (table.name,),
    ).fetchall()
    indexes = [str(sql) for kind, sql in beside if kind == "index"]
    _rehearse([table.sql, *indexes], backup.bounds.about)
    write(f"-- Made by dbguard: {one_line(table.name)} of {backup.bounds.about}. Run: sqlite3 NEW.db < THIS\n")
    write(f"PRAGMA encoding='{known_as}';\nPRAGMA foreign_keys=OFF;\nPRAGMA ignore_check_constraints=ON;\nBEGIN;\n")
    write(f"{table.sql};\n")
    columns = (table.rowid, *table.columns) if table.rowid else table.columns
    rows = 0
    for statement, count in inserts(table.name, columns, _rows(backup, table, columns), known_as):
        write(f"{statement};\n")
        rows += count
    for sql in indexes:
        write(f"{sql};\n")
    write("COMMIT;\n")
    return {"rows": rows, "triggers": len(beside) - len(indexes)}


def inserts(table: str, columns: Sequence[str], rows: Iterable[list[Any]], known_as: str) -> Iterator[tuple[str, int]]:
    """Yield statements, without their end, that insert rows into a table; and how many rows each inserts."""
    literals = (",".join([literal_of(item, known_as) for item in row]) for row in rows)
    return script.inserts(table, ", ".join(map(quoted, columns)), literals)


def literal_of(item: Any, known_as: str) -> str:
    """Return a value of values() as SQL."""
    return f"CAST(x'{item.raw.hex()}' AS TEXT)" if isinstance(item, Text) else script.literal(item, known_as)


def one_line(name: str) -> str:
    """Return a name as it may stand in a comment."""
    return " ".join(name.split())


def _rehearse(statements: list[str], about: str) -> None:
    """Run the definitions in memory. Each must be one statement that creates what it says and nothing else.

    They come from the backup, and whoever runs the text may have the rights of an administrator.
    """
    with closing(apsw.Connection(":memory:")) as scratch:
        seen: list[str] = []

        def begin(_cursor: apsw.Cursor, statement: str, _bindings: Any) -> bool:
            seen.append(statement)
            return True

        scratch.exec_trace = begin
        scratch.authorizer = _making
        try:
            for sql in statements:
                scratch.execute(sql)
        except (apsw.Error, ValueError) as error:
            raise Unsupported(f"{about}: the table cannot be written as SQL text", detail=f"{error}; in: {sql[:200]}",
                              hints=["--format csv"]) from error  # fmt: skip
    if len(seen) != len(statements):
        raise Unsupported(f"{about}: the table has a definition that is more than one statement")


def _making(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    return apsw.SQLITE_OK if action in _MAKING else apsw.SQLITE_DENY


_MAKING = frozenset(
    (
        *(apsw.SQLITE_CREATE_TABLE, apsw.SQLITE_CREATE_INDEX, apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE),
        *(apsw.SQLITE_READ, apsw.SQLITE_REINDEX, apsw.SQLITE_TRANSACTION, apsw.SQLITE_FUNCTION, apsw.SQLITE_SELECT),
    )
)
_FORMS: dict[str, Callable[[Opened, Table], Facts]] = {"sql": _sql, "csv": _csv}
