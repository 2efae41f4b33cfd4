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
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.child import Alive, tool
from dbguardd.engines.postgresql.physical.copy import Tell
from dbguardd.engines.postgresql.physical.datadir import WAL
from dbguardd.engines.postgresql.physical.segments import PAGE, Log, place, shown
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
_HEAD, _FIRST_HEAD = 24, 40  # bytes before the records of a page of the log, and of the first of a file
_POINT = struct.pack("=I", 98) + rb".{12}[\x70-\x7f]\0\0\0.{4}\xff\x48.{8}"
"""How the record of a restore point begins: its length, XLOG_RESTORE_POINT, the length of its data, and the time."""
_POINT_BYTES = 97
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
        return not self._doubtful or self.line(end.at) == end.line

    def line(self, at: int) -> bytes:
        """Return what it says of the record at a place; nothing if none is there."""
        with suppress(Damaged):
            return next(self.lines(at, "--limit=1"), b"")
        return b""

    def last_before(self, at: int, base: int, log: Log) -> End | None:
        """Return the last record behind `base` that ends at a place or before; None if there is none.

        It begins in the file of the log in which the place lies; or in an earlier one, and is so long.
        """
        for start in range((at - 1) // log.segment * log.segment, base - log.segment, -log.segment):
            told = deque[bytes](maxlen=_UNREAL)
            with suppress(Damaged):  # it says so where it found no record
                told.extend(self.lines(max(start, base), f"--end={shown(at)}"))
            for line in reversed(told):
                if (match := _LINE.match(line)) and self.line(place(match[3].decode())) == line:
                    return End(place(match[3].decode()), int(match[2]), None, line)
        return None


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
    if "position" in target:
        return _place(target, facts, reading)
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


def _place(target: Facts, facts: Facts, reading: Reading) -> Facts:
    """Return what a recovery has to be told to end at a place: behind the last record before, or a restore point."""
    start, base, at = place(str(facts["start_lsn"])), place(str(facts["recovery_lsn"])), int(target["position"])
    log = Log(int(facts["system"]), int(facts["timeline"]), int(facts["segment_bytes"]))
    read = reading.last_end(start, base, None)  # all of it, to the end of what is stored
    if name := str(target.get("name") or ""):
        end = _LINE.match(line := reading.line(at))
        if end is None or end[4] != b"RESTORE_POINT" or not line.endswith(b" " + os.fsencode(name)):
            raise wrong(f"at {shown(at)} in its log is no restore point {name!r}", line.decode(errors="replace")[:200])
        found: End | None = End(at, int(end[2]), None, line)
    else:
        found = reading.last_before(at, start, log)
    if found is None or found.at < base:
        return {"snapshots": {}}
    _check_spaces(read.space, found.at)
    return {
        "recovery_lsn": shown(found.at),
        "recovery_record_bytes": found.size,
        "snapshots": {},
        "snapshot_at": f"the restore point {name!r}" if name else f"{shown(at)} in its log",
    }


def find_point(tree: Tree, name: str, progress: Progress) -> int | None:
    """Return the last place in the log of a moment at which there is a restore point of that name; None if none is.

    The record is looked for as the server writes it; whether it is one is known when the log is read (_place).
    """
    moment, segment, found = tree.facts["moment"], int(tree.facts["segment_bytes"]), None
    pattern = re.compile(_POINT + re.escape(os.fsencode(name) + b"\0"), re.DOTALL)
    at, tail, tail_at = int(moment["since"]["position"]), b"", 0
    with tree.read(moment["stream"]) as source:
        while data := source.read(PAGE - at % PAGE):
            head = max(0, (_HEAD if (at - at % PAGE) % segment else _FIRST_HEAD) - at % PAGE)
            both, body_at = tail + data[head:], at + head
            for match in pattern.finditer(both):
                begun = match.start() - len(tail)
                found = body_at + begun if begun >= 0 else tail_at + match.start()
            tail = both[-_POINT_BYTES:]
            at += len(data)
            tail_at = at - len(tail)
            progress("search", at - int(moment["since"]["position"]), None)
    return found


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
