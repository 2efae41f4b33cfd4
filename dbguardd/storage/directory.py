"""A storage in a directory: on a local disk, a USB disk, or a mounted network file system.

All work is relative to a directory that is held open, so that no path can be replaced during it. Symbolic links inside
the storage are refused. Objects are read-only files (0400) of the daemon's user, directories are 0700.
"""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import stat
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from dbguardd.errors import (
    FULL,
    Conflict,
    Damaged,
    Degraded,
    GuardError,
    NoSpace,
    ObjectMissing,
    Unreachable,
    Unsupported,
)
from dbguardd.storage.base import MAX_OBJECT, Buffer, Capabilities, Entry
from dbguardd.storage.calls import Calls
from dbguardd.storage.names import as_parts, as_range, is_part, split_name, split_prefix
from dbguardd.storage.probe import try_out
from dbguardd.storage.publish import (
    STALE_SECONDS,
    Draft,
    NotDurable,
    owner_of,
    sweep_orphans,
    sync_directory,
    sync_file,
)
from dbguardd.storage.room import Limits, Room

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: a planted pipe must not hang us
_PROBE = "probe-"
_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))


class Directory:
    """Objects are files below one directory. Safe for several threads, processes and hosts at the same time."""

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        limits: Limits | None = None,
        calls: Calls | None = None,
        nameless: bool = True,
    ) -> None:
        """Open the directory; `create` creates it (0700) if it is missing.

        Without `create` a missing directory raises Unreachable: the mount point of an unplugged disk must not be
        filled. `nameless` False forces temporary names where unnamed files (O_TMPFILE) would work.
        """
        self._path = path
        self._calls = calls or Calls()
        self._durable_folders: set[str] = set()
        self._syncs_folders = True
        self._failure = ""
        try:
            if create:
                self._create()
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.close = weakref.finalize(self, _close, self._root)
            sweep_orphans(self._calls, self._root)
        except OSError as error:
            raise _outcome(path, str(path), error) from error
        self._room = Room(limits or Limits())
        self._draft = Draft(self._calls, self._root, owner_of(os.getpid()), nameless=nameless)

    @property
    def url(self) -> str:
        return f"directory:{self._path}"

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        *folders, last = split_name(name)
        parts = as_parts(name, data)
        if self._failure:
            raise self._degraded(name, self._failure)
        with self._told(name, storing=sum(map(len, parts))), self._inside(folders, create=True) as folder:
            if self._has(folder, last) or not self._write(folder, name, last, parts):
                self._compare(folder, name, last, parts)
            self._sync(folder)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with self._told(name), self._opened(name) as (fd, size):
            wanted = as_range(size, start, length)
            if wanted is None or wanted[1] > MAX_OBJECT:
                asked = f"{'all' if length is None else length} bytes from {start}"
                raise Damaged(f"{name}: not as long as it should be", detail=f"{self.url}: {size}, asked for {asked}")
            return b"".join(_pieces(fd, *wanted))

    def list(self, prefix: str) -> Iterator[Entry]:
        with self._told(prefix or str(self._path)):
            yield from self._walk(*split_prefix(prefix))

    def delete(self, name: str) -> None:
        *folders, last = split_name(name)
        with suppress(ObjectMissing), self._told(name), self._inside(folders) as folder:
            size = os.stat(last, dir_fd=folder, follow_symlinks=False).st_size
            self._calls.unlink(last, dir_fd=folder)
            self._room.changed(-size)
            self._sync(folder)  # a deleted object must not reappear after a power cut

    def stat(self, name: str) -> Entry:
        *folders, last = split_name(name)
        with self._told(name), self._inside(folders) as folder:
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
            self._must_be_file(name, found)
            return _entry(name, found)

    def probe(self) -> Capabilities:
        for left in self.list(_PROBE):  # left by killed processes
            if self._calls.now() - left.modified_at.timestamp() > STALE_SECONDS:
                self.delete(left.name)
        name = f"{_PROBE}{self._calls.random(8).hex()}"
        create_only, reads, skew = try_out(self, name, self._calls.now())
        free, total, keep = self._room.usable(self._calls.statvfs(self._root), self._count)
        return Capabilities(create_only, reads, self._syncs_folders, skew, free, total, keep)

    # ------------------------------------------------------------------------------------------------- writing

    def _create(self) -> None:
        with suppress(FileExistsError):
            self._calls.mkdir(self._path, 0o700)
        parent = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._sync(parent)
        finally:
            _close(parent)

    def _write(self, folder: int, name: str, last: str, parts: Sequence[memoryview]) -> bool:
        """Link a durable file to its name; False if the name was taken. A second file is tried if fsync fails."""
        size = sum(map(len, parts))
        self._room.need(self._path, size, self._calls.statvfs(self._root), self._count)
        try:
            try:
                written = self._draft.publish(folder, last, parts)
            except NotDurable:
                written = self._draft.publish(folder, last, parts)
        except NotDurable as error:
            raise self._degraded(name, str(error)) from error
        self._room.changed(size * written)
        return written

    def _has(self, folder: int, last: str) -> bool:
        try:
            os.stat(last, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _count(self) -> int:
        return sum(entry.size for entry in self.list(""))

    def _compare(self, folder: int, name: str, last: str, parts: Sequence[memoryview]) -> None:
        """Accept an existing object if it has the same bytes, and make it durable; else raise Conflict."""
        try:
            fd = os.open(last, _READ, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Conflict(f"{name}: a symbolic link has this name", detail=self.url) from error
            raise
        try:
            size, found = sum(map(len, parts)), os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size or not _same(fd, parts):
                detail = f"{self.url}: {found.st_size} bytes there, {size} bytes to store"
                raise Conflict(f"{name}: exists with other content", detail=detail)
            try:
                sync_file(self._calls, fd)  # another process's copy may never have been synced
            except NotDurable as error:
                raise self._degraded(name, str(error)) from error
        finally:
            _close(fd)

    def _sync(self, folder: int) -> None:
        """Make the entries of an open directory durable. There is no second try: the name cannot be taken back."""
        try:
            self._syncs_folders &= sync_directory(self._calls, folder)
        except NotDurable as error:
            raise self._degraded("a directory", str(error)) from error

    def _degraded(self, name: str, why: str) -> Degraded:
        # From here on this process stores nothing: an fsync that succeeds after a failed one proves nothing.
        self._failure = why
        return Degraded(f"{name}: could not be made durable", detail=f"{self.url}: fsync: {why}")

    # ------------------------------------------------------------------------------------------------- finding

    @contextmanager
    def _inside(self, folders: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """Hold the directory of an object open, without following symbolic links; `create` creates it durably."""
        held = [self._root]
        try:
            for depth, part in enumerate(folders, 1):
                path = "/".join(folders[:depth])
                held.append(self._enter(held[-1], part, path, create))
                if create and path not in self._durable_folders:
                    # Also if it exists: the process that created it may have been killed before it was durable.
                    self._sync(held[-2])
                    self._durable_folders.add(path)
            yield held[-1]
        finally:
            for fd in held[1:]:
                _close(fd)

    def _enter(self, parent: int, part: str, path: str, create: bool) -> int:
        try:
            return os.open(part, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                self._calls.mkdir(part, 0o700, dir_fd=parent)
            return os.open(part, _FOLDER, dir_fd=parent)
        except NotADirectoryError as error:
            if not stat.S_ISREG(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode):
                raise
            kind = Conflict if create else ObjectMissing
            raise kind(f"{path}: an object, so there are none below it", detail=self.url) from error

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, int]]:
        *folders, last = split_name(name)
        with self._inside(folders) as folder:
            fd = os.open(last, _READ, dir_fd=folder)
            try:
                found = os.fstat(fd)
                self._must_be_file(name, found)
                yield fd, found.st_size
            finally:
                _close(fd)

    def _must_be_file(self, name: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{name}: not a file", detail=f"{self.url}: {stat.filemode(found.st_mode)}")

    def _walk(self, folders: Sequence[str], start: str) -> Iterator[Entry]:
        """Yield the objects below `folders` in name order, holding one directory's entries in memory at a time."""
        path = "".join(f"{part}/" for part in folders)
        for name, about in self._scan(folders, start):
            if stat.S_ISREG(about.st_mode):
                yield _entry(path + name, about)
            elif stat.S_ISDIR(about.st_mode):
                yield from self._walk([*folders, name[:-1]], "")
            elif stat.S_ISLNK(about.st_mode):
                raise Unreachable(f"{path}{name}: a symbolic link, not followed", detail=self.url)

    def _scan(self, folders: Sequence[str], start: str) -> Sequence[tuple[str, os.stat_result]]:
        """Return the entries of one directory, sorted as full names sort: a directory counts with its slash."""
        found = []
        with suppress(FileNotFoundError), self._inside(folders) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(start) and is_part(entry.name):
                    with suppress(FileNotFoundError):  # deleted in between
                        about = entry.stat(follow_symlinks=False)
                        found.append((entry.name + "/" * stat.S_ISDIR(about.st_mode), about))
        if not found:
            self._must_be_there()
        return sorted(found, key=lambda item: item[0])

    def _must_be_there(self) -> None:
        if not os.fstat(self._root).st_nlink:
            raise OSError(errno.ESTALE, "the directory was deleted")

    @contextmanager
    def _told(self, what: str, *, storing: int | None = None) -> Iterator[None]:
        """Translate OSError into our errors; `storing` is the number of bytes that a put needs room for."""
        try:
            try:
                yield
            except FileNotFoundError as error:
                self._must_be_there()
                if storing is not None:
                    raise
                raise ObjectMissing(f"{what}: not in the storage", detail=self.url) from error
        except OSError as error:
            raise _outcome(self._path, what, error, storing) from error


def _close(fd: int) -> None:
    with suppress(OSError):  # nothing was written through it, so there is no error to miss
        os.close(fd)


def _outcome(path: Path, what: str, error: OSError, storing: int | None = None) -> GuardError:
    detail = f"directory:{path}: {error.strerror or error} ({errno.errorcode.get(error.errno or 0, 'no code')})"
    if error.errno in FULL:  # the message is the same for every object, so that repetitions are recognized
        detail = f"{what}: {error.strerror or error} ({errno.errorcode[error.errno]}); {storing or 0} bytes to store"
        message, df = f"{path}: the file system of the storage has no room", f"df -h {shlex.quote(str(path))}"
        return NoSpace(message, detail=detail, hints=[df], facts={"needed_bytes": storing})
    if storing is not None and error.errno in _NO_LINKS:
        return Unsupported(f"{what}: the file system may not make hard links", detail=detail)
    hints = [f"findmnt -T {path}", f"ls -ld {path}"]
    if error.errno in (errno.EACCES, errno.EPERM):
        own = f"install -d -o {_ourselves()} -m 0700 {shlex.quote(str(path))}  # as root; of a copy, chown -R"
        return Unreachable(f"{what}: the storage may not be read or written", detail=detail, hints=[own, *hints])
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return Unreachable(f"{what}: a directory of the storage is a symbolic link", detail=detail, hints=hints)
    if error.errno == errno.ENOENT:
        return Unreachable(f"{path}: the storage is not there; is its disk mounted?", detail=detail, hints=hints)
    return Unreachable(f"{what}: the storage does not answer as it should", detail=detail, hints=hints)


def _ourselves() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _entry(name: str, about: os.stat_result) -> Entry:
    return Entry(name, about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))


def _pieces(fd: int, start: int, length: int) -> Iterator[bytes]:
    while length:
        piece = os.pread(fd, length, start)
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        yield piece
        start, length = start + len(piece), length - len(piece)


def _same(fd: int, parts: Sequence[memoryview]) -> bool:
    place = 0
    for part in parts:
        for start in range(0, len(part), 1 << 20):
            piece = part[start : start + (1 << 20)]
            if os.pread(fd, len(piece), place) != piece.tobytes():  # memoryview compares item by item
                return False
            place += len(piece)
    return True
