"""Opens the SQLite file of a backup without restoring it: a VFS whose files are Pages, read-only and with limits.

The VFS has no other one below it, so a connection through it cannot reach any file of this host, whatever a statement
or a hostile schema tries. Sorting is done in memory, which is limited.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite.refuse import Refusals
from dbguardd.errors import GuardError
from dbguardd.flow import BLOCK_BYTES, Pages

_NAME = "dbguard-past"
_BLOCKS = 128
_CACHE_KIB = 16_000
_HEAP_BYTES = 192 << 20
_VALUE_BYTES = 64 << 20
_STEPS = 20_000  # VDBE instructions between two checks of the time: about a millisecond
_SECTOR = 4096
_LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: _VALUE_BYTES,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_SETTINGS = {
    apsw.SQLITE_DBCONFIG_DEFENSIVE: 1,
    apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA: 0,
    apsw.SQLITE_DBCONFIG_DQS_DML: 0,  # a missing column is an error, and not a string
}
_PRAGMAS = ("query_only=1", "temp_store=2", "mmap_size=0", "cell_size_check=1", f"cache_size=-{_CACHE_KIB}")

_READING = frozenset((apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_RECURSIVE))
_TELLING = frozenset(
    (
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"),
        *("user_version", "application_id", "encoding", "page_count", "page_size", "freelist_count", "schema_version"),
    )
)
"""Pragmas that return information; those that could also write cannot do so here."""
_DENIED_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"))


class Opened:
    """Connections to backups under the names of `files`; the first is `main`. The cost of a question is monitored."""

    def __init__(self, connection: apsw.Connection, vfs: _Vfs, bounds: Bounds, answer: Answer) -> None:
        self.connection, self.bounds, self.answer = connection, bounds, answer
        self._vfs = vfs
        self._end = time.monotonic() + bounds.seconds
        self._left = bounds.bytes
        self._raised: GuardError | None = None

    def fits(self, data: bytes, spare: int = 0) -> bool:
        """Write `data` if there is room for it and `spare` more bytes; return whether there was."""
        if len(data) + spare > self._left:
            return False
        self._left -= len(data)
        self.answer.write(data)
        return True

    def watch(self) -> bool:
        """Return whether SQLite must stop.

        It calls this every few thousand steps, and discards exceptions raised here.
        """
        try:
            self.answer.beat()
        except GuardError as error:
            self._raised = error
        return self._raised is not None or self.late

    @property
    def late(self) -> bool:
        """Whether the time for the question is used up."""
        return time.monotonic() > self._end

    @property
    def raised(self) -> GuardError | None:
        """The error that stopped SQLite from outside."""
        return self._raised or self._vfs.raised


@contextmanager
def opened(files: Mapping[str, Pages], bounds: Bounds, answer: Answer) -> Iterator[Opened]:
    """Open backups as the databases of one connection: the first is "main", the others are attached by name.

    Raises what Questions raises; errors of SQLite inside the block are translated, too.
    """
    vfs = _Vfs({f"/{name}": pages for name, pages in files.items()})
    refusals = Refusals(bounds.about)
    found: Opened | None = None
    try:
        apsw.hard_heap_limit(_HEAP_BYTES)
        with closing(_connect()) as connection:
            found = Opened(connection, vfs, bounds, answer)
            _prepare(connection, [name for name in files if name != "main"], found)
            yield found
    except (apsw.Error, MemoryError, UnicodeDecodeError) as error:
        if found is not None and found.raised is not None:
            raise found.raised from error
        if vfs.raised is not None:
            raise vfs.raised from error
        raise refusals.of(error, late=found is not None and found.late) from error
    finally:
        vfs.unregister()


def _connect() -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    return apsw.Connection(_uri("main"), flags=flags, vfs=_NAME)


def _uri(name: str) -> str:
    return f"file:/{name}?immutable=1&vfs={_NAME}"


def _prepare(connection: apsw.Connection, more: list[str], watched: Opened) -> None:
    """Attach the other backups, then allow nothing but reading."""
    for name in more:
        connection.execute(f"ATTACH '{_uri(name)}' AS {name}")
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    for setting, value in _SETTINGS.items():
        connection.config(setting, value)
    for limit, most in _LIMITS.items():
        connection.limit(limit, most)
    connection.limit(apsw.SQLITE_LIMIT_ATTACHED, len(more))
    connection.authorizer = _authorize
    connection.set_progress_handler(watched.watch, _STEPS)


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    telling = action == apsw.SQLITE_PRAGMA and str(first).lower() in _TELLING
    function = action == apsw.SQLITE_FUNCTION and second not in _DENIED_FUNCTIONS
    return apsw.SQLITE_OK if action in _READING or telling or function else apsw.SQLITE_DENY


class _Vfs(apsw.VFS):
    """A file system of backups, and of nothing else. `raised` is why a page could not be read."""

    def __init__(self, files: Mapping[str, Pages]) -> None:
        self._files = files
        self.raised: GuardError | None = None
        super().__init__(_NAME, None, maxpathname=64)

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # type: ignore[override]  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path not in self._files:
            raise apsw.CantOpenError(f"there is no file {path}")
        flags[1] = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_MAIN_DB
        return _File(self._files[path], self)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return pathname in self._files

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return int((time.time() / 86_400 + 2_440_587.5) * 86_400_000)

    def xCurrentTime(self) -> float:  # noqa: N802
        return time.time() / 86_400 + 2_440_587.5

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        return os.urandom(numbytes)

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds


class _File:
    """One backup as a read-only file. The blocks read last are cached."""

    def __init__(self, pages: Pages, vfs: _Vfs) -> None:
        self._pages, self._vfs = pages, vfs
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        try:
            return self._read(amount, min(offset, self._pages.size))
        except GuardError as error:
            self._vfs.raised = error
            raise apsw.IOError("a page cannot be had") from error

    def _read(self, amount: int, start: int) -> bytes:
        end, parts = min(start + amount, self._pages.size), []
        while start < end:
            number, at = divmod(start, BLOCK_BYTES)
            part = self._block(number)[at : at + end - start]
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = self._pages.block(number)
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return block

    def xFileSize(self) -> int:  # noqa: N802
        return self._pages.size

    def xLock(self, level: int) -> None:  # noqa: N802
        """Nobody writes here."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """See xLock."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xClose(self) -> None:  # noqa: N802
        self._blocks.clear()

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return _SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError("a backup is not written")

    def xTruncate(self, size: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError("a backup is not written")

    def xSync(self, flags: int) -> None:  # noqa: N802
        """There is nothing to sync."""
