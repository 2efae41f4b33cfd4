"""Opens a repository: its description, the wrapped root keys, the domains.

``repo.json`` (canonical JSON and a newline)::

    created_at   RFC 3339
    features     {"optional": [], "required": []}: a reader must refuse an unknown required one
    format       1
    mac          hex HMAC-SHA256(root.derive("description"), the canonical JSON without this member)
    min_reader   1: the lowest format that a reader must know
    plain        {name: hex SHA-256}: unsealed objects for people (recover/...)
    repo_id      hex, 16 random bytes

``keys/<sha256>`` (canonical JSON): the root key wrapped for one recipient: repo_id, kind, label, offline, wrapped
(base64 of what keys/ made, with the repository's id as context). ``domains/<sha256>``: kind "domain", slot "", sealed
under the root key: id and key (hex), name, created_at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any

from dbguardd.errors import (
    Conflict,
    Damaged,
    FormatTooNew,
    GuardError,
    Held,
    KeyMissing,
    KeyRefused,
    NotARepository,
    NotFound,
    ObjectMissing,
)
from dbguardd.frozen import frozen
from dbguardd.keys.base import KeyWrapper
from dbguardd.repository.model import encode, rfc3339
from dbguardd.repository.seal import ROOT_ID, Domain, Keyring, Randomness, seal, unseal
from dbguardd.storage.base import Storage

FORMAT = 1
FEATURES: frozenset[str] = frozenset()
DESCRIPTION = "repo.json"


@frozen
class Recipient:
    """One wrapped copy of the root key. `name` is its object."""

    name: str
    kind: str
    label: str
    offline: bool
    repo_id: bytes
    wrapped: bytes = field(repr=False)


def create(
    storage: Storage, wrappers: Sequence[KeyWrapper], now: datetime, plain: Mapping[str, bytes], randomness: Randomness
) -> Keyring:
    """Make a new repository: keys and plain objects first, repo.json last, with which the repository begins to exist.

    Raises Conflict if there is one already, or remains of one.
    """
    for prefix in (DESCRIPTION, "domains/", "packs/", "records/"):
        for entry in storage.list(prefix):
            raise Conflict(
                f"{storage.url}: there is a repository already"
                + ("" if prefix == DESCRIPTION else ", without repo.json"),
                detail=f"found {entry.name}, written {rfc3339(entry.modified_at)}",
            )
    if not wrappers:
        raise KeyMissing(f"{storage.url}: a repository needs at least one key")
    root = Domain(randomness(16), ROOT_ID, "", randomness(32))
    for wrapper in wrappers:
        add(storage, root, wrapper)
    for name, data in plain.items():
        storage.delete(name)  # left by an interrupted attempt, perhaps of another version
        storage.put(name, data)
    body = {
        "created_at": rfc3339(now),
        "features": {"optional": [], "required": []},
        "format": FORMAT,
        "min_reader": FORMAT,
        "plain": {name: hashlib.sha256(data).hexdigest() for name, data in plain.items()},
        "repo_id": root.repo_id.hex(),
    }
    storage.put(DESCRIPTION, encode({**body, "mac": _mac(root, body)}) + b"\n")
    described(storage, root)
    return Keyring(root, {})


def unlock(storage: Storage, wrappers: Sequence[KeyWrapper]) -> Keyring:
    """Open the repository with any of the wrappers.

    Anybody can wrap a key of their own for an age recipient: a key that does not match repo.json is skipped. Raises
    NotARepository, FormatTooNew, KeyMissing, KeyRefused, and Damaged if keys were unwrapped but none matches repo.json.
    """
    repo_id = _identity(storage)
    everyone = recipients(storage, repo_id)
    damaged: list[str] = []
    tried = 0
    changed: Damaged | None = None
    for wrapper in wrappers:
        same = [recipient for recipient in everyone if recipient.kind == wrapper.kind]
        for recipient in sorted(same, key=lambda recipient: recipient.label != wrapper.label):
            try:
                key = wrapper.unwrap(recipient.wrapped, repo_id)
            except (KeyRefused, KeyMissing):
                tried += 1
                continue
            except Damaged as error:
                damaged.append(f" {recipient.kind} {recipient.label}: {error.message}.")
                continue
            root = Domain(repo_id, ROOT_ID, "", key)
            try:
                described(storage, root)
            except Damaged as error:
                changed = error
                continue
            return Keyring(root, domains(storage, root))
    if changed is not None:
        raise changed
    there = ", ".join(f"{recipient.kind} {recipient.label}" for recipient in everyone) or "none"
    if tried or damaged:
        raise KeyRefused(
            f"{storage.url}: none of the available keys opens it",
            detail=f"The available keys ({_kinds(wrappers)}) match none of the {len(everyone)} recipients: {there}."
            + "".join(damaged),
        )
    raise KeyMissing(
        f"{storage.url}: no available key is of a kind that opens it",
        detail=f"available: {_kinds(wrappers)}. It opens with: {there}",
    )


def _kinds(wrappers: Sequence[KeyWrapper]) -> str:
    return ", ".join(dict.fromkeys(wrapper.kind for wrapper in wrappers)) or "none"


def described(storage: Storage, root: Domain) -> dict[str, Any]:
    """Return repo.json, authenticated to the last byte. Raises Damaged."""
    data = storage.get(DESCRIPTION)
    body = _parsed(storage, data)
    mac = str(body.pop("mac", ""))
    if not hmac.compare_digest(mac.encode(), _mac(root, body).encode()) or data != encode({**body, "mac": mac}) + b"\n":
        raise Damaged(f"{DESCRIPTION}: it was modified", detail=f"{len(data)} bytes at {storage.url}")
    return body


def recipients(storage: Storage, repo_id: bytes) -> list[Recipient]:
    """Return who can open the repository. Unreadable and foreign key objects are skipped: check() reports them."""
    return [found for found in wrapped_keys(storage) if isinstance(found, Recipient) and found.repo_id == repo_id]


def wrapped_keys(storage: Storage) -> Iterator[Recipient | tuple[str, Damaged]]:
    """Yield all wrapped keys; for an unreadable one its name and the error."""
    for entry in storage.list("keys/"):
        try:
            yield _recipient(entry.name, storage.get(entry.name))
        except Damaged as error:
            yield entry.name, error


def add(storage: Storage, root: Domain, wrapper: KeyWrapper) -> None:
    """Wrap the root key for one more recipient, read the object back and, if the wrapper can, unwrap it.

    Nothing is written if the recipient already has a wrapped key that it opens (or, if it can only wrap, one with its
    label).
    """
    for known in recipients(storage, root.repo_id):
        if (known.kind, known.label) == (wrapper.kind, wrapper.label) and _opens(wrapper, known.wrapped, root):
            return
    wrapped = wrapper.wrap(root.key, root.repo_id)
    body = {
        "kind": wrapper.kind,
        "label": wrapper.label,
        "offline": wrapper.offline,
        "repo_id": root.repo_id.hex(),
        "wrapped": base64.b64encode(wrapped).decode(),
    }
    data = encode(body)
    name = f"keys/{hashlib.sha256(data).hexdigest()}"
    storage.put(name, data)
    if storage.get(name) != data:
        raise Damaged(f"{name}: the storage returns other bytes than were written", detail=storage.url)
    if not _opens(wrapper, wrapped, root):
        raise KeyRefused(f"{name}: the key just wrapped for {wrapper.kind} {wrapper.label} does not unwrap again")


def drop(storage: Storage, root: Domain, wrappers: Sequence[KeyWrapper], label: str) -> None:
    """Delete every wrapped key with this label, after checking that another key opens. Raises NotFound, Held."""
    everyone = recipients(storage, root.repo_id)
    going = [recipient for recipient in everyone if recipient.label == label]
    staying = [recipient for recipient in everyone if recipient.label != label]
    if not going:
        there = ", ".join(recipient.label for recipient in everyone)
        raise NotFound(f"{label}: no such recipient", detail=f"recipients: {there}")
    if not any(_unwraps(wrapper, recipient, root) for wrapper in wrappers for recipient in staying):
        raise Held(
            f"{label}: no other available key opens the repository",
            detail=f"{len(staying)} other recipients exist; the available keys open none of them",
        )
    for recipient in going:
        storage.delete(recipient.name)


def domains(storage: Storage, root: Domain) -> dict[bytes, Domain]:
    """Open all domains, by id. One that does not open is skipped: its users report that, and so does check()."""
    found: dict[bytes, Domain] = {}
    for entry in storage.list("domains/"):
        try:
            domain = open_domain(storage, root, entry.name)
        except GuardError as error:
            if error.transient:
                raise
            continue
        found[domain.id] = domain
    return found


def open_domain(storage: Storage, root: Domain, name: str) -> Domain:
    """Open one object in domains/. Raises Damaged, KeyRefused, ObjectMissing."""
    data = storage.get(name)
    if hashlib.sha256(data).hexdigest() != name.removeprefix("domains/"):
        raise Damaged(f"{name}: its bytes do not match the hash in its name", detail=f"{len(data)} bytes")
    _, text = unseal(Keyring(root, {}), "domain", "", data, name)
    body = json.loads(text)
    return Domain(root.repo_id, bytes.fromhex(body["id"]), body["name"], bytes.fromhex(body["key"]))


def make_domain(storage: Storage, keyring: Keyring, name: str, now: datetime, randomness: Randomness) -> Domain:
    """Return the domain of a database. If it has none, make one: a key that is stored nowhere else."""
    there = Keyring(keyring.root, domains(storage, keyring.root)).named(name)
    if there is not None:
        return there
    body = {"created_at": rfc3339(now), "id": randomness(16).hex(), "key": randomness(32).hex(), "name": name}
    data = seal(keyring.root, "domain", "", encode(body), randomness)
    stored = f"domains/{hashlib.sha256(data).hexdigest()}"
    storage.put(stored, data)
    open_domain(storage, keyring.root, stored)
    made = Keyring(keyring.root, domains(storage, keyring.root)).named(name)
    if made is None:
        raise ObjectMissing(f"{stored}: the storage does not list it after writing it", detail=storage.url)
    return made


def _identity(storage: Storage) -> bytes:
    try:
        body = _parsed(storage, storage.get(DESCRIPTION))
        identity = bytes.fromhex(str(body["repo_id"]))
        least, required = int(body["min_reader"]), set(map(str, body["features"]["required"]))
    except ObjectMissing as error:
        raise NotARepository(f"{storage.url}: not a repository", detail=f"{DESCRIPTION} is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise NotARepository(f"{storage.url}: {DESCRIPTION} is unreadable", detail=repr(error)) from error
    if least > FORMAT or required - FEATURES:
        raise FormatTooNew(
            f"{storage.url}: made for a newer dbguard",
            detail=f"it needs format {least} and features {sorted(required)}; this version knows {FORMAT} and "
            f"{sorted(FEATURES)}",
        )
    return identity


def _parsed(storage: Storage, data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotARepository(f"{storage.url}: {DESCRIPTION} is unreadable", detail=repr(error)) from error
    if not isinstance(body, dict):
        raise NotARepository(f"{storage.url}: {DESCRIPTION} is unreadable", detail="not a JSON object")
    return body


def _mac(root: Domain, body: Mapping[str, Any]) -> str:
    return hmac.digest(root.derive(b"description"), encode(body), "sha256").hex()


def _recipient(name: str, data: bytes) -> Recipient:
    if hashlib.sha256(data).hexdigest() != name.removeprefix("keys/"):
        raise Damaged(f"{name}: its bytes do not match the hash in its name", detail=f"{len(data)} bytes")
    try:
        body = json.loads(data)
        wrapped, repo_id = base64.b64decode(body["wrapped"], validate=True), bytes.fromhex(body["repo_id"])
        return Recipient(name, str(body["kind"]), str(body["label"]), bool(body["offline"]), repo_id, wrapped)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{name}: not a wrapped key", detail=repr(error)) from error


def _opens(wrapper: KeyWrapper, wrapped: bytes, root: Domain) -> bool:
    try:
        return hmac.compare_digest(wrapper.unwrap(wrapped, root.repo_id), root.key)
    except KeyMissing:  # it can only wrap: the private half is on paper
        return True
    except (KeyRefused, Damaged):
        return False


def _unwraps(wrapper: KeyWrapper, recipient: Recipient, root: Domain) -> bool:
    try:
        return wrapper.kind == recipient.kind and wrapper.unwrap(recipient.wrapped, root.repo_id) == root.key
    except (KeyMissing, KeyRefused, Damaged):
        return False
