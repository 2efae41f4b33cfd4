"""Tells whether the code on disk was replaced under the running daemon, as by an upgrade without a restart."""

from __future__ import annotations

import re
from pathlib import Path

import dbguardd

_VERSION = re.compile(r'^__version__ = "(.+)"$', re.M)


def installed(code: Path = Path(dbguardd.__file__)) -> str:
    """Return the version of the code on disk, which workers load; empty if it cannot be read now."""
    try:
        found = _VERSION.search(code.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""
