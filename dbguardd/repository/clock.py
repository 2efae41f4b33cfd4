"""Time for deletions: the storage's own, and reasons to doubt it.

Grace periods are measured by the times that the storage itself gives its objects, so that hosts with different clocks
agree. A local directory uses the host's clock, which can be wrong too. So all deletions are refused while

- storage and host differ by more than five minutes,
- an object in the storage is dated later than now (the clock went back),
- nothing was written for 45 days (the clock may have jumped forward because of a dead battery; the run leaves an object
  as a witness, and a later run that finds it old enough continues),
- a grace is over by the storage's clock, but not by the uptime of the same boot (sweep.py).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from dbguardd.errors import ClockDoubt, NoSpace
from dbguardd.frozen import frozen
from dbguardd.repository.model import rfc3339
from dbguardd.repository.seal import Randomness
from dbguardd.storage.base import Entry, Storage
from dbguardd.ulids import ulid

SKEW = timedelta(minutes=5)
SILENCE = timedelta(days=45)
PUBLISH = timedelta(minutes=5)
"""A manifest may rely on a doomed pack until this long before the end of its grace, or until half the grace is over."""

PROMPT_SECONDS = 1.0
"""A publication that took longer than this re-checks what it relies on; a grace must be at least twice this."""

_PROBE = timedelta(hours=1)


@frozen
class Pulse:
    """Time that nobody can set: seconds since the boot `boot`, including suspend."""

    boot: str
    seconds: float


Pulses = Callable[[], Pulse]


def pulse() -> Pulse:
    """Return the uptime of this boot; `boot` is "" if the kernel does not identify it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return Pulse(boot, time.clock_gettime(time.CLOCK_BOOTTIME))


def margin(grace: timedelta) -> timedelta:
    """Return how long before the end of a grace a doomed pack may no longer be relied on."""
    return min(PUBLISH, grace / 2)


def recallable_until(expired_at: datetime, grace: timedelta) -> datetime:
    """Return until when an expired backup can be recalled."""
    return expired_at + grace - margin(grace)


def storage_time(storage: Storage, now: datetime, randomness: Randomness) -> datetime:
    """Return the storage's time, from an object just written. Leaves nothing behind."""
    name = f"clock/{ulid(now, randomness)}"
    try:
        storage.put(name, randomness(16))
    except NoSpace:
        storage.put(name, b"")  # a full disk usually has room for an empty file, and needs this sweep
    try:
        return storage.stat(name).modified_at
    finally:
        storage.delete(name)


def trusted(
    storage: Storage, now: datetime, randomness: Randomness, entries: list[Entry], grace: timedelta
) -> datetime:
    """Return the storage's time for a run that deletes. `entries` is all that it contains. Raises ClockDoubt."""
    there = storage_time(storage, now, randomness)
    if abs(there - now) > SKEW:  # a stale answer has looked like an hour of skew: ask again
        there = storage_time(storage, now, randomness)
    if abs(there - now) > SKEW:
        raise ClockDoubt(
            f"{storage.url}: its clock and this host's differ by {abs((there - now).total_seconds()):.0f} s",
            detail=f"storage {rfc3339(there)}, host {rfc3339(now)}; allowed: {SKEW.total_seconds():.0f} s",
        )
    others = (entry for entry in entries if not entry.name.startswith("clock/"))
    newest = max(others, key=lambda entry: entry.modified_at, default=None)
    if newest is not None and newest.modified_at > there + SKEW:
        raise ClockDoubt(
            f"{storage.url}: the clock has gone back",
            detail=f"{newest.name} was written at {rfc3339(newest.modified_at)}, it is {rfc3339(there)} now. "
            "If the clock is right now, it was ahead then: touch the newer objects, and their grace begins now.",
            hints=("timedatectl", f"find {_place(storage)} -newermt '5 minutes' -exec touch {{}} +  # clock is right"),
        )
    _no_leap(storage, there, newest, randomness, grace)
    return there


def _place(storage: Storage) -> str:
    return shlex.quote(storage.url.partition(":")[2])


def _no_leap(storage: Storage, now: datetime, newest: Entry | None, randomness: Randomness, grace: timedelta) -> None:
    witnesses = list(storage.list("clock/"))
    for witness in witnesses:
        if witness.modified_at > now + SKEW or now - witness.modified_at > SILENCE:
            storage.delete(witness.name)
    seen = [witness.modified_at for witness in witnesses if grace <= now - witness.modified_at <= SILENCE]
    if newest is None or seen or now - newest.modified_at <= SILENCE:
        for witness in witnesses:
            if now - witness.modified_at > _PROBE:  # another process may be using a younger one
                storage.delete(witness.name)
        return
    if not witnesses:
        storage.put(f"clock/{ulid(now, randomness)}", randomness(16))
    raise ClockDoubt(
        f"{storage.url}: nothing was written for {(now - newest.modified_at).days} days; the clock may have jumped",
        detail=f"The newest object, {newest.name}, is from {rfc3339(newest.modified_at)}; it is {rfc3339(now)} now.",
        hints=("dbguardctl backup NAME", f"# or, if the time is right, repeat in {grace.total_seconds() / 3600:.0f} h"),
    )
