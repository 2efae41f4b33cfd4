"""Makes the new directory of a restore: all or nothing, durable, and never over anything."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dbguardd.durable import sync_directory
from dbguardd.engines.landing import WORK, is_left, outcomes, work_prefix
from dbguardd.errors import TargetExists


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Yield a new empty directory beside `target`; if the block succeeds it is made durable and renamed to `target`.

    On any failure it is deleted. Directories that killed restores have left beside `target` are deleted too, but never
    one that is still in use.
    """
    _check_free(target)
    with outcomes(target):
        clear_left(target.parent)
    with beside(target) as (work, held):
        try:
            with outcomes(target):
                yield work
                sync(held)
                _check_free(target)
                os.rename(work, target)  # at most replaces an empty directory of the same owner
                sync_directory(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def together(targets: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Yield a new directory for each of several places, as fresh() does; all of them appear, the first one last.

    If one cannot appear, those that have appeared before are deleted again.
    """
    made = list[tuple[Path, os.stat_result]]()
    try:
        with ExitStack() as stack:
            works = [stack.enter_context(fresh(target)) for target in targets]
            made = [(target, os.stat(work)) for target, work in zip(targets, works, strict=True)]
            yield works
    except BaseException:
        for target, work in made:
            with suppress(OSError):
                if os.path.samestat(os.lstat(target), work):
                    shutil.rmtree(target)
        raise


@contextmanager
def beside(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new directory beside `target`, open and locked: while the lock is held, no other restore deletes it."""
    with outcomes(target):
        work = Path(tempfile.mkdtemp(prefix=work_prefix(target), suffix=WORK, dir=target.parent))
    held = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work, held
    finally:
        os.close(held)


def sync(directory: int) -> None:
    """Make durable the whole file system of an open directory, which may be thousands of files. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(directory) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def durable(places: Sequence[str]) -> None:
    """Make durable the whole file systems of these directories. Raises OSError."""
    for place in places:
        directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync(directory)
        finally:
            os.close(directory)


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise TargetExists(f"{target}: it exists already", detail="a restore never overwrites")


def clear_left(directory: Path) -> None:
    """Delete what killed restores have left in a directory."""
    for path in directory.glob(f".*{WORK}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if is_left(path, os.fstat(file)):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(file)
