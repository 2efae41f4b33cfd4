"""The history of events, in order. It is bounded: the oldest are deleted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from dbguardd.catalog.session import Session
from dbguardd.wire import Event, EventRange

_PRUNE_EVERY = 500


class Events:
    """Events with increasing ids that are never reused, even after pruning."""

    def __init__(self, session: Session, kept: int) -> None:
        self._session = session
        self._kept = kept

    def last_id(self) -> int:
        """Return the greatest id so far; 0 before the first event."""
        row = self._session.row("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)")
        return int(row[0]) if row else 0

    def add(self, at: str, event: str, database: str | None, job: str | None, facts: Mapping[str, Any]) -> Event:
        """Append one event and return it with its id."""
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
        number = self._session.add(
            "INSERT INTO events (at, event, database, job, facts) VALUES (?,?,?,?,?)", (at, event, database, job, text)
        )
        if number % _PRUNE_EVERY == 0:
            self._session.change("DELETE FROM events WHERE id <= ?", (number - self._kept,))
        return Event(number, at, event, database, job, json.loads(text))

    def find(self, asked: EventRange, limit: int, *, last: bool = False) -> list[Event]:
        """Return the first `limit` events of the range, or the last ones; oldest first in both cases."""
        where: list[str] = ["id > ?"]
        values: list[Any] = [asked.after, limit]
        for term, value in (
            ("id < ?", asked.before),
            ("at >= ?", asked.since),
            ("at < ?", asked.until),
            ("database = ?", asked.database),
            ("job = ?", asked.job),
        ):
            if value is not None:
                where.append(term)
                values.insert(-1, value)
        order = "DESC" if last else "ASC"
        sql = f"SELECT * FROM events WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?"  # noqa: S608
        found = [_event(row) for row in self._session.rows(sql, values)]
        return found[::-1] if last else found


def _event(row: sqlite3.Row) -> Event:
    return Event(row["id"], row["at"], row["event"], row["database"], row["job"], json.loads(row["facts"]))
