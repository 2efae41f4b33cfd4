"""A repository: the encrypted, deduplicated backups in one storage. Other packages use only what is exported here.

Where to read on: seal.py (keys and envelopes), records.py, ledger.py and notes.py (what is known of backups), saving.py
and tree.py (writing and reading backups), log.py and moment.py (the log between backups), packs.py and frames.py
(bytes), tombstones.py and sweep.py (freeing space), check.py (damage). The format is described byte by byte in
dbguard-repository(5); recover.py reads it without the rest of dbguard.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbguardd import __version__
from dbguardd.errors import Busy, Damaged, GuardError, ObjectMissing
from dbguardd.keys.base import KeyWrapper
from dbguardd.repository import opening
from dbguardd.repository.clock import PROMPT_SECONDS, Pulses, pulse, recallable_until, storage_time
from dbguardd.repository.ledger import Ledger
from dbguardd.repository.log import Link, StoredLog
from dbguardd.repository.model import Backup, Expired, Hold, Proof, StorageFinding, Stream, Swept
from dbguardd.repository.notes import Notes
from dbguardd.repository.opening import Recipient
from dbguardd.repository.records import Records
from dbguardd.repository.saving import Saving
from dbguardd.repository.seal import Domain, Keyring, Randomness
from dbguardd.repository.tombstones import check_packs_stay, pack_of
from dbguardd.repository.tree import BytesDone, Tree, ignore, packs_of
from dbguardd.rules.chains import BYTES, Chain, LogRange, Piece
from dbguardd.states import Grade
from dbguardd.storage.base import Storage
from dbguardd.ulids import ulid

if TYPE_CHECKING:
    from dbguardd.repository.check import Progress
    from dbguardd.repository.moment import LogTree, MomentTree

__all__ = [
    "BYTES",
    "Backup",
    "Chain",
    "Expired",
    "StorageFinding",
    "Hold",
    "Link",
    "LogRange",
    "Piece",
    "Proof",
    "Recipient",
    "Repository",
    "Saving",
    "StoredLog",
    "Stream",
    "Swept",
    "Tree",
    "recallable_until",
]

_QUOTES = '"""'
_PARENTS = 3  # backups that are tried as a parent before a full backup is made


