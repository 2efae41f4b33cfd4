"""Copies one file raw, in steps: by reflink where the file system can, else in the kernel, else by read and write."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbguardd.durable import write_at
from dbguardd.errors import FULL, NoSpace, Unreachable

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_FICLONE = 0x40049409
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


class Copy:
    """A copy in progress. The caller keeps the descriptors; see `copying`."""

    def __init__(self, source: int, target: int, name: str) -> None:
        self._source = source
        self._target = target
        self._name = name
        self._in_kernel = True
        self.position = 0
        self.cloned = False

    @property
    def source_bytes(self) -> int:
        """Size of the source."""
        return os.fstat(self._source).st_size

    def clone(self) -> bool:
        """Share all blocks at once; False if the file system cannot, or the files are on different ones."""
        try:
            fcntl.ioctl(self._target, _FICLONE, self._source)
        except OSError:
            return False
        self.position = os.fstat(self._target).st_size
        self.cloned = True
        return True

    def check_room(self, need: int) -> None:
        """Raise NoSpace, before anything is written, if `need` bytes do not fit."""
        room = os.fstatvfs(self._target)
        free = room.f_bavail * room.f_frsize
        if free < need:
            raise NoSpace(
                f"{self._name}: not enough space for the staged copy",
                detail=f"{need} bytes needed, {free} bytes free in the staging directory",
                facts={"needed_bytes": need, "free_bytes": free},
            )

    def extend(self, size: int) -> None:
        """Set the size of the copy; the part not copied yet is a hole."""
        try:
            os.ftruncate(self._target, size)
        except OSError as error:
            raise self._refused(error) from error

    def step(self, limit: int) -> bool:
        """Copy up to `limit` bytes from `position` on; False at the end of the source. Raises NoSpace, Unreachable."""
        try:
            done = self._move(limit)
        except OSError as error:
            raise self._refused(error) from error
        self.position += done
        return done > 0

    def _refused(self, error: OSError) -> NoSpace | Unreachable:
        if error.errno in FULL:
            return NoSpace(f"{self._name}: not enough space for the staged copy", detail=error.strerror or "")
        return Unreachable(f"{self._name}: cannot be copied to staging", detail=error.strerror or str(error))

    def _move(self, limit: int) -> int:
        if self._in_kernel:
            try:
                return os.copy_file_range(self._source, self._target, limit, self.position, self.position)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._in_kernel = False
        data = os.pread(self._source, limit, self.position)
        write_at(self._target, data, self.position)
        return len(data)


@contextmanager
def opened(path: str | os.PathLike[str], flags: int = os.O_RDONLY | os.O_NOFOLLOW) -> Iterator[int]:
    """Open a file until the block ends; a new file is readable only by its owner."""
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def copying(source: int, target: Path, name: str) -> Iterator[Copy]:
    """Begin a copy of the open file `source` to the new file `target`; `name` is used in errors."""
    with opened(target, NEW) as file:
        yield Copy(source, file, name)
