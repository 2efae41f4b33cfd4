"""Finds rows that a later backup lacks or has with other values, and writes SQL that corrects them.

dbguard does not run that SQL; its reader does. INSERTs leave rows alone that exist by then under the same key. An
UPDATE applies only to a row whose columns all still have the text of the later backup, so a later change is not
overwritten. The row is found by the index of its key, except for key columns of user-defined types: which operator that
would use depends on the search path of the user who runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from dbguardd.engines.postgresql.questions.compare import ALL, Side, named, ordered, walked
from dbguardd.engines.postgresql.questions.reading import Meter, Row, encoded, plain
from dbguardd.engines.postgresql.questions.tables import Column, Table, known, literal, owned, with_large
from dbguardd.engines.postgresql.questions.take_out import one_line, remark, without_large
from dbguardd.errors import Unsupported
from dbguardd.flow import ONLY_WHOLE, Facts
from dbguardd.frozen import frozen

_STATEMENT_BYTES, _STATEMENT_ROWS = 32 << 10, 64
_WRITTEN = (
    *("standard_conforming_strings = on", "datestyle = 'ISO, YMD'", "intervalstyle = 'postgres'"),
    *(
        "timezone = 'UTC'",
        "lc_monetary = 'C'",
        "xmloption = 'content'",
        "bytea_output = 'hex'",
        "extra_float_digits = 1",
        "array_nulls = on",
    ),
)
"""Settings that determine the text of values here, and with which it has to be read and compared there."""

Both = tuple[Row, Row]


@frozen
class _Search:
    """A table in both databases, and the condition for rows to be searched."""

    older: Side
    newer: Side
    old: Table
    new: Table
    where: str

    @property
    def columns(self) -> list[Column]:
        """The columns in both, as they are in the newer one."""
        then = {one.name for one in self.old.columns}
        return [one for one in self.new.columns if one.name in then]

    @property
    def large(self) -> list[str]:
        """The columns that may contain OIDs of large objects, which these rows do not restore."""
        return with_large(self.older.past, self.older.reader, self.columns)

    def rows(self, *, changed: bool) -> Iterator[Both]:
        """Yield rows that are missing, as they were; or with `changed` those that differ, as they were and are.

        Both sides resolve names as an application does, with its search path, which also applies to names in values
        (regclass).
        """
        then, now = ordered(self.old, self.new)
        was = [self.old.column(one.name) for one in self.columns]
        before = self.older.rows(self.old, then, was, self.where or ALL)
        after = self.newer.rows(self.new, now, self.columns if changed else (), ALL)
        for row, other in walked(before, after):
            if row is not None and (other is None) is not changed and (other is None or row[1:] != other[1:]):
                yield row[1:], () if other is None else other[1:]


def missing(older: Side, newer: Side, search: tuple[str, str], form: str, meter: Meter) -> Facts:
    """See engines.base.Questions."""
    name, where = search
    old = known(older.tables, name, meter.about, older.reader, older.past.lacking())
    new = newer.tables.get(old.quoted)
    if new is None:
        message = f"{meter.about}: the newer backup has no table {old.quoted}"
        raise Unsupported(message, detail="Export the whole table instead.", facts={ONLY_WHOLE: old.quoted})
    if not old.key or old.key != new.key:
        raise Unsupported(
            f"{meter.about}: nothing tells for sure which rows of {old.quoted} are missing",
            detail="Its primary key has changed, or it has none. Compare the two, or export the whole table.",
            facts={ONLY_WHOLE: old.quoted},
        )
    found, changed = _Search(older, newer, old, new, where), form.startswith("changed ")
    rows = found.rows(changed=changed)
    first = next(rows, None)  # by now the condition has been checked
    rows = chain(() if first is None else (first,), rows)
    large = {"large_objects": columns} if (columns := found.large) else {}
    if changed:
        return {**(_set_back if form.endswith("sql") else _compared)(found, rows, meter), **large}
    facts = {**(_put_back if form == "sql" else _listed)(found, rows, meter), **large}
    return facts if facts["rows"] else {**facts, "differing": sum(1 for _ in found.rows(changed=True))}


def _listed(found: _Search, rows: Iterator[Both], meter: Meter) -> Facts:
    meter.write(encoded([one.name for one in found.columns]))
    count = listed = 0
    for row, _ in rows:
        count += 1
        if listed < meter.rows:
            told = [plain(value, one.kind) for value, one in zip(row, found.columns, strict=True)]
            listed += meter.fits(encoded(told))
    return {"rows": count, "listed": listed}


def _compared(found: _Search, rows: Iterator[Both], meter: Meter) -> Facts:
    count = listed = 0
    for was, now in rows:
        count += 1
        if listed < meter.rows:
            before, after = named(found.columns, was), named(found.columns, now)
            key = {name: after[name] for name in found.new.key}
            line = {"table": found.new.quoted, "change": "changed", "key": key, "before": before, "after": after}
            listed += meter.fits(encoded(line))
    return {"rows": count, "listed": listed}


def _put_back(found: _Search, rows: Iterator[Both], meter: Meter) -> Facts:
    """Write the rows as INSERT statements."""
    _begin(found, f"rows of {found.old.quoted} that are missing", "What is there under the same key stays.", meter)
    names = ", ".join(one.quoted for one in found.columns)
    insisting = " OVERRIDING SYSTEM VALUE" if any(one.identity for one in found.columns) else ""
    opening = _bytes(f"INSERT INTO {found.old.quoted} ({names}){insisting} VALUES\n")
    waiting, size, count = list[bytes](), 0, 0
    for row in chain((row for row, _ in rows), (None,)):
        if waiting and (row is None or size >= _STATEMENT_BYTES or len(waiting) >= _STATEMENT_ROWS):
            meter.write(opening + b",\n".join(waiting) + b"\nON CONFLICT DO NOTHING;\n")
            waiting, size = [], 0
        if row is not None:
            waiting.append(b"(" + b", ".join(map(_value, row)) + b")")
            size, count = size + len(waiting[-1]), count + 1
    return {"rows": count, "listed": count}


def _set_back(found: _Search, rows: Iterator[Both], meter: Meter) -> Facts:
    """Write an UPDATE for each row that restores differing columns; identity columns that only the server sets stay."""
    stays = [one.quoted for one in found.columns if one.identity and one.place < 0]
    said = "A row that was changed again since, or is gone, is left alone: UPDATE 0."
    more = f" So is what the server numbers by itself: {one_line(', '.join(stays))}." if stays else ""
    _begin(found, f"rows of {found.new.quoted} that have other values", said + more, meter)
    opening, count = _bytes(f"UPDATE {found.new.rows} SET "), 0  # noqa: S608 - names of the catalog
    key = [at for at, one in enumerate(found.columns) if one.place >= 0 and one.native]
    for was, now in rows:
        sets = [
            _bytes(one.quoted) + b" = " + _value(then)
            for one, then, value in zip(found.columns, was, now, strict=True)
            if then != value and not (one.identity and one.place < 0)
        ]
        same = [_bytes(found.columns[at].quoted) + b" OPERATOR(pg_catalog.=) " + _value(now[at]) for at in key]
        same += [_still(one, value) for one, value in zip(found.columns, now, strict=True)]
        if sets:
            meter.write(opening + b", ".join(sets) + b"\nWHERE " + b" AND ".join(same) + b";\n")
            count += 1
    return {"rows": count, "listed": count}


def _still(column: Column, value: bytes | None) -> bytes:
    """Return a condition that a column, of any type, still has this value, by comparing its text.

    The bytes are compared: a collation may treat different texts as equal, and a later change would be overwritten.
    """
    name = _bytes(column.quoted)
    if value is None:
        return name + b" IS NOT DISTINCT FROM NULL"
    text = b"pg_catalog.format('%s', " + name + b') COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ' + _value(value)
    return text if value else name + b" IS DISTINCT FROM NULL AND " + text  # the text of NULL is empty, too


def _begin(found: _Search, what: str, said: str, meter: Meter) -> None:
    mine = owned(found.older.past, found.old)
    meter.write(remark(f"{what}, {meter.about}.", mine, found.older.past.running(mine.owner)))
    meter.write(_bytes(f"-- {said}\n") + without_large(found.large))
    settings = (f"client_encoding = '{found.newer.reader.encoding}'", *_WRITTEN)
    meter.write(_bytes("".join(f"SET {setting};\n" for setting in settings)))


def _value(value: bytes | None) -> bytes:
    return b"NULL" if value is None else _bytes(literal(value.decode(errors="surrogateescape")))


def _bytes(words: str) -> bytes:
    return words.encode(errors="surrogateescape")
