"""Which backup a restore takes when nobody names one: the one that `status` says could be restored.

Pure. The newest proven backup; where none is proven, the newest that nothing speaks against. Newest is what was made
last: one of a day when the clock was ahead bears a later time, and an older state. A safety copy of a restore in place
never: it holds what somebody wanted to get rid of. Every newer one that is passed over can be said, with why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dbguardd.rules.backup_state import BackupState, newest_first

UNDO_DAYS = 7
"""So long a restore in place can be undone."""
SAFETY_NOTE = "before restore --in-place"
"""The note of every safety copy. Its hold ends with the time for an undo, the note does not."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backup to rely on, None if there is none, and the newer ones that were passed over, newest first.

    `later`: what is as good, was made before it, and bears a later time all the same, newest first.
    """

    backup: BackupState | None
    passed_over: tuple[BackupState, ...]
    later: tuple[BackupState, ...] = ()


def choose(backups: Iterable[BackupState], at: datetime | None = None) -> Choice:
    """Choose among the backups that were made at or before `at`, or among all."""
    ordered = [backup for backup in newest_first(backups) if at is None or backup.created_at <= at]
    sound = [backup for backup in ordered if not (backup.failed or backup.safety)]
    chosen = next((backup for backup in sound if backup.proven), sound[0] if sound else None)
    if chosen is None:
        return Choice(None, tuple(ordered))
    later = (backup for backup in sound if backup.id < chosen.id and backup.created_at > chosen.created_at)
    return Choice(
        chosen,
        tuple(ordered[: ordered.index(chosen)]),
        tuple(backup for backup in later if backup.proven or not chosen.proven),
    )


def doubt(backup: BackupState) -> str:
    """Say what speaks against a backup, empty if nothing does."""
    if backup.failed:
        return "it did not pass its last test restore, or a check found it damaged"
    if backup.safety:
        return "it is a safety copy of a restore in place"
    return "" if backup.proven else "it is not proven"
