"""What the rules know of a backup. Apart from retention.py, whose calendar a worker only loads to expire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class BackupState:
    """What the rules need to know of a backup.

    `failed`: its last verification did, or a check has since found it damaged; `safety`: of a restore in place.
    """

    id: str
    created_at: datetime
    proven: bool = False
    holds: tuple[str, ...] = ()
    failed: bool = False
    failed_at: datetime | None = None  # None: as old as the backup
    safety: bool = False


def newest_first(backups: Iterable[BackupState]) -> list[BackupState]:
    """Return the backups, what was made last first.

    Ids rise with every backup, whatever the clock says; times do not, where it was ahead and was set right.
    """
    return sorted(backups, key=lambda backup: backup.id, reverse=True)
