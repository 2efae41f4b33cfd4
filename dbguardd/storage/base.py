"""The interface of storages: bytes under a name, written once. Six verbs, no streaming.

Every storage keeps these invariants, and the contract suite in tests/storage checks them:
1. put is create-only, all or nothing, and durable when it returns.
2. Nothing is larger than MAX_OBJECT, so one object fits in memory.
3. Names are relative, `/`-separated, made of [A-Za-z0-9._-]; no part is empty or starts with a dot.
4. It raises only errors of dbguardd.errors, with the cause attached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

from dbguardd.frozen import frozen

MAX_OBJECT = 64 << 20
"""No object is larger than this many bytes."""

Buffer = bytes | bytearray | memoryview


@frozen
class Entry:
    """One stored object. `modified_at` is by the storage's own clock, in UTC."""

    name: str
    size: int
    modified_at: datetime


@frozen
class Capabilities:
    """What a probe found by trying it. None: the storage cannot tell."""

    create_only: bool
    read_after_write: bool
    durable: bool  # False: directory entries cannot be made durable here
    clock_skew_seconds: float  # storage clock minus host clock
    free_bytes: int | None
    total_bytes: int | None
    keep_free_bytes: int = 0


class Storage(Protocol):
    """Bytes under a name. Every verb may be repeated: a storage around this one can retry, record or refuse."""

    @property
    def url(self) -> str:
        """The location for people: directory:/srv/backups. It contains no secret."""

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Store `data` (one buffer or several to be joined) under a new name; durable on return.

        The same bytes again are no error; other bytes raise Conflict. Raises NoSpace before keep_free is violated,
        Degraded if the bytes could not be made durable, Unreachable.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return exactly the requested bytes; a negative `start` counts from the end.

        Raises ObjectMissing, Damaged if the object is too short, Unreachable.
        """

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield every object whose name starts with `prefix` once, in name order, and never a half-written one."""

    def delete(self, name: str) -> None:
        """Remove the object. A missing one is no error: deletes are retried."""

    def stat(self, name: str) -> Entry:
        """Return the entry of one object. Raises ObjectMissing."""

    def probe(self) -> Capabilities:
        """Try what works: write, write again, read back, delete. Leaves nothing behind."""
