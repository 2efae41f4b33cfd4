"""The fingerprint of a database: schema and content, so that two can be compared without keeping either."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dbguardd.frozen import frozen
from dbguardd.serialize import to_json

_PART = r'(?:"(?:[^"]|"")*"|[^".]*)\.'
_GROUPS = (_PART * 2, _PART, "")
"""Prefixes of table names, as patterns: database and schema, database, nothing."""


@frozen
class TablePrint:
    """The content of one table: the number of rows, and a digest (hex) that is equal exactly when the rows are.

    For many tables folded into one (see Fingerprint.folded) the digest starts with their number and a colon.
    """

    rows: int
    digest: str


@frozen
class Fingerprint:
    """The content of a database. Two are equal exactly when schema and rows are."""

    schema_digest: str
    tables: Mapping[str, TablePrint]

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Fingerprint:
        """Parse the JSON form of a fingerprint."""
        tables = {name: TablePrint(**table) for name, table in stored.get("tables", {}).items()}
        return cls(stored.get("schema_digest", ""), tables)

    @property
    def rows(self) -> int:
        """The number of rows in all tables."""
        return sum(table.rows for table in self.tables.values())

    @property
    def count(self) -> int:
        """The number of tables."""
        return sum(int(table.digest.split(":")[0]) if ":" in table.digest else 1 for table in self.tables.values())

    def folded(self, most_bytes: int) -> Fingerprint:
        """Return it in at most `most_bytes` of JSON, folded into one table per schema, per database, or in all.

        Equal content is folded equally, so equal fingerprints stay equal, and different ones different.
        """
        found = self
        for group in _GROUPS:
            if len(json.dumps(to_json(found))) <= most_bytes:
                break
            found = Fingerprint(self.schema_digest, _folded(self.tables, group))
        return found


def _folded(tables: Mapping[str, TablePrint], group: str) -> dict[str, TablePrint]:
    together = dict[str, list[str]]()
    for name in sorted(tables):
        match = re.match(group, name)
        together.setdefault(match[0] if match else "", []).append(name)
    alone = {names[0]: tables[names[0]] for names in together.values() if len(names) == 1}
    return alone | {f"{begin}*": _one(tables, names) for begin, names in together.items() if len(names) > 1}


def _one(tables: Mapping[str, TablePrint], names: Sequence[str]) -> TablePrint:
    import hashlib  # noqa: PLC0415 - 3 MiB that only a database with very many tables needs

    told = json.dumps([[name, tables[name].rows, tables[name].digest] for name in names])
    rows = sum(tables[name].rows for name in names)
    return TablePrint(rows, f"{len(names)}:{hashlib.sha256(told.encode()).hexdigest()}")


@frozen
class NoFingerprint:
    """Why the content of a snapshot cannot be told exactly. Its backup is valid, but cannot be proven."""

    why: str
