"""Chooses the backup that a request means, and collects what is known of backups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from dbguardd.errors import NotFound, Usage
from dbguardd.jobs.base import Run, instant
from dbguardd.repository import Backup, Hold, Proof
from dbguardd.rules import reliance
from dbguardd.rules.backup_state import BackupState
from dbguardd.states import Grade

_SHOWN = 5


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
    choice = reliance.choose(known.values(), to_moment(at) if at else None)
    newer = choice.passed_over
    if choice.backup is not None:
        said = [f"{_passed(newer)}; take it with --id {newer[0].id}"] if newer else []
        if choice.later:
            why = "made before that, but dated later by a clock that was ahead or by another server"
            said.append(f"{_named(choice.later)}: {why}; take it with --id {choice.later[0].id}")
        return next(backup for backup in backups if backup.id == choice.backup.id), said
    if newer:
        raise NotFound(
            f"{run.name} has no reliable backup" + (f" that is as old as {at}" if at else ""),
            detail=f"{_passed(newer)}.",
            hints=[f"dbguardctl backup {run.name} --full --verify", f"dbguardctl list {run.name}"],
        )
    raise NotFound(
        f"{run.name} has no backup as old as {at}",
        detail=f"The oldest is {backups[-1].id} of {instant(backups[-1].created_at)}.",
        hints=[f"dbguardctl list {run.name}"],
    )


def existing(run: Run) -> list[Backup]:
    """Return the backups of the run's database, newest first. Raises NotFound if there is none."""
    backups = run.repository.backups(run.name)
    if not backups:
        raise NotFound(f"{run.name} has no backup yet", hints=[f"dbguardctl backup {run.name}"])
    return backups


def named(run: Run, id: str) -> Backup:
    """Return the backup with that id, or its first or last characters. Raises NotFound, Usage if several match."""
    found = [b for b in existing(run) if b.id.startswith(id.upper()) or b.id.endswith(id.upper())]
    if len(found) == 1:
        return found[0]
    if found:
        shown = [backup.id for backup in found[:_SHOWN]] + ["…"] * (len(found) > _SHOWN)
        raise Usage(f"{run.name}: {id} matches {len(found)} backups", detail=", ".join(shown))
    for backup in run.repository.backups(run.name, expired=True):
        if backup.id.startswith(id.upper()) or backup.id.endswith(id.upper()):
            raise NotFound(
                f"{run.name}: backup {backup.id} has expired",
                detail="Recall it first, then it can be restored.",
                hints=[f"dbguardctl recall {backup.id}"],
            )
    raise NotFound(f"{run.name} has no backup {id}", hints=[f"dbguardctl list {run.name} --all"])


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
            safety=backup.note == reliance.SAFETY_NOTE,
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


def _passed(newer: Sequence[BackupState]) -> str:
    """Return which newer backups were passed over, and why the newest of them was."""
    return f"{_named(newer)}: passed over, {reliance.doubt(newer[0])}"


def _named(some: Sequence[BackupState]) -> str:
    more = f" and {len(some) - 1} more" if len(some) > 1 else ""
    return f"{some[0].id} of {instant(some[0].created_at)}{more}"


def to_moment(text: str) -> datetime:
    """Parse an RFC 3339 moment. Raises Usage."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Usage(f"not a moment: {text!r}", detail="Write it like 2026-09-12T08:59:00Z.") from error
    if moment.tzinfo is None:
        raise Usage(f"{text!r} has no time zone", detail="Write it like 2026-09-12T08:59:00Z.")
    return moment
