"""A moment between two backups: the log that was stored since the first is put behind its own, and its place found.

A recovery follows the log, so a moment is a place in it. Which one, says the log: before anything is started, all of it
is read once (pg_waldump checks each record, and that it follows the one before), and the last transaction that had
ended by the moment is looked up. The recovery ends right behind that. PostgreSQL's own recovery_target_time would end
before the first one that ended later, and so behind all that this one did before its end: a dropped database would be
gone then, and still be listed.

Where another server has taken over meanwhile, the log turns to another timeline (see history): it is put there as that
server had it, and the recovery goes along that.
"""

from __future__ import annotations

import os
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.child import Alive, tool
from dbguardd.engines.postgresql.physical.copy import Tell
from dbguardd.engines.postgresql.physical.datadir import WAL
from dbguardd.engines.postgresql.physical.history import Stretch, across, stretches, timeline_in
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
_PAGE_TIMELINE = struct.Struct("=4xI")
"""How a page of the log begins: with the timeline on which it was begun."""
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
    log = Log(int(facts["system"]), int(facts["timeline"]), int(facts["segment_bytes"]))
    known = place(str(facts["start_lsn"])), place(str(facts["stop_lsn"]))
    before, path = _path(facts["log_place"], moment["since"], moment["until"])
    with tree.read(moment["stream"]) as source, Files(work / WAL, log, path[0].since, known) as files:
        _skip(source, sum(part.stored - part.since for part in before), tell)
        for number, part in enumerate(path):
            if number:
                files.turn(part.timeline, part.since)
            _write(source, files, part, tell)
        if source.read(1):
            raise wrong(f"its log does not end at {shown(path[-1].until)}, as was told")
    readings = list[Reading]()
    for part in path:
        new = part.since if readings else known[0]
        start = max(known[0], new // log.segment * log.segment)
        readings.append(Reading(tools, work / WAL, log.on(part.timeline), (start, new, part.until), alive))
    reached, target = _target(facts, readings)
    if "recovery_lsn" in target:  # else it is that of the backup, and so is what is told of the record there
        facts = {name: value for name, value in facts.items() if name != "recovery_record_bytes"}
    for part in path[reached + 1 :]:  # the history of the restored cluster does not go there
        for name in (work / WAL).glob(f"{part.timeline:08X}*"):
            name.unlink()
    return {**facts, **target, "timeline": path[reached].timeline}


def _path(base: Facts, since: Facts, until: Facts) -> tuple[Sequence[Stretch], Sequence[Stretch]]:
    """Return the parts of a log before that which a backup is of, and those that lead from the backup to the moment."""
    parts, timeline = stretches(since, until), timeline_in(str(base["round"]))
    number = next((n for n, part in enumerate(parts) if part.timeline == timeline), -1)
    same = across(since["round"]) == across(until["round"]) == across(base["round"])
    if not same or number < 0 or not parts[number].since <= base["end"]:
        raise wrong(f"its log does not go on from there: {since} to {until}, and the backup is of {base}")
    if number + 1 < len(parts) and parts[number].until < base["position"]:
        raise wrong(f"its log left timeline {timeline} at {shown(parts[number].until)}, before the place of the backup")
    return parts[:number], parts[number:]


def _skip(source: BinaryIO, count: int, tell: Tell) -> None:
    while count > 0:
        data = source.read(min(count, _PIECE))
        if not data:
            raise wrong("its log ends before it comes to the timeline of the backup")
        count -= len(data)
        tell(len(data))


def _write(source: BinaryIO, files: Files, part: Stretch, tell: Tell) -> None:
    """Write what belongs to a part, up to where its timeline was left; what was stored of it behind that is nothing."""
    useful = max(0, part.until - part.since)
    while useful:
        data = source.read(min(useful, _PIECE))
        if not data:
            raise wrong(f"its log ends at {shown(files.at)}, and {shown(part.until)} was told")
        files.write(data)
        useful -= len(data)
        tell(len(data))
    _skip(source, part.stored - max(part.since, part.until), tell)


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
                self._check_timeline(part, start)
                written(self._file, part, start)
            self.at += len(part)

    def turn(self, timeline: int, at: int) -> None:
        """Go on along another timeline, as the server did that took over: its first file has what lies before.

        What the old timeline has behind that place, in the backup perhaps, belongs to nothing that follows.
        """
        self._close()
        old, new, start = self._log, self._log.on(timeline), at % self._log.segment
        for path in self._directory.glob(f"{old.timeline:08X}{'?' * 16}"):
            if path.name >= old.name(at):
                before = path.read_bytes()[:start] if path.name == old.name(at) else b""
                path.unlink()
                if before:
                    self._put(new.name(at), before)
                    self._put(path.name, before + bytes(old.segment - start))
        history = self._directory / old.history if old.history else None
        told = history.read_text() if history is not None and history.exists() else ""
        self._put(new.history, f"{told}{old.timeline}\t{shown(at)}\tanother server took over\n".encode())
        self._log, self.at, self._known = new, at, (self._known[0], self._known[0])

    def _put(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._directory / name, flags, 0o600), "wb") as file:
            file.write(data)

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

    def _check_timeline(self, part: memoryview, start: int) -> None:
        """Raise Damaged for a page of a later timeline: of a copy that went its own way. Its records are in order."""
        for at in range(-start % PAGE, len(part) - _PAGE_TIMELINE.size + 1, PAGE):
            (timeline,) = _PAGE_TIMELINE.unpack_from(part, at)
            if timeline > self._log.timeline:
                raise wrong(f"its log is another one: {self._name} has a page of timeline {timeline}")


