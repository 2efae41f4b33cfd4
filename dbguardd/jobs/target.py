"""The target of a restore: a place that is free, exists, has room, and belongs to the owner of the original."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dbguardd.engines.landing import ASIDE, reachable, side_files
from dbguardd.errors import PlaceDenied, TargetExists, Unsupported, Usage
from dbguardd.facts import SENT
from dbguardd.flow import LOG
from dbguardd.jobs.base import Run
from dbguardd.jobs.moment import Moment
from dbguardd.kinds import KINDS
from dbguardd.repository import Backup
from dbguardd.requests import NOWHERE, Restore
from dbguardd.rules import requested


def live_path(run: Run) -> Path:
    """Return the path of the live database; for a cluster, the data directory in its newest backup."""
    if not is_server(run):
        return Path(str(run.database["settings"]["path"]))
    facts = [backup.facts for backup in run.repository.backups(run.name)]
    if not (found := next((one.directory for one in facts if one.directory), "")):
        if any(one.read_by == SENT for one in facts):
            raise _not_on_this_host(run)
        raise _no_restore_into_server(run)
    return Path(found)


def is_server(run: Run) -> bool:
    """Return whether the live database is behind a server: then a directory is restored, and no file."""
    return "path" not in run.database["settings"]


def check_in_place(run: Run, backup: Backup) -> None:
    """Raise Unsupported for a backup that cannot be restored in place, for example if the cluster is no longer here."""
    if is_server(run) and backup.method != "pages":
        raise _no_restore_into_server(run)
    newest = next(run.repository.newest(run.name), backup)
    if is_server(run) and newest.facts.read_by == SENT:
        raise _not_on_this_host(run)


def is_replaceable(run: Run, backup: Backup) -> bool:
    """Return whether a backup could be restored in place: a plan suggests only that."""
    try:
        check_in_place(run, backup)
    except Unsupported:
        return False
    return True


def tablespace_targets(run: Run, backup: Backup, target: Path, request: Restore) -> dict[str, str]:
    """Return where tablespaces of the backup are to go, by the names in the request.

    Raises Usage, TargetExists, Unsupported.
    """
    found = dict[str, str]()
    for pair in filter(None, request.tablespace.split(",")):
        old, _, new = pair.rpartition("=")
        if not old or not new.startswith("/"):
            raise Usage(f"{run.name}: --tablespace {pair}: write OLD=NEW, and NEW as an absolute path")
        if old in found:
            raise Usage(f"{run.name}: --tablespace says twice where {old} goes")
        found[old] = new
    if found and (request.in_place or backup.method != "pages" or not is_server(run)):
        why = "in place they stay where they are" if request.in_place else "this backup has none"
        raise Unsupported(f"{run.name}: --tablespace is for a PostgreSQL cluster that goes to a new place: {why}")
    told = backup.facts.tablespaces
    for old in found:
        if not any(old in names for names in told.values()):
            known = ", ".join(f"{name} ({place})" for name, place in told.values()) or "none"
            raise Usage(f"{run.name}: the backup has no tablespace {old}", detail=f"Its tablespaces: {known}.")
    if twice := next((names for names in told.values() if {*names} <= found.keys()), None):
        raise Usage(f"{run.name}: --tablespace says twice where {twice[0]} goes: by its name and by its path")
    _check_places(run, backup, target, found.values())
    return found


def _check_places(run: Run, backup: Backup, target: Path, places: Iterable[str]) -> None:
    """Raise Usage or TargetExists unless each tablespace gets a new directory that contains none of the others."""
    taken = [Path(os.path.normpath(target))]
    for place in (Path(os.path.normpath(new)) for new in places):
        for other in taken:
            if place.is_relative_to(other) or other.is_relative_to(place):
                raise Usage(
                    f"{run.name}: {place} cannot take a tablespace: {other} is needed by the same restore",
                    detail="A tablespace needs a directory of its own. Without --tablespace it goes below the restored "
                    "directory.",
                )
        _check_outside(run, backup, place)
        if _exists(place):
            raise TargetExists(f"{run.name}: {place} exists", detail="A restore never overwrites.")
        taken.append(place)


def _check_outside(run: Run, backup: Backup, place: Path) -> None:
    """Raise Usage for a place in the data directory or a tablespace of the original: it would belong to that."""
    if found := _original_above(backup, place):
        raise Usage(f"{run.name}: {place} lies below {found}, which belongs to the cluster that was backed up")


def _original_above(backup: Backup, place: Path) -> str:
    """Return the directory of the original in which a place lies; "" if it lies outside."""
    places = (backup.facts.directory, *(told[1] for told in backup.facts.tablespaces.values()))
    return next((one for one in places if one and Path(os.path.normpath(one)) in place.parents), "")


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
        detail="It is restored to a new directory; load it from there into the server.",
        hints=[f"dbguardctl restore {run.name}"],
    )


def _not_on_this_host(run: Run) -> Unsupported:
    return Unsupported(
        f"{run.name}: its files came over the network, so they cannot be restored in place on this host",
        detail="They are restored to a new directory here; move that to the host of the server.",
        hints=[f"dbguardctl restore {run.name}"],
    )


def only_backups_left(run: Run) -> bool:
    """Return whether only backups of a database are left: where the live one is, if there is one, is unknown."""
    return bool(run.database.get("place") == NOWHERE)


def new_place(run: Run, moment: Moment) -> str:
    """Return the default target of a restore: beside the live file, or in the home of the user that runs the server."""
    path = _home(run) / run.name if is_server(run) else live_path(run)
    return str(path.with_name(f"{path.stem}_{moment.at:%Y%m%dT%H%M%SZ}{path.suffix}"))


def _home(run: Run) -> Path:
    """Return the home directory of the user that jobs on this database act as."""
    try:
        return Path(pwd.getpwuid(int(run.spec["run_as"])).pw_dir)
    except KeyError:
        raise Usage(
            f"{run.name}: say where to restore to", hints=[f"dbguardctl restore {run.name} --to PLACE"]
        ) from None


def check_target(run: Run, target: Path, request: Restore, moment: Moment) -> None:
    """Refuse a place that is taken, missing or the live database itself."""
    if not target.is_absolute():
        raise Usage(f"{run.name}: the target must be an absolute path, not {str(target)!r}")
    if request.in_place:
        return
    requested.check_place(run.name, str(target))
    _check_outside(run, moment.backup, Path(os.path.normpath(target)))
    for path in (target, *side_files(target)):
        if _exists(path):
            lost = (
                not is_server(run) and not only_backups_left(run) and target == live_path(run) and not _exists(target)
            )
            raise TargetExists(
                f"{run.name}: {path} exists",
                detail="A restore never overwrites"
                + ("." if is_server(run) else "; a leftover -wal or -journal would even change the restored data."),
                hints=[_same_command(request, None if lost else _beside(run, target, moment))],
            )


def leftovers_beside(run: Run, target: Path) -> list[str]:
    """Return what a deleted file has left beside it, and what a restore in place does with that."""
    target = Path(os.path.realpath(target))  # beside the file that a link leads to
    found = [] if is_server(run) or _exists(target) else [path.name for path in side_files(target) if _exists(path)]
    aside = f"{target.name}{ASIDE}"
    return [f"of the file that is gone {', '.join(found)} is left: kept under the name {aside}*"] if found else []


def _beside(run: Run, target: Path, moment: Moment) -> Path:
    """Return the place that was probably meant: inside a directory, or beside what is there, if its owner may write."""
    user = int(run.spec.get("run_as", os.geteuid()))
    name = run.name if is_server(run) or only_backups_left(run) else live_path(run).name
    special = _exists(target) and not (target.is_file() or target.is_dir())  # beside a device there is no place
    taken = any(_exists(target / kind.marker) for kind in KINDS.values() if kind.marker)
    inside = [] if taken else [target / name]  # nothing is put into the data directory of a server
    for place in () if special else (*inside, target.with_name(f"{target.name}.restored")):
        free = not _exists(place) and not _original_above(moment.backup, place)
        if free and _may_write(place.parent, user):
            return place
    return target.with_name(f"{target.name}.restored") if only_backups_left(run) else Path(new_place(run, moment))


def _may_write(directory: Path, user: int) -> bool:
    """Return whether a user may create files in a directory, judging by its owner and mode."""
    try:
        found = directory.stat()
    except OSError:
        return False
    writes = stat.S_IWOTH | (stat.S_IWUSR if found.st_uid == user else 0)
    return stat.S_ISDIR(found.st_mode) and bool(found.st_mode & writes or not user)


def _same_command(request: Restore, to: Path | None) -> str:
    """Return the command that requests the same at another place, or in place.

    It repeats all options: without one it would do something else.
    """
    words = ["dbguardctl", "restore", request.database]
    for option, value in (
        *(("--id", request.backup), ("--at", request.at), ("--lsn", request.lsn), ("--name", request.name)),
        *(("--to", str(to or "")), ("--tablespace", request.tablespace)),
    ):
        words += [option, value] if value else []
    words += [] if to else ["--in-place", "--confirm", request.database]
    return shlex.join([*words, *(["--dry-run"] if request.dry_run else [])])


@contextmanager
def stopping_before(request: Restore, target: Path) -> Iterator[None]:
    """Name in an error about a place that no restore can pass the command that restores up to right before it."""
    try:
        yield
    except Unsupported as error:
        if place := error.facts.get(LOG):
            before = replace(request, backup="", at="", name="", lsn=str(place))
            again = f"dbguardctl list {request.database}  # a moment or a backup after it"
            error.hints = (
                f"{_same_command(before, None if request.in_place else target)}  # up to right before it",
                again,
            )
        raise


def check_directory(backup: Backup, target: Path) -> None:
    """Raise Usage if the directory for a restore is missing, with the command that makes it for the original owner."""
    try:
        os.lstat(target.parent)
    except (FileNotFoundError, NotADirectoryError):
        if owner_of(backup):  # otherwise the engine half reports it: it knows as whom it acts
            message = f"{target}: no such directory: {target.parent}"
            raise Usage(message, hints=[mkdir_command(backup, target.parent)]) from None
    except OSError:
        pass  # if we may not look, the engine half reports it


@contextmanager
def elsewhere(backup: Backup, target: Path) -> Iterator[None]:
    """Name in PlaceDenied inside the block the command that makes a directory for the owner of the original.

    A restore to a new place acts as that user. An error without a hint is of a place where no user can make one.
    """
    try:
        yield
    except PlaceDenied as error:
        if error.hints and owner_of(backup):
            error.hints = (mkdir_elsewhere_command(backup, target),)
        raise


def mkdir_command(backup: Backup, directory: Path) -> str:
    """Return the command with which root creates a directory for the owner of the original."""
    return shlex.join(["install", "-d", "-o", owner_of(backup), "-m", "0700", str(directory)])


def mkdir_elsewhere_command(backup: Backup, target: Path) -> str:
    """Return the command with which root creates a directory that the owner of the original can reach."""
    place = reachable(target.parent / "restored", pwd.getpwnam(owner_of(backup)).pw_uid)
    return f"{mkdir_command(backup, place)}  # and restore to a place in there"


def owner_of(backup: Backup) -> str:
    """Return the owner of the original if this host has that user, else ""."""
    try:
        return pwd.getpwnam(backup.facts.owner).pw_name
    except KeyError:
        return ""


def _exists(path: Path) -> bool:
    """Return whether something exists, even a dangling link. If we may not look, False: the engine half finds out."""
    try:
        os.lstat(path)
    except OSError:
        return False
    return True
