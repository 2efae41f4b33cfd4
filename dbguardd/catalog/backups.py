"""The index of backups. The repositories are the truth."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from dbguardd.catalog.session import Session
from dbguardd.errors import NotFound, Usage
from dbguardd.frozen import frozen
from dbguardd.states import Grade
from dbguardd.wire import BackupRow, ExpiredRow

_COLUMNS = (
    "id, database, engine, created_at, kind, method, grade, source_bytes, stored_bytes, storage, proven_at, "
    "restore_seconds, note, failure, excluded, excluded_tables, left_out"
)
_LIVE = "expired_at IS NULL"
_GIVEN_UP = "expired_at IS NOT NULL"


@frozen
class Summary:
    """What `status` shows of the backups of one database."""

    count: int = 0
    newest: BackupRow | None = None
    proven: BackupRow | None = None  # the newest proven backup
    proven_since_at: str | None = None  # when the oldest proven backup was made
    full_at: str | None = None  # when the newest full backup was made
    failed: int = 0  # how many failed their last verification, or were found damaged


class Backups:
    """The rows of backups; expired ones are visible only in expired()."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, row: BackupRow) -> None:
        """Write the present state of a row; holds have their own table and are not written here."""
        self._session.change(
            f"INSERT OR REPLACE INTO backups ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
            (
                *(row.id, row.database, row.engine, row.created_at, row.kind, row.method, row.grade.value),
                *(row.source_bytes, row.stored_bytes, row.storage, row.proven_at, row.restore_seconds),
                *(row.note, row.failure, json.dumps(row.excluded), row.excluded_tables, json.dumps(row.left_out)),
            ),
        )

    def grade(self, id: str, grade: Grade, proven_at: str | None, seconds: float | None, failure: str | None) -> None:
        """Record the result of a verification; a value that it does not have is kept from an earlier proof."""
        self._session.change(
            "UPDATE backups SET grade = ?, proven_at = coalesce(?, proven_at), "
            "restore_seconds = coalesce(?, restore_seconds), failure = ? WHERE id = ?",
            (grade.value, proven_at, seconds, failure, id),
        )

    def expire(self, id: str, at: str, grace_until_at: str | None) -> None:
        """Hide a backup; its row stays until it is swept."""
        self._session.change(
            "UPDATE backups SET expired_at = ?, grace_until_at = ? WHERE id = ?", (at, grace_until_at, id)
        )

    def recall(self, id: str) -> None:
        """Make an expired backup visible again."""
        self._session.change("UPDATE backups SET expired_at = NULL, grace_until_at = NULL WHERE id = ?", (id,))

    def forget(self, id: str) -> None:
        """Delete a backup with its proofs and holds: its bytes are gone."""
        for table, column in (("backups", "id"), ("proofs", "backup"), ("holds", "backup")):
            self._session.change(f"DELETE FROM {table} WHERE {column} = ?", (id,))  # noqa: S608

    def clear(self, storage: str, database: str | None = None) -> None:
        """Delete all rows of a storage, or of one database in it, before it is indexed again."""
        which = "SELECT id FROM backups WHERE storage = ?1 AND (?2 IS NULL OR database = ?2)"
        for table in ("proofs", "holds"):
            self._session.change(f"DELETE FROM {table} WHERE backup IN ({which})", (storage, database))  # noqa: S608
        self._session.change(f"DELETE FROM backups WHERE id IN ({which})", (storage, database))  # noqa: S608

    def of(self, database: str) -> list[BackupRow]:
        """Return the backups of one database, newest first."""
        sql = f"SELECT {_COLUMNS} FROM backups WHERE database = ? AND {_LIVE} ORDER BY id DESC"  # noqa: S608
        found = self._with_holds(self._session.rows(sql, (database,)))
        looked = "SELECT backup, at, max(number) FROM proofs JOIN backups ON backup = id WHERE database = ? GROUP BY id"
        when = {row["backup"]: row["at"] for row in self._session.rows(looked, (database,))}
        for row in found:
            row.verified_at = when.get(row.id)
        return found

    def summary(self, database: str) -> Summary:
        """Return what `status` shows of a database, without reading all its backups."""
        newest = self._first(f"database = ? AND {_LIVE}", database)
        if newest is None:
            return Summary()
        proven = self._first(f"database = ? AND grade = 'proven' AND {_LIVE}", database)
        full = self._first(f"database = ? AND kind = 'full' AND {_LIVE}", database)
        row = self._session.row(
            "SELECT count(*), min(iif(grade = 'proven', created_at, NULL)), "  # noqa: S608
            f"count(failure) FROM backups WHERE database = ? AND {_LIVE}",
            (database,),
        )
        count, since, failed = tuple(row) if row else (0, None, 0)
        return Summary(count, newest, proven, since, full.created_at if full else None, failed)

    def _first(self, where: str, database: str) -> BackupRow | None:
        sql = f"SELECT {_COLUMNS} FROM backups WHERE {where} ORDER BY id DESC LIMIT 1"  # noqa: S608
        row = self._session.row(sql, (database,))
        return None if row is None else _backup(row, [])

    def get(self, prefix: str, *, expired: bool = False) -> BackupRow:
        """Return the only backup whose id is or starts with `prefix`. Raises NotFound, or Usage if there are more."""
        if row := self._one(prefix, _GIVEN_UP if expired else _LIVE):
            return self._with_holds([row])[0]
        other = self._one(prefix, _LIVE if expired else _GIVEN_UP)
        if other is None:
            raise NotFound(
                f"{prefix}: no such {'expired ' * expired}backup",
                hints=("dbguardctl list NAME --all" if expired else "dbguardctl status",),
            )
        if expired:
            raise NotFound(f"{other['id']}: the backup has not expired", hints=(f"dbguardctl show {other['id']}",))
        raise NotFound(
            f"{other['id']}: the backup has expired",
            detail=f"It can be recalled until {other['grace_until_at'] or 'its grace is over'}.",
            hints=(f"dbguardctl recall {other['id']}",),
            facts={"backup": other["id"], "recall_until_at": other["grace_until_at"]},
        )

    def _one(self, prefix: str, which: str) -> sqlite3.Row | None:
        """Return the row whose id is or begins with `prefix`, or None. Raises Usage if there are several."""
        prefix = prefix.upper()
        rows = self._session.rows(
            f"SELECT {_COLUMNS}, grace_until_at FROM backups WHERE id >= ? AND id < ? AND {which} "  # noqa: S608
            "ORDER BY id LIMIT 6",
            (prefix, prefix + "\x7f"),
        )
        if len(rows) > 1 and prefix and rows[0]["id"] != prefix:
            raise Usage(
                f"{prefix}: several backups have ids that begin with this", detail=_some([row["id"] for row in rows])
            )
        return rows[0] if rows and prefix else None

    def expired(self, database: str) -> list[ExpiredRow]:
        """Return the backups that have expired and are not swept yet, newest first."""
        rows = self._session.rows(
            f"SELECT {_COLUMNS}, expired_at, grace_until_at FROM backups "  # noqa: S608
            f"WHERE database = ? AND {_GIVEN_UP} ORDER BY id DESC",
            (database,),
        )
        return [ExpiredRow(_backup(row, []), row["expired_at"], row["grace_until_at"]) for row in rows]

    def databases(self) -> dict[str, str]:
        """Return every database that has a backup, with its engine, including those that left the policy."""
        sql = f"SELECT database, max(engine) AS engine FROM backups WHERE {_LIVE} GROUP BY database"  # noqa: S608
        rows = self._session.rows(sql)
        return {row["database"]: row["engine"] for row in rows}

    def stored_bytes(self, storage: str) -> int:
        """Return how many bytes the backups of a storage added when they were made."""
        row = self._session.row("SELECT coalesce(sum(stored_bytes), 0) FROM backups WHERE storage = ?", (storage,))
        return int(row[0]) if row else 0

    def _with_holds(self, rows: Iterable[sqlite3.Row]) -> list[BackupRow]:
        held: dict[str, list[str]] = {}
        for hold in self._session.rows("SELECT backup, reason FROM holds ORDER BY backup, at"):
            held.setdefault(hold["backup"], []).append(hold["reason"])
        return [_backup(row, held.get(row["id"], [])) for row in rows]


def _backup(row: sqlite3.Row, holds: list[str]) -> BackupRow:
    return BackupRow(
        id=row["id"],
        database=row["database"],
        engine=row["engine"],
        created_at=row["created_at"],
        kind=row["kind"],
        method=row["method"],
        grade=Grade(row["grade"]),
        source_bytes=row["source_bytes"],
        stored_bytes=row["stored_bytes"],
        storage=row["storage"],
        proven_at=row["proven_at"],
        restore_seconds=row["restore_seconds"],
        holds=holds,
        note=row["note"],
        failure=row["failure"],
        excluded=json.loads(row["excluded"]),
        excluded_tables=row["excluded_tables"],
        left_out=json.loads(row["left_out"]),
    )


def _some(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= 5 else f"{', '.join(ids[:5])}, ..."
