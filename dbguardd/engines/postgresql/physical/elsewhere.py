"""Handles the parts of a restored cluster that lie outside its directory, and removes what does not belong to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from dbguardd.engines.landing import outcomes
from dbguardd.engines.postgresql.physical.datadir import MADE_ANEW, TABLESPACES, WAL
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.errors import Usage


def led_elsewhere(work: Path, facts: ClusterFacts, spaces: Mapping[str, Path]) -> list[str]:
    """Make the backup's tablespaces that have a place in `spaces` links; return the paths in `work` that are links.

    A WAL directory that is a link stays one.
    """
    found = [WAL] if (work / WAL).is_symlink() and (work / WAL).is_dir() else []
    for number in facts.tablespaces:
        if number in spaces:
            with outcomes(spaces[number]):
                spaces[number].mkdir(mode=0o700, parents=True, exist_ok=True)
                (work / TABLESPACES).mkdir(mode=0o700, exist_ok=True)
                lead(work, number, spaces[number])
            found.append(f"{TABLESPACES}/{number}")
    return found


def lead(work: Path, number: str, place: Path) -> None:
    """Make a tablespace's link lead to a place. May raise OSError."""
    link = work / TABLESPACES / number
    if not link.is_symlink() or os.readlink(link) != str(place):
        with suppress(FileNotFoundError):
            shutil.rmtree(link) if link.is_dir() and not link.is_symlink() else link.unlink()
        link.symlink_to(place)


def where_to(facts: ClusterFacts, places: Mapping[str, str]) -> dict[str, Path]:
    """Return where the tablespaces named in `places` (by name or former place) go, by OID.

    Raises Usage for one that the backup does not have.
    """
    told, found = facts.tablespaces, dict[str, Path]()
    for old, new in places.items():
        number = next((number for number, names in told.items() if old in names), None)
        if number is None or not os.path.isabs(new):
            known = ", ".join(f"{name} ({place})" for name, place in told.values()) or "none"
            what = f"the backup has no tablespace {old}" if number is None else f"{new}: is no absolute path"
            raise Usage(what, detail=f"Its tablespaces: {known}.")
        found[number] = Path(new)
    return found


def sweep(work: Path, kept: Collection[str], links: Collection[str], alive: Callable[[], None]) -> None:
    """Delete what is in a cluster but not in its backup. No link is followed except `links`.

    Links at the top level stay (to a certificate, say): no backup contains them, and a server may need them. A
    tablespace inside the cluster is reached by its link. In one that lies elsewhere only directories in `kept` are
    searched: other clusters may have theirs beside them.
    """
    inside = {os.path.relpath(os.path.realpath(work / link), os.path.realpath(work)) for link in links}
    needed = {*kept, *inside}
    for path in [*needed]:
        while path := path.rpartition("/")[0]:
            needed.add(path)
    waiting = [""]
    while waiting:
        above = waiting.pop()
        shared = above in links and above != WAL
        with os.scandir(work / above) as listing:
            entries = list(listing)
        for entry in entries:
            path = f"{above}/{entry.name}" if above else entry.name
            if path not in needed:
                if not shared and (above or not entry.is_symlink() or path in MADE_ANEW):
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                    alive()
            elif path in links or (path not in inside and entry.is_dir(follow_symlinks=False)):
                waiting.append(path)
