"""Inspects the live database file from outside, without SQLite and without changing anything.

Raw access and a SQLite connection to the same file must never be in one process: closing any descriptor of the file
drops all POSIX locks that the process has on it, including SQLite's, and then commits of other processes are lost
(measured). So the engine process only uses this module and `locks` on the live file; whatever needs SQLite on it runs
in a child (`hold`, `pour`).
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dbguardd.errors import GuardError, SourceChanged, SourceDenied, SourceEncrypted, SourceInvalid, SourceMissing
from dbguardd.frozen import frozen

MAGIC = b"SQLite format 3\0"
_SAMPLE = 4096
_ENCODINGS = {1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}
_READ_ONLY = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW


@frozen
class Header:
    """The first 100 bytes of a database (sqlite.org/fileformat2.html, 1.3)."""

    page_size: int
    wal: bool
    change_counter: int
    page_count: int  # as stored; 0 if it is stale because an old library wrote last
    encoding: str
    user_version: int
    application_id: int
    auto_vacuum: str
    written_by: str

    @classmethod
    def parse(cls, raw: bytes) -> Header:
        """Parse the header fields; `raw` has at least 100 bytes and begins with the magic."""

        def number(at: int) -> int:
            return int.from_bytes(raw[at : at + 4], "big")

        page_size = int.from_bytes(raw[16:18], "big")
        version = number(96)
        vacuum = "none" if not number(52) else ("incremental" if number(64) else "full")
        return cls(
            page_size=65536 if page_size == 1 else page_size,
            wal=raw[19] == 2,
            change_counter=number(24),
            page_count=number(28) if number(24) == number(92) else 0,
            encoding=_ENCODINGS.get(number(56), "UTF-8"),
            user_version=int.from_bytes(raw[60:64], "big", signed=True),
            application_id=int.from_bytes(raw[68:72], "big", signed=True),
            auto_vacuum=vacuum,
            written_by=f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}",
        )


@frozen
class Mark:
    """Distinguishes states of a file: identity, size (bytes) and modification time (nanoseconds)."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> Mark:
        """Return the mark of a stat result."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def same_file(self, other: Mark | None) -> bool:
        """Return whether both are states of one inode."""
        return other is not None and (self.device, self.inode) == (other.device, other.inode)


State = tuple[bytes, Mark, Mark | None, Mark | None, Mark | None]
"""Distinguishes states of a database: the header fields that commits change, and its four files."""


@frozen
class Live:
    """The live file, open for raw reading. `path` contains no symbolic links: SQLite puts its side files beside it."""

    path: str
    file: int
    found: os.stat_result

    def head(self, length: int = 100) -> bytes:
        """Return the first bytes of the file as they are now."""
        return os.pread(self.file, length, 0)

    def mark(self) -> Mark:
        """Return the state of the open file as it is now."""
        return Mark.of(os.fstat(self.file))

    def side(self, suffix: str) -> Mark | None:
        """Return the state of `-wal`, `-shm` or `-journal`, None if it does not exist."""
        try:
            return Mark.of(os.stat(self.path + suffix, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def state(self) -> State:
        """Return the state of the database as it is now."""
        return self.head()[24:], self.mark(), self.side("-wal"), self.side("-shm"), self.side("-journal")

    def check_same(self) -> None:
        """Raise SourceChanged if the path no longer leads to the open file."""
        try:
            now = Mark.of(os.stat(self.path, follow_symlinks=False))
        except FileNotFoundError:
            now = None
        if not self.mark().same_file(now):
            raise SourceChanged(
                f"{self.path}: another file took its place while it was read",
                detail=f"inode {self.found.st_ino} before, {now.inode if now else 'no file'} after",
            )


def resolve(path: str) -> str:
    """Return the path without symbolic links. Raises SourceMissing, SourceInvalid, SourceDenied."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        raise _translate(path, error) from error


