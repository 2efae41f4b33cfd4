"""Shared by the tests of the data path: a domain, a storage in memory, one backup, one restore."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dbguardd.errors import Conflict, Damaged, NoSpace, ObjectMissing
from dbguardd.repository.model import Backup
from dbguardd.repository.saving import Saving
from dbguardd.repository.seal import Domain
from dbguardd.repository.tree import Tree
from dbguardd.storage.base import Buffer, Capabilities, Entry

DOMAIN = Domain(b"r" * 16, b"d" * 16, "shop", bytes(range(32)))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def draft(name: str = "01J00000000000000000000000") -> Backup:
    return Backup(
        id=name,
        database="shop",
        engine="sqlite",
        method="copy",
        kind="full",
        created_at=NOW,
        parent=None,
        raw_facts={},
        note="",
        streams=(),
        source_bytes=0,
        stored_bytes=0,
        packs=0,
        tool_version="0",
        seq=1,
    )


class Published:
    """What publish() was called with."""

    def __init__(self) -> None:
        self.backups: list[tuple[Backup, frozenset[str]]] = []

    def __call__(self, backup: Backup, packs: Any) -> Backup:
        self.backups.append((backup, frozenset(packs)))
        return backup


def saving(storage: Any, parent: Backup | None = None, published: Published | None = None, **options: Any) -> Saving:
    name = f"01J{int(parent.id[3:]) + 1 if parent else 0:023}"
    return Saving(
        storage,
        options.pop("domain", DOMAIN),
        draft(name),
        parent=parent,
        publish=published or Published(),
        **options,
    )


def save(
    storage: Any, content: Mapping[str, bytes | tuple[bytes, int]], parent: Backup | None = None, **options: Any
) -> Backup:
    """Back up flows (bytes) and paged streams (bytes and page size)."""
    with saving(storage, parent, **options) as sink:
        for name, what in content.items():
            if isinstance(what, bytes):
                with sink.write(name) as stream:
                    stream.write(what)
            else:
                with tempfile.TemporaryFile() as file:
                    file.write(what[0])
                    file.flush()
                    sink.adopt(name, file.fileno(), what[1])
        return sink.seal({"n": 1})


def load(storage: Any, backup: Backup, *, domain: Domain = DOMAIN) -> dict[str, bytes]:
    """Read every stream in both ways."""
    found = {}
    with Tree(storage, domain, backup) as tree:
        for name in tree.names():
            with tree.read(name) as stream:
                found[name] = stream.read()
            with tempfile.TemporaryFile() as file:
                file.write(b"\xff" * 70_000)
                size = tree.deliver(name, file.fileno())
                file.seek(0)
                data = file.read()
            assert data == found[name]
            assert size == len(data)
    return found


class Drawer:
    """A storage whose objects a test can change. `room` puts succeed; the next one finds the disk full."""

    url = "memory:drawer"

    def __init__(self, objects: Mapping[str, bytes] | None = None, room: int | None = None) -> None:
        self.objects = dict(objects or {})
        self.room = room
        self.fetched = 0

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if self.room is not None:
            if self.room == 0:
                raise NoSpace(f"{name}: no room")
            self.room -= 1
        joined = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else b"".join(data)
        if self.objects.setdefault(name, joined) != joined:
            raise Conflict(f"{name}: exists")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = self._find(name)
        start = start if start >= 0 else len(data) + start
        end = len(data) if length is None else start + length
        if not 0 <= start <= end <= len(data):
            raise Damaged(f"{name}: too short")
        self.fetched += end - start
        return data[start:end]

    def list(self, prefix: str) -> Iterator[Entry]:
        yield from (
            Entry(name, len(self.objects[name]), NOW) for name in sorted(self.objects) if name.startswith(prefix)
        )

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def stat(self, name: str) -> Entry:
        return Entry(name, len(self._find(name)), NOW)

    def probe(self) -> Capabilities:
        return Capabilities(True, True, True, 0.0, None, None)

    def _find(self, name: str) -> bytes:
        if name not in self.objects:
            raise ObjectMissing(f"{name}: missing")
        return self.objects[name]


def threads() -> set[str]:
    """Return the names of the data path's running threads."""
    return {t.name for t in threading.enumerate() if t.name.startswith(("seal", "put", "deliver"))}
