"""What only questions need: a reader without rights, and an unnamed file for the answer."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from pathlib import Path
from typing import IO

from dbguardd.errors import PlaceDenied, of_file


def question_uid(may_become_others: bool) -> int:
    """Return the uid with which a question half is started: that of nobody, if this process can become other users.

    Root starts it as root and it becomes nobody by itself, so that nobody need not be able to read our code.
    """
    if os.geteuid() == 0 or not may_become_others:
        return os.geteuid()
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError as error:
        raise PlaceDenied("there is no user nobody, as whom backups are read for a question") from error


def cannot_read(user: str, error: OSError) -> PlaceDenied:
    """Return the error for a reader that cannot run our Python."""
    return PlaceDenied(
        f"{user}, as whom backups are read for a question, cannot run {sys.executable}",
        detail=error.strerror or str(error),
        hints=[f"let {user} read and execute it and what it imports"],
    )


def anonymous_file(state: Path) -> IO[bytes]:
    """Return an open, unnamed file in the state directory. Raises NoSpace, PlaceDenied, Degraded."""
    try:
        return tempfile.TemporaryFile(dir=state, buffering=0)
    except OSError as error:
        raise of_file(f"{state}: no file can be made for the answer", error) from error
