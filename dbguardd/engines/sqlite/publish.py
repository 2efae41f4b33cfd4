"""Puts a finished database file in a new place: all or nothing, durable, never over an existing file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.durable import sync_directory
from dbguardd.engines.landing import WORK, is_left, is_work, outcomes, side_files, work_prefix
from dbguardd.errors import TargetExists

_RIGHTS = 0o777


@contextmanager
def fresh(target: Path, mode: int) -> Iterator[Path]:
    """Yield a new empty file beside `target`; if the block succeeds it becomes `target`, durably.

    On any failure neither the file nor its side files are left. Raises TargetExists also for an old -wal, -shm or
    -journal at the target: SQLite would apply them to the restored file (measured: old rows came back).
    """
    check_free(target)
    with outcomes(target):
        clear(target.parent)
        file, name = tempfile.mkstemp(prefix=work_prefix(target), suffix=WORK, dir=target.parent)
    work = Path(name)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells clear() that the file is in use
        yield work
        check_free(target)
        with outcomes(target):
            _sync(work, (mode & _RIGHTS) | 0o600)
            os.link(work, target)
            work.unlink()
            sync_directory(target.parent)
    finally:
        for path in (work, *side_files(work)):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        os.close(file)


def clear(directory: Path) -> None:
    """Delete what a killed restore left in this directory: our work files that nobody holds a lock on."""
    for path in directory.glob(f".*{WORK}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(file)
                if not stat.S_ISREG(found.st_mode) or not is_left(path, found):
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in (*side_files(path), path):
                    left.unlink(missing_ok=True)
            finally:
                os.close(file)


def hold(work: Path) -> int:
    """Open and lock finished work that is not yet in its place, so that clear() skips it; the caller closes it.

    Raises OSError if clear() was quicker.
    """
    file = os.open(work, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with suppress(OSError):  # not every file system supports locks
        fcntl.flock(file, fcntl.LOCK_EX)  # clear() holds it only for a moment
    if not os.path.lexists(work):
        os.close(file)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(work))
    return file


def sweep(target: Path) -> None:
    """Delete what a killed restore has left beside a database: work files, and a second name of the database."""
    with suppress(OSError):
        only_name(target)
    clear(target.parent)


def only_name(target: Path) -> None:
    """Delete the second name of a finished file, left by a process that was killed between link and unlink."""
    found = target.stat()
    for path in target.parent.glob(f".*{WORK}") if found.st_nlink > 1 else ():
        with suppress(OSError):
            if os.path.samestat(path.lstat(), found) and is_work(path):
                path.unlink()


def check_free(target: Path) -> None:
    """Raise TargetExists if `target` or a side file of that name exists."""
    for path in (target, *side_files(target)):
        if os.path.lexists(path):
            what = "something is there" if path == target else "a side file of an earlier database is there"
            raise TargetExists(f"{path}: {what}", detail="a restore never overwrites", hints=[f"ls -l {path}"])


def _sync(path: Path, mode: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(file, mode)
        os.fsync(file)
    finally:
        os.close(file)
