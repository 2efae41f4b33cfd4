"""Records: small sealed objects of a repository, written once, one fact each.

A record is stored as ``records/<kind>/<slot>-<sha256>``: the slot is the ULID that the fact is about, the hash is that
of the stored bytes. Kind and slot are authenticated (seal.py), so a moved or renamed record does not open.

======== ================== ========= =====================================================================
kind     slot               sealed by what it says
======== ================== ========= =====================================================================
backup   the backup's id    domain    the manifest; writing it is the commit point of a backup
print    the backup's id    domain    the fingerprint taken in the backup's own snapshot
proof    the backup's id    domain    the result of one test restore
hold     the backup's id    domain    a reason why the backup may not be deleted
release  the backup's id    domain    the hashes of the holds that ended
tomb     the backup's id    root      the backup has expired
tomb     an id of its own   root      packs that nothing needed when it was written (sweep.py)
======== ================== ========= =====================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import datetime
from typing import Any

from dbguardd.errors import Damaged, GuardError
from dbguardd.frozen import frozen
from dbguardd.repository.model import encode
from dbguardd.repository.opening import domains
from dbguardd.repository.seal import Domain, Keyring, Randomness, seal, unseal
from dbguardd.storage.base import Entry, Storage

KINDS = ("backup", "print", "proof", "hold", "release", "tomb")


@frozen
class Record:
    """One opened record. `stored_at` is the storage's own time."""

    kind: str
    slot: str
    hash: str
    stored_at: datetime
    domain: Domain
    body: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"records/{self.kind}/{self.slot}-{self.hash}"


@frozen
class Unreadable:
    """A record that is listed but did not open; `error` says why."""

    kind: str
    slot: str
    name: str
    stored_at: datetime
    error: GuardError


class Records:
    """The records of one open repository. Safe to use beside other writers: records are never changed."""

    def __init__(self, storage: Storage, keyring: Keyring, randomness: Randomness) -> None:
        self._storage = storage
        self._randomness = randomness
        self._gone: set[bytes] = set()  # domains that were looked for and do not exist
        self.keyring = keyring

    def put(self, domain: Domain, kind: str, slot: str, body: Mapping[str, Any]) -> str:
        """Store one record durably, read it back and open it; return its name."""
        data = seal(domain, kind, slot, encode(body), self._randomness)
        name = f"records/{kind}/{slot}-{hashlib.sha256(data).hexdigest()}"
        self._storage.put(name, data)
        if self._storage.get(name) != data:
            raise Damaged(f"{name}: the storage returns other bytes than were written", detail=self._storage.url)
        unseal(self.keyring_of(domain), kind, slot, data, name)
        return name

    def keyring_of(self, domain: Domain) -> Keyring:
        """Return the keyring, with `domain` in it."""
        if self.keyring.find(domain.id) is None:
            known = {**self.keyring.domains, domain.id: domain}
            self.keyring = Keyring(self.keyring.root, known)
        return self.keyring

    def entries(self, kind: str, slot: str = "") -> list[Entry]:
        """Return what the storage lists, in slot order. `slot` may be a prefix."""
        return list(self._storage.list(f"records/{kind}/{slot}"))

    def scan(self, kind: str, slot: str = "") -> Iterator[Record | Unreadable]:
        """Yield every record of a kind, in slot order, and those that do not open as Unreadable."""
        for entry in self.entries(kind, slot):
            yield self.open(entry)

    def readable(self, kind: str, slot: str = "") -> Iterator[Record]:
        """Yield the records that open. check() reports the others, and a sweep refuses to run beside them."""
        return (record for record in self.scan(kind, slot) if isinstance(record, Record))

    def open(self, entry: Entry) -> Record | Unreadable:
        """Read, authenticate and decode one record. Raises Unreachable only."""
        kind, _, rest = entry.name.removeprefix("records/").partition("/")
        slot, _, digest = rest.rpartition("-")
        try:
            data = self._storage.get(entry.name)
            if hashlib.sha256(data).hexdigest() != digest:
                raise Damaged(f"{entry.name}: its bytes do not match the hash in its name", detail=f"{len(data)} bytes")
            domain, text = self._unseal(kind, slot, data, entry.name)
            return Record(kind, slot, digest, entry.modified_at, domain, json.loads(text))
        except GuardError as error:
            if error.transient:
                raise
            return Unreadable(kind, slot, entry.name, entry.modified_at, error)

    def _unseal(self, kind: str, slot: str, data: bytes, name: str) -> tuple[Domain, bytes]:
        identity = data[24:40]
        if self.keyring.find(identity) is None and identity not in self._gone:  # another process may just have made it
            self.keyring = Keyring(self.keyring.root, domains(self._storage, self.keyring.root))
            if self.keyring.find(identity) is None:
                self._gone.add(identity)
        return unseal(self.keyring, kind, slot, data, name)
