"""Reads the WAL of a live database raw: places between two commits, and what was committed between two places.

It takes no lock and holds no mark, so its results are only right while another process keeps the WAL from being
overwritten (`follow`). If it detects that frames were overwritten anyway, it raises LogBroken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from struct import Struct

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.live import Live, Mark
from dbguardd.errors import LogBroken, SourceChanged
from dbguardd.flow import Facts
from dbguardd.frozen import frozen

_FRAME = Struct(">II8s8s")  # page number, database size in pages after a commit (else 0), salts, checksum
_PAUSE_SECONDS = 0.001


@frozen
class WalPosition:
    """A place between two commits: after `frames` frames of the round with `salts`; `checksum` is that of the last."""

    salts: bytes
    frames: int
    checksum: bytes
    file: int  # inode of the main file: a WAL of the same name may be left beside another one

    def facts(self) -> Facts:
        """Return the stored form."""
        return {"round": self.salts.hex(), "position": self.frames, "check": self.checksum.hex(), "file": self.file}

    @classmethod
    def read(cls, facts: Facts) -> WalPosition | None:
        """Parse what facts() returned; None for a place stored by another engine."""
        try:
            check, file = bytes.fromhex(facts["check"]), int(facts.get("file", 0))
            return cls(bytes.fromhex(facts["round"]), int(facts["position"]), check, file)
        except (KeyError, ValueError):
            return None


@frozen
class WalPart:
    """The content between two places: the newest image of each page, in ascending order, and the place where it ends.

    `sizes` are the sizes of the database, in pages, after each commit in it; none in the middle of a transaction.
    `last`: it ends where the WAL index did, so nothing had been committed after it.
    """

    until: WalPosition
    images: Mapping[int, memoryview] = field(repr=False)
    sizes: Sequence[int]
    last: bool


class Frames:
    """The open WAL and WAL index of one database. The caller closes them."""

    def __init__(self, live: Live, log: int, shm: int, patience_seconds: float, alive: Callable[[], None]) -> None:
        """Read from `log` and `shm`; `alive` is called while waiting for the index."""
        self._live, self._log, self._shm = live, log, shm
        self._patience_seconds, self._alive = patience_seconds, alive
        self._sides = {"-wal": Mark.of(os.fstat(log)), "-shm": Mark.of(os.fstat(shm))}
        self._file = live.found.st_ino

    def index(self) -> locks.Index:
        """Read the index, waiting for a writer that is in the middle of changing it.

        If that writer was killed, the first mark of the next child repairs the index.
        """
        deadline = time.monotonic() + self._patience_seconds
        while (index := locks.read_index(self._shm)) is None:
            if time.monotonic() >= deadline:
                raise LogBroken(f"{self._live.path}: the WAL index (-shm) cannot be read")
            self._alive()
            time.sleep(_PAUSE_SECONDS)
        return index

    def check_files(self) -> None:
        """Raise SourceChanged if the path leads to another database, or its WAL is another file."""
        self._live.check_same()
        for suffix, mark in self._sides.items():
            if not mark.same_file(self._live.side(suffix)):
                raise SourceChanged(f"{self._live.path}: its {suffix} was replaced while in use")

    def ends_with(self, place: WalPosition, page_size: int) -> bool:
        """Return whether the frame before `place` is still the frame that was read there."""
        raw = os.pread(self._log, _FRAME.size, _start(place.frames - 1, page_size))
        return len(raw) == _FRAME.size and _FRAME.unpack(raw)[2:] == (place.salts, place.checksum)

    def up_to(self, place: WalPosition, page_size: int, moved: int) -> Iterator[tuple[int, int, memoryview] | None]:
        """Yield page, pages after a commit (else 0), and image of each frame up to a place; None if the WAL restarted.

        It starts with the last frame of the last commit before the place that lies entirely within the first `moved`
        frames.
        """
        frame, first = locks.FRAME_HEADER + page_size, max(0, min(moved, place.frames) - 1)
        while first and not self._commit(first, page_size):
            first -= 1
        for number in range(first, place.frames):
            raw = os.pread(self._log, frame, _start(number, page_size))
            if len(raw) != frame or raw[8:16] != place.salts:
                yield None
                return
            page, commit, _, _ = _FRAME.unpack_from(raw)
            yield page, commit, memoryview(raw)[_FRAME.size :]

    def _commit(self, number: int, page_size: int) -> int:
        raw = os.pread(self._log, _FRAME.size, _start(number, page_size))
        return int(_FRAME.unpack(raw)[1]) if len(raw) == _FRAME.size else 0

    def part(self, since: WalPosition, index: locks.Index, most_bytes: int) -> WalPart:
        """Read frames up to the last commit that fits into `most_bytes`; if none does, a part of a transaction.

        Raises LogBroken if they were overwritten meanwhile.
        """
        frame = locks.FRAME_HEADER + index.page_size
        most = max(1, most_bytes // frame)
        count = min(most, index.frames - since.frames)
        raw = os.pread(self._log, count * frame, _start(since.frames, index.page_size))
        heads = list(_heads(index.page_size).iter_unpack(memoryview(raw)[: len(raw) // frame * frame]))
        ours = next((n for n, (_, _, salts, _) in enumerate(heads) if salts != since.salts), len(heads))
        taken = next((n + 1 for n in range(ours - 1, -1, -1) if heads[n][1]), ours if ours == most else 0)
        if not taken or self.index().salts != index.salts:
            raise LogBroken(f"{self._live.path}: its WAL was overwritten while it was read")
        _, size, _, checksum = heads[taken - 1]
        pages = {head[0]: n * frame + _FRAME.size for n, head in enumerate(heads[:taken])}  # the newest image of each
        until = WalPosition(since.salts, since.frames + taken, checksum, self._file)
        last = until.frames == index.frames
        if last and (until.checksum != index.checksum or size != index.pages):
            raise LogBroken(f"{self._live.path}: the last frame of its WAL is not the one that the WAL index names")
        numbers, view = sorted(page for page in pages if not size or page <= size), memoryview(raw)
        images = {page: view[pages[page] : pages[page] + index.page_size] for page in numbers}
        return WalPart(until, images, [head[1] for head in heads[:taken] if head[1]] if size else (), last)


def log_bytes(frames: int, page_size: int) -> int:
    """Return the size in bytes of a WAL with this many frames."""
    return _start(frames, page_size)


def _heads(page_size: int) -> Struct:
    """Return a Struct that reads one frame header after the other."""
    return Struct(f"{_FRAME.format}{page_size}x")


def _start(frames: int, page_size: int) -> int:
    return locks.LOG_HEADER + frames * (locks.FRAME_HEADER + page_size)
