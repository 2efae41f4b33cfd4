"""Writes packs: frames go in; packs come out durable, verified and read back.

One caller thread adds frames and learns at once where they will lie. Two threads do the work passed to them (compress,
seal, open again); a third one stores packs and reads them back. Everything is bounded: if PENDING packs are in
progress, flush() waits. An error in any thread is raised by the next call and by finish(). Nothing that was written
counts before the manifest that names it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from dbguardd.errors import Cancelled, Damaged
from dbguardd.repository.frames import Frame
from dbguardd.repository.packs import FRAMES_LIMIT, SEAL, object_name, pack_name, prove, seal_pack

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain
    from dbguardd.storage.base import Storage

PACK_SIZE = 8 << 20
THREADS = 2
PENDING = 2
_READ_BACK = 1 << 20

T = TypeVar("T")


class PackHandle:
    """A pack that is being filled or written."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.size = 0
        self.stored = 0  # bytes in the storage, once the name is known
        self._sealed: Future[tuple[str, bytearray]] | None = None
        self._name = ""

    def name(self) -> str:
        """Return the name (hex), waiting for the sealing if necessary. Raises what the sealing raised."""
        if not self._name:
            if self._sealed is None:
                raise ValueError("the pack is still being filled")
            self._name, data = self._sealed.result()
            self.stored = len(data)
        return self._name

    @property
    def open(self) -> bool:
        """Whether frames can still be added."""
        return self._sealed is None and not self._name

    def seal(self, sealed: Future[tuple[str, bytearray]]) -> None:
        """Accept no more frames."""
        self._sealed = sealed

    def settle(self) -> None:
        """Keep the name, release the bytes."""
        self.name()
        self._sealed = None


class PackWriter:
    """Writes the packs of one backup. A context manager; leaving it stops all threads."""

    def __init__(
        self,
        storage: Storage,
        domain: Domain,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        randomness: Callable[[int], bytes] = os.urandom,
        pack_size: int = PACK_SIZE,
    ) -> None:
        self._storage, self._domain, self._randomness, self._pack_size = storage, domain, randomness, pack_size
        self._cancelled = cancelled
        self._stop = Event()
        self._workers = ThreadPoolExecutor(THREADS, "seal")
        self._putter = ThreadPoolExecutor(1, "put")
        self._under_way: deque[tuple[PackHandle, Future[None]]] = deque()
        self._current = PackHandle()
        self._failed: BaseException | None = None
        self.stored_bytes = 0
        self.packs: list[str] = []

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._putter.shutdown(wait=True, cancel_futures=True)
        self._under_way.clear()

    @property
    def failed(self) -> bool:
        """Whether a pack could not be written: nothing added from then on can become a backup."""
        return self._failed is not None

    def submit(self, work: Callable[..., T], *arguments: object) -> Future[T]:
        """Run `work` in one of the worker threads. The caller limits how much is submitted."""
        self.check()
        return self._workers.submit(work, *arguments)

    def check(self) -> None:
        """Raise Cancelled if cancelled, or the error of a pack that could not be written, then on every call."""
        if self._failed is not None:
            raise self._failed
        if self._cancelled():
            raise Cancelled("backup: cancelled")
        while self._under_way and self._under_way[0][1].done():
            self._take()

    def add(self, frame: Frame) -> tuple[PackHandle, int]:
        """Put a frame into the current pack; return the pack and the number of the frame."""
        pack, first = self.add_all((frame,))
        return pack, first

    def add_all(self, frames: Sequence[Frame]) -> tuple[PackHandle, int]:
        """Put frames into one pack, one after the other; return the pack and the number of the first."""
        self.reserve(len(frames))
        pack, first = self._current, len(self._current.frames)
        pack.frames.extend(frames)
        pack.size += sum([len(frame.body) + SEAL for frame in frames])
        return pack, first

    def reserve(self, frames: int) -> None:
        """Start a new pack unless the current one has room for this many more frames."""
        if len(self._current.frames) + frames > FRAMES_LIMIT:
            self.flush()

    def full(self) -> bool:
        """Whether the current pack has reached its size. The caller flushes it when that suits."""
        return self._current.size >= self._pack_size

    def flush(self) -> None:
        """Close the current pack and start the next; wait while too many are in progress."""
        pack = self._current
        if not pack.frames:
            return
        self._current = PackHandle()
        sealed = self.submit(self._seal, pack)
        pack.seal(sealed)
        self._under_way.append((pack, self._putter.submit(self._put, sealed)))
        while len(self._under_way) > PENDING:
            self._take()

    def finish(self) -> None:
        """Write the rest; on return every pack is durable and was read back."""
        self.check()
        self.flush()
        while self._under_way:
            self._take()

    def _take(self) -> None:
        pack, done = self._under_way.popleft()
        try:
            done.result()
        except BaseException as error:
            self._failed = error
            raise
        pack.settle()
        self.packs.append(pack.name())
        self.stored_bytes += pack.stored

    def _seal(self, pack: PackHandle) -> tuple[str, bytearray]:
        checks = [frame.check for frame in pack.frames]
        data = seal_pack(self._domain, pack.frames, self._randomness)
        pack.frames = []
        name = pack_name(data)
        prove(self._domain, data, name, checks)
        return name, data

    def _put(self, sealed: Future[tuple[str, bytearray]]) -> None:
        name, data = sealed.result()
        if self._stop.is_set():
            raise Cancelled("backup: cancelled")
        self._storage.put(object_name(name), data)
        for at in range(0, len(data), _READ_BACK):
            piece = self._storage.get(object_name(name), at, min(_READ_BACK, len(data) - at))
            if len(piece) != min(_READ_BACK, len(data) - at) or not data.startswith(piece, at):
                raise Damaged(
                    f"pack {name}: the storage returns other bytes than were written",
                    detail=f"between {at} and {at + _READ_BACK} of {len(data)} bytes in {self._storage.url}",
                )
