"""Storages around storages: one records calls, one refuses changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field

from dbguardd.errors import Unsupported
from dbguardd.frozen import frozen
from dbguardd.storage.base import Buffer, Capabilities, Entry, Storage


@frozen
class Call:
    """One call of a verb; `size` is the number of bytes put or got, 0 for the other verbs."""

    verb: str
    name: str
    size: int = 0


@frozen
class Recording:
    """Records every call in `calls`, including those that fail (with the size of the data passed to put)."""

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
    """Refuses every call that would change the storage."""

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
