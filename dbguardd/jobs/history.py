"""Whether a server is the one whose backups there are, and has gone on from what is stored of it."""

from __future__ import annotations

from contextlib import suppress

from dbguardd.errors import Damaged, ObjectMissing, SourceReplaced
from dbguardd.flow import Facts
from dbguardd.jobs.base import Run
from dbguardd.jobs.moment import leads


def check_same(run: Run, facts: Facts) -> None:
    """Raise SourceReplaced if a backup is of another cluster than those before, or of a past that nothing goes on from.

    An empty server where a lost one was would take its place in all that is restored, and its backups would expire; so
    would one that was left behind when another took over. Only a person knows that it is right so, after pg_upgrade or
    a new initdb.
    """
    before = next((backup.facts for backup in run.repository.backups(run.name) if "system" in backup.facts), None)
    if before is not None and facts.get("system", before["system"]) != before["system"]:
        raise SourceReplaced(
            f"{run.name}: is another cluster than the one whose backups there are",
            detail=f"Its system identifier is {facts['system']}, that of the newest backup is {before['system']}. "
            "Those backups would in time make room for its own. If that one was lost, restore it first. If this is "
            "another server, end this protection and protect it under another name. Only if this is what has become of "
            f"that one, by pg_upgrade or initdb: {successor(run)}",
            hints=[f"dbguardctl restore {run.name}", f"dbguardctl unprotect {run.name}"],
        )
    timelines = [int(each["timeline"]) for each in (facts, before) if each is not None and "timeline" in each]
    if (len(timelines) == 2 and timelines[0] < timelines[1]) or not _goes_on(run, facts):
        raise SourceReplaced(
            f"{run.name}: its server was left behind when another one took over",
            detail="What is stored goes on along the history of that other server, and this one is on an older "
            "timeline: what is written here is in no history that goes on. Make it anew as a standby (pg_rewind, "
            "pg_basebackup). Only if it is to be the primary again, whatever was written to the other: "
            f"{successor(run)}",
            hints=[successor(run)],
        )


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
