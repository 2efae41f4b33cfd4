"""A moment between two backups: the log that was stored since the first is put behind its own, and its place found.

A recovery follows the log, so a moment is a place in it. Which one, says the log: before anything is started, all of it
is read once (pg_waldump checks each record, and that it follows the one before), and the last transaction that had
ended by the moment is looked up. The recovery ends right behind that. PostgreSQL's own recovery_target_time would end
before the first one that ended later, and so behind all that this one did before its end: a dropped database would be
gone then, and still be listed.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dbguardd.engines.postgresql.child import Alive, tool
from dbguardd.engines.postgresql.physical.copy import Tell
from dbguardd.engines.postgresql.physical.datadir import WAL
from dbguardd.engines.postgresql.physical.segments import Log, place, shown
from dbguardd.engines.postgresql.physical.tarred import written
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.errors import Damaged, Unsupported
from dbguardd.flow import LOG, Facts, Tree

_PIECE = 1 << 20
_LINE = re.compile(
    rb"^rmgr: (\w+) +len \(rec/tot\): +\d+/ +(\d+), tx: +\d+, lsn: ([0-9A-F]+/[0-9A-F]+), prev [0-9A-F/]+, desc: (\w+)"
)
_TIME = re.compile(rb"(\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC")
_UNREAL = 8  # lines in a row are not all names of transactions: such a name has 200 bytes at most
_ENDS = (b"COMMIT", b"COMMIT_PREPARED", b"ABORT_PREPARED", b"PREPARE")


@dataclass(frozen=True, slots=True)
class End:
    """The record by which a transaction ended, and when; None: it was prepared, and no time of it is believed."""

    at: int
    size: int
    time: datetime | None
    line: bytes


def roll_forward(tree: Tree, work: Path, tell: Tell, alive: Alive) -> Facts:
    """Put the log of a moment behind that of its backup, in `work`; return the facts for a recovery to the moment.

    Raises Damaged (with the fact LOG) if it is not the log that goes on from the backup, or cannot be read; Unsupported
    if a recovery along it would change this host.
    """
    facts = tree.facts
    moment = facts["moment"]
    tools = find_tools("pg_waldump", int(facts["major"]), need="the moment is looked up in the log by it")
    base = facts["log_place"]
    since, until = moment["since"], moment["until"]
    if not since["round"] == until["round"] == base["round"] or not since["position"] <= base["end"]:
        raise wrong(f"its log does not go on from there: {since} to {until}, and the backup is of {base}")
    log = Log(int(facts["system"]), int(facts["timeline"]), int(facts["segment_bytes"]))
    known = place(str(facts["start_lsn"])), place(str(facts["stop_lsn"]))
    with tree.read(moment["stream"]) as source, Files(work / WAL, log, since["position"], known) as files:
        while data := source.read(_PIECE):
            files.write(data)
            tell(len(data))
    if files.at != until["position"]:
        raise wrong(f"its log ends at {shown(files.at)}, and {shown(until['position'])} was told")
    return {**facts, **_target(facts, Reading(tools, work / WAL, log, until["position"], alive))}


class Files:
    """Writes a log into the files of a server, from a place on. `known` is what the backup has of it for certain."""

    def __init__(self, directory: Path, log: Log, at: int, known: tuple[int, int]) -> None:
        self._directory, self._log, self.at, self._known = directory, log, at, known
        self._file, self._name = -1, ""

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._name = -1, ""

    def write(self, data: bytes) -> None:
        """Write the next bytes. Those before the backup's own log are of no use. Raises Damaged for a foreign log."""
        view, oldest = memoryview(data), self._known[0] // self._log.segment * self._log.segment
        while view:
            start = self.at % self._log.segment
            part, view = view[: self._log.segment - start], view[self._log.segment - start :]
            if self.at >= oldest:
                self._open(self._log.name(self.at))
                self._compare(part, start)
                written(self._file, part, start)
            self.at += len(part)

    def _open(self, name: str) -> None:
        if name != self._name:
            self._close()
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file, self._name = os.open(self._directory / name, flags, 0o600), name
            os.truncate(self._file, self._log.segment)

    def _compare(self, part: memoryview, start: int) -> None:
        first, last = (max(0, min(len(part), known - self.at)) for known in self._known)
        if os.pread(self._file, last - first, start + first) != part[first:last]:
            raise wrong(f"its log is another one: {self._name} differs", "the log that is in the backup says otherwise")


