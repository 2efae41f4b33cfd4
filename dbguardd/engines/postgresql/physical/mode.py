"""Backup mode: held by one session with a slot of its own, and gone with that session whatever happens."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address, Connection, connect, no_answer, row, rows, silent, text
from dbguardd.engines.postgresql.physical.cluster import clock, waited
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.segments import WalTimeline, label_start, let_go, parse_lsn
from dbguardd.engines.postgresql.physical.slot import Slot, check_room
from dbguardd.errors import GuardError, ServerUnreachable, SourceChanged

_LOOK_SECONDS, _ASK_EACH = 1.0, 10
_NAME = re.compile(rb"[a-z0-9_]{1,63}")
_MORE_ROOM = ("give the log more room, or back up when less is written", 'or set method = "dump"')


@contextmanager
def bounded(address: Address, about: str) -> Iterator[None]:
    """Say what it means when the server ends our session where it bounds what a slot may hold: so it takes one away.

    But a server that is stopped, or falls, ends all sessions, and lets nobody in afterwards.
    """
    try:
        yield
    except errors.AdminShutdown as error:
        said = str(error).strip()
        try:
            connect(address, about=about).close()
        except GuardError as gone:
            raise ServerUnreachable(f"{about}: the server was stopped meanwhile", detail=said) from gone
        raise let_go(f"{about}: the server has ended the session that held its log", said) from error


class Watch:
    """What has to last while a slot of ours holds the log: that the server answers, has the slot, and has room for it.

    Asked over a session of its own. Of a server elsewhere (without a `directory`) its room is not seen from here.
    """

    def __init__(
        self, session: Connection, slot: str, directory: DataDirectory | None, about: str, patience: float
    ) -> None:
        self._session, self._slot, self._directory = session, slot, directory
        self._about, self._patience, self.each = about, patience, patience / _ASK_EACH
        self._bytes = 0 if directory is None else directory.free_for_log()
        self._asked = 0.0

    def look(self) -> None:
        """Raise what has become of it.

        NoSpace if the log has taken half of the room that there was, see slot.check_room: asked of the file system each
        time, and of the server only then, as that can be the work of others. LogBroken if the slot is gone. And
        ServerUnreachable if there is no answer: a server that is stopped, or hangs, keeps its connections.
        """
        if self._directory is not None and self._directory.free_for_log() < self._bytes // 2:
            with self._answered():
                check_room(self._session, self._slot, self._directory, "during the backup", _MORE_ROOM)
        if time.monotonic() - self._asked >= self.each:
            self._asked = time.monotonic()
            with self._answered():
                held = Slot(self._session, self._slot).holds()
            if not held:
                raise let_go(f"{self._about}: the server has let go of the log that the backup needs")

    def leave(self) -> None:
        """Wait for no answer any more: from another thread than that which looks."""
        hang_up(self._session)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Have a question answered in time."""
        late, began = threading.Timer(self._patience, hang_up, [self._session]), time.monotonic()
        late.start()
        try:
            yield
        except psycopg.OperationalError as error:
            if time.monotonic() - began < self._patience:
                raise
            raise silent(self._about, "the server answers nothing", self._patience) from error
        finally:
            late.cancel()


@contextmanager
def watched(connections: Sequence[Connection], watch: Watch) -> Iterator[Callable[[], None]]:
    """Let go of the log when something of it does not last, see Watch, and raise what that is.

    Storing one file, reading the log, a checkpoint: each may take minutes. So a thread of its own looks, and ends all
    `connections`, of which the first has the slot, whatever they are waiting for: slot and backup mode are gone with
    it. The block ends at its next word to the server, or where it calls what is yielded.
    """
    found = list[Exception]()
    over = threading.Event()

    def look() -> None:
        while not (over.wait(min(_LOOK_SECONDS, watch.each)) or found):
            try:
                watch.look()
            except Exception as error:  # noqa: BLE001 - that nobody can look is no reason to take more of it
                if not over.is_set():
                    found.append(error)
                    for connection in tuple(connections):
                        hang_up(connection)

    def check() -> None:
        if found:
            raise found[0]

    looking = threading.Thread(target=look, name="watch")
    looking.start()
    try:
        yield check
        check()
    except BaseException as error:
        over.set()
        watch.leave()  # whoever cancels waits for no server
        if found and found[0] is not error and isinstance(error, psycopg.Error | GuardError):
            raise found[0] from error
        raise
    finally:
        over.set()
        looking.join()


def hang_up(connection: Connection) -> None:
    """End a session from another thread than that which uses it: the server sees at once that nobody is there."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
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

    def __init__(self, keeper: Connection, log: WalTimeline, *, standby: bool = False) -> None:
        self._keeper, self._log, self._standby = keeper, log, standby
        self._slot = ""

    def hold(self) -> str:
        """Make the slot, and return its name: by that the server is known, see slot.check_own."""
        (name,) = row(
            self._keeper,
            (bytes,),
            b"SELECT slot_name FROM pg_create_physical_replication_slot("
            b"'dbguard_' || pg_backend_pid()::text, immediately_reserve => true, temporary => true)",
        )
        if not _NAME.fullmatch(name):
            raise no_answer(name)
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
        end, size = parse_lsn(stop), self._log.segment
        if end < start:
            raise no_answer((label, stop))
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
