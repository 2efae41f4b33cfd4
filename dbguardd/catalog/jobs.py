"""The jobs: finished, running and waiting."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from dbguardd.catalog.session import Session
from dbguardd.errors import NotFound, Usage
from dbguardd.states import JobState
from dbguardd.wire import JobRow

_COLUMNS = (
    "id, verb, database, state, actor, request, created_at, started_at, finished_at, attempt, step, done_bytes, "
    "total_bytes, result, problem, stderr_tail"
)
_LISTED = _COLUMNS.replace(" result,", " NULL AS result,")
_KEPT = 5_000
_PRUNE_EVERY = 200


class Jobs:
    """Job rows. Ids are ULIDs, so their order is the order of creation."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._added = 0

    def put(self, job: JobRow, storage: str | None) -> None:
        """Write the present state of a job; `storage` is the storage that it works on."""
        self._session.change(
            f"INSERT OR REPLACE INTO jobs ({_COLUMNS}, storage) "  # noqa: S608 - our own column names
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                *(job.id, job.verb, job.database, job.state.value, job.actor, _dump(job.request)),
                *(job.created_at, job.started_at, job.finished_at, job.attempt, job.step, job.done_bytes),
                *(job.total_bytes, _dump_or_null(job.result), _dump_or_null(job.problem), job.stderr_tail, storage),
            ),
        )
        self._added += 1
        if self._added % _PRUNE_EVERY == 0:
            self.prune(_KEPT)

    def get(self, prefix: str) -> JobRow:
        """Return the only job whose id is or starts with `prefix`. Raises NotFound, or Usage if there are more."""
        prefix = prefix.upper()
        rows = self._session.rows(
            f"SELECT {_COLUMNS} FROM jobs WHERE id >= ? AND id < ? ORDER BY id LIMIT 6",  # noqa: S608
            (prefix, prefix + "\x7f"),
        )
        if not rows:
            raise NotFound(f"{prefix}: no such job", hints=("dbguardctl job list",))
        if len(rows) > 1 and rows[0]["id"] != prefix:
            ids = [row["id"] for row in rows]
            more = ", ..." if len(ids) > 5 else ""
            raise Usage(f"{prefix}: several jobs have ids that begin with this", detail=f"{', '.join(ids[:5])}{more}")
        return _job(rows[0])

    def find(self, database: str | None = None, state: str | None = None, limit: int = 50) -> list[JobRow]:
        """Return jobs, the newest first, without their results: many of those would take too much memory."""
        where = ["1"]
        values: list[Any] = []
        if database is not None:
            where.append("database = ?")
            values.append(database)
        if state is not None:
            where.append("state = ?")
            values.append(state)
        rows = self._session.rows(
            f"SELECT {_LISTED} FROM jobs WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        return [_job(row) for row in rows]

    def last(self, database: str, verb: str) -> JobRow | None:
        """Return the newest job of one verb on a database."""
        row = self._session.row(
            f"SELECT {_COLUMNS} FROM jobs WHERE database = ? AND verb = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
            (database, verb),
        )
        return None if row is None else _job(row)

    def unfinished(self) -> list[JobRow]:
        """Return jobs without an end, oldest first: after a start, those that an earlier daemon left."""
        rows = self._session.rows(f"SELECT {_COLUMNS} FROM jobs WHERE finished_at IS NULL ORDER BY id")  # noqa: S608
        return [_job(row) for row in rows]

    def prune(self, kept: int) -> int:
        """Delete all finished jobs but the newest `kept`; return how many were deleted."""
        return self._session.change(
            "DELETE FROM jobs WHERE finished_at IS NOT NULL AND id <= "
            "(SELECT id FROM jobs WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (kept,),
        )


def _job(row: sqlite3.Row) -> JobRow:
    facts = dict(row)
    facts["state"] = JobState(facts["state"])
    facts["request"] = json.loads(facts["request"])
    for name in ("result", "problem"):
        facts[name] = None if facts[name] is None else json.loads(facts[name])
    return JobRow(**facts)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _dump_or_null(value: Any) -> str | None:
    return None if value is None else _dump(value)