class Reading:
    """A part of the stored log on one timeline, read by PostgreSQL's own program: from `start`, and new from `since`.

    It starts at the last file of the timeline before, as the server has copied it: so what is new is seen to follow
    what was before, record by record.
    """

    def __init__(self, tools: Tools, directory: Path, log: Log, between: tuple[int, int, int], alive: Alive) -> None:
        self._program = tools.path("pg_waldump")
        self.start, self.since, end = between
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

    def last_end(self, base: int, by: datetime | None) -> Read:
        """Read all of it; find the last end of a transaction behind `base`, before one later than `by`."""
        ends, space, later = deque[End](maxlen=_UNREAL), None, False
        for line in self.lines(self.start, "--rmgr=Transaction", "--rmgr=Tablespace"):
            if (match := _LINE.match(line)) is None:
                continue
            kind, size, where, what = match.groups()
            end = End(place(where.decode()), int(size), None if what == b"PREPARE" else _time_of(line), line)
            if end.at < max(base, self.since):
                continue
            if kind == b"Tablespace":
                space = end.at if what == b"CREATE" and space is None and self._real(end) else space
            elif what in _ENDS:
                if by is not None and end.time is not None and end.time > by and self._real(end):
                    later = True
                    break
                ends.append(end)
                self._doubtful = self._doubtful or what == b"PREPARE"
        return Read(next((end for end in reversed(ends) if self._real(end)), None), space, later)

    def _real(self, end: End) -> bool:
        """Say if there is such a record: whoever prepares a transaction gives it a name, which may look like a line."""
        return not self._doubtful or self.line(end.at) == end.line

    def line(self, at: int) -> bytes:
        """Return what it says of the record at a place; nothing if none is there."""
        with suppress(Damaged):
            return next(self.lines(at, "--limit=1"), b"")
        return b""

    def last_before(self, at: int, base: int, segment: int) -> End | None:
        """Return the last record behind `base` that ends at a place or before; None if there is none.

        It begins in the file of the log in which the place lies; or in an earlier one, and is so long.
        """
        for start in range((at - 1) // segment * segment, base - segment, -segment):
            told = deque[bytes](maxlen=_UNREAL)
            with suppress(Damaged):  # it says so where it found no record
                told.extend(self.lines(max(start, base), f"--end={shown(at)}"))
            for line in reversed(told):
                if (match := _LINE.match(line)) and self.line(place(match[3].decode())) == line:
                    return End(place(match[3].decode()), int(match[2]), None, line)
        return None


@dataclass(frozen=True, slots=True)
class Read:
    """What was found in a log: the end of a transaction, if there is one, and where the first tablespace is made.

    `later`: there was an end later than the moment, and what comes after that was not read.
    """

    end: End | None
    space: int | None
    later: bool


def _time_of(line: bytes) -> datetime | None:
    found = _TIME.search(line)
    return None if found is None else datetime.fromisoformat(found[1].decode()).replace(tzinfo=UTC)


def _target(facts: Facts, readings: Sequence[Reading]) -> tuple[int, Facts]:
    """Return in which part the moment is, what a recovery has to be told, and what the text beside it says."""
    target, base = facts["moment"]["target"], place(str(facts["recovery_lsn"]))
    if "position" in target:
        return _place(target, facts, readings)
    later = target.get("backup")
    by = datetime.fromisoformat(target["at"]) if "at" in target else None
    reached, found, space = 0, None, None
    for number, reading in enumerate(readings):
        read = reading.last_end(base, by)
        space = read.space if space is None else space
        reached, found = (number, read.end) if read.end is not None else (reached, found)
        if read.later:
            break
    if later:
        names = ("recovery_lsn", "recovery_record_bytes", "snapshots", "snapshot_at")
        told = {name: later[name] for name in names if name in later}
        _check_spaces(space, place(str(later["recovery_lsn"])))
        return len(readings) - 1, told
    if found is None:  # nothing has ended since: the moment is that of the backup
        return 0, {"snapshots": {}}
    _check_spaces(space, found.at)
    at = by or found.time
    return reached, {
        "recovery_lsn": shown(found.at),
        "recovery_record_bytes": found.size,
        "snapshots": {},
        "snapshot_at": facts["snapshot_at"] if at is None else at.isoformat(),
    }


def _place(target: Facts, facts: Facts, readings: Sequence[Reading]) -> tuple[int, Facts]:
    """Return what _target() does, to end at a place: behind the last record before, or at a restore point."""
    base, at = place(str(facts["recovery_lsn"])), int(target["position"])
    spaces = [reading.last_end(base, None).space for reading in readings]  # all of it, to the end of what is stored
    reached = max(number for number, reading in enumerate(readings) if not number or reading.since < at)
    reading = readings[reached]
    if name := str(target.get("name") or ""):
        end = _LINE.match(line := reading.line(at))
        if end is None or end[4] != b"RESTORE_POINT" or not line.endswith(b" " + os.fsencode(name)):
            raise wrong(f"at {shown(at)} in its log is no restore point {name!r}", line.decode(errors="replace")[:200])
        found: End | None = End(at, int(end[2]), None, line)
    else:
        found = reading.last_before(at, reading.start, int(facts["segment_bytes"]))
    if found is None or found.at < base:
        return 0, {"snapshots": {}}
    _check_spaces(next((space for space in spaces if space is not None), None), found.at)
    return reached, {
        "recovery_lsn": shown(found.at),
        "recovery_record_bytes": found.size,
        "snapshots": {},
        "snapshot_at": f"the restore point {name!r}" if name else f"{shown(at)} in its log",
    }


def find_point(tree: Tree, name: str, progress: Progress) -> int | None:
    """Return the last place in the log of a moment at which there is a restore point of that name; None if none is.

    The record is looked for as the server writes it; whether it is one is known when the log is read (_place). What was
    stored of a timeline behind the place where it was left, has none.
    """
    moment, segment, found, done = tree.facts["moment"], int(tree.facts["segment_bytes"]), None, 0
    pattern = re.compile(_POINT + re.escape(os.fsencode(name) + b"\0"), re.DOTALL)
    with tree.read(moment["stream"]) as source:
        for part in stretches(moment["since"], moment["until"]):
            at, tail = part.since, b""
            while at < part.stored and (data := source.read(min(PAGE - at % PAGE, part.stored - at))):
                head = max(0, (_HEAD if (at - at % PAGE) % segment else _FIRST_HEAD) - at % PAGE)
                for match in pattern.finditer(tail + data[head:]):
                    begun = match.start() - len(tail)
                    place_of = at + head + begun if begun >= 0 else at + begun
                    found = place_of if place_of < part.until else found
                tail = (tail + data[head:])[-_POINT_BYTES:]
                at, done = at + len(data), done + len(data)
                progress("search", done, None)
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
