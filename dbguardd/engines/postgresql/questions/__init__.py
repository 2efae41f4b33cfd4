"""Questions to backups of PostgreSQL, answered by a scratch server. Implements engines.base.ServerQuestions.

Modules, in reading order: scratch (a throw-away server for questions, and its role), reading (the answers of the
server), tables, ask, take_out, compare, missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Answer, Bounds, Progress, ScratchRestore
from dbguardd.engines.postgresql.connect import address_of
from dbguardd.engines.postgresql.questions.ask import query
from dbguardd.engines.postgresql.questions.compare import Side, difference
from dbguardd.engines.postgresql.questions.missing import missing
from dbguardd.engines.postgresql.questions.reading import Meter, Reader
from dbguardd.engines.postgresql.questions.scratch import ScratchRestores
from dbguardd.engines.postgresql.questions.take_out import table
from dbguardd.flow import Facts, Tree


class PostgresqlQuestions:
    """Questions to backups of PostgreSQL. Settings: url, whose database is the default."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        url = str(settings.get("url") or "")
        self._revival = ScratchRestores(address_of(url) if url else {})

    def scratch_restore(self, tree: Tree, place: Path, database: str, progress: Progress) -> ScratchRestore:
        return self._revival.restore(tree, place, database, progress)

    def query(self, asked: ScratchRestore, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        meter = Meter(bounds, answer, asked.directory)
        with self._revival.serve(asked, meter.about, meter.alive) as past:
            return {**query(past, sql, meter), "in_database": past.database}

    def table(self, asked: ScratchRestore, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        meter = Meter(bounds, answer, asked.directory)
        with self._revival.serve(asked, meter.about, meter.alive) as past, past.reading() as connection:
            return {**table(past, Reader(connection, meter), name, form, meter), "in_database": past.database}

    def difference(
        self, older: ScratchRestore, newer: ScratchRestore, name: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        meter = Meter(bounds, answer, older.directory)
        with self._both((older, newer), meter) as (before, after):
            return {**difference(before, after, name, meter), "in_database": after.past.database}

    def missing(
        self,
        both: tuple[ScratchRestore, ScratchRestore],
        search: tuple[str, str],
        form: str,
        bounds: Bounds,
        answer: Answer,
    ) -> Facts:
        meter = Meter(bounds, answer, both[0].directory)
        with self._both(both, meter) as (before, after):
            return {**missing(before, after, search, form, meter), "in_database": after.past.database}

    @contextmanager
    def _both(self, both: Sequence[ScratchRestore], meter: Meter) -> Iterator[Sequence[Side]]:
        with ExitStack() as stack:
            pasts = [stack.enter_context(self._revival.serve(one, meter.about, meter.alive)) for one in both]
            readers = [Reader(stack.enter_context(past.reading()), meter) for past in pasts]
            yield [Side.of(past, reader, meter) for past, reader in zip(pasts, readers, strict=True)]
