"""Questions to clusters of the past. Implements engines.base.Reviving.

Modules, in reading order: revive (a throw-away server for questions, and its role), reading (the answers of the
server), tables, ask, take_out, compare, missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Answer, Bounds, Progress, Revived
from dbguardd.engines.postgresql.connect import address_of
from dbguardd.engines.postgresql.past.ask import query
from dbguardd.engines.postgresql.past.compare import Side, difference
from dbguardd.engines.postgresql.past.missing import missing
from dbguardd.engines.postgresql.past.reading import Meter, Reader
from dbguardd.engines.postgresql.past.revive import Revival
from dbguardd.engines.postgresql.past.take_out import table
from dbguardd.flow import Facts, Tree


class PostgresqlPast:
    """Questions to backups of PostgreSQL. Settings: url, whose database is the default."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        url = str(settings.get("url") or "")
        self._revival = Revival(address_of(url) if url else {})

    def revive(self, tree: Tree, place: Path, database: str, progress: Progress) -> Revived:
        return self._revival.revive(tree, place, database, progress)

    def query(self, asked: Revived, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        meter = Meter(bounds, answer, asked.place)
        with self._revival.asked(asked, meter.about, meter.alive) as past:
            return {**query(past, sql, meter), "in_database": past.database}

    def table(self, asked: Revived, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        meter = Meter(bounds, answer, asked.place)
        with self._revival.asked(asked, meter.about, meter.alive) as past, past.reading() as connection:
            return {**table(past, Reader(connection, meter), name, form, meter), "in_database": past.database}

    def difference(self, older: Revived, newer: Revived, name: str, bounds: Bounds, answer: Answer) -> Facts:
        meter = Meter(bounds, answer, older.place)
        with self._both((older, newer), meter) as (before, after):
            return {**difference(before, after, name, meter), "in_database": after.past.database}

    def missing(
        self, both: tuple[Revived, Revived], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        meter = Meter(bounds, answer, both[0].place)
        with self._both(both, meter) as (before, after):
            return {**missing(before, after, search, form, meter), "in_database": after.past.database}

    @contextmanager
    def _both(self, both: Sequence[Revived], meter: Meter) -> Iterator[Sequence[Side]]:
        with ExitStack() as stack:
            pasts = [stack.enter_context(self._revival.asked(one, meter.about, meter.alive)) for one in both]
            readers = [Reader(stack.enter_context(past.reading()), meter) for past in pasts]
            yield [Side.of(past, reader, meter) for past, reader in zip(pasts, readers, strict=True)]
