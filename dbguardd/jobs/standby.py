"""Keeps a copy of a database up to date from the repository alone, and ends that: standby and promote.

The copy is made from the newest moment, then each segment of the log is applied to it as it appears. This needs storage
and key, and nothing of the machine that the database is on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dbguardd.engines.base import ProofQuery
from dbguardd.errors import (
    Cancelled,
    Damaged,
    GuardError,
    LogBroken,
    NotFound,
    ObjectMissing,
    TargetExists,
    TargetInUse,
    Unsupported,
    Usage,
    WorkerDied,
)
from dbguardd.facts import LogPosition
from dbguardd.frozen import frozen
from dbguardd.jobs.base import Job, Result, Run, instant, shortened
from dbguardd.jobs.moment import Moment, opened, reach
from dbguardd.jobs.target import live_path
from dbguardd.repository import Chain, Link, LogRange, StoredLog
from dbguardd.requests import NOWHERE
from dbguardd.rules.moment import reaches
from dbguardd.serialize import to_json
from dbguardd.verbs import Promote
from dbguardd.verbs import Standby as Keep

_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 10.0  # between two searches for a newer backup: each reads all manifests
_STEP_BYTES = 32 << 20  # of pages that become one change of the copy, or one transaction if that is larger


@frozen
class Mark:
    """The content of a copy: the log `chain` up to `segment`, as it was at `at`.

    A copy of a backup alone is ahead of that segment: it is of `place`, which the next change has to reach.
    """

    repository: str
    database: str
    chain: str
    segment: int
    at: str
    place: LogPosition | None = None

    def reached(self, link: Link) -> bool:
        """Return whether a segment includes everything in the copy."""
        return self.place is None or reaches(link, self.place, datetime.fromisoformat(self.at))


class Keeping:
    """One copy, and how far it is."""

    def __init__(self, run: Run, to: str) -> None:
        if run.standby is None:
            raise Unsupported(f"{run.name}: its engine keeps no standby")
        self._run, self.standby = run, run.standby
        self.target = _target(run, to)
        self.lost: list[str] = []
        self._next_look = 0.0
        self._told: tuple[str, int] | None = None
        self.waiting = ""
        self.mark = Mark("", "", "", 0, "")

    def open(self, *, make: bool) -> bool:
        """Open the copy, or `make` it; return whether its promotion was begun. Raises NotFound if it does not exist."""
        found = self.standby.found(self.target, self._run.progress)
        if found is not None:
            self.mark = _read(found, self.target)
            mine = self._run.repository.id, self._run.name
            if (self.mark.repository, self.mark.database) != mine:
                raise TargetExists(
                    f"{self.target}: is a standby of another database",
                    detail=f"of {self.mark.database} in the repository {self.mark.repository}",
                )
            return bool(found.get("promoted"))
        if not make:
            raise NotFound(f"{self.target}: there is no standby", hints=[f"dbguardd run standby {self._run.name}"])
        moment = reach(self._run)
        mark = self._mark_of(moment)
        with opened(self._run, moment) as tree:
            self.lost = list(self.standby.make(tree, self.target, to_json(mark), self._run.progress))
        self.mark = mark
        facts = {"backup": moment.backup.id, "target": str(self.target), "at": self.mark.at}
        self._run.report("standby", state="made", **facts)
        return False

    def _mark_of(self, moment: Moment) -> Mark:
        """Return the mark of a copy of that moment. Raises Unsupported if no log continues from it."""
        run, log_start, place = self._run, moment.backup.facts.log_start, moment.backup.facts.log_position
        if moment.until is not None:
            chain, segment, place = moment.until.chain.id, moment.until.last, None
        elif log_start is not None and place is not None:
            chain, segment = log_start.chain, log_start.after
        else:
            raise Unsupported(
                f"{run.name}: no log goes on from its newest backup {moment.backup.id}",
                detail="A standby follows the log of a database that has `continuous = true` where it lives.",
                hints=[f"dbguardctl status {run.name}"],
            )
        return Mark(run.repository.id, run.name, chain, segment, moment.at.isoformat(), place)

    # ------------------------------------------------------------------------------------------ keeping up

    def catch_up(self) -> int:
        """Bring the copy to the end of the log; return how many segments were applied.

        Raises LogBroken, Damaged, ObjectMissing if the log does not continue and no newer backup leads past that.
        """
        before, log = self.mark.segment, self._run.repository.log(self._run.name)
        if log is None:
            raise NotFound(f"{self._run.name}: its log is gone from the repository")
        try:
            while (chain := self._goes_on(log)) is not None and self._step(log, chain):
                pass
        except (Damaged, ObjectMissing) as error:
            self._past(error)
        return self.mark.segment - before

    def _goes_on(self, log: StoredLog) -> Chain | None:
        """Return the chain that has the next segment; None if there is none yet."""
        chains = log.chains()
        following, mark = self.mark.segment + 1, self.mark
        for chain in chains:
            if chain.id == mark.chain and chain.first <= following <= chain.last:
                return chain
        if later := [chain for chain in chains if (chain.id, chain.first) > (mark.chain, following)]:
            if later[0].id == mark.chain:
                raise ObjectMissing(f"the log {mark.chain} lacks its segment {following}")
            because = next((link.because for link in log.open(later[-1].pieces[0]) if not link.number), "")
            self._past(LogBroken(f"{self._run.name}: its log has a gap", detail=because))
        return None

    def _step(self, log: StoredLog, chain: Chain) -> bool:
        """Apply the next part of the log to the copy; return False if the log has no further moment yet."""
        mark, size, last, reached = self.mark, 0, None, False
        try:
            for link in log.links(chain, mark.segment + 1, chain.last):
                self._run.progress(f"as of {mark.at}, {chain.last - mark.segment} segments behind", mark.segment, None)
                reached = reached or mark.reached(link)
                last = link if link.size and reached else last
                size += link.count * link.page_size
                if last is not None and size > _STEP_BYTES:
                    break
        except (Damaged, ObjectMissing):
            if last is None:  # the part before it is good
                raise
        if last is None:
            return False
        new = replace(mark, segment=last.number, at=last.at.isoformat(), place=None)
        tree = log.changes(LogRange(chain, mark.segment, last.number), last)
        self.standby.advance(tree, self.target, to_json(new), self._run.progress)
        self.mark = new
        return True

    def _past(self, error: GuardError) -> None:
        """Continue from a newer backup, if there is one; what is skipped is reported. Otherwise raise `error`.

        If a new log was begun, wait: its backup is being made.
        """
        run, now = self._run, self._run.monotonic()
        if now >= self._next_look:
            self._next_look = now + _AGAIN_SECONDS
            moment = reach(run)
            new = self._mark_of(moment)
            if (new.chain, new.segment) > (self.mark.chain, self.mark.segment):
                old = self.mark
                with opened(run, moment) as tree:
                    self.standby.rebase(tree, self.target, to_json(new), run.progress)
                self.mark = new
                facts = {"from_at": old.at, "until_at": new.at, "because": f"{error.message}. {error.detail}".strip()}
                run.report("standby", state="rebased", **facts)
                return
        if not isinstance(error, LogBroken):
            raise error
        self.waits(f"{error.message} ({error.detail}): the backup that it begins with is waited for")

    # ------------------------------------------------------------------------------------------ reporting

    def tell(self) -> None:
        """Report how far the copy is, if that has changed, and report life. Raises Cancelled."""
        mark = self.mark
        if self._told != (mark.chain, mark.segment):
            self._told = mark.chain, mark.segment
            self._run.report("standby", state="reached", **self.facts())
        self._run.progress(f"as of {mark.at}", mark.segment, None)

    def waits(self, why: str) -> None:
        """Report once what keeps the copy from advancing."""
        if why and why != self.waiting:
            self._run.report("standby", state="waiting", why=why, at=self.mark.at)
        self.waiting = why

    def facts(self) -> dict[str, Any]:
        """Return how far the copy is.

        The lag counts from the last stored commit: an idle database is not recognized.
        """
        mark, now = self.mark, self._run.now()
        at = datetime.fromisoformat(mark.at)
        lag = round((now - at).total_seconds(), 3)
        told = {"chain": mark.chain, "segment": mark.segment, "at": instant(at.astimezone(UTC)), "lag_seconds": lag}
        return {"database": self._run.name, "target": str(self.target), **told}


def standby(run: Run, request: Keep) -> Result:
    """Keep the copy up to date until the job is told to end, which is no failure."""
    keeping = Keeping(run, request.to)
    try:
        if keeping.open(make=True):
            raise TargetExists(
                f"{keeping.target}: is being promoted", hints=[f"dbguardd run promote {run.name} --to {keeping.target}"]
            )
        while True:
            try:
                if keeping.catch_up():
                    keeping.waits("")
            except GuardError as error:
                if not isinstance(error, TargetInUse) and (not error.transient or isinstance(error, WorkerDied)):
                    raise
                keeping.waits(error.message)
            keeping.tell()
            time.sleep(_LOOK_SECONDS)
    except Cancelled:
        if not keeping.mark.chain:
            raise
    return {**keeping.facts(), "lost": keeping.lost}


def promote(run: Run, request: Promote) -> Result:
    """Bring the copy to the end of the log, check it, and release it. A gap in the log does not prevent that."""
    keeping = Keeping(run, request.to)
    warnings = []
    if not keeping.open(make=False):
        try:
            keeping.catch_up()
        except (Damaged, ObjectMissing) as error:
            warnings.append(f"{error.message}: what the log has after that is not in the copy")
        warnings += [keeping.waiting] if keeping.waiting else []
    queries = [ProofQuery(**query) for query in run.database.get("queries", ())]
    findings = shortened(keeping.standby.promote(keeping.target, queries, run.progress))
    facts = keeping.facts()
    run.report("standby", state="promoted", **facts)
    return {**facts, "findings": to_json(findings), "warnings": warnings}


def _target(run: Run, to: str) -> Path:
    path = live_path(run)
    if not to and str(path) == NOWHERE:
        raise Usage(f"{run.name}: say with --to where the copy is")
    target = Path(to) if to else path.with_name(f"{path.stem}_standby{path.suffix}")
    if not target.is_absolute():
        raise Usage(f"{run.name}: the target must be an absolute path, not {str(target)!r}")
    if target == path:
        raise Usage(f"{run.name}: {target} is where the policy says that the live database is", hints=["another --to"])
    return target


def _read(found: Mapping[str, Any], target: Path) -> Mark:
    """Parse a mark stored beside the copy. Raises TargetExists if it is none."""
    try:
        mark = Mark(
            str(found["repository"]),
            str(found["database"]),
            str(found["chain"]),
            segment=int(found["segment"]),
            at=datetime.fromisoformat(found["at"]).astimezone(UTC).isoformat(),
            place=LogPosition.read(found["place"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TargetExists(f"{target}: its mark is none that a standby has", detail=repr(error)) from error
    return mark


STANDBY = Job("standby", Keep, standby)
PROMOTE = Job("promote", Promote, promote)
