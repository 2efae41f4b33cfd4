"""The files that a server sends as a base backup, one after the other (PostgreSQL 55.4).

The server is in backup mode meanwhile, and leaves it when the connection ends, for whatever reason. The server is not
trusted: it must send files and directories at paths below a data directory, or they are refused before anything is
kept.
"""

from __future__ import annotations

import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Mapping

import psycopg
from psycopg import pq

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.physical.datadir import TABLESPACES
from dbguardd.engines.postgresql.refusals import silent
from dbguardd.errors import ServerUnreachable, SourceChanged, SourceDenied, SourceInvalid
from dbguardd.frozen import frozen

_ASKED = (
    b"BASE_BACKUP (LABEL 'dbguard', CHECKPOINT '%s', WAL false, WAIT false, MANIFEST 'no', TABLESPACE_MAP true, "
    b"VERIFY_CHECKSUMS false)"
)
"""Without a manifest: the proof finds transfer errors, and digests of all files cost the server one CPU core."""

_WAIT_SECONDS = 0.25
_BLOCK, _MOST_BYTES = 512, 1 << 44
_HEADER = struct.Struct("100s24x12s12x8ss100x6s82x155s12x")
"""Of tar: name, size, checksum, kind, magic, prefix."""
_OCTAL = re.compile(rb"[0-7]+[ \0]*")
_FILE, _DIRECTORY = b"0", b"5"
_ARCHIVE = re.compile(rb"(base|[0-9]+)\.tar\0[^\0]*\0")


@frozen
class Entry:
    """A directory, or a file of `size` bytes, to be read from `pieces` before the next entry is requested."""

    path: str
    directory: bool
    size: int
    pieces: Callable[[], Iterator[memoryview]]


