"""One SQLite connection that raises only errors of dbguard.

The catalog has exactly one connection, which holds it exclusively for the life of the daemon. That makes WAL mode safe
here: SQLite 3.7.0 to 3.51.2 can corrupt a database if two connections write and checkpoint at once, and in exclusive
mode there is no second connection.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dbguardd.errors import CatalogDamaged, Degraded, GuardError, Internal, NoSpace, SecondInstance

_PRIMARY = 0xFF  # the low byte of an extended result code


class Session:
    """The connection, with nested transactions. Use it only in the thread that opened it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._depth = 0

    @classmethod
    def open(cls, path: Path) -> Session:
        """Open or create the file. Raises CatalogDamaged, SecondInstance, NoSpace, Degraded."""
        _close_to_others(path)
        try:
            connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, cached_statements=256)
        except sqlite3.Error as error:
            raise _outcome(error, path) from error
        session = cls(connection, path)
        try:
            session._prepare()
        except BaseException:
            connection.close()
            raise
        return session

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        for pragma in (
            "locking_mode=EXCLUSIVE",
            "journal_mode=WAL",
            "synchronous=FULL",
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "cache_size=-1024",
            "journal_size_limit=4194304",
        ):
            self.rows(f"PRAGMA {pragma}")
        with self.transaction():  # takes the exclusive lock now instead of at the first write
            pass
        findings = [str(row[0]) for row in self.rows("PRAGMA quick_check(5)")]
        if findings != ["ok"]:
            raise CatalogDamaged(f"{self._path}: the catalog is damaged", detail="; ".join(findings))

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Run one statement and return all its rows."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _outcome(error, self._path) from error

    def row(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        """Run one statement and return its first row."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement and return how many rows it changed. Durable at the end of the outermost transaction."""
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise _outcome(error, self._path) from error

    def add(self, sql: str, values: Sequence[Any]) -> int:
        """Run one INSERT and return the row's number."""
        try:
            return self._connection.execute(sql, values).lastrowid or 0
        except sqlite3.Error as error:
            raise _outcome(error, self._path) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction, durable at the end of the outermost block."""
        if self._depth == 0:
            self.rows("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            if self._depth == 0 and self._connection.in_transaction:
                self.rows("ROLLBACK")
            raise
        self._depth -= 1
        if self._depth == 0:
            self._commit()

    def _commit(self) -> None:
        try:
            self.rows("COMMIT")
        except GuardError:
            if self._connection.in_transaction:
                self.rows("ROLLBACK")
            raise

    def close(self) -> None:
        """Checkpoint the WAL into the file and close it."""
        self._connection.close()


def _close_to_others(path: Path) -> None:
    """Create the file if needed, private to its owner whatever the umask is; SQLite gives its side files that mode."""
    # An existing file is never opened: closing it would drop the locks that this process may hold on it.
    with suppress(OSError):  # connecting will report the error
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            path.chmod(0o600)


def _outcome(error: sqlite3.Error, path: Path) -> GuardError:
    number = getattr(error, "sqlite_errorcode", None)
    detail = f"{getattr(error, 'sqlite_errorname', '')}: {error}"
    if number is None:
        return Internal(f"{path}: {error}")
    match number & _PRIMARY:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_FORMAT:
            return CatalogDamaged(f"{path}: the catalog is damaged", detail=detail)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return SecondInstance(f"{path}: another process holds the catalog", detail=detail)
        case sqlite3.SQLITE_FULL:
            return NoSpace(f"{path}: no room to write the catalog", detail=detail)
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return Degraded(f"{path}: the catalog cannot be read or written", detail=detail)
    return Internal(f"{path}: {error}", detail=detail)
