"""The room that a restore needs, on each disk that it writes to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbguardd.engines.base import BODY, WAL, LiveState
from dbguardd.errors import NoSpace
from dbguardd.humanize import size
from dbguardd.jobs.base import Run
from dbguardd.jobs.moment import Moment
from dbguardd.jobs.target import is_server
from dbguardd.repository import Backup
from dbguardd.storage.room import Limits, Room

_SPACES = "pg_tblspc"
"""The directory of the streams of a cluster's tablespaces, each below its number."""
_SPARE_BYTES = 64 << 20
"""What a test restore leaves free on any disk that is not small, in addition to a tenth of what it needs."""


def check_space(run: Run, plan: Mapping[str, Any]) -> None:
    """Raise NoSpace if a disk has less room than the plan says it needs."""
    if lacking := _lacking(plan):
        raise NoSpace(
            f"{run.name}: not enough space to restore to {plan['to']}",
            detail="; ".join(
                f"{one['path']}: {one['needs_bytes']} bytes are needed, {one['free_bytes']} bytes are free"
                for one in lacking
            )
            + ".",
            hints=[
                f"df -h {shlex.join([one['path'] for one in lacking])}  # free space there"
                + ("" if plan["in_place"] else ", or choose other places with --to and --tablespace")
            ],
            facts={"needed_bytes": lacking[0]["needs_bytes"], "free_bytes": lacking[0]["free_bytes"]},
        )


def short(plan: Mapping[str, Any]) -> list[str]:
    """Return that a disk has less room than the plan needs, for a plan that is only shown."""
    lacking = _lacking(plan)
    told = "; ".join(
        f"{one['path']} needs {size(one['needs_bytes'])}, and has {size(one['free_bytes'])}" for one in lacking
    )
    return [f"there is not enough space, so the restore is refused: {told}"] if lacking else []


def _lacking(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in plan["disks"] if one["free_bytes"] < one["needs_bytes"]]


def parts_of(moment: Moment) -> dict[str, int]:
    """Return how many bytes a restore writes for each part of a database: BODY, WAL, and each tablespace."""
    spaces = dict.fromkeys(moment.backup.facts.tablespaces, 0)
    for stream in moment.backup.streams:
        top, _, rest = stream.name.partition("/")
        number = rest.partition("/")[0]
        if top == _SPACES and number in spaces:
            spaces[number] += stream.size
    log = max(0, moment.bytes - moment.backup.source_bytes) if moment.until is not None else 0
    return {BODY: moment.bytes - log - sum(spaces.values()), WAL: log, **spaces}


def disks_anew(parts: Mapping[str, int], places: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return what each disk needs and has for parts of a database that are written anew.

    `places` are the directories in which the parts appear; a part without one goes with BODY. Empty if unknown.
    """
    disks = dict[int, dict[str, Any]]()
    try:
        for part, needs in parts.items():
            place = places.get(part, places[BODY])
            room = os.statvfs(place)
            free = room.f_bavail * room.f_frsize
            one = disks.setdefault(os.stat(place).st_dev, {"path": str(place), "needs_bytes": 0, "free_bytes": free})
            one["needs_bytes"] += needs
    except OSError:
        return []
    return list(disks.values())


def disks_over(parts: Mapping[str, int], there: LiveState) -> list[dict[str, Any]]:
    """Return the same where the database is overwritten: its space is used again."""
    return [
        {
            "path": disk.path,
            "needs_bytes": max(0, sum(parts.get(part, 0) for part in disk.parts) + there.spare_bytes - disk.bytes),
            "free_bytes": disk.free_bytes,
        }
        for disk in there.disks
    ]


def storage_free_bytes(run: Run) -> int | None:
    """Return how many bytes keep_free and max_size still allow in the storage; None if unknown. Writes nothing."""
    storage = run.spec["storage"]
    try:
        disk = os.statvfs(storage.get("path", ""))  # only a directory has one
    except OSError:
        return None
    room = Room(Limits.of(storage.get("keep_free", 0), storage.get("max_bytes")))
    free, _, keep = room.usable(disk, lambda: sum(entry.size for entry in run.storage.list("")))
    return max(0, free - keep)


def scarce(plan: Mapping[str, Any]) -> list[str]:
    """Return what happens if the state that is replaced does not fit into the storage.

    That is no reason to refuse: the backup that keeps it is usually small, since it shares what older ones have.
    """
    if None in (plan["undo_bytes"], plan["undo_free_bytes"]) or plan["undo_bytes"] <= plan["undo_free_bytes"]:
        return []
    return ["if the current state does not fit into the storage, the restore fails before it changes anything"]


def check_staging(run: Run, backup: Backup, size: int, what: str = "a test restore of") -> None:
    """Raise NoSpace if `what` restores so many bytes that the disk could fill: others write to it, too.

    The live database may be one of them. A dump is restored twice: to files, and from them into a server.
    """
    try:
        disk = os.statvfs(Path(run.staging).parent)
    except OSError:
        return
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    needs = size + (backup.facts.size_bytes if is_server(run) and backup.method == "dump" else 0)
    spare = needs // 10 + min(_SPARE_BYTES, total // 20)
    if free < needs + spare:
        raise NoSpace(
            f"{run.name}: not enough space for {what} backup {backup.id}",
            detail=f"{needs} bytes are needed in {run.staging}, {free} bytes are free, "
            f"of which {spare} bytes must stay free. The backup is unchanged.",
            hints=[f"df -h {shlex.quote(str(Path(run.staging).parent))}"],
            facts={"needed_bytes": needs + spare, "free_bytes": free},
        )
