"""Backup mode: held by one session with a slot of its own, and gone with that session whatever happens."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, text
from dbguardd.engines.postgresql.physical.cluster import clock, waited
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.segments import Log, label_start, let_go, place
from dbguardd.engines.postgresql.physical.slot import check_room
from dbguardd.errors import GuardError, SourceChanged

_LOOK_SECONDS = 1.0
_MORE_ROOM = ("give the log more room, or back up when less is written", 'or set method = "dump"')


@contextmanager
def bounded(about: str) -> Iterator[None]:
    """Say what it means when the server ends our session where it bounds what a slot may hold: so it takes one away."""
    try:
        yield
    except errors.AdminShutdown as error:
        raise let_go(f"{about}: the server has ended the session that held its log", str(error).strip()) from error


class Room:
    """The room that a server has for its log, from now on, while a slot of ours holds some of it."""

    def __init__(self, keeper: Connection, slot: str, directory: DataDirectory) -> None:
        self._keeper, self._slot, self._directory = keeper, slot, directory
        self._bytes = directory.free_for_log()

    def check(self) -> None:
        """Raise NoSpace if the log that the slot holds has taken half of the room that it had; see slot.check_room.

        Asked of the file system each time, and of the server only where the room has become less: that can be the work
        of others.
        """
        if self._directory.free_for_log() < self._bytes // 2:
            check_room(self._keeper, self._slot, self._directory, "during the backup", _MORE_ROOM)


@contextmanager
def watched(keeper: Connection, room: Room) -> Iterator[Callable[[], None]]:
    """Let go of the log before it takes the last room of the server, and raise NoSpace then; see Room.

    Storing one file, reading the log, a checkpoint: each may take minutes. So a thread of its own looks,
    over a connection of its own, and ends the session of `keeper`, whatever that one is waiting for: slot and backup
    mode are gone with it. The block ends at its next word to the server, or where it calls what is yielded.
    """
    found = list[Exception]()
    over = threading.Event()

    def look() -> None:
        while not (over.wait(_LOOK_SECONDS) or found):
            try:
                room.check()
            except (psycopg.Error, GuardError) as error:  # that it cannot be asked is no reason to take more of it
                found.append(error)
                hang_up(keeper)

    def check() -> None:
        if found:
            raise found[0]

    looking = threading.Thread(target=look, name="room")
    looking.start()
    try:
        yield check
    except (psycopg.Error, GuardError) as error:
        if found and found[0] is not error:
            raise found[0] from error
        raise
    finally:
        over.set()
        looking.join()


def hang_up(connection: Connection) -> None:
    """End a session from another thread than that which uses it: the server sees at once that nobody is there."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Ended:
    """What the server said when backup mode ended: where a recovery is consistent, and the files that it needs.

    What had committed at the time `at` lies before the end. The log goes on in a file of its own, at `next`; that of a
    standby goes on in the file with the end, which begins there.
    """

    start: int
    stop: int
    next: int
    at: datetime
    timeline: int
    label: bytes
    tablespace_map: bytes


class BackupMode:
    """One backup. The slot holds the log from its making on; it is temporary, so the server drops it with us."""

    def __init__(self, keeper: Connection, log: Log, *, standby: bool = False) -> None:
        self._keeper, self._log, self._standby = keeper, log, standby
        self._slot = ""

    def hold(self) -> str:
        """Make the slot, and return its name: by that the server is known, see slot.check_own."""
        ((name,),) = rows(
            self._keeper,
            b"SELECT slot_name FROM pg_create_physical_replication_slot("
            b"'dbguard_' || pg_backend_pid()::text, immediately_reserve => true, temporary => true)",
        )
        self._slot = text(name)
        return self._slot

    def begin(self, alive: Alive) -> None:
        """Begin backup mode: the server makes a checkpoint, at once, and writes whole pages from then on."""
        waited(self._keeper, alive, b"SELECT pg_backup_start('dbguard', fast => true)")

    def end(self, alive: Alive) -> Ended:
        """End backup mode. Raises SourceChanged if the server has ended it before: it was restarted."""
        at = replayed_at(self._keeper) if self._standby else clock(self._keeper)
        ((stop, label, spaces),) = waited(
            self._keeper,
            alive,
            b"SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)",
        )
        if not label:
            raise SourceChanged("PostgreSQL: backup mode has ended by itself")
        return self.ended(at, text(stop), bytes(label), bytes(spaces or b""))

    def ended(self, at: datetime, stop: str, label: bytes, spaces: bytes) -> Ended:
        """Return what it means that backup mode has ended there, whoever has ended it."""
        start, timeline = label_start(label)
        if timeline != self._log.timeline:
            raise SourceChanged(
                "PostgreSQL: the standby has had no checkpoint yet since another server took over",
                hints=["CHECKPOINT;  -- on the primary, and back up again"],
            )
        end, size = place(stop), self._log.segment
        return Ended(
            start,
            end,
            end // size * size if self._standby else -(-end // size) * size,
            at,
            timeline,
            label,
            spaces,
        )

    def let_go(self) -> None:
        """Drop the slot: the log that it held is in the backup."""
        rows(self._keeper, b"SELECT pg_drop_replication_slot(%s)", self._slot)
