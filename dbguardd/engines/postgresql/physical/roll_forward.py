"""A moment after a backup: the log stored since then is appended to the backup's own, and the moment located in it.

A recovery follows the log, so a moment is a place in it. The log determines which (see ending); it is read completely
once before a server is started.

Where another server has taken over, the log turns to another timeline (see history): its files are written as that
server had them, and recovery follows that timeline.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dbguardd.durable import write_at
from dbguardd.engines.postgresql.physical.copy import Tell
from dbguardd.engines.postgresql.physical.datadir import WAL
from dbguardd.engines.postgresql.physical.facts import ClusterFacts, Moment
from dbguardd.engines.postgresql.physical.history import (
    TimelineRange,
    WalPosition,
    across,
    timeline_in,
    timeline_ranges,
)
from dbguardd.engines.postgresql.physical.records import Records
from dbguardd.engines.postgresql.physical.recovery_target import Part, ending, wrong
from dbguardd.engines.postgresql.physical.segments import PAGE, WalTimeline, format_lsn
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.facts import LogPosition as LogPlace
from dbguardd.flow import Tree

_PIECE = 1 << 20
_PAGE_TIMELINE = struct.Struct("=4xI")
"""The start of a WAL page: the timeline on which it was begun."""


def roll_forward(tree: Tree, facts: ClusterFacts, moment: Moment, work: Path, tell: Tell) -> ClusterFacts:
    """Append the log of a moment to that of its backup, in `work`; return facts for a recovery to the moment.

    Raises Damaged (with the fact LOG) if the log does not continue the backup's or cannot be read, and Unsupported if
    recovery along it would change this host.
    """
    tools = log_tools(facts)
    log, known = facts.log(), (facts.start_lsn, facts.stop_lsn)
    before, path = _path(facts.log_place, moment.since, moment.until)
    with tree.read(moment.stream) as source, Files(work / WAL, log, path[0].since, known) as files:
        _skip(source, sum(part.stored - part.since for part in before), tell)
        for number, part in enumerate(path):
            if number:
                files.turn(part.timeline, part.since)
            _write(source, files, part, tell)
        if source.read(1):
            raise wrong(f"its log does not end at {format_lsn(path[-1].until)}, as the log says")
    parts = list[Part]()
    for part in path:
        new = part.since if parts else known[0]
        start = max(known[0], new // log.segment * log.segment)
        records = Records(
            tools, str(work / WAL), part.timeline, partial(tell, 0), partial(wrong, "its log cannot be read")
        )
        parts.append(Part(records, start, new, part.until))
    reached, ended = ending(facts, moment, parts)
    for part in path[reached + 1 :]:  # the restored cluster does not take that timeline
        for name in (work / WAL).glob(f"{part.timeline:08X}*"):
            name.unlink()
    return replace(ended, timeline=path[reached].timeline)


def log_tools(facts: ClusterFacts) -> Tools:
    """Return the programs that read the log. Raises ToolMissing."""
    return find_tools("pg_waldump", facts.major, need="the moment is looked up in the log by it")


def _path(
    base: LogPlace | None, since: WalPosition, until: WalPosition
) -> tuple[Sequence[TimelineRange], Sequence[TimelineRange]]:
    """Return the parts of the log that come before the backup's timeline, and those from it to the moment."""
    if base is None or base.end is None:
        raise wrong("it does not say where a log continues from it")
    parts, timeline = timeline_ranges(since, until), timeline_in(base.round)
    number = next((n for n, part in enumerate(parts) if part.timeline == timeline), -1)
    same = across(since.round) == across(until.round) == across(base.round)
    if not same or number < 0 or not parts[number].since <= base.end:
        raise wrong(f"its log does not continue from there: {since} to {until}, and the backup is at {base}")
    if number + 1 < len(parts) and parts[number].until < base.position:
        raise wrong(
            f"its log left timeline {timeline} at {format_lsn(parts[number].until)}, before the place of the backup"
        )
    return parts[:number], parts[number:]


def _skip(source: BinaryIO, count: int, tell: Tell) -> None:
    while count > 0:
        data = source.read(min(count, _PIECE))
        if not data:
            raise wrong("its log ends before it reaches the timeline of the backup")
        count -= len(data)
        tell(len(data))


def _write(source: BinaryIO, files: Files, part: TimelineRange, tell: Tell) -> None:
    """Write the bytes of a part up to where its timeline was left; skip those stored after that place."""
    useful = max(0, part.until - part.since)
    while useful:
        data = source.read(min(useful, _PIECE))
        if not data:
            raise wrong(f"its log ends at {format_lsn(files.at)}, not at {format_lsn(part.until)}")
        files.write(data)
        useful -= len(data)
        tell(len(data))
    _skip(source, part.stored - max(part.since, part.until), tell)


class Files:
    """Writes a log into WAL files, from a place on. `known`: the range in which it must equal the backup's own log."""

    def __init__(self, directory: Path, log: WalTimeline, at: int, known: tuple[int, int]) -> None:
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
        """Write the next bytes, skipping those before the backup's own log.

        Raises Damaged if the log differs from that.
        """
        view, oldest = memoryview(data), self._known[0] // self._log.segment * self._log.segment
        while view:
            start = self.at % self._log.segment
            part, view = view[: self._log.segment - start], view[self._log.segment - start :]
            if self.at >= oldest:
                self._open(self._log.name(self.at))
                self._compare(part, start)
                self._check_timeline(part, start)
                write_at(self._file, part, start)
            self.at += len(part)

    def turn(self, timeline: int, at: int) -> None:
        """Continue on another timeline as the server did that took over: its first file repeats what lies before `at`.

        What the old timeline has after that place, even in the backup, is not part of the history.
        """
        self._close()
        old, new, start = self._log, self._log.on(timeline), at % self._log.segment
        for path in self._directory.glob(f"{old.timeline:08X}{'?' * 16}"):
            if path.name > old.name(at) or (path.name == old.name(at) and not start):
                path.unlink()
            elif path.name == old.name(at):
                os.truncate(path, start)
                shutil.copy(path, self._directory / new.name(at))
                os.truncate(path, old.segment)  # zeros after that place
        history = self._directory / old.history if old.history else None
        told = history.read_text() if history is not None and history.exists() else ""
        self._put(new.history, f"{told}{old.timeline}\t{format_lsn(at)}\tanother server took over\n".encode())
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
        """Raise Damaged for a page of a later timeline, written by a copy that diverged: its records would be valid."""
        for at in range(-start % PAGE, len(part) - _PAGE_TIMELINE.size + 1, PAGE):
            (timeline,) = _PAGE_TIMELINE.unpack_from(part, at)
            if timeline > self._log.timeline:
                raise wrong(f"its log is another one: {self._name} has a page of timeline {timeline}")
