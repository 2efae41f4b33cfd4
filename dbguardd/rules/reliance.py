"""Decides which backup a restore uses if none is named: the one that `status` shows as restorable.

Pure. It is the newest proven backup; if none is proven, the newest without a known fault. Newest means the last made: a
backup made while the clock was ahead has a later time and an older state. The safety copy of a restore in place is
never used: it holds the state that the user replaced. Every newer backup that is passed over is returned, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from dbguardd.frozen import frozen
from dbguardd.rules.backup_state import BackupState, made_by, newest_first

UNDO_DAYS = 7
"""For how many days a restore in place can be undone."""


@frozen
class Choice:
    """The backup to rely on (None if there is none), and the newer ones that were passed over, newest first.

    `later`: equally good backups that were made before it and yet have a later time, newest first.
    """

    backup: BackupState | None
    passed_over: tuple[BackupState, ...]
    later: tuple[BackupState, ...] = ()


def choose(backups: Iterable[BackupState], at: datetime | None = None) -> Choice:
    """Choose among the backups that were made at or before `at`, or among all."""
    ordered = [backup for backup in newest_first(backups) if at is None or made_by(backup.created_at, at)]
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
    """Return what speaks against a backup; empty if nothing does."""
    if backup.failed:
        return "it failed its last test restore, or a check found it damaged"
    if backup.safety:
        return "it is a safety copy of a restore in place"
    return "" if backup.proven else "it is not proven"


def passed(newer: Sequence[BackupState]) -> str:
    """Return which backups were passed over, newest first, and why the newest was."""
    return f"{named(newer)}: passed over, {doubt(newer[0])}"


def named(some: Sequence[BackupState]) -> str:
    """Return the first of some backups with its moment, and how many more there are."""
    made = some[0].created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    more = f" and {len(some) - 1} more" if len(some) > 1 else ""
    return f"{some[0].id} of {made}{more}"
