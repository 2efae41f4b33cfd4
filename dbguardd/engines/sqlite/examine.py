"""Examines a restored database: its size, SQLite's own checks, the proof queries, and its fingerprint."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dbguardd.engines.base import Examination, Finding, Progress, ProofQuery, judge
from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.engines.sqlite.content import text as as_text
from dbguardd.engines.sqlite.newer import Unread, check_all_read, ignores_schema
from dbguardd.engines.sqlite.still import open_still, page_span, read_fingerprint
from dbguardd.errors import GuardError

_QUERY_SECONDS = 60.0
_STEPS = 100_000  # VDBE instructions between two checks of the time
_COMPLAINTS = 20
_DENIED_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"))
_MACHINE = frozenset(
    (
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY),
    )
)
"""A lack of space for a temporary file, or of rights: these say nothing about the restored database."""
_FILE = frozenset((sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS))
_LACKS = re.compile("no such collation sequence: |unknown function: |no such function: ")
_READING = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE))


def examine(target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
    """Open `target` and run all checks that do not need the backup. Raises only what progress raises."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - half a MiB that copying and following can save

    findings: list[Finding] = []
    found: Fingerprint | None = None
    facts: dict[str, object] = {}
    try:
        with open_still(target, many_threads=True) as checker, ThreadPoolExecutor(1) as pool:
            facts = _facts(checker, target)
            findings.append(_size(checker, target))
            # SQLite runs its checks in C while this thread, slowed by Python, reads the content.
            checks = pool.submit(_own_checks, checker)
            try:
                found = _content(target, findings, progress)
                while not checks.done():
                    progress("examine", 0, None)
                    _rest(checks.done)
            finally:
                checker.interrupt()
            findings.extend(checks.result())
        findings.extend(_proof(target, queries, progress))
    except sqlite3.Error as error:
        findings.append(Finding("open", _outcome(error), f"{target}: {error}"))
    return Examination(tuple(findings), found, facts)


def _rest(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 0.5
    while not done() and time.monotonic() < end:
        time.sleep(0.005)


def _facts(connection: sqlite3.Connection, target: Path) -> dict[str, object]:
    pages, size = page_span(connection)
    return {
        "size_bytes": target.stat().st_size,
        "page_count": pages,
        "page_size": size,
        "sqlite_version": sqlite3.sqlite_version,
    }


def _size(connection: sqlite3.Connection, target: Path) -> Finding:
    pages, size = page_span(connection)
    have = target.stat().st_size
    if have < pages * size:
        return Finding("size", "failed", f"{have} bytes, but the header counts {pages} pages of {size} bytes")
    return Finding("size", "ok", f"{pages} pages of {size} bytes")


def _own_checks(connection: sqlite3.Connection) -> list[Finding]:
    return [_integrity(connection), _foreign_keys(connection)]


def _integrity(connection: sqlite3.Connection) -> Finding:
    name = "integrity_check"
    try:
        check_all_read(connection)  # integrity_check reports the pages of objects that it does not know as lost
        lines = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_COMPLAINTS})")]
    except Unread as unread:
        return Finding(name, "inconclusive", str(unread))
    except sqlite3.Error as error:
        # An index needs a collation or function that only the application has: nothing is known about the file.
        missing = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_ERROR and _LACKS.match(str(error))
        return Finding(name, "inconclusive" if missing else _outcome(error), str(error))
    if lines == ["ok"]:
        return Finding(name, "ok")
    # An index that is only partly understood may be built wrongly here, and then seems to lack rows.
    return Finding(name, "inconclusive" if ignores_schema(connection) else "failed", "; ".join(lines))


def _foreign_keys(connection: sqlite3.Connection) -> Finding:
    """Count rows without a parent. They are content, as in the live database: reported, but no failure."""
    name = "foreign_key_check"
    try:
        orphans: dict[str, int] = {}
        for table, *_ in connection.execute("PRAGMA foreign_key_check"):
            orphans[table] = orphans.get(table, 0) + 1
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
            return Finding(name, _outcome(error), str(error))
        return Finding(name, "ok", f"not applicable: {error}")
    said = ", ".join(f"{count} rows of {table} have no parent row" for table, count in sorted(orphans.items()))
    return Finding(name, "ok", said)


def _outcome(error: sqlite3.Error) -> str:
    """Return what an error of SQLite says about the restored database: "failed", or "inconclusive".

    A backup whose test restore failed counts for nothing and is deleted; a full disk on this host must not cause that.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return "inconclusive" if code & 0xFF in _MACHINE and code not in _FILE else "failed"


def _content(target: Path, findings: list[Finding], progress: Progress) -> Fingerprint | None:
    try:
        found = read_fingerprint(target, progress, "examine")
    except Unread as unread:
        findings.append(Finding("content", "inconclusive", str(unread)))
        return None
    except sqlite3.Error as error:
        findings.append(Finding("content", _outcome(error), str(error)))
        return None
    tables, rows = len(found.tables), found.rows
    findings.append(Finding("content", "ok", f"{tables} table{'s' * (tables != 1)}, {rows} row{'s' * (rows != 1)}"))
    return found


# ------------------------------------------------------------------------------------------------ proof queries


def _proof(target: Path, queries: Sequence[ProofQuery], progress: Progress) -> list[Finding]:
    if not queries:
        return [Finding("proof queries", "not configured")]
    return [_ask(target, query, progress) for query in queries]


def _ask(target: Path, query: ProofQuery, progress: Progress) -> Finding:
    """Run one query. Values of rows are not reported: findings are kept, logged, and shown to all who may read."""
    name = f"query: {query.sql}"
    ignoring = running = False
    raised: list[GuardError] = []
    end = time.monotonic() + _QUERY_SECONDS

    def watch() -> int:
        try:
            progress("examine", 0, None)
        except GuardError as error:  # SQLite discards exceptions of a callback
            raised.append(error)
        return int(bool(raised) or time.monotonic() > end)

    try:
        with open_still(target) as connection:
            ignoring = ignores_schema(connection)
            connection.set_progress_handler(watch, _STEPS)
            connection.set_authorizer(_authorize_tables if ignoring else _authorize)
            connection.text_factory = as_text
            connection.execute(f"EXPLAIN {query.sql}").close()  # up to here errors concern the query, not rows
            running = True
            rows = connection.execute(query.sql).fetchmany(2)
    except sqlite3.Error as error:
        if raised:
            raise raised[0] from error
        if time.monotonic() > end:
            return Finding(name, "inconclusive", f"no answer within {_QUERY_SECONDS:.0f} s")
        what = getattr(error, "sqlite_errorname", type(error).__name__)
        unknown = ignoring and not running  # the query may use what this SQLite ignores
        outcome = "inconclusive" if unknown else _outcome(error)
        return Finding(name, outcome, f"{what} while it ran" if running else str(error))
    if len(rows) != 1 or len(rows[0]) != 1:
        return Finding(name, "failed", "the query must return exactly one row of one value")
    return judge(name, query, rows[0][0])


def _authorize_tables(
    action: int, first: str | None, second: str | None, database: str | None, source: str | None
) -> int:
    """Like _authorize(), but refuse reading through views: one that is not fully understood may give wrong rows."""
    return sqlite3.SQLITE_DENY if source else _authorize(action, first, second, database, source)


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action in _READING or (action == sqlite3.SQLITE_FUNCTION and second not in _DENIED_FUNCTIONS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
