"""SQLite: a file, copied raw while it is in use, and proven through SQLite.

Modules, in reading order: live (what is there), locks and hold (keeping it unchanged), snapshot, unmoved, wal and
rollback (reading it), follow and keep (its WAL), standby and overwrite (a copy that follows it), content (the
fingerprint), newer (syntax of a later SQLite), script (SQL text), publish and examine (restore and its proof), pour
(restore in place).
"""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from dbguardd.engines.base import Engine, Examination, Probe, Progress, ProofQuery, Questions, Standby
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.landing import outcome
from dbguardd.engines.sqlite import snapshot
from dbguardd.engines.sqlite.attempt import NAME, Budget, Moved, Snapshot
from dbguardd.engines.sqlite.child import refusal
from dbguardd.engines.sqlite.copy import NEW, opened
from dbguardd.engines.sqlite.examine import examine
from dbguardd.engines.sqlite.live import Header, State, open_live, read_header, resolve
from dbguardd.engines.sqlite.newer import Unread
from dbguardd.engines.sqlite.pace import Pace
from dbguardd.engines.sqlite.publish import fresh, sweep
from dbguardd.engines.sqlite.rights import give, rights_of
from dbguardd.engines.sqlite.script import replay, write_script
from dbguardd.engines.sqlite.still import open_still, read_fingerprint
from dbguardd.errors import (
    NoSpace,
    PolicyInvalid,
    ProofFailed,
    SourceChanged,
    SourceDenied,
    SourceInvalid,
    SourceMissing,
    Unreachable,
)
from dbguardd.flow import Facts, LogSink, Pages, Sink, Tree

__all__ = ["Sqlite", "open_sqlite"]

_PAGES, _TEXT = "database", "dump.sql"
_MACHINE = {  # problems that say nothing about the text
    sqlite3.SQLITE_FULL: NoSpace,
    sqlite3.SQLITE_IOERR: Unreachable,
    sqlite3.SQLITE_CANTOPEN: Unreachable,
}
Limits = TypeVar("Limits", Budget, Pace)
_FIXED = ((3, 44, 6), (3, 50, 7))  # older branches with the fix of the WAL-reset bug; otherwise 3.51.3


def open_sqlite(settings: Mapping[str, Any]) -> Engine:
    """Make the engine.

    Settings: path, staging (a private directory of this job), method ("pages" or "dump"), and the fields of Budget and
    Pace.
    """

    def open_standby() -> Standby:
        from dbguardd.engines.sqlite.standby import SqliteStandby  # noqa: PLC0415 - here and below: a backup needs none

        wait_seconds = _from_settings(Budget, settings).lock_timeout_seconds
        return SqliteStandby(Path(str(settings["staging"])), _PAGES, wait_seconds)

    return Engine("sqlite", Sqlite(settings), log=SqliteLog(settings), standby=open_standby, questions=open_past)


def _from_settings(kind: type[Limits], settings: Mapping[str, Any]) -> Limits:
    """Return a record with those of its fields that are settings; the others have their defaults."""
    return kind(**{one.name: settings[one.name] for one in fields(kind) if one.name in settings})


def open_past() -> Questions[Pages]:
    """Make the object that answers questions to backups. Only it needs apsw."""
    from dbguardd.engines.sqlite.questions import SqliteQuestions  # noqa: PLC0415

    return SqliteQuestions()


