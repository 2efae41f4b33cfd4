"""What is recorded about backups beside their manifests: fingerprints, proofs of restores, holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from dbguardd.errors import NotFound
from dbguardd.repository.ledger import Ledger
from dbguardd.repository.model import Hold, Proof, moment, rfc3339
from dbguardd.repository.records import Records, Unreadable


class Notes:
    """Reads and writes the records about existing backups."""

    def __init__(self, records: Records, ledger: Ledger) -> None:
        self._records = records
        self._ledger = ledger

    def attest(self, id: str, fingerprint: Mapping[str, Any], now: datetime) -> None:
        """Store the fingerprint of a backup. Raises NotFound."""
        backup, domain = self._ledger.find(id)
        self._records.put(domain, "print", backup.id, {"at": rfc3339(now), "content": dict(fingerprint)})

    def fingerprint(self, id: str) -> dict[str, Any] | None:
        """Return the fingerprint of a backup, or None. Raises NotFound, and Damaged if it exists but does not open."""
        for record in self._records.scan("print", self._ledger.find(id)[0].id):
            if isinstance(record, Unreadable):
                raise record.error
            content: dict[str, Any] = record.body["content"]
            return content
        return None

    def add_proof(self, proof: Proof) -> None:
        """Store the result of a test restore. Raises NotFound."""
        backup, domain = self._ledger.find(proof.backup)
        body = {
            "at": rfc3339(proof.at),
            "findings": [dict(finding) for finding in proof.findings],
            "grade": proof.grade,
            "number": max((known.number for known in self.proofs(backup.id)), default=0) + 1,
            "restore_seconds": proof.restore_seconds,
            "tool_version": proof.tool_version,
        }
        self._records.put(domain, "proof", backup.id, json.loads(json.dumps(body)))

    def proofs(self, backup: str = "") -> list[Proof]:
        """Return the proofs of one backup, or of all, sorted by backup and then by order of creation."""
        found = [
            Proof(
                record.slot,
                moment(record.body["at"]),
                record.body["grade"],
                record.body["restore_seconds"],
                tuple(record.body["findings"]),
                record.body["tool_version"],
                record.body.get("number", 0),
            )
            for record in self._records.readable("proof", backup)
        ]
        return sorted(found, key=lambda proof: (proof.backup, proof.number, proof.at))

    def hold(self, id: str, reason: str, actor: str, now: datetime) -> None:
        """Forbid the deletion of a backup. Raises NotFound."""
        backup, domain = self._ledger.find(id)
        self._records.put(domain, "hold", backup.id, {"actor": actor, "at": rfc3339(now), "reason": reason})

    def release(self, id: str, actor: str, now: datetime, reason: str | None = None) -> None:
        """End the holds of a backup with this reason, or all its holds. Raises NotFound if there is none."""
        backup, domain = self._ledger.find(id)
        ending = [hash for hash, hold in self._holding(backup.id) if reason in (None, hold.reason)]
        if not ending:
            raise NotFound(f"{backup.id}: the backup is not held")
        self._records.put(domain, "release", backup.id, {"actor": actor, "at": rfc3339(now), "holds": ending})

    def holds(self) -> dict[str, list[Hold]]:
        """Return the holds in force, by backup. A hold that does not open is in force."""
        found: dict[str, list[Hold]] = {}
        for _, hold in self._holding():
            found.setdefault(hold.backup, []).append(hold)
        return found

    def _holding(self, slot: str = "") -> Iterator[tuple[str, Hold]]:
        """Yield the holds in force with the hashes of their records."""
        records = list(self._records.scan("hold", slot))
        ended = {hold for record in self._records.readable("release", slot) for hold in record.body["holds"]}
        for record in records:
            hash = record.name.rpartition("-")[2]
            if hash in ended:
                continue
            if isinstance(record, Unreadable):
                yield (
                    hash,
                    Hold(record.slot, f"this hold does not open: {record.error.message}", "", record.stored_at),
                )
            else:
                said = record.body
                yield hash, Hold(record.slot, said["reason"], said["actor"], moment(said["at"]))
