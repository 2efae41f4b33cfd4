"""What the rules know of a backup. It is apart from retention.py, whose calendar a worker loads only to expire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dbguardd.frozen import frozen


@frozen
class BackupState:
    """What the rules need to know of a backup.

    `failed`: its last verification failed, or a check has since found it damaged; `safety`: it is the safety copy of a
    restore in place.
    """

    id: str
    created_at: datetime
    proven: bool = False
    holds: tuple[str, ...] = ()
    failed: bool = False
    failed_at: datetime | None = None  # None: when the backup was made
    safety: bool = False


def newest_first(backups: Iterable[BackupState]) -> list[BackupState]:
    """Return the backups, the last made first.

    Ids increase with every backup, whatever the clock says; times do not if the clock was ahead and was corrected.
    """
    return sorted(backups, key=lambda backup: backup.id, reverse=True)


def made_by(created_at: datetime, moment: datetime) -> bool:
    """Return whether a backup was made at or before a moment, to the millisecond: the time that is shown finds it."""
    return created_at.replace(microsecond=created_at.microsecond // 1000 * 1000) <= moment
