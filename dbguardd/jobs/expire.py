"""Expires the backups that the policy no longer keeps, and frees the space of those whose grace is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from dbguardd.errors import Breaker, ClockDoubt, Damaged, ObjectMissing
from dbguardd.jobs.base import Job, Result, Run, grace, instant, log_view
from dbguardd.jobs.choose import states_of
from dbguardd.jobs.moment import base_of, tell_log
from dbguardd.jobs.restore import past_undo
from dbguardd.repository import Backup, Chain, Hold, Piece, recallable_until
from dbguardd.requests import UNDO_REASON, Expire, Sweep
from dbguardd.rules import retention
from dbguardd.rules.keep_log import begin_of, outlived

_CLOCK_DOUBT_SECONDS = 300.0


def expire(run: Run, request: Expire) -> Result:
    """Decide by the rules, then write a tomb for each expired backup. A dry run only returns the verdict."""
    now = run.now()
    backups, holds = run.repository.backups(run.name), run.repository.holds()
    outlived = past_undo(backups, holds, now)
    for id in outlived:
        holds[id] = [hold for hold in holds[id] if hold.reason != UNDO_REASON]
    verdict = decide(run, backups, holds, now)
    chains = log_view(run).chains
    forgotten = _outlived(run, chains, backups)
    size = {"objects": len(forgotten), "bytes": sum(piece.size for piece in forgotten)}
    plan = {
        "log": size,
        "keep": [{"id": id, "because": list(reasons)} for id, reasons in verdict.keep.items()],
        "drop": [{"id": id, "because": list(reasons)} for id, reasons in verdict.drop.items()],
        "breaker": verdict.breaker,
    }
    if request.dry_run or not (verdict.drop or outlived or forgotten or grains(run)):
        return {"plan": plan, "expired": []}
    _trust_clock(run, backups, now)
    for id in outlived:
        run.repository.release(id, run.actor, now, UNDO_REASON)
        run.report("backup.released", id=id, reason=UNDO_REASON, reasons=[UNDO_REASON])
    confirmed = request.confirm == run.name
    if verdict.breaker and not confirmed:
        raise Breaker(
            f"{run.name}: {len(verdict.drop)} of {len(backups)} backups would be deleted at once",
            detail=verdict.breaker,
            hints=[f"dbguardctl prune {run.name} --dry-run", f"dbguardctl prune {run.name} --confirm {run.name}"],
        )
    _forget(run, chains, forgotten)
    run.repository.expire({id: list(reasons) for id, reasons in verdict.drop.items()}, now, confirmed=confirmed)
    until = instant(recallable_until(now, grace(run)))
    for id, reasons in verdict.drop.items():
        run.report("backup.expired", id=id, reasons=list(reasons), grace_until_at=until)
    _thin(run)
    return {"plan": plan, "expired": list(verdict.drop), "recall_until_at": until}


def _forget(run: Run, chains: Sequence[Chain], pieces: Sequence[Piece]) -> None:
    """Delete the beginning of the log, and report what is gone, even if the storage fails to delete some of it."""
    if not pieces:
        return
    log, gone = run.repository.log(run.name), list[Piece]()
    backups = run.repository.backups(run.name, expired=True)  # read before: the storage may fail in the middle
    try:
        for piece in pieces:
            gone.append(piece)  # it may be deleted even if that failed
            if log is not None:
                log.forget([piece])
    finally:
        size = {"objects": len(gone), "bytes": sum(piece.size for piece in gone)}
        run.report("log.forgotten", database=run.name, **size, until_at=instant(gone[-1].until))
        left = ((chain.id, tuple(piece for piece in chain.pieces if piece not in gone)) for chain in chains)
        tell_log(run, run.name, [Chain(id, pieces) for id, pieces in left if pieces], backups)


def grains(run: Run) -> dict[int, timedelta]:
    """Return how coarse the log is to become: one moment in so many seconds, from which age on."""
    return {int(seconds): timedelta(seconds=float(age)) for seconds, age in run.database.get("thin_log") or ()}


def _thin(run: Run) -> None:
    """Make the log coarser where it is old enough. What is unreadable stays as it is; a check reports it."""
    log = run.repository.log(run.name)
    if log is None or not grains(run):
        return
    now, backups = run.repository.storage_time(run.now()), run.repository.backups(run.name, expired=True)
    others, beat = [backup.created_at for backup in backups], lambda number: run.progress("log", number, None)
    try:
        for made in log.make_coarser(grains(run), now, others, beat):
            facts = {"chain": made.chain, "grain_seconds": made.grain, "until_at": instant(made.until)}
            sizes = {"freed_bytes": made.freed_bytes, "bytes": made.stored_bytes}
            run.report("log.thinned", database=run.name, outcome="ok", **facts, **sizes)
            tell_log(run, run.name, log.chains(), backups)
    except (Damaged, ObjectMissing) as error:
        run.report("log.thinned", database=run.name, outcome="failed", problem=error.message, code=error.code)


def _outlived(run: Run, chains: Sequence[Chain], backups: Sequence[Backup]) -> list[Piece]:
    """Return the parts of the log that are older than keep_log by the storage's own time."""
    if not chains:
        return []
    age, now = timedelta(seconds=float(run.database["keep_log_seconds"])), run.repository.storage_time(run.now())
    stored = (piece.stored_at for chain in chains for piece in chain.pieces)
    start = begin_of(age, now, [*stored, *(backup.created_at for backup in backups)])
    sound = {backup.id for backup in states_of(run, backups) if not backup.failed and not backup.safety}
    bases = [base_of(backup) for backup in backups if backup.id in sound]
    return outlived(chains, bases, start, grains(run))


