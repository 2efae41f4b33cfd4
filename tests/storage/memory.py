"""A storage in memory: nothing survives the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from dbguardd.errors import Conflict, Damaged, ObjectMissing
from dbguardd.storage.base import Buffer, Capabilities, Entry
from dbguardd.storage.names import as_parts, as_range, split_name, split_prefix
from dbguardd.storage.probe import try_out


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Memory:
    """Keeps every invariant of a storage, except that it does not outlive the process. `now` is its clock."""

    def __init__(self, now: Callable[[], datetime] = _utc_now) -> None:
        self._now = now
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return "memory:"

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        split_name(name)
        stored = b"".join(as_parts(name, data))
        with self._lock:
            there = self._objects.setdefault(name, (stored, self._now()))[0]
        if there != stored:
            raise Conflict(
                f"{name}: exists with other content", detail=f"{len(there)} bytes there, {len(stored)} bytes to store"
            )

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        stored = self._find(name)[0]
        wanted = as_range(len(stored), start, length)
        if wanted is None:
            raise Damaged(
                f"{name}: not as long as it should be", detail=f"{len(stored)} bytes, asked for {length} from {start}"
            )
        return stored[wanted[0] : sum(wanted)]

    def list(self, prefix: str) -> Iterator[Entry]:
        split_prefix(prefix)
        with self._lock:
            names = sorted(name for name in self._objects if name.startswith(prefix))
        for name in names:
            if found := self._objects.get(name):
                yield Entry(name, len(found[0]), found[1])

    def delete(self, name: str) -> None:
        split_name(name)
        self._objects.pop(name, None)

    def stat(self, name: str) -> Entry:
        stored, modified_at = self._find(name)
        return Entry(name, len(stored), modified_at)

    def probe(self) -> Capabilities:
        create_only, reads, skew = try_out(self, f"probe-{id(self):x}", self._now().timestamp())
        return Capabilities(create_only, reads, False, skew, None, None)

    def _find(self, name: str) -> tuple[bytes, datetime]:
        split_name(name)
        try:
            return self._objects[name]
        except KeyError as error:
            raise ObjectMissing(f"{name}: not in the storage", detail=self.url) from error
