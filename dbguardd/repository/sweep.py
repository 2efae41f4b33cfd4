"""The sweep: frees the space of what no backup needs, in two runs at least one grace apart.

The first run writes a tomb for packs that no backup needs. A later run, when the grace of a tomb is over, reads every
backup again and deletes the packs in the tomb that are still not needed, and the backups that expired a grace ago.
Writers need not stop: see tombstones.py for what they do. The order of one run, which can be killed anywhere and
repeated:

1. the storage's time (clock.py) and the tombs that are due,
2. all backups, what each needs, and all packs; anything unreadable or missing ends the run here, including a manifest
   that is gone while a fingerprint, proof or hold of its backup exists (if confirmed, these are deleted instead),
3. manifests of expired backups, then their other records, then their tombs,
4. packs that are due, then their tombs,
5. new tombs.

A manifest is deleted before its packs, and a tomb after what it names, so no backup ever lacks a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

from dbguardd.errors import Breaker, Damaged, ObjectMissing
from dbguardd.frozen import frozen
from dbguardd.repository.clock import Pulse, Pulses, trusted
from dbguardd.repository.ledger import read_backup
from dbguardd.repository.model import Backup, Swept, rfc3339
from dbguardd.repository.notes import Notes
from dbguardd.repository.packs import object_name
from dbguardd.repository.records import KINDS, Record, Records, Unreadable
from dbguardd.repository.seal import Domain, Randomness
from dbguardd.repository.tombstones import Tombstone, pack_of, put_pack_tombstones, tombstone_of
from dbguardd.storage.base import Entry, Storage

Needs = Callable[[Backup, Domain], AbstractSet[str]]
"""Returns the hashes of all packs that a backup needs. Raises Damaged, ObjectMissing."""


@frozen
class Breakers:
    """What one run may delete without confirmation: shares of the total, from a minimum number on."""

    bytes_share: float = 0.5
    packs_from: int = 9
    backups_share: float = 0.5
    backups_from: int = 50


@frozen
class Survey:
    """What lies in the repository at one moment, as far as a sweep is concerned."""

    now: datetime
    packs: Mapping[str, Entry]
    needed: frozenset[str]  # by visible backups
    recallable: frozenset[str]  # by those, and by expired ones within their grace or held
    backups: int
    expired: tuple[str, ...]  # their grace is over
    due: tuple[Tombstone, ...]
    waiting: tuple[Tombstone, ...]

    @property
    def doomed(self) -> frozenset[str]:
        """Packs to delete now."""
        return self._named(self.due) - self.recallable

    @property
    def fresh(self) -> frozenset[str]:
        """Packs to write a tomb for."""
        return frozenset(self.packs) - self.needed - self._named(self.due) - self._named(self.waiting)

    def _named(self, tombs: Iterable[Tombstone]) -> frozenset[str]:
        return frozenset(pack for tomb in tombs for pack in tomb.packs if pack in self.packs)


@frozen
class Sweeping:
    """One sweep of one storage."""

    storage: Storage
    records: Records
    notes: Notes
    needs: Needs
    pulses: Pulses
    randomness: Randomness

    def run(
        self, now: datetime, grace: timedelta, *, dry_run: bool, confirmed: bool, breakers: Breakers | None = None
    ) -> Swept:
        """Do one run, or report what it would do. Raises ClockDoubt, Breaker, Damaged, ObjectMissing."""
        survey = self.survey(now, grace, confirmed=confirmed)
        fresh = [pack for pack in survey.fresh if self._old_enough(survey, pack, grace)]
        young = survey.fresh.difference(fresh)
        if not confirmed:
            _not_too_much(survey, breakers or Breakers())
        deleted, freed = (0, 0) if dry_run else self._delete(survey)
        if not dry_run:
            put_pack_tombstones(
                self.records, fresh, grace, now=survey.now, pulse=self.pulses(), randomness=self.randomness
            )
        waits = [tomb for tomb in survey.waiting if tomb.packs]
        dues = [tomb.stored_at + max(grace, tomb.grace) for tomb in waits] + [survey.now + grace] * bool(fresh)
        return Swept(
            backups=survey.expired,
            objects=len(survey.doomed) if dry_run else deleted,
            bytes=sum(survey.packs[pack].size for pack in survey.doomed) if dry_run else freed,
            marked=len(fresh),
            marked_bytes=sum(survey.packs[pack].size for pack in fresh),
            young=len(young),
            young_bytes=sum(survey.packs[pack].size for pack in young),
            waiting=len({pack for tomb in waits for pack in tomb.packs if pack in survey.packs}),
            kept=len({pack for tomb in survey.due for pack in tomb.packs} & survey.recallable),
            next_at=min(dues, default=None),
            dry_run=dry_run,
        )

    def survey(self, now: datetime, grace: timedelta, *, confirmed: bool) -> Survey:
        """Read what a run must know; refuse if something is unknown. Tombs are read first, then backups, packs last.

        If `confirmed`, backups whose manifest is gone are given up like expired ones.
        """
        there = trusted(self.storage, now, self.randomness, list(self.storage.list("")), grace)
        pulse = self.pulses()
        tombs = [tombstone_of(record) for record in self._all("tomb")]
        for kind in ("hold", "release"):
            self._all(kind)
        held = self.notes.holds()
        noted = self._noted()
        expired = {tomb.backup for tomb in tombs if tomb.backup}
        over = {tomb.backup for tomb in tombs if tomb.backup and tomb.over(there, pulse, grace)} - held.keys()
        backups = [(read_backup(record), record.domain) for record in self._all("backup", beside=over)]
        lost = noted.keys() - {backup.id for backup, _ in backups} - expired
        if lost and not confirmed:
            raise _lost(min(lost), noted)
        packs = {pack_of(entry): entry for entry in self.storage.list("packs/")}
        needed: set[str] = set()
        recallable: set[str] = set()
        for backup, domain in backups:
            needs = self.needs(backup, domain)
            _complete(backup, needs - packs.keys())
            (recallable if backup.id in expired else needed).update(needs)
        due, waiting = _sorted(tombs, there, pulse, grace)
        return Survey(
            there,
            packs,
            frozenset(needed),
            frozenset(needed | recallable),
            len(backups) + len(over | lost),
            tuple(sorted(over | lost)),
            due,
            waiting,
        )

    def _all(self, kind: str, beside: AbstractSet[str] = frozenset()) -> list[Record]:
        """Return every record of a kind except those of the backups `beside`. Raises Damaged for an unreadable one."""
        found: list[Record] = []
        for record in self.records.scan(kind):
            if record.slot in beside:
                continue
            if isinstance(record, Unreadable):
                raise Damaged(
                    f"{record.name}: this record does not open, so nothing is swept",
                    detail=f"{record.error.message} {record.error.detail}",
                    hints=("dbguardctl check",),
                ) from record.error
            found.append(record)
        return found

    def _noted(self) -> dict[str, Entry]:
        """Return a record about each backup that has one. Listed before the manifests, which are older."""
        entries = [entry for kind in ("print", "proof", "hold") for entry in self.records.entries(kind)]
        return {entry.name.rpartition("/")[2].rpartition("-")[0]: entry for entry in entries}

    def _old_enough(self, survey: Survey, pack: str, grace: timedelta) -> bool:
        """Young packs may belong to a backup being made; packs of an expired backup are marked at once."""
        return pack in survey.recallable or survey.now - survey.packs[pack].modified_at >= grace

    def _delete(self, survey: Survey) -> tuple[int, int]:
        """Delete what is due, in the order given in the module's docstring; return the numbers of objects and bytes."""
        names: list[Entry] = []
        for backup in survey.expired:
            order = [kind for kind in KINDS if kind != "tomb"] + ["tomb"]
            for kind in order:
                names += self.records.entries(kind, backup)
        names += [survey.packs[pack] for pack in sorted(survey.doomed)]
        for entry in names:
            self.storage.delete(entry.name)
        for tomb in survey.due:
            self.storage.delete(tomb.name)
        return len(names) + len(survey.due), sum(entry.size for entry in names)


