"""The lineage of a backup: whether it is of the same database as earlier ones, and which log continues from it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import datetime
from itertools import takewhile

from dbguardd.errors import Damaged, ObjectMissing, SourceReplaced
from dbguardd.facts import BackupFacts, LogPosition, LogStart
from dbguardd.jobs.base import Run, log_view
from dbguardd.repository import Backup, Saving
from dbguardd.requests import UNDO_REASON
from dbguardd.rules.chains import LogView, end_of
from dbguardd.rules.moment import continues
from dbguardd.states import SAFETY_NOTE


def check_same_cluster(run: Run, facts: BackupFacts) -> None:
    """Raise SourceReplaced if a backup is of another cluster than earlier ones, or of one set back or left behind.

    An empty server at the place of a lost one would replace it in all restores, and its backups would expire; so would
    a server that was left behind when another took over. Only a person can tell that this is intended, after pg_upgrade
    or a new initdb.
    """
    if not facts.system:
        return  # files have no system identifier: see check_same_file()
    known = (backup.facts for backup in run.repository.newest(run.name))
    before = next((known for known in known if known.system), BackupFacts())
    if before.system and facts.system != before.system:
        url = str(run.database["settings"].get("url") or "postgresql:///")
        raise SourceReplaced(
            f"{run.name}: is a different cluster than the one that was backed up",
            detail=f"Its system identifier is {facts.system}; the newest backup has {before.system}. "
            "Nothing was stored: its backups would in time replace those of the other. Which of these is it?",
            hints=[
                f"dbguardctl restore {run.name}  # the old one was lost; RESTORE.txt says how to put it back",
                f"dbguardctl unprotect {run.name}  # this is a different one; then the next line",
                f"{shlex.join(['dbguardctl', 'protect', url])} --name {run.name}-2",
                f"{successor_command(run)}  # this one continues the old one: pg_upgrade, initdb",
            ],
        )
    if was_restored_in_place(run):
        return
    if was_set_back(facts, before):
        raise SourceReplaced(
            f"{run.name}: its server was set back to a state before its newest backup",
            detail="Its log ends before the position of the newest backup: a snapshot of its disk was put back, "
            f"or an older copy was started. If that is intended: {successor_command(run)}",
            hints=[successor_command(run)],
        )
    left = facts.timeline is not None and before.timeline is not None and facts.timeline < before.timeline
    if left or not _log_leads_to(run, facts):
        raise _left_behind(run)


def check_same_file(run: Run, saving: Saving) -> None:
    """Raise SourceReplaced if a file has another path than in the newest backup, and most of it is not what that was.

    A file that was moved, or restored to a new place, has most of its pages unchanged. One that was rewritten on the
    way (VACUUM INTO) has not, nor has another database with the same tables: only a person can tell which it is.
    """
    before = newest_at_other_path(run)
    if before is None or 2 * saving.kept_bytes(before.id) >= saving.written_bytes:
        return
    raise SourceReplaced(
        f"{run.name}: may be a different database than the one that was backed up",
        detail=f"Its path in the policy is {run.database['settings']['path']}; the newest backup was made of "
        f"{before.facts.path}. Of its {saving.written_bytes} bytes, {saving.kept_bytes(before.id)} are as in that "
        "backup. Nothing was stored: its backups would in time replace those of the other. If it is a different "
        f"one, give {run.name} its old path in the policy, and this one a table of its own.",
        hints=[f"{successor_command(run)}  # it is the same one: moved and rewritten since"],
    )


def newest_at_other_path(run: Run) -> Backup | None:
    """Return the newest backup of a file, if the policy gives the file another path now."""
    if (path := run.database["settings"].get("path")) is None:
        return None
    before = next((made for made in run.repository.newest(run.name) if not _is_unused_safety_copy(run, made)), None)
    return before if before and before.facts.path not in ("", path) else None


def _is_unused_safety_copy(run: Run, backup: Backup) -> bool:
    """Return whether a backup is the safety copy of a restore that then replaced nothing."""
    if backup.note != SAFETY_NOTE:
        return False
    return all(hold.reason != UNDO_REASON for hold in run.repository.holds().get(backup.id, ()))


def _left_behind(run: Run) -> SourceReplaced:
    return SourceReplaced(
        f"{run.name}: its server was left behind when another one took over, or was set back",
        detail="The stored log is on a newer timeline than this server: nothing written here will be "
        "in that history. If another server took over, stop this one and rebuild it as a standby "
        "(pg_rewind, pg_basebackup). Only if it was set back on purpose, or should be the primary again "
        f"whatever was written to the other: {successor_command(run)}",
        hints=[successor_command(run)],
    )


def was_set_back(facts: BackupFacts, before: BackupFacts) -> bool:
    """Return whether the log of a server ends before that of a backup, in the same round; a standby may lag."""
    now, then = facts.log_position, before.log_position
    if facts.standby or now is None or then is None:
        return False
    return now.round == then.round and now.position < then.position


def check_followed(run: Run, facts: BackupFacts) -> None:
    """Raise SourceReplaced if the stored log has continued from the server's timeline to a later one.

    What the server writes from now on is not in the history that is followed, even if it has written nothing yet.
    """
    log = log_view(run)
    if facts.log_position is None or not log.chains or was_restored_in_place(run, log.chains[-1].id):
        return
    end = _log_end(run, log)
    if end is not None and end.round != facts.log_position.round and end.left(facts.log_position.round) is not None:
        raise _left_behind(run)


def was_restored_in_place(run: Run, chain: str | None = None) -> bool:
    """Return whether a restore in place, or its undo, has replaced the cluster, which then continues from the past.

    That is intended. If so, there is a backup of what was replaced, newer than any of a running server (or, for a
    `chain`, one from which the chain continues), and held for the undo. A restore that was refused and changed nothing
    has released it.
    """
    holds = run.repository.holds()
    for backup in run.repository.newest(run.name):
        facts = backup.facts
        if facts.resting and any(hold.reason == UNDO_REASON for hold in holds.get(backup.id, ())):
            if chain is None or (facts.log_start is not None and facts.log_start.chain == chain):
                return True
        elif chain is None and not facts.resting:
            return False
    return False


def was_put_over(run: Run, since: datetime) -> bool:
    """Return whether a restore in place, or its undo, has replaced the database since a moment."""
    holds = run.repository.holds()
    newer = takewhile(lambda backup: backup.created_at >= since, run.repository.newest(run.name))
    return any(hold.reason == UNDO_REASON for backup in newer for hold in holds.get(backup.id, ()))


def _log_leads_to(run: Run, facts: BackupFacts) -> bool:
    """Return whether the stored log leads to a backup: it has not left the backup's round before its position."""
    end = None if facts.timeline is None else _log_end(run, log_view(run))
    return end is None or continues(facts.log_position, end)