class SqliteLog:
    """The log of one SQLite file in WAL mode. Implements engines.base.LogSource."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._path = str(settings["path"])
        self._pace = _from_settings(Pace, settings)

    def follow(self, ship: LogSink, resume: Facts | None) -> None:
        from dbguardd.engines.sqlite.follow import follow  # noqa: PLC0415

        follow(self._path, self._pace, ship, resume)

    def unfollow(self, *, if_short: bool = False) -> None:
        """Do nothing: a read mark ends with the process that holds it."""


class Sqlite:
    """Backups of one SQLite file. Implements engines.base.Snapshots."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        method = str(settings.get("method", "pages"))
        if method not in ("pages", "dump"):
            raise PolicyInvalid(f"method {method!r}: SQLite has the methods pages and dump")
        self._path = str(settings["path"])
        self._method = method
        self._staging = Path(str(settings["staging"]))
        self._state: State | None = None  # of the live database, while its rows are still to be read in that state
        self._budget = _from_settings(Budget, settings)

    @property
    def _snapshot(self) -> Path:
        return self._staging / NAME

    def probe(self) -> Probe:
        with open_live(self._path) as live:
            header, size = read_header(live), live.found.st_size
            log = live.side("-wal")
        facts = {"path": live.path, "journal_mode": _mode(header), "log_bytes": log.size if log else 0}
        return Probe(sqlite3.sqlite_version, size, facts | _header_facts(header), tuple(_warnings(header)))

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:  # the staged copy stays anyway
        self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(Path(os.path.realpath(self._path)))
        if self._method == "pages":
            return self._hand_over(sink, progress)
        taken = snapshot.take(self._path, self._staging, self._budget, progress)
        with opened(self._snapshot) as file:
            facts = self._facts(taken, *_content(file))
        self._write_script(sink, facts, progress)
        return facts

    def _hand_over(self, sink: Sink, progress: Progress) -> dict[str, Any]:
        """Let the sink read the copy while it is made, or the live file itself.

        If that changes meanwhile: copy it first.
        """
        self._state = None
        with closing(snapshot.FollowedCopy(self._path, self._staging, self._budget, progress)) as taking:
            try:
                taking.begin()
                with taking.opened() as file:
                    content = _content(file)
                    sink.adopt(_PAGES, file, content[0].page_size, filled=taking, on_demand=taking.in_place)
                self._state = taking.taken.state
                return self._facts(taking.taken, *content)
            except Moved:
                pass
            except SourceChanged:  # the sink may have noticed it first
                if not taking.in_place:
                    raise
        taken = snapshot.take(self._path, self._staging, self._budget, progress, tries=1)
        with opened(self._snapshot) as file:
            content = _content(file)
            sink.adopt(_PAGES, file, content[0].page_size)
        return self._facts(taken, *content)

    def _write_script(self, sink: Sink, facts: Facts, progress: Progress) -> None:
        def tick(done: int) -> None:
            progress("dump", done, None)

        wal = facts["journal_mode"] == "wal"
        try:
            with open_still(self._snapshot) as connection, sink.write(_TEXT) as out:
                for piece in write_script(connection, wal, tick):
                    out.write(piece)
        except sqlite3.Error as error:
            raise refusal(self._path, str(error), _code(error)) from error

    def _facts(self, taken: Snapshot, header: Header, size: int) -> dict[str, Any]:
        return {
            **_header_facts(header),
            "method": self._method,
            "name": os.path.basename(self._path),
            "journal_mode": _mode(header),
            "size_bytes": size,
            "sqlite_version": sqlite3.sqlite_version,
            **rights_of(self._path, taken.found),
            "snapshot_at": datetime.fromtimestamp(taken.at, UTC).isoformat(),
            "way": taken.way,
            # A reader of the WAL blocks nobody; only the WAL cannot restart meanwhile.
            "blocked_seconds": 0.0 if taken.way == "wal" else round(taken.blocked_seconds, 6),
            "log_held_seconds": round(taken.blocked_seconds, 6) if taken.way == "wal" else 0.0,
            "copy_seconds": round(taken.copy_seconds, 6),
            "log_bytes": taken.log_bytes,
            "tries": taken.tries,
            "cloned": taken.cloned,
            "log_place": taken.place,
        }

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        if self._state is not None and not self._snapshot.exists():
            self._stage(self._state, stored, progress)
        if not self._snapshot.exists():
            raise SourceMissing(f"{self._path}: no snapshot is at hand", detail="dump() makes it, release() ends it")
        try:
            return read_fingerprint(self._snapshot, progress, "fingerprint")
        except Unread as unread:
            return NoFingerprint(str(unread))
        except sqlite3.Error as error:
            raise refusal(self._path, str(error), _code(error)) from error

    def _stage(self, state: State, stored: Tree | None, progress: Progress) -> None:
        """Copy what was read in place.

        If it has changed since, take its pages from the repository, which verifies them.
        """
        try:
            snapshot.again(self._path, self._staging, self._budget, progress, state)
            return
        except (Moved, SourceChanged, SourceDenied, SourceInvalid, SourceMissing) as error:
            if stored is None:
                raise SourceChanged(f"{self._path}: was changed since it was read") from error
        with opened(self._snapshot, NEW) as file:
            stored.deliver(_PAGES, file)

    def release(self) -> None:
        self._state = None
        snapshot.wipe(self._staging)

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> list[str]:
        def tick(done: int) -> None:
            progress("restore", done, None)

        tick(0)
        with fresh(target, int(tree.facts.get("mode", 0o600))) as work:
            if tree.facts.get("method") == "dump":
                _replay(tree, work, target, tick)
            else:
                _deliver(tree, work, target)
            return give(work, tree.facts)

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        found = examine(target, queries, progress)
        live = f"sqlite3 {shlex.quote(str(self._path))} 'PRAGMA integrity_check'  # of the live database"
        return Examination(found.findings, found.fingerprint, {**found.facts, "try_live": live})

    def check_unused(self) -> None:
        from dbguardd.engines.sqlite.replace import refuse_others  # noqa: PLC0415

        try:
            real = resolve(self._path)
        except SourceMissing:
            real = os.path.realpath(self._path)  # a process may still use the deleted file
        refuse_others(real)

    def replace(self, source: Path, progress: Progress) -> None:
        from dbguardd.engines.sqlite.replace import replace  # noqa: PLC0415

        replace(self._path, source, progress)


