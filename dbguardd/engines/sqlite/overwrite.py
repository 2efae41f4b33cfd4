"""Changes pages of a database that rests, beside its readers and in one step, as SQLite itself would.

Who reads it through SQLite sees all of a change or nothing. It is made under SQLite's locks (`locks`) and with a
rollback journal (sqlite.org/fileformat2.html, 3): a process that is killed in the middle leaves what the next user of
the database rolls back. The database must not be in WAL mode, and this process must not use SQLite on it as long as it
has the file open (see `live`).
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dbguardd.durable import sync_directory
from dbguardd.engines.landing import outcome
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import refusal
from dbguardd.engines.sqlite.publish import SIDES
from dbguardd.errors import TargetInUse

_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER = struct.Struct(">8sIIIII")  # magic, records, nonce, pages before, bytes of a sector, bytes of a page
_SECTOR = 512
_STRIDE = 200  # of a page, each 200th byte is in its checksum
_NUMBER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Change:
    """What a database of `before` pages becomes: `after` pages, those at `places` of the open file `images` among them.

    `places` are offsets by page number, `patched` are images that take their stead.
    """

    before: int
    after: int
    page_size: int
    images: int
    places: Mapping[int, int] = field(repr=False)
    patched: Mapping[int, bytes] = field(repr=False)

    def numbers(self) -> list[int]:
        """Return which pages are written, in order."""
        return sorted(number for number in {*self.places, *self.patched} if number <= self.after)

    def image(self, number: int) -> bytes:
        """Return a page as it will be."""
        if (patched := self.patched.get(number)) is not None:
            return patched
        return page_at(self.images, self.places[number], self.page_size)


def page_at(file: int, at: int, page_size: int) -> bytes:
    """Return the bytes of a page; what the file lacks is zeros."""
    return os.pread(file, page_size, at).ljust(page_size, b"\0")


def overwrite(path: Path, file: int, change: Change, ready: Callable[[], None], seconds: float) -> None:
    """Change the database at `path`, open as `file`. Calls `ready` when all is prepared, just before it is done.

    Readers are kept out from then on, until it is durable. Raises TargetInUse, and has changed nothing, if somebody
    writes to it, or if readers stay for `seconds`; NoSpace and the like, and then `settle` rolls back what was changed.
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
            raise TargetInUse(f"{path}: readers keep it as it is for {seconds:g} s", hints=[f"fuser -v {path}"])
        idle = False
        for number in change.numbers():
            _put(file, change.image(number), (number - 1) * change.page_size)
        os.ftruncate(file, change.after * change.page_size)
        os.fsync(file)
        journal.unlink()  # this is the commit
        sync_directory(path.parent)
    except OSError as error:
        raise outcome(path, error) from error
    finally:
        if idle:
            journal.unlink(missing_ok=True)  # nothing of the database was changed yet
        locks.drop_all(file)


def settle(path: Path) -> None:
    """Roll back what was killed in the middle of a change; this process must not have the file open.

    Raises TargetInUse if somebody else is in the middle of one, and what a database that cannot be read raises.
    """
    journal = path.with_name(f"{path.name}-journal")
    if not journal.exists():
        return
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as connection:
            connection.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error as error:
        raise refusal(str(path), str(error), error.sqlite_errorcode) from error
    if journal.exists():  # SQLite takes it for none that is needed: killed before it was written, or in use
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not locks.try_reserved(file):
                raise TargetInUse(f"{path}: another process writes to it", hints=[f"fuser -v {path}"])
            journal.unlink(missing_ok=True)
        finally:
            os.close(file)


def sides(path: Path) -> list[Path]:
    """Return the side files that are there."""
    return [side for end in SIDES if os.path.lexists(side := path.with_name(f"{path.name}{end}"))]


def _write_journal(journal: Path, file: int, change: Change) -> None:
    """Write what the pages are now that will be others, durable.

    But for the page with the bytes of locks: nothing is in it, and who rolls back takes its record for the last.
    """
    lost, locked = range(change.after + 1, change.before + 1), locks.PENDING // change.page_size + 1
    changed = (number for number in change.numbers() if number <= change.before)
    numbers = [number for number in (*changed, *lost) if number != locked]
    nonce = int.from_bytes(os.urandom(4), "big")
    head = _HEADER.pack(_MAGIC, len(numbers), nonce, change.before, _SECTOR, change.page_size)
    with _created(journal, file) as out:
        _put(out, head.ljust(_SECTOR, b"\0"), 0)
        at = _SECTOR
        for record in _records(file, numbers, change.page_size, nonce):
            _put(out, record, at)
            at += len(record)
        os.fsync(out)


def _records(file: int, numbers: list[int], page_size: int, nonce: int) -> Iterator[bytes]:
    for number in numbers:
        page = page_at(file, (number - 1) * page_size, page_size)
        check = (nonce + sum(page[page_size % _STRIDE :: _STRIDE])) & 0xFFFF_FFFF
        yield b"".join((_NUMBER.pack(number), page, _NUMBER.pack(check)))


@contextmanager
def _created(journal: Path, file: int) -> Iterator[int]:
    """Make the journal, for all who may use the database: one of them may have to roll back."""
    found = os.fstat(file)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(PermissionError):
            os.fchown(out, found.st_uid, found.st_gid)
        os.fchmod(out, found.st_mode & 0o777)
        yield out
    except BaseException:
        journal.unlink(missing_ok=True)  # nothing of the database was changed yet
        raise
    finally:
        os.close(out)


def _put(file: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], at + done)
