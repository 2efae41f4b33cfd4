"""Method `pages`: backups of a whole cluster, page by page. Implements engines.base.Snapshots."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Examination, Probe, Progress, ProofQuery
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.connect import (
    Address,
    Connection,
    address_of,
    connected,
    free_connections,
    give_way,
    place_of,
    row,
    rows,
    shown,
    text,
)
from dbguardd.engines.postgresql.look import probe
from dbguardd.engines.postgresql.physical import snapshot_place
from dbguardd.engines.postgresql.physical.archived import archived
from dbguardd.engines.postgresql.physical.cluster import Cluster, check_same, look, tablespaces
from dbguardd.engines.postgresql.physical.content import FORM, fingerprint
from dbguardd.engines.postgresql.physical.copy import Copy, now
from dbguardd.engines.postgresql.physical.datadir import WAL
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.history import round_of
from dbguardd.engines.postgresql.physical.local import BY_PAGES, FOLLOWED, lagging, left_over
from dbguardd.engines.postgresql.physical.mode import BackupMode, BackupStop, bounded
from dbguardd.engines.postgresql.physical.names import seen
from dbguardd.engines.postgresql.physical.prove import prove
from dbguardd.engines.postgresql.physical.rebuild import Restored, rebuild
from dbguardd.engines.postgresql.physical.received import Source
from dbguardd.engines.postgresql.physical.records import Records
from dbguardd.engines.postgresql.physical.replayed import catch_up, last_record, replayed
from dbguardd.engines.postgresql.physical.segments import parse_lsn
from dbguardd.engines.postgresql.physical.way import way_to
from dbguardd.engines.postgresql.refusals import refusals
from dbguardd.engines.postgresql.roles import (
    ROLE,
    STANDBYS,
    addresses_of,
    choose_server,
    primary_of,
    servers,
    without_role,
)
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import (
    Cancelled,
    Degraded,
    GuardError,
    ServerUnreachable,
    SourceChanged,
    SourceDamaged,
    SourceInvalid,
    SourceMissing,
    Unsupported,
)
from dbguardd.facts import LogPosition as LogPlace
from dbguardd.flow import Facts, Sink, Tree

MOST_DATABASES = 64
"""A snapshot is held in each database by a separate connection."""

_SHARE = 4
"""Snapshots take at most one in this many of the generally available connections."""

_TEMPLATE = b"template1"
_SNAPSHOT_BYTES = 16 << 10  # text of all snapshots together: a server may have thousands of running transactions
_DATABASES = b"SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"
_FLUSHED = b"SELECT pg_current_wal_flush_lsn()::text"
_END_FILE = b"SELECT pg_switch_wal()::text"
_SUPERUSER = (
    b"SELECT coalesce((SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1), '')"
)


class Pages:
    """Physical backups of a cluster.

    Settings: url (not needed for a restore and its proof), continuous (whether its log is followed: true, or
    "archive"), follows (the private directory of the follower), checkpoint ("spread", or "fast"), and awaited (whether
    somebody waits for the backup; then its checkpoint is fast as well).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._address = address_of(str(settings.get("url") or ""))
        self._server: Address = self._address  # the server of the url that a backup is made of, during the backup
        self._about = place_of(self._address)
        self._continuous = settings.get("continuous") or False
        self._follows = str(settings.get("follows") or "")
        self._fast = bool(settings.get("awaited", True)) or settings.get("checkpoint") == "fast"
        self._patience = float(settings.get("patience_seconds", 120.0))
        self._staging = Path(str(settings.get("staging") or "/nonexistent"))
        self._held: tuple[snapshot_place.HeldSnapshots, Cluster] | None = None
        self._untold = ""
        self.restored: dict[Path, Restored] = {}

    def probe(self) -> Probe:
        address = choose_server(self._address, self._about)
        found = probe(address, "", writing=primary_of(self._address, self._about) if self._continuous else None)
        needed = (BY_PAGES, FOLLOWED) if self._continuous else (BY_PAGES,)
        findings = [
            replace(one, outcome="failed") if one.name in needed and one.outcome != "ok" else one
            for one in found.findings
        ]
        if self._continuous == "archive":
            findings = [one for one in findings if one.name != FOLLOWED]
            findings.append(archived(address, self._follows))
        for server in addresses_of(self._address):
            # the followed server has our slot in use
            if without_role(server) != without_role(address) or not self._continuous:
                with suppress(ServerUnreachable):
                    findings += filter(None, [left_over(server)])
        more = (servers(self._address), lagging(address))
        return replace(found, findings=(*findings, *filter(None, more)))

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        def alive(step: str = "checkpoint") -> None:
            check_held()
            progress(step, 0, None)

        def records(step: str) -> Records:
            where, tell = (f"{copy.directory.path}/{WAL}", cluster.log.timeline), partial(alive, step)
            return Records(tools, *where, tell, self._unreadable, reach=partial(copy.reach, alive=tell))

        def copied(done: int) -> None:
            check_held()
            progress("copy", done, None)

        self.release()
        self._server = choose_server(self._address, self._about)
        with ExitStack() as stack:
            keeper, cluster = self._look(stack)
            sink.admit(known(keeper, cluster))
            tools = find_tools(
                "pg_waldump", cluster.major, need="the place of a snapshot in the log is looked up by it"
            )
            mode = BackupMode(keeper, cluster.log, standby=cluster.standby, fast=self._fast)
            slot = mode.hold()
            source = Source(cluster, self._server, self._about, [keeper], slot, self._staging, self._patience)
            way = stack.enter_context(way_to(keeper, cluster, slot))
            stack.enter_context(bounded(self._server, self._about) if cluster.bounded else nullcontext())
            held = stack.enter_context(ExitStack())
            check_held = held.enter_context(way.held(source, source.session(held)))
            begun, at = now(), datetime.now(UTC)
            copy = stack.enter_context(way.copying(source, sink, begun, copied))
            ended = copy.all(mode, alive)
            if cluster.standby:
                catch_up(keeper, at, partial(alive, "standby"))
            self._check_replayed(keeper, cluster, records("log"), (ended.start, ended.stop))
            copy.directory.check_walked()
            with copy.log(ended) as write:  # writes most of it before snapshots hamper others
                snapshots = self._place(source, records("snapshot"), ended, stack) if compared else None
                end = _end(keeper, cluster) if snapshots is None else snapshots.end
                self._check_replayed(keeper, cluster, records("log"), (ended.next, end))
                write(ended.next, end)
            held.close()
            mode.let_go()
            if self._continuous == "archive":
                rows(keeper, _END_FILE)  # so that the archived log reaches the place of the backup, for a proof
            facts = self._facts(keeper, cluster, copy, ended, snapshots)
            self._held = None if snapshots is None else (snapshots, cluster)
            facts = _placed(cluster, facts, records("log"), (ended.start, end))
            return {**facts.stored(), **self._for_others(cluster, copy, snapshots), **way.facts()}

    def _look(self, stack: ExitStack) -> tuple[Connection, Cluster]:
        keeper = stack.enter_context(connected(self._server, about=self._about))
        return keeper, look(keeper, self._about, standby=self._server.get(ROLE) in STANDBYS)

    def _place(
        self, source: Source, records: Records, ended: BackupStop, stack: ExitStack
    ) -> snapshot_place.HeldSnapshots | None:
        """Hold a snapshot of all databases whose place in the log is known; None, noting the reason, if that fails.

        A failure does not affect the copy, which is whole: a database's owner may let nobody in, no connection may be
        free, a database may be gone.
        """
        with ExitStack() as opened:
            try:
                with refusals(self._about):
                    placed = self._snapshots(source, records, ended, opened)
            except (Cancelled, SourceInvalid):
                raise
            except GuardError as error:
                self._untold = f"no snapshot of every database could be taken: {error.message}. {error.detail}"
                return None
            if placed is not None:
                kept = opened.pop_all()
                stack.push(lambda kind, *_: kept.close() if kind is not None else None)
            return placed

    def _snapshots(
        self, source: Source, records: Records, ended: BackupStop, opened: ExitStack
    ) -> snapshot_place.HeldSnapshots | None:
        keeper, cluster = source.keeper, source.cluster
        names = [bytes(name) for (name,) in rows(keeper, _DATABASES)]
        free = free_connections(keeper)
        if len(names) > min(MOST_DATABASES, free // _SHARE):
            self._untold = (
                f"there are {len(names)} databases, and {free} connections are free for everybody: snapshots are held "
                f"by at most one in {_SHARE} of these, and {MOST_DATABASES}. ALTER SYSTEM SET max_connections, and "
                "restart the server"
            )
            return None
        connections = {name: source.session(opened, os.fsdecode(name)) for name in names}
        if cluster.standby:
            placed = snapshot_place.find_replayed(connections, keeper, cluster.log, (ended.start, ended.stop), records)
        else:
            placed = snapshot_place.find(connections, keeper, ended.stop, cluster.log.segment, records)
        if placed is None:
            self._untold = "no log position matches a snapshot: too many transactions commit at the same time"
            return None
        if sum(map(len, placed.snapshots.values())) > _SNAPSHOT_BYTES:
            self._untold = "too many transactions were running"
            return None
        return placed

    def _unreadable(self, said: str) -> GuardError:
        return Degraded(f"{self._about}: pg_waldump cannot read the log", detail=said)

    def _check_replayed(self, keeper: Connection, cluster: Cluster, records: Records, between: tuple[int, int]) -> None:
        """Raise SourceChanged if the log contains what a recovery cannot repeat correctly.

        First, the creation or removal of a tablespace: replaying it empties that directory, on this host. Second, a
        copy of a database's files: the log only names source and destination, and the source in the backup is the
        template as it was when read, which may be later, or nothing.
        """
        told = {(one.kind, one.what) for one in records.between(*between, "Tablespace", "Database")}
        if (b"Database", b"CREATE_FILE_COPY") in told:
            raise SourceChanged(
                f"{self._about}: the files of a database were copied or moved during the backup",
                detail="CREATE DATABASE with STRATEGY file_copy, or ALTER DATABASE SET TABLESPACE: the log does not "
                "contain what was copied, so a recovery could copy something else.",
                hints=["back up again", "CREATE DATABASE ... STRATEGY wal_log  -- works during a backup"],
            )
        if tablespaces(keeper) != cluster.tablespaces or any(kind == b"Tablespace" for kind, _ in told):
            raise SourceChanged(
                f"{self._about}: a tablespace was made or dropped during the backup",
                detail="The log tells where, and a recovery would do it again at that very place.",
                hints=["back up again"],
            )

    def _facts(
        self,
        keeper: Connection,
        cluster: Cluster,
        copy: Copy,
        ended: BackupStop,
        placed: snapshot_place.HeldSnapshots | None,
    ) -> ClusterFacts:
        """Return what the restore and its proof need to know."""
        (superuser,) = row(keeper, (bytes,), _SUPERUSER)
        snapshots = {} if placed is None else {shown(name): said for name, said in placed.snapshots.items()}
        return ClusterFacts(
            name=os.path.basename(cluster.directory.rstrip("/")) or "postgresql",
            server_version=cluster.version,
            major=cluster.major,
            system=cluster.log.system,
            page_size=cluster.page,
            checksums=cluster.checksums,
            segment_bytes=cluster.log.segment,
            prepared=cluster.prepared,
            locks=cluster.locks,
            superuser=text(superuser),
            tablespaces={oid: (shown(name), place) for oid, (name, place) in cluster.tablespaces.items()},
            started=text(cluster.started),
            timeline=ended.timeline,
            start_lsn=ended.start,
            stop_lsn=ended.stop,
            recovery_lsn=ended.stop if placed is None else placed.at,
            snapshots=snapshots,
            snapshot_at=(ended.at if placed is None else placed.moment).isoformat(),
            fingerprint_form=FORM,
            size_bytes=copy.done,
        )

    def _for_others(self, cluster: Cluster, copy: Copy, placed: snapshot_place.HeldSnapshots | None) -> Facts:
        """Return the facts that jobs and people read, but no restore."""
        return {
            "standby": cluster.standby,
            "snapshot_tries": None if placed is None else placed.tries,
            "no_fingerprint": self._untold or None,
            "left_out": copy.directory.left_out,
            "reused_files": copy.reused,
            "summarized_files": copy.summarized,
            "no_summaries": copy.changes.unknown or None,
        }

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        if self._held is None:
            return NoFingerprint(self._untold or "no snapshot is held")
        try:
            with refusals(self._about):
                return fingerprint(self._in_turn(*self._held), lambda: progress("fingerprint", 0, None))
        except (Cancelled, SourceDamaged):
            raise
        except GuardError as error:
            return NoFingerprint(f"{error.message}. {error.detail}")

    def _in_turn(self, held: snapshot_place.HeldSnapshots, cluster: Cluster) -> Iterator[tuple[bytes, Connection]]:
        """Yield each database with its snapshot, and release it once it is read, because open snapshots hamper others.

        The template comes first: nobody can create a database while a session is connected to it.
        """
        for name in sorted(held.connections, key=lambda name: (name != _TEMPLATE, name)):
            with closing(held.connections[name]) as connection:
                give_way(connection, connection.info.backend_pid, reads_much=True)
                yield name, connection
                self._check_names(name, connection, cluster)

    def _check_names(self, name: bytes, connection: Connection, cluster: Cluster) -> None:
        """Raise SourceChanged if names changed while values were read: output functions write names as they are now."""
        before = seen(connection)
        if not before.names:
            return
        with connected(self._server, os.fsdecode(name), about=self._about) as now:
            check_same(now, cluster, self._about)
            if what := before.changed(now):
                raise SourceChanged(f"database {shown(name)}: {what} was changed while values that name it were read")

    def release(self) -> None:
        if self._held is not None:
            self._held[0].close()
        self._held, self._untold = None, ""

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        lost, self.restored[target] = rebuild(tree, target, places or {}, progress)
        return lost

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        restored = self.restored.pop(target, None)
        if restored is None:
            raise SourceMissing(f"{target}: nothing was restored there by this job", detail="a cluster is proven once")
        return prove(target, restored, queries, self._address.get("dbname", ""), progress)

    def check_unused(self) -> None:
        raise _restored_over()

    def replace(self, source: Path, progress: Progress) -> None:
        raise _restored_over()


def known(keeper: Connection, cluster: Cluster) -> Facts:
    """Return what distinguishes a cluster from another one, or from its own past, before anything of it is read."""
    told = {"system": str(cluster.log.system), "timeline": cluster.log.timeline, "standby": cluster.standby}
    if cluster.standby:
        return told
    (at,) = row(keeper, (bytes,), _FLUSHED)
    return {**told, "log_place": {"round": round_of(cluster), "position": parse_lsn(text(at))}}


def _placed(cluster: Cluster, facts: ClusterFacts, records: Records, log: tuple[int, int]) -> ClusterFacts:
    """Return the facts with the place from which a log continues after the backup. `log`: start and end of its own log.

    For a standby also set where recovery ends, because no mark was written after it.
    """
    start, end = log
    if not cluster.standby:
        return replace(facts, log_place=LogPlace(round_of(cluster), facts.recovery_lsn, end=end))
    last = last_record(records, cluster.log, start, end)
    at = LogPlace(round_of(cluster), end, end=end)
    return replace(facts, recovery_lsn=last.at, recovery_record_bytes=last.size, log_place=at)


def _end(keeper: Connection, cluster: Cluster) -> int:
    """Return where the log of a backup without a snapshot ends."""
    return replayed(keeper)[0] if cluster.standby else snapshot_place.mark(keeper)


def _restored_over() -> Unsupported:
    return Unsupported("a cluster is restored over the existing one: see PagesDeltaRestore")
