"""Finds the rows of a table that a later backup has no more, and writes the SQL that puts them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite.ask import encoded, stored_names
from dbguardd.engines.sqlite.pages import Opened, opened
from dbguardd.engines.sqlite.refuse import Refusals
from dbguardd.engines.sqlite.tables import Table, encoding, exact, known, plain, same_row, tables, told_apart, values
from dbguardd.engines.sqlite.take_out import inserts, one_line, write_whole
from dbguardd.errors import Unsupported, Usage
from dbguardd.flow import Facts, Pages

_OLD, _NEW = "o", "n"


def missing(files: tuple[Pages, Pages], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer) -> Facts:
    """See engines.base.Past."""
    name, where = search
    with opened({"main": files[0], "newer": files[1]}, bounds, answer) as both:
        before, after = tables(both.connection), tables(both.connection, "newer")
        old = known(before, name, bounds.about, stored_names(both.connection))
        key = _key(both, old, after.get(old.name))
        columns = [column for column in old.columns if column in after[old.name].columns]
        rows = _rows(both, old, key, (columns, where))
        return _script(both, old, columns, rows) if form == "sql" else _listed(both, columns, rows)


def _key(both: Opened, old: Table, new: Table | None) -> tuple[str, ...]:
    """Return what tells rows apart. Raises Unsupported where only the row id does, which SQLite gives away again."""
    about = both.bounds.about
    if new is None:
        raise Unsupported(f"{about}: the newer one has no table {old.name}", detail="Take out the whole table instead.")
    key = told_apart(both.connection, old)
    if key != told_apart(both.connection, new) or not set(key) <= set(old.primary):
        detail = "Its primary key has changed, or it has none, or NULL in it. Compare the two, and take the table out."
        raise Unsupported(f"{about}: nothing tells for sure which rows of {old.name} are missing", detail=detail)
    return key


def _rows(both: Opened, old: Table, key: Sequence[str], what: tuple[Sequence[str], str]) -> Iterator[list[Any]]:
    columns, where = what
    lost = f"SELECT 1 FROM newer.{old.path.partition('.')[2]} AS {_NEW} WHERE {same_row(key, _NEW, _OLD)}"  # noqa: S608
    only = f" AND (\n{where}\n)" if where else ""  # a remark at its end ends there
    query = f"SELECT {exact(columns, _OLD)} FROM {old.path} AS {_OLD} WHERE NOT EXISTS ({lost}){only}"  # noqa: S608
    _must_be_one(both, query, where)
    known_as = encoding(both.connection)
    for row in both.connection.execute(query):
        yield values(row, known_as)


def _must_be_one(both: Opened, query: str, where: str) -> None:
    """Have SQLite understand a query before it runs: what is wrong with it is wrong with its condition."""
    seen: list[str] = []

    def begin(_cursor: apsw.Cursor, statement: str, _bindings: Any) -> bool:
        seen.append(statement)
        return len(seen) == 1

    cursor = both.connection.cursor()
    cursor.exec_trace = begin
    try:
        cursor.execute(f"EXPLAIN {query}").fetchall()
    except apsw.ExecTraceAbort as error:
        raise Usage(f"{both.bounds.about}: a condition is one expression", detail=f"in: {where}") from error
    except (apsw.SQLError, apsw.AuthError) as error:
        raise Refusals(both.bounds.about).of_statement(error, where, list(tables(both.connection))) from error


def _listed(both: Opened, columns: Sequence[str], rows: Iterator[list[Any]]) -> Facts:
    both.fits(encoded(columns))
    count = listed = 0
    for row in rows:
        count += 1
        if listed < both.bounds.rows:
            listed += both.fits(encoded([plain(item) for item in row]))
    return {"rows": count, "listed": listed}


def _script(both: Opened, table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> Facts:
    """Write the rows as one transaction. What is there by now, under the same key, stays as it is."""
    known_as, count = encoding(both.connection), 0
    write_whole(both, f"-- Made by dbguard: rows of {one_line(table.name)} that are missing, {both.bounds.about}.\n")
    write_whole(both, "-- What is there under the same key stays; triggers run. Run: sqlite3 -bail DB < THIS\n")
    write_whole(both, "BEGIN IMMEDIATE;\n")
    for statement, inserted in inserts(table.name, columns, rows, known_as):
        write_whole(both, f"{statement}\nON CONFLICT DO NOTHING;\n")
        count += inserted
    write_whole(both, "COMMIT;\n")
    return {"rows": count, "listed": count}
