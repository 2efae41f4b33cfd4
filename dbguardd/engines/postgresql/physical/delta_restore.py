"""Restores a cluster in place: only what differs is written (see engines.base.DeltaRestore).

Meanwhile the directory has another name, so no server finds it, and a killed restore leaves nothing that could be
started as if it were whole. The next restore, or undo, continues with what it finds under that name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from dbguardd.durable import sync_directory
from dbguardd.engines.base import BODY, REPLACED, LiveDisk, LiveState, Progress
from dbguardd.engines.base import WAL as LOG
from dbguardd.engines.landing import outcome, outcomes
from dbguardd.engines.postgresql.fresh import beside, clear_left, durable
from dbguardd.engines.postgresql.physical import resting
from dbguardd.engines.postgresql.physical.configuration import DIRECTORY
from dbguardd.engines.postgresql.physical.copy import LOG as ARCHIVE
from dbguardd.engines.postgresql.physical.datadir import CONTROL, TABLESPACES, WAL
from dbguardd.engines.postgresql.physical.elsewhere import lead
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.rebuild import MANUAL, Restored, fill
from dbguardd.engines.postgresql.physical.resting import Resting, look_at
from dbguardd.engines.postgresql.physical.roll_forward import roll_forward
from dbguardd.engines.postgresql.physical.tarred import unpack
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import GuardError, NoSpace, SourceMissing, SourceReplaced, TargetExists, TargetInUse, Unsupported
from dbguardd.flow import Facts, Sink, Tree

ASIDE = ".in-restore"
"""The suffix of the directory's name while it is written."""

_SPARE_BYTES = 64 << 20

Adopt = Callable[[Path, Restored], None]
"""Called with the place where a cluster was restored, and what its proof needs."""


class PagesDeltaRestore:
    """Restores a cluster in place. The directory that a backup names may be a link."""

    def __init__(self, adopt: Adopt) -> None:
        self._adopt, self._kept = adopt, ""

    def inspect(self, live: Path, facts: Facts) -> LiveState:
        backup = ClusterFacts.read(facts)
        where, found = self._look(live, backup)
        parts = {BODY: where, LOG: where / WAL, **_spaces(found, live, backup)}
        begun = found is not None and where.name.endswith(ASIDE)
        return LiveState(_disks(parts, {} if found is None else _sizes(found)), _SPARE_BYTES, begun=begun)

    def check_unused(self, live: Path, facts: Facts) -> None:
        backup = ClusterFacts.read(facts)
        where, found = self._look(live, backup)
        if found is not None:
            resting.refuse_users(found, where, backup.service)

    def save(self, live: Path, facts: Facts, sink: Sink, progress: Progress) -> Facts:
        backup = ClusterFacts.read(facts)
        where, found = self._look(live, backup)
        if found is None or where.name.endswith(ASIDE):
            raise SourceMissing(f"{live}: there is nothing whole to keep")
        with resting.held(found, where, backup.service):
            made = resting.keep(found, sink, replace(backup, directory=str(live)), progress)
            self._kept = _digest(where)
        return made

    def overwrite(self, tree: Tree, live: Path, progress: Progress) -> Path:
        facts = ClusterFacts.read(tree.facts)
        where, found = self._look(live, facts)
        find_tools("postgres", facts.major, need="what is restored in place is proven before a server finds it")
        begun, spaces = where.name.endswith(ASIDE), _spaces(found, live, facts)
        if not begun:
            _check_free(spaces, found)
        _check_room(found, where, facts)
        _try_log(tree, where, facts, progress)
        with nullcontext() if found is None else resting.held(found, where, facts.service):
            if found is not None and self._kept not in ("", _digest(where)):
                raise TargetInUse(
                    f"{live}: a server has run there since it was kept", hints=["stop it, and restore again"]
                )
            aside = _set_aside(where, found)
        with _begun(live, aside):
            clear_left(aside.parent)
            _empty_newer(found, spaces)
            restored = fill(tree, aside, where, progress, spaces=spaces, over=begun or found is not None)
            if found is not None:
                shutil.rmtree(aside / DIRECTORY, ignore_errors=True)  # the live configuration is elsewhere
            durable([str(aside), *restored.elsewhere])
        self._adopt(aside, replace(restored, live=str(live)))
        return aside

    def publish(self, live: Path) -> str:
        real = Path(os.path.realpath(live))
        aside = _aside(real)
        (aside / MANUAL).unlink(missing_ok=True)
        for link in (aside / TABLESPACES).iterdir():
            if (place := Path(os.readlink(link))).is_relative_to(aside):
                lead(aside, link.name, real / place.relative_to(aside))
        if os.path.lexists(real):
            raise TargetExists(
                f"{real}: something was created there in the meantime", hints=[f"ls -l {shlex.quote(str(real))}"]
            )
        with outcomes(real):
            os.rename(aside, real)
            sync_directory(real.parent)
        return str(real)

    def _look(self, live: Path, facts: ClusterFacts) -> tuple[Path, Resting | None]:
        """Return where the cluster is, and what it is. Raises SourceReplaced if a different cluster is there."""
        real = Path(os.path.realpath(live))
        aside = _aside(real)
        where = aside if os.path.lexists(aside) else real
        if where == aside and os.path.lexists(real):
            raise TargetExists(
                f"{real}: was made while {aside} is half of a restore",
                detail="One of the two is the cluster; dbguard does not choose.",
                hints=[f"ls -ld {shlex.quote(str(real))} {shlex.quote(str(aside))}"],
            )
        if not where.is_dir() or not any(where.iterdir()):
            return where, None
        if where == aside and not (where / CONTROL).exists():
            return where, None  # nothing was there before, and the restore was killed: pg_control comes last
        found = look_at(where)
        if (found.system, found.major) != (facts.system, facts.major):
            raise SourceReplaced(
                f"{where}: is another cluster than the one that was backed up",
                detail=f"Its system identifier is {found.system} (PostgreSQL {found.major}), that of the backup is "
                f"{facts.system} (PostgreSQL {facts.major}). Nothing of it is overwritten.",
                hints=["dbguardctl restore NAME --to DIRECTORY"],
            )
        return where, found


