"""Questions to backups made by the method pages: engines.base.Questions. Imports apsw, which nothing else needs."""

from __future__ import annotations

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite import ask, compare, take_out
from dbguardd.engines.sqlite.missing import missing
from dbguardd.flow import Facts, Pages


class SqliteQuestions:
    """Questions to SQLite files as they were. Implements engines.base.Questions."""

    def query(self, asked: Pages, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        return ask.query(asked, sql, bounds, answer)

    def table(self, asked: Pages, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        return take_out.table(asked, name, form, bounds, answer)

    def difference(self, older: Pages, newer: Pages, table: str, bounds: Bounds, answer: Answer) -> Facts:
        return compare.difference(older, newer, table, bounds, answer)

    def missing(
        self, both: tuple[Pages, Pages], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        return missing(both, search, form, bounds, answer)
