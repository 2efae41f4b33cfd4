"""Finds the user who must open a database, without trusting the links on the way, and prepares to run as that user."""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbguardd.errors import GuardError, SourceDenied, WorkerDied
from dbguardd.kinds import KINDS
from dbguardd.requests import NOWHERE
from dbguardd.worker.asking import cannot_read

_MOST_LINKS = 40  # as the kernel


def owner_of_database(database: Mapping[str, Any], request: Mapping[str, Any]) -> int:
    """Return the uid that opens the database: the user in the policy, else the owner of its place (or its directory).

    A daemon that cannot change users tries with its own rights. A database that only has backups is restored by the
    owner of the target's place, but never as root: nobody has said that it was root's. A server is restored there as
    the user that its kind of server runs as: it would not start as any other.
    """
    if database.get("run_as") is not None:
        return int(database["run_as"])
    place = database["place"]
    if place is None:
        return os.geteuid()  # a server elsewhere: it has no owner on this host
    if place != NOWHERE:
        return owner_near(Path(str(place)))
    near = owner_near(Path(str(request["to"]))) if request.get("to") else 0
    return near or _service_uid(str(database.get("engine"))) or os.geteuid()


def _service_uid(engine: str) -> int:
    """Return the uid that a kind of server usually runs as on this host; 0 if there is none or we cannot become it."""
    with suppress(KeyError):
        return pwd.getpwnam(KINDS[engine].account).pw_uid if may_become_others() else 0
    return 0


def owner_near(path: Path) -> int:
    """Return the owner of a path or, if it does not exist, of the directory that it should be in.

    A path that is hidden in a directory which only its owner may enter is taken to be that owner's. A process that
    cannot change users only has itself, but still must not follow the link of a third user, who could make it read what
    only this process can read.
    """
    for place in (path, *path.parents):
        try:
            owner = owner_of(place)
        except PermissionError:
            continue
        except OSError:
            if place != path:
                break
        else:
            return owner if may_become_others() else os.geteuid()
    return os.geteuid()


def owner_of(place: Path) -> int:
    """Return the owner of what an absolute path leads to. Raises OSError.

    Raises SourceDenied if a symbolic link of a third user is on the way: otherwise the owner of one database could have
    another one read, or replaced, in the name of its owner.
    """
    way, here, links = list(place.parts[1:]), Path("/"), list[tuple[Path, int]]()
    found = os.lstat(here)
    while way:
        part = way.pop(0)
        step = here.parent if part == ".." else here / part
        found = os.lstat(step)
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links.append((step, found.st_uid))
        if len(links) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place))
        leads = os.readlink(step)
        here = Path("/") if leads.startswith("/") else here
        way[:0] = [part for part in leads.split("/") if part]
    for link, owner in links:
        if owner not in (0, os.geteuid(), found.st_uid):
            raise SourceDenied(
                f"{place}: leads over a symbolic link of another user",
                detail=f"{link} belongs to uid {owner}, the database to uid {found.st_uid}",
                hints=["set run_as for the database", f"ls -l {link}"],
            )
    return found.st_uid


def may_become_others() -> bool:
    """Return whether this process has CAP_SETUID (bit 7 of its effective capabilities)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 7 & 1)
    return os.geteuid() == 0


def identity(run_as: int) -> dict[str, Any]:
    """Return the arguments that start a child as the database's owner; none if that is our own user."""
    if run_as == os.geteuid():
        return {}
    try:
        user = pwd.getpwuid(run_as)
    except KeyError as error:
        raise SourceDenied(f"no user has the id {run_as}, which owns the database") from error
    if not may_become_others():
        name = pwd.getpwuid(os.geteuid()).pw_name
        raise SourceDenied(
            f"the database belongs to {user.pw_name}, and dbguardd runs as {name}",
            detail="Without CAP_SETUID the daemon can only read databases of its own user.",
            hints=[f'run dbguardd as a service, or set run_as = "{name}" if that user may read the database'],
        )
    return {"user": run_as, "group": user.pw_gid, "extra_groups": os.getgrouplist(user.pw_name, user.pw_gid)}


def explain_missing_setuid(error: SourceDenied, spec: Mapping[str, Any]) -> SourceDenied:
    """Add to an error that no other user could be asked to open the database, if that is the reason."""
    database = spec.get("database") or {}
    if database.get("run_as") is None and not may_become_others() and _belongs_to_another(database.get("place")):
        name = pwd.getpwuid(os.geteuid()).pw_name
        error.detail += f"\ndbguardd runs as {name} and without CAP_SETUID: it cannot become the owner of the database."
        error.hints = (*error.hints, "systemctl cat dbguardd", f"let {name} read the database")
    return error


def _belongs_to_another(place: object) -> bool:
    """Return whether the place of a database has an owner whom we are not, or may have one."""
    if place is None:
        return False  # a server elsewhere: it goes by the role in the url
    with suppress(OSError, SourceDenied):
        return owner_of(Path(str(place))) != os.geteuid()
    return True


def not_started(half: str, run_as: int, error: OSError) -> GuardError:
    """Return the error for a half that the kernel did not start: usually its user may not run our Python."""
    if isinstance(error, PermissionError) and run_as != os.geteuid():
        user = pwd.getpwuid(run_as).pw_name
        if half == "question":
            return cannot_read(user, error)
        return SourceDenied(
            f"{user}, who owns the database, cannot run {sys.executable}",
            detail=f"{error.strerror}. The database is opened by a process of its owner, which needs this Python.",
            hints=[f"let {user} read and execute it and what it imports", 'or set run_as = "root" for the database'],
        )
    return WorkerDied(f"the {half} half of the worker could not be started", detail=error.strerror or str(error))
