"""Sealing: the keys of a repository, and the envelope of its small objects.

One random root key opens a repository; it is only stored wrapped (keys/base.py). Each database has its own key, a
Domain: 32 random bytes, stored once, sealed with the root key, so that deleting this one object makes all backups of
the database unreadable forever. The root key itself is used as the Domain with an all-zero id.

The envelope of a small object (all of it is covered by the tag; integers are big-endian)::

    0    8  magic "DBGOBJ01"
    8   16  repository id
    24  16  domain id (zero: the root key)
    40  32  salt = HMAC-SHA256(derive("salt"), 32 random bytes || SHA-256(plaintext))
    72  32  key commitment
    104  n  AES-256-GCM ciphertext and 16-byte tag; nonce zero, because the key is used once
    key || commitment = HKDF-Expand-SHA256(derive("object"), "object" || salt, 64)
    additional data   = the 104 bytes above || kind || 0 || slot

`kind` and `slot` say where the object belongs ("backup" and the ULID of the backup): a moved, renamed or foreign object
does not open. The salt also depends on the content, so even if the random generator repeats itself (on a cloned
machine), two plaintexts never share a key. The commitment tells a wrong key from damage before anything is decrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from dbguardd.errors import Damaged, KeyRefused, ObjectMissing
from dbguardd.frozen import frozen

MAGIC = b"DBGOBJ01"
HEADER = 104
TAG = 16
ROOT_ID = bytes(16)

Randomness = Callable[[int], bytes]
"""Returns the given number of random bytes: os.urandom, or a substitute in tests."""


@frozen
class Domain:
    """A key and what it is for: `id` (16 bytes) and `key` (32 bytes) in the repository `repo_id` (16 bytes)."""

    repo_id: bytes
    id: bytes
    name: str
    key: bytes = field(repr=False)

    def derive(self, label: bytes, length: int = 32) -> bytes:
        """Return `length` bytes for one use of the key, bound to repository and domain."""
        return HKDFExpand(SHA256(), length, b"dbguard/v1/" + label + self.repo_id + self.id).derive(self.key)


@frozen
class Keyring:
    """The root key of an open repository and the domains found, by id."""

    root: Domain
    domains: Mapping[bytes, Domain]

    def named(self, name: str) -> Domain | None:
        """Return the domain of the database `name`; the lowest id, if two machines have each made one."""
        return min((domain for domain in self.domains.values() if domain.name == name), key=_id, default=None)

    def find(self, identity: bytes) -> Domain | None:
        """Return the domain with that id, the root for the zero id."""
        return self.root if identity == ROOT_ID else self.domains.get(identity)


def _id(domain: Domain) -> bytes:
    return domain.id


def seal(domain: Domain, kind: str, slot: str, plaintext: bytes, randomness: Randomness = os.urandom) -> bytes:
    """Return the envelope of `plaintext` for one place."""
    fresh = randomness(32) + hashlib.sha256(plaintext).digest()
    salt = hmac.digest(domain.derive(b"salt"), fresh, "sha256")
    key, commitment = _key(domain, salt)
    header = MAGIC + domain.repo_id + domain.id + salt + commitment
    return header + AESGCM(key).encrypt(bytes(12), plaintext, header + _place(kind, slot))


def unseal(keyring: Keyring, kind: str, slot: str, data: bytes, name: str) -> tuple[Domain, bytes]:
    """Open an envelope; return its domain and its plaintext. `name` is for error messages.

    Raises Damaged (altered, moved, renamed or foreign), ObjectMissing (its domain no longer exists), KeyRefused.
    """
    header, body = data[:HEADER], memoryview(data)[HEADER:]
    if len(data) < HEADER + TAG or header[:8] != MAGIC:
        raise Damaged(f"{name}: not a sealed object", detail=f"{len(data)} bytes, they start with {data[:8].hex()}")
    if header[8:24] != keyring.root.repo_id:
        raise Damaged(
            f"{name}: belongs to another repository",
            detail=f"it says {header[8:24].hex()}, this repository is {keyring.root.repo_id.hex()}",
        )
    domain = keyring.find(header[24:40])
    if domain is None:
        raise ObjectMissing(
            f"{name}: the key of its database is gone", detail=f"no object in domains/ has the id {header[24:40].hex()}"
        )
    key, commitment = _key(domain, header[40:72])
    if not hmac.compare_digest(commitment, header[72:]):
        raise KeyRefused(f"{name}: sealed with another key", detail=f"domain {domain.id.hex()} {domain.name!r}")
    try:
        return domain, AESGCM(key).decrypt(bytes(12), body, header + _place(kind, slot))
    except InvalidTag as error:
        raise Damaged(
            f"{name}: does not open", detail=f"altered, or sealed for another place than {kind} {slot}"
        ) from error


def _key(domain: Domain, salt: bytes) -> tuple[bytes, bytes]:
    material = HKDFExpand(SHA256(), 64, b"object" + salt).derive(domain.derive(b"object"))
    return material[:32], material[32:]


def _place(kind: str, slot: str) -> bytes:
    return kind.encode() + b"\0" + slot.encode()
