"""Keeps the hash of every page of a followed database, as its WAL has it, and compares them with the live file.

So each segment can include the sum of all pages of the database after it (`sums`): applying it to another base, or
missing a page, gives another sum. The hashes, 8 bytes a page, are in an unnamed file.

They are computed from the frames of the WAL; for pages in no frame, from the main file, a few at a time while the WAL
is followed. A page of the main file can be newer than what was read of the WAL, but not newer than the next look: a
checkpoint only writes what was committed before. And it can be torn only while a frame of it is being written. So
hashes from the main file count after the next look. A page that differs then and is named by no frame is wrong: it was
changed bypassing the WAL, or the WAL was read incompletely.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence

from dbguardd.engines.sqlite.live import Live, Mark
from dbguardd.engines.sqlite.locks import PENDING
from dbguardd.sums import added, as_text, page_hash

_HASH_BYTES = 8
_LEAST_BYTES = 1 << 16
_ALONE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_NAMED = 10  # how many wrong pages are named
_STILL_SECONDS = 5.0  # how long after its writes a checkpoint may be syncing before it counts them as moved


class Watch:
    """The hashes of one database whose WAL is read; 0 means not known yet."""

    def __init__(self, live: Live, staging: str, seconds: float, scan_bytes: int) -> None:
        self._live, self._seconds, self._scan_bytes = live, seconds, scan_bytes
        with tempfile.TemporaryFile(dir=staging or None) as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._hashes = memoryview(b"").cast("Q")
        self._enlarge(_LEAST_BYTES)
        self._page_size, self._pages, self._low, self._total = 0, 0, 0, 0
        self._end = 0  # pages that the main file had before the next segment: their content may be old
        self._next = 1  # the next page to be read; 0: none
        self._known, self._due = False, time.monotonic() + seconds
        self._round = set[int]()  # pages that frames of this round of the WAL name
        self._written = set[int]()  # of a transaction of which a part was shipped
        self._moving: set[int] | None = None  # during a comparison: pages that went through the WAL meanwhile
        self._suspects = list[int]()
        self._loose = set[int]()  # pages whose content nobody defines
        self._moved: object = None  # how far checkpoints had come at the last look
        self._mark: Mark | None = None  # the main file as they left it
        self._latest: tuple[Mark, float] | None = None  # as it is now, and since when

    def begin(self, page_size: int, pages: int, written: Iterable[int] = ()) -> None:
        """Start with a database of `pages` pages; pages in `written` belong to the transaction that continues there."""
        self._page_size, self._pages, self._low = page_size, pages, pages
        self._end = self._length()
        self._written.update(written)
        for number in [number for number in self._round - self._written if number > pages]:
            self._set(number, 0)

    @property
    def sum(self) -> str:
        """The sum of all pages after the last segment; "" until it is known."""
        return as_text(self._total) if self._known and not self._loose else ""

    # ------------------------------------------------------------------------------------------ the WAL

    def saw(self, images: Mapping[int, memoryview]) -> None:
        """Add pages that the WAL had before it was followed."""
        self._reach(max(images, default=0))
        hashes, change = self._hashes, 0
        for number, image in images.items():
            found = page_hash(number, image)
            change += found - hashes[number]
            hashes[number] = found
        if self._known:
            self._total = added(self._total, change)
        self._round.update(images)

    def new_round(self) -> None:
        """Note that the WAL restarted: everything that was in it is in the main file."""
        self._round.clear()

    def took(self, images: Mapping[int, memoryview], sizes: Sequence[int]) -> None:
        """Add a segment: its `images`, and the size of the database in pages after each commit in it.

        `sizes` is empty in the middle of a transaction. A page that returns after the database had shrunk, without a
        frame, has no content for SQLite, and copies may differ in it: until it gets a frame there is no sum. The page
        of SQLite's locks never gets one: nobody writes it, so it is zeros everywhere.
        """
        self.saw(images)
        self._written.update(images)
        if self._moving is not None:
            self._moving.update(images)
        if not sizes:
            return
        self._low = min([self._low, *sizes])
        before, self._pages = self._pages, sizes[-1]
        for number in range(self._low + 1, self._pages + 1):
            if number not in self._written:
                self._set(number, page_hash(number, bytes(self._page_size)))
                if (number <= max(before, self._end) or number in self._round) and number != self._lock_page():
                    self._loose.add(number)
        for number in range(self._pages + 1, max(before, *self._written, 0) + 1):
            self._set(number, 0)
        self._loose = {number for number in self._loose - self._written if number <= self._pages}
        self._low, self._end = self._pages, self._length()
        self._written.clear()

    def _lock_page(self) -> int:
        return PENDING // self._page_size + 1

    def _length(self) -> int:
        return -(-os.fstat(self._live.file).st_size // self._page_size)

    # ------------------------------------------------------------------------------------------ the main file

    def glance(self, moved: object) -> None:
        """Start a comparison at once if the main file was written although no checkpoint has `moved` anything since.

        In WAL mode nobody else writes it: a copy was written over it, or a tool that ignores the WAL has changed it.
        """
        mark, now = self._live.mark(), time.monotonic()
        if self._latest is None or self._latest[0] != mark:
            self._latest = (mark, now)
        if moved != self._moved:
            self._moved, self._mark = moved, mark
        elif mark != self._mark and now - self._latest[1] >= _STILL_SECONDS:
            self._mark, self._due = mark, now

    def looked(self, expected: str) -> str:
        """Note that the WAL was read to its end, after what step() did; return what is wrong, "" if nothing is.

        `expected` is the sum that the database should have if it is known for the first time now.
        """
        if self._next:
            return ""
        if not self._known:
            self._total = added(0, sum(self._hashes))  # includes pages that an open transaction is writing
            self._known = True
            if expected and self.sum and expected != self.sum:
                return "it is not what it was when its log was followed last, and its log says nothing of that"
        elif self._moving is not None:
            return self._judged(self._moving)
        return ""

    def compared(self) -> bool:
        """Return whether the whole live file was read, so that looked() will judge."""
        return self._known and self._moving is not None and not self._next

    def step(self) -> None:
        """Read some further pages of the main file, if there are any left to be read."""
        if self._known and self._moving is None and time.monotonic() >= self._due:
            self._next, self._moving, self._suspects = 1, set(self._round), []
            self._due = time.monotonic() + self._seconds  # sooner if glance() finds something meanwhile
        if not self._next:
            return
        room = max(1, self._scan_bytes // (4 if self._known else 1) // self._page_size)
        numbers = range(self._next, min(self._next + room, self._pages + 1))
        self._next = numbers.stop if numbers.stop <= self._pages else 0
        for number in numbers:
            if self._skipped(number):
                continue
            found = page_hash(number, self._image(number))
            if self._moving is None:
                self._set(number, found)
            elif found != self._get(number):
                self._suspects.append(number)

    def _skipped(self, number: int) -> bool:
        return bool(self._get(number)) if self._moving is None else number in self._moving

    def _judged(self, moving: Collection[int]) -> str:
        """Return what is still wrong after the WAL was read past what was seen; from now on it counts as right."""
        wrong = list[int]()
        for number in self._suspects:
            if number not in moving and number not in self._loose and number <= self._pages:
                found = page_hash(number, self._image(number))
                if found != self._get(number):
                    wrong.append(number)
                    self._set(number, found)
        self._moving = None
        if not wrong:
            return ""
        named = ", ".join(map(str, wrong[:_NAMED])) + ("…" if len(wrong) > _NAMED else "")
        return f"pages of it were changed past its log: {named} ({len(wrong)} of {self._pages})"

    def _image(self, number: int) -> bytes:
        """Return a page as it is in the main file."""
        data = os.pread(self._live.file, self._page_size, (number - 1) * self._page_size)
        return data.ljust(self._page_size, b"\0")

    # ------------------------------------------------------------------------------------------ the table

    def _get(self, number: int) -> int:
        return self._hashes[number] if number < len(self._hashes) else 0

    def _set(self, number: int, found: int) -> None:
        self._reach(number)
        if self._known:
            self._total = added(self._total, found, self._hashes[number])
        self._hashes[number] = found

    def _reach(self, number: int) -> None:
        """Make room for the hash of a page."""
        if number >= len(self._hashes):
            self._enlarge(max(2 * self._hashes.nbytes, number * _HASH_BYTES + _LEAST_BYTES))

    def _enlarge(self, size: int) -> None:
        """Enlarge the table, in the file if its disk has room: otherwise touching its pages would kill this process."""
        try:
            os.posix_fallocate(self._file, 0, size)
            table = mmap.mmap(self._file, size)
        except OSError:
            table = mmap.mmap(-1, size, flags=_ALONE)
        table[: self._hashes.nbytes] = self._hashes.cast("B")
        self._hashes = memoryview(table).cast("Q")