class Repository:
    """One open repository. Any number of processes may use it at once; nothing is ever edited in place."""

    PRELUDE = ("keys/", "recover/")
    """What create() writes before repo.json: if it is killed it leaves only these, which the next create() ignores."""

    def __init__(
        self,
        storage: Storage,
        keyring: Keyring,
        wrappers: Sequence[KeyWrapper],
        *,
        randomness: Randomness = os.urandom,
        pulses: Pulses = pulse,
    ) -> None:
        self._storage = storage
        self._wrappers = tuple(wrappers)
        self._randomness = randomness
        self._pulses = pulses
        self._records = Records(storage, keyring, randomness)
        self._ledger = Ledger(storage, self._records, pulses)
        self._notes = Notes(self._records, self._ledger)

    # ------------------------------------------------------------------------------------------ opening

    @classmethod
    def create(
        cls,
        storage: Storage,
        wrappers: Sequence[KeyWrapper],
        now: datetime,
        *,
        randomness: Randomness = os.urandom,
        pulses: Pulses = pulse,
    ) -> Repository:
        """Make a new repository that contains recover.py. Raises Conflict if one exists, or remains of one."""
        reader = Path(__file__).with_name("recover.py").read_text(encoding="utf-8")
        plain = {
            "recover/RECOVER.txt": f"This directory is a repository of dbguard. recover.py {reader.split(_QUOTES)[1]}",
            "recover/recover.py": reader,
        }
        stored = {name: text.encode() for name, text in plain.items()}
        keyring = opening.create(storage, wrappers, now, stored, randomness)
        return cls(storage, keyring, wrappers, randomness=randomness, pulses=pulses)

    @classmethod
    def open(
        cls,
        storage: Storage,
        wrappers: Sequence[KeyWrapper],
        *,
        randomness: Randomness = os.urandom,
        pulses: Pulses = pulse,
    ) -> Repository:
        """Open with any of the wrappers. Raises NotARepository, FormatTooNew, KeyRefused, KeyMissing, Damaged."""
        return cls(storage, opening.unlock(storage, wrappers), wrappers, randomness=randomness, pulses=pulses)

    @property
    def id(self) -> str:
        """The repository's id: 32 hex digits."""
        return self._records.keyring.root.repo_id.hex()

    def marks(self) -> tuple[str, str]:
        """Return what a recovery sheet identifies the repository by: its mark, and the SHA-256 of recover.py.

        Anybody can make a repository with the same id and other backups that an age recipient's identity opens. Only
        the right root key yields the mark, and the mark reveals nothing about the key. Raises Damaged.
        """
        root = self._records.keyring.root
        mark = root.derive(b"sheet")[:10].hex()
        reader = opening.described(self._storage, root)["plain"].get("recover/recover.py", "")
        return "-".join(mark[at : at + 4] for at in range(0, len(mark), 4)), str(reader)

    def recipients(self) -> list[tuple[str, str, bool]]:
        """Return kind, label and offline of each recipient that can open the repository."""
        return [(found.kind, found.label, found.offline) for found in self.wrapped()]

    def wrapped(self) -> list[Recipient]:
        """Return the wrapped copies of the root key, to try a key on them. Their context is the id, as bytes."""
        return opening.recipients(self._storage, self._records.keyring.root.repo_id)

    def add_recipient(self, wrapper: KeyWrapper) -> None:
        """Let one more key open the repository. The new object is read back and, where possible, unwrapped."""
        opening.add(self._storage, self._records.keyring.root, wrapper)
        self._wrappers += (wrapper,)

    def drop_recipient(self, label: str) -> None:
        """Remove a key. Raises NotFound, and Held if no other available key opens the repository."""
        opening.drop(self._storage, self._records.keyring.root, self._wrappers, label)

    # ------------------------------------------------------------------------------------------ backups in and out

    @contextmanager
    def saving(
        self,
        database: str,
        engine: str,
        method: str,
        now: datetime,
        *,
        full: bool = False,
        note: str = "",
        level: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
        progress: BytesDone = ignore,
    ) -> Iterator[Saving]:
        """Open a sink for one new backup, which exists only once its seal() has returned.

        Unless `full`, it builds on the newest unexpired backup of the database that lacks nothing; on none if the last
        test restore of the newest one met damage.
        """
        last, domain = next(self._ledger.newest(database, expired=True), (None, None))
        domain = domain or self._make_domain(database, now)
        parent = None if full else self._parent(database, domain)
        draft = Backup(
            id=ulid(now, self._randomness, after="" if last is None else last.id),
            database=database,
            engine=engine,
            method=method,
            kind="full",
            created_at=now,
            parent=None,
            raw_facts={},
            note=note,
            streams=(),
            source_bytes=0,
            stored_bytes=0,
            packs=0,
            tool_version=__version__,
            seq=1 if last is None else last.seq + 1,
        )

        with Saving(
            self._storage,
            domain,
            draft,
            parent=parent,
            publish=lambda backup, packs: self._publish(backup, domain, packs),
            level=level,
            cancelled=cancelled,
            progress=progress,
            randomness=self._randomness,
        ) as saving:
            yield saving

    def _make_domain(self, database: str, now: datetime) -> Domain:
        domain = opening.make_domain(self._storage, self._records.keyring, database, now, self._randomness)
        self._records.keyring_of(domain)
        return domain

    def _parent(self, database: str, domain: Domain) -> Backup | None:
        """Choose the parent. It is never a backup known to be damaged, so that the next backup repairs by being full.

        A test restore that did not exceed the grade stored has met damage, which older backups may share.
        """
        present: set[str] = set()
        for backup, sealed in itertools.islice(self._ledger.newest(database), _PARENTS):
            if any(proof.grade == Grade.STORED for proof in self._notes.proofs(backup.id)[-1:]):
                return None
            present = present or {pack_of(entry) for entry in self._storage.list("packs/")}
            try:
                if sealed.id == domain.id and self._packs_of(backup, domain) <= present:
                    return backup
            except (Damaged, ObjectMissing):
                continue
        return None

    def _publish(self, backup: Backup, domain: Domain, packs: AbstractSet[str]) -> Backup:
        """Commit: check that all packs it needs will stay, write the manifest, and check again if that took long."""

        def check() -> None:
            check_packs_stay(self._storage, self._records, packs, storage_now, backup)

        def storage_now() -> datetime:
            return storage_time(self._storage, backup.created_at, self._randomness)

        began = self._pulses().seconds
        check()
        name = self._ledger.publish(backup, domain)
        if self._pulses().seconds - began > PROMPT_SECONDS:
            try:
                check()
            except GuardError:
                self._storage.delete(name)
                raise
        return backup

    @contextmanager
    def tree(
        self, backup: Backup, progress: BytesDone = ignore, *, beside: Tree | None = None, there: Tree | None = None
    ) -> Iterator[Tree]:
        """Open a backup for reading; `progress` is called with the bytes of a stream read so far.

        `beside` is an open backup of the same database: parts that both share are fetched once. `there` is a backup of
        the file over which this one is delivered, made just now while nobody wrote: parts that both share are not read
        from the file, and read errors are added to its `doubts`. Raises NotFound, Damaged, ObjectMissing, KeyRefused,
        and what `progress` raises.
        """
        found, domain = self._ledger.find(backup.id)
        with Tree(self._storage, domain, found, progress, beside=there or beside, there=there) as tree:
            yield tree

    @contextmanager
    def moment(
        self, backup: Backup, until: LogRange, progress: BytesDone = ignore, *, beside: Tree | None = None
    ) -> Iterator[MomentTree]:
        """Open a backup for reading like tree(), with the log applied up to `until`."""
        with self.tree(backup, progress, beside=beside) as tree:
            _, domain = self._ledger.find(backup.id)
            yield self._log(domain).over(tree, until, progress)

    @contextmanager
    def with_log(
        self, backup: Backup, until: LogRange, progress: BytesDone = ignore, *, there: Tree | None = None
    ) -> Iterator[LogTree]:
        """Open a backup for reading like tree(), followed by the bytes of the log up to `until`."""
        with self.tree(backup, progress, there=there) as tree:
            _, domain = self._ledger.find(backup.id)
            yield self._log(domain).behind(tree, until, progress)

    def log(self, database: str, now: datetime | None = None) -> StoredLog | None:
        """Return the log of a database; None if nothing of it was stored. With `now` it is created if missing."""
        _, domain = next(self._ledger.newest(database, expired=True), (None, None))
        domain = domain or (None if now is None else self._make_domain(database, now))
        return None if domain is None else self._log(domain)

    def logs(self) -> dict[str, StoredLog]:
        """Return the log of each database that has a key, by name."""
        return {domain.name: self._log(domain) for domain in self._records.keyring.domains.values()}

    def _log(self, domain: Domain) -> StoredLog:
        return StoredLog(self._storage, self._records, domain, self._randomness)

    # ------------------------------------------------------------------------------------------ what is known

    def backups(self, database: str | None = None, *, expired: bool = False) -> list[Backup]:
        """Return the unexpired backups, newest first; with `expired`, also the expired ones."""
        return [backup for backup, _ in self._ledger.newest(database, expired=expired)]

    def newest(self, database: str) -> Iterator[Backup]:
        """Yield the unexpired backups of a database, newest first; each is read when it is requested."""
        return (backup for backup, _ in self._ledger.newest(database))

    def backup(self, id: str) -> Backup:
        """Return the backup whose id starts with `id`. Raises NotFound, Usage if several do, Damaged."""
        return self._ledger.find(id)[0]

    def attest(self, id: str, fingerprint: Mapping[str, Any], now: datetime) -> None:
        """Store the fingerprint taken in the backup's own snapshot. Raises NotFound."""
        self._notes.attest(id, fingerprint, now)

    def fingerprint(self, id: str) -> dict[str, Any] | None:
        """Return the fingerprint of a backup, None if it has none. Raises NotFound, Damaged."""
        return self._notes.fingerprint(id)

    def add_proof(self, proof: Proof) -> None:
        """Store the result of a test restore. Raises NotFound."""
        self._notes.add_proof(proof)

    def proofs(self, backup: str = "") -> list[Proof]:
        """Return the proofs of one backup, or of all, sorted by backup and then by order of creation."""
        return self._notes.proofs(backup)

    def hold(self, id: str, reason: str, actor: str, now: datetime) -> None:
        """Forbid the deletion of a backup. Raises NotFound."""
        self._notes.hold(id, reason, actor, now)

    def release(self, id: str, actor: str, now: datetime, reason: str | None = None) -> None:
        """End the holds of a backup with this reason, or all its holds. Raises NotFound if there is none."""
        self._notes.release(id, actor, now, reason)

    def holds(self) -> dict[str, list[Hold]]:
        """Return the holds in force, by backup."""
        return self._notes.holds()

    # ------------------------------------------------------------------------------------------ deletion

    def expire(self, reasons: Mapping[str, Sequence[str]], now: datetime, *, confirmed: bool = False) -> None:
        """Make backups invisible, each for its reasons; a sweep deletes them after the grace.

        Raises NotFound, Held, and, unless `confirmed`, Breaker if a database would be left without any backup.
        """
        self._ledger.expire(reasons, now, self._notes.holds(), confirmed=confirmed)

    def expired(self) -> list[Expired]:
        """Return the backups that have expired but are not swept yet."""
        return list(self._ledger.tombs().values())

    def storage_time(self, now: datetime) -> datetime:
        """Return the storage's own time, by which the age of its objects is judged."""
        return storage_time(self._storage, now, self._randomness)

    def recall(self, ids: Iterable[str], now: datetime, grace: timedelta) -> None:
        """Bring expired backups back during their grace. Raises NotFound, Busy, ObjectMissing."""
        wanted = set(ids)
        for backup, domain in self._ledger.newest(expired=True):
            if backup.id in wanted:
                packs = self._packs_of(backup, domain)
                try:
                    check_packs_stay(self._storage, self._records, packs, lambda: self.storage_time(now), backup)
                except Busy as error:  # the next sweep sees that the packs are needed
                    error.hints = (f"dbguardctl prune {backup.database}", f"dbguardctl recall {backup.id}")
                    raise
        self._ledger.recall(wanted, self.storage_time(now), grace)

    def sweep(self, now: datetime, grace: timedelta, *, dry_run: bool = False, confirmed: bool = False) -> Swept:
        """Delete backups that expired, and packs that were marked, a grace ago; mark the packs that are not needed now.

        `now` is the host's time; the storage's own decides. Raises ClockDoubt, Breaker (unless `confirmed`), Damaged
        and ObjectMissing: nothing is deleted while there is damage.
        """
        from dbguardd.repository.sweep import Sweeping  # noqa: PLC0415 - here and below: most workers need none of it

        sweeping = Sweeping(self._storage, self._records, self._notes, self._packs_of, self._pulses, self._randomness)
        return sweeping.run(now, grace, dry_run=dry_run, confirmed=confirmed)

    def check(self, data: bool, progress: Progress = lambda step, done, total: None) -> Iterator[StorageFinding]:
        """Look for damage; with `data`, read every byte. Yields findings, also for what was not looked at."""
        from dbguardd.repository.check import Checking  # noqa: PLC0415

        return Checking(self._storage, self._records, self._packs_of, progress).run(data)

    def lacking(self) -> Iterator[StorageFinding]:
        """Yield which packs of unexpired backups are missing, as in a copy of a storage made during a backup."""
        from dbguardd.repository.check import unmet  # noqa: PLC0415

        backups = list(self._ledger.newest())  # before the packs: a backup made just now has all its packs
        return unmet(self._packs_of, backups, {pack_of(entry) for entry in self._storage.list("packs/")}, {})

    def _packs_of(self, backup: Backup, domain: Domain) -> AbstractSet[str]:
        return packs_of(self._storage, domain, backup)
