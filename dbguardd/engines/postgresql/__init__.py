"""PostgreSQL: the databases of one server, dumped with PostgreSQL's own programs and proven in a throw-away server.

Modules, in reading order: connect and refusals (what a server says), snapshot (one moment, held open), content (the
fingerprint), tools, child and confine (PostgreSQL's programs), dump, fresh and dump_files (a restore), server (a
throw-away server), sandbox (where a dump is restored for a proof), prove, look (what is there). The other method,
backing up whole clusters by their pages, is in physical; questions to backups are in questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Engine, Examination, Probe, Progress, ProofQuery, Snapshots
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.connect import address_of, connected, is_plain, major_of, place_of, version_of
from dbguardd.engines.postgresql.content import Content, Stored
from dbguardd.engines.postgresql.dump import Contents, Dumper, Part, fits_nothing, left_out, stream_of
from dbguardd.engines.postgresql.dump_files import write_files
from dbguardd.engines.postgresql.look import probe
from dbguardd.engines.postgresql.physical.archived import ArchivedLog
from dbguardd.engines.postgresql.physical.delta_restore import PagesDeltaRestore
from dbguardd.engines.postgresql.physical.follow import Pace, PagesLog
from dbguardd.engines.postgresql.physical.pages import Pages
from dbguardd.engines.postgresql.physical.rebuild import Restored
from dbguardd.engines.postgresql.physical.recovery_target import find_point
from dbguardd.engines.postgresql.prove import examine
from dbguardd.engines.postgresql.questions import PostgresqlQuestions
from dbguardd.engines.postgresql.refusals import refusals
from dbguardd.engines.postgresql.roles import choose_server, servers
from dbguardd.engines.postgresql.snapshot import Held, holding, list_closed, list_databases, roles_of
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import Cancelled, GuardError, PolicyInvalid, SourceDamaged, SourceMissing, Unsupported
from dbguardd.flow import Facts, Sink, Tree

__all__ = ["Postgresql", "open_postgresql"]

_NAMED = 100  # at most this many databases and tables are named in the facts of a backup: contents.json has all


def open_postgresql(settings: Mapping[str, Any]) -> Engine:
    """Make the engine.

    Settings: url (not needed for a restore and its proof), staging (a private directory of this job), method ("pages"
    or "dump"), lock_timeout_seconds, exclude (tables whose rows a dump leaves out), continuous (true: the log is
    streamed; "archive": the server's archiver waits for us), follows (the staging directory of the follower),
    look_seconds (how often a followed log is stored), watch_seconds (how often its server is checked), patience_seconds
    (how long a server may neither answer nor send anything).
    """
    address = address_of(str(settings.get("url") or ""))
    pace = Pace(
        float(settings.get("look_seconds", 0.5)),
        watch_seconds=float(settings.get("watch_seconds", 5.0)),
        patience_seconds=float(settings.get("patience_seconds", 120.0)),
    )
    follow = ArchivedLog if settings.get("continuous") == "archive" else PagesLog
    log, snapshots = follow(address, str(settings["staging"]), pace), Postgresql(settings)
    delta, past = PagesDeltaRestore(snapshots.restored_over), PostgresqlQuestions(settings)
    return Engine(
        "postgresql", snapshots, log=log, server_questions=past, delta_restore=delta, find_restore_point=find_point
    )


class Postgresql:
    """Backups of one server, by the method of the policy. Implements engines.base.Snapshots.

    A restore uses the method of its backup, whatever the policy says now.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._pages = Pages(settings)
        self._ways: Mapping[str, Snapshots] = {"pages": self._pages, "dump": PostgresqlDumps(settings)}
        method = str(settings.get("method", "dump"))
        if method not in self._ways:
            raise PolicyInvalid(f"method {method!r}: PostgreSQL has the methods {' and '.join(self._ways)}")
        self._way = self._restored = self._ways[method]

    def probe(self) -> Probe:
        return self._way.probe()

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        return self._way.dump(sink, progress, compared=compared)

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        return self._way.fingerprint(progress, stored)

    def release(self) -> None:
        for way in self._ways.values():
            way.release()

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        self._restored = self._ways[str(tree.facts.get("method", "dump"))]
        return self._restored.restore(tree, target, progress, places)

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        return self._restored.examine(target, queries, progress)

    def restored_over(self, target: Path, restored: Restored) -> None:
        """Note that a cluster was restored by its pages to `target`, which examine() will be called for."""
        self._restored = self._pages
        self._pages.restored[target] = restored

    def check_unused(self) -> None:
        raise _no_way_in()

    def replace(self, source: Path, progress: Progress) -> None:
        raise _no_way_in()


class PostgresqlDumps:
    """Dumps of the databases of one server. Implements engines.base.Snapshots."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._url = str(settings.get("url") or "")
        self._staging = Path(str(settings["staging"]))
        self._lock_seconds = float(settings.get("lock_timeout_seconds", 5.0))
        self._exclude = [str(pattern) for pattern in settings.get("exclude", ())]
        self._taken: _ServerDump | None = None

    def probe(self) -> Probe:
        address, only = self._where()
        found = probe(choose_server(address), only, self._exclude)
        return replace(found, findings=(*found.findings, *filter(None, [servers(address)])))

    def _where(self) -> tuple[dict[str, str], str]:
        """Return the address of the server, and the database that the url names ("" for all)."""
        address = address_of(self._url)
        only = address.get("dbname", "")
        return address, only

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        """Dump one database after the other, and read each while its snapshot is held: see engines.base.

        So the fingerprint is complete when all are dumped. fingerprint() reports what prevented it.
        """
        self.release()
        several, only = self._where()
        address = choose_server(several)
        progress("connect", 0, None)
        with connected(address) as connection:
            version, major, plain = version_of(connection), major_of(connection), is_plain(connection)
            databases = list_databases(connection, only)
            closed = [] if only else [name for name, _ in list_closed(connection)]
        tools = find_tools("pg_dump", major, or_newer=True, need="the backup is made with it")
        roles, passwords = roles_of(address)
        dumper = Dumper(address, tools, sink, progress, self._lock_seconds, plain=plain)
        taking = _ServerDump(dumper, self._exclude, progress, compared=compared)
        for database in databases:
            try:
                with holding(address, database, self._lock_seconds, lambda: progress("connect", 0, None)) as held:
                    taking.take(held)
            except SourceMissing:
                if only:
                    raise  # otherwise it was dropped since the list was made, so nothing is lost
        if not taking.parts:
            raise SourceMissing(f"{place_of(address)}: has no database")
        dumper.globals(taking.parts[0].database.name, passwords=passwords)
        contents = Contents(version, tuple(taking.parts), tuple(roles), passwords, tools.version)
        dumper.contents(contents)
        self._taken = taking
        return {**_facts(contents), **taking.facts(), "left_out": closed[:_NAMED]}

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        progress("fingerprint", 0, None)
        if self._taken is None:
            raise SourceMissing("no snapshot is at hand", detail="dump() makes it, release() ends it")
        return self._taken.fingerprint()

    def release(self) -> None:
        self._taken = None

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        write_files(tree, target, progress, address_of(self._url))
        return []

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        only = self._where()[1] if self._url else ""
        return examine(target, self._staging, queries, progress, only)

    def check_unused(self) -> None:
        raise _no_way_in()

    def replace(self, source: Path, progress: Progress) -> None:
        raise _no_way_in()


class _ServerDump:
    """The progress of a backup being made."""

    def __init__(self, dumper: Dumper, exclude: Sequence[str], progress: Progress, *, compared: bool) -> None:
        self._dumper, self._exclude, self._progress, self._compared = dumper, exclude, progress, compared
        self._content = Content()
        self._unread: GuardError | None = None
        self._moments: list[datetime] = []
        self._tables: dict[str, Sequence[Stored]] = {}
        self.parts: list[Part] = []

    def take(self, held: Held) -> None:
        """Dump a database, and read it if restores will be compared with it."""
        database, stream = held.database, stream_of(len(self.parts) + 1)
        excluded = left_out(database.name, held.tables, self._exclude)
        self._dumper.database(held, stream, excluded)
        names = tuple(table.shown for table in excluded)
        self.parts.append(Part(stream, database, tuple(held.extensions), names, held.large))
        self._moments.append(held.at)
        self._tables[database.name] = held.tables
        if not self._compared:
            return
        try:
            with refusals(f"database {database.name}"):
                self._content.add(held.connection, names, self._tick, large=held.large, lines=held.lines)
        except Cancelled:
            raise
        except GuardError as error:  # the dump is whole: it is kept, but its grade cannot exceed restored
            self._unread = self._unread or error

    def _tick(self, size: int) -> None:
        self._progress("fingerprint", size, None)

    def facts(self) -> dict[str, Any]:
        """Return what is known of the moments, and of what was left out."""
        excluded = [f"{part.database.name}.{name}" for part in self.parts for name in part.excluded]
        return {
            "excluded": excluded[:_NAMED],
            "excluded_count": len(excluded),
            "exclude_unmatched": fits_nothing(self._tables, self._exclude)[:_NAMED],
            "snapshot_at": min(self._moments).isoformat(),
            "snapshot_spread_seconds": round((max(self._moments) - min(self._moments)).total_seconds(), 6),
        }

    def fingerprint(self) -> Fingerprint | NoFingerprint:
        """Return the fingerprint of all databases, or what prevented it. Raises SourceDamaged."""
        if isinstance(self._unread, SourceDamaged):
            raise self._unread
        if self._unread is not None:
            return NoFingerprint(f"{self._unread.message}. {self._unread.detail}")
        return self._content.fingerprint()


def _facts(contents: Contents) -> dict[str, Any]:
    return {
        "method": "dump",
        "server_version": contents.server,
        "pg_dump_version": contents.dumped_by,
        "databases": [part.database.name for part in contents.parts][:_NAMED],
        "database_count": len(contents.parts),
        "size_bytes": sum(part.database.size_bytes for part in contents.parts),
        "roles": len(contents.roles),
        "role_passwords": contents.passwords,
    }


def _no_way_in() -> Unsupported:
    return Unsupported(
        "a dump does not replace the databases of a live server",
        detail="It is restored to a directory, with the commands that bring each database back beside the live one.",
    )
