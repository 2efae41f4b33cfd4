"""Storages around storages: one notes what is asked of it, one refuses to change anything."""

from __future__ import annotations

<<<<<<< HEAD:dbguardd/storage/layers.py
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import TypeVar

from dbguardd.errors import Unreachable, Unsupported
from dbguardd.frozen import frozen
from dbguardd.storage.base import Buffer, Capabilities, Entry, Storage

_T = TypeVar("_T")


@frozen
class Retrying:
    """Retries what failed because the storage did not answer. All six verbs may be repeated safely.

    There is one more try after each of `waits` (seconds). Only Unreachable is retried: a full storage stays full, and
    after Degraded nothing that this process hears about durability can be trusted. `sleep` may raise to give up early.
    """

    storage: Storage
    waits: Sequence[float] = (0.2, 1.0, 5.0)
    sleep: Callable[[float], object] = time.sleep

    @property
    def url(self) -> str:
        return self.storage.url

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._try(lambda: self.storage.put(name, data))

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self._try(lambda: self.storage.get(name, start, length))

    def list(self, prefix: str) -> Iterator[Entry]:
        last = ""
        waits = iter(self.waits)
        while True:
            try:
                for entry in self.storage.list(prefix):
                    if entry.name > last:
                        last = entry.name
                        yield entry
            except Unreachable:
                if (wait := next(waits, None)) is None:
                    raise
                self.sleep(wait)
            else:
                return

    def delete(self, name: str) -> None:
        self._try(lambda: self.storage.delete(name))

    def stat(self, name: str) -> Entry:
        return self._try(lambda: self.storage.stat(name))

    def probe(self) -> Capabilities:
        return self._try(self.storage.probe)

    def _try(self, verb: Callable[[], _T]) -> _T:
        for wait in self.waits:
            try:
                return verb()
            except Unreachable:
                self.sleep(wait)
        return verb()

=======
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dbguardd.errors import Unsupported
from dbguardd.storage.base import Buffer, Capabilities, Entry, Storage

>>>>>>> 4fa390689f138d5d7f250868b7d59008caab7a4a:tests/storage/layers.py

@frozen
class Call:
    """One call of a verb; `size` is the number of bytes put or got, 0 for the other verbs."""

    verb: str
    name: str
    size: int = 0


@frozen
class Recording:
    """Notes every call in `calls`, including those that fail (with the size that was to be put)."""

    storage: Storage
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.storage.url

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        parts = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
        self.calls.append(Call("put", name, sum(memoryview(part).nbytes for part in parts)))
        self.storage.put(name, data)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        try:
            found = self.storage.get(name, start, length)
        except BaseException:
            self.calls.append(Call("get", name))
            raise
        self.calls.append(Call("get", name, len(found)))
        return found

    def list(self, prefix: str) -> Iterator[Entry]:
        self.calls.append(Call("list", prefix))
        return self.storage.list(prefix)

    def delete(self, name: str) -> None:
        self.calls.append(Call("delete", name))
        self.storage.delete(name)

    def stat(self, name: str) -> Entry:
        self.calls.append(Call("stat", name))
        return self.storage.stat(name)

    def probe(self) -> Capabilities:
        self.calls.append(Call("probe", ""))
        return self.storage.probe()


@frozen
class ReadOnly:
    """Refuses whatever would change the storage."""

    storage: Storage

    @property
    def url(self) -> str:
        return self.storage.url

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        raise self._refusal(f"{name}: not stored")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self.storage.get(name, start, length)

    def list(self, prefix: str) -> Iterator[Entry]:
        return self.storage.list(prefix)

    def delete(self, name: str) -> None:
        raise self._refusal(f"{name}: not deleted")

    def stat(self, name: str) -> Entry:
        return self.storage.stat(name)

    def probe(self) -> Capabilities:
        raise self._refusal("no probe")

    def _refusal(self, what: str) -> Unsupported:
        return Unsupported(f"{what}: the storage is opened for reading only", detail=self.url)