def _sorted(
    tombs: Iterable[Tombstone], now: datetime, pulse: Pulse, grace: timedelta
) -> tuple[tuple[Tombstone, ...], tuple[Tombstone, ...]]:
    due: list[Tombstone] = []
    waiting: list[Tombstone] = []
    for tomb in tombs:
        if not tomb.backup:
            (due if tomb.over(now, pulse, grace) else waiting).append(tomb)
    return tuple(due), tuple(waiting)


def _complete(backup: Backup, missing: AbstractSet[str]) -> None:
    if missing:
        raise ObjectMissing(
            f"{backup.database}: backup {backup.id} lacks {len(missing)} packs; nothing is swept",
            detail=", ".join(object_name(pack) for pack in sorted(missing)[:8]),
            hints=("dbguardctl check", f"dbguardctl backup {backup.database} --full"),
        )


def _lost(backup: str, noted: Mapping[str, Entry]) -> ObjectMissing:
    """Return the error for a backup with other records but no manifest or tomb: a sweep deletes the tomb last."""
    return ObjectMissing(
        f"backup {backup}: its manifest is missing, so what it needs is unknown; nothing is swept",
        detail=f"{noted[backup].name} still exists, from {rfc3339(noted[backup].modified_at)}",
        hints=("dbguardctl check", "# copy the manifest back from a copy of the storage, or sweep with --confirm"),
    )


def _not_too_much(survey: Survey, breakers: Breakers) -> None:
    total = sum(entry.size for entry in survey.packs.values())
    going = sum(survey.packs[pack].size for pack in survey.doomed)
    if len(survey.doomed) >= breakers.packs_from and going > total * breakers.bytes_share:
        raise Breaker(
            f"sweep: {going} of {total} bytes would be deleted in one run",
            detail=f"{len(survey.doomed)} of {len(survey.packs)} packs; {survey.backups} backups are there",
        )
    if len(survey.expired) >= breakers.backups_from and len(survey.expired) > survey.backups * breakers.backups_share:
        raise Breaker(f"sweep: {len(survey.expired)} of {survey.backups} backups would be deleted in one run")
