"""Files that hold secrets: read only if they are private, and written so that they always were."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from dbguardd.durable import publish_file
from dbguardd.errors import GuardError, TargetExists, Unreachable
from dbguardd.keys.secret import Secret

MOST_BYTES = 64 << 10
"""The largest size of a secret."""

_CREDENTIAL = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"


def credential_path(name: str, environ: Mapping[str, str]) -> Path:
    """Return the path of a systemd credential of this service. Raises FileNotFoundError if there is none."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder, name)
    if not folder or not re.fullmatch(_CREDENTIAL, name) or not path.exists():
        raise FileNotFoundError(errno.ENOENT, "the unit has no such credential", name)
    return path


def read_private(path: Path, refuse: Callable[[str, str], GuardError], *, credential: bool = False) -> Secret:
    """Return the content of a secret file. Raises what `refuse(message, detail)` returns if it is not private.

    It must be a regular file of this process's user or of root, not readable by group or others
    (`credential`: systemd shows the access list of a credential as group bits). Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise refuse(f"{path}: not a regular file", stat.filemode(about.st_mode))
        if about.st_mode & (0o007 if credential else 0o077):
            raise refuse(f"{path}: others can get at it", f"mode {stat.S_IMODE(about.st_mode):04o}, must be 0600")
        if about.st_uid not in (os.geteuid(), 0):
            raise refuse(f"{path}: belongs to someone else", f"uid {about.st_uid}, must be {os.geteuid()} or 0")
        if about.st_size > MOST_BYTES:
            raise refuse(f"{path}: too large for a secret", f"{about.st_size} bytes, at most {MOST_BYTES}")
        return Secret(os.pread(fd, MOST_BYTES, 0))
    finally:
        os.close(fd)


def write_private(path: Path, secret: Secret) -> None:
    """Create a secret file (0600), complete and durable or not at all. Raises TargetExists, Unreachable."""
    try:
        publish_file(path, secret.reveal())
    except FileExistsError as error:
        raise TargetExists(f"{path}: exists already", detail="a key is never overwritten") from error
    except OSError as error:
        raise Unreachable(f"{path}: cannot be written", detail=f"{error.strerror}") from error