def _aside(real: Path) -> Path:
    return real.with_name(f"{real.name}{ASIDE}")


def _spaces(found: Resting | None, live: Path, facts: ClusterFacts) -> dict[str, Path]:
    """Return where to write the backup's tablespaces: where they are now, or where they were at the backup.

    Tablespaces inside the data directory are found under its temporary name.
    """
    spaces = {number: Path(told[1]) for number, told in facts.tablespaces.items()}
    spaces |= {number: Path(place) for number, place in (found.spaces if found else {}).items() if number in spaces}
    real = Path(os.path.realpath(live))
    for number, place in spaces.items():
        for above in (live, real):
            if place.is_relative_to(above):
                spaces[number] = _aside(real) / place.relative_to(above)
    return spaces


def _set_aside(where: Path, found: Resting | None) -> Path:
    """Durably rename the directory so that no server finds it; make it if there is none."""
    aside = where if where.name.endswith(ASIDE) else _aside(where)
    try:
        if where != aside and os.path.lexists(where):
            os.rename(where, aside)
        elif found is None and not aside.exists():
            aside.mkdir(mode=0o700)
        sync_directory(aside.parent)
    except OSError as error:
        kept = {errno.EBUSY: "is a file system of its own", errno.EXDEV: "is in a lower layer of a container"}
        if error.errno not in kept:
            raise outcome(where, error) from error
        raise Unsupported(
            f"{where}: {kept[error.errno]}, and cannot be given another name while it is written",
            detail="If it were interrupted, a server could start on a half-written cluster. Nothing was changed.",
            hints=["dbguardctl restore NAME --to DIRECTORY"],
        ) from error
    return aside


@contextmanager
def _begun(live: Path, aside: Path) -> Iterator[None]:
    """Add to an error inside the block what is left: a partial restore that the next one continues."""
    try:
        with outcomes(aside):
            yield
    except GuardError as error:
        error.facts[REPLACED] = True
        said = f"{live} is half written, and is {aside} until a restore in place, or its undo, comes to its end."
        error.detail = f"{error.detail}\n{said}".lstrip()
        raise


def _empty_newer(found: Resting | None, spaces: Mapping[str, Path]) -> None:
    """Empty tablespaces that are not in the backup: the kept copy has them, and their space is needed.

    Their links are removed later, with everything else that is not in the backup. So if we are killed, the next restore
    still finds them.
    """
    for number, place in (found.spaces if found else {}).items():
        if number not in spaces and found is not None:
            with outcomes(Path(place)), suppress(FileNotFoundError):
                shutil.rmtree(Path(place) / found.version_directory)


