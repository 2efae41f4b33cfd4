"""What of a restored cluster lies outside of its directory, by links that we make; and what does not belong to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from dbguardd.engines.landing import outcomes
from dbguardd.engines.postgresql.physical.datadir import TABLESPACES, WAL
from dbguardd.errors import Damaged
from dbguardd.flow import Facts


def led_elsewhere(work: Path, facts: Facts, spaces: Mapping[str, Path] | None) -> list[str]:
    """Make the tablespaces of a backup links to their `spaces`; return the paths in `work` that are links.

    A log that lay elsewhere stays there.
    """
    found = [WAL] if (work / WAL).is_symlink() and (work / WAL).is_dir() else []
    for number in facts.get("tablespaces") or {} if spaces is not None else ():
        link = work / TABLESPACES / number
        if not number.isdigit() or number not in (spaces or {}):
            raise Damaged(f"tablespace {number!r}: nobody says where it goes")
        place = (spaces or {})[number]
        with outcomes(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.parent.mkdir(mode=0o700, exist_ok=True)
            if not link.is_symlink() or os.readlink(link) != str(place):
                with suppress(FileNotFoundError):
                    shutil.rmtree(link) if link.is_dir() and not link.is_symlink() else link.unlink()
                link.symlink_to(place)
        found.append(f"{TABLESPACES}/{number}")
    return found


def sweep(work: Path, kept: Collection[str], links: Collection[str], alive: Callable[[], None]) -> None:
    """Take away what is in a cluster and not in its backup. No link is followed but `links`.

    In a tablespace only what is below a directory of `kept` is looked at: beside it others may have theirs.
    """
    needed = {*kept}
    for path in kept:
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
                if not shared:
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                    alive()
            elif path in links or entry.is_dir(follow_symlinks=False):
                waiting.append(path)
