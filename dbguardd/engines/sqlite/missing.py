"""Finds the rows of a table that a later backup lacks or has with other values, and writes SQL that corrects either.

A row is set back only if each of its columns still has the type and the bytes that it has in the later backup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite.ask import encoded, stored_names
from dbguardd.engines.sqlite.compare import Pair
from dbguardd.engines.sqlite.content import quoted
from dbguardd.engines.sqlite.pages import Opened, opened
from dbguardd.engines.sqlite.refuse import Refusals
from dbguardd.engines.sqlite.tables import (
    Table,
    encoding,
    exact,
    known,
    plain,
    same_row,
    tables,
    told_apart,
    values,
)
from dbguardd.engines.sqlite.take_out import inserts, literal_of, one_line, write_whole
from dbguardd.errors import Unsupported, Usage
from dbguardd.flow import ONLY_WHOLE, Facts, Pages

_OLD, _NEW = "o", "n"
_UNNAMED = frozenset(("true", "false"))
"""Columns for which SQLite makes up another name when they are selected from a subquery."""


def missing(files: tuple[Pages, Pages], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer) -> Facts:
    """See engines.base.Questions."""
    name, where = search
    with opened({"main": files[0], "newer": files[1]}, bounds, answer) as both:
        before, after = tables(both.connection), tables(both.connection, "newer")
        old = known(before, name, bounds.about, stored_names(both.connection))
        key = _key(both, old, after.get(old.name))
        columns = [column for column in old.columns if column in after[old.name].columns]
        if form.startswith("changed "):
            pairs = _changed(both, Pair(old, after[old.name], key, tuple(columns)), where)
            return (_set_back if form.endswith("sql") else _compared)(both, after[old.name], key, columns, pairs)
        rows = _rows(both, old, key, (columns, where))
        facts = _script(both, old, columns, rows) if form == "sql" else _listed(both, columns, rows)
        if facts["rows"]:
            return facts
        query = f"SELECT count(*) {_differing(Pair(old, after[old.name], key, tuple(columns)), where)}"
        _must_be_one(both, query, where)
        return {**facts, "differing": both.connection.execute(query).fetchall()[0][0]}


def _key(both: Opened, old: Table, new: Table | None) -> tuple[str, ...]:
    """Return the key of rows. Raises Unsupported if it is only the row id, which SQLite reuses."""
    about = both.bounds.about
    if new is None:
        message = f"{about}: the newer backup has no table {old.name}"
        raise Unsupported(message, detail="Export the whole table instead.", facts={ONLY_WHOLE: old.name})
    key = told_apart(both.connection, old)
    if key != told_apart(both.connection, new) or not set(key) <= set(old.primary):
        detail = (
            "Its primary key has changed, is missing, or contains NULL. Compare the two backups, or export the table."
        )
        message = f"{about}: it is not certain which rows of {old.name} are missing"
        raise Unsupported(message, detail=detail, facts={ONLY_WHOLE: old.name})
    return key


def _rows(both: Opened, old: Table, key: Sequence[str], what: tuple[Sequence[str], str]) -> Iterator[list[Any]]:
    columns, where = what
    lost = f"SELECT 1 FROM newer.{old.path.partition('.')[2]} AS {_NEW} WHERE {same_row(key, _NEW, _OLD)}"  # noqa: S608
    only = f" AND (\n{where}\n)" if where else ""  # the line feed ends a comment at the end of `where`
    query = f"SELECT {exact(columns, _OLD)} FROM {old.path} AS {_OLD} WHERE NOT EXISTS ({lost}){only}"  # noqa: S608
    _must_be_one(both, query, where)
    known_as = encoding(both.connection)
    for row in both.connection.execute(query):
        yield values(row, known_as)


def _differing(pair: Pair, where: str) -> str:
    """Return the FROM clause for rows with different values in both; names in `where` refer to one table only."""
    old, only = f"{pair.old.path} AS {_OLD}", ""
    if where and _UNNAMED & {name.lower() for name in pair.columns}:
        named, key = (", ".join(f"{alias}{quoted(name)}" for name in pair.key) for alias in (f"{_OLD}.", ""))
        only = f" AND ({named}) IN (SELECT {key} FROM {pair.old.path} WHERE (\n{where}\n))"  # noqa: S608 - see above
    elif where:  # lets SQLite use an index for the condition
        old = f"(SELECT * FROM {pair.old.path} WHERE (\n{where}\n)) AS {_OLD}"  # noqa: S608 - names of the catalog
    return f"FROM {old} JOIN {pair.new.path} AS {_NEW} ON {pair.same_key} WHERE ({pair.differ}){only}"


def _changed(both: Opened, pair: Pair, where: str) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield rows with different values, as they were and as they are."""
    query = f"SELECT {exact(pair.columns, _OLD)}, {exact(pair.columns, _NEW)} {_differing(pair, where)}"
    _must_be_one(both, query, where)
    known_as, cut = encoding(both.connection), 2 * len(pair.columns)
    for row in both.connection.execute(query):
        yield values(row[:cut], known_as), values(row[cut:], known_as)


