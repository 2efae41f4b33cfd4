"""Compares two databases of the past: each sorts its rows by key, and the two sequences are merged.

Rows are identified by their primary key. In a table without one the whole row is the key, so its rows can only be added
or removed, not changed. Values differ if the text that the server writes for them does. The sort key is bytes: integers
in numeric order, everything else as the server's text, independent of a type's own operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.questions.reading import INTEGERS, Meter, Reader, Row, encoded, plain, said
from dbguardd.engines.postgresql.questions.ready import bring, make_ready, understood
from dbguardd.engines.postgresql.questions.scratch import ScratchServer
from dbguardd.engines.postgresql.questions.tables import Column, Table, known, load, load_all, tables, with_large
from dbguardd.errors import SourceDamaged, SourceLocked, TooCostly, Unsupported, Usage
from dbguardd.flow import Facts
from dbguardd.frozen import frozen

ALL = "true"
"""The condition that all rows meet; given this, names are resolved as for an application."""

_CHANGES = ("added", "removed", "changed")
_TEXT = "pg_catalog.textsend(pg_catalog.format('%s', {}))"
_NUMBER = "pg_catalog.int8send({}::pg_catalog.int8 OPERATOR(pg_catalog.#) (-9223372036854775808)::pg_catalog.int8)"
_AND, _END = " OPERATOR(pg_catalog.||) ", "'\\x00'::pg_catalog.bytea"
_DEFINITIONS = """
SELECT pg_catalog.textsend(kind || ' ' || name), kind, name, text FROM (
  SELECT 'table', c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), (
    SELECT string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod))
      || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END || coalesce(CASE a.attgenerated WHEN '' THEN ' DEFAULT '
      ELSE ' GENERATED ' END || pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''), ', ' ORDER BY a.attnum)
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  UNION ALL SELECT 'view', c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.pg_get_viewdef(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm')
  UNION ALL SELECT 'index', c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.pg_get_indexdef(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('i', 'I')
    AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = c.oid AND o.contype IN ('p', 'u', 'x'))
  UNION ALL SELECT 'constraint', o.oid, pg_catalog.format('%I.%I.%I', n.nspname, c.relname, o.conname),
    pg_catalog.pg_get_constraintdef(o.oid)
  FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  UNION ALL SELECT 'trigger', t.oid, pg_catalog.format('%I.%I.%I', n.nspname, c.relname, t.tgname),
    pg_catalog.pg_get_triggerdef(t.oid)
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE NOT t.tgisinternal
  UNION ALL SELECT 'function', p.oid, p.oid::pg_catalog.regprocedure::text, pg_catalog.pg_get_functiondef(p.oid)
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.prokind <> 'a'
    AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND NOT EXISTS (SELECT FROM pg_depend e
    WHERE e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid AND e.deptype = 'e')
) AS all_of_them (kind, number, name, text) WHERE name !~ '^(information_schema|pg_[^.]*)[.]' ORDER BY 1
"""


@frozen
class Side:
    """One of the two databases: a connection for names, and the source of connections for rows."""

    past: ScratchServer
    meter: Meter
    reader: Reader
    tables: dict[str, Table]

    @classmethod
    def of(cls, past: ScratchServer, reader: Reader, meter: Meter) -> Side:
        """Read the list of tables."""
        return cls(past, meter, reader, tables(reader))

    def rows(self, table: Table, key: str, columns: Sequence[Column], where: str = "") -> Iterator[Row]:
        """Yield rows in the order of `key`, an expression that is their first column, over a separate connection.

        Planning such a statement runs code of the table's owner, who cannot affect the rows of other tables that way.
        """
        load(self.past, table.number, self.meter)
        what = ", ".join([key, *(one.quoted for one in columns)])
        only = f" WHERE (\n{where}\n)" if where else ""  # the line feed ends a comment at the end of `where`
        query = f"SELECT {what} FROM {table.rows}{only} ORDER BY 1"  # noqa: S608 - names of the catalog
        if where not in ("", ALL):
            make_ready(self.past, query, where, self.meter)
        while True:
            with self.past.reading() as connection:
                reader = self._understood(connection, query, where)
                found = reader.run()
                try:
                    first = next(found, None)  # the rows are sorted, so all have been read now
                except Usage:
                    if not bring(self.past, reader.lacks, self.meter):
                        raise
                    continue
                yield from () if first is None else chain((first,), found)
                return

    def _understood(self, connection: Connection, query: str, where: str) -> Reader:
        reader = Reader(connection, self.meter)
        if where:
            return understood(reader, self.past, query, where)
        reader.understand(query, where)
        return reader


def difference(older: Side, newer: Side, table: str, meter: Meter) -> Facts:
    """See engines.base.Questions."""
    before, after = older.tables, newer.tables
    if table:
        found = known({**before, **after}, table, meter.about, newer.reader, newer.past.lacking())
        names = [found.quoted]
    else:
        names = sorted({name for side in (before, after) for name, one in side.items() if not one.within})
        for side in (older, newer):
            load_all(side.past, meter)  # all at once: each partial load reads the dump from its start
        for definition in _definitions(older.reader, newer.reader):
            _must_fit(meter, {"schema": definition})
    compared = []
    for name in names:
        comparison = _Comparison(older, newer, name, meter)
        compared.append((comparison.run if table else comparison.part)(before.get(name), after.get(name)))
        _must_fit(meter, {"table": compared[-1]})
    states = [row["state"] for row in compared]
    return {
        "tables": len(compared),
        "differing": len(states) - states.count("same") - states.count("not compared"),
        "not_compared": states.count("not compared"),
        **{change: sum(row[change] or 0 for row in compared) for change in _CHANGES},
        "listed": sum(row["listed"] for row in compared),
    }


def _must_fit(meter: Meter, found: Any) -> None:
    if not meter.fits(encoded(found)):
        raise TooCostly(f"{meter.about}: too many tables differ", detail="Ask for one of them with --table.")


def _definitions(older: Reader, newer: Reader) -> Iterator[dict[str, Any]]:
    """Yield definitions that differ: {kind, name, before, after}; None if it does not exist on that side.

    They are merged like rows, because the number of an owner's definitions is unlimited.
    """
    for pair in walked(older.rows(_DEFINITIONS), newer.rows(_DEFINITIONS)):
        kind, name = next((said(row[1]), said(row[2])) for row in pair if row is not None)
        before, after = (None if row is None else said(row[3]) for row in pair)
        if before != after:
            yield {"kind": kind, "name": name, "before": before, "after": after}


class _Comparison:
    """One table in both databases."""

    def __init__(self, older: Side, newer: Side, name: str, meter: Meter) -> None:
        self._older, self._newer, self._name, self._meter = older, newer, name, meter
        self._listed = 0

    def part(self, old: Table | None, new: Table | None) -> dict[str, Any]:
        """Return the facts of one table of many.

        An error in reading it is recorded, and the others are still compared.
        """
        try:
            with self._meter.part():
                return self.run(old, new)
        except (Usage, TooCostly, SourceLocked, SourceDamaged, Unsupported) as error:
            if self._meter.over:
                raise
            return self._facts("not compared", {}, why=f"{error.message.removeprefix(f'{self._meter.about}: ')}")

    def run(self, old: Table | None, new: Table | None) -> dict[str, Any]:
        """Return the facts of the table; write differing rows into the answer as far as the limits allow."""
        if old is None or new is None:
            side, only, state = (self._newer, new, "added") if old is None else (self._older, old, "removed")
            assert only is not None  # noqa: S101 - it is of one of both
            count = 0
            for row in side.rows(only, _whole(only.columns), only.columns):
                count += 1
                self._list(state, {}, only.columns, row[1:])
            return self._facts(state, {state: count})
        shared = [one.name for one in new.columns if one.name in {other.name for other in old.columns}]
        why = _columns_beside(old, new, shared)
        if large := with_large(self._older.past, self._older.reader, old.columns):
            why = "; ".join(
                filter(None, [why, f"large objects are not compared, only their numbers: {', '.join(large)}"])
            )
        if old.key != new.key:
            return self._facts("not compared", {}, why="its key has changed")
        counts = self._rows(old, new, shared)
        if not new.key:
            why = "; ".join(filter(None, [why, "no primary key: its rows are compared as a whole"]))
        return self._facts("differs" if any(counts.values()) else "same", counts, new.key, why)

    def _facts(self, state: str, counts: dict[str, int], key: Sequence[str] = (), why: str = "") -> dict[str, Any]:
        known = None if state == "not compared" else 0
        told = {change: counts.get(change, known) for change in _CHANGES}
        return {"table": self._name, "state": state, "why": why, "keyed_by": list(key), **told, "listed": self._listed}

    def _rows(self, old: Table, new: Table, shared: Sequence[str]) -> dict[str, int]:
        """Count and list the differing rows."""
        counts = dict.fromkeys(_CHANGES, 0)
        width = 1 + len(shared)
        keys = (
            ordered(old, new) if new.key else tuple(_whole([one.column(name) for name in shared]) for one in (old, new))
        )
        was, now = ([table.column(name) for name in shared] for table in (old, new))
        before = self._older.rows(old, keys[0], [*was, *_rest(old, shared)])
        after = self._newer.rows(new, keys[1], [*now, *_rest(new, shared)])
        for row, other in walked(before, after):
            if row is not None and other is not None:
                if row[1:width] == other[1:width]:
                    continue
                change, columns, values = "changed", now, other[1:width]
            elif other is not None:
                change, columns, values = "added", [*now, *_rest(new, shared)], other[1:]
            else:
                assert row is not None  # noqa: S101 - one of both is there
                change, columns, values = "removed", [*was, *_rest(old, shared)], row[1:]
            counts[change] += 1
            named = {one.name: plain(value, one.kind) for one, value in zip(columns, values, strict=True)}
            then = None if change != "changed" or row is None else (was, row[1:width])
            self._list(change, {name: named[name] for name in new.key}, columns, values, then)
        return counts

    def _list(
        self,
        change: str,
        key: dict[str, Any],
        columns: Sequence[Column],
        values: Row,
        then: tuple[Sequence[Column], Row] | None = None,
    ) -> None:
        if self._listed >= self._meter.rows:
            return
        told = named(columns, values)
        sides = {"before": told} if change == "removed" else {"after": told}
        if then is not None:
            sides = {"before": named(*then), **sides}
        line = encoded({"table": self._name, "change": change, "key": key, **sides})
        self._listed += self._meter.fits(line, self._meter.all // 4)  # the rest is for the counts


def named(columns: Sequence[Column], values: Row) -> dict[str, Any]:
    """Return the values of a row by column name, for JSON."""
    return {one.name: plain(value, one.kind) for one, value in zip(columns, values, strict=True)}


def _rest(table: Table, shared: Sequence[str]) -> list[Column]:
    return [one for one in table.columns if one.name not in shared]


def _columns_beside(old: Table, new: Table, shared: Sequence[str]) -> str:
    said = (("removed column", _rest(old, shared)), ("new column", _rest(new, shared)))
    return "; ".join(f"{what}, not compared: {', '.join(one.name for one in few)}" for what, few in said if few)


def ordered(old: Table, new: Table) -> tuple[str, str]:
    """Return expressions that put the rows of both tables in one order, and are equal if their primary keys are."""
    forms = [
        _NUMBER if {old.column(name).kind, new.column(name).kind} <= INTEGERS else f"{_TEXT}{_AND}{_END}"
        for name in new.key
    ]
    then, now = (
        _AND.join(form.format(one.column(name).quoted) for form, name in zip(forms, new.key, strict=True))
        for one in (old, new)
    )
    return then, now


def _whole(columns: Sequence[Column]) -> str:
    return _TEXT.format(f"ROW({', '.join(one.quoted for one in columns)})")


def walked(before: Iterator[Row], after: Iterator[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Merge rows in the order of their keys, pairing those with the same key."""
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        first = -1 if new is None else 1 if old is None else _order(old, new)
        yield (old if first <= 0 else None), (new if first >= 0 else None)
        old = next(before, None) if first <= 0 else old
        new = next(after, None) if first >= 0 else new


def _order(old: Row, new: Row) -> int:
    one, other = old[0] or b"", new[0] or b""
    return (one > other) - (one < other)
