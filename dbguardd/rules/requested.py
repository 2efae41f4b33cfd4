"""Decides which backup an id or a moment in a request means, or why there is none. Pure.

The daemon applies these rules to its catalog when a job is requested, and the job applies them to the repository.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dbguardd.errors import NotFound, Unsupported, Usage
from dbguardd.frozen import frozen
from dbguardd.rules import reliance
from dbguardd.rules.backup_state import BackupState

_SHOWN = 5
_OF_KERNEL = ("/proc", "/sys")


@frozen
class Other:
    """A backup that a request for a database cannot mean: it has expired, or is one of another database."""

    id: str
    database: str


def by_id(
    name: str, id: str, own: Sequence[str], others: Callable[[], Iterable[Other]], request: Mapping[str, Any]
) -> str:
    """Return which of the database's `own` backups has that id, or its first or last characters.

    `others` yields the expired backups of the database, then those of other databases. Raises NotFound, and Usage if
    several match.
    """
    found = [one for one in own if _matches(one, id)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = [*found[:_SHOWN], *["…"] * (len(found) > _SHOWN)]
        raise Usage(f"{name}: {id} matches {len(found)} backups", detail=", ".join(shown))
    alike = [other for other in others() if _matches(other.id, id)]
    if alike and alike[0].database == name:
        raise NotFound(
            f"{name}: backup {alike[0].id} has expired",
            detail="Recall it first, then it can be restored.",
            hints=[f"dbguardctl recall {alike[0].id}"],
        )
    if len(alike) == 1:
        raise NotFound(
            f"{name}: backup {alike[0].id} is one of {alike[0].database}",
            detail="A backup is named together with its own database.",
            hints=[_of_other(alike[0], request)],
        )
    raise NotFound(f"{name} has no backup {id}", hints=[f"dbguardctl list {name} --all"])


def at_or_before(name: str, states: Iterable[BackupState], at: str) -> reliance.Choice:
    """Return the choice among the backups made at or before `at`, or among all if it is empty.

    Raises NotFound if there is none, Usage if `at` is not an RFC 3339 moment. At least one backup must exist.
    """
    known = list(states)
    choice = reliance.choose(known, to_moment(at) if at else None)
    if choice.backup is not None:
        return choice
    if choice.passed_over:
        raise NotFound(
            f"{name} has no reliable backup" + (f" that is as old as {at}" if at else ""),
            detail=f"{reliance.passed(choice.passed_over)}.",
            hints=[f"dbguardctl backup {name} --full --verify", f"dbguardctl list {name}"],
        )
    oldest = min(known, key=lambda backup: backup.id)
    raise NotFound(
        f"{name} has no backup as old as {at}",
        detail=f"The oldest is {reliance.named([oldest])}.",
        hints=[f"dbguardctl restore {name} --id {oldest.id} --dry-run", f"dbguardctl list {name}"],
    )


def check_way(name: str, request: Mapping[str, Any], *, is_server: bool) -> None:
    """Raise Usage if a restore says in several ways what to restore; Unsupported for one that its database lacks."""
    if sum(bool(request[way]) for way in ("backup", "at", "lsn", "name")) > 1:
        raise Usage(f"{name}: give only one of --id, --at, --lsn and --name")
    if (request["lsn"] or request["name"]) and not is_server:
        raise Unsupported(
            f"{name}: only the log of a PostgreSQL cluster has positions and restore points",
            detail="Another database is restored as it was at a time.",
            hints=[f"dbguardctl restore {name} --at TIME", f"dbguardctl list {name}  # shows which times"],
        )


def check_place(name: str, place: str) -> None:
    """Raise Usage for a target of a restore in which nothing can be stored."""
    for above in _OF_KERNEL:
        if f"/{posixpath.normpath(place).lstrip('/')}/".startswith(f"{above}/"):
            raise Usage(
                f"{name}: nothing can be restored to {place}",
                detail=f"{above} is not on a disk: the kernel makes the files in it.",
                hints=[f"dbguardctl restore {name} --dry-run  # shows a place beside the live database"],
            )


def to_moment(text: str) -> datetime:
    """Parse an RFC 3339 moment. Raises Usage."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Usage(f"not a moment: {text!r}", detail="Write it like 2026-09-12T08:59:00Z.") from error
    if moment.tzinfo is None:
        raise Usage(f"{text!r} has no time zone", detail="Write it like 2026-09-12T08:59:00Z.")
    return moment


def _matches(id: str, part: str) -> bool:
    return id.startswith(part.upper()) or id.endswith(part.upper())


def _of_other(other: Other, request: Mapping[str, Any]) -> str:
    """Return the command that restores a backup of another database to the requested place, or shows the backup."""
    if "in_place" not in request:
        return f"dbguardctl show {other.id}"
    words = ["dbguardctl", "restore", other.database, "--id", other.id]
    words += ["--to", str(request["to"])] if request["to"] else []
    plan = request["dry_run"] or request["in_place"]  # nobody has asked to replace that database
    return shlex.join([*words, *["--dry-run"] * bool(plan)])
