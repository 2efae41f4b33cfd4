"""Classifies the errors of a throw-away server: the data is wrong, this host has a problem, or neither.

A proof fails a backup only for errors that show wrong data. Anything else that prevents checking (a full disk, a locale
or library missing on a new host, an owner's settings for a database) leaves open what is in the backup: it is not
proven, and is not reported as damaged. Before a connection exists the server's errors have no codes, only messages,
which are in English (see server).
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
TOO_LONG = re.compile("invalid memory alloc request size|string buffer")
"""Errors of a server for a row whose text would exceed 1 GiB: the text of bytea is twice its size, but its binary form
is not. A damaged row may give the same errors, but also in binary."""
_LIBRARY = re.compile(r'could not (?:access file|load library) "(?:[^"]*/)?([\w.+-]+?)(?:\.so)?"')
_LINE = re.compile(r"^.*?\b(?:ERROR|FATAL|PANIC|DETAIL|HINT):  .*$", re.MULTILINE)


def trouble(said: str) -> type[GuardError] | None:
    """Return the kind of error that this host's problem is; None if nothing indicates one."""
    if _FULL.search(said):
        return NoSpace
    return Degraded if _TROUBLE.search(said) else None


def outcome(said: str, state: str | None = None) -> str:
    """Return the outcome of a check that met an error: "failed" only if the error shows that the data is wrong."""
    if trouble(said) is not None:
        return "inconclusive"
    return "failed" if state in _DAMAGED or _DAMAGE.search(re.sub('"[^"]*"', '""', said)) else "inconclusive"


def library_in(said: str) -> str:
    """Return the command that finds a library which a server could not load, according to its error; else ""."""
    found = _LIBRARY.search(said)
    return f"apt-cache search 'postgresql.*{found[1]}'" if found else ""


def refused(name: str, error: GuardError) -> Finding:
    """Return the finding of a check that the server refused, when connecting or later. Raises Cancelled as it is."""
    if isinstance(error, Cancelled):
        raise error
    said = error.detail or error.message
    return Finding(name, outcome(said, getattr(error.__cause__, "sqlstate", None)), said)


def errors_in(log: str) -> str:
    """Return the error lines in a server's log."""
    return "\n".join(_LINE.findall(log))
