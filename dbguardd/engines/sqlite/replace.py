"""Makes the live database equal to a restored one, in place, if nobody uses it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbguardd.durable import sync_directory
from dbguardd.engines.base import REPLACED, Progress
from dbguardd.engines.landing import ASIDE, SIDES, SWAP, WORK, describe, naming, outcome, users, work_prefix
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import child
from dbguardd.engines.sqlite.live import open_live, read_header, resolve
from dbguardd.engines.sqlite.marks import KEEP
from dbguardd.engines.sqlite.publish import fresh, hold, sweep
from dbguardd.engines.sqlite.rights import give, rights_of
from dbguardd.errors import (
    GuardError,
    NoSpace,
    PlaceDenied,
    ProofFailed,
    SourceEncrypted,
    SourceInvalid,
    SourceMissing,
    TargetExists,
    TargetInUse,
    WorkerDied,
)

_INDEX = "-shm"  # derived from the WAL, so nothing is lost with it
_STEP = "replace"
_RESERVED, _CHECKSUM_BYTES = 20, 8  # in the header: how many bytes at the end of each page are not SQLite's


def replace(path: str, source: Path, progress: Progress) -> None:
    """Put the content of `source` at `path`. Raises TargetInUse, TargetExists, NoSpace, PlaceDenied, ProofFailed.

    A live database that SQLite can open is written through SQLite (`pour`). One that it cannot open is renamed, with
    its side files, to NAME.before-restore, and a copy of `source` gets its name in one rename. Side files left by a
    deleted database are renamed too. A file with checksums of the checksum VFS is also replaced by a rename: SQLite
    would change page 1, not its checksum, and the application could read nothing (sqlite.org/cksumvfs.html). If `path`
    is a link, what it leads to is replaced.
    """
    sweep(Path(os.path.realpath(path)))
    try:
        real = resolve(path)
    except SourceMissing:
        lost = os.path.realpath(path)
        _refuse_users_of_lost(lost)
        _swap(Path(lost), source, progress)
        return
    refuse_users(real)
    if _has_checksums(source):
        _swap(Path(real), source, progress, keep=False)
    # SQLite is not used on a file without a header: closing it would delete the WAL, which may be evidence.
    elif not _has_header(real) or not _pour(real, source, progress):
        _swap(Path(real), source, progress)


def _copy(source: Path, work: Path, target: Path, progress: Progress) -> None:
    try:
        with open(source, "rb") as origin, open(work, "r+b") as file:
            total, done = source.stat().st_size, 0
            while data := origin.read(1 << 20):
                done += file.write(data)
                progress(_STEP, done, total)
    except OSError as error:
        raise outcome(target, error) from error


# ------------------------------------------------------------------------------------------------ nobody uses it


def refuse_users(real: str) -> None:
    """Raise TargetInUse if a lock is held, or a process, as far as visible, has the files open."""
    with open_live(real) as live:
        holder = locks.user(live)
        busy = locks.wal_in_use_at(live.path)
    found = sorted({*_openers(real), *([holder] if holder and holder > 0 else [])})
    if holder is not None or busy or found:
        raise _in_use(real, found)


def _refuse_users_of_lost(path: str) -> None:
    """Raise TargetInUse if a process still has a deleted database open: what it writes from now on is lost."""
    found = sorted({*_openers(path), *locks.holders(f"{path}{side}" for side in SIDES)})
    if found or locks.wal_in_use_at(path):
        raise _in_use(path, found)


def refuse_others(real: str) -> None:
    """Raise TargetInUse if a visible process other than our follower of its WAL uses the database.

    This is a check before anything is stopped for a replacement; replace() itself makes no exception for any process.
    """
    lockers = {pid for pid in locks.holders([f"{real}{side}" for side in ("", *SIDES)]) if pid != os.getpid()}
    if found := sorted(pid for pid in {*_openers(real), *lockers} if not _follows(pid)):
        raise _in_use(real, found)


def _in_use(real: str, pids: list[int]) -> TargetInUse:
    named = ", ".join(map(describe, pids)) or "a process that cannot be named from here"
    what = "" if os.path.lexists(real) else ", as it was before it was deleted"
    return TargetInUse(f"{real}: in use by {named}{what}", hints=[naming(pids, real)], facts={"pids": pids})


def _follows(pid: int) -> bool:
    """Return whether a process follows a WAL for us: the engine half, or its child that holds marks."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(KEEP) in words or (b"dbguardd.worker" in words and b"engine" in words)


def _openers(real: str) -> list[int]:
    return users([f"{real}{side}" for side in ("", *SIDES)])


