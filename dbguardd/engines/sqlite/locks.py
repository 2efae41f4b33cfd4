"""SQLite's lock bytes on the live file, used without SQLite (os_unix.c; they are part of the file format).

Open-file-description locks (F_OFD_*) are used: they conflict with SQLite's POSIX locks as they should, but belong to
one descriptor instead of the process, so no other close() in the process can accidentally drop them.

SHARED on the main file prevents: changing the main file in a rollback journal mode (which takes EXCLUSIVE), rolling
back a hot journal, leaving or entering WAL mode, and deleting `-wal` and `-shm` as the last user. It prevents nothing
that a running WAL application does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from dbguardd.engines.landing import describe
from dbguardd.engines.sqlite.live import Live, open_side
from dbguardd.errors import SourceLocked
from dbguardd.flow import Facts
from dbguardd.frozen import frozen

PENDING = 0x4000_0000
_RESERVED = PENDING + 1
_SHARED, _SHARED_LENGTH = PENDING + 2, 510
_MARK_0 = 123  # in -shm: held shared by readers that need no frame of the WAL
_DEAD_MAN = 128  # in -shm: every connection in WAL mode holds it shared while it is open
_FLOCK = "hhqqi0q"  # struct flock of 64-bit Linux
_PAUSE_SECONDS = 0.005
_INDEX_HEADER, _MOVED, _TRIES = 48, 96, 100

LOG_HEADER, FRAME_HEADER = 32, 24
"""Bytes before the first frame of a WAL, and before the page in each frame (sqlite.org/fileformat2.html, 4.1)."""


def _set(file: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, 0, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _holder(file: int, start: int, length: int) -> int | None:
    """Return the process that holds any lock in the range (-1: not one of a process), None if none does."""
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, 0, start, length, 0))
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else pid


def try_shared(file: int) -> bool:
    """Take SHARED like unixLock does; False if a writer is in the way. A waiting writer (PENDING) goes first."""
    if not _set(file, fcntl.F_RDLCK, PENDING, 1):
        return False
    try:
        return _set(file, fcntl.F_RDLCK, _SHARED, _SHARED_LENGTH)
    finally:
        _set(file, fcntl.F_UNLCK, PENDING, 1)


def drop_shared(file: int) -> None:
    """Release SHARED."""
    _set(file, fcntl.F_UNLCK, _SHARED, _SHARED_LENGTH)


def try_reserved(file: int) -> bool:
    """Take SHARED and RESERVED like a connection about to write; False if another one writes or waits to."""
    if not try_shared(file):
        return False
    if _set(file, fcntl.F_WRLCK, _RESERVED, 1):
        return True
    drop_shared(file)
    return False


def wait_exclusive(file: int, deadline: float) -> bool:
    """Block readers, holding RESERVED; False if some are still reading at `deadline` (monotonic seconds)."""
    while not _set(file, fcntl.F_WRLCK, PENDING, 1):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    while not _set(file, fcntl.F_WRLCK, _SHARED, _SHARED_LENGTH):
        if time.monotonic() >= deadline:
            _set(file, fcntl.F_UNLCK, PENDING, 1)
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def drop_all(file: int) -> None:
    """Release every lock of this descriptor on the main file."""
    _set(file, fcntl.F_UNLCK, PENDING, 2 + _SHARED_LENGTH)


def wait_shared(live: Live, deadline: float, alive: Callable[[], None]) -> None:
    """Take SHARED, waiting until `deadline` (monotonic seconds). Raises SourceLocked naming the holder."""
    while not try_shared(live.file):
        if time.monotonic() >= deadline:
            pid = _holder(live.file, PENDING, 2 + _SHARED_LENGTH)
            raise SourceLocked(
                f"{live.path}: another process holds an exclusive lock",
                detail=describe(pid),
                hints=[f"ps -fp {pid}"] if pid and pid > 0 else ["lslocks"],
                facts={"holder_pid": pid},
            )
        alive()
        time.sleep(_PAUSE_SECONDS)


def user(live: Live) -> int | None:
    """Return a process that holds any lock on the main file, None if there is none."""
    return _holder(live.file, PENDING, 2 + _SHARED_LENGTH)


def holders(paths: Iterable[str]) -> set[int]:
    """Return the processes that hold any POSIX lock on these files, as far as the kernel shows them (proc(5))."""
    wanted = set()
    for path in paths:
        with suppress(OSError):
            found = os.stat(path)
            wanted.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    with suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        rows = [line.replace("-> ", "").split() for line in table]
        return {int(row[4]) for row in rows if len(row) > 5 and row[5] in wanted and int(row[4]) > 0}
    return set()


def writer_present(live: Live) -> bool:
    """Return whether a connection holds RESERVED: then an existing journal belongs to a running transaction."""
    return _holder(live.file, _RESERVED, 1) is not None


def wal_in_use(shm: int) -> bool:
    """Return whether any connection uses the WAL index (the open `-shm`)."""
    return _holder(shm, _DEAD_MAN, 1) is not None


def mark_0_stands(shm: int) -> bool:
    """Return whether any reader of the open `-shm` holds mark 0, under which the WAL can restart."""
    return _holder(shm, _MARK_0, 1) is not None


def wal_in_use_at(path: str) -> bool:
    """Return whether any connection uses the WAL of the database at `path`."""
    shm = open_side(path + "-shm")
    if shm is None:
        return False
    try:
        return wal_in_use(shm)
    finally:
        os.close(shm)


@frozen
class Index:
    """What the WAL index says about the last commit: `frames` of `page_size` bytes; the database has `pages`.

    `salts` (8 bytes) identify the round of the WAL, `checksum` (8 bytes) is that of the last frame. `moved` of the
    frames are in the main file.
    """

    page_size: int
    frames: int
    pages: int
    salts: bytes
    checksum: bytes
    moved: int

    @property
    def place(self) -> Facts:
        """The place in the WAL that it describes, in stored form."""
        return {"round": self.salts.hex(), "position": self.frames, "check": self.checksum.hex()}

    @property
    def end(self) -> int:
        """Where the last commit ends, in bytes."""
        return LOG_HEADER + self.frames * (FRAME_HEADER + self.page_size)


def read_index(shm: int) -> Index | None:
    """Read the WAL index from the open `-shm`; None if it cannot be read consistently.

    It begins with two equal copies of a header in host byte order; a writer changes one after the other
    (sqlite.org/walformat.html, 2.1). Call it while a read mark is held: the result then covers that mark.
    """
    for _ in range(_TRIES):
        raw = os.pread(shm, _MOVED + 4, 0)
        if len(raw) == _MOVED + 4 and raw[:_INDEX_HEADER] == raw[_INDEX_HEADER:_MOVED] and raw[12]:
            size, frames, pages, *sums = struct.unpack_from("=HIIII", raw, 14)
            # 65536 does not fit into 16 bits: SQLite stores its high bit in the lowest one, as in the file header.
            page_size = (size & 0xFE00) + ((size & 1) << 16)
            (moved,) = struct.unpack_from("=I", raw, _MOVED)
            return Index(page_size, frames, pages, raw[32:40], struct.pack(">II", *sums), moved)
    return None


def log_index(path: str) -> Index | None:
    """Read the WAL index of the database at `path`; None if it cannot be read consistently."""
    shm = open_side(path + "-shm")
    if shm is None:
        return None
    try:
        return read_index(shm)
    finally:
        os.close(shm)


def log_end(path: str, size: int) -> int:
    """Return where the last commit in the WAL of the database at `path` ends (bytes); `size` if that is unknown."""
    index = log_index(path)
    return size if index is None else min(size, index.end)