def _check_free(spaces: Mapping[str, Path], found: Resting | None) -> None:
    """Raise TargetExists if the place of a tablespace is in use by something other than the existing cluster."""
    known = found.spaces if found else {}
    why = "It is not a tablespace of the existing cluster, so it is not overwritten."
    if found is None:
        why = "The data directory is gone, so it is not known whether it is a part of that cluster."
    for number, place in spaces.items():
        with outcomes(place), suppress(FileNotFoundError):
            if number not in known and str(place) not in known.values() and any(place.iterdir()):
                raise TargetExists(
                    f"{place}: the tablespace that goes there is in use",
                    detail=why,
                    hints=[shlex.join(["mv", "-nT", str(place), f"{place}.before"]) + "  # and restore again"],
                )


def _check_room(found: Resting | None, where: Path, facts: ClusterFacts) -> None:
    """Raise NoSpace before anything is changed. The space of the present cluster counts, as it is overwritten.

    All disks together: whoever has the sizes of the parts has checked each disk with what inspect() told.
    """
    sizes = {str(where): 0} if found is None else _sizes(found)
    free = sum(disk.free_bytes for disk in _disks({}, sizes))
    needs = facts.restored_bytes - sum(sizes.values()) + _SPARE_BYTES
    if needs > free:
        raise NoSpace(
            f"{where}: not enough space to restore in place",
            detail=f"It would grow by {needs - _SPARE_BYTES} bytes; {free} bytes are free, and {_SPARE_BYTES} stay so.",
            facts={"needed_bytes": needs, "free_bytes": free},
        )


def _try_log(tree: Tree, where: Path, facts: ClusterFacts, progress: Progress) -> None:
    """Read the log of a moment to its end in a directory beside the cluster, and delete that, if there is room for it.

    A log that is damaged, or that no recovery may follow, is refused so before anything is changed.
    """
    moment = facts.moment
    room = sum(disk.free_bytes for disk in _disks({BODY: where}, {}))
    if moment is None or room < moment.log_bytes + _SPARE_BYTES:
        return
    clear_left(where.parent)
    with beside(where) as (work, _), outcomes(where):
        try:
            for directory in (WAL, os.path.dirname(CONTROL)):  # what that archive has files in
                (work / directory).mkdir(mode=0o700)
            with tree.read(ARCHIVE) as source:
                for _ in unpack(source, work):
                    progress("log", 0, None)
            roll_forward(tree, facts, moment, work, lambda _: progress("log", 0, None))
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _sizes(found: Resting) -> dict[str, int]:
    """Return how many bytes its files take up on disk, by directory."""
    places, sizes = sorted(found.directories), dict[str, int]()
    inside = {place for place in places for other in places if place.startswith(f"{other}/")}
    for place in (place for place in places if place not in inside):
        sizes[place] = 0
        for above, _, names in os.walk(place):
            for name in names:
                with suppress(OSError):
                    sizes[place] += os.lstat(os.path.join(above, name)).st_blocks * 512
    return sizes


def _disks(parts: Mapping[str, Path], sizes: Mapping[str, int]) -> tuple[LiveDisk, ...]:
    """Return the disks of these places. `sizes` are of directories that exist; the places of parts may not exist."""
    disks: dict[int, LiveDisk] = {}
    for part, place in (*((None, Path(place)) for place in sizes), *parts.items()):
        there = next((one for one in (place, *place.parents) if one.exists()), Path("/"))
        with suppress(OSError):
            device, room = there.stat().st_dev, os.statvfs(there)
            disk = disks.get(device) or LiveDisk(str(there), 0, room.f_bavail * room.f_frsize, ())
            more = (0, (part,)) if part is not None else (sizes[str(place)], ())
            disks[device] = replace(disk, bytes=disk.bytes + more[0], parts=(*disk.parts, *more[1]))
    return tuple(disks.values())


def _digest(where: Path) -> str:
    """Return a digest that changes as soon as a server runs on the cluster."""
    return hashlib.sha256((where / CONTROL).read_bytes()).hexdigest()
