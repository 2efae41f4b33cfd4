"""What the text of a value names: output functions look names up now, whatever the snapshot is.

Rows store numbers where output functions write names: of an enum label, of the object that a `regclass` or similar
refers to, of the roles in an `aclitem`. A value of a composite type is written with the columns that this type has now.
So a view that is renamed while a table is read would change that table's text.

In binary form a `regclass` is its number, so tables with such a type anywhere in a column are read in that form. An
`aclitem` has no binary form, so role names (and all other names, if one table has both) are compared before and after
reading. Enum labels and composite types are always compared. The transaction that gave a name is compared too, because
a name may have been changed and changed back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dbguardd.engines.postgresql.connect import Connection, rows, text
from dbguardd.engines.postgresql.content import Data
from dbguardd.frozen import frozen

_FIRST_OF_USERS = 16384
_HEAD_BYTES = 19  # header of a binary COPY: signature, flags, and the length of an extension, 0
_NO_ROW = b"\xff\xff"

_NAMING = b"""
WITH RECURSIVE part (whole, of) AS (
  SELECT oid, typelem FROM pg_type UNION ALL SELECT oid, typbasetype FROM pg_type
  UNION ALL SELECT rngtypid, rngsubtype FROM pg_range UNION ALL SELECT rngmultitypid, rngsubtype FROM pg_range
  UNION ALL SELECT t.oid, a.atttypid FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid WHERE a.attnum > 0
), naming (type, roles) AS (
  SELECT oid, typname = 'aclitem' FROM pg_type
  WHERE typnamespace = 'pg_catalog'::regnamespace AND (typname = 'aclitem' OR typname ~ '^reg')
  UNION SELECT part.whole, naming.roles FROM naming JOIN part ON part.of = naming.type
)
SELECT a.attrelid::int8, bool_or(NOT roles), bool_or(roles) FROM pg_attribute a JOIN naming ON naming.type = a.atttypid
WHERE a.attrelid >= %s AND a.attnum > 0 AND NOT a.attisdropped GROUP BY a.attrelid
"""
_ALWAYS = b"""
SELECT 'the label of a type', oid::int8, concat_ws(' ', xmin, enumlabel) FROM pg_enum
UNION ALL SELECT 'a type of rows', t.oid::int8, (
  SELECT string_agg(concat_ws(' ', attnum, attisdropped), ',' ORDER BY attnum) FROM pg_attribute
  WHERE attrelid = t.typrelid AND attnum > 0)
FROM pg_type t WHERE t.typrelid <> 0 AND EXISTS (
  SELECT FROM pg_depend WHERE refclassid = 'pg_type'::regclass AND refobjid IN (t.oid, t.typarray) AND deptype = 'n'
  AND (classid = 'pg_type'::regclass OR (classid = 'pg_class'::regclass AND objsubid > 0)))
"""
_ROLES = b"UNION ALL SELECT 'a role', oid::int8, concat_ws(' ', xmin, rolname) FROM pg_authid "
_OBJECTS = b"""
UNION ALL SELECT 'a schema', oid::int8, concat_ws(' ', xmin, nspname) FROM pg_namespace
UNION ALL SELECT 'a relation', oid::int8, concat_ws(' ', xmin, relnamespace, relname) FROM pg_class
WHERE relpersistence <> 't'
UNION ALL SELECT 'a type', oid::int8, concat_ws(' ', xmin, typnamespace, typname) FROM pg_type
UNION ALL SELECT 'a function', oid::int8, concat_ws(' ', xmin, pronamespace, proname, proargtypes) FROM pg_proc
UNION ALL SELECT 'an operator', oid::int8, concat_ws(' ', xmin, oprnamespace, oprname) FROM pg_operator
UNION ALL SELECT 'a collation', oid::int8, concat_ws(' ', xmin, collnamespace, collname) FROM pg_collation
UNION ALL SELECT 'a text search configuration', oid::int8, concat_ws(' ', xmin, cfgnamespace, cfgname) FROM pg_ts_config
UNION ALL SELECT 'a text search dictionary', oid::int8, concat_ws(' ', xmin, dictnamespace, dictname) FROM pg_ts_dict
"""


@frozen
class Naming:
    """What the values of a table name."""

    objects: bool
    roles: bool


def naming(connection: Connection) -> dict[int, Naming]:
    """Return the tables, by OID, whose values name something, in this transaction."""
    return {table: Naming(*what) for table, *what in rows(connection, _NAMING, _FIRST_OF_USERS)}


def binary_rows(messages: Iterable[Data]) -> Iterator[Data]:
    """Yield the rows of a binary COPY. Its header precedes the first row; its trailer is no row."""
    head = _HEAD_BYTES
    for message in messages:
        if (row := memoryview(message)[head:]) != _NO_ROW:  # not a copy: it may have 1 GiB
            yield row
        head = 0


@frozen
class Seen:
    """Everything that values in a database may name, by kind and number, as one transaction saw it."""

    query: bytes
    names: Mapping[tuple[bytes, int], bytes]

    def changed(self, now: Connection) -> str:
        """Return the kind of a name that is different or gone in a transaction that began later; "" if none is."""
        found = _names(now, self.query)
        return next((text(key[0]) for key, name in self.names.items() if found.get(key) != name), "")


def seen(connection: Connection) -> Seen:
    """Return what values may name in this transaction."""
    tables = naming(connection).values()
    with_roles, with_both = any(table.roles for table in tables), any(table.roles and table.objects for table in tables)
    query = _ALWAYS + _ROLES * with_roles + _OBJECTS * with_both
    return Seen(query, _names(connection, query))


def _names(connection: Connection, query: bytes) -> dict[tuple[bytes, int], bytes]:
    return {(bytes(kind), number): bytes(name or b"") for kind, number, name in rows(connection, query)}
