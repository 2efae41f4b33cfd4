"""The state directory: its layout, its single owner, and the catalog and audit log in it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from dbguardd.catalog import Audit, Catalog, Entry, Who
from dbguardd.errors import CatalogDamaged, GuardError, PlaceDenied, SecondInstance, of_file
from dbguardd.frozen import frozen


@frozen
class Books:
    """The open catalog and audit log. `notes`: what happened to them that a user should know."""

    catalog: Catalog
    audit: Audit
    notes: tuple[str, ...] = ()


@contextmanager
def owned(state: Path) -> Iterator[None]:
    """Create the directory if needed and hold its lock during the block.

    Raises SecondInstance, PlaceDenied, NoSpace, Usage (not a directory), Degraded.
    """
    with furnished(state):
        try:
            lock = os.open(state / "dbguardd.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(state, error) from error
        try:
            _lock(lock, state)
            yield
        finally:
            os.close(lock)


@contextmanager
def furnished(state: Path) -> Iterator[None]:
    """Create the directory if needed, for a process beside its owner. Raises PlaceDenied, NoSpace, Usage, Degraded."""
    try:
        for place, mode in ((state, 0o711), (state / "staging", 0o1733)):
            if not place.is_dir():
                place.mkdir(mode=0o700, parents=True)
                place.chmod(mode)  # whatever the umask is
    except OSError as error:
        raise _unusable(state, error) from error
    yield


def _unusable(state: Path, error: OSError) -> GuardError:
    problem = of_file(f"{state}: cannot be used as the state directory", error)
    if error.errno == errno.EROFS:
        problem.hints = (f"findmnt -T {state}",)
    elif isinstance(problem, PlaceDenied):
        problem.hints = ("run it as root or as the user of the service, or give --state a directory of your own",)
    return problem


@contextmanager
def opened(state: Path, now: datetime, witness: Callable[[Entry], None]) -> Iterator[Books]:
    """Open catalog and audit log. A damaged catalog is moved aside; a new one is filled from the repositories.

    Raises SecondInstance, FormatTooNew, NoSpace, Degraded.
    """
    path = state / "catalog.db"
    notes: tuple[str, ...] = ()
    try:
        catalog = Catalog.open(path)
    except CatalogDamaged as error:
        aside = _set_aside(path, now)
        notes = (f"the catalog was damaged ({error.detail}); it was moved to {aside} and is rebuilt now",)
        catalog = Catalog.open(path)
    try:
        audit = Audit.open(state / "audit.jsonl", catalog.settings, now, witness)
        try:
            for note in notes:
                facts = {"note": note}
                audit.append(
                    now, Who("dbguardd"), action="catalog.replaced", object=path.name, outcome="done", facts=facts
                )
            yield Books(catalog, audit, notes)
        finally:
            audit.close()
    finally:
        catalog.close()


def _lock(lock: int, state: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 20, 0).decode(errors="replace").strip()
        raise SecondInstance(
            f"{state}: another dbguardd owns this state directory",
            detail=f"Its process id is {pid}." if pid else "",
            hints=[*([f"ps -fp {pid}"] if pid else []), "systemctl status dbguardd"],
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise _unusable(state, error) from error


def _set_aside(path: Path, now: datetime) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%SZ}")
    try:
        for suffix in ("-wal", "-shm", "-journal", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise of_file(f"{path}: is damaged and cannot be moved aside", error) from error
    return aside