@contextmanager
def open_live(path: str) -> Iterator[Live]:
    """Open the live file raw; never hangs on a pipe or device.

    Raises SourceMissing, SourceDenied, SourceInvalid (not a regular file, hard links). read_header checks the rest.
    """
    real = resolve(path)
    try:
        _check_kind(real, os.stat(real))
        file = os.open(real, _READ_ONLY)
    except OSError as error:
        raise _translate(real, error) from error
    try:
        found = os.fstat(file)
        _check_kind(real, found)
        yield Live(real, file, found)
    finally:
        os.close(file)


def open_side(path: str) -> int | None:
    """Open a side file raw for reading; None if it does not exist. Raises SourceDenied, SourceInvalid."""
    try:
        file = os.open(path, _READ_ONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translate(path, error) from error
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise SourceInvalid(f"{path}: not a regular file", detail="a side file of SQLite must be one")


def _check_kind(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise SourceInvalid(f"{path}: not a regular file", detail=f"it is {kind}")
    if found.st_nlink > 1:
        # Side files are named after the name by which the database was opened. Commits in the -wal of the other name
        # would silently be missing from the backup.
        raise SourceInvalid(
            f"{path}: has {found.st_nlink} names (hard links)",
            detail="SQLite keeps the WAL beside the name that an application opened; other names do not see it",
            hints=[f"find {os.path.dirname(path)} -xdev -samefile {path}"],
        )


def read_header(live: Live) -> Header:
    """Return the header of the live file. Raises SourceInvalid, SourceEncrypted.

    To SQLite a file of 0 bytes is a database without pages. But a failed copy or a full disk leaves such a file too,
    and a backup of it could only restore nothing, so it is refused.
    """
    raw = live.head(_SAMPLE)
    if not raw:
        raise SourceInvalid(
            f"{live.path}: the file is empty (0 bytes)",
            detail="the application has not written to it yet, or it was truncated; there is nothing to back up",
        )
    if not raw.startswith(MAGIC):
        if _looks_random(raw):
            raise SourceEncrypted(
                f"{live.path}: no SQLite header, and the bytes look random",
                detail=f"{_entropy(raw):.2f} bits of entropy a byte in the first {len(raw)} bytes",
            )
        what = "it does not start like one"  # its first bytes are not reported: it may be any file
        raise SourceInvalid(f"{live.path}: not a SQLite database", detail=what)
    header = Header.parse(raw.ljust(100, b"\0"))
    size = header.page_size
    if len(raw) < 100 or size < 512 or size > 65536 or size & (size - 1):
        raise SourceInvalid(
            f"{live.path}: the header is not valid", detail=f"{len(raw)} bytes read, page size {size} bytes"
        )
    # SQLCipher can leave the first bytes unencrypted; then the first b-tree page shows the encryption.
    if len(raw) > 612 and raw[100] not in (5, 13) and _looks_random(raw[108:]):
        raise SourceEncrypted(
            f"{live.path}: it has a SQLite header, but the first page looks random",
            detail=f"page type {raw[100]} where 5 or 13 is possible",
        )
    return header


def _entropy(raw: bytes) -> float:
    return -sum(n / len(raw) * math.log2(n / len(raw)) for n in Counter(raw).values())


def _looks_random(raw: bytes) -> bool:
    # n random bytes have about log2(min(n, 256)) bits of entropy, less a few hundredths; text and pages have far less.
    return len(raw) >= 256 and _entropy(raw) > (7.8 if len(raw) >= 2048 else 7.0)


def _translate(path: str, error: OSError) -> GuardError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        above = os.path.dirname(path)
        there, gone = "exists, but the file does not.", "does not exist either: is a disk not mounted?"
        return SourceMissing(
            f"{path}: no such file", detail=f"Its directory {above} {there if os.path.isdir(above) else gone}"
        )
    if isinstance(error, PermissionError):
        return SourceDenied(f"{path}: permission denied", detail=f"read by uid {os.geteuid()}, gid {os.getegid()}")
    return SourceInvalid(f"{path}: cannot be opened", detail=error.strerror or str(error))
