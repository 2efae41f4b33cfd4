"""The log (WAL) of a cluster: places in it (LSNs), and its files."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace

from dbguardd.engines.postgresql.physical.datadir import WAL, DataDirectory, denied
from dbguardd.errors import LogBroken
from dbguardd.frozen import frozen

PAGE = 8192
_HEAD = struct.Struct("=HHIQI4xQII")
"""Magic, flags, timeline, place, remaining length of a record; system identifier, bytes of a file, of a page."""
_FIRST_PAGE = 2
_BEFORE_RECORDS, _BEFORE_RECORDS_FIRST = 24, 40  # bytes: header of a page, and of the first page of a file
_FILE = re.compile("[0-9A-F]{24}")
_PLACE = re.compile("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_TURN = re.compile(r"^[ \t]*(\d{1,10})[ \t]+([0-9A-F]{1,8}/[0-9A-F]{1,8})", re.MULTILINE)


def parse_lsn(text: str) -> int:
    """Return an LSN ("16/B374D848") as a number: bytes since the log began. Raises LogBroken for invalid text."""
    if not (found := _PLACE.fullmatch(text)):
        raise LogBroken(f"{text[:50]!r}: is no place in the log of PostgreSQL")
    return int(found[1], 16) << 32 | int(found[2], 16)


def format_lsn(at: int) -> str:
    """Return an LSN in PostgreSQL's notation."""
    return f"{at >> 32:X}/{at & 0xFFFFFFFF:X}"


@frozen
class WalTimeline:
    """Identifies a log: its cluster, timeline, and file size in bytes."""

    system: int
    timeline: int
    segment: int

    @property
    def history(self) -> str:
        """The name of the timeline history file; "" for the first timeline."""
        return f"{self.timeline:08X}.history" if self.timeline > 1 else ""

    def on(self, timeline: int) -> WalTimeline:
        """Return the log of the same cluster on another timeline."""
        return replace(self, timeline=timeline)

    def name(self, at: int) -> str:
        """Return the name of the file that contains a place."""
        number, each = at // self.segment, (1 << 32) // self.segment
        return f"{self.timeline:08X}{number // each:08X}{number % each:08X}"

    def names(self, first: int, end: int) -> Iterator[tuple[str, int]]:
        """Yield the files with the places from `first` to before `end`, each with its start."""
        for start in range(first // self.segment * self.segment, end, self.segment):
            yield self.name(start), start


def open_segment(directory: DataDirectory, log: WalTimeline, name: str, start: int) -> int:
    """Open a WAL file and check that its header matches its name. Raises LogBroken if it is gone or does not match."""
    try:
        folder = os.open(WAL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.file)
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError as error:
        raise let_go(f"{name}: the server has removed a part of its log that the backup needs") from error
    except OSError as error:
        raise denied(f"{WAL}/{name}", error) from error
    head = os.pread(file, _HEAD.size, 0)
    if len(head) == _HEAD.size:
        _magic, flags, timeline, at, _rest, system, segment, _page = _HEAD.unpack(head)
        if (timeline, at, system, segment) == (log.timeline, start, log.system, log.segment) and flags & _FIRST_PAGE:
            return file
    os.close(file)
    raise LogBroken(f"{name}: is not the part of the log that its name says", detail=f"head {head.hex()}")


def looked_for(
    pattern: re.Pattern[bytes], most: int, at: int, pieces: Iterable[bytes | memoryview], segment: int
) -> Iterator[tuple[int, re.Match[bytes]]]:
    """Yield each match of `pattern`, which stands for a record of at most `most` bytes, with its place.

    The `pieces` of the log follow each other from the place `at`. A record continues after the header of the next page.
    """
    tail = b""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            data, rest = bytes(rest[: PAGE - at % PAGE]), rest[PAGE - at % PAGE :]
            before = _BEFORE_RECORDS if (at - at % PAGE) % segment else _BEFORE_RECORDS_FIRST
            head = max(0, before - at % PAGE)
            for match in pattern.finditer(tail + data[head:]):
                begun = match.start() - len(tail)
                yield (at + head + begun if begun >= 0 else at + begun), match
            tail = (tail + data[head:])[-most:]
            at += len(data)


def recycled(path: str, file: int) -> bool:
    """Return whether this is a recycled WAL file: its content belongs to an earlier place, and is to be overwritten."""
    name = path.removeprefix(f"{WAL}/")
    head = os.pread(file, _HEAD.size, 0)
    if name == path or not _FILE.fullmatch(name) or len(head) < _HEAD.size:
        return False
    _magic, _flags, timeline, at, _rest, system, segment, _page = _HEAD.unpack(head)
    return not segment or WalTimeline(system, timeline, segment).name(at) != name


def let_go(what: str, said: str = "") -> LogBroken:
    """Return the error for a server that no longer keeps the WAL that a backup needs."""
    why = "A slot held it; the server lets go of a slot that holds more than max_slot_wal_keep_size."
    return LogBroken(
        what,
        detail=f"{why} {said}".strip(),
        hints=["raise max_slot_wal_keep_size, or back up when less is written"],
    )


def turns_of(history: str) -> list[tuple[int, int]]:
    """Return the timelines in a history file, oldest first, each with the place where it was left."""
    return [(int(timeline), parse_lsn(at)) for timeline, at in _TURN.findall(history)]


def label_start(label: bytes) -> tuple[int, int]:
    """Return place and timeline where a backup begins, from its backup_label. Raises LogBroken."""
    at = re.search(rb"^START WAL LOCATION: ([0-9A-F]{1,8}/[0-9A-F]{1,8}) ", label, re.MULTILINE)
    timeline = re.search(rb"^START TIMELINE: (\d{1,10})$", label, re.MULTILINE)
    if at is None or timeline is None:
        raise LogBroken("backup_label: does not say where the backup begins", detail=repr(label[:200]))
    return parse_lsn(at[1].decode()), int(timeline[1])