# ------------------------------------------------------------------------------------------------ the methods


def _has_header(real: str) -> bool:
    with open_live(real) as live:
        try:
            read_header(live)
        except (SourceInvalid, SourceEncrypted):
            return False
    return True


def _has_checksums(source: Path) -> bool:
    with open(source, "rb") as file:
        head = file.read(100)
    return len(head) > _RESERVED and head[_RESERVED] == _CHECKSUM_BYTES


def _pour(real: str, source: Path, progress: Progress) -> bool:
    """Write through SQLite in a child; return False if the live file is too broken for that."""
    last: dict[str, Any] = {}
    done, total = 0, None

    def alive() -> None:
        progress(_STEP, done, total)

    with child(["-m", "dbguardd.engines.sqlite.pour", real, source.name], source.absolute().parent) as process:
        try:
            alive()
            while "done" in (last := process.answer(alive)):
                done, total = int(last["done"]), int(last["total"])
                alive()
        except GuardError:
            # Too late to cancel if the transaction is committed already: then the replacement is a fact.
            process.end_input()
            while "done" in (last := process.answer(lambda: None)):
                pass
            if "poured" not in last:
                raise
    if "poured" in last:
        return True
    code, at = int(last.get("code", 0)) & 0xFF, last.get("at")
    if at == "lock" and code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return False
    raise _failure(real, str(last.get("error", "the process ended")), code, str(at))


def _failure(real: str, text: str, code: int, at: str) -> GuardError:
    if at == "verify":  # the transaction is over
        return ProofFailed(
            f"{real}: was replaced, and what is read back is not what was restored",
            detail=f"{text} (result code {code})",
            facts={REPLACED: True},
        )
    kind: type[GuardError] = {
        sqlite3.SQLITE_BUSY: TargetInUse,
        sqlite3.SQLITE_LOCKED: TargetInUse,
        sqlite3.SQLITE_FULL: NoSpace,
        sqlite3.SQLITE_READONLY: PlaceDenied,
        sqlite3.SQLITE_CANTOPEN: PlaceDenied,
        sqlite3.SQLITE_PERM: PlaceDenied,
        0: WorkerDied,
    }.get(code, ProofFailed)
    return kind(f"{real}: not replaced", detail=f"{text} (result code {code}, at {at})")


def _swap(real: Path, source: Path, progress: Progress, *, keep: bool = True) -> None:
    """Rename what is there and put a copy in its place; a lost file may have left its side files.

    Unless `keep`, what was there is deleted in the end, because it was a database, of which the job has a safety copy.
    The side files are renamed first: a new main file beside an old WAL would come up with the old rows (measured),
    while an old main file without its WAL is only what was to be replaced anyway.
    """
    lost, aside = not os.path.lexists(real), real.with_name(real.name + ASIDE)
    if any(os.path.lexists(f"{aside}{side}") for side in ("", *(side for side in SIDES if side != _INDEX))):
        raise TargetExists(f"{aside}: an earlier restore set a database aside there", hints=[f"ls -l {aside}*"])
    work, lock = real.with_name(f"{work_prefix(real)}{SWAP}{WORK}"), -1
    try:
        work.unlink(missing_ok=True)
        found = source.stat()
        with fresh(work, found.st_mode if lost else 0o600) as copy:
            _copy(source, copy, real, progress)
            if lost:
                give(copy, rights_of(source, found))
        lock = hold(work)
        if not lost:
            _dress(work, real)
        if not keep:
            refuse_users(str(real))  # again: copying took a while
        _rename(work, real, aside, lost=lost)
        for side in () if keep else ("", *SIDES):
            Path(f"{aside}{side}").unlink(missing_ok=True)
    except OSError as error:
        raise outcome(real, error) from error
    finally:
        work.unlink(missing_ok=True)
        if lock >= 0:
            os.close(lock)


def _rename(work: Path, real: Path, aside: Path, *, lost: bool) -> None:
    for side in SIDES:
        with suppress(FileNotFoundError):
            os.rename(f"{real}{side}", f"{aside}{side}")
    if lost:
        os.link(work, real)  # does not replace what may have appeared meanwhile
    else:
        os.link(real, aside)
        os.rename(work, real)
    sync_directory(real.parent)


def _dress(work: Path, real: Path) -> None:
    """Give the copy the owner, permissions, ACL and label of the old file, as far as we may."""
    old = real.stat()
    with suppress(PermissionError):
        os.chown(work, old.st_uid, old.st_gid)
    with suppress(OSError):
        shutil.copystat(real, work)
    os.chmod(work, old.st_mode & 0o7777)
    os.utime(work)
