"""Restores a database: to a new place, or in place with a safety copy and a way back."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dbguardd.engines.base import BODY, REPLACED, Finding
from dbguardd.errors import (
    Cancelled,
    ConfirmMissing,
    GuardError,
    Internal,
    NotFound,
    SourceDamaged,
    SourceEncrypted,
    SourceInvalid,
    SourceMissing,
    TargetInUse,
    Usage,
    WorkerDied,
)
from dbguardd.jobs.backup import Dump, make_backup
from dbguardd.jobs.base import Job, Result, Run, instant
from dbguardd.jobs.choose import failure_of
from dbguardd.jobs.moment import Moment, at_lsn, at_restore_point, reach
from dbguardd.jobs.restore_and_compare import delta_restore, replaced, restore_and_compare
from dbguardd.jobs.room import check_space, disks_anew, disks_over, parts_of, scarce, short, storage_free_bytes
from dbguardd.jobs.target import (
    check_directory,
    check_in_place,
    check_target,
    elsewhere,
    is_replaceable,
    is_server,
    leftovers_beside,
    live_path,
    new_place,
    owner_of,
    stopping_before,
    tablespace_targets,
    tablespaces,
)
from dbguardd.repository import Backup, Hold
from dbguardd.requests import UNDO_REASON, Restore, Undo
from dbguardd.rules import requested
from dbguardd.rules.reliance import UNDO_DAYS
from dbguardd.serialize import to_json
from dbguardd.states import SAFETY_NOTE, Grade


def restore(run: Run, request: Restore) -> Result:
    """Restore one backup. A dry run returns the plan; otherwise the target and the result of comparing it."""
    if request.in_place and request.to:
        raise Usage(f"{run.name}: --to and --in-place exclude each other")
    moment = _requested(run, request)
    if request.in_place:
        check_in_place(run, moment.backup)
    target = live_path(run) if request.in_place else Path(request.to or new_place(run, moment))
    check_target(run, target, request, moment)
    check_directory(moment.backup, target)
    others = tablespace_targets(run, moment.backup, target, request)
    aside = leftovers_beside(run, target) if request.in_place else []
    plan = _plan(run, moment, target, request.in_place, others)
    plan["warnings"] = [*moment.warnings, *aside, *scarce(plan)]
    plan["tablespaces"] = tablespaces(moment.backup, target, others, in_place=request.in_place)
    if request.dry_run:
        if not request.in_place:
            with elsewhere(moment.backup, target):
                run.check_writable(target)
        users = _in_the_way(run, moment.backup) if request.in_place else []
        return {"plan": {**plan, "warnings": [*plan["warnings"], *short(plan), *users], "in_use": bool(users)}}
    if request.in_place and request.confirm != run.name:
        raise ConfirmMissing(
            f"{run.name}: restoring in place replaces the live database",
            detail="; ".join([f"{target} would be replaced by its state {moment.told}", *moment.warnings]),
            hints=[f"dbguardctl restore {run.name} {_which(moment)} --in-place --confirm {run.name}"],
        )
    check_space(run, plan)
    if request.in_place:
        with stopping_before(request, target):
            return _in_place(run, moment, plan)
    started = run.monotonic()
    left = (f"the copy stays at {target} for inspection",)
    with stopping_before(request, target):
        findings, lost = restore_and_compare(run, moment, target, left, others)
    seconds = round(run.monotonic() - started, 3)
    of = {"backup": moment.backup.id, **moment.which}
    run.report("restore.done", **of, target=str(target), seconds=seconds)
    found = [*to_json(findings), *([] if is_server(run) else [_rights(moment.backup, target, lost)])]
    return {"target": str(target), "plan": plan, "findings": found, "seconds": seconds}


def _requested(run: Run, request: Restore) -> Moment:
    """Return the moment to restore: by default the newest one. Raises Usage, Unsupported, NotFound."""
    requested.check_way(run.name, to_json(request), is_server=is_server(run))
    if request.lsn:
        return at_lsn(run, request.lsn)
    return at_restore_point(run, request.name) if request.name else reach(run, request.backup, request.at)


def undo(run: Run, request: Undo) -> Result:
    """Restore the state that the last in-place restore replaced. This can itself be undone."""
    held = _held(run)
    if not held:
        raise NotFound(f"{run.name}: there is no restore to undo", hints=[f"dbguardctl list {run.name}"])
    if request.confirm != run.name:
        raise ConfirmMissing(
            f"{run.name}: undoing the restore replaces the live database",
            detail=f"Its state of {instant(held[0].created_at)} would come back.",
            hints=[_undo(run)],
        )
    moment = Moment(held[0], held[0].created_at, None, [])
    plan = _plan(run, moment, live_path(run), in_place=True)
    check_space(run, plan)
    return _in_place(run, moment, plan)


def _is_half(run: Run, backup: Backup) -> bool:
    """Return whether an interrupted restore in place has to be continued."""
    return is_server(run) and delta_restore(run).inspect(live_path(run), backup.raw_facts).begun


def _held(run: Run) -> list[Backup]:
    """Return the safety copies that an undo would restore, newest first."""
    holds = run.repository.holds()
    return [
        backup
        for backup in run.repository.backups(run.name)
        if any(hold.reason == UNDO_REASON for hold in holds.get(backup.id, ()))
    ]


def past_undo(backups: Iterable[Backup], holds: Mapping[str, Sequence[Hold]], now: datetime) -> list[str]:
    """Return the ids of the safety copies whose time for an undo is over: only their hold for that ends."""
    start = now - timedelta(days=UNDO_DAYS)
    return [
        backup.id
        for backup in backups
        if any(hold.reason == UNDO_REASON and hold.at < start for hold in holds.get(backup.id, ()))
    ]


def _in_place(run: Run, moment: Moment, plan: Mapping[str, Any]) -> Result:
    """Restore over the live database, with a way back. Nothing is done while it is in use."""
    _check_unused(run, moment.backup)
    started = run.monotonic()
    findings, safety = (_by_delta if is_server(run) else _by_swap)(run, moment, plan)
    if safety == moment.backup.id:  # an interrupted restore was undone: what was there before is there again
        _nothing_to_undo(run, safety)
        safety = None
    run.snapshots.release()
    seconds = round(run.monotonic() - started, 3)
    of = {"backup": moment.backup.id, **moment.which}
    facts = {"database": run.name, **of, "target": plan["to"], "seconds": seconds}
    run.report("restore.done", **facts, safety_copy=safety)
    return {
        "target": plan["to"],
        "plan": dict(plan),
        "findings": to_json(findings),
        "seconds": seconds,
        "safety_copy": safety,
        "undo": _undo(run) if safety else None,
    }


def _by_swap(run: Run, moment: Moment, plan: Mapping[str, Any]) -> tuple[list[Finding], str | None]:
    """Stage and compare first; then the safety copy; then one atomic step.

    Nothing of the live database changes before the staged copy is known to be right and the safety copy is durable. The
    safety copy comes last, so it includes what the application commits while the staged copy is made.
    """
    staged = Path(run.staging) / "restored"
    elsewhere = f"dbguardctl restore {run.name} {_which(moment)} --to NEWPLACE"
    findings, _ = restore_and_compare(
        run, moment, staged, (f"{elsewhere}  # the copy stays there for inspection",), in_staging=True
    )
    _check_unused(run, moment.backup)  # before a whole copy is stored for nothing
    safety = _safety_copy(run)
    with _replacing(run, plan, safety):
        run.snapshots.replace(staged, run.progress)
    return findings, safety


def _by_delta(run: Run, moment: Moment, plan: Mapping[str, Any]) -> tuple[list[Finding], str | None]:
    """The safety copy first; then write only what differs, where no server finds it; then compare.

    Until it is known to be right, it is not where its users look for it. If an interrupted restore is continued, the
    safety copy is the one with which that began.
    """
    place, delta, facts = live_path(run), delta_restore(run), moment.backup.raw_facts
    safety = _safety_copy(run, lambda sink, progress: delta.save(place, facts, sink, progress))
    there = run.repository.backup(safety) if safety else None
    half = safety is None and _is_half(run, moment.backup)
    if half:
        safety = next((backup.id for backup in _held(run)), None)
    with _replacing(run, plan, safety, half=half):
        findings, _ = restore_and_compare(run, moment, place, (), in_staging=True, over=True, there=there)
        with replaced(run):
            delta.publish(place)
    return findings, safety


@contextmanager
def _replacing(run: Run, plan: Mapping[str, Any], safety: str | None, *, half: bool = False) -> Iterator[None]:
    """Replace the live database inside the block; if nothing was changed, there is nothing to undo.

    But if an interrupted restore has left `half` of it, its way back stays, whatever refuses to continue. An error
    names the way back of a server, which has no directory until then.
    """
    run.report("restore.replacing", database=run.name, target=plan["to"], over=is_server(run))
    try:
        yield
    except (Cancelled, WorkerDied, Internal):
        raise  # how far it got is unknown, so the way back stays
    except GuardError as error:
        if not half and not error.facts.get(REPLACED):
            _nothing_to_undo(run, safety)
            run.report("restore.kept", database=run.name, target=plan["to"])
        elif is_server(run):
            error.hints = (*error.hints, _undo(run))
        raise


def _check_unused(run: Run, backup: Backup) -> None:
    """Raise TargetInUse if a process uses the live database."""
    if is_server(run):
        delta_restore(run).check_unused(live_path(run), backup.raw_facts)
    else:
        run.snapshots.check_unused()


def _safety_copy(run: Run, dump: Dump | None = None) -> str | None:
    """Back up the live database and hold that backup; return None if there is no live database to lose.

    Without a fingerprint: the live database may be damaged, and its bytes are to be kept as they are.
    """
    try:
        made = make_backup(
            run, note=SAFETY_NOTE, fingerprint=False, dump=dump or partial(run.snapshots.dump, compared=False)
        )
    except SourceMissing:
        return None
    except (SourceInvalid, SourceEncrypted, SourceDamaged) as error:
        error.hints = (
            f"move {live_path(run)} away by hand (nothing of it can be kept by a backup), then restore again",
        )
        raise
    now = run.now()
    run.repository.hold(made.id, UNDO_REASON, run.actor, now)
    run.report("backup.held", id=made.id, reason=UNDO_REASON, actor=run.actor, at=instant(now))
    return str(made.id)


def _undo(run: Run) -> str:
    """Return the command that puts back what a restore in place has replaced."""
    return f"dbguardctl restore undo {run.name} --confirm {run.name}"


def _nothing_to_undo(run: Run, safety: str | None) -> None:
    """Release the safety copy of a restore that replaced nothing: the next undo concerns the restore before."""
    if safety is not None:
        run.repository.release(safety, run.actor, run.now(), UNDO_REASON)
        run.report("backup.released", id=safety, reason=UNDO_REASON, reasons=[UNDO_REASON])


def _which(moment: Moment) -> str:
    """Return the options that request the same moment again."""
    if moment.until is None:
        return f"--id {moment.backup.id}"
    target = moment.until.target
    if target.lsn or target.name:
        return shlex.join(["--lsn", target.lsn] if target.lsn else ["--name", target.name])
    return f"--at {moment.at.isoformat()}"


def _in_the_way(run: Run, backup: Backup) -> list[str]:
    """Return which processes use the live database and would have to stop first."""
    try:
        _check_unused(run, backup)
    except TargetInUse as error:
        stop = f" ({error.hints[0]})" if is_server(run) and error.hints else ""
        return [f"{error.message}: the restore is refused until that has stopped{stop}"]
    return []


def _plan(
    run: Run, moment: Moment, target: Path, in_place: bool, others: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the plan. `others`: places of tablespaces, by what the request calls them, perhaps on other disks."""
    backup, kept = moment.backup, None
    newest = next(reversed(run.repository.proofs(backup.id)), None)
    if in_place and is_server(run):  # the space of the present database is reused
        there = delta_restore(run).inspect(target, backup.raw_facts)
        disks = disks_over(parts_of(moment), there)
        kept = 0 if there.begun else there.bytes  # whoever began has kept it
    elif in_place:
        disks = disks_anew({BODY: 3 * moment.bytes}, {BODY: Path(run.staging).parent})
    else:
        places = {BODY: target.parent}
        for number, told in backup.facts.tablespaces.items():
            if place := next((others[one] for one in told if one in others), None):
                places[number] = Path(place).parent
        disks = disks_anew(parts_of(moment), places)
    tightest = min(disks, key=lambda one: one["free_bytes"] - one["needs_bytes"], default=None)
    return {
        **moment.plan(),
        "grade": newest.grade if newest else str(Grade.STORED),
        "proven_at": instant(newest.at) if newest and newest.grade == Grade.PROVEN else None,
        "failure": failure_of(newest) if newest else None,
        "to": str(target),
        "in_place": in_place,
        "undo_days": UNDO_DAYS if in_place else None,
        "replaceable": is_replaceable(run, backup),
        "needs_bytes": tightest["needs_bytes"] if tightest else moment.bytes,
        "free_bytes": tightest["free_bytes"] if tightest else None,
        "disks": disks,
        "undo_bytes": kept,
        "undo_free_bytes": None if kept is None else storage_free_bytes(run),
        "takes_seconds": newest.restore_seconds if newest else None,
    }


def _rights(backup: Backup, target: Path, lost: Sequence[str]) -> dict[str, Any]:
    """Return the result for owner and permissions as a finding, with the command that sets them."""
    found: dict[str, Any] = to_json(Finding("owner and rights", "failed" if lost else "ok", "; ".join(lost)))
    owner, group = backup.facts.owner, backup.facts.group
    if owner and any(line.startswith(("owner ", "group ")) for line in lost):
        known = owner_of(backup)
        command = shlex.join(["chown", f"{owner}:{group}", str(target)])
        found["hints"] = [command if known else f"{command}  # when this host has a user {owner}"]
    return found


RESTORE = Job("restore", Restore, restore)
UNDO = Job("undo", Undo, undo)