def _must_be_one(both: Opened, query: str, where: str) -> None:
    """Have SQLite parse a query before it runs: any error then is in its condition."""
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


def _compared(
    both: Opened, table: Table, key: Sequence[str], columns: Sequence[str], pairs: Iterator[tuple[list[Any], list[Any]]]
) -> Facts:
    count = listed = 0
    for row in pairs:
        count += 1
        if listed < both.bounds.rows:
            before, after = (dict(zip(columns, map(plain, side), strict=True)) for side in row)
            told = {"key": {name: after[name] for name in key}, "before": before, "after": after}
            listed += both.fits(encoded({"table": table.name, "change": "changed", **told}))
    return {"rows": count, "listed": listed}


def _listed(both: Opened, columns: Sequence[str], rows: Iterator[list[Any]]) -> Facts:
    both.fits(encoded(columns))
    count = listed = 0
    for row in rows:
        count += 1
        if listed < both.bounds.rows:
            listed += both.fits(encoded([plain(item) for item in row]))
    return {"rows": count, "listed": listed}


def _script(both: Opened, table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> Facts:
    """Write the rows as one transaction. Rows that exist by then under the same key stay as they are."""
    known_as, count = encoding(both.connection), 0
    write_whole(both, f"-- Made by dbguard: rows of {one_line(table.name)} that are missing, {both.bounds.about}.\n")
    write_whole(both, "-- What is there under the same key stays; triggers run. Run: sqlite3 -bail DB < THIS\n")
    write_whole(both, "BEGIN IMMEDIATE;\n")
    for statement, inserted in inserts(table.name, columns, rows, known_as):
        write_whole(both, f"{statement}\nON CONFLICT DO NOTHING;\n")
        count += inserted
    write_whole(both, "COMMIT;\n")
    return {"rows": count, "listed": count}


def _set_back(
    both: Opened, table: Table, key: Sequence[str], columns: Sequence[str], pairs: Iterator[tuple[list[Any], list[Any]]]
) -> Facts:
    """Write an UPDATE for each row that restores differing columns, if the row is as in the newer backup.

    A table may define its own conflict resolution, such as replacing the other row: OR ABORT overrides that.
    """
    known_as, count = encoding(both.connection), 0
    update = "UPDATE OR ABORT" if "conflict" in table.sql.lower() else "UPDATE"  # only then: it affects triggers too
    write_whole(
        both, f"-- Made by dbguard: rows of {one_line(table.name)} that have other values, {both.bounds.about}.\n"
    )
    write_whole(
        both, "-- A row that was changed since, or is gone, stays; triggers run. Run: sqlite3 -bail DB < THIS\n"
    )
    write_whole(both, "BEGIN IMMEDIATE;\n")
    # qualified: the shell takes a bare name that is no column (any more) as a string, which could equal the value
    named = {name: f"{quoted(table.name)}.{quoted(name)}" for name in columns}
    for was, now in pairs:
        then, there = ([literal_of(item, known_as) for item in side] for side in (was, now))
        sets = [f"{quoted(one)} = {old}" for one, old, new in zip(columns, then, there, strict=True) if old != new]
        same = [f"{named[name]} = {there[columns.index(name)]}" for name in key]
        same += [
            f"typeof({named[one]}) IS typeof({new}) AND {named[one]} COLLATE BINARY IS {new}"
            for one, new in zip(columns, there, strict=True)
        ]
        change = f"{update} {quoted(table.name)} SET {', '.join(sets)}"  # noqa: S608 - names of the catalog
        write_whole(both, f"{change}\nWHERE {' AND '.join(same)};\n")
        count += 1
    write_whole(both, "COMMIT;\nSELECT 'rows set back, those of triggers counted: ' || total_changes();\n")
    return {"rows": count, "listed": count}