def _log_end(run: Run, log: LogView) -> LogPosition | None:
    """Return where the stored log ends; None if that is unreadable, or a successor was named since."""
    if not log.chains:
        return None
    backups = run.repository.backups(run.name)
    if any(backup.facts.successor and backup.created_at >= log.chains[-1].until for backup in backups):
        return None
    with suppress(Damaged, ObjectMissing):
        return end_of(log.end(log.chains[-1]))
    return None


def successor_command(run: Run) -> str:
    """Return the command that declares this database the successor of the one backed up before."""
    return f"dbguardctl backup {run.name} --successor"


def log_tip(run: Run) -> LogStart | None:
    """Return where the stored log of the database ends now: a backup begun from now on contains all of it."""
    chains = log_view(run).chains
    return LogStart(chains[-1].id, chains[-1].last) if chains else None


def log_start(run: Run, before: LogStart | None, place: LogPosition | None) -> LogStart | None:
    """Return where the stored log continues from a backup at `place`.

    That is the end of the log `before` the backup began. If a new log was begun since, it is that one's beginning, but
    only if this is not after the place, so that nothing lies between.
    """
    log = log_view(run)
    if place is not None and log.chains and (before is None or log.chains[-1].id != before.chain):
        with suppress(Damaged, ObjectMissing):
            link = log.open(log.chains[-1].pieces[0])[0]
            begin = end_of(link)
            if link.number == 0 and begin.round == place.round and begin.position <= place.position:
                return LogStart(log.chains[-1].id, 0)
    return before


def log_tip_at(run: Run, place: LogPosition) -> LogStart | None:
    """Return the last stored segment that a backup of a standby contains: one that ends at or before `place`."""
    log, end = log_view(run), place.position if place.end is None else place.end
    for piece in reversed(log.chains[-1].pieces if log.chains else ()):
        for link in reversed(log.open(piece)):
            until = end_of(link)
            if until.round == place.round and until.position <= end:
                return LogStart(piece.chain, link.number)
    return None
