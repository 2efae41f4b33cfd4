"""Reads packs: the plaintext of frames, each verified, with the latest in a cache of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from dbguardd.errors import Damaged, KeyRefused
from dbguardd.repository.frames import Digests
from dbguardd.repository.packs import HEADER, TAIL, Pack, object_name, pack_name, trailer_length

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain
    from dbguardd.storage.base import Storage

CACHE = 40 << 20  # one frame of each of the 128 packs that saving.scattered() allows
_TAIL_GUESS = 16 << 10
_RUN = 4 << 20
_PACKS = 2048

Plain = tuple[bytes, bytes]
"""Plaintext of a frame, and the digests of its parts."""


class PackReader:
    """Reads frames of one domain; several threads may use it at once.

    Raises Damaged, ObjectMissing, KeyRefused, Unreachable; never returns a wrong byte.
    """

    def __init__(self, storage: Storage, domain: Domain, *, cache: int = CACHE) -> None:
        self._storage, self._domain, self._limit = storage, domain, cache
        self.digests = Digests(domain)
        self._packs: OrderedDict[str, Pack] = OrderedDict()
        self._cache: OrderedDict[tuple[str, int], Plain] = OrderedDict()
        self._cached = 0
        self._lock = Lock()

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._cache.clear()
            self._cached = 0

    def pack(self, name: str) -> Pack:
        """Open a pack: read and verify its two ends."""
        with self._lock:
            if pack := self._packs.get(name):
                self._packs.move_to_end(name)
                return pack
        pack = self._open(name)
        with self._lock:
            self._packs[name] = pack
            if len(self._packs) > _PACKS:
                self._packs.popitem(last=False)
        return pack

    def frame(self, name: str, number: int, kind: int) -> Plain:
        """Return one frame of the pack `name`."""
        return self.frames(name, (number,), kind)[number]

    def frames(self, name: str, numbers: Sequence[int], kind: int) -> Mapping[int, Plain]:
        """Return frames of one pack by number; neighbours are fetched together. `numbers` are ascending."""
        found: dict[int, Plain] = {}
        with self._lock:
            for number in numbers:
                if plain := self._cache.get((name, number)):
                    self._cache.move_to_end((name, number))
                    found[number] = plain
        wanted = [number for number in numbers if number not in found]
        if not wanted:
            return found
        pack = self.pack(name)
        for first, last in _runs(pack, wanted, kind):
            found.update(self._fetch(pack, first, last))
        return found

    def _fetch(self, pack: Pack, first: int, last: int) -> dict[int, Plain]:
        start, end = pack.records[first].start, pack.records[last].start + pack.records[last].stored
        view = memoryview(self._storage.get(object_name(pack.name), start, end - start))
        plains = {}
        for number in range(first, last + 1):
            record = pack.records[number]
            sealed = view[record.start - start : record.start - start + record.stored]
            plains[number] = pack.open(number, sealed, self.digests)
        with self._lock:
            for number, plain in plains.items():
                if (pack.name, number) not in self._cache:
                    self._cache[pack.name, number] = plain
                    self._cached += len(plain[0])
            while self._cached > self._limit:
                self._cached -= len(self._cache.popitem(last=False)[1][0])
        return plains

    def _open(self, name: str) -> Pack:
        key = object_name(name)
        size = self._storage.stat(key).size
        if size < HEADER + TAIL:
            raise Damaged(f"pack {name}: damaged", detail=f"only {size} bytes are left", facts={"object": key})
        header = self._storage.get(key, 0, HEADER)
        guess = min(size, _TAIL_GUESS)
        tail = self._storage.get(key, size - guess, guess)
        if (length := trailer_length(tail) + TAIL) > guess and length <= size:
            tail = self._storage.get(key, size - length, length)
        try:
            return Pack(self._domain, name, size, header, tail)
        except KeyRefused as refused:
            if pack_name(self._storage.get(key, 0, size)) == name:
                raise
            detail = "its bytes do not match the hash in its name"
            raise Damaged(f"pack {name}: damaged", detail=detail, facts={"object": key}) from refused


def _runs(pack: Pack, numbers: Sequence[int], kind: int) -> list[tuple[int, int]]:
    """Return first and last of each run of neighbours, at most 4 MiB of the pack."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if number >= len(pack.records) or pack.records[number].kind != kind:
            raise Damaged(
                f"pack {pack.name}: damaged",
                detail=f"frame {number} of {len(pack.records)} should be of kind {kind}",
                facts={"object": object_name(pack.name)},
            )
        if runs and runs[-1][1] == number - 1:
            first = runs[-1][0]
            if pack.records[number].start + pack.records[number].stored - pack.records[first].start <= _RUN:
                runs[-1] = (first, number)
                continue
        runs.append((number, number))
    return runs
