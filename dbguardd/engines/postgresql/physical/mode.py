"""Backup mode: held by one session with a slot of its own, and gone with that session whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, text
from dbguardd.engines.postgresql.physical.cluster import waited
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.segments import label_start, let_go, place
from dbguardd.engines.postgresql.physical.slot import Room, check_own
from dbguardd.errors import SourceChanged


@contextmanager
def bounded(about: str) -> Iterator[None]:
    """Say what it means when the server ends our session where it bounds what a slot may hold: so it takes one away."""
    try:
        yield
    except errors.AdminShutdown as error:
        raise let_go(f"{about}: the server has ended the session that held its log", str(error).strip()) from error


@dataclass(frozen=True, slots=True)
class Ended:
    """What the server said when backup mode ended: where a recovery is consistent, and the files that it needs."""

    start: int
    stop: int
    timeline: int
    label: bytes
    tablespace_map: bytes


class BackupMode:
    """One backup. The slot holds the log from its making on; it is temporary, so the server drops it with us."""

    def __init__(self, keeper: Connection, system: int) -> None:
        self._keeper, self._system = keeper, system
        self._slot = ""
        self._room: Room | None = None

    def hold(self, directory: DataDirectory) -> None:
        """Make the slot, and see by it that `directory` is that of this server."""
        ((name,),) = rows(
            self._keeper,
            b"SELECT slot_name FROM pg_create_physical_replication_slot("
            b"'dbguard_' || pg_backend_pid()::text, immediately_reserve => true, temporary => true)",
        )
        self._slot = text(name)
        check_own(directory, self._slot, self._system)
        self._room = Room(self._keeper, self._slot, directory)

    def check_room(self) -> None:
        """Raise NoSpace if the server soon has no room for its log; see Room."""
        if self._room is not None:
            self._room.check(
                "during the backup",
                ["give the log more room, or back up when less is written", 'or set method = "dump"'],
            )

    def begin(self, alive: Alive) -> None:
        """Begin backup mode: the server makes a checkpoint, at once, and writes whole pages from then on."""
        waited(self._keeper, alive, b"SELECT pg_backup_start('dbguard', fast => true)")

    def end(self, alive: Alive) -> Ended:
        """End backup mode. Raises SourceChanged if the server has ended it before: it was restarted."""
        ((stop, label, spaces),) = waited(
            self._keeper,
            alive,
            b"SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)",
        )
        if not label:
            raise SourceChanged("PostgreSQL: backup mode has ended by itself")
        start, timeline = label_start(bytes(label))
        return Ended(start, place(text(stop)), timeline, bytes(label), bytes(spaces or b""))

    def let_go(self) -> None:
        """Drop the slot: the log that it held is in the backup."""
        rows(self._keeper, b"SELECT pg_drop_replication_slot(%s)", self._slot)
