"""What the errors of a throw-away server mean: that the data is wrong, that this host is in trouble, or neither.

A proof fails a backup only for what says that its data is wrong. All else that keeps a server from being asked (a disk
that is full, a locale or a library that a new host has not, what its owner has set for a database) leaves open what is
in the backup: it is not proven, and nobody is told that it is damaged. Before there is a connection the server has no
codes for its errors, only words; English ones, see server.
"""

from __future__ import annotations

import re

from dbguardd.engines.base import Finding
from dbguardd.errors import Cancelled, Degraded, GuardError, NoSpace

_FULL = re.compile("No space left|Disk quota|File too large|could not extend file|Check free disk space")
_TROUBLE = re.compile(
    "server closed the connection|terminating connection|out of (?:shared )?memory|Input/output error|"
    "Cannot allocate memory|Too many open files|Resource temporarily unavailable|Read-only file system"
)
_DAMAGED = frozenset(("XX001", "XX002"))
_DAMAGE = re.compile(
    '(?i)could not (?:open|stat|read) (?:file|directory) "": No such file|The database subdirectory "" is missing|'
    r"is not a valid data directory|read (?:only )?\d+ of \d+|could not access status of|could not open relation with|"
    "invalid (?:page|data|record|(?:primary )?checkpoint|magic|memory alloc)|references to invalid pages|"
    "incorrect (?:checksum|resource manager)|contains (?:invalid|unexpected|corrupt)|corrupt|cache lookup failed|"
    "catalog is missing|missing chunk|unexpected (?:chunk|data beyond|page|timeline)|found xm(?:in|ax)|"
    "could not (?:find redo|locate)|recovery ended before|WAL ends before|requested (?:timeline|recovery stop)"
)
_LINE = re.compile(r"^.*?\b(?:ERROR|FATAL|PANIC|DETAIL|HINT):  .*$", re.MULTILINE)


def trouble(said: str) -> type[GuardError] | None:
    """Return the kind of error that trouble of this host is; None if nothing says that it has any."""
    if _FULL.search(said):
        return NoSpace
    return Degraded if _TROUBLE.search(said) else None


def outcome(said: str, state: str | None = None) -> str:
    """Return how a check ended that met an error: "failed" only if that says that the data is wrong."""
    if trouble(said) is not None:
        return "inconclusive"
    return "failed" if state in _DAMAGED or _DAMAGE.search(re.sub('"[^"]*"', '""', said)) else "inconclusive"


def refused(name: str, error: GuardError) -> Finding:
    """Return what a check found that the server refused, at the door or later. Raises Cancelled, which is no answer."""
    if isinstance(error, Cancelled):
        raise error
    said = error.detail or error.message
    return Finding(name, outcome(said, getattr(error.__cause__, "sqlstate", None)), said)


def errors_in(log: str) -> str:
    """Return the errors in the log of a server, without what else it tells."""
    return "\n".join(_LINE.findall(log))
