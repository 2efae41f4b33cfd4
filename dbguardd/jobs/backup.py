"""Back up one database. The whole data path of dbguard is the dozen lines of take()."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from dbguardd.engines.base import Untold
from dbguardd.errors import Usage
from dbguardd.flow import Facts
from dbguardd.jobs.base import Job, Result, Run, instant, row
from dbguardd.jobs.history import check_same
from dbguardd.jobs.moment import tip, tip_at
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
            if log and facts.get("standby"):
                facts["log"] = tip_at(run, facts["log_place"])
            if successor:
                facts["successor"] = True
            else:
                check_same(run, facts)
            made = saving.seal(facts, _moment(facts, began, run.now()))
            for doubt in saving.doubts:
                run.report("parent.unreadable", backup=made.id, code=doubt.code, problem=doubt.message)
        run.report(
            "backup.stored",
            **row(made, run.spec["storage"]["name"]),
            grade=Grade.STORED,
            seconds=round(run.monotonic() - started, 3),
            blocked_seconds=facts.get("blocked_seconds"),
            directory=facts.get("directory"),
        )
        if fingerprint:
            content = run.snapshots.fingerprint(run.progress)
            if isinstance(content, Untold):
                run.report("snapshot.untold", backup=made.id, reason=content.why)
            else:
                run.repository.attest(made.id, to_json(content), run.now())
                run.report("snapshot.fingerprinted", backup=made.id, tables=content.count, rows=content.rows)
    finally:
        run.snapshots.release()
    run.report(
        "backup.done", backup=made.id, created_at=instant(made.created_at), seconds=round(run.monotonic() - started, 3)
    )
    return made


def _moment(facts: Facts, began: datetime, ended: datetime) -> datetime:
    """Return the moment that a backup is of: what the engine says, if it lies within the job, or a standby lags."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        at = datetime.fromisoformat(facts["snapshot_at"]).astimezone(UTC)
        if (began <= at or facts.get("standby") is True) and at <= ended:
            return at
    return began


BACKUP = Job("backup", Request, backup)
