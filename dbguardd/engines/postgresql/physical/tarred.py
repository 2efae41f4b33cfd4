"""The small files of a cluster as one stream: a tar archive, which a person can unpack without dbguard.

It contains no times of its creation, so unchanged files give the same bytes again. It follows the pax format
(POSIX.1-2001), of which it needs little: directories, files, and a record for a name or a size that does not fit the
old header. Reading is stricter than any tar: it accepts nothing else, each path only once and only below the target.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dbguardd.durable import write_at
from dbguardd.errors import Damaged

_BLOCK, _PIECE = 512, 1 << 20
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_FILE, _DIRECTORY, _MORE = b"0", b"5", b"x"
_NAME, _SIZE, _CHECKSUM, _KIND, _MAGIC = 0, 4, 6, 7, 9
_USTAR = b"ustar\0" + b"00"
_MOST_SIZE, _MOST_NAME, _MOST_MORE = 8**11 - 1, 100, 1 << 20
_RECORD = re.compile(rb"(\d{1,20}) (path|size)=", re.DOTALL)
_OCTAL, _DECIMAL = re.compile(rb"[0-7]{11}\0"), re.compile(rb"\d{1,20}")


class TarWriter:
    """Writes an archive into a stream; see `writing`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def directory(self, path: str) -> None:
        """Add a directory."""
        self._begin(path, _DIRECTORY, 0)

    def file(self, path: str, file: int, size: int, used: int) -> None:
        """Add an open file as a file of `size` bytes: its first `used` bytes, as far as it has them, then zeros."""
        self._begin(path, _FILE, size)
        at, end = 0, min(size, used)
        while at < end and (data := os.pread(file, min(_PIECE, end - at), at)):
            self._out.write(data)
            at += len(data)
        self._zeros(size - at + -size % _BLOCK)

    def content(self, path: str, data: bytes) -> None:
        """Add a file with this content."""
        self.pieces(path, len(data), [data])

    def pieces(self, path: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Add a file of `size` bytes from these pieces."""
        self._begin(path, _FILE, size)
        for piece in pieces:
            self._out.write(piece)
        self._zeros(-size % _BLOCK)

    def end(self) -> None:
        """Write the end of the archive."""
        self._zeros(2 * _BLOCK)

    def _begin(self, path: str, kind: bytes, size: int) -> None:
        name, more = os.fsencode(path), b""
        if len(name) > _MOST_NAME:
            more += _record(b"path", name)
        if size > _MOST_SIZE:
            more += _record(b"size", b"%d" % size)
        if more:
            self._out.write(_header(b"more", _MORE, len(more)) + more + bytes(-len(more) % _BLOCK))
        self._out.write(_header(name[:_MOST_NAME], kind, size if size <= _MOST_SIZE else 0))

    def _zeros(self, count: int) -> None:
        while count > 0:
            self._out.write(bytes(min(count, _PIECE)))
            count -= _PIECE


@contextmanager
def writing(out: BinaryIO) -> Iterator[TarWriter]:
    """Write an archive, which is ended if the block succeeds."""
    archive = TarWriter(out)
    yield archive
    archive.end()


def unpack(
    source: BinaryIO, target: Path, *, links: Collection[str] = (), over: bool = False
) -> Iterator[tuple[str, int]]:
    """Unpack an archive below `target`; yield each path with its size.

    `target` must be ours and contain no links, except for `links`: paths that lead to the directories of these names.
    With `over` it contains another state of the same files, and only differences are written. Raises Damaged for
    anything that dbguard does not write, and OSError.
    """
    while (header := _taken(source, _BLOCK)) != bytes(_BLOCK):
        name, kind, size = _parsed(header)
        if kind == _MORE:
            name, kind, size = _with_more(source, size)
        name = _checked(name.removesuffix(b"/") if kind == _DIRECTORY else name)
        path, where = target / os.fsdecode(name), os.fsdecode(name)
        if over and where not in links:
            clear(path, directory=kind == _DIRECTORY)
        if kind == _DIRECTORY and size == 0:
            if where not in links:
                path.mkdir(mode=0o700, exist_ok=path.is_dir() and not path.is_symlink())
        elif kind == _FILE:
            _place(source, path, size, over=over)
        else:
            raise Damaged(f"{name!r}: an archive of a backup has something that is no file", detail=repr(kind))
        yield os.fsdecode(name), size


def clear(path: Path, *, directory: bool) -> None:
    """Delete what is at a path unless it is a directory (or a file). Nothing may be written through a link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if directory != stat.S_ISDIR(mode) or not (directory or stat.S_ISREG(mode)):
        shutil.rmtree(path) if stat.S_ISDIR(mode) else path.unlink()


def _place(source: BinaryIO, path: Path, size: int, *, over: bool) -> None:
    anew = 0 if over else os.O_EXCL
    file = os.open(path, os.O_RDWR | os.O_CREAT | anew | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for start in range(0, size, _PIECE):
            data = _taken(source, min(_PIECE, size - start))
            if not over or os.pread(file, len(data), start) != data:  # comparing a memoryview would go byte by byte
                write_at(file, data, start)
        if over and os.fstat(file).st_size != size:  # else the unchanged file would get new timestamps
            os.ftruncate(file, size)
    finally:
        os.close(file)
    _taken(source, -size % _BLOCK)


def _header(name: bytes, kind: bytes, size: int) -> bytes:
    mode = b"0000700\0" if kind == _DIRECTORY else b"0000600\0"
    none = b"0000000\0"

    def packed(checksum: bytes) -> bytes:
        numbers = (mode, none, none, b"%011o\0" % size, b"%011o\0" % 0, checksum)
        return _HEADER.pack(name, *numbers, kind, b"", _USTAR, b"", b"", none, none, b"")

    return packed(b"%06o\0 " % sum(packed(b" " * 8)))


def _record(key: bytes, value: bytes) -> bytes:
    """Return a pax record, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def _parsed(header: bytes) -> tuple[bytes, bytes, int]:
    """Return name, kind and size. Raises Damaged."""
    fields = _HEADER.unpack(header)
    blank = header[:148] + b" " * 8 + header[156:]
    right = fields[_MAGIC] == _USTAR and fields[_CHECKSUM] == b"%06o\0 " % sum(blank)
    if not right or not _OCTAL.fullmatch(fields[_SIZE]):
        raise Damaged("an archive of a backup cannot be read: it has no header where one should be")
    return fields[_NAME].rstrip(b"\0"), fields[_KIND], int(fields[_SIZE].rstrip(b"\0"), 8)


def _with_more(source: BinaryIO, length: int) -> tuple[bytes, bytes, int]:
    """Return the header that follows a pax record, with the values of that record applied."""
    if length > _MOST_MORE:
        raise Damaged("an archive of a backup has an impossible record", detail=f"{length} bytes")
    data, told, at = _taken(source, length), dict[bytes, bytes](), 0
    _taken(source, -length % _BLOCK)
    while at < length:
        record = _RECORD.match(data, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= length or data[end - 1 : end] != b"\n":
            raise Damaged("an archive of a backup has an impossible record", detail=repr(data[at : at + 100]))
        told[record[2]], at = data[record.end() : end - 1], end
    name, kind, size = _parsed(_taken(source, _BLOCK))
    if not _DECIMAL.fullmatch(long := told.get(b"size", b"%d" % size)):
        raise Damaged("an archive of a backup has an impossible record", detail=repr(long[:100]))
    return told.get(b"path", name), kind, int(long)


def _checked(name: bytes) -> bytes:
    if not name or b"\0" in name or any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise Damaged(f"{name!r}: an archive of a backup has a path that leads elsewhere")
    return name


def _taken(source: BinaryIO, count: int) -> bytes:
    data = source.read(count) if count else b""
    if len(data) != count:
        raise Damaged("an archive of a backup ends early", detail=f"{len(data)} of {count} bytes")
    return data
