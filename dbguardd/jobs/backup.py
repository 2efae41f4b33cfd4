"""Back up one database. The whole data path of dbguard is the dozen lines of take()."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from dbguardd.engines.base import Progress, Untold
from dbguardd.errors import GuardError, Usage
from dbguardd.flow import Facts, Sink
from dbguardd.jobs.base import Job, Result, Run, instant, row, seen
from dbguardd.jobs.history import check_same, going_on, tip, tip_at
from dbguardd.jobs.target import served
from dbguardd.plain import to_json
from dbguardd.repository import Backup
from dbguardd.requests import Backup as Request
from dbguardd.states import Grade


def backup(run: Run, request: Request) -> Result:
    """Back up the live database and return the new backup."""
    if request.successor and not (served(run) and run.database["settings"].get("method") == "pages"):
        raise Usage(f"{run.name}: --successor is for a PostgreSQL cluster that is backed up by its pages")
    made = take(run, full=request.full, note=request.note, successor=request.successor)
    return {"backup": row(made, run.spec["storage"]["name"]), "facts": dict(made.facts)}


Dump = Callable[[Sink, Progress], Facts]


def take(
    run: Run,
    *,
    full: bool = False,
    note: str = "",
    fingerprint: bool = True,
    successor: bool = False,
    dump: Dump | None = None,
) -> Backup:
    """Make one backup: engine to sink to repository, then the fingerprint of the very same snapshot.

    The backup is acknowledged (event backup.stored) as soon as it is durable and read back. The fingerprint follows,
    because reading every row takes longer than storing the pages; if that fails, or the content cannot be told exactly,
    the backup exists, and can never be graded higher than `restored`. `dump` reads it, if not the engine's.
    """
    started, database, began = run.monotonic(), run.database, run.now()
    spared = _spared(run) if fingerprint else ""
    compared = fingerprint and not spared
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
            if not successor and dump is None:  # what somebody puts something over is kept, whatever it is
                saving.admits = partial(check_same, run)
            told = (dump or partial(run.snapshots.dump, compared=compared))(saving, run.progress)
            facts = {**told, "log": going_on(run, log, told.get("log_place")) if database.get("continuous") else None}
            facts |= {"no_fingerprint": spared} if spared else {}
            if log and facts.get("standby"):
                facts["log"] = tip_at(run, facts["log_place"])
            if successor:
                facts["successor"] = True
            elif dump is None:
                check_same(run, facts)  # as it is now: another server may have taken over meanwhile
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
        if compared:
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


def _spared(run: Run) -> str:
    """Return why the rows need not be read: a backup that is younger than `fingerprint_every` has a fingerprint."""
    if (every := run.database["fingerprint_every_seconds"]) is None:
        return ""
    now = run.now()
    for backup in run.repository.backups(run.name):
        if now - timedelta(seconds=every) < backup.created_at <= now:
            with suppress(GuardError):  # one that cannot be read is none
                if run.repository.fingerprint(backup.id) is not None:
                    return f"fingerprint_every asks for none yet, backup {backup.id} has one"
    return ""


def _moment(facts: Facts, began: datetime, ended: datetime) -> datetime:
    """Return the moment that a backup is of: what the engine says, if it lies within the job, or a standby lags."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        at = datetime.fromisoformat(facts["snapshot_at"]).astimezone(UTC)
        if (began <= at or facts.get("standby") is True) and at <= ended:
            return at
    return began


BACKUP = Job("backup", Request, backup)
