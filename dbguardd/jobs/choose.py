"""Chooses the backup that a request means, and collects what is known of backups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dbguardd.errors import NotFound
from dbguardd.jobs.base import Run
from dbguardd.repository import Backup, Hold, Proof
from dbguardd.rules import reliance, requested
from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.requested import Other
from dbguardd.states import SAFETY_NOTE, Grade


def choose(run: Run, id: str = "", at: str = "") -> tuple[Backup, list[str]]:
    """Return the backup with that id (or its first characters), or the newest reliable one made at or before `at`.

    Also return warnings for the person who restores it. Raises NotFound if there is none, Usage if the id matches
    several or `at` is not an RFC 3339 moment.
    """
    backups = existing(run)
    known = {backup.id: backup for backup in states_of(run, backups)}
    if id:
        backup = named(run, id)
        dubious = known[backup.id].failed or known[backup.id].safety
        return backup, [f"backup {backup.id}: {reliance.doubt(known[backup.id])}"] if dubious else []
    choice = requested.at_or_before(run.name, known.values(), at)
    newer, chosen, said = choice.passed_over, choice.backup, list[str]()
    if newer:
        said.append(f"{reliance.passed(newer)}; take it with --id {newer[0].id}")
    if choice.later:
        why = "made before that, but dated later by a clock that was ahead or by another server"
        said.append(f"{reliance.named(choice.later)}: {why}; take it with --id {choice.later[0].id}")
    return next(backup for backup in backups if chosen is not None and backup.id == chosen.id), said


def existing(run: Run) -> list[Backup]:
    """Return the backups of the run's database, newest first. Raises NotFound if there is none."""
    backups = run.repository.backups(run.name)
    if not backups:
        raise NotFound(f"{run.name} has no backup yet", hints=[f"dbguardctl backup {run.name}"])
    return backups


def named(run: Run, id: str) -> Backup:
    """Return the backup with that id, or its first or last characters. Raises NotFound, Usage if several match."""

    def others() -> Iterator[Other]:
        for database in (run.name, None):
            for backup in run.repository.backups(database, expired=database is not None):
                if database is not None or backup.database != run.name:
                    yield Other(backup.id, backup.database)

    own = {backup.id: backup for backup in existing(run)}
    return own[requested.by_id(run.name, id, list(own), others, run.spec.get("request", {}))]


def states_of(
    run: Run, backups: Sequence[Backup], holds: Mapping[str, Sequence[Hold]] | None = None
) -> list[BackupState]:
    """Return what the rules need to know of backups: the result of the newest proof of each, and its holds."""
    newest = newest_proofs(run)
    failed = {id: proof for id, proof in newest.items() if failure_of(proof) is not None}
    return [
        BackupState(
            backup.id,
            backup.created_at,
            proven=backup.id in newest and newest[backup.id].grade == Grade.PROVEN,
            holds=tuple(hold.reason for hold in (holds or {}).get(backup.id, ())),
            failed=backup.id in failed,
            failed_at=failed[backup.id].at if backup.id in failed else None,
            safety=backup.note == SAFETY_NOTE,
        )
        for backup in backups
    ]


def newest_proofs(run: Run) -> dict[str, Proof]:
    """Return the newest proof of each backup, by its id."""
    return {proof.backup: proof for proof in run.repository.proofs()}


def failure_of(proof: Proof) -> str | None:
    """Return what went wrong in one line, or None."""
    failed = [finding for finding in proof.findings if finding["outcome"] == "failed"]
    return "; ".join(f"{finding['name']}: {finding['detail'] or 'failed'}" for finding in failed) or None
