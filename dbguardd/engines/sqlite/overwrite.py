"""Changes pages of a database that no one else writes, while it may be read, in one step, as SQLite itself would.

Readers using SQLite see all of a change or nothing. It is made under SQLite's locks (`locks`) and with a rollback
journal (sqlite.org/fileformat2.html, 3): if the process is killed in the middle, the next user of the database rolls
back. The database must not be in WAL mode, and this process must not use SQLite on it while it has the file open (see
`live`).
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import field
from pathlib import Path

from dbguardd.durable import sync_directory, write_at
from dbguardd.engines.landing import outcome, side_files
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import refusal
from dbguardd.errors import TargetInUse
from dbguardd.frozen import frozen

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER = struct.Struct(">8sIIIII")  # magic, records, nonce, pages before, sector size, page size
_SECTOR = 512
_STRIDE = 200  # every 200th byte of a page is in its checksum
_NUMBER = struct.Struct(">I")


@frozen
class Change:
    """The change of a database from `before` to `after` pages, with new images for some of them.

    `places` are the offsets of images, by page number, in the open file `images`; `patched` are images that replace
    these.
    """

    before: int
    after: int
    page_size: int
    images: int
    places: Mapping[int, int] = field(repr=False)
    patched: Mapping[int, bytes] = field(repr=False)

    def numbers(self) -> list[int]:
        """Return the pages that are written, in order."""
        return sorted(number for number in {*self.places, *self.patched} if number <= self.after)

    def image(self, number: int) -> bytes:
        """Return the new image of a page."""
        if (patched := self.patched.get(number)) is not None:
            return patched
        return page_at(self.images, self.places[number], self.page_size)


def page_at(file: int, at: int, page_size: int) -> bytes:
    """Return the bytes of a page; bytes missing from the file are zeros."""
    return os.pread(file, page_size, at).ljust(page_size, b"\0")


def overwrite(path: Path, file: int, change: Change, ready: Callable[[], None], seconds: float) -> None:
    """Change the database at `path`, open as `file`. Calls `ready` when all is prepared, right before the change.

    From then on readers are blocked until the change is durable. Raises TargetInUse, with nothing changed, if another
    process writes to it, or if readers do not leave for `seconds`. Raises NoSpace and similar errors; then `settle`
    rolls back.
    """
    if not locks.try_reserved(file):
        raise TargetInUse(f"{path}: another process writes to it", hints=[f"fuser -v {path}"])
    journal, idle = path.with_name(f"{path.name}-journal"), False
    try:
        _write_journal(journal, file, change)
        idle = True
        sync_directory(path.parent)
        ready()
        if not locks.wait_exclusive(file, time.monotonic() + seconds):
            raise TargetInUse(
                f"{path}: readers keep it from being replaced for {seconds:g} s", hints=[f"fuser -v {path}"]
            )
        idle = False
        for number in change.numbers():
            write_at(file, change.image(number), (number - 1) * change.page_size)
        os.ftruncate(file, change.after * change.page_size)
        os.fsync(file)
        journal.unlink()  # this is the commit
        sync_directory(path.parent)
    except OSError as error:
        raise outcome(path, error) from error
    finally:
        if idle:
            journal.unlink(missing_ok=True)  # nothing in the database was changed yet
        locks.drop_all(file)


def settle(path: Path) -> None:
    """Roll back a change that was killed in the middle. This process must not have the file open.

    Raises TargetInUse if another process is changing it, and the errors of an unreadable database.
    """
    journal = path.with_name(f"{path.name}-journal")
    if not journal.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as connection:
            connection.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error as error:
        raise refusal(str(path), str(error), error.sqlite_errorcode) from error
    if journal.exists():  # SQLite does not consider it hot: killed before it was complete, or in use
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not locks.try_reserved(file):
                raise TargetInUse(f"{path}: another process writes to it", hints=[f"fuser -v {path}"])
            journal.unlink(missing_ok=True)
        finally:
            os.close(file)


def sides(path: Path) -> list[Path]:
    """Return the side files that exist."""
    return [side for side in side_files(path) if os.path.lexists(side)]


def _write_journal(journal: Path, file: int, change: Change) -> None:
    """Durably write the current content of the pages that will change.

    Except the page with the lock bytes: it has no content, and a rollback would stop at its record.
    """
    lost, locked = range(change.after + 1, change.before + 1), locks.PENDING // change.page_size + 1
    changed = (number for number in change.numbers() if number <= change.before)
    numbers = [number for number in (*changed, *lost) if number != locked]
    nonce = int.from_bytes(os.urandom(4), "big")
    head = _HEADER.pack(_MAGIC, len(numbers), nonce, change.before, _SECTOR, change.page_size)
    with _created(journal, file) as out:
        write_at(out, head.ljust(_SECTOR, b"\0"), 0)
        at = _SECTOR
        for record in _records(file, numbers, change.page_size, nonce):
            write_at(out, record, at)
            at += len(record)
        os.fsync(out)


def _records(file: int, numbers: list[int], page_size: int, nonce: int) -> Iterator[bytes]:
    for number in numbers:
        page = page_at(file, (number - 1) * page_size, page_size)
        check = (nonce + sum(page[page_size % _STRIDE :: _STRIDE])) & 0xFFFF_FFFF
        yield b"".join((_NUMBER.pack(number), page, _NUMBER.pack(check)))


@contextmanager
def _created(journal: Path, file: int) -> Iterator[int]:
    """Create the journal, with the permissions of the database: any of its users may have to roll back."""
    found = os.fstat(file)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(PermissionError):
            os.fchown(out, found.st_uid, found.st_gid)
        os.fchmod(out, found.st_mode & 0o777)
        yield out
    except BaseException:
        journal.unlink(missing_ok=True)  # nothing in the database was changed yet
        raise
    finally:
        os.close(out)
