"""The target of a restore: names of work files, processes that use the target, and errors in writing it.

Work lies beside its target under a distinctive name, and is locked while it is in use. So a later restore can
distinguish what a killed one has left from what another one is using.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.errors import FULL, GuardError, NoSpace, PlaceDenied, TargetExists, Unreachable, Unsupported, Usage

SIDES = ("-wal", "-shm", "-journal")
"""What SQLite appends to the name of a database for the files beside it."""
WORK = ".dbguard"
ASIDE = ".before-restore"  # suffix of a file that is set aside, before a -wal or the like
ELSEWHERE = Path("/srv/restored")
_WORK_NAME = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(WORK)}", re.DOTALL)
_NAME_LETTERS = 200  # of the target's name: more would leave no room for the rest
SWAP = "swapping"  # in place of tempfile's 8 letters, for a restore in place
_YOUNG_SECONDS = 1.0  # work this young may not be locked yet by its creator


def side_files(database: Path) -> list[Path]:
    """Return the files that SQLite may have made beside a database, whether they exist or not."""
    return [database.with_name(f"{database.name}{side}") for side in SIDES]


def work_prefix(target: Path) -> str:
    """Return the start of the name of work for a target, for tempfile; the name ends with WORK."""
    return f".{target.name[:_NAME_LETTERS]}."


def is_work(path: Path) -> bool:
    """Return whether a path has the name of work."""
    return _WORK_NAME.fullmatch(path.name) is not None


def is_left(path: Path, found: os.stat_result) -> bool:
    """Return whether `found` at a path is work of this user, old enough to be locked if it is in use."""
    return is_work(path) and found.st_uid == os.geteuid() and time.time() - found.st_ctime >= _YOUNG_SECONDS


def users(places: Sequence[str], *, below: bool = False) -> list[int]:
    """Return the visible processes that have one of these open; with `below`, also anything in them, or are in them.

    Includes processes with an open file that had one of these names until it was deleted (proc(5)).
    """
    wanted, within = set[tuple[int, int]](), tuple(f"{place}/" for place in places) if below else ()
    gone = {f"{place} (deleted)" for place in places}
    for place in places:
        with suppress(OSError):
            found = os.stat(place)
            wanted.add((found.st_dev, found.st_ino))
    others = (name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid())
    return sorted(int(name) for name in others if _uses(name, wanted, within, gone))


def _uses(pid: str, wanted: set[tuple[int, int]], within: tuple[str, ...], gone: set[str]) -> bool:
    try:
        open_ = [f"/proc/{pid}/fd/{file}" for file in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False  # ended, or invisible to us: then only locks can show it
    for link in [*open_, *([f"/proc/{pid}/cwd"] if within else [])]:
        with suppress(OSError):
            found = os.stat(link)
            if (found.st_dev, found.st_ino) in wanted:
                return True
            if found.st_nlink == 0 and os.readlink(link) in gone:
                return True
            if within and os.readlink(link).startswith(within):
                return True
    return False


def describe(pid: int | None) -> str:
    """Return a description of a process for people."""
    if pid is None or pid <= 0:
        return "the holder has gone, or is on another host"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"


def naming(pids: Sequence[int], place: str) -> str:
    """Return a command that shows which processes use a place, and needs nothing that a host may lack."""
    if pids:
        return f"ps -fp {','.join(map(str, pids))}"
    return f"find /proc/[0-9]*/fd -lname {shlex.quote(place)} 2>/dev/null  # as root: /proc/PID/fd"


@contextmanager
def outcomes(target: Path) -> Iterator[None]:
    """Translate errors of the operating system inside the block."""
    try:
        yield
    except OSError as error:
        raise outcome(target, error) from error


def outcome(target: Path, error: OSError) -> GuardError:
    """Return our error for an error of the operating system at the target."""
    detail = error.strerror or str(error)
    match error.errno:
        case errno.EEXIST | errno.ENOTEMPTY:
            return TargetExists(f"{target}: it exists already", detail="it was created while the restore ran")
        case _ if error.errno in FULL:
            return NoSpace(f"{target}: not enough space for the restore", detail=detail)
        case errno.ENOENT | errno.ENOTDIR:
            return Usage(
                f"{target}: no such directory: {target.parent}",
                hints=[_make(target.parent)],
            )
        case errno.EACCES | errno.EPERM:
            return PlaceDenied(
                f"{target}: cannot be written",
                detail=f"{detail}: the job acts as {_user()}, who may not write to {target.parent}",
                hints=[
                    f"{_make(reachable(target.parent / 'restored', os.geteuid()))}  # and restore to a place in there"
                ],
            )
        case errno.EROFS:
            return PlaceDenied(f"{target}: cannot be written", detail=f"{detail}: no user can write there")
        case errno.ENOTSUP | errno.EMLINK:
            return Unsupported(f"{target}: the file system has no hard links", detail=detail)
        case _:
            return Unreachable(f"{target}: cannot be written", detail=detail)


def check_writable(target: Path) -> None:
    """Raise, as a restore would, if this process may not create `target`. Creates nothing."""
    with outcomes(target):
        os.stat(target.parent)
        if os.statvfs(target.parent).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _user() -> str:
    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def reachable(directory: Path, user: int) -> Path:
    """Return a directory that may be created for a user: root's home, for example, is closed to others."""
    try:
        found = [above.stat() for above in directory.parents if above.exists()]
    except OSError:  # closed for us, too
        return ELSEWHERE
    is_open = all(one.st_mode & (stat.S_IXUSR if one.st_uid == user else stat.S_IXOTH) for one in found)
    return directory if is_open else ELSEWHERE


def _make(directory: Path) -> str:
    """Return the command with which root creates a directory that this user may write and nobody else may enter."""
    return shlex.join(["install", "-d", "-o", _user(), "-m", "0700", str(directory)])
