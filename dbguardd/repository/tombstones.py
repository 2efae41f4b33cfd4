"""Tombs: what is to be deleted, and since when. They are the first phase of the sweep, and writers look at them.

The tomb of a backup makes it invisible at once. The tomb of a pack is only a warning: the pack stays for the grace that
the tomb names, and a sweep checks every backup again before it deletes the pack. A writer that inherits packs from its
parent, or a recall of a backup, may rely on a doomed pack only while its tomb is younger than the grace less a margin;
then the manifest exists before any sweep decides. tests/repository/test_gc_model.py tries all interleavings, and shows
that each of these conditions is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Any

from dbguardd.errors import Busy, ClockDoubt, Damaged, ObjectMissing
from dbguardd.frozen import frozen
from dbguardd.repository.clock import SKEW, Pulse, margin
from dbguardd.repository.model import Backup, moment, rfc3339
from dbguardd.repository.packs import object_name
from dbguardd.repository.records import Record, Records
from dbguardd.repository.seal import Randomness
from dbguardd.storage.base import Entry, Storage
from dbguardd.ulids import ulid

PER_TOMB = 4096
"""Packs in one tomb: about 280 KiB of JSON."""


@frozen
class Tombstone:
    """One tomb: of `backup`, or of `packs`. Its age counts from `stored_at`, by the storage's clock."""

    name: str
    stored_at: datetime
    at: datetime  # by the clock of the host that wrote it
    pulse: Pulse
    backup: str
    packs: frozenset[str]
    grace: timedelta  # of packs; for a backup the sweep's grace applies
    reasons: tuple[str, ...]

    def over(self, now: datetime, pulse: Pulse, grace: timedelta) -> bool:
        """Return whether the grace is over by every available clock. Raises ClockDoubt if they disagree."""
        longest = max(grace, self.grace)
        if now - max(self.stored_at, self.at) < longest:
            return False
        same_boot = pulse.boot == self.pulse.boot != ""
        if same_boot and timedelta(seconds=pulse.seconds - self.pulse.seconds) + SKEW < longest:
            raise ClockDoubt(
                f"{self.name}: its grace is over by the storage's clock, but not by this host's uptime",
                detail=f"{(now - self.stored_at).total_seconds():.0f} s by the storage, "
                f"{pulse.seconds - self.pulse.seconds:.0f} s of uptime, the grace is {longest.total_seconds():.0f} s",
            )
        return True


def tombstone_of(record: Record) -> Tombstone:
    """Parse a tomb. Raises Damaged if the record is none."""
    body = record.body
    try:
        return Tombstone(
            record.name,
            record.stored_at,
            moment(body["at"]),
            Pulse(body["boot"], body["uptime_seconds"]),
            body.get("backup", ""),
            frozenset(body.get("packs", ())),
            timedelta(seconds=body.get("grace_seconds", 0)),
            tuple(body.get("reasons", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{record.name}: not a tomb of this format", detail=repr(error)) from error


def put_backup_tombstone(records: Records, backup: str, reasons: Iterable[str], now: datetime, pulse: Pulse) -> None:
    """Write the tomb of a backup."""
    body = {"backup": backup, "reasons": list(reasons), **_when(now, pulse)}
    records.put(records.keyring.root, "tomb", backup, body)


def put_pack_tombstones(
    records: Records, packs: Iterable[str], grace: timedelta, *, now: datetime, pulse: Pulse, randomness: Randomness
) -> None:
    """Write tombs for packs, up to PER_TOMB in each. `now` is the storage's time."""
    names = sorted(packs)
    for start in range(0, len(names), PER_TOMB):
        body = {
            "grace_seconds": grace.total_seconds(),
            "packs": names[start : start + PER_TOMB],
            **_when(now, pulse),
        }
        records.put(records.keyring.root, "tomb", ulid(now, randomness), body)


def _when(now: datetime, pulse: Pulse) -> Mapping[str, Any]:
    return {"at": rfc3339(now), "boot": pulse.boot, "uptime_seconds": round(pulse.seconds, 3)}


def tombstones(records: Records) -> Iterator[Tombstone]:
    """Yield the tombs that open, oldest name first."""
    return (tombstone_of(record) for record in records.readable("tomb"))


def check_packs_stay(
    storage: Storage, records: Records, packs: AbstractSet[str], storage_now: Callable[[], datetime], backup: Backup
) -> None:
    """Check that the manifest of `backup`, which needs `packs`, may be published within the margin from now.

    Tombs are read before packs are listed, because a sweep deletes a tomb after its packs. Raises Busy, ObjectMissing.
    """
    what, full = f"{backup.database}: backup {backup.id}", f"dbguardctl backup {backup.database} --full"
    for tomb in list(tombstones(records)):
        doomed = packs & tomb.packs
        if doomed and storage_now() - tomb.stored_at >= tomb.grace - margin(tomb.grace):
            raise Busy(
                f"{what}: {len(doomed)} packs that it shares with an older backup are about to be deleted",
                detail=f"tomb {tomb.name}, for example {min(doomed)}; the grace is {tomb.grace}",
                hints=(full,),
            )
    missing = packs - {pack_of(entry) for entry in storage.list("packs/")}
    if missing:
        raise ObjectMissing(
            f"{what}: {len(missing)} of the {len(packs)} packs it needs are not in the storage",
            detail=", ".join(object_name(pack) for pack in sorted(missing)[:8]),
            hints=(f"dbguardctl check {backup.database}", full),
        )


def pack_of(entry: Entry) -> str:
    """Return the hash of a pack, from its object name."""
    return entry.name.rpartition("/")[2]