def _deliver(tree: Tree, work: Path, target: Path) -> None:
    try:
        with opened(work, os.O_RDWR | os.O_NOFOLLOW) as file:
            tree.deliver(_PAGES, file)
    except OSError as error:
        raise outcome(target, error) from error


def _replay(tree: Tree, work: Path, target: Path, tick: Callable[[int], None]) -> None:
    """Run the text in the new file. Without a journal: on any failure the whole file is discarded."""
    try:
        with tree.read(_TEXT) as text, closing(sqlite3.connect(work, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=OFF").fetchall()
            connection.execute("PRAGMA synchronous=OFF")
            replay(connection, text, tick)
    except sqlite3.Error as error:
        kind = _MACHINE.get(_code(error) & 0xFF, ProofFailed)
        what = getattr(error, "sqlite_errorname", type(error).__name__)  # SQLite's own message may quote rows
        raise kind(f"{target}: the SQL text cannot be replayed", detail=what) from error


def _content(file: int) -> tuple[Header, int]:
    return Header.parse(os.pread(file, 100, 0).ljust(100, b"\0")), os.fstat(file).st_size


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)


def _mode(header: Header) -> str:
    return "wal" if header.wal else "rollback"


def _header_facts(header: Header) -> dict[str, Any]:
    return {
        "page_size": header.page_size,
        "page_count": header.page_count,
        "change_counter": header.change_counter,
        "encoding": header.encoding,
        "auto_vacuum": header.auto_vacuum,
        "user_version": header.user_version,
        "application_id": header.application_id,
        "written_by": header.written_by,
    }


def _warnings(header: Header) -> list[str]:
    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or any(version[:2] == good[:2] and version >= good for good in _FIXED)
    if header.wal and not fixed:
        return [
            f"SQLite {sqlite3.sqlite_version} on this host has the WAL-reset bug (fixed in 3.51.3); dbguard never "
            "checkpoints the live database, but the application may be affected"
        ]
    return []
