"""Backs up one database. take() is the whole data path: engine to sink to repository, then the fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

from dbguardd.engines.base import Progress
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.errors import GuardError
from dbguardd.facts import BackupFacts, LogStart
from dbguardd.flow import Facts, Sink
from dbguardd.jobs.base import Job, Result, Run, backup_row, instant, server_facts
from dbguardd.jobs.lineage import (
    check_same_cluster,
    check_same_file,
    log_start,
    log_tip,
    log_tip_at,
    newest_at_other_path,
)
from dbguardd.repository import Backup
from dbguardd.requests import Backup as Request
from dbguardd.serialize import to_json
from dbguardd.states import Grade


def backup(run: Run, request: Request) -> Result:
    """Back up the live database and return the new backup."""
    made = make_backup(run, full=request.full, note=request.note, successor=request.successor)
    return {"backup": backup_row(made, run.spec["storage"]["name"]), "facts": dict(made.raw_facts)}


Dump = Callable[[Sink, Progress], Facts]


def make_backup(
    run: Run,
    *,
    full: bool = False,
    note: str = "",
    fingerprint: bool = True,
    successor: bool = False,
    dump: Dump | None = None,
) -> Backup:
    """Make one backup: engine to sink to repository, then the fingerprint of the same snapshot.

    The backup is acknowledged (event backup.stored) as soon as it is durable and was read back. The fingerprint comes
    later, because reading every row takes longer than storing the pages. If it fails, or the content cannot be told
    exactly, the backup exists, but can never be graded higher than `restored`. `dump` replaces the engine's own dump():
    a restore in place uses it for its safety copy.
    """
    started, database, began = run.monotonic(), run.database, run.now()
    skipped = _why_skipped(run) if fingerprint else ""
    compared = fingerprint and not skipped
    log = log_tip(run) if database.get("continuous") else None
    try:
        with run.repository.saving(
            run.name,
            str(database["engine"]),
            str(database["settings"].get("method", "pages")),
            began,
            full=full
            and (successor or newest_at_other_path(run) is None),  # a file with a new path is compared with its parent
            note=note,
            level=int(database["compress_level"]),
            cancelled=run.cancelled,
            progress=lambda done_bytes: run.progress("store", done_bytes, None),
        ) as saving:
            if not successor and dump is None:  # a safety copy is made of whatever is there
                saving.admits = lambda facts: check_same_cluster(run, BackupFacts.read(facts))
            dumped = (dump or partial(run.snapshots.dump, compared=compared))(saving, run.progress)
            said = BackupFacts.read(dumped)
            goes_on = _log_start(run, log, said) if database.get("continuous") else None
            facts = {**dumped, "log": None if goes_on is None else to_json(goes_on)}
            facts |= {"no_fingerprint": skipped} if skipped else {}
            facts |= {"path": database["settings"]["path"]} if "path" in database["settings"] else {}
            if successor:
                facts["successor"] = True
            elif dump is None:
                check_same_cluster(run, said)  # again: another server may have taken over since the backup began
                check_same_file(run, saving)
            made = saving.seal(facts, _created_at(said, began, run.now()))
            for doubt in saving.doubts:
                run.report("parent.unreadable", backup=made.id, code=doubt.code, problem=doubt.message)
        run.report(
            "backup.stored",
            **backup_row(made, run.spec["storage"]["name"]),
            grade=Grade.STORED,
            seconds=round(run.monotonic() - started, 3),
            blocked_seconds=said.blocked_seconds,
            **server_facts(made),
        )
        if compared:
            _fingerprint(run, made)
    finally:
        run.snapshots.release()
    run.report(
        "backup.done", backup=made.id, created_at=instant(made.created_at), seconds=round(run.monotonic() - started, 3)
    )
    return made


def _fingerprint(run: Run, made: Backup) -> None:
    """Store the fingerprint of a backup: that of its parent if all bytes are equal, else that of the snapshot."""
    same_as, content = _parent_fingerprint(run, made) or ("", _snapshot_fingerprint(run, made))
    if isinstance(content, NoFingerprint):
        run.report("snapshot.untold", backup=made.id, reason=content.why)
        return
    run.repository.attest(made.id, to_json(content), run.now())
    facts = {"database": run.name, "tables": content.count, "rows": content.rows}
    run.report("snapshot.fingerprinted", backup=made.id, **facts, same_as=same_as or None)


def _snapshot_fingerprint(run: Run, made: Backup) -> Fingerprint | NoFingerprint:
    with run.repository.tree(made, lambda done_bytes: run.progress("fingerprint", done_bytes, None)) as stored:
        return run.snapshots.fingerprint(run.progress, stored)


def _parent_fingerprint(run: Run, made: Backup) -> tuple[str, Fingerprint] | None:
    """Return the parent of a backup with its fingerprint, if it has the same pages and was made by this version."""
    with suppress(GuardError):  # an unreadable fingerprint counts as none
        parent = run.repository.backup(made.parent) if made.parent else None
        if parent and parent.tool_version == made.tool_version and _digests(parent) == _digests(made) is not None:
            stored = run.repository.fingerprint(parent.id)
            return None if stored is None else (parent.id, Fingerprint.read(stored))
    return None


def _digests(backup: Backup) -> Sequence[tuple[str, int, str]] | None:
    """Return name, size and digest of each stream; None if one is no file of the database, as in a dump."""
    if any(stream.kind != "paged" for stream in backup.streams):
        return None
    return [(stream.name, stream.size, stream.digest) for stream in backup.streams]


def _why_skipped(run: Run) -> str:
    """Return why no fingerprint is taken, or "": it is skipped if a backup younger than `fingerprint_every` has one."""
    if (every := run.database["fingerprint_every_seconds"]) is None:
        return ""
    now = run.now()
    for backup in run.repository.newest(run.name):
        if now - timedelta(seconds=every) < backup.created_at <= now:
            with suppress(GuardError):  # an unreadable fingerprint counts as none
                if run.repository.fingerprint(backup.id) is not None:
                    return f"fingerprint_every asks for none yet, backup {backup.id} has one"
    return ""


def _log_start(run: Run, before: LogStart | None, said: BackupFacts) -> LogStart | None:
    """Return where the log continues from a backup. `before` is the end of the stored log when the backup began.

    A backup of a standby is of an earlier place: as far as the standby had replayed.
    """
    if before is not None and said.standby and said.log_position is not None:
        return log_tip_at(run, said.log_position)
    return log_start(run, before, said.log_position)


def _created_at(said: BackupFacts, began: datetime, ended: datetime) -> datetime:
    """Return the moment of a backup: the engine's if it is within the job, or of a standby; otherwise `began`."""
    at = said.snapshot_at
    return at if at is not None and (began <= at or said.standby) and at <= ended else began


BACKUP = Job("backup", Request, backup)
