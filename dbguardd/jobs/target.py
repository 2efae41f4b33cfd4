"""Where a restore goes: a place that is free, that exists, that has room, and that is whose the original is."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbguardd.engines.landing import ASIDE, reachable
from dbguardd.errors import NoSpace, TargetExists, Unsupported, Usage
from dbguardd.facts import SENT
from dbguardd.jobs.base import Run
from dbguardd.jobs.moment import Moment
from dbguardd.repository import Backup
from dbguardd.requests import NOWHERE, Restore

_SPARE_BYTES = 64 << 20
"""What a test restore leaves free on any disk that is not small, beside a tenth of what it needs."""


def live_path(run: Run) -> Path:
    """Return the path of the live database; of a cluster, the directory that its newest backup is of."""
    if not is_server(run):
        return Path(str(run.database["settings"]["path"]))
    facts = [backup.facts for backup in run.repository.backups(run.name)]
    if not (found := next((one.directory for one in facts if one.directory), "")):
        if any(one.read_by == SENT for one in facts):
            raise _not_on_this_host(run)
        raise _no_restore_into_server(run)
    return Path(found)


def is_server(run: Run) -> bool:
    """Say if the live database is behind a server: what is restored is a directory, and no file."""
    return "path" not in run.database["settings"]


def check_in_place(run: Run, backup: Backup) -> None:
    """Raise Unsupported for a backup that cannot be restored in place, also where the cluster is no longer here."""
    if is_server(run) and backup.method != "pages":
        raise _no_restore_into_server(run)
    newest = next(run.repository.newest(run.name), backup)
    if is_server(run) and newest.facts.read_by == SENT:
        raise _not_on_this_host(run)


def tablespace_targets(run: Run, backup: Backup, request: Restore) -> dict[str, str]:
    """Return where tablespaces of the backup are to go, by what the request calls them. Raises Usage, Unsupported."""
    found = dict[str, str]()
    for pair in filter(None, request.tablespace.split(",")):
        old, _, new = pair.rpartition("=")
        if not old or not new.startswith("/"):
            raise Usage(f"{run.name}: --tablespace {pair}: write OLD=NEW, and NEW as an absolute path")
        found[old] = new
    if found and (request.in_place or backup.method != "pages" or not is_server(run)):
        why = "in place they stay where they are" if request.in_place else "this backup has none"
        raise Unsupported(f"{run.name}: --tablespace is for a PostgreSQL cluster that goes to a new place: {why}")
    told = backup.facts.tablespaces
    for old in found:
        if not any(old in names for names in told.values()):
            known = ", ".join(f"{name} ({place})" for name, place in told.values()) or "none"
            raise Usage(f"{run.name}: the backup has no tablespace {old}", detail=f"Its tablespaces: {known}.")
    return found


def tablespaces(backup: Backup, target: Path, others: Mapping[str, str], *, in_place: bool) -> list[dict[str, str]]:
    """Return where each tablespace of a backup was, and where it goes."""
    found = []
    for number, (name, place) in backup.facts.tablespaces.items():
        below = place if in_place else str(target / "tablespaces" / number)
        found.append({"name": name, "from": place, "to": others.get(name, others.get(place, below))})
    return found


def _no_restore_into_server(run: Run) -> Unsupported:
    return Unsupported(
        f"{run.name}: the databases of a live server are not replaced by a dump",
        detail="It is restored to a new directory, and brought back from there beside them, or in their place.",
        hints=[f"dbguardctl restore {run.name}"],
    )


def _not_on_this_host(run: Run) -> Unsupported:
    return Unsupported(
        f"{run.name}: the server has sent its files, so there is no place on this host to restore them in",
        detail="They are restored to a new directory here, from where its owner moves it to the host of the server.",
        hints=[f"dbguardctl restore {run.name}"],
    )


def only_backups_left(run: Run) -> bool:
    """Say if only backups are left of a database: nobody knows where the live one is, or whether there is one."""
    return bool(run.database.get("place") == NOWHERE)


def new_place(run: Run, moment: Moment) -> str:
    """Return where a restore goes if nobody says: beside the live file, or to the home of who runs the server."""
    path = _home(run) / run.name if is_server(run) else live_path(run)
    return str(path.with_name(f"{path.stem}_{moment.at:%Y%m%dT%H%M%SZ}{path.suffix}"))


def _home(run: Run) -> Path:
    """Return the home directory of the user as whom a job on this database acts."""
    try:
        return Path(pwd.getpwuid(int(run.spec["run_as"])).pw_dir)
    except KeyError:
        raise Usage(f"{run.name}: say where it is to go", hints=[f"dbguardctl restore {run.name} --to PLACE"]) from None


def check_target(run: Run, target: Path, request: Restore, moment: Moment) -> None:
    """Refuse a place that is taken, missing or the live database itself."""
    if not target.is_absolute():
        raise Usage(f"{run.name}: the target must be an absolute path, not {str(target)!r}")
    if request.in_place:
        return
    for path in (target, *_side_files(target)):
        if _exists(path):
            lost = (
                not is_server(run) and not only_backups_left(run) and target == live_path(run) and not _exists(target)
            )
            raise TargetExists(
                f"{run.name}: {path} exists",
                detail="A restore never overwrites; a stray -wal or -journal would even change the restored data.",
                hints=[_same_command(request, None if lost else _beside(run, target, moment))],
            )


def _side_files(target: Path) -> list[Path]:
    return [target.with_name(target.name + end) for end in ("-wal", "-shm", "-journal")]


def leftovers_beside(run: Run, target: Path) -> list[str]:
    """Say what a file that was deleted has left beside it, and what a restore in place does with that."""
    target = Path(os.path.realpath(target))  # beside what a link leads to
    found = [] if is_server(run) or _exists(target) else [path.name for path in _side_files(target) if _exists(path)]
    aside = f"{target.name}{ASIDE}"
    return [f"of the file that is gone {', '.join(found)} is left: kept under the name {aside}*"] if found else []


def _beside(run: Run, target: Path, moment: Moment) -> Path:
    """Return the place that was probably meant: in a directory, or beside what is there, where its owner may write."""
    user = int(run.spec.get("run_as", os.geteuid()))
    name = run.name if is_server(run) or only_backups_left(run) else live_path(run).name
    for place in (target / name, target.with_name(f"{target.name}.restored")):
        if _may_write(place.parent, user) and not _exists(place):
            return place
    return target.with_name(f"{target.name}.restored") if only_backups_left(run) else Path(new_place(run, moment))


def _may_write(directory: Path, user: int) -> bool:
    """Say if a user may make files in a directory, as far as its owner and mode tell."""
    try:
        found = directory.stat()
    except OSError:
        return False
    writes = stat.S_IWOTH | (stat.S_IWUSR if found.st_uid == user else 0)
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & writes or not user)


def _same_command(request: Restore, to: Path | None) -> str:
    """Return the command that asks for the same at another place, or in place.

    With less of it, it would do something else.
    """
    words = ["dbguardctl", "restore", request.database]
    for option, value in (
        *(("--id", request.backup), ("--at", request.at), ("--lsn", request.lsn), ("--name", request.name)),
        *(("--to", str(to or "")), ("--tablespace", request.tablespace)),
    ):
        words += [option, value] if value else []
    words += [] if to else ["--in-place", "--confirm", request.database]
    return shlex.join([*words, *(["--dry-run"] if request.dry_run else [])])


def check_directory(backup: Backup, target: Path) -> None:
    """Raise Usage if there is no directory for a restore; what makes one gives it to the owner of the original."""
    try:
        os.lstat(target.parent)
    except (FileNotFoundError, NotADirectoryError):
        if owner_of(backup):  # else the engine half says it, which knows as whom it acts
            message = f"{target}: there is no directory {target.parent}"
            raise Usage(message, hints=[mkdir_command(backup, target.parent)]) from None
    except OSError:
        pass  # what may not be looked at is left to the engine half


def mkdir_command(backup: Backup, directory: Path) -> str:
    """Return the command by which root makes a directory for the owner of the original."""
    return shlex.join(["install", "-d", "-o", owner_of(backup), "-m", "0700", str(directory)])


def mkdir_elsewhere_command(backup: Backup, target: Path) -> str:
    """Return the command by which root makes a directory for the owner of the original that he can come to."""
    place = reachable(target.parent / "restored", pwd.getpwnam(owner_of(backup)).pw_uid)
    return f"{mkdir_command(backup, place)}  # and restore to a place in there"


def owner_of(backup: Backup) -> str:
    """Return the owner of the original if this host knows him, else nothing."""
    try:
        return pwd.getpwnam(backup.facts.owner).pw_name
    except KeyError:
        return ""


def check_space(run: Run, plan: Mapping[str, Any]) -> None:
    """Raise NoSpace if less is free than the plan says it needs."""
    if plan["free_bytes"] is not None and plan["free_bytes"] < plan["needs_bytes"]:
        raise NoSpace(
            f"{run.name}: not enough space to restore to {plan['to']}",
            detail=f"{plan['needs_bytes']} bytes are needed, {plan['free_bytes']} bytes are free.",
            hints=["free space there, or choose another place with --to"],
            facts={"needed_bytes": plan["needs_bytes"], "free_bytes": plan["free_bytes"]},
        )


def check_staging(run: Run, backup: Backup, size: int, what: str = "a test restore of") -> None:
    """Raise NoSpace if `what` brings back so many bytes that its disk could fill: others write there, too.

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
            f"of which {spare} bytes have to stay so. The backup is as it was.",
            hints=[f"df -h {shlex.quote(str(Path(run.staging).parent))}"],
            facts={"needed_bytes": needs + spare, "free_bytes": free},
        )


def _exists(path: Path) -> bool:
    """Say if something is there, even a dangling link; unknown (no permission to look) is left to the engine half."""
    try:
        os.lstat(path)
    except OSError:
        return False
    return True


def free_bytes(directory: Path) -> int | None:
    """Return what a process of ours may still write below a directory; None if nobody knows."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize
