"""Decides at which record a recovery ends: what a moment means in the log of a cluster.

The job passes a Target: a time, a place, a restore point, the place of a later backup, or the end of the stored log.
The log determines the record. All its records are read and checked before a server is started. For a time it is the
last end of a transaction by then, and recovery ends right after that record. PostgreSQL's own recovery_target_time
would end before the first transaction end after that time, and so include everything that this later transaction did
before its end: a database that it dropped would still be listed, but its files would be gone.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.physical.facts import ClusterFacts, Moment
from dbguardd.engines.postgresql.physical.history import timeline_ranges
from dbguardd.engines.postgresql.physical.records import UNREAL, Record, Records
from dbguardd.engines.postgresql.physical.segments import PAGE, format_lsn, looked_for
from dbguardd.errors import Damaged, Unsupported
from dbguardd.flow import LOG, Tree
from dbguardd.frozen import frozen

_POINT = struct.pack("=I", 98) + rb".{12}[\x70-\x7f]\0\0\0.{4}\xff\x48(.{8})"
"""The start of a restore point's record: its length, XLOG_RESTORE_POINT, the length of its data, and the time."""
_POINT_BYTES = 97
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds since then
_ENDS = (b"COMMIT", b"COMMIT_PREPARED", b"ABORT_PREPARED", b"PREPARE")


