"""Follows the log of one database: commits are stored within a second.

The daemon runs this job beside all others of the database. It ends when told to, or when the log is interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from dbguardd.errors import Damaged, GuardError, Internal, ObjectMissing, SourceReplaced, WorkerDied
from dbguardd.facts import Turn, turns_in
from dbguardd.flow import Facts, Images, Segment
from dbguardd.frozen import frozen
from dbguardd.jobs.base import Job, Result, Run, instant
from dbguardd.jobs.lineage import successor_command, was_put_over, was_restored_in_place
from dbguardd.lean import hold_on
from dbguardd.repository import Chain, StoredLog
from dbguardd.requests import Request

_TELL_SECONDS = 1.0
_PATIENCE_SECONDS, _PAUSE_SECONDS = 60.0, 1.0


@frozen
class Follow(Request):
    """Store the log of the database from now on, or from where the stored log ends.

    With `end`, stop for good and release the log. That needs neither storage nor key: see worker.repository_half.
    """

    end: bool = False


def follow(run: Run, request: Follow) -> Result:
    """Follow; ends only with an error, usually Cancelled."""
    hold_on()
    log = run.repository.log(run.name, run.now())
    if log is None:
        raise Internal(f"{run.name}: no place for its log was made")
    shipping = Shipping(run, log)
    try:
        run.log.follow(shipping, shipping.resume())
    except SourceReplaced as error:
        error.hints = error.hints or (successor_command(run),)
        raise
    raise Internal(f"{run.name}: following its log ended without a reason")


class Shipping:
    """Stores segments in the repository and tells the daemon how far they reach. Implements flow.LogSink."""

    def __init__(self, run: Run, log: StoredLog) -> None:
        self._run, self._log = run, log
        chains = log.chains()
        self._chain: Chain | None = chains[-1] if chains else None
        self._begun = False
        self._told = 0.0
        self._bytes = 0
        self._wrong, self._audits = "", 0
        self._held, self._held_bytes = list[str](), 0  # as last reported

    def resume(self) -> Facts | None:
        """Return the place up to which the database's log is stored; None if it is unreadable or no longer applies."""
        if self._chain is None or _succeeded(self._run, self._chain):
            return None
        try:
            last = self._log.open(self._chain.pieces[-1])[-1]
            return {**last.until, "sum": last.sum, "at": last.at.isoformat()}
        except (Damaged, ObjectMissing) as error:
            self._run.report("log.unreadable", database=self._run.name, problem=error.message)
            return None

    def begin(self, place: Facts, *, continued: bool, because: str) -> None:
        """Continue the chain, or begin a new one. Allowed once: each beginning is an object and an event."""
        if self._begun and (continued or not self._wrong):
            raise WorkerDied("the engine half began its log twice")
        self._wrong = ""
        self._begun = True
        before = None if self._chain is None else instant(self._chain.until)
        if not continued and self._chain is not None and was_put_over(self._run, self._chain.until):
            because = "a restore in place, or its undo, has replaced the database"  # the engine sees only another log
        if not continued or self._chain is None:
            self._chain = self._log.begin(place, because, self._run.now())
        facts = {
            "chain": self._chain.id,
            "begun_at": instant(self._chain.begun_at),
            "continued": continued,
            "because": because,
            "stored_until_at": before,
        }
        self._run.report("log.begun", database=self._run.name, at=instant(self._run.now()), **facts)

    def audited(self, wrong: str) -> None:
        """Report the result of comparing the live database with its log; report a mismatch only once."""
        self._audits += bool(wrong)
        if self._audits > 1:
            raise WorkerDied("the engine half found its log wrong twice", detail=wrong)
        self._wrong = wrong
        outcome = "failed" if wrong else "ok"
        self._run.report("log.audited", database=self._run.name, outcome=outcome, detail=wrong)

    def held(self, log_bytes: int, by: Sequence[str]) -> None:
        """Report which processes hold a growing log, whenever these change or the log has become twice as long."""
        if list(by) != self._held or (by and log_bytes >= 2 * self._held_bytes):
            self._held, self._held_bytes = list(by), log_bytes
            self._run.report("log.held", database=self._run.name, log_bytes=log_bytes, by=self._held)

    def ship(self, segment: Segment) -> None:
        """Store the next segment."""
        if self._chain is None or not self._begun:
            raise Internal("a segment came before the log was begun")
        segment = replace(segment, at=min(segment.at, self._run.now()))  # a segment cannot be from the future
        self._chain = self._patiently(self._chain, segment)
        if (turns := turns_in(segment.until)) != turns_in(segment.since):
            self._turned(segment, turns[-1])
        self._bytes += len(segment.body.pages if isinstance(segment.body, Images) else segment.body)

    def _turned(self, segment: Segment, turn: Turn) -> None:
        """Report that the log continues on another round, and how much of the one before is not part of it."""
        facts = {
            "round": segment.until["round"],
            "left_round": segment.since["round"],
            "lost_bytes": turn.stored - turn.left or None,
        }
        self._run.report("log.turned", database=self._run.name, at=instant(self._run.now()), **facts)

    def _patiently(self, chain: Chain, segment: Segment) -> Chain:
        """Store a segment, retrying for a while: meanwhile nothing of the log is lost, it only grows."""
        began, told = self._run.monotonic(), ""
        while True:
            try:
                return self._log.append(chain, segment)
            except GuardError as error:
                if not error.transient or self._run.monotonic() - began > _PATIENCE_SECONDS:
                    raise
                if error.code != told:  # so that a user learns of it at once; messages name ever new objects
                    told = error.code
                    self._run.report("waits", problem=error.problem())
            time.sleep(_PAUSE_SECONDS)
            self._run.progress("wait", self._bytes, None)

    def reached(self, at: datetime | None) -> None:
        """Report, once a second, up to when everything is stored. Raises Cancelled."""
        run, now = self._run, self._run.monotonic()
        run.progress("follow", self._bytes, None)
        if at is not None and self._chain is not None and now - self._told >= _TELL_SECONDS:
            self._told = now
            until = min(at, run.now())
            run.report("reached", chain=self._chain.id, segment=self._chain.last, until_at=instant(until))


def _succeeded(run: Run, chain: Chain) -> bool:
    """Return whether another cluster was since declared the successor, or put in place: no log continues to that."""
    known = (backup.facts for backup in run.repository.newest(run.name))
    named = any(
        one.successor and one.system and one.log_start is not None and one.log_start.chain == chain.id for one in known
    )
    return named or was_restored_in_place(run, chain.id)


FOLLOW = Job("follow", Follow, follow)
