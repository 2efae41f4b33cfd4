"""Puts a finished database file at a new place: all or nothing, durable, never over an existing file."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.errors import GuardError, NoSpace, PlaceDenied, TargetExists, Unreachable, Unsupported, Usage

SIDES = ("-wal", "-shm", "-journal")
_RIGHTS = 0o777
_WORK = ".dbguard"
_WORK_NAME = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_WORK)}", re.DOTALL)
_YOUNG_SECONDS = 1.0  # between its creation and its lock a work file is nobody's


@contextmanager
def fresh(target: Path, mode: int) -> Iterator[Path]:
    """Yield a new empty file beside `target`; when the block ends well it becomes `target`, durable.

    On any failure neither it nor a side file of it is left. Raises TargetExists also for a stale -wal, -shm or
    -journal at the target: SQLite would apply them to the restored file (measured: old rows came back).
    """
    check_free(target)
    with _outcomes(target):
        _clear(target.parent)
        file, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_WORK, dir=target.parent)
    work = Path(name)
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says to _clear that somebody works on it
        yield work
        check_free(target)
        with _outcomes(target):
            _sync(work, (mode & _RIGHTS) | 0o600)
            os.link(work, target)
            work.unlink()
            sync_directory(target.parent)
    finally:
        for side in ("", *SIDES):
            with suppress(OSError):
                work.with_name(f"{work.name}{side}").unlink(missing_ok=True)
        os.close(file)


def _clear(directory: Path) -> None:
    """Remove what a restore that was killed left in this directory: our work files that nobody holds a lock on."""
    for path in directory.glob(f".*{_WORK}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(file)
                if not _WORK_NAME.fullmatch(path.name) or not stat.S_ISREG(found.st_mode):
                    continue
                if found.st_uid != os.geteuid() or time.time() - found.st_ctime < _YOUNG_SECONDS:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for side in (*SIDES, ""):
                    path.with_name(f"{path.name}{side}").unlink(missing_ok=True)
            finally:
                os.close(file)


def only_name(target: Path) -> None:
    """Take away the other name of a finished file, which a process that was killed in between left."""
    found = target.stat()
    for path in target.parent.glob(f".*{_WORK}") if found.st_nlink > 1 else ():
        with suppress(OSError):
            if os.path.samestat(path.lstat(), found) and _WORK_NAME.fullmatch(path.name):
                path.unlink()


def check_free(target: Path) -> None:
    """Raise TargetExists if `target` or a side file of that name exists."""
    for side in ("", *SIDES):
        path = target.with_name(f"{target.name}{side}")
        if os.path.lexists(path):
            what = "something is there" if not side else "a side file of an earlier database is there"
            raise TargetExists(f"{path}: {what}", detail="a restore never overwrites", hints=[f"ls -l {path}"])


def _sync(path: Path, mode: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(file, mode)
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def _outcomes(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise outcome(target, error) from error


def _user() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _make(directory: Path) -> str:
    """Return the command by which root makes a directory that this user may write, and nobody else may enter."""
    return shlex.join(["install", "-d", "-o", _user(), "-m", "0700", str(directory)])


def outcome(target: Path, error: OSError) -> GuardError:
    """Return what an operating system error at the target means."""
    detail = error.strerror or str(error)
    match error.errno:
        case errno.EEXIST:
            return TargetExists(f"{target}: something is there", detail="it appeared while the restore ran")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpace(f"{target}: no room for the restored database", detail=detail)
        case errno.ENOENT | errno.ENOTDIR:
            return Usage(f"{target}: there is no directory {target.parent}", hints=[_make(target.parent)])
        case errno.EACCES | errno.EPERM:
            return PlaceDenied(
                f"{target}: cannot be written",
                detail=f"{detail}: the job acts as {_user()}, who may not write in {target.parent}",
                hints=[f"{_make(target.parent / 'restored')}  # and restore to a file in there"],
            )
        case errno.EROFS:
            return PlaceDenied(f"{target}: cannot be written", detail=detail)
        case errno.ENOTSUP | errno.EMLINK:
            return Unsupported(f"{target}: the file system has no hard links", detail=detail)
        case _:
            return Unreachable(f"{target}: cannot be written", detail=detail)
