"""The private directory of an engine half: where a snapshot lies, and what its proof is restored to."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from dbguardd.errors import of_file

_SEED_BYTES = 32


def staging_of(state: str, database: str, run_as: int, aside: str = "") -> str:
    """Return the private directory of the engine half: one for each database and user, so that leftovers are found.

    What runs beside all other jobs of the database, `aside`, has one of its own.

    Nobody else can know its name. Anybody may make names in the directory above, and who makes this one first, again
    and again, keeps the database from being backed up; but nobody may list it.
    """
    whose = f"{run_as}-{database}{aside and f'-{aside}'}"
    mark = hashlib.blake2b(whose.encode(), key=_seed(Path(state)), digest_size=10)
    return str(Path(state) / "staging" / f"{database}-{run_as}-{mark.hexdigest()}")


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


def make_way(staging: Path, run_as: int) -> None:
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
