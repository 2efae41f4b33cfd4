"""Atomic publishing: a file appears under its name complete and durable, or not at all.

The order matters: write into an unnamed file (or one with a temporary name), fsync it, link it to its name without
replacing anything, fsync the directory. A kill or a power cut in between leaves no half-written object, and loses none
that was acknowledged. tests/faults/test_publish_states.py enumerates the states.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.storage.calls import Calls

TEMPORARY = ".tmp-"
"""The prefix of the name of every unfinished file. No object's name begins with a dot."""

STALE_SECONDS = 24 * 3600
"""The age at which an unfinished file counts as abandoned if its owner is of another host or boot."""

_MOST_BUFFERS = 512  # for one writev; the kernel takes 1024
_NO_TMPFILE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT))
_NO_DIRECTORY_SYNC = frozenset((errno.EINVAL, errno.EOPNOTSUPP))


class NotDurable(Exception):
    """An fsync failed. The kernel may have dropped the pages and will not report it again: the file is worthless."""


def write_all(calls: Calls, fd: int, parts: Sequence[memoryview]) -> None:
    """Write every byte of `parts`, in as many calls as the kernel needs."""
    rest = [part for part in parts if len(part)]
    while rest:
        written = calls.writev(fd, rest[:_MOST_BUFFERS])
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def sync_file(calls: Calls, fd: int) -> None:
    """Make the bytes of a file durable. Raises NotDurable; OSError if only space was missing."""
    try:
        calls.fsync(fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotDurable(str(error)) from error


def sync_directory(calls: Calls, fd: int) -> bool:
    """Make the entries of a directory durable; False if this file system cannot.

    Raises NotDurable.
    """
    try:
        calls.fsync(fd)
    except OSError as error:
        if error.errno in _NO_DIRECTORY_SYNC:
            return False
        raise NotDurable(str(error)) from error
    return True


class Draft:
    """Writes files that are invisible until they are complete.

    `temporaries` is an open directory for files with a temporary name, used where the file system or a missing /proc
    rules out unnamed files.
    """

    def __init__(self, calls: Calls, temporaries: int, owner: str, *, nameless: bool = True) -> None:
        self._calls = calls
        self._temporaries = temporaries
        self._owner = owner
        self._nameless = nameless and os.path.isdir("/proc/self/fd")

    def publish(self, directory: int, name: str, parts: Sequence[memoryview]) -> bool:
        """Write `parts` and link them to `name` in the open `directory`; False if the name is taken.

        The file is durable, its name is not yet: call sync_directory next. Raises NotDurable, OSError.
        """
        with self._open(directory, name) as (fd, temporary):
            write_all(self._calls, fd, parts)
            sync_file(self._calls, fd)
            with suppress(OSError):  # so that reading it back reads the disk, and it does not evict others' pages
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                if temporary:
                    self._calls.link(temporary, name, src_dir_fd=self._temporaries, dst_dir_fd=directory)
                else:
                    self._calls.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _open(self, directory: int, name: str) -> Iterator[tuple[int, str]]:
        fd, temporary = self._create(directory, name)
        try:
            yield fd, temporary
        finally:
            with suppress(OSError):  # after fsync a failing close changes nothing; before it, the file is discarded
                self._calls.close(fd)
            if temporary:
                with suppress(OSError):  # the next open of the storage sweeps it
                    self._calls.unlink(temporary, dir_fd=self._temporaries)

    def _create(self, directory: int, name: str) -> tuple[int, str]:
        if self._nameless:
            try:
                return self._calls.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o400, dir_fd=directory), ""
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                self._nameless = False
        temporary = f"{TEMPORARY}{name}-{self._owner}-{self._calls.random(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return self._calls.open(temporary, flags, 0o400, dir_fd=self._temporaries), temporary


def owner_of(pid: int) -> str:
    """Return the owner mark of a process's files: HOST.PID.START, unique across hosts, reboots and reused pids.

    HOST identifies this boot and this pid namespace; where /proc hides them, it identifies the host's name. START is 0
    for a process that cannot be seen.
    """
    host = os.uname().nodename
    with suppress(OSError):
        host = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return f"{hashlib.sha256(host.encode()).hexdigest()[:12]}.{pid}.{_start_of(pid)}"


def _start_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def sweep_orphans(calls: Calls, directory: int) -> int:
    """Remove the unfinished files of dead owners from an open directory; return how many.

    Owners on another host or boot cannot be looked up: their files are removed if untouched for STALE_SECONDS.
    """
    swept = 0
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(TEMPORARY)]
    for name in names:
        with suppress(OSError):  # another process swept it, or the storage is read-only
            if _is_orphan(name, os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime, calls.now()):
                calls.unlink(name, dir_fd=directory)
                swept += 1
    return swept


def _is_orphan(name: str, touched: float, now: float) -> bool:
    host, _, process = name.rpartition("-")[0].rpartition("-")[2].partition(".")
    pid, _, start = process.partition(".")
    if re.fullmatch(r"[1-9][0-9]{0,8}", pid) and owner_of(int(pid)).startswith(f"{host}."):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # alive, and perhaps hidden from us in /proc
            pass
        return "0" not in (start, now_there := _start_of(int(pid))) and start != now_there
    return now - touched > STALE_SECONDS