@frozen
class Part:
    """A part of the stored log on one timeline: read from `start` to `end`, and new from `since`.

    It starts in the last WAL file of the timeline before, as the server copied it, so that each new record is seen to
    follow the one before.
    """

    records: Records
    start: int
    since: int
    end: int

    def last_end(self, base: int, by: datetime | None) -> tuple[Record | None, int | None, bool]:
        """Read the whole part. Return the last transaction end after `base` and before any that is later than `by`.

        Also return where the first tablespace is created, and whether a transaction end later than `by` was met:
        reading stops there.
        """
        ends, space = deque[Record](maxlen=UNREAL), None
        doubtful = later = False  # doubtful: a prepared transaction was met, so its name may look like records
        for told in self.records.between(self.start, self.end, "Transaction", "Tablespace"):
            if told.at < max(base, self.since):
                continue
            doubtful = doubtful or told.what == b"PREPARE"
            if told.kind == b"Tablespace":
                space = told.at if told.what == b"CREATE" and space is None and self._real(told, doubtful) else space
            elif told.what in _ENDS:
                if by is not None and (told.time or by) > by and self._real(told, doubtful):
                    later = True
                    break
                ends.append(told)
        return next((end for end in reversed(ends) if self._real(end, doubtful)), None), space, later

    def _real(self, told: Record, doubtful: bool) -> bool:
        return not doubtful or self.records.real(told, self.end)

    def last_before(self, at: int, segment: int) -> Record | None:
        """Return the last record that ends at or before a place; None if there is none.

        It begins in the WAL file that contains the place, or in an earlier one if the record is long.
        """
        for start in range((at - 1) // segment * segment, self.start - segment, -segment):
            if found := self.records.last(max(start, self.start), at):
                return found
        return None


def ending(facts: ClusterFacts, moment: Moment, parts: Sequence[Part]) -> tuple[int, ClusterFacts]:
    """Return the index of the part that contains the moment, and the backup's facts with recovery ending at the moment.

    Raises Damaged, Unsupported.
    """
    target, base = moment.target, facts.recovery_lsn
    if target.position is not None:
        return _place(target.position, target.name, facts, parts)
    by = datetime.fromisoformat(target.at) if target.at else None
    reached, found, space = 0, None, None
    for number, part in enumerate(parts):
        end, made, past = part.last_end(base, by)
        space = made if space is None else space
        reached, found = (number, end) if end is not None else (reached, found)
        if past:
            break
    if target.backup:
        later = ClusterFacts.read(target.backup)
        _check_spaces(space, later.recovery_lsn)
        return len(parts) - 1, replace(
            facts,
            recovery_lsn=later.recovery_lsn,
            recovery_record_bytes=later.recovery_record_bytes,
            snapshots=later.snapshots,
            snapshot_at=later.snapshot_at,
        )
    if found is None:  # no transaction has ended since: the moment is the backup itself
        return 0, replace(facts, snapshots={})
    _check_spaces(space, found.at)
    at = by or parts[reached].records.ended_at(found, parts[reached].end)
    return reached, _behind(found, facts, facts.snapshot_at if at is None else at.isoformat())


def _place(at: int, name: str, facts: ClusterFacts, parts: Sequence[Part]) -> tuple[int, ClusterFacts]:
    """Return what ending() returns, for a place: the last record before it, or the restore point there."""
    base = facts.recovery_lsn
    spaces = [part.last_end(base, None)[1] for part in parts]  # all of it, to the end of the stored log
    reached = max(number for number, part in enumerate(parts) if not number or part.since < at)
    part, where = parts[reached], f"{format_lsn(at)} in its log"
    if name:
        found = part.records.at(at, part.end)
        if found is None or found.what != b"RESTORE_POINT" or not found.line.endswith(b" " + os.fsencode(name)):
            told = b"" if found is None else found.line[:200]
            raise wrong(f"at {format_lsn(at)} in its log is no restore point {name!r}", told.decode(errors="replace"))
        where = f"the restore point {name!r}"
    else:
        found = part.last_before(at, facts.segment_bytes)
    if found is None or found.at < base:
        return 0, replace(facts, snapshots={})
    _check_spaces(next((space for space in spaces if space is not None), None), found.at)
    return reached, _behind(found, facts, where)


def _behind(end: Record, facts: ClusterFacts, when: str) -> ClusterFacts:
    return replace(facts, recovery_lsn=end.at, recovery_record_bytes=end.size, snapshots={}, snapshot_at=when)


def find_point(tree: Tree, name: str, progress: Progress) -> tuple[int, datetime] | None:
    """Return the last restore point of that name in the log of a moment; None if there is none.

    This finds bytes that look like the record; reading the log verifies it later (_place). WAL stored of a timeline
    after it was left does not count.
    """
    facts, found, done = ClusterFacts.read(tree.facts), None, 0
    moment, segment = facts.moment, facts.segment_bytes
    if moment is None:
        return None
    pattern = re.compile(_POINT + re.escape(os.fsencode(name) + b"\0"), re.DOTALL)
    parts = timeline_ranges(moment.since, moment.until)
    total = sum(part.stored - part.since for part in parts)

    def pieces(source: BinaryIO, left: int) -> Iterator[bytes]:
        nonlocal done
        while left and (data := source.read(min(PAGE, left))):
            left, done = left - len(data), done + len(data)
            yield data
            progress("search", done, total)

    with tree.read(moment.stream) as source:
        for part in parts:
            log = pieces(source, part.stored - part.since)
            for at, match in looked_for(pattern, _POINT_BYTES, part.since, log, segment):
                when = _instant(match[1])
                found = (at, when) if at < part.until and when is not None else found
    return found


def _instant(stamp: bytes) -> datetime | None:
    """Return a timestamp of the server; None if the bytes are no time and so only look like a record."""
    try:
        return _EPOCH + timedelta(microseconds=int.from_bytes(stamp, sys.byteorder, signed=True))
    except OverflowError:
        return None


def _check_spaces(space: int | None, end: int) -> None:
    """Raise Unsupported if a tablespace is created on the way: replaying that empties its directory, on this host."""
    if space is not None and space < end:
        raise Unsupported(
            f"a tablespace was made at {format_lsn(space)} in the log: a restore cannot continue past that",
            detail="A recovery would create it again at its place on this host, and empty the directory there.",
            hints=["restore a moment before that, or one after the next backup"],
            facts={LOG: format_lsn(space)},
        )


def wrong(what: str, detail: str = "") -> Damaged:
    """Return an error about the log; the backup before it can still be restored."""
    return Damaged(f"the backup is whole, and {what}", detail=detail, facts={LOG: what})
