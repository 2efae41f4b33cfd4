"""Which backup a request means."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dbguardd.errors import NotFound, Usage
from dbguardd.jobs.base import Run, instant
from dbguardd.repository import Backup


def choose(run: Run, id: str = "", at: str = "") -> Backup:
    """Return the backup of the run's database with that id (or its first characters), or the newest not after `at`.

    Raises NotFound if there is none, Usage if the id fits several or `at` is not an RFC 3339 moment.
    """
    backups = run.repository.backups(run.name)
    if not backups:
        raise NotFound(f"{run.name} has no backup yet", hints=[f"dbguardctl backup {run.name}"])
    if id:
        return _by_id(run.name, backups, id)
    if not at:
        return backups[0]
    moment = _moment(at)
    for backup in backups:
        if backup.created_at <= moment:
            return backup
    raise NotFound(
        f"{run.name} has no backup as old as {at}",
        detail=f"The oldest is {backups[-1].id} of {instant(backups[-1].created_at)}.",
        hints=[f"dbguardctl list {run.name}"],
    )


def _by_id(database: str, backups: Sequence[Backup], id: str) -> Backup:
    found = [backup for backup in backups if backup.id.startswith(id.upper()) or backup.id.endswith(id.upper())]
    if len(found) == 1:
        return found[0]
    if found:
        raise Usage(f"{database}: {id} fits {len(found)} backups", detail=", ".join(backup.id for backup in found[:5]))
    raise NotFound(
        f"{database} has no backup {id}",
        detail="One that has expired can be restored when it was recalled.",
        hints=[f"dbguardctl list {database} --all"],
    )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Usage(f"not a moment: {text!r}", detail="Write it like 2026-09-12T08:59:00Z.") from error
    if moment.tzinfo is None:
        raise Usage(f"{text!r} has no time zone", detail="Write it like 2026-09-12T08:59:00Z.")
    return moment
