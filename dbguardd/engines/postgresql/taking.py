"""Takes the dumps of a server's databases, several at a time, and reads each database beside its dump.

To send a database takes a server about as long as we take to read its rows for the fingerprint, and each keeps one
processor busy. So both are done at the same time. So are several databases: otherwise one dump waits for the server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import datetime
from typing import Any

from dbguardd.engines.base import Progress
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.child import Work, nothing, side_by_side
from dbguardd.engines.postgresql.connect import Address, Connection, free_connections, rows
from dbguardd.engines.postgresql.content import Content, Stored
from dbguardd.engines.postgresql.dump import Dumper, Part, fits_nothing, left_out, stream_of
from dbguardd.engines.postgresql.reader import Reader, reading
from dbguardd.engines.postgresql.snapshot import Database, Held, holding
from dbguardd.errors import GuardError, SourceChanged, SourceDamaged, SourceLocked, SourceMissing
from dbguardd.frozen import frozen

NAMED = 100  # at most this many databases and tables are named in the facts of a backup: contents.json has all
_PAUSE_SECONDS = 0.5
_AT_ONCE = 2  # each keeps two processes of the server busy, and takes 16 MiB of memory here

_LEFT_TO_US = b"""
SELECT rolconnlimit::int8 - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user)
FROM pg_roles WHERE rolname = current_user AND rolconnlimit >= 0
"""


@frozen
class _Taken:
    """A database that was dumped, and what was found in it."""

    part: Part
    at: datetime
    tables: Sequence[Stored]
    name: bytes  # as SQL has it
    lines: Sequence[bytes]
    reader: Reader | None


def at_once(connection: Connection) -> int:
    """Return how many databases may be dumped at a time.

    Each takes two connections: at most a quarter of those that the server has left, and what the role may have.
    """
    left = min([free_connections(connection) // 4, *(int(most) for (most,) in rows(connection, _LEFT_TO_US))])
    return max(1, min(_AT_ONCE, left // 2))


class ServerDump:
    """The backup of a server being made."""

    def __init__(
        self,
        address: Address,
        dumper: Dumper,
        exclude: Sequence[str],
        lock_seconds: float,
        progress: Progress,
        *,
        compared: bool,
    ) -> None:
        self._address, self._dumper, self._exclude = address, dumper, exclude
        self._lock_seconds, self._progress, self._compared = lock_seconds, progress, compared
        self._taken: dict[str, _Taken] = {}

    def take_all(self, databases: Sequence[Database], most: int, *, may_vanish: bool) -> None:
        """Dump databases, at most so many at a time; one that `may_vanish` before its turn is left out."""
        by_size = sorted(databases, key=lambda one: -one.size_bytes)
        works = (self._take(database, may_vanish=may_vanish) for database in by_size)
        side_by_side(works, most, self._dumper.alive)
        self._taken = {one.name: self._taken[one.name] for one in databases if one.name in self._taken}

    @property
    def parts(self) -> Sequence[Part]:
        """The databases in the backup, by name."""
        return [taken.part for taken in self._taken.values()]

    def _take(self, database: Database, *, may_vanish: bool) -> Work:
        """Dump a database once all its tables can be locked; the others go on meanwhile."""
        held, end = False, time.monotonic() + self._lock_seconds
        while not held:
            try:
                with holding(self._address, database) as moment:
                    held = True
                    self._dumper.moved()
                    yield from self.take_held(moment)
            except SourceMissing:
                if not may_vanish or held:
                    raise
                return  # it was dropped since the list was made, so nothing is lost
            except (SourceLocked, SourceChanged):  # the latter: a table was dropped before it could be locked
                if held or time.monotonic() >= end:
                    raise
                again = time.monotonic() + _PAUSE_SECONDS
                while time.monotonic() < again:
                    self._dumper.moved()
                    yield ()

    def take_held(self, held: Held) -> Work:
        """Dump a database, and read it beside that if restores will be compared with it."""
        database, stream = held.database, stream_of(held.number)
        excluded = left_out(database.name, held.tables, self._exclude)
        out, about = tuple(table.shown for table in excluded), f"database {database.name}"
        read = reading(held.connection, out, about, large=held.large) if self._compared else nullcontext()
        with (
            self._dumper.signs.of(held.process),
            read as reader,
            closing(self._dumper.database(held, stream, excluded, reader.begin if reader else nothing)) as dumping,
        ):
            for files in dumping:
                yield files if reader is None or reader.found is not None else [*files, reader.fileno()]
                self._listen(reader)
            while reader is not None and reader.found is None:
                yield [reader.fileno()]
                self._listen(reader)
        part = Part(stream, database, tuple(held.extensions), out, held.large)
        self._taken[database.name] = _Taken(part, held.at, held.tables, held.name, held.lines, reader)

    def _listen(self, reader: Reader | None) -> None:
        if reader is not None and reader.found is None:
            before = reader.read_bytes
            reader.listen()
            if reader.read_bytes != before or reader.found is not None:
                self._dumper.moved()

    def facts(self) -> dict[str, Any]:
        """Return what is known of the moments, and of what was left out."""
        excluded = [f"{part.database.name}.{name}" for part in self.parts for name in part.excluded]
        moments = [taken.at for taken in self._taken.values()]
        tables = {taken.part.database.name: taken.tables for taken in self._taken.values()}
        return {
            "excluded": excluded[:NAMED],
            "excluded_count": len(excluded),
            "exclude_unmatched": fits_nothing(tables, self._exclude)[:NAMED],
            "snapshot_at": min(moments).isoformat(),
            "snapshot_spread_seconds": round((max(moments) - min(moments)).total_seconds(), 6),
        }

    def fingerprint(self) -> Fingerprint | NoFingerprint:
        """Return the fingerprint of all databases, or what prevented it: the dump is whole, and is kept.

        Raises SourceDamaged.
        """
        content, unread = Content(), list[GuardError]()
        for taken in self._taken.values():
            found = {} if taken.reader is None else taken.reader.found or {}
            if isinstance(found, GuardError):
                unread.append(found)
            elif taken.reader is not None:
                content.add(taken.name, taken.lines, found)
        for error in unread:
            if isinstance(error, SourceDamaged):
                raise error
        if unread:
            return NoFingerprint(f"{unread[0].message}. {unread[0].detail}")
        return content.fingerprint()
