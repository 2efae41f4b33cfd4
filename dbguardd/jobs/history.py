"""Whether a backup and a stored log belong together, and a server is the one whose backups there are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from dbguardd.errors import Damaged, ObjectMissing, SourceReplaced
from dbguardd.flow import TURNS, Facts
from dbguardd.jobs.base import Run
from dbguardd.repository import Chain, Link
from dbguardd.requests import UNDO_REASON


def check_same(run: Run, facts: Facts) -> None:
    """Raise SourceReplaced if a backup is of another cluster than those before, or of a past that nothing goes on from.

    An empty server where a lost one was would take its place in all that is restored, and its backups would expire; so
    would one that was left behind when another took over. Only a person knows that it is right so, after pg_upgrade or
    a new initdb.
    """
    before = next((backup.facts for backup in run.repository.backups(run.name) if "system" in backup.facts), None)
    if before is not None and facts.get("system", before["system"]) != before["system"]:
        url = str(run.database["settings"].get("url") or "postgresql:///")
        raise SourceReplaced(
            f"{run.name}: is another cluster than the one whose backups there are",
            detail=f"Its system identifier is {facts['system']}, that of the newest backup is {before['system']}. "
            "Nothing was stored: the backups of that one would in time make room for its own. Which of these is it?",
            hints=[
                f"dbguardctl restore {run.name}  # that one was lost; RESTORE.txt says how it takes its place",
                f"dbguardctl unprotect {run.name}  # this is another one; then the next line",
                f"{shlex.join(['dbguardctl', 'protect', url])} --name {run.name}-2",
                f"{successor(run)}  # this is what has become of that one: pg_upgrade, initdb",
            ],
        )
    if put_over(run):
        return
    if set_back(facts, before or {}):
        raise SourceReplaced(
            f"{run.name}: its server was set back to before its newest backup",
            detail="Its log ends before the place that the newest backup is of: a snapshot of its disk was put back, "
            f"or an older copy was started. If that is to go on: {successor(run)}",
            hints=[successor(run)],
        )
    timelines = [int(each["timeline"]) for each in (facts, before) if each is not None and "timeline" in each]
    if (len(timelines) == 2 and timelines[0] < timelines[1]) or not _goes_on(run, facts):
        raise _left_behind(run)


def _left_behind(run: Run) -> SourceReplaced:
    return SourceReplaced(
        f"{run.name}: its server was left behind when another one took over, or was put back",
        detail="What is stored goes on along a newer timeline than that of this server: what is written here is in "
        "no history that goes on. If another server took over, stop this one, and make it anew as a standby "
        "(pg_rewind, pg_basebackup). Only if it was put back by hand, or is to be the primary again, "
        f"whatever was written to the other: {successor(run)}",
        hints=[successor(run)],
    )


def set_back(facts: Facts, before: Facts) -> bool:
    """Say if the log of a server ends before what a backup of it has, in one round; a standby may lag."""
    now, then = facts.get("log_place"), before.get("log_place")
    if facts.get("standby") or not isinstance(now, dict) or not isinstance(then, dict):
        return False
    return bool(now.get("round") == then.get("round") and now.get("position", 0) < then.get("position", 0))


def check_followed(run: Run, facts: Facts) -> None:
    """Raise SourceReplaced if the stored log has left the round that a server is on now, whatever lies in its place.

    Nothing of what it writes from now on is in the history that is followed, also if it has written nothing yet.
    """
    log = run.repository.log(run.name)
    chains, round = [] if log is None else log.chains(), (facts.get("log_place") or {}).get("round")
    if log is None or not chains or put_over(run, chains[-1].id):
        return
    with suppress(Damaged, ObjectMissing):
        until = log.open(chains[-1].pieces[-1])[-1].until
        if round != until["round"] and any(left == round for left, *_ in until.get(TURNS, [])):
            raise _left_behind(run)


def put_over(run: Run, chain: str | None = None) -> bool:
    """Say if a restore in place, or its undo, has put another state where a cluster was: so somebody has said so.

    What was there is a backup since the last one of a running server (or, of a `chain`, one that it goes on from), and
    is held for the undo. Who was refused, and has changed nothing, has let go of it.
    """
    holds = run.repository.holds()
    for backup in run.repository.backups(run.name):
        resting, log = backup.facts.get("resting"), backup.facts.get("log") or {}
        if resting and any(hold.reason == UNDO_REASON for hold in holds.get(backup.id, ())):
            if chain is None or log.get("chain") == chain:
                return True
        elif chain is None and not resting:
            return False
    return False


def _goes_on(run: Run, facts: Facts) -> bool:
    """Say if the log that is stored has not left the round of a backup before the place of it."""
    log = run.repository.log(run.name) if "timeline" in facts else None
    chains = [] if log is None else log.chains()
    if log is None or not chains:
        return True
    with suppress(Damaged, ObjectMissing):
        return leads(facts.get("log_place"), log.open(chains[-1].pieces[-1])[-1].until)
    return True


def successor(run: Run) -> str:
    """Return the command that says: this is what has become of the database that was backed up before."""
    return f"dbguardctl backup {run.name} --successor"


def holds(link: Link, place: Any, at: datetime) -> bool:
    """Say if a segment reaches the place in the log that a backup is of; see flow.Segment.

    A log that was empty then may have another round when the next commit comes. So it is enough that all of a segment
    was committed by a moment not before that of the backup.
    """
    until = link.until
    if not isinstance(place, dict) or not isinstance(place.get("position"), int):
        return False  # none is known; what is there is the engine half's word
    if not place["position"] and link.at >= at:
        return True
    return bool(until["round"] == place.get("round") and until["position"] >= place["position"])


def leads(base: Any, until: Facts) -> bool:
    """Say if the log that ends at a place goes on from the one that a backup is of, and has not left its round before.

    What was stored of a round behind the position where it was left is no part of what follows; see flow.Segment.
    """
    if not isinstance(base, dict) or base.get("round") == until["round"] or not until.get(TURNS):
        return True
    left = next((position for round, position, *_ in until[TURNS] if round == base.get("round")), None)
    return left is not None and base["position"] <= left


def tip(run: Run) -> dict[str, Any] | None:
    """Return where the stored log of the database ends now: a backup that is made from now on contains all of that."""
    log = run.repository.log(run.name)
    chains: Sequence[Chain] = log.chains() if log is not None else ()
    return {"chain": chains[-1].id, "after": chains[-1].last} if chains else None


def going_on(run: Run, before: dict[str, Any] | None, place: Any) -> dict[str, Any] | None:
    """Return where the log goes on from a backup of a place in it: at its end `before` that, or where it began since.

    Only if that beginning is not behind the place: then nothing lies between.
    """
    log = run.repository.log(run.name)
    if log is not None and (chains := log.chains()) and chains[-1].id != (before or {}).get("chain"):
        with suppress(Damaged, ObjectMissing):
            begin, at = log.open(chains[-1].pieces[0])[0], place if isinstance(place, dict) else {}
            known = begin.number == 0 and begin.until["round"] == at.get("round") and "position" in at
            if known and begin.until["position"] <= at["position"]:
                return {"chain": chains[-1].id, "after": 0}
    return before


def tip_at(run: Run, place: Facts) -> dict[str, Any] | None:
    """Return the last segment of the stored log that a backup has, which was made of what lags; None if it has none."""
    log = run.repository.log(run.name)
    chains: Sequence[Chain] = log.chains() if log is not None else ()
    for piece in reversed(chains[-1].pieces if chains else ()):
        for link in reversed(log.open(piece) if log is not None else ()):
            if link.until["round"] == place["round"] and link.until["position"] <= place["end"]:
                return {"chain": piece.chain, "after": link.number}
    return None
