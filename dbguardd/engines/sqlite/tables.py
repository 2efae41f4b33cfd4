"""Tables of a backup: their columns, the keys of their rows, and their values without loss."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import apsw

from dbguardd.engines.sqlite.content import ROWID_NAMES, quoted
from dbguardd.errors import Unsupported, Usage
from dbguardd.flow import NO_TABLE
from dbguardd.frozen import frozen

_SHOWN = 20
_CODECS = {"UTF-8": "utf-8", "UTF-16le": "utf-16-le", "UTF-16be": "utf-16-be"}


@frozen
class Text:
    """A text that is not valid in the encoding of its database: its bytes."""

    raw: bytes


@frozen
class Table:
    """One table. `columns` are the stored ones; `rowid` is a name for the hidden row id, "" if there is none."""

    schema: str
    name: str
    sql: str
    columns: tuple[str, ...]
    primary: tuple[str, ...]
    rowid: str
    nullable: bool  # a column of the primary key may be NULL, and then identifies nothing

    @property
    def path(self) -> str:
        """Its name in a statement."""
        return f"{self.schema}.{quoted(self.name)}"


def encoding(connection: apsw.Connection) -> str:
    """Return the encoding of a database, in SQLite's notation."""
    return str(connection.pragma("encoding", schema="main"))


def tables(connection: apsw.Connection, schema: str = "main") -> dict[str, Table]:
    """Return the tables that own pages, by name, except SQLite's own."""
    listed = connection.execute(
        f"SELECT name, sql FROM {schema}.sqlite_schema WHERE type = 'table' AND rootpage > 0"  # noqa: S608
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
    ).fetchall()
    return {str(name): _table(connection, schema, str(name), str(sql)) for name, sql in listed}


def _table(connection: apsw.Connection, schema: str, name: str, sql: str) -> Table:
    rows: list[Any] = connection.execute(f"PRAGMA {schema}.table_xinfo({quoted(name)})").fetchall()
    columns = tuple(str(row[1]) for row in rows if row[6] == 0)
    key = tuple(str(row[1]) for row in sorted(rows, key=lambda row: row[5]) if row[5])
    without = bool(connection.execute(f"PRAGMA {schema}.table_list({quoted(name)})").fetchall()[0][4])
    kinds = [row[3] for row in connection.execute(f"PRAGMA {schema}.index_list({quoted(name)})")]
    aliased = len(key) == 1 and not without and "pk" not in kinds  # INTEGER PRIMARY KEY
    taken = {str(row[1]).lower() for row in rows}
    free = next((word for word in ROWID_NAMES if word not in taken), "")
    loose = not (without or aliased) and any(row[5] and not row[3] for row in rows)
    return Table(schema, name, sql, columns, key, "" if without or aliased else free, loose)


def told_apart(connection: apsw.Connection, table: Table) -> tuple[str, ...]:
    """Return the columns that identify rows: the primary key, or the row id if there is none or it contains a NULL."""
    if table.primary and not (table.nullable and _has_null(connection, table)):
        return table.primary
    return (table.rowid,) if table.rowid else ()


def _has_null(connection: apsw.Connection, table: Table) -> bool:
    missing = " OR ".join(f"{quoted(name)} IS NULL" for name in table.primary)
    query = f"SELECT EXISTS (SELECT 1 FROM {table.path} WHERE {missing})"  # noqa: S608 - names of the catalog
    return bool(connection.execute(query).fetchall()[0][0])


def same_row(key: Sequence[str], one: str, other: str) -> str:
    """Return the condition that rows of the two aliases are the same row."""
    return " AND ".join(f"{one}.{quoted(name)} = {other}.{quoted(name)}" for name in key)


def known(found: dict[str, Table], name: str, about: str, others: Sequence[str] = ()) -> Table:
    """Return a table by its name, compared like SQLite does. Raises Usage, with suggestions, and Unsupported."""
    by_lower = {each.lower(): table for each, table in found.items()}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    if name.lower() in {other.lower() for other in others}:
        raise Unsupported(
            f"{about}: {name} is a view, or the table of a module, which stores no rows of its own",
            detail="Its rows can be asked for with a SELECT: dbguardctl query.",
        )
    raise Usage(f"{about}: no such table: {name}", detail="\n".join(instead_of(name, found)), facts={NO_TABLE: name})


def instead_of(name: str, names: Iterable[str]) -> list[str]:
    """Return in words, for a table that does not exist: which ones exist, and which of them was probably meant."""
    by_lower = {each.lower(): each for each in names}
    near = get_close_matches(name.lower(), by_lower, 3)
    shown = [*list(by_lower.values())[:_SHOWN], *["…"] * (len(by_lower) > _SHOWN)]
    meant = [f"Did you mean {' or '.join(by_lower[each] for each in near)}?"] if near else []
    return [f"Its tables: {', '.join(shown) or 'none'}.", *meant]


def exact(columns: Sequence[str], alias: str = "") -> str:
    """Return the expressions to select so that values() gets the values of columns without loss."""
    parts = []
    for column in columns:
        name = f"{alias}.{quoted(column)}" if alias else quoted(column)
        text = f"typeof({name}) = 'text'"
        parts.append(f"{text}, iif({text}, CAST({name} AS BLOB), {name})")
    return ", ".join(parts)


def values(row: Sequence[Any], encoding: str) -> list[Any]:
    """Return the values of a row that was selected by exact()."""
    codec = _CODECS[encoding]
    return [_decoded(item, codec) if is_text else item for is_text, item in zip(row[::2], row[1::2], strict=True)]


def _decoded(raw: bytes, codec: str) -> str | Text:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return Text(raw)


def plain(value: Any) -> Any:
    """Return a value for JSON; one without a JSON form becomes an object that describes it."""
    match value:
        case bytes():
            return {"base64": b64encode(value).decode()}
        case Text():
            return {"text_base64": b64encode(value.raw).decode()}
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - not a number
            return {"real": repr(value)}
        case _:
            return value
