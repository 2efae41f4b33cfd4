"""The private directory of an engine half: for its snapshot, and for the test restores of its proofs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from dbguardd.durable import replace_file
from dbguardd.errors import GuardError, of_file
from dbguardd.verbs import staging_suffix
from dbguardd.worker.owner import identity

_SEED_BYTES = 32
_PATH = "/usr/bin:/bin"
_NAME = re.compile(r"(.+)-(\d+)-[0-9a-f]{20}", re.DOTALL)


def staging_of(state: str, database: str, run_as: int, aside: str = "") -> str:
    """Return the private directory of the engine half: one for each database and user, so that leftovers are found.

    A job that runs beside other jobs of the database has its own, distinguished by `aside`.

    Other users cannot know its name. Any user may create names in the directory above, and one who created this name
    again and again could prevent backups of the database; but no user may list that directory.
    """
    whose = f"{run_as}-{database}{aside and f'-{aside}'}"
    mark = hashlib.blake2b(whose.encode(), key=_seed(Path(state)), digest_size=10)
    return str(Path(state) / "staging" / f"{database}-{run_as}-{mark.hexdigest()}")


async def sweep(state: Path) -> list[str]:
    """Remove what the workers of a killed daemon have left: copies of databases. Return their databases.

    Only directories whose names no other user can know, and not that of a standby, which runs beside a daemon. No other
    worker may be alive: what is removed must not be in use.
    """
    found = dict[str, None]()
    with suppress(OSError, GuardError):  # the next job of each database reports the error, and removes them
        for place in sorted((state / "staging").iterdir()):
            if parts := _NAME.fullmatch(place.name):
                database, run_as = parts[1], int(parts[2])
                asides = (staging_suffix(verb, {}) for verb in ("verify", "query", "follow"))
                ours = str(place) in (staging_of(str(state), database, run_as, aside) for aside in asides)
                if ours and await wipe(place, run_as):
                    found[database] = None
    return list(found)


async def wipe(staging: Path, run_as: int) -> bool:
    """Remove the private directory of a killed engine half, as its owner; return whether it is gone."""
    with suppress(OSError, GuardError):  # if we cannot become that user, it was not made by us
        if os.lstat(staging).st_uid == run_as:
            argv, quiet = ("rm", "-rf", "--one-file-system", "--", str(staging)), asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", env={"PATH": _PATH}, **identity(run_as)
            )
            await process.wait()
            return not os.path.lexists(staging)
    return False


def _seed(state: Path) -> bytes:
    """Return the secret of the names in staging, created once. Raises NoSpace, PlaceDenied, Degraded."""
    path = state / "staging.seed"
    with suppress(OSError):
        if len(seed := path.read_bytes()) == _SEED_BYTES:
            return seed
    seed = os.urandom(_SEED_BYTES)
    try:
        replace_file(path, seed)
    except OSError as error:
        raise of_file(f"{path}: cannot be written", error) from error
    return seed


def remove_foreign(staging: Path, run_as: int) -> None:
    """Remove what another user put where the engine half wants its directory.

    Any user may create names in the directory above (its mode is 1733), but only its owner, which is us, may rename
    those of others. What is not empty is moved aside, for a person to examine.
    """
    with suppress(OSError):
        found = os.lstat(staging)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == run_as:
            return
        try:
            (staging.rmdir if stat.S_ISDIR(found.st_mode) else staging.unlink)()
        except OSError:
            staging.rename(staging.with_name(f"foreign-{staging.name}-{time.time_ns()}"))
