"""The records of a log, as PostgreSQL's pg_waldump prints them; only this module parses its output.

pg_waldump checks each record, and that it follows the one before, and prints one line for each. But the name of a
prepared transaction is chosen by its user, and may contain line feeds and look like records. So a record that matters
is read again at its place: the first line printed from there is genuine.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from datetime import UTC, datetime

from dbguardd.engines.postgresql.child import Alive, Tool, tool
from dbguardd.engines.postgresql.physical.segments import format_lsn, parse_lsn
from dbguardd.engines.postgresql.tools import Tools
from dbguardd.errors import GuardError
from dbguardd.frozen import frozen

_LINE = re.compile(
    rb"^rmgr: (\w+) +len \(rec/tot\): +\d+/ +(\d+), tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F/]+, "
    rb"desc: (\w+)"
)
_TIME = re.compile(rb"(\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")
_PREPARED_AT = re.compile(rb": " + _TIME.pattern)
_PREPARED = re.compile(rb"desc: COMMIT_PREPARED (\d+)")
_MOST = 4096  # bytes of a line that are kept; the line of a commit names all its subtransactions, perhaps millions
UNREAL = 8
"""Of this many lines in a row at least one is genuine: a transaction name has at most 200 bytes."""

Failed = Callable[[str], GuardError]
"""Returns the error for an unreadable log, given what the program printed."""

Reach = Callable[[int, int], None]
"""Ensures that the log is in its directory, from the file that contains the first place up to the second."""


@frozen
class Record:
    """A record as printed: its kind (resource manager), what it is, transaction, place, and length in bytes.

    `line` is the beginning of its line.
    """

    kind: bytes
    what: bytes
    xid: int
    at: int
    size: int
    line: bytes = field(repr=False)

    @property
    def time(self) -> datetime | None:
        """When the transaction ended; None if it was prepared, because its name precedes the time."""
        found = _TIME.search(self.line) if self.what != b"PREPARE" else None
        return None if found is None else _time(found[1])

    @property
    def committed(self) -> int | None:
        """The number of the transaction that this record commits."""
        prepared = _PREPARED.search(self.line)
        if self.kind != b"Transaction" or self.what not in (b"COMMIT", b"COMMIT_PREPARED"):
            return None
        return int(prepared[1]) if prepared and self.what == b"COMMIT_PREPARED" else self.xid


class Records:
    """Reads a log on one timeline, in the files of a directory; `reach` puts them there if they are not there yet."""

    def __init__(
        self, tools: Tools, directory: str, timeline: int, alive: Alive, failed: Failed, *, reach: Reach | None = None
    ) -> None:
        self._words = [tools.path("pg_waldump"), f"--path={directory}", f"--timeline={timeline}"]
        self._alive, self._failed, self._reach = alive, failed, reach

    def between(self, start: int, end: int, *kinds: str, most: int = 0, partly: bool = False) -> Iterator[Record]:
        """Yield what looks like records of these kinds (all, if none is named) from a place on, at most `most`.

        Raises at the end if not everything could be read; with `partly` it stops there instead.
        """
        for line in self._lines(start, end, kinds, most, partly=partly):
            if match := _LINE.match(line):
                kind, size, xid, at, what = match.groups()
                yield Record(kind, what, int(xid), parse_lsn(at.decode()), int(size), line)

    def _lines(self, start: int, end: int, kinds: Sequence[str], most: int, *, partly: bool) -> Iterator[bytes]:
        words = [f"--start={format_lsn(start)}", f"--end={format_lsn(end)}", *(f"--rmgr={kind}" for kind in kinds)]
        self._alive()
        if self._reach is not None:
            self._reach(start, end)
        with tool([*self._words, *words, *([f"--limit={most}"] if most else [])]) as child:
            yield from _lines(child, self._alive)
            if child.wait(self._alive) != 0 and not partly:
                raise self._failed(child.last_words()[-500:])

    def ended_at(self, told: Record, end: int) -> datetime | None:
        """Return when a transaction ended or was prepared, according to a genuine record.

        The line of a prepared transaction contains its name, perhaps with line feeds, before the time: so the last time
        counts.
        """
        if told.what != b"PREPARE":
            return told.time
        *_, last = (b"", *self._lines(told.at, end, (), 1, partly=True))
        found = _PREPARED_AT.findall(last)
        return _time(found[-1]) if found else None

    def at(self, where: int, end: int) -> Record | None:
        """Return the record at a place; None if none begins there."""
        found = next(self.between(where, end, most=1, partly=True), None)
        return found if found is not None and found.at == where else None

    def real(self, told: Record, end: int) -> bool:
        """Return whether the log really has such a record."""
        return self.at(told.at, end) == told

    def last(self, start: int, end: int) -> Record | None:
        """Return the last record between two places; None if there is none, or if the file at `start` is unused."""
        told = deque(self.between(start, end, partly=True), maxlen=UNREAL)
        return next((record for record in reversed(told) if self.real(record, end)), None)


def _time(told: bytes) -> datetime:
    return datetime.fromisoformat(told.decode()).replace(tzinfo=UTC)


def _lines(child: Tool, alive: Alive) -> Iterator[bytes]:
    """Yield the lines that a program writes, each cut to its beginning."""
    rest = b""
    while piece := child.read(alive):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line[:_MOST] for line in lines)
        rest = rest[:_MOST]
