"""Questions to backups made by the method pages: engines.base.Past. Imports apsw, which nothing else needs."""

from __future__ import annotations

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite import ask
from dbguardd.flow import Facts, Pages


class SqlitePast:
    """Questions to SQLite files as they were. Implements engines.base.Past."""

    def query(self, pages: Pages, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        return ask.query(pages, sql, bounds, answer)
