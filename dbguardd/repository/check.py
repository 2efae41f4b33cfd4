"""The check: whether everything that the backups need exists, and is what was stored.

Quick: repo.json and the objects it names, wrapped keys, domains and all records are read in full and opened. Packs are
listed, both ends of each are read, and its trailer must account for every byte of its size. Everything that a backup
needs must exist. With `data`, every byte of every pack is read, must match the hash in the pack's name, and every frame
is opened, as is every segment of a log. What a check did not look at is reported as a finding of severity "unseen",
always last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from dbguardd.errors import Damaged, GuardError, ObjectMissing
from dbguardd.frozen import frozen
from dbguardd.humanize import count
from dbguardd.repository import opening
from dbguardd.repository.frames import Digests
from dbguardd.repository.ledger import read_backup
from dbguardd.repository.log import Link, StoredLog
from dbguardd.repository.model import Backup, StorageFinding
from dbguardd.repository.packs import HEADER, TAIL, Pack, object_name, trailer_length
from dbguardd.repository.reading import PackReader
from dbguardd.repository.records import KINDS, Record, Records, Unreadable
from dbguardd.repository.seal import Domain
from dbguardd.repository.tombstones import pack_of, tombstone_of
from dbguardd.rules.chains import Piece
from dbguardd.storage.base import Entry, Storage

if TYPE_CHECKING:
    from dbguardd.repository.sweep import Needs

Progress = Callable[[str, int, int | None], None]
"""Called with the step, the bytes done and the total bytes."""

_MISSING = "is missing: was this storage copied while a backup ran?"
_KNOWN = ("keys/", "domains/", "packs/", "records/", "log/", "clock/", "probe-")  # probes belong to another check


@dataclass(slots=True)
class _Seen:
    """What the records contained, for the checks after them."""

    backups: list[tuple[Backup, Domain]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    about: dict[str, str] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    needing: dict[str, list[str]] = field(default_factory=dict)


@frozen
class Checking:
    """One check of one storage."""

    storage: Storage
    records: Records
    needs: Needs
    progress: Progress

    def run(self, data: bool) -> Iterator[StorageFinding]:
        """Yield findings; change nothing. Raises Unreachable."""
        seen = _Seen()
        yield from self._description()
        yield from self._keys()
        for kind in KINDS:
            self.progress(f"records/{kind}", 0, None)
            for found in self.records.scan(kind):
                yield from self._record(found, seen)
        for slot, name in sorted(seen.about.items()):
            if slot not in seen.ids and slot not in seen.expired:
                yield StorageFinding("damage", name, "is about a backup whose manifest is gone", (slot,))
        packs = {pack_of(entry): entry for entry in self.storage.list("packs/")}
        yield from self._needed(seen, packs)
        yield from self._packs(seen, packs, data)
        yield from self._logs(data)
        yield from self._unseen(seen, packs, data)

    def _description(self) -> Iterator[StorageFinding]:
        root = self.records.keyring.root
        named: Mapping[str, str] = {}
        try:
            named = opening.described(self.storage, root)["plain"]
        except GuardError as error:
            yield _finding(opening.DESCRIPTION, error)
        for name, digest in named.items():
            try:
                if hashlib.sha256(self.storage.get(name)).hexdigest() != digest:
                    yield StorageFinding("damage", name, "is not what repo.json says it is")
            except (ObjectMissing, Damaged) as error:
                yield _finding(name, error)
        for entry in self.storage.list(""):
            if entry.name != opening.DESCRIPTION and entry.name not in named and not entry.name.startswith(_KNOWN):
                yield StorageFinding("warning", entry.name, "does not belong to the repository")

    def _keys(self) -> Iterator[StorageFinding]:
        root = self.records.keyring.root
        for found in opening.wrapped_keys(self.storage):
            if not isinstance(found, opening.Recipient):
                yield _finding(*found)
            elif found.repo_id != root.repo_id:
                yield StorageFinding("warning", found.name, f"a key of another repository, {found.repo_id.hex()}")
        for entry in self.storage.list("domains/"):
            try:
                opening.open_domain(self.storage, root, entry.name)
            except GuardError as error:
                yield _finding(entry.name, error)

    def _record(self, found: Record | Unreadable, seen: _Seen) -> Iterator[StorageFinding]:
        if isinstance(found, Unreadable):
            seen.ids.add(found.slot)
            yield _finding(found.name, found.error, (found.slot,) if found.kind != "tomb" else ())
            return
        try:
            if found.kind == "backup":
                seen.ids.add(found.slot)
                seen.backups.append((read_backup(found), found.domain))
            elif found.kind == "tomb":
                seen.expired |= {tombstone_of(found).backup} - {""}
            else:
                seen.about[found.slot] = found.name
        except Damaged as error:
            yield _finding(found.name, error, (found.slot,))

    def _needed(self, seen: _Seen, packs: Mapping[str, Entry]) -> Iterator[StorageFinding]:
        self.progress("maps", 0, None)
        yield from unmet(self.needs, seen.backups, packs.keys(), seen.needing)

    def _packs(self, seen: _Seen, packs: Mapping[str, Entry], data: bool) -> Iterator[StorageFinding]:
        total, done = sum(entry.size for entry in packs.values()), 0
        readers = {domain.id: PackReader(self.storage, domain) for domain in self.records.keyring.domains.values()}
        pool = ThreadPoolExecutor(2)
        try:
            look = self._whole if data else self._ends
            for entry, error in pool.map(lambda entry: (entry, _outcome(look, entry, readers)), packs.values()):
                done += entry.size
                self.progress("packs", done, total)
                if error is not None:
                    yield _finding(entry.name, error, tuple(seen.needing.get(pack_of(entry), ())))
        finally:
            pool.shutdown(cancel_futures=True)

    def _logs(self, data: bool) -> Iterator[StorageFinding]:
        """Report gaps in a log; with `data`, open every segment."""
        self.progress("log", 0, None)
        for domain in self.records.keyring.domains.values():
            log, looked = StoredLog(self.storage, self.records, domain, os.urandom), 0
            chains = log.chains()
            for before, chain in pairwise(chains):
                if before.id == chain.id:
                    what = f"the log of {domain.name} lacks its segments {before.last + 1} to {chain.first - 1}"
                    yield StorageFinding(
                        "damage", before.pieces[-1].name, f"{what}: no moment after it can be restored"
                    )
            for chain in chains if data else ():
                end: Link | None = None
                for piece in chain.pieces:
                    looked += piece.size
                    self.progress("log", looked, None)
                    error, end = _outcome_of(log, piece, end)
                    if error is not None and not _forgotten(log, piece):
                        yield _finding(piece.name, error)
            if chains and not data:
                size = sum(piece.size for chain in chains for piece in chain.pieces)
                what = f"{size} bytes of the log of {domain.name}: only their names were read; --data opens them"
                yield StorageFinding("unseen", "log/", what)

    def _ends(self, entry: Entry, readers: Mapping[bytes, PackReader]) -> None:
        header = self.storage.get(entry.name, 0, min(HEADER, entry.size))
        reader = readers.get(header[24:40])
        if reader is None or object_name(pack_of(entry)) != entry.name:
            raise Damaged(f"{entry.name}: not a pack of this repository", detail=f"it starts with {header[:40].hex()}")
        reader.pack(pack_of(entry))

    def _whole(self, entry: Entry, readers: Mapping[bytes, PackReader]) -> None:
        data = self.storage.get(entry.name)
        if hashlib.sha256(data).hexdigest() != pack_of(entry) or len(data) < HEADER + TAIL:
            raise Damaged(f"{entry.name}: its bytes do not match the hash in its name", detail=f"{len(data)} bytes")
        domain = self.records.keyring.domains.get(data[24:40])
        if domain is None or object_name(pack_of(entry)) != entry.name:
            raise Damaged(f"{entry.name}: not a pack of this repository", detail=f"it starts with {data[:40].hex()}")
        view, digests = memoryview(data), Digests(domain)
        tail = data[-min(len(data), TAIL + trailer_length(data[-TAIL:])) :]
        pack = Pack(domain, pack_of(entry), len(data), data[:HEADER], tail)
        for number, record in enumerate(pack.records):
            pack.open(number, view[record.start : record.start + record.stored], digests)

    def _unseen(self, seen: _Seen, packs: Mapping[str, Entry], data: bool) -> Iterator[StorageFinding]:
        size = sum(entry.size for entry in packs.values())
        if not data:
            text = (
                f"{count(len(packs), 'pack')}, {size} bytes: only both ends of each were read; --data reads every byte"
            )
            yield StorageFinding("unseen", "packs/", text)
        idle = packs.keys() - seen.needing.keys()
        if idle:
            left = sum(packs[pack].size for pack in idle)
            text = f"{count(len(idle), 'pack')}, {left} bytes, not needed by any backup: a sweep deletes them"
            yield StorageFinding("unseen", "packs/", text)
        yield StorageFinding(
            "unseen", "", "databases were not opened: only dbguardctl verify proves that a backup restores"
        )


def unmet(
    needs: Needs, backups: Iterable[tuple[Backup, Domain]], there: AbstractSet[str], needing: dict[str, list[str]]
) -> Iterator[StorageFinding]:
    """Yield the missing packs of backups; add to `needing` which backups need each pack. No pack is read completely.

    A manifest is written when all its packs exist, so missing ones mean that the storage was copied during a backup.
    """
    for backup, domain in backups:
        needed: AbstractSet[str] = frozenset()
        try:
            needed = needs(backup, domain)
        except GuardError as error:
            if error.transient:
                raise
            name = f"backup {backup.id} of {backup.database}"
            found = _finding(name, error, (backup.id,))
            gone = isinstance(error, ObjectMissing)
            yield replace(found, message=f"a pack {_MISSING} {found.message}") if gone else found
        for pack in needed:
            needing.setdefault(pack, []).append(backup.id)  # stores the first equal string for all
    for pack in sorted(needing.keys() - there):
        yield StorageFinding("damage", object_name(pack), _MISSING, tuple(needing[pack]))


def _outcome(
    look: Callable[[Entry, Mapping[bytes, PackReader]], None], entry: Entry, readers: Mapping[bytes, PackReader]
) -> GuardError | None:
    try:
        look(entry, readers)
    except GuardError as error:
        if error.transient:
            raise
        return error
    return None


def _outcome_of(log: StoredLog, piece: Piece, end: Link | None) -> tuple[GuardError | None, Link | None]:
    """Return the error in an object of a log, if any, and its last segment. `end`: the segment before, if known."""
    try:
        for link in log.open(piece):
            if end is not None and link.number > end.number and not link.follows(end.number, end.until):
                raise Damaged(f"{piece.name}: segment {link.number} does not follow {end.number}")
            link.content()
            end = link if end is None or link.number > end.number else end
    except GuardError as error:
        if error.transient:
            raise
        return error, None
    return None, end


def _forgotten(log: StoredLog, piece: Piece) -> bool:
    """Return whether an object is gone because all of its log up to it was deleted by an expiry meanwhile."""
    return all(chain.id != piece.chain or chain.first > piece.last for chain in log.chains())


def _finding(name: str, error: GuardError, backups: tuple[str, ...] = ()) -> StorageFinding:
    said = error.message.removeprefix(f"{name}: ")
    return StorageFinding("damage", name, f"{said} ({error.detail})" if error.detail else said, backups)
