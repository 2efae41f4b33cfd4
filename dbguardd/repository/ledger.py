"""The ledger of a repository: which backups exist, and which have expired.

Everything is read from the records each time. Records that do not open are skipped here, so that one damaged object
does not hide the others: check() reports them, and a sweep refuses to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from dbguardd.errors import Breaker, Damaged, Held, NotFound, Usage
from dbguardd.repository.clock import Pulses, recallable_until
from dbguardd.repository.model import Backup, Expired, Hold, backup_from, manifest, rfc3339
from dbguardd.repository.records import Record, Records, Unreadable
from dbguardd.repository.seal import Domain
from dbguardd.repository.tombstones import put_backup_tombstone, tombstones
from dbguardd.storage.base import Storage


class Ledger:
    """Reads and writes the records about backups."""

    def __init__(self, storage: Storage, records: Records, pulses: Pulses) -> None:
        self._storage = storage
        self._records = records
        self._pulses = pulses

    def backups(self, database: str | None = None) -> list[Backup]:
        """Return the unexpired backups, newest first."""
        return [backup for backup, _ in self.newest(database)]

    def newest(self, database: str | None = None, *, expired: bool = False) -> Iterator[tuple[Backup, Domain]]:
        """Yield backups and their domains, newest first. Only what the caller consumes is read."""
        gone = set() if expired else set(self.tombs())
        for entry in reversed(self._records.entries("backup")):
            slot = entry.name.rpartition("/")[2].rpartition("-")[0]
            if slot in gone:
                continue
            record = self._records.open(entry)
            if isinstance(record, Record) and (database is None or record.domain.name == database):
                yield read_backup(record), record.domain

    def find(self, id: str) -> tuple[Backup, Domain]:
        """Return the backup whose id starts with `id`. Raises NotFound, Usage, Damaged and what opening it raises."""
        wanted = id.upper()
        if not (wanted.isascii() and wanted.isalnum()):
            raise NotFound(f"{id}: not the id of a backup")
        entries = self._records.entries("backup", wanted)
        if not entries:
            raise NotFound(f"{id}: no such backup", detail=self._storage.url)
        if len(entries) > 1:
            ids = [entry.name.rpartition("/")[2][:26] for entry in entries[:8]]
            more = ", ..." if len(entries) > len(ids) else ""
            raise Usage(f"{id}: {len(entries)} backups start with that", detail=f"{', '.join(ids)}{more}")
        record = self._records.open(entries[0])
        if isinstance(record, Unreadable):
            raise record.error
        if record.slot in self.tombs():
            raise NotFound(f"{record.slot}: the backup has expired", detail="it can be recalled while its grace lasts")
        return read_backup(record), record.domain

    def publish(self, backup: Backup, domain: Domain) -> str:
        """Write the manifest, with which the backup begins to exist. Return the name of the record."""
        return self._records.put(domain, "backup", backup.id, manifest(backup))

    def tombs(self) -> dict[str, Expired]:
        """Return the expired backups, with the oldest tomb of each."""
        found: dict[str, Expired] = {}
        for tomb in tombstones(self._records):
            if tomb.backup and (tomb.backup not in found or tomb.stored_at < found[tomb.backup].at):
                found[tomb.backup] = Expired(tomb.backup, tomb.reasons, tomb.stored_at)
        return found

    def expire(
        self,
        reasons: Mapping[str, Sequence[str]],
        now: datetime,
        holds: Mapping[str, Sequence[Hold]],
        *,
        confirmed: bool,
    ) -> None:
        """Write a tomb for each backup. Raises NotFound, Held, and Breaker if a database would keep none."""
        there = {entry.name.rpartition("/")[2][:26] for entry in self._records.entries("backup")}
        gone = set(self.tombs())
        for id in reasons:
            if id not in there:
                raise NotFound(f"{id}: no such backup", detail=self._storage.url)
            if id in holds:
                said = "; ".join(f"{hold.reason} ({hold.actor})" for hold in holds[id])
                raise Held(f"{id}: the backup is held", detail=said, hints=(f"dbguardctl release {id}",))
        if not confirmed:
            self._keeps_one(set(reasons) - gone)
        for id in sorted(set(reasons) - gone):
            put_backup_tombstone(self._records, id, reasons[id], now, self._pulses())

    def _keeps_one(self, going: set[str]) -> None:
        stays: dict[str, bool] = {}
        for backup in self.backups():
            stays[backup.database] = stays.get(backup.database, False) or backup.id not in going
        empty = sorted(database for database, kept in stays.items() if not kept)
        if empty and going:
            raise Breaker(
                f"{empty[0]}: no backup would be left",
                detail=f"{len(going)} would expire: {', '.join(sorted(going))}",
            )

    def recall(self, ids: Iterable[str], storage_now: datetime, grace: timedelta) -> None:
        """Delete tombs. Raises NotFound, also when the grace is nearly over and a sweep may be using them."""
        expired = self.tombs()
        for id in ids:
            if id not in expired:
                raise NotFound(f"{id}: not an expired backup")
            until = recallable_until(expired[id].at, grace)
            if storage_now >= until:
                raise NotFound(
                    f"{id}: its grace is over, so it can no longer be recalled",
                    detail=f"It expired at {rfc3339(expired[id].at)} and could be recalled until {rfc3339(until)}.",
                )
            for entry in self._records.entries("tomb", id):
                self._storage.delete(entry.name)


def read_backup(record: Record) -> Backup:
    """Read the manifest in a record. Raises Damaged."""
    try:
        backup = backup_from(record.body)
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{record.name}: not a manifest of this format", detail=repr(error)) from error
    if backup.id != record.slot or backup.database != record.domain.name:
        raise Damaged(
            f"{record.name}: the manifest names another place",
            detail=f"backup {backup.id} of {backup.database}, sealed for {record.domain.name}",
        )
    return backup
