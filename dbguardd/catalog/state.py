"""What the daemon must remember across a restart: last runs, pauses, settings, idempotency keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dbguardd.catalog.session import Session
from dbguardd.errors import Usage
from dbguardd.frozen import frozen

_KEYS_KEPT = 1_000


@frozen
class Run:
    """The results of the last runs of one verb on one target (a database or a storage)."""

    target: str
    verb: str
    known_at: str  # since when it is expected to run
    started_at: str | None = None  # of the newest run that ended
    finished_at: str | None = None
    succeeded_at: str | None = None
    failures: int = 0  # since the last success
    failing_since_at: str | None = None
    job: str | None = None
    problem: Mapping[str, Any] | None = None  # of the last run, if it failed


@frozen
class Pause:
    """No scheduled runs of a database until `until_at`; None: until a user resumes it."""

    database: str
    until_at: str | None
    actor: str
    at: str


class Runs:
    """The memory of the schedule."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, target: str, verb: str) -> Run | None:
        """Return the memory of one verb on a target; None if it was never planned."""
        row = self._session.row("SELECT * FROM runs WHERE target = ? AND verb = ?", (target, verb))
        return None if row is None else _run(dict(row))

    def put(self, run: Run) -> None:
        """Write one memory."""
        problem = None if run.problem is None else json.dumps(dict(run.problem), ensure_ascii=False)
        self._session.change(
            "INSERT OR REPLACE INTO runs (target, verb, known_at, started_at, finished_at, succeeded_at, failures, "
            "failing_since_at, job, problem) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                *(run.target, run.verb, run.known_at, run.started_at, run.finished_at, run.succeeded_at),
                *(run.failures, run.failing_since_at, run.job, problem),
            ),
        )


def _run(row: dict[str, Any]) -> Run:
    row["problem"] = None if row["problem"] is None else json.loads(row["problem"])
    return Run(**row)


class Pauses:
    """Databases whose schedule is paused."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, pause: Pause) -> None:
        """Pause, or change the end of a pause."""
        self._session.change(
            "INSERT OR REPLACE INTO pauses (database, until_at, actor, at) VALUES (?,?,?,?)",
            (pause.database, pause.until_at, pause.actor, pause.at),
        )

    def drop(self, database: str) -> bool:
        """End a pause; False if there was none."""
        return self._session.change("DELETE FROM pauses WHERE database = ?", (database,)) > 0

    def active(self, now: str) -> dict[str, Pause]:
        """Return the pauses in force at `now`, by database."""
        rows = self._session.rows("SELECT * FROM pauses WHERE until_at IS NULL OR until_at > ?", (now,))
        return {row["database"]: Pause(**dict(row)) for row in rows}


class Settings:
    """Small values by name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, key: str) -> str | None:
        """Return the value, or None."""
        row = self._session.row("SELECT value FROM settings WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Write the value; durable on return, unless a transaction is open."""
        self._session.change("INSERT OR REPLACE INTO settings (key, value) VALUES (?,?)", (key, value))


class Requests:
    """Idempotency keys: the same key from the same user names the same job."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def job(self, key: str, uid: int, digest: str) -> str | None:
        """Return the job that was made with this key, or None. Raises Usage if the key belongs to another request."""
        row = self._session.row("SELECT digest, job FROM requests WHERE key = ? AND uid = ?", (key, uid))
        if row is None:
            return None
        if row["digest"] != digest:
            raise Usage(f"{key}: this idempotency key was used for another request", detail=f"job {row['job']}")
        return str(row["job"])

    def put(self, key: str, uid: int, digest: str, job: str, at: str) -> None:
        """Remember a key; the oldest keys are deleted."""
        self._session.change(
            "INSERT OR REPLACE INTO requests (key, uid, digest, job, at) VALUES (?,?,?,?,?)",
            (key, uid, digest, job, at),
        )
        self._session.change(
            "DELETE FROM requests WHERE at < (SELECT at FROM requests ORDER BY at DESC LIMIT 1 OFFSET ?)",
            (_KEYS_KEPT,),
        )
