"""Compares two backups, table by table and row by row, matching rows by primary key or row id.

SQLite joins the two by key and returns only what differs. Values differ if their type or their bytes differ: 1 and 1.0
are different here, and so are A and a, whatever the column's collation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite.ask import encoded, stored_names
from dbguardd.engines.sqlite.content import quoted
from dbguardd.engines.sqlite.pages import Opened, opened
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
from dbguardd.errors import TooCostly
from dbguardd.flow import Facts, Pages
from dbguardd.frozen import frozen

_CHANGES = ("added", "removed", "changed")
_OLD, _NEW = "o", "n"
_CANNOT = ("no such", "too many")
"""Errors for a collation or function that only the application has, and for more columns than SQLite can return."""
_TOGETHER = 64  # in a chain of a thousand terms SQLite says that the expression is too deep


@frozen
class Pair:
    """A table that exists in both, the key of its rows, and the columns of both."""

    old: Table
    new: Table
    key: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def same_key(self) -> str:
        """The condition that two rows are the same row."""
        return same_row(self.key, _NEW, _OLD)

    @property
    def differ(self) -> str:
        """The condition that they have different values."""
        pairs = [(f"{_OLD}.{quoted(name)}", f"{_NEW}.{quoted(name)}") for name in self.columns]
        # IS compares with the collation of the left operand, and numbers by value
        differ = [f"typeof({old}) <> typeof({new}) OR {old} COLLATE BINARY IS NOT {new}" for old, new in pairs]
        parts = [" OR ".join(differ[at : at + _TOGETHER]) for at in range(0, len(differ), _TOGETHER)]
        return " OR ".join(f"({part})" for part in parts) or "0"


def difference(older: Pages, newer: Pages, table: str, bounds: Bounds, answer: Answer) -> Facts:
    """See engines.base.Questions."""
    with opened({"main": older, "newer": newer}, bounds, answer) as both:
        before, after = tables(both.connection), tables(both.connection, "newer")
        names = sorted({*before, *after})
        if table:
            others = [*stored_names(both.connection), *stored_names(both.connection, "newer")]
            names = [known({**before, **after}, table, bounds.about, others).name]
        for definition in _definitions(both.connection) if not table else ():
            _must_fit(both, {"schema": definition})
        found = []
        for name in names:
            found.append(_Comparison(both, name).run(before.get(name), after.get(name)))
            _must_fit(both, {"table": found[-1]})
    changes = {change: sum(row[change] or 0 for row in found) for change in _CHANGES}
    states = [row["state"] for row in found]
    differing, unknown = len(states) - states.count("same"), states.count("not compared")
    listed = sum(row["listed"] for row in found)
    return {
        "tables": len(found),
        "differing": differing - unknown,
        "not_compared": unknown,
        **changes,
        "listed": listed,
    }


def _must_fit(both: Opened, found: Mapping[str, Any]) -> None:
    if not both.fits(encoded(found)):
        raise TooCostly(f"{both.bounds.about}: too many tables differ", detail="Ask for one of them with --table.")


class _Comparison:
    """One table in both backups."""

    def __init__(self, both: Opened, name: str) -> None:
        self._both, self._name = both, name
        self._listed = 0
        self._encoding = encoding(both.connection)  # the same in both: otherwise they could not be joined

    def run(self, old: Table | None, new: Table | None) -> dict[str, Any]:
        """Return the facts of the table; write differing rows into the answer as far as the limits allow."""
        try:
            return self._compared(old, new)
        except apsw.SQLError as error:
            if self._both.raised is not None or self._both.late or not any(say in str(error) for say in _CANNOT):
                raise
            return self._facts("not compared", {}, why=str(error))

    def _compared(self, old: Table | None, new: Table | None) -> dict[str, Any]:
        if old is None or new is None:
            only = new or old
            assert only is not None  # noqa: S101 - it is of one of both
            state = "added" if old is None else "removed"
            rows = self._all(only, state)
            return self._facts(state, {state: rows})
        pair, why = self._paired(old, new)
        if pair is None:
            return self._facts("not compared", {}, why=why)
        counts = self._rows(pair)
        state = "differs" if any(counts.values()) else "same"
        return self._facts(state, counts, keyed_by=pair.key, why=why)

    def _facts(
        self, state: str, counts: Mapping[str, int], *, keyed_by: Sequence[str] = (), why: str = ""
    ) -> dict[str, Any]:
        known_counts = {change: counts.get(change, 0) if counts else None for change in _CHANGES}
        about = {"table": self._name, "state": state, "why": why, "keyed_by": list(keyed_by)}
        return {**about, **known_counts, "listed": self._listed}

    def _paired(self, old: Table, new: Table) -> tuple[Pair | None, str]:
        """Return how rows of both are matched, or why they cannot be."""
        columns = tuple(name for name in old.columns if name in new.columns)
        lost = [name for name in old.columns if name not in columns]
        fresh = [name for name in new.columns if name not in columns]
        said = (("removed column", lost), ("new column", fresh))
        why = "; ".join(f"{what}, not compared: {', '.join(names)}" for what, names in said if names)
        keys = told_apart(self._both.connection, old), told_apart(self._both.connection, new)
        if keys[0] != keys[1] and old.primary == new.primary and old.rowid and old.rowid == new.rowid:
            keys = (old.rowid,), (new.rowid,)  # only one of the two has a NULL in its key
        if keys[0] != keys[1] or not keys[0]:
            return None, "its rows cannot be told apart" if keys[0] == keys[1] else "its key has changed"
        return Pair(old, new, keys[0], columns), why

    def _all(self, table: Table, change: str) -> int:
        """Count and list the rows of a table that exists only in one of the two."""
        columns = (table.rowid, *table.columns) if table.rowid else table.columns
        query = f"SELECT {exact(columns)} FROM {table.path} NOT INDEXED"  # noqa: S608 - names of the catalog
        return self._alone(change, self._both.connection.execute(query), (), columns)

    def _rows(self, pair: Pair) -> dict[str, int]:
        """Count and list differences: one pass over the older table for removed rows, and one over the newer."""
        old, new = f"{pair.old.path} AS {_OLD}", f"{pair.new.path} AS {_NEW}"
        what = f"{exact(pair.key, _OLD)}, {exact(pair.old.columns, _OLD)}"
        query = f"SELECT {what} FROM {old} WHERE NOT EXISTS (SELECT 1 FROM {new} WHERE {pair.same_key})"  # noqa: S608
        gone = self._alone("removed", self._both.connection.execute(query), pair.key, pair.old.columns)
        fresh = f"{_OLD}.{quoted(pair.key[0])} IS NULL"
        what = f"{fresh}, {exact(pair.key, _NEW)}, {exact(pair.new.columns, _NEW)}, {exact(pair.columns, _OLD)}"
        query = f"SELECT {what} FROM {new} LEFT JOIN {old} ON {pair.same_key} WHERE {fresh} OR {pair.differ}"  # noqa: S608
        counts = dict.fromkeys(_CHANGES, 0)
        for row in self._both.connection.execute(query):
            change = "added" if row[0] else "changed"
            counts[change] += 1
            if self._listed < self._both.bounds.rows:
                self._list(change, **self._now_and_then(pair, change, row[1:]))
        return {**counts, "removed": gone}

    def _now_and_then(self, pair: Pair, change: str, row: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
        cut = 2 * len(pair.key)
        middle = cut + 2 * len(pair.new.columns)
        key = _named(pair.key, values(row[:cut], self._encoding))
        after = _named(pair.new.columns, values(row[cut:middle], self._encoding))
        if change == "added":
            return {"key": key, "after": after}
        before = _named(pair.columns, values(row[middle:], self._encoding))
        return {"key": key, "before": before, "after": {name: after[name] for name in pair.columns}}

    def _alone(self, change: str, rows: Iterator[Any], key: Sequence[str], columns: Sequence[str]) -> int:
        """Count rows that exist only on one side, and list them as far as the limits allow."""
        count, cut = 0, 2 * len(key)
        for row in rows:
            count += 1
            if self._listed < self._both.bounds.rows:
                named = _named(columns, values(row[cut:], self._encoding))
                side = "after" if change == "added" else "before"
                self._list(change, key=_named(key, values(row[:cut], self._encoding)), **{side: named})
        return count

    def _list(self, change: str, **row: Mapping[str, Any]) -> None:
        line = encoded({"table": self._name, "change": change, **row})
        self._listed += self._both.fits(line, self._both.bounds.bytes // 4)  # the rest is for the counts


def _named(names: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, [plain(item) for item in row], strict=True))


def _definitions(connection: apsw.Connection) -> Iterator[dict[str, Any]]:
    """Yield definitions that differ: {kind, name, before, after}; None if it does not exist on that side."""
    before, after = (
        {
            (str(kind), str(name)): sql
            for kind, name, sql in connection.execute(
                f"SELECT type, name, sql FROM {schema}.sqlite_schema WHERE sql IS NOT NULL"  # noqa: S608
            )
        }
        for schema in ("main", "newer")
    )
    for kind, name in sorted({*before, *after}):
        old, new = before.get((kind, name)), after.get((kind, name))
        if old != new:
            yield {"kind": kind, "name": name, "before": old, "after": new}
