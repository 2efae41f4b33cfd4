"""PostgreSQL: the databases of one server, dumped with PostgreSQL's own programs and proven in a throw-away server.

Modules, in reading order: connect and refusals (what a server says), snapshot (one moment, held open), content (the
fingerprint), tools, child and confine (PostgreSQL's programs), dump, reader and taking (a backup), fresh and dump_files
(a restore), server (a throw-away server), sandbox (where a dump is restored for a proof), prove, look (what is there).
The other method, backing up whole clusters by their pages, is in physical; questions to backups are in questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Engine, Examination, Probe, Progress, ProofQuery, Snapshots
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.connect import address_of, connected, is_plain, major_of, place_of, version_of
from dbguardd.engines.postgresql.dump import Contents, Dumper
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
from dbguardd.engines.postgresql.roles import choose_server, servers
from dbguardd.engines.postgresql.snapshot import list_closed, list_databases, roles_of
from dbguardd.engines.postgresql.taking import NAMED, ServerDump, at_once
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import PolicyInvalid, SourceMissing, Unsupported
from dbguardd.flow import Facts, Sink, Tree

__all__ = ["Postgresql", "open_postgresql"]


def open_postgresql(settings: Mapping[str, Any]) -> Engine:
    """Make the engine.

    Settings: url (not needed for a restore and its proof), staging (a private directory of this job), method ("pages"
    or "dump"), lock_timeout_seconds, exclude (tables whose rows a dump leaves out), continuous (true: the log is
    streamed; "archive": the server's archiver waits for us), follows (the staging directory of the follower),
    look_seconds (how often a followed log is stored), watch_seconds (how often its server is checked), patience_seconds
    (how long a server may neither answer nor send anything), stall_seconds (how long it may send nothing to a dump).
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
        self._stall_seconds = float(settings.get("stall_seconds", 600.0))
        self._exclude = [str(pattern) for pattern in settings.get("exclude", ())]
        self._taken: ServerDump | None = None

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
        """Dump the databases, some at a time, and read each while its snapshot is held: see engines.base.

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
            most = at_once(connection)
        tools = find_tools("pg_dump", major, or_newer=True, need="the backup is made with it")
        roles, passwords = roles_of(address)
        silent = self._stall_seconds
        dumper = Dumper(address, tools, sink, progress, self._lock_seconds, stall_seconds=silent, plain=plain)
        taking = ServerDump(address, dumper, self._exclude, self._lock_seconds, progress, compared=compared)
        taking.take_all(databases, most, may_vanish=not only)
        if not taking.parts:
            raise SourceMissing(f"{place_of(address)}: has no database")
        dumper.globals(taking.parts[0].database.name, passwords=passwords)
        contents = Contents(version, tuple(taking.parts), tuple(roles), passwords, tools.version)
        dumper.contents(contents)
        self._taken = taking
        return {**_facts(contents), **taking.facts(), "left_out": closed[:NAMED]}

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


def _facts(contents: Contents) -> dict[str, Any]:
    return {
        "method": "dump",
        "server_version": contents.server,
        "pg_dump_version": contents.dumped_by,
        "databases": [part.database.name for part in contents.parts][:NAMED],
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
