"""Back up one database. The whole data path of dbguard is the dozen lines of take()."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime

from dbguardd.engines.base import Untold
from dbguardd.errors import SourceReplaced, Usage
from dbguardd.flow import Facts
from dbguardd.jobs.base import Job, Result, Run, instant, row, seen
from dbguardd.jobs.moment import tip
from dbguardd.jobs.target import served
from dbguardd.repository import Backup
from dbguardd.states import Grade
from dbguardd.wire import Backup as Request
from dbguardd.wire import to_json


def backup(run: Run, request: Request) -> Result:
    """Back up the live database and return the new backup."""
    if request.successor and not (served(run) and run.database["settings"].get("method") == "pages"):
        raise Usage(f"{run.name}: --successor is for a PostgreSQL cluster that is backed up by its pages")
    made = take(run, full=request.full, note=request.note, successor=request.successor)
    return {"backup": row(made, run.spec["storage"]["name"]), "facts": dict(made.facts)}


def take(run: Run, *, full: bool = False, note: str = "", fingerprint: bool = True, successor: bool = False) -> Backup:
    """Make one backup: engine to sink to repository, then the fingerprint of the very same snapshot.

    The backup is acknowledged (event backup.stored) as soon as it is durable and read back. The fingerprint follows,
    because reading every row takes longer than storing the pages; if that fails, or the content cannot be told exactly,
    the backup exists, and can never be graded higher than `restored`.
    """
    started, database, began = run.monotonic(), run.database, run.now()
    log = tip(run) if database.get("continuous") else None
    try:
        with run.repository.saving(
            run.name,
            str(database["engine"]),
            str(database["settings"].get("method", "pages")),
            began,
            full=full,
            note=note,
            level=int(database["compress_level"]),
            cancelled=run.cancelled,
            progress=lambda done_bytes: run.progress("store", done_bytes, None),
        ) as saving:
            facts = {**run.snapshots.dump(saving, run.progress), "log": log}
            if not successor:
                _check_same(run, facts)
            made = saving.seal(facts, _moment(facts, began, run.now()))
            for doubt in saving.doubts:
                run.report("parent.unreadable", backup=made.id, code=doubt.code, problem=doubt.message)
        run.report(
            "backup.stored",
            **row(made, run.spec["storage"]["name"]),
            grade=Grade.STORED,
            seconds=round(run.monotonic() - started, 3),
            blocked_seconds=facts.get("blocked_seconds"),
            **seen(made),
        )
        if fingerprint:
            content = run.snapshots.fingerprint(run.progress)
            if isinstance(content, Untold):
                run.report("snapshot.untold", backup=made.id, reason=content.why)
            else:
                run.repository.attest(made.id, to_json(content), run.now())
                facts = {"database": run.name, "tables": content.count, "rows": content.rows}
                run.report("snapshot.fingerprinted", backup=made.id, **facts)
    finally:
        run.snapshots.release()
    run.report(
        "backup.done", backup=made.id, created_at=instant(made.created_at), seconds=round(run.monotonic() - started, 3)
    )
    return made


def _check_same(run: Run, facts: Facts) -> None:
    """Raise SourceReplaced if a server is another cluster than the one that was backed up before.

    An empty server where a lost one was would take its place in all that is restored, and its backups would expire.
    Only a person knows that it is right so, after pg_upgrade or a new initdb.
    """
    before = next(
        (backup.facts["system"] for backup in run.repository.backups(run.name) if "system" in backup.facts), None
    )
    if before is not None and facts.get("system", before) != before:
        url = str(run.database["settings"].get("url") or "postgresql:///")
        raise SourceReplaced(
            f"{run.name}: is another cluster than the one whose backups there are",
            detail=f"Its system identifier is {facts['system']}, that of the newest backup is {before}. Nothing was "
            "stored: the backups of that one would in time make room for its own. Which of these is it?",
            hints=[
                f"dbguardctl restore {run.name}  # that one was lost; RESTORE.txt says how it takes its place",
                f"dbguardctl unprotect {run.name}  # this is another one; then the next line",
                f"{shlex.join(['dbguardctl', 'protect', url])} --name {run.name}-2",
                f"dbguardctl backup {run.name} --successor  # this is what has become of that one: pg_upgrade, initdb",
            ],
        )


def _moment(facts: Facts, began: datetime, ended: datetime) -> datetime:
    """Return the moment that a backup is of: what the engine says, if it lies within the job."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        at = datetime.fromisoformat(facts["snapshot_at"]).astimezone(UTC)
        if began <= at <= ended:
            return at
    return began


BACKUP = Job("backup", Request, backup)
