"""The schedule that the policy asks for: every scheduled verb of every database and storage, with its timing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from dbguardd.daemon.inforce import PolicyInForce
from dbguardd.daemon.scheduler import Planned
from dbguardd.policy.policy import Guarded
from dbguardd.policy.schedule import Schedule
from dbguardd.rules.calendar import Timing, jitter


def timetable(inforce: PolicyInForce, host: str) -> Iterator[Planned]:
    """Yield everything that is planned; `host` is a stable id of the machine, from which the jitter derives."""
    policy = inforce.policy
    for name in policy.names():
        guarded = policy.guarded(name)
        for verb, when in (("backup", guarded.backup), ("verify", guarded.verify), ("expire", guarded.expire)):
            if isinstance(when, Schedule):
                yield Planned(name, verb, timing(guarded, when, f"{name} {verb}", host))
    zone = policy.defaults.timezone
    for name in inforce.storages():
        sweep = inforce.storage(name).sweep
        shift = jitter(host, f"{name} sweep", policy.defaults.jitter, sweep)
        yield Planned(f"storage:{name}", "sweep", Timing(sweep, zone, shift=shift))


def timing(guarded: Guarded, when: Schedule, name: str, host: str) -> Timing:
    """Return when one verb of a database runs."""
    shift = jitter(host, name, guarded.jitter, when)
    return Timing(when, guarded.timezone, guarded.window, guarded.missed, shift)


def longest_gap(guarded: Guarded) -> timedelta | None:
    """Return the longest planned time between two proven backups: backups or proofs, whichever are rarer."""
    whens = [when for when in (guarded.backup, guarded.verify) if isinstance(when, Schedule)]
    return max((gaps[1] for when in whens if (gaps := when.gaps()) is not None), default=None)
