"""Back up one database. The whole data path of dbguard is the dozen lines of take()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

from dbguardd.engines.base import Fingerprint, Progress, TablePrint, Untold
from dbguardd.errors import GuardError
from dbguardd.facts import GoesOn, Said
from dbguardd.flow import Facts, Sink
from dbguardd.jobs.base import Job, Result, Run, instant, row, seen
from dbguardd.jobs.lineage import check_moved, check_same, elsewhere, going_on, tip, tip_at
from dbguardd.repository import Backup
from dbguardd.requests import Backup as Request
from dbguardd.serialize import to_json
from dbguardd.states import Grade


def backup(run: Run, request: Request) -> Result:
    """Back up the live database and return the new backup."""
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
            full=full and (successor or elsewhere(run) is None),  # what has another path has to be compared
            note=note,
            level=int(database["compress_level"]),
            cancelled=run.cancelled,
            progress=lambda done_bytes: run.progress("store", done_bytes, None),
        ) as saving:
            if not successor and dump is None:  # what somebody puts something over is kept, whatever it is
                saving.admits = lambda about: check_same(run, Said.read(about))
            told = (dump or partial(run.snapshots.dump, compared=compared))(saving, run.progress)
            said = Said.read(told)
            goes_on = _goes_on(run, log, said) if database.get("continuous") else None
            facts = {**told, "log": None if goes_on is None else to_json(goes_on)}
            facts |= {"no_fingerprint": spared} if spared else {}
            facts |= {"path": database["settings"]["path"]} if "path" in database["settings"] else {}
            if successor:
                facts["successor"] = True
            elif dump is None:
                check_same(run, said)  # as it is now: another server may have taken over meanwhile
                check_moved(run, saving)
            made = saving.seal(facts, _moment(said, began, run.now()))
            for doubt in saving.doubts:
                run.report("parent.unreadable", backup=made.id, code=doubt.code, problem=doubt.message)
        run.report(
            "backup.stored",
            **row(made, run.spec["storage"]["name"]),
            grade=Grade.STORED,
            seconds=round(run.monotonic() - started, 3),
            blocked_seconds=said.blocked_seconds,
            **seen(made),
        )
        if compared:
            _attest(run, made)
    finally:
        run.snapshots.release()
    run.report(
        "backup.done", backup=made.id, created_at=instant(made.created_at), seconds=round(run.monotonic() - started, 3)
    )
    return made


def _attest(run: Run, made: Backup) -> None:
    """Store what a backup contains. If its bytes are those of its parent, so are its rows, and nobody reads them."""
    like, content = _known(run, made) or ("", _read(run, made))
    if isinstance(content, Untold):
        run.report("snapshot.untold", backup=made.id, reason=content.why)
        return
    run.repository.attest(made.id, to_json(content), run.now())
    facts = {"database": run.name, "tables": content.count, "rows": content.rows}
    run.report("snapshot.fingerprinted", backup=made.id, **facts, same_as=like or None)


def _read(run: Run, made: Backup) -> Fingerprint | Untold:
    with run.repository.tree(made, lambda done_bytes: run.progress("fingerprint", done_bytes, None)) as stored:
        return run.snapshots.fingerprint(run.progress, stored)


def _known(run: Run, made: Backup) -> tuple[str, Fingerprint] | None:
    """Return the parent of a backup, and its fingerprint, if it has the very same pages and was taken in our way."""
    with suppress(GuardError):  # one that cannot be read is none
        parent = run.repository.backup(made.parent) if made.parent else None
        if parent and parent.tool_version == made.tool_version and _pages(parent) == _pages(made) is not None:
            told = run.repository.fingerprint(parent.id)
            if told is not None:
                tables = {name: TablePrint(**found) for name, found in told["tables"].items()}
                return parent.id, Fingerprint(told["schema_digest"], tables)
    return None


def _pages(backup: Backup) -> Sequence[tuple[str, int, str]] | None:
    """Return what tells the bytes of a backup, where they are the database itself and no text that is made of it."""
    if any(stream.kind != "paged" for stream in backup.streams):
        return None
    return [(stream.name, stream.size, stream.digest) for stream in backup.streams]


def _spared(run: Run) -> str:
    """Return why the rows need not be read: a backup that is younger than `fingerprint_every` has a fingerprint."""
    if (every := run.database["fingerprint_every_seconds"]) is None:
        return ""
    now = run.now()
    for backup in run.repository.newest(run.name):
        if now - timedelta(seconds=every) < backup.created_at <= now:
            with suppress(GuardError):  # one that cannot be read is none
                if run.repository.fingerprint(backup.id) is not None:
                    return f"fingerprint_every asks for none yet, backup {backup.id} has one"
    return ""


def _goes_on(run: Run, before: GoesOn | None, said: Said) -> GoesOn | None:
    """Return where the log goes on from a backup, which had come to `before` when that began; a standby lags."""
    if before is not None and said.standby and said.place is not None:
        return tip_at(run, said.place)
    return going_on(run, before, said.place)


def _moment(said: Said, began: datetime, ended: datetime) -> datetime:
    """Return the moment that a backup is of: what the engine says, if it lies within the job, or a standby lags."""
    at = said.snapshot_at
    return at if at is not None and (began <= at or said.standby) and at <= ended else began


BACKUP = Job("backup", Request, backup)
