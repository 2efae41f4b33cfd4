"""PostgreSQL: the databases behind one server, dumped by its makers' programs and proven in a throw-away one.

Modules, in reading order: connect (what a server says), snapshot (one moment, held), content (the fingerprint), tools,
child and confine (PostgreSQL's programs), dump, place (a restore), server (a throw-away one), prove, look (what is
there).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Engine, Examination, Fingerprint, Probe, Progress, Query
from dbguardd.engines.postgresql.connect import address_of, connected, major_of, place_of, refusals, version_of
from dbguardd.engines.postgresql.content import Content
from dbguardd.engines.postgresql.dump import Contents, Dumper, Part, fits_nothing, left_out, stream_of
from dbguardd.engines.postgresql.look import probe
from dbguardd.engines.postgresql.place import write_files
from dbguardd.engines.postgresql.prove import examine
from dbguardd.engines.postgresql.snapshot import Snapshot, list_databases, roles_of
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import PolicyInvalid, SourceMissing, Unsupported
from dbguardd.flow import Facts, Sink, Tree

__all__ = ["PostgresqlDumps", "open_postgresql"]

_NAMED = 100  # so many databases and tables are named in the facts of a backup: contents.json has all


def open_postgresql(settings: Mapping[str, Any]) -> Engine:
    """Make the engine.

    Settings: url, staging (a private directory of this job), method ("dump"), lock_timeout_seconds, exclude (tables
    whose rows are left out).
    """
    return Engine("postgresql", PostgresqlDumps(settings))


class PostgresqlDumps:
    """Dumps of the databases of one server. Implements engines.base.Snapshots."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        method = str(settings.get("method", "dump"))
        if method != "dump":
            raise PolicyInvalid(f"method {method!r}: PostgreSQL has the method dump")
        self._url = str(settings.get("url") or "")
        self._staging = Path(str(settings["staging"]))
        self._lock_seconds = float(settings.get("lock_timeout_seconds", 5.0))
        self._exclude = [str(pattern) for pattern in settings.get("exclude", ())]
        self._snapshot: Snapshot | None = None
        self._contents: Contents | None = None

    def probe(self) -> Probe:
        address, only = self._where()
        return probe(address, only, self._exclude)

    def _where(self) -> tuple[dict[str, str], str]:
        """Return the address of the server, and the database that the url names; empty: all."""
        address = address_of(self._url)
        only = address.get("dbname", "")
        return address, only

    def dump(self, sink: Sink, progress: Progress) -> Facts:
        self.release()
        address, only = self._where()
        progress("connect", 0, None)
        with connected(address) as connection:
            version, major = version_of(connection), major_of(connection)
            databases = list_databases(connection, only)
        if not databases:
            raise SourceMissing(f"{place_of(address)}: has no database")
        tools = find_tools("pg_dump", major, or_newer=True, need="the backup is made with it")
        roles, passwords = roles_of(address)
        self._snapshot = Snapshot(address, self._lock_seconds)
        self._snapshot.take(databases, only)
        held = self._snapshot.held
        dumper = Dumper(address, tools, sink, progress, self._lock_seconds)
        dumper.globals(held[0].database.name, passwords=passwords)
        parts = []
        for number, one in enumerate(held, 1):
            excluded = left_out(one.database.name, one.tables, self._exclude)
            dumper.database(one, stream_of(number), excluded)
            names = tuple(table.shown for table in excluded)
            parts.append(Part(stream_of(number), one.database, tuple(one.extensions), names, one.large))
        self._contents = Contents(version, tuple(parts), tuple(roles), passwords)
        dumper.contents(self._contents)
        return self._facts(self._contents, self._snapshot, tools.version)

    def _facts(self, contents: Contents, snapshot: Snapshot, dumped_by: str) -> dict[str, Any]:
        parts = contents.parts
        tables = {held.database.name: held.tables for held in snapshot.held}
        excluded = [f"{part.database.name}.{name}" for part in parts for name in part.excluded]
        return {
            "method": "dump",
            "server_version": contents.server,
            "pg_dump_version": dumped_by,
            "databases": [part.database.name for part in parts][:_NAMED],
            "database_count": len(parts),
            "size_bytes": sum(part.database.size_bytes for part in parts),
            "roles": len(contents.roles),
            "role_passwords": contents.passwords,
            "excluded": excluded[:_NAMED],
            "excluded_count": len(excluded),
            "exclude_unmatched": fits_nothing(tables, self._exclude)[:_NAMED],
            "snapshot_at": snapshot.at.isoformat(),
            "snapshot_spread_seconds": round(snapshot.spread_seconds, 6),
        }

    def fingerprint(self, progress: Progress) -> Fingerprint:
        snapshot, contents = self._snapshot, self._contents
        if snapshot is None or contents is None:
            raise SourceMissing("no snapshot is at hand", detail="dump() makes it, release() ends it")
        content = Content()
        for held, part in zip(snapshot.held, contents.parts, strict=True):
            with refusals(f"database {part.database.name}"):
                content.add(
                    held.connection,
                    part.excluded,
                    lambda size: progress("fingerprint", size, None),
                    large=part.large,
                    lines=held.lines,
                )
        return content.fingerprint()

    def release(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
        self._snapshot = self._contents = None

    def restore(self, tree: Tree, target: Path, progress: Progress) -> Sequence[str]:
        write_files(tree, target, progress)
        return []

    def examine(self, target: Path, queries: Sequence[Query], progress: Progress) -> Examination:
        only = self._where()[1] if self._url else ""
        return examine(target, self._staging, queries, progress, only)

    def check_unused(self) -> None:
        raise _no_way_in()

    def replace(self, source: Path, progress: Progress) -> None:
        raise _no_way_in()


def _no_way_in() -> Unsupported:
    return Unsupported(
        "a dump does not replace the databases of a live server",
        detail="It is restored to a directory, with the commands that bring each database back beside the live one.",
    )
