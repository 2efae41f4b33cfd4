"""Opens a database file at rest (the staged snapshot, a restored copy) for reading, with limits and without trust."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.engines.landing import side_files
from dbguardd.engines.sqlite import content, newer
from dbguardd.engines.sqlite.child import uri

_CACHE_KIB = 16_000
"""A check that visits pages at random takes twice the CPU time with less (measured). Mapping the file would save
another third, but use memory as large as the database, and a failing disk would raise a signal instead of an error."""


@contextmanager
def open_still(path: Path, *, many_threads: bool = False) -> Iterator[sqlite3.Connection]:
    """Open `path` read-only. Raises sqlite3.Error.

    Without a WAL or journal beside it the file is opened as immutable, so that reading leaves no file behind. What only
    a newer SQLite understands is ignored (see `newer`).
    """
    alone = not any(side.exists() for side in side_files(path))
    query = "mode=ro&immutable=1" if alone else "mode=ro"
    address, version = uri(os.fspath(path.absolute()), query), newer.version_of(path)
    with closing(
        sqlite3.connect(address, uri=True, isolation_level=None, timeout=5.0, check_same_thread=not many_threads)
    ) as connection:
        newer.ignore_newer_syntax(connection, version)  # some of these pragmas need the schema
        for pragma in (
            "query_only=1",
            "trusted_schema=0",
            "cell_size_check=1",
            f"cache_size=-{_CACHE_KIB}",
            "mmap_size=0",
        ):
            connection.execute(f"PRAGMA {pragma}")
        yield connection


def is_empty(path: Path) -> bool | None:
    """Return whether no table of a database has a row; None if that is unknown. A database in use may be inspected.

    One left by an application that was killed is not inspected: reading its WAL would create a file beside it.
    """
    log, shared, journal = (side.exists() for side in side_files(path))
    if journal or (log and not shared):
        return None
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' AND rootpage > 0"
    try:
        with open_still(path) as connection:
            names = [content.quoted(str(name)) for (name,) in connection.execute(tables)]
            return not any(connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchall() for name in names)  # noqa: S608
    except sqlite3.Error:
        return None


def read_fingerprint(path: Path, progress: Progress, step: str) -> Fingerprint:
    """Return the content of a database at rest. Raises sqlite3.Error for damage, and Unread (see `newer`)."""
    total = path.stat().st_size

    def tick(done: int) -> None:
        progress(step, min(done, total), total)

    with open_still(path) as connection:
        pages, size = page_span(connection)
        if pages * size > total:
            raise content.Endless(f"the header counts {pages} pages of {size} bytes, the file has {total} bytes")
        newer.check_all_read(connection)
        return content.fingerprint(connection, total, tick)


def page_span(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return page count (from the header) and page size in bytes."""
    (pages,) = connection.execute("PRAGMA main.page_count").fetchone()
    (size,) = connection.execute("PRAGMA main.page_size").fetchone()
    return int(pages), int(size)