class Reading:
    """The stored log, read by PostgreSQL's own program."""

    def __init__(self, tools: Tools, directory: Path, log: Log, end: int, alive: Alive) -> None:
        self._program = tools.path("pg_waldump")
        self._words = [f"--path={directory}", f"--timeline={log.timeline}", f"--end={shown(end)}"]
        self._alive = alive
        self._doubtful = False  # a transaction was prepared: names have been read

    def lines(self, start: int, *more: str) -> Iterator[bytes]:
        """Yield what it says of each record from a place on. Raises Damaged at the end if it could not read all."""
        rest = b""
        with tool([self._program, *self._words, f"--start={shown(start)}", *more]) as child:
            while piece := child.read(self._alive):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
            if child.wait(self._alive) != 0:
                raise wrong("its log cannot be read", child.last_words()[-500:])

    def last_end(self, start: int, base: int, by: datetime | None) -> Read:
        """Read all from `start` on; find the last end of a transaction behind `base`, before one later than `by`."""
        ends, space = deque[End](maxlen=_UNREAL), None
        for line in self.lines(start, "--rmgr=Transaction", "--rmgr=Tablespace"):
            if (match := _LINE.match(line)) is None:
                continue
            kind, size, where, what = match.groups()
            end = End(place(where.decode()), int(size), None if what == b"PREPARE" else _time_of(line), line)
            if end.at < base:
                continue
            if kind == b"Tablespace":
                space = end.at if what == b"CREATE" and space is None and self._real(end) else space
            elif what in _ENDS:
                if by is not None and end.time is not None and end.time > by and self._real(end):
                    break
                ends.append(end)
                self._doubtful = self._doubtful or what == b"PREPARE"
        return Read(next((end for end in reversed(ends) if self._real(end)), None), space)

    def _real(self, end: End) -> bool:
        """Say if there is such a record: whoever prepares a transaction gives it a name, which may look like a line."""
        with suppress(Damaged):
            return not self._doubtful or next(self.lines(end.at, "--limit=1"), b"") == end.line
        return False


@dataclass(frozen=True, slots=True)
class Read:
    """What was found in a log: the end of a transaction, if there is one; and where the first tablespace is made."""

    end: End | None
    space: int | None


def _time_of(line: bytes) -> datetime | None:
    found = _TIME.search(line)
    return None if found is None else datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC)


def _target(facts: Facts, reading: Reading) -> Facts:
    """Return what a recovery to the moment has to be told, and what the text beside it says."""
    target, base = facts["moment"]["target"], place(str(facts["recovery_lsn"]))
    start = place(str(facts["start_lsn"]))
    if later := target.get("backup"):
        read = reading.last_end(start, base, None)
        told = {name: later[name] for name in ("recovery_lsn", "snapshots", "snapshot_at")}
        _check_spaces(read.space, place(str(later["recovery_lsn"])))
        return told
    by = datetime.fromisoformat(target["at"]) if "at" in target else None
    read = reading.last_end(start, base, by)
    if read.end is None:  # nothing has ended since: the moment is that of the backup
        return {"snapshots": {}}
    _check_spaces(read.space, read.end.at)
    at = by or read.end.time
    return {
        "recovery_lsn": shown(read.end.at),
        "recovery_record_bytes": read.end.size,
        "snapshots": {},
        "snapshot_at": facts["snapshot_at"] if at is None else at.isoformat(),
    }


def _check_spaces(space: int | None, end: int) -> None:
    """Raise Unsupported if a tablespace is made on the way: who replays that empties its directory, on this host."""
    if space is not None and space < end:
        raise Unsupported(
            f"a tablespace was made at {shown(space)} in the log: a restore does not go past that",
            detail="A recovery would make it again at its place on this host, and empty the directory there.",
            hints=["restore a moment before that, or one after the next backup"],
            facts={LOG: shown(space)},
        )


def wrong(what: str, detail: str = "") -> Damaged:
    """Return an error about the log; the backup before it can be restored all the same."""
    return Damaged(f"the backup is whole, and {what}", detail=detail, facts={LOG: what})
