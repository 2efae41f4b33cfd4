"""A new directory where a restore goes: all or nothing, durable, and never over anything."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pwd
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.errors import GuardError, NoSpace, PlaceDenied, TargetExists, Unreachable, Usage

_WORK = ".dbguard"
_WORK_NAME = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_WORK)}", re.DOTALL)
_NAME_LETTERS = 200  # of the target's name: more would leave no room for the rest
_YOUNG_SECONDS = 1.0  # between its creation and its lock a work directory is nobody's


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Yield a new empty directory beside `target`; when the block ends well it becomes `target`, durable.

    On any failure it is gone. What a restore that was killed has left beside `target` goes, too; never what another
    one is working on.
    """
    _check_free(target)
    with _outcomes(target):
        _clear(target.parent)
    with beside(target) as (work, held):
        try:
            with _outcomes(target):
                yield work
                sync(held)
                _check_free(target)
                os.rename(work, target)  # over an empty directory at most, of the same owner
                _sync_directory(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def beside(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new directory beside `target`, open and locked: as long as somebody works on it, no restore clears it."""
    with _outcomes(target):
        work = Path(tempfile.mkdtemp(prefix=f".{target.name[:_NAME_LETTERS]}.", suffix=_WORK, dir=target.parent))
    held = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work, held
    finally:
        os.close(held)


def sync(directory: int) -> None:
    """Make all of the file system durable in which an open directory lies: thousands of files at once. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(directory) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise TargetExists(f"{target}: something is there", detail="a restore never overwrites")


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _clear(directory: Path) -> None:
    for path in directory.glob(f".*{_WORK}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(file)
                old = time.time() - found.st_ctime >= _YOUNG_SECONDS
                if _WORK_NAME.fullmatch(path.name) and found.st_uid == os.geteuid() and old:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(file)


@contextmanager
def _outcomes(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _outcome(target, error) from error


def _outcome(target: Path, error: OSError) -> GuardError:
    """Return what an error of the operating system at the target means."""
    detail = error.strerror or str(error)
    match error.errno:
        case errno.EEXIST | errno.ENOTEMPTY:
            return TargetExists(f"{target}: something is there", detail="it appeared while the restore ran")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NoSpace(f"{target}: no room for what is restored", detail=detail)
        case errno.ENOENT | errno.ENOTDIR:
            return Usage(f"{target}: there is no directory {target.parent}", hints=[_make(target.parent)])
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PlaceDenied(
                f"{target}: cannot be written",
                detail=f"{detail}: the job acts as {_user()}, who may not write in {target.parent}",
                hints=[f"{_make(target.parent / 'restored')}  # and restore to a place in there"],
            )
    return Unreachable(f"{target}: cannot be written", detail=detail)


def _user() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _make(directory: Path) -> str:
    return shlex.join(["install", "-d", "-o", _user(), "-m", "0700", str(directory)])
