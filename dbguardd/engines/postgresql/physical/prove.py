"""Proves a restored cluster: a throw-away server recovers it to the place of the backup, and reads all of it.

Nobody else can reach the server (see server.throwaway), and nothing in the cluster configures it: configuration files
are moved, before it starts, to where it cannot write, and back afterwards. It runs twice: once to recover, when no
query is run, and once to be read, when it may start no program, because functions of the cluster run then. It leaves
the cluster as it was at that place, recovered and shut down cleanly.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg

from dbguardd.engines.base import Examination, Finding, Progress, ProofQuery
from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.engines.postgresql.child import Alive, run
from dbguardd.engines.postgresql.confine import landlock
from dbguardd.engines.postgresql.connect import UNHAMPERED, Connection, connected, rows, shown, text
from dbguardd.engines.postgresql.fresh import beside, durable
from dbguardd.engines.postgresql.meaning import errors_in, library_in, outcome, refused
from dbguardd.engines.postgresql.physical import content
from dbguardd.engines.postgresql.physical.check import LOCK_MILLISECONDS, LOCKED, check_structure
from dbguardd.engines.postgresql.physical.configuration import DIRECTORY
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.queries import ask_all
from dbguardd.engines.postgresql.physical.rebuild import (
    AUTO,
    MANUAL,
    Restored,
    recovery_settings,
    starting,
    without_recovery,
)
from dbguardd.engines.postgresql.physical.segments import format_lsn, turns_of
from dbguardd.engines.postgresql.physical.snapshot_place import Snapshot
from dbguardd.engines.postgresql.server import Server, roomy, throwaway
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.errors import Degraded, GuardError, SourceChanged, SourceDamaged, SourceLocked

_OURS = "ours"
_ASIDE = ("postgresql.conf", AUTO, "pg_hba.conf", "pg_ident.conf", "server.log", "postmaster.opts", DIRECTORY, MANUAL)
"""Files that configure a server, or inform a person."""
_PAGE_BYTES = 8000  # least payload of a page of the log
_HEADS = 64  # bytes: most between two places that are separated only by a page header of the log
_NO_SETTINGS = (
    f"-c role=none -c session_preload_libraries= {UNHAMPERED} -c default_transaction_read_only=off "
    f"-c lock_timeout={LOCK_MILLISECONDS}"
)
"""Overrides what a role or a database may set, and what would act as soon as we connect."""
_DATABASES = b"SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"
_PREPARED = 1000  # transactions, at least: the setting may have been raised between the backup and a moment
_MORE_CONNECTIONS = 10  # in addition to one for each database
_LOCKS, _MOST_LOCKS = 64, 1 << 20  # of each transaction, the default; of all in the original: 300 MB
_LOG_MEGABYTES, _MOST_LOG_MEGABYTES = 80, 1024  # defaults of min_wal_size and max_wal_size
_RECOVERY = "recovery to its place in the log"
_COMMITTED = b"""
SELECT xid FROM (
  SELECT unnest(string_to_array(%s, ','))::xid8 AS xid
  UNION ALL SELECT n::text::xid8
  FROM generate_series(%s::int8, (pg_snapshot_xmax(pg_current_snapshot())::text)::int8 - 1) AS n
) AS unseen WHERE pg_xact_status(xid) = 'committed' LIMIT 1
"""


def prove(
    target: Path, restored: Restored, queries: Sequence[ProofQuery], database: str, progress: Progress
) -> Examination:
    """Recover the cluster at `target` and report what is found in it. Raises an error if no server can be started."""

    def alive(step: str = "recover") -> None:
        progress(step, 0, None)

    facts = restored.facts
    if facts.resting and restored.live:
        said = (
            "it was put back as it was kept: its own server continues from there, and no test server was started on it"
        )
        return Examination([Finding(_RECOVERY, "not configured", said)], None, {"next": starting(target, restored)})
    if not facts.superuser:
        said = "no superuser of the cluster may log in, so its content cannot be read"
        return Examination([Finding(_RECOVERY, "inconclusive", said)], None)
    tools = find_tools("postgres", facts.major, need="a backup is proven by a server of its version")
    findings: list[Finding] = []
    print_: Fingerprint | None = None
    with _configured_by_us(target) as ours:
        try:
            if not facts.resting:  # else it recovers as its own server would, at its start
                with _served(target, tools, restored, alive, recovery=True, configuration=ours):
                    findings.append(_reached(target, facts))
            with _served(target, tools, restored, alive, configuration=ours) as server:
                read = _read(server, facts.snapshots, findings, lambda: alive("read"))
                print_ = _comparable(read, facts, findings)
                findings += _examined(server, queries, database, roomy(target, lambda: alive("examine")))
        except Degraded as error:
            said = errors_in(error.detail)
            if outcome(said) != "failed":
                raise  # it says nothing about the backup
            return Examination([Finding(_RECOVERY, "failed", said[-1000:])], None, _of_live(facts))
        findings.append(_checksums(target, tools, facts, lambda: alive("checksums")))
    if not landlock():
        said = "this kernel has no landlock(7): functions of the cluster could have written where its owner may"
        findings.append(Finding("the server was kept to its directory", "not configured", said))
    durable([str(target), *restored.elsewhere])
    manual = f"{target / MANUAL} has the command that starts a server on it"
    said = starting(target, restored) if restored.live else manual
    told = {"recovery_lsn": format_lsn(facts.recovery_lsn), "next": said, **_of_live(facts)}
    return Examination(findings, print_, told)


def _of_live(facts: ClusterFacts) -> Mapping[str, str]:
    """Return how the live cluster is checked for the damage that was found in its copy."""
    check = f"/usr/lib/postgresql/{facts.major}/bin/pg_amcheck --all --install-missing"
    return {"try_live": f"runuser -u {shlex.quote(facts.owner or 'postgres')} -- {check}  # of the live cluster"}


def recover(target: Path, tools: Tools, restored: Restored, alive: Alive) -> None:
    """Recover a cluster that is discarded after use, and shut it down. Raises SourceDamaged if that fails."""
    if restored.facts.resting:
        return  # it recovers when it is started for queries
    try:
        with _served(target, tools, restored, alive, recovery=True):
            found = _reached(target, restored.facts)
    except Degraded as error:
        said = errors_in(error.detail)
        if outcome(said) != "failed":
            raise  # it says nothing about the backup
        raise SourceDamaged("the cluster cannot be recovered", detail=said[-1000:]) from error
    if found.outcome != "ok":
        raise SourceDamaged("the cluster was not recovered to the place of its backup", detail=found.detail)


def settings_for(facts: ClusterFacts) -> dict[str, str]:
    """Return the settings without which a server does not start on the cluster."""
    prepared = max(facts.prepared, 0 if facts.moment is None else _PREPARED)
    connections = _MORE_CONNECTIONS + len(facts.snapshots)
    log_megabytes = max(_LOG_MEGABYTES, 2 * facts.segment_bytes >> 20)  # no server starts with less
    return {
        "min_wal_size": f"{log_megabytes}MB",
        "max_wal_size": f"{max(log_megabytes, _MOST_LOG_MEGABYTES)}MB",
        "max_prepared_transactions": str(prepared),
        "max_connections": str(connections),
        "max_locks_per_transaction": str(_locks(facts, prepared + connections)),
    }


def _served(
    target: Path,
    tools: Tools,
    restored: Restored,
    alive: Alive,
    *,
    recovery: bool = False,
    configuration: Path | None = None,
) -> AbstractContextManager[Server]:
    facts = restored.facts
    settings = settings_for(facts)
    if recovery:
        settings |= {**recovery_settings(facts), "hot_standby": "off", "log_min_messages": "error"}  # no query is run
    user, spaces = facts.superuser, [Path(place) for place in restored.elsewhere]
    how = {"recovery": recovery, "keep": True}
    return throwaway(
        target, tools, alive, user=user, settings=settings, configuration=configuration, spaces=spaces, **how
    )


def _locks(facts: ClusterFacts, transactions: int) -> int:
    """Return max_locks_per_transaction for this many transactions: room for our locks and for all of the original's.

    Prepared transactions hold their locks here as well. A server also uses spare shared memory, so it may hold more
    than its setting.
    """
    return _LOCKS + min(facts.locks, _MOST_LOCKS) * 5 // 4 // transactions + 1


def _reached(target: Path, facts: ClusterFacts) -> Finding:
    """Compare where the recovery ended, according to the new timeline's history, with the place of the backup."""
    timeline, wanted = facts.timeline, facts.recovery_lsn
    path = target / "pg_wal" / f"{timeline + 1:08X}.history"
    told = turns_of(path.read_text(errors="replace") if path.exists() else "")
    reached = told[-1][1] if told and told[-1][0] == timeline else 0
    if (size := facts.recovery_record_bytes) is not None:  # that record is included, plus page headers within and after
        right = wanted < reached <= wanted + size + _HEADS * (1 + size // _PAGE_BYTES)
    else:  # the last record ends where the next begins, or before a page header between them
        right = facts.stop_lsn <= reached <= wanted < reached + _HEADS
    if right:
        return Finding(_RECOVERY, "ok", f"{format_lsn(wanted)} in its log")
    return Finding(
        _RECOVERY, "failed", f"{format_lsn(told[-1][1]) if told else 'nowhere'}, wanted {format_lsn(wanted)}"
    )


def _read(server: Server, snapshots: Mapping[str, str], findings: list[Finding], alive: Alive) -> Fingerprint | None:
    """Read all databases. Without snapshots there is nothing to compare with, so databases are read one at a time."""
    names = _databases(server)
    if snapshots:
        return _content(server, names, snapshots, findings, alive)
    for name in names:
        _content(server, [name], {}, findings, alive)
    return None


def _comparable(found: Fingerprint | None, facts: ClusterFacts, findings: list[Finding]) -> Fingerprint | None:
    """Return the fingerprint; None, with a finding, if the original's was taken in another form."""
    if found is None or facts.fingerprint_form == content.FORM:
        return found
    said = "another version of dbguard took it, of which the same content has another fingerprint: back up again"
    findings.append(Finding("the fingerprint of the backup", "inconclusive", said))
    return None


def _content(
    server: Server, names: Sequence[bytes], snapshots: Mapping[str, str], findings: list[Finding], alive: Alive
) -> Fingerprint | None:
    """Read every table; return None, with a finding, if the result cannot be compared with the original."""
    with ExitStack() as stack:
        connections = dict[bytes, Connection]()
        for name in names:
            try:
                connections[name] = stack.enter_context(_transaction(server, name))
            except GuardError as error:
                findings.append(refused(f"database {shown(name)}", error))
                return None
        doubt = _in_doubt(connections, snapshots) if snapshots else ""
        found: Fingerprint | None = None
        reading = "every table can be read" if snapshots else f"every table of {shown(names[0])} can be read"
        try:
            found = content.fingerprint(connections.items(), alive)
            findings.append(Finding(reading, "ok", f"{len(found.tables)} tables, {found.rows} rows"))
        except SourceDamaged as error:
            findings.append(Finding(reading, "failed", f"{error.message}. {error.detail}"))
        except (SourceChanged, SourceLocked) as error:  # nobody here changes anything
            findings.append(Finding(reading, "inconclusive", f"{error.message}: {LOCKED}"))
        except psycopg.Error as error:
            findings.append(Finding(reading, *_meaning(error)))
        if doubt:
            findings.append(Finding("the snapshot is at the position of the backup", "inconclusive", doubt))
        return None if doubt else found


def _in_doubt(connections: Mapping[bytes, Connection], snapshots: Mapping[str, str]) -> str:
    """Return why the content may differ from that of the snapshots; "" if it cannot.

    A transaction that was running in a snapshot must not be committed here: then its record lay before the place, but
    the snapshot did not see it. The opposite, a visible transaction with its record after the place, was ruled out when
    the snapshots were taken.
    """
    for name, connection in connections.items():
        said = snapshots.get(shown(name))
        if said is None:
            return f"of the database {shown(name)} no snapshot was taken"
        snapshot = Snapshot.parse(said)
        if found := rows(connection, _COMMITTED, ",".join(map(str, sorted(snapshot.running))) or None, snapshot.top):
            return f"transaction {text(found[0][0])} had committed in the log, and was not yet seen by the snapshot"
    return ""


def _examined(server: Server, queries: Sequence[ProofQuery], database: str, alive: Alive) -> Iterator[Finding]:
    """Yield findings about the structure of each database, and about the proof queries."""
    for name in _databases(server):
        try:
            with _transaction(server, name) as connection:
                yield check_structure(connection, shown(name), alive)
        except SourceLocked as error:
            yield Finding(f"structure of {shown(name)}", "inconclusive", f"{error.detail}: {LOCKED}")
        except GuardError as error:
            yield refused(f"structure of {shown(name)}", error)
    names = [shown(name) for name in _databases(server)]
    yield from ask_all(server, queries, database, names, lambda name: _open(server, name))


@contextmanager
def _transaction(server: Server, database: bytes) -> Iterator[Connection]:
    """Connect for one transaction, which is rolled back."""
    with _open(server, os.fsdecode(database)) as connection:
        connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ", prepare=False)
        yield connection


def _open(server: Server, database: str) -> AbstractContextManager[Connection]:
    return connected({**server.address(), "options": _NO_SETTINGS}, database, about="throw-away server")


def _databases(server: Server) -> list[bytes]:
    with _open(server, "template1") as connection:
        return [bytes(name) for (name,) in rows(connection, _DATABASES)]


def _meaning(error: psycopg.Error) -> tuple[str, str]:
    """Return outcome and detail for an error of the server."""
    said = f"{str(error).strip().splitlines()[0]} (SQLSTATE {error.sqlstate})"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "inconclusive", f"{said}: {LOCKED}"
    told = ". ".join([said, *getattr(error, "__notes__", ())])
    if find := library_in(said):
        told = f"{told.removesuffix('.')}. This host lacks that library. Find: {find}"
    return outcome(said, error.sqlstate), told


def _checksums(target: Path, tools: Tools, facts: ClusterFacts, alive: Alive) -> Finding:
    """Check the checksum of every page, including pages that no query reads, such as those of indexes."""
    name = "page checksums"
    if not facts.checksums:
        return Finding(name, "not configured", "the cluster has none (server stopped: pg_checksums --enable)")
    said = run([tools.path("pg_checksums"), "--check", f"--pgdata={target}"], alive)
    blocks = re.search(rb"Blocks scanned: +(\d+)", said.output)
    if said.status == 0 and blocks:
        return Finding(name, "ok", f"{blocks[1].decode()} pages")
    bad = "checksum verification failed" in said.errors
    return Finding(name, "failed" if bad else "inconclusive", said.errors[-1000:])


@contextmanager
def _configured_by_us(target: Path) -> Iterator[Path]:
    """Move the files that configure a server aside for the length of a block; yield a directory for ours.

    Both directories lie beside `target`, where its server cannot write. If we are killed they stay there until the next
    restore, and no server starts on `target`, because its configuration is missing. At the end the recovery settings
    are removed if recovery is over.
    """
    with beside(target) as (aside, _held):
        ours = aside / _OURS
        try:
            ours.mkdir(mode=0o700)
            for name in _ASIDE:
                if os.path.lexists(target / name):
                    os.rename(target / name, aside / name)
            yield ours
        finally:
            (target / "postmaster.opts").unlink(missing_ok=True)
            shutil.rmtree(ours, ignore_errors=True)
            for name in os.listdir(aside):
                os.rename(aside / name, target / name)
            aside.rmdir()
            if not (target / "recovery.signal").exists():
                settings = (target / AUTO).read_bytes() if (target / AUTO).is_file() else b""
                (target / AUTO).write_bytes(without_recovery(settings))
