"""The tables of a database of the past: their names, columns and primary keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from dbguardd.engines.postgresql.questions.reading import Meter, Reader, said
from dbguardd.engines.postgresql.questions.scratch import ScratchServer
from dbguardd.errors import Unsupported, Usage
from dbguardd.flow import NO_TABLE
from dbguardd.frozen import frozen

_SHOWN = 20
_OF_USERS = """n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"""
_TABLES = f"""
WITH RECURSIVE beyond (number) AS (
  SELECT i.inhparent FROM pg_inherits i JOIN pg_class f ON f.oid = i.inhrelid
  WHERE f.relkind = 'f' AND f.relispartition
  UNION SELECT i.inhparent FROM beyond JOIN pg_inherits i ON i.inhrelid = beyond.number
)
SELECT c.oid, n.nspname, c.relname, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind,
  pg_catalog.pg_get_userbyid(c.relowner), c.relispartition AND NOT EXISTS (
    SELECT FROM pg_inherits i JOIN beyond ON beyond.number = i.inhparent WHERE i.inhrelid = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {_OF_USERS} ORDER BY n.nspname, c.relname
"""  # noqa: S608 - a constant
_COLUMNS = f"""
SELECT a.attrelid, a.attname, pg_catalog.quote_ident(a.attname), a.atttypid, a.attidentity,
  coalesce(pg_catalog.array_position(i.indkey::int2[], a.attnum), -1),
  t.typtype = 'e' OR coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::pg_catalog.regnamespace,
  coalesce(b.oid, t.oid) = 'pg_catalog.oid'::pg_catalog.regtype
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype AND t.typtype = 'd'
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indisvalid
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {_OF_USERS}
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attrelid, a.attnum
"""  # noqa: S608 - a constant
_HAS_LARGE = "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)"
_OTHERS = f"""
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (c.relkind IN ('v', 'm', 'f', 'S') OR c.relkind IN ('r', 'p') AND c.relpersistence <> 'p') AND {_OF_USERS}
"""  # noqa: S608 - a constant


@frozen
class Column:
    """A stored column. `place`: its position in the primary key, or -1."""

    name: str
    quoted: str
    kind: int
    identity: bool  # GENERATED ALWAYS: INSERT needs OVERRIDING SYSTEM VALUE
    place: int
    native: bool  # of a built-in type, with operators in pg_catalog
    number: bool  # of type oid: may be that of a large object


@frozen
class Table:
    """A table with rows, or a partitioned one. `quoted` is its name in statements, and for people.

    `within`: it is a partition of a table that can be read as a whole. One with a foreign partition cannot.
    """

    schema: str
    name: str
    quoted: str
    whole: bool  # its rows are in its partitions
    owner: str
    within: bool
    columns: tuple[Column, ...]

    @property
    def rows(self) -> str:
        """The expression to select its own rows from."""
        return self.quoted if self.whole else f"ONLY {self.quoted}"

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the columns of its primary key."""
        return tuple(one.name for one in sorted(self.columns, key=lambda one: one.place) if one.place >= 0)

    def column(self, name: str) -> Column:
        """Return the column with that name."""
        return next(one for one in self.columns if one.name == name)

    @property
    def number(self) -> bytes:
        """An expression for its OID, for a list in SQL."""
        return literal(self.quoted).encode(errors="surrogateescape") + b"::pg_catalog.regclass"


def literal(value: str) -> str:
    """Return an SQL string literal, for sessions with standard_conforming_strings on."""
    return "'" + value.replace("'", "''") + "'"


def owned(past: ScratchServer, table: Table) -> Table:
    """Return a table with its original owner: after restoring a dump everything belongs to the restoring role."""
    return table if past.dump is None else replace(table, owner=past.dump.owner(table.schema, table.name) or "unknown")


def load(past: ScratchServer, numbers: bytes, meter: Meter) -> None:
    """Load the rows of tables, given a list of OIDs in SQL. Raises Unsupported if no backup has them."""
    if past.dump is not None:
        try:
            with meter.paused():
                past.dump.load(past.server, numbers, meter.ready)
        except Unsupported as error:
            error.message = f"{meter.about}: {error.message}"
            raise


def load_all(past: ScratchServer, meter: Meter) -> bool:
    """Load everything that can be; return whether anything was not loaded before. load() reports what is missing."""
    with meter.paused():
        return past.dump is not None and past.dump.load_all(past.server, meter.ready)


def load_large(past: ScratchServer, meter: Meter) -> bool:
    """Load the large objects; return whether they were not loaded before. Raises Unsupported."""
    with meter.paused():
        return past.dump is not None and past.dump.load_large(past.server, meter.ready)


def with_large(past: ScratchServer, reader: Reader, columns: Iterable[Column]) -> list[str]:
    """Return which columns may refer to large objects: a table only contains their OIDs."""
    numbers = [one.name for one in columns if one.number]
    if past.dump is not None:
        return numbers if past.dump.part.large else []
    return numbers if numbers and [*reader.rows(_HAS_LARGE)] == [[b"t"]] else []


def tables(reader: Reader) -> dict[str, Table]:
    """Return users' tables by `quoted`, except unlogged ones, which have no rows in a backup."""
    columns = dict[bytes, list[Column]]()
    for number, name, quoted, kind, identity, place, native, large in reader.rows(_COLUMNS):
        kinds = identity == b"a", int(place or 0), native == b"t", large == b"t"
        column = Column(said(name), said(quoted), int(kind or 0), *kinds)
        columns.setdefault(number or b"", []).append(column)
    found = dict[str, Table]()
    for number, schema, name, quoted, kind, owner, within in reader.rows(_TABLES):
        mine = tuple(columns.get(number or b"", ()))
        one = Table(said(schema), said(name), said(quoted), kind == b"p", said(owner), within == b"t", mine)
        found[one.quoted] = one
    return found


def known(found: Mapping[str, Table], name: str, about: str, reader: Reader, lacking: str = "") -> Table:
    """Return a table by its name, with or without its schema. Raises Usage, with suggestions, and Unsupported."""
    for spelled in (name, name.lower()):
        if spelled in found:  # takes precedence over a table whose own name is spelled like that
            return found[spelled]
        fitting = [one for one in found.values() if spelled in (f"{one.schema}.{one.name}", one.name)]
        fitting = [one for one in fitting if one.schema == "public"] if len(fitting) > 1 else fitting
        if len(fitting) == 1:
            return fitting[0]
    several = [one.quoted for one in found.values() if one.name == name]
    if len(several) > 1:
        raise Usage(f"{about}: which table {name}?", detail=f"There are {', '.join(several[:_SHOWN])}.")
    others = [(said(schema), said(other)) for schema, other in reader.rows(_OTHERS)]
    if any(name in (other, f"{schema}.{other}") for schema, other in others):
        raise Unsupported(
            f"{about}: {name} is no table that a backup has rows of: a view, a sequence, unlogged, foreign",
            detail="What there is of it can be asked for with a SELECT: dbguardctl query.",
        )
    names = {one.name.lower(): one.quoted for one in found.values()}
    near = get_close_matches(name.lower().rpartition(".")[2], names, 3)
    meant = [f"Did you mean {' or '.join(names[one] for one in near)}?"] if near else []
    shown = [*list(found)[:_SHOWN], *["…"] * (len(found) > _SHOWN)]
    told = filter(None, [f"Its tables: {', '.join(shown) or 'none'}.", *meant, lacking])
    raise Usage(f"{about}: no such table: {name}", detail="\n".join(told), facts={NO_TABLE: name})
