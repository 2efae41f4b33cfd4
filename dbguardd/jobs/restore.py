"""Restore a database: to a new place, or in place with a safety copy and a way back."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dbguardd.engines.base import REPLACED, Examination, Finding
from dbguardd.errors import (
    Cancelled,
    ConfirmMissing,
    GuardError,
    NotFound,
    PlaceDenied,
    ProofFailed,
    SourceDamaged,
    SourceEncrypted,
    SourceInvalid,
    SourceMissing,
    TargetInUse,
    ToolMissing,
    Unsupported,
    Usage,
    WorkerDied,
)
from dbguardd.flow import LOG
from dbguardd.jobs.backup import take
from dbguardd.jobs.base import Job, Result, Run, brief, instant
from dbguardd.jobs.choose import failure_of
from dbguardd.jobs.moment import Moment, opened, reach
from dbguardd.jobs.target import (
    check_directory,
    check_space,
    check_target,
    free_bytes,
    live,
    making_another,
    new_place,
    owner_of,
    served,
)
from dbguardd.jobs.verify import DAMAGE, condemn, same_content
from dbguardd.repository import Backup, Hold
from dbguardd.rules.reliance import SAFETY_NOTE, UNDO_DAYS
from dbguardd.states import Grade
from dbguardd.wire import UNDO_REASON, Restore, Undo, to_json


def restore(run: Run, request: Restore) -> Result:
    """Restore one backup. A dry run returns the plan; otherwise what was restored where, compared with the snapshot."""
    if request.in_place and request.to:
        raise Usage(f"{run.name}: --to and --in-place exclude each other")
    if request.backup and request.at:
        raise Usage(f"{run.name}: give a backup id or --at, not both")
    if request.in_place and served(run):
        raise Unsupported(
            f"{run.name}: the databases of a live server are not replaced",
            detail="They are restored to a new directory, and brought back from there beside it, or in its place.",
            hints=[f"dbguardctl restore {run.name}"],
        )
    moment = reach(run, request.backup, request.at)
    target = live(run) if request.in_place else Path(request.to or new_place(run, moment))
    check_target(run, target, request, moment)
    check_directory(moment.backup, target)
    plan = {**_plan(run, moment, target, request.in_place), "warnings": moment.warnings}
    if request.dry_run:
        users = _in_the_way(run) if request.in_place else []
        return {"plan": {**plan, "warnings": [*moment.warnings, *users], "in_use": bool(users)}}
    if request.in_place and request.confirm != run.name:
        raise ConfirmMissing(
            f"{run.name}: restoring in place replaces the live database",
            detail="; ".join([f"{target} would be replaced by its state of {instant(moment.at)}", *moment.warnings]),
            hints=[f"dbguardctl restore {run.name} {_which(moment)} --in-place --confirm {run.name}"],
        )
    check_space(run, plan)
    if request.in_place:
        return _in_place(run, moment, plan)
    started = run.monotonic()
    findings, lost = _restore_and_compare(run, moment, target, (f"the copy was left at {target} for inspection",))
    seconds = round(run.monotonic() - started, 3)
    run.report("restore.done", backup=moment.backup.id, target=str(target), seconds=seconds)
    found = [*to_json(findings), *([] if served(run) else [_rights(moment.backup, target, lost)])]
    return {"target": str(target), "plan": plan, "findings": found, "seconds": seconds}


def undo(run: Run, request: Undo) -> Result:
    """Put back the state that the last in-place restore replaced. It can itself be undone."""
    holds = run.repository.holds()
    held = [
        backup
        for backup in run.repository.backups(run.name)
        if any(hold.reason == UNDO_REASON for hold in holds.get(backup.id, ()))
    ]
    if not held:
        raise NotFound(f"{run.name}: there is no restore to undo", hints=[f"dbguardctl list {run.name}"])
    if request.confirm != run.name:
        raise ConfirmMissing(
            f"{run.name}: undoing the restore replaces the live database",
            detail=f"Its state of {instant(held[0].created_at)} would come back.",
            hints=[f"dbguardctl restore undo {run.name} --confirm {run.name}"],
        )
    moment = Moment(held[0], held[0].created_at, None, [])
    plan = _plan(run, moment, live(run), in_place=True)
    check_space(run, plan)
    return _in_place(run, moment, plan)


def past_undo(backups: Iterable[Backup], holds: Mapping[str, Sequence[Hold]], now: datetime) -> list[str]:
    """Return the ids of the safety copies whose time for an undo is over: only that hold of theirs has ended."""
    start = now - timedelta(days=UNDO_DAYS)
    return [
        backup.id
        for backup in backups
        if any(hold.reason == UNDO_REASON and hold.at < start for hold in holds.get(backup.id, ()))
    ]


def _in_place(run: Run, moment: Moment, plan: Mapping[str, Any]) -> Result:
    """Stage and compare first; then the safety copy; then one atomic step. None of it while somebody uses it.

    Nothing of the live database changes before the staged copy is known to be right and the safety copy is durable.
    The safety copy comes last: what the application commits while the staged copy is made is in it.
    """
    run.snapshots.check_unused()
    started = run.monotonic()
    staged = Path(run.staging) / "restored"
    elsewhere = f"dbguardctl restore {run.name} {_which(moment)} --to NEWPLACE"
    findings, _ = _restore_and_compare(
        run, moment, staged, (f"{elsewhere}  # it is left there for inspection",), in_staging=True
    )
    run.snapshots.check_unused()  # before a whole copy is stored for nothing
    safety = _safety_copy(run)
    run.report("restore.replacing", database=run.name, target=plan["to"])
    try:
        run.snapshots.replace(staged, run.progress)
    except (Cancelled, WorkerDied):
        raise  # nobody knows how far it came: the way back stays
    except GuardError as error:
        if not error.facts.get(REPLACED):
            _nothing_to_undo(run, safety)
            run.report("restore.kept", database=run.name, target=plan["to"])
        raise
    run.snapshots.release()
    seconds = round(run.monotonic() - started, 3)
    facts = {"database": run.name, "backup": moment.backup.id, "target": plan["to"], "seconds": seconds}
    run.report("restore.done", **facts, safety_copy=safety)
    return {
        "target": plan["to"],
        "plan": dict(plan),
        "findings": to_json(findings),
        "seconds": seconds,
        "safety_copy": safety,
        "undo": f"dbguardctl restore undo {run.name} --confirm {run.name}" if safety else None,
    }


def _safety_copy(run: Run) -> str | None:
    """Back up the live database and hold that backup; None if there is no live database to lose.

    Without a fingerprint: the live database may be damaged, and its bytes are to be kept as they are.
    """
    try:
        made = take(run, note=SAFETY_NOTE, fingerprint=False)
    except SourceMissing:
        return None
    except (SourceInvalid, SourceEncrypted, SourceDamaged) as error:
        error.hints = (f"move {live(run)} away by hand (nothing of it can be kept by a backup), then restore again",)
        raise
    now = run.now()
    run.repository.hold(made.id, UNDO_REASON, run.actor, now)
    run.report("backup.held", id=made.id, reason=UNDO_REASON, actor=run.actor, at=instant(now))
    return str(made.id)


def _nothing_to_undo(run: Run, safety: str | None) -> None:
    """Let go of the safety copy of a restore that replaced nothing: the next undo is of the one before."""
    if safety is not None:
        run.repository.release(safety, run.actor, run.now(), UNDO_REASON)
        run.report("backup.released", id=safety, reason=UNDO_REASON, reasons=[UNDO_REASON])


def _restore_and_compare(
    run: Run, moment: Moment, target: Path, hints: Sequence[str], *, in_staging: bool = False
) -> tuple[list[Finding], Sequence[str]]:
    """Restore to `target` and read it once through the engine; return what was found, and which rights it lacks.

    Raises ProofFailed if it is not what was backed up. Or if it is, and was damaged then: a safety copy has no
    fingerprint and keeps its bytes whatever they are.
    """
    lost = _write(run, moment, target, in_staging=in_staging)
    examined, compared = _compare(run, moment, target, in_staging=in_staging)
    then = [Finding("what to do next", "ok", str(examined.facts["next"]))] if "next" in examined.facts else []
    findings = brief([*examined.findings, compared, *then])
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        compares = run.repository.fingerprint(moment.backup.id) is not None
        what = "is not what was backed up" if compares else "is as it was backed up, and was damaged already then"
        raise ProofFailed(
            f"{run.name}: the restored copy of {moment.backup.id} {what}",
            detail="; ".join(f"{finding.name}: {finding.detail}" for finding in failed),
            hints=[f"dbguardctl list {run.name}", *hints],
        )
    return findings, lost


def _write(run: Run, moment: Moment, target: Path, *, in_staging: bool) -> Sequence[str]:
    """Write the copy, durable; return which rights of the original it lacks."""
    started, backup = run.monotonic(), moment.backup
    try:
        with opened(run, moment) as tree:
            lost = run.snapshots.restore(tree, target, run.progress)
    except DAMAGE as error:
        if LOG in error.facts:
            error.hints = (f"dbguardctl restore {run.name} --id {backup.id}  # the backup alone", *error.hints)
            raise
        condemn(run, "restore", {backup.id: " ".join((error.code, error.message, error.detail)).strip()})
        error.hints = (f"dbguardctl restore {run.name} --dry-run", f"dbguardctl check {run.name} --data", *error.hints)
        raise
    except PlaceDenied as error:
        if not in_staging and owner_of(backup):  # made for him, it is the place where the job acts as he
            error.hints = (making_another(backup, target),)
        raise
    seconds = round(run.monotonic() - started, 3)
    run.report("restore.written", backup=backup.id, target=str(target), seconds=seconds)
    return lost


def _compare(run: Run, moment: Moment, target: Path, *, in_staging: bool) -> tuple[Examination, Finding]:
    """Read the copy through the engine; return what that found, and whether it is what was backed up."""

    def comparing(step: str, done_bytes: int, total_bytes: int | None) -> None:
        # Who cannot wait may begin with a file; in a directory a server of ours is at work until this is over.
        there = step if in_staging or served(run) else f"written to {target}, compare"
        run.progress(there, done_bytes, total_bytes)

    try:
        examined = run.snapshots.examine(target, (), comparing)
    except (ToolMissing, Unsupported) as error:  # a new machine lacks what reads it: what was written is whole
        if in_staging:
            raise
        examined = _unread(run, target, error)
    if moment.until is not None:
        return examined, Finding("log since the backup", "ok", moment.said())
    expected = run.repository.fingerprint(moment.backup.id)
    compared = same_content(examined, expected, moment.backup)
    if in_staging and expected is None and moment.backup.note == SAFETY_NOTE:  # there is nothing to compare
        compared = Finding(compared.name, "not configured", "a safety copy is put back as it was kept")
    return examined, compared


def _which(moment: Moment) -> str:
    """Return the options that ask for the same moment again."""
    return f"--id {moment.backup.id}" if moment.until is None else f"--at {moment.at.isoformat()}"


def _in_the_way(run: Run) -> list[str]:
    """Say who uses the live database and would have to stop first."""
    try:
        run.snapshots.check_unused()
    except TargetInUse as error:
        return [f"{error.message}: it would be refused until that is stopped"]
    return []


def _unread(run: Run, target: Path, error: GuardError) -> Examination:
    """Return what is said of a restored database that nothing on this machine can read."""
    lacks = " ".join([error.message, *(f"({hint})" for hint in error.hints)])
    then = {"next": f"{target} has all that was backed up, and a text with the commands that bring it into a server"}
    return Examination([Finding("test restore", "inconclusive", lacks)], None, then if served(run) else {})


def _plan(run: Run, moment: Moment, target: Path, in_place: bool) -> dict[str, Any]:
    backup = moment.backup
    newest = next(reversed(run.repository.proofs(backup.id)), None)
    needs = moment.bytes * (3 if in_place else 1)
    return {
        **moment.plan(),
        "grade": newest.grade if newest else str(Grade.STORED),
        "proven_at": instant(newest.at) if newest and newest.grade == Grade.PROVEN else None,
        "failure": failure_of(newest) if newest else None,
        "to": str(target),
        "in_place": in_place,
        "replaceable": not served(run),
        "needs_bytes": needs,
        "free_bytes": free_bytes(Path(run.staging).parent if in_place else target.parent),
        "takes_seconds": newest.restore_seconds if newest else None,
    }


def _rights(backup: Backup, target: Path, lost: Sequence[str]) -> dict[str, Any]:
    """Return what came of owner and rights as a finding, with the command that gives them."""
    found: dict[str, Any] = to_json(Finding("owner and rights", "failed" if lost else "ok", "; ".join(lost)))
    owner, group = backup.facts.get("owner"), backup.facts.get("group")
    if owner and any(line.startswith(("owner ", "group ")) for line in lost):
        known = owner_of(backup)
        command = shlex.join(["chown", f"{owner}:{group or ''}", str(target)])
        found["hints"] = [command if known else f"{command}  # when this host has a user {owner}"]
    return found


RESTORE = Job("restore", Restore, restore)
UNDO = Job("undo", Undo, undo)