class BaseBackupStream:
    """One base backup being received. `alive` is called often; an exception from it ends the backup.

    Once data has arrived, a server that then sends nothing for `patience` seconds is given up. Before, it makes a
    checkpoint, which may take any time: immediate if `fast`, else spread.
    """

    def __init__(
        self,
        connection: Connection,
        about: str,
        spaces: Mapping[str, str],
        alive: Alive,
        patience: float,
        *,
        fast: bool = True,
    ) -> None:
        self._pq, self._about, self._alive = connection.pgconn, about, alive
        self._patience, self._sends = patience, False
        self._checkpoint = b"fast" if fast else b"spread"
        self._spaces, self._missing = spaces, {*spaces, "base"}
        self._data = memoryview(b"")
        self._archive = ""
        self.stop = ""  # where backup mode ended, once everything has arrived

    def entries(self) -> Iterator[Entry]:
        """Yield what arrives, each directory before its content; the data directory comes last."""
        self._pq.send_query(_ASKED % self._checkpoint)
        while (found := self._result()) is None or found.status != pq.ExecStatus.COPY_OUT:
            if found is None:
                raise self._wrong("it sends no base backup")
        self._sends = True
        self._fill()
        if not self._archive:
            raise self._ended("it does not begin with an archive")
        while self._archive:
            number = self._archive
            if number not in self._missing:
                raise SourceChanged(f"{self._about}: a tablespace was made during the backup", hints=["back up again"])
            self._missing.remove(number)
            if number == "base":
                yield from self._entries("")
            else:
                above = f"{TABLESPACES}/{number}"
                yield Entry(above, True, 0, lambda: iter(()))
                yield from self._entries(f"{above}/")
        self._end()

    def _end(self) -> None:
        """Read the server's final result. Raises the server's error, and SourceChanged if something is missing."""
        while (found := self._result()) is not None:
            if found.status == pq.ExecStatus.TUPLES_OK and found.ntuples == 1:
                self.stop = (found.get_value(0, 0) or b"").decode("ascii", "replace")
        if self._missing or not re.fullmatch("[0-9A-F]{1,8}/[0-9A-F]{1,8}", self.stop):
            what = ", ".join(self._spaces.get(number, "the data directory") for number in sorted(self._missing))
            raise SourceChanged(f"{self._about}: not all of its files came", detail=what, hints=["back up again"])

    def _entries(self, above: str) -> Iterator[Entry]:
        """Yield the entries of one archive, and read to its end."""
        begun = self._archive
        self._archive = ""
        while (header := self._taken(_BLOCK)) != bytes(_BLOCK):
            name, kind, size = self._parsed(header)
            path = above + os.fsdecode(name)
            if kind == _DIRECTORY:
                yield Entry(path, True, 0, lambda: iter(()))
                continue
            file = _File(self, size)
            yield Entry(path, False, size, file.pieces)
            for _ in file.pieces():
                pass
            self._taken(-size % _BLOCK)
        while not self._archive and (rest := self._some(1 << 20)):
            if any(rest):
                raise self._wrong(f"{begun}.tar: continues after its end")

    def _parsed(self, header: bytes) -> tuple[bytes, bytes, int]:
        """Return name, kind and size. Raises SourceInvalid for anything that no server writes."""
        name, size, checksum, kind, magic, prefix = _HEADER.unpack(header)
        name = name.rstrip(b"\0").removeprefix(b"./")  # entries in pg_wal are named like this
        if magic != b"ustar\0" or _number(checksum) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise self._wrong("there is no header where one should be")
        name = name.removesuffix(b"/") if kind == _DIRECTORY else name
        parts = name.split(b"/")
        if any(prefix) or b"\0" in name or any(part in (b"", b".", b"..") for part in parts):
            raise self._wrong(f"a path leads elsewhere: {name!r}")
        count = _number(size)
        if kind not in (_FILE, _DIRECTORY) or count is None or count > (_MOST_BYTES if kind == _FILE else 0):
            raise self._wrong(f"{name!r} is no file and no directory: {kind!r}, {size!r}")
        return name, kind, count

    def _taken(self, count: int) -> bytes:
        """Return exactly `count` bytes of the archive."""
        data = b""
        while len(data) < count:
            if not (more := self._some(count - len(data))):
                raise self._ended("an archive ends early")
            data += more
        return data

    def _some(self, most: int) -> memoryview:
        """Return the next bytes of the archive; none at its end."""
        if not self._data and not self._archive:
            self._fill()
        found, self._data = self._data[:most], self._data[most:]
        return found

    def _fill(self) -> None:
        """Take the next message: data of the archive, or the start of another one; nothing at the end."""
        while not self._data and (message := self._message()):
            self._alive()
            kind, body = bytes(message[:1]), message[1:]
            if kind == b"d":
                self._data = body
            elif kind == b"n" and (found := _ARCHIVE.fullmatch(body)):
                self._archive = found[1].decode()
                return
            elif kind != b"p":  # a progress report
                raise self._wrong(f"a message was not requested: {bytes(message[:20])!r}")

    def _message(self) -> memoryview:
        since = time.monotonic()
        while True:
            size, data = self._pq.get_copy_data(1)
            if size > 0:
                return data
            if size < 0:
                return memoryview(b"")
            self._wait(since)

    def _result(self) -> pq.abc.PGresult | None:
        self._alive()
        since = time.monotonic()
        while self._pq.is_busy():
            self._wait(since)
        found = self._pq.get_result()
        if found is not None and found.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
            error = psycopg.errors.error_from_result(found)
            if isinstance(error, psycopg.errors.InsufficientPrivilege):  # ours would have shown when connecting
                said = error.diag.message_primary or ""
                raise SourceDenied(f"{self._about}: the server may not read what is in its directory", detail=said)
            raise error
        if found is None and self._pq.status != pq.ConnStatus.OK:
            raise ServerUnreachable(f"{self._about}: the server has ended the connection")
        return found

    def _wait(self, since: float) -> None:
        """Report life, and wait a moment for data. Raises ServerUnreachable if none has come for too long."""
        if self._sends and time.monotonic() - since > self._patience:
            raise silent(self._about, "the server sends nothing more of its base backup", self._patience)
        self._alive()
        select.select([self._pq.socket], [], [], _WAIT_SECONDS)
        self._pq.consume_input()  # even if the socket is silent: TLS may have buffered data

    def _ended(self, what: str) -> SourceInvalid:
        """Return an error for a premature end. Raises the server's own error if it sent one, such as a read error."""
        while self._result() is not None:
            pass
        return self._wrong(what)

    def _wrong(self, what: str) -> SourceInvalid:
        return SourceInvalid(
            f"{self._about}: what it sends is not a base backup",
            detail=f"{what}. None of it is kept. No PostgreSQL server sends that: perhaps a proxy is in between.",
        )

    def some(self, most: int) -> memoryview:
        """Return the next bytes of the current file. Raises SourceInvalid if its archive ends."""
        if not (found := self._some(most)):
            raise self._ended("an archive ends early")
        return found


class _File:
    """The content of one entry."""

    def __init__(self, sent: BaseBackupStream, size: int) -> None:
        self._sent, self._left = sent, size

    def pieces(self) -> Iterator[memoryview]:
        while self._left:
            piece = self._sent.some(self._left)
            self._left -= len(piece)
            yield piece


def _number(field: bytes) -> int | None:
    """Return a number of a header: octal, or (for a large size) binary; None if it is neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0"), 8) if _OCTAL.fullmatch(field) else None
