"""The private directory of an engine half: where a snapshot lies, and what its proof is restored to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from dbguardd.errors import GuardError, of_file
from dbguardd.verbs import staging_suffix
from dbguardd.worker.owner import identity

_SEED_BYTES = 32
_PATH = "/usr/bin:/bin"
_NAME = re.compile(r"(.+)-(\d+)-[0-9a-f]{20}", re.DOTALL)


def staging_of(state: str, database: str, run_as: int, aside: str = "") -> str:
    """Return the private directory of the engine half: one for each database and user, so that leftovers are found.

    What runs beside all other jobs of the database, `aside`, has one of its own.

    Nobody else can know its name. Anybody may make names in the directory above, and who makes this one first, again
    and again, keeps the database from being backed up; but nobody may list it.
    """
    whose = f"{run_as}-{database}{aside and f'-{aside}'}"
    mark = hashlib.blake2b(whose.encode(), key=_seed(Path(state)), digest_size=10)
    return str(Path(state) / "staging" / f"{database}-{run_as}-{mark.hexdigest()}")


async def sweep(state: Path) -> list[str]:
    """Remove what the workers of a daemon that was killed have left: copies of databases. Return of which.

    Only what has a name that nobody else can know, and not that of a standby, which runs beside a daemon. No other
    worker may live here: what is taken away is nobody's then.
    """
    found = dict[str, None]()
    with suppress(OSError, GuardError):  # the next job of each says what is wrong, and takes it away
        for place in sorted((state / "staging").iterdir()):
            if parts := _NAME.fullmatch(place.name):
                database, run_as = parts[1], int(parts[2])
                asides = (staging_suffix(verb, {}) for verb in ("verify", "query", "follow"))
                ours = str(place) in (staging_of(str(state), database, run_as, aside) for aside in asides)
                if ours and await wipe(place, run_as):
                    found[database] = None
    return list(found)


async def wipe(staging: Path, run_as: int) -> bool:
    """Remove the private directory of an engine half that was killed, as whose it is; say if it is gone."""
    with suppress(OSError, GuardError):  # who may not become him has not made it
        if os.lstat(staging).st_uid == run_as:
            argv, quiet = ("rm", "-rf", "--one-file-system", "--", str(staging)), asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", env={"PATH": _PATH}, **identity(run_as)
            )
            await process.wait()
            return not os.path.lexists(staging)
    return False


def _seed(state: Path) -> bytes:
    """Return what makes the names in staging unknown to others; made once. Raises NoSpace, PlaceDenied, Degraded."""
    path = state / "staging.seed"
    with suppress(OSError):
        if len(seed := path.read_bytes()) == _SEED_BYTES:
            return seed
    seed, draft = os.urandom(_SEED_BYTES), path.with_suffix(".tmp")
    try:
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(seed)
        draft.replace(path)
    except OSError as error:
        raise of_file(f"{path}: cannot be written", error) from error
    return seed


def remove_foreign(staging: Path, run_as: int) -> None:
    """Take away what somebody else put where the engine half wants its directory.

    Anybody may make names in the directory above (its mode is 1733), but only its owner, who we are, may move those of
    others. What is not empty is set aside, for a person to look at.
    """
    with suppress(OSError):
        found = os.lstat(staging)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == run_as:
            return
        try:
            (staging.rmdir if stat.S_ISDIR(found.st_mode) else staging.unlink)()
        except OSError:
            staging.rename(staging.with_name(f"foreign-{staging.name}-{time.time_ns()}"))