def decide(
    run: Run, backups: Sequence[Backup], holds: Mapping[str, Sequence[Hold]], now: datetime
) -> retention.Verdict:
    """Apply the retention rule, given what is proven and held."""
    return retention.decide(states_of(run, backups, holds), retention.Keep.from_spec(run.database), now)


def sweep(run: Run, request: Sweep) -> Result:
    """Free what no backup needs any more, in two steps one grace apart."""
    confirmed = request.confirm == request.storage
    swept = run.repository.sweep(run.now(), grace(run), dry_run=request.dry_run, confirmed=confirmed)
    if not request.dry_run:
        for id in swept.backups:
            run.report("backup.swept", id=id)
        run.report("sweep.done", objects=swept.objects, freed_bytes=swept.bytes, marked=swept.marked)
    return {
        "backups": list(swept.backups),
        "objects": swept.objects,
        "freed_bytes": swept.bytes,
        "marked": swept.marked,
        "marked_bytes": swept.marked_bytes,
        "young": swept.young,
        "young_bytes": swept.young_bytes,
        "waiting": swept.waiting,
        "next_at": None if swept.next_at is None else instant(swept.next_at),
        "dry_run": swept.dry_run,
    }


def _trust_clock(run: Run, backups: Sequence[Backup], now: datetime) -> None:
    """Refuse to delete by a clock that the storage or the backups themselves contradict. Raises ClockDoubt."""
    skew = run.storage.probe().clock_skew_seconds
    if abs(skew) > _CLOCK_DOUBT_SECONDS:
        raise ClockDoubt(
            f"{run.name}: nothing is deleted while the clocks disagree",
            detail=f"The storage's clock differs from this host's by {skew:.0f} s.",
        )
    for newest in backups[:1]:
        if newest.created_at > now + timedelta(seconds=_CLOCK_DOUBT_SECONDS):
            raise ClockDoubt(
                f"{run.name}: nothing is deleted while the clock is behind the newest backup",
                detail=f"It is {instant(now)} here; the newest backup was made at {instant(newest.created_at)}.",
                hints=[f"dbguardctl backup {run.name}  # if the clock is right now: the last one made counts"],
            )


EXPIRE = Job("expire", Expire, expire)
SWEEP = Job("sweep", Sweep, sweep)
