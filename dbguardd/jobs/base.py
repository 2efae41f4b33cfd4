"""What a job is: one verb, and everything that it may use while it runs.

A job is a plain function from a Run and a request to a JSON result. It runs in the repository half of a worker; the
engine is on the other side of the seam. It is the same function whether it is scheduled, requested over the socket or
run by hand after a disaster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dbguardd.engines.base import (
    DeltaRestore,
    Finding,
    FindRestorePoint,
    LogSource,
    Progress,
    ScratchRestore,
    ServerQuestions,
    Snapshots,
    Standby,
)
from dbguardd.engines.landing import check_writable
from dbguardd.flow import Pages
from dbguardd.frozen import frozen
from dbguardd.repository import Backup, Repository
from dbguardd.requests import Request
from dbguardd.rules.chains import LogView
from dbguardd.storage.base import Storage

R = TypeVar("R", bound=Request)
Result = dict[str, Any]

_FINDINGS, _TEXT = 500, 2000
_EXCLUDED = 100


class Report(Protocol):
    """Sends the daemon a fact to keep: an event (`noun.verb`) and what goes into the catalog."""

    def __call__(self, event: str, /, **facts: Any) -> None: ...


@frozen
class Run:
    """One execution of a job. `spec` is what the policy says about the database, storage and key (JSON)."""

    id: str
    actor: str
    spec: Mapping[str, Any]
    storage: Storage
    repository: Repository
    snapshots: Snapshots
    log: LogSource
    staging: str
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    report: Report
    progress: Progress
    cancelled: Callable[[], bool]
    chance: Callable[[], float] = random.random  # from 0 to 1
    questions: ServerQuestions[Pages | ScratchRestore] | None = None
    standby: Standby | None = None
    delta_restore: DeltaRestore | None = None
    find_restore_point: FindRestorePoint | None = None
    check_writable: Callable[[Path], None] = check_writable  # as the user who would restore

    @property
    def database(self) -> Mapping[str, Any]:
        """What the policy says about the database of this job."""
        database: Mapping[str, Any] = self.spec["database"]
        return database

    @property
    def name(self) -> str:
        """The name of the database of this job."""
        return str(self.database["name"])


@frozen
class Job(Generic[R]):
    """One verb: its name, its request, and its function."""

    name: str
    request: type[R]
    run: Callable[[Run, R], Result]


def excluded(backup: Backup) -> tuple[list[str], int]:
    """Return the first tables whose rows the policy has left out of a backup, and how many there are."""
    facts = backup.facts
    return [_cut(name) for name in facts.excluded[:_EXCLUDED]], facts.excluded_count


def left_out(backup: Backup) -> list[str]:
    """Return the first other things that are not in a backup: whole databases of a dump, files of a cluster."""
    return [_cut(name) for name in backup.facts.left_out[:_EXCLUDED]]


def backup_row(backup: Backup, storage: str) -> dict[str, Any]:
    """Return the part of wire.BackupRow that the repository itself knows."""
    names, tables = excluded(backup)
    return {
        "id": backup.id,
        "database": backup.database,
        "engine": backup.engine,
        "created_at": instant(backup.created_at),
        "kind": backup.kind,
        "method": backup.method,
        "source_bytes": backup.source_bytes,
        "stored_bytes": backup.stored_bytes,
        "storage": storage,
        "note": backup.note,
        "excluded": names,
        "excluded_tables": tables,
        "left_out": left_out(backup),
    }


def server_facts(backup: Backup) -> dict[str, Any]:
    """Return what is remembered of a backup's server: its data directory, its cluster, the position of its log."""
    facts = backup.facts
    position = facts.log_position.position if facts.system and facts.log_position else None
    return {"directory": facts.directory or None, "system": facts.system or None, "position": position}


def log_view(run: Run) -> LogView:
    """Return the log of the run's database, for the rules to inspect."""
    log = run.repository.log(run.name)
    return LogView((), lambda _: ()) if log is None else LogView(log.chains(), log.open)


def read_progress(run: Run, size: int) -> Callable[[int], None]:
    """Return a progress function for reading `size` bytes: it reports life, and ends reading when the job is cancelled.

    It is called with the bytes read of the current stream, and adds up consecutive streams.
    """
    before, last = 0, 0

    def told(done: int) -> None:
        nonlocal before, last
        before, last = (before, done) if done >= last else (before + last, done)
        run.progress("restore", min(before + last, size), size)

    return told


def shortened(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings as they are stored and reported: limited in number and length.

    The owner of a database controls their content (names of tables, the message of a check), and together they have to
    fit into one message to the daemon, now and whenever the repository is scanned again. A finding that is left out
    makes the result inconclusive.
    """
    every = sorted(findings, key=lambda found: found.outcome != "failed") if len(findings) > _FINDINGS else findings
    kept = [replace(found, name=_cut(found.name), detail=_cut(found.detail)) for found in every[:_FINDINGS]]
    if more := len(every) - len(kept):
        kept.append(Finding("further findings", "inconclusive", f"{more} were left out"))
    return kept


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text)} characters)"


def grace(run: Run) -> timedelta:
    """Return how long expired backups and unneeded objects stay in the storage of this job."""
    return timedelta(seconds=float(run.spec["storage"]["grace_seconds"]))


def instant(moment: datetime, *, exact: bool = False) -> str:
    """Return a UTC moment as RFC 3339 with milliseconds and a Z; if `exact`, with microseconds if it has them."""
    fine = exact and moment.microsecond % 1000
    return moment.isoformat(timespec="microseconds" if fine else "milliseconds").replace("+00:00", "Z")
