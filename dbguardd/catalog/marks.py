"""What is recorded about backups: the proofs from test restores, and holds."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from dbguardd.catalog.session import Session
from dbguardd.frozen import frozen
from dbguardd.states import Grade


@frozen
class ProofRow:
    """One test restore of one backup, with the grade it reached."""

    backup: str
    at: str
    grade: Grade
    restore_seconds: float | None
    failure: str | None
    facts: Mapping[str, Any]


@frozen
class HoldRow:
    """A reason why a backup may not be deleted."""

    backup: str
    reason: str
    actor: str
    at: str


class Proofs:
    """Test restores by backup. They are deleted with their backup."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, proof: ProofRow) -> None:
        """Store a proof as the newest of its backup, whatever the clock said."""
        self._session.change(
            "INSERT OR REPLACE INTO proofs (backup, at, grade, restore_seconds, failure, facts, number) "
            "VALUES (?1,?2,?3,?4,?5,?6, (SELECT coalesce(max(number), 0) + 1 FROM proofs WHERE backup = ?1))",
            (
                *(proof.backup, proof.at, proof.grade.value, proof.restore_seconds, proof.failure),
                json.dumps(dict(proof.facts), ensure_ascii=False, separators=(",", ":")),
            ),
        )

    def of(self, backup: str) -> list[ProofRow]:
        """Return the proofs of one backup, newest first."""
        rows = self._session.rows("SELECT * FROM proofs WHERE backup = ? ORDER BY number DESC", (backup,))
        return [
            ProofRow(
                r["backup"], r["at"], Grade(r["grade"]), r["restore_seconds"], r["failure"], json.loads(r["facts"])
            )
            for r in rows
        ]


class Holds:
    """Holds by backup. They are deleted with their backup."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, hold: HoldRow) -> None:
        """Store a hold; the same reason again changes nothing."""
        self._session.change(
            "INSERT OR IGNORE INTO holds (backup, reason, actor, at) VALUES (?,?,?,?)",
            (hold.backup, hold.reason, hold.actor, hold.at),
        )

    def drop(self, backup: str, reasons: Collection[str] | None = None) -> None:
        """Delete the holds of a backup that have one of these reasons, or all of them."""
        for hold in self.of(backup):
            if reasons is None or hold.reason in reasons:
                self._session.change("DELETE FROM holds WHERE backup = ? AND reason = ?", (backup, hold.reason))

    def of(self, backup: str) -> list[HoldRow]:
        """Return the holds of one backup, oldest first."""
        rows = self._session.rows("SELECT * FROM holds WHERE backup = ? ORDER BY at", (backup,))
        return [HoldRow(**dict(row)) for row in rows]
