"""Backup mode: held by one session with a temporary slot, and ended with that session whatever happens."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime

import psycopg
from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address, Connection, connect, row, rows, text
from dbguardd.engines.postgresql.physical.cluster import clock, waited
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.segments import WalTimeline, label_start, let_go, parse_lsn
from dbguardd.engines.postgresql.physical.slot import Slot, check_room
from dbguardd.engines.postgresql.refusals import no_answer, silent
from dbguardd.errors import GuardError, ServerUnreachable, SourceChanged
from dbguardd.frozen import frozen

_LOOK_SECONDS, _ASK_EACH = 1.0, 10
_NAME = re.compile(rb"[a-z0-9_]{1,63}")
_MORE_ROOM = ("give the log more room, or back up when less is written", 'or set method = "dump"')


@contextmanager
def bounded(address: Address, about: str) -> Iterator[None]:
    """Explain the server ending our session: if it limits what a slot may hold, that is how it takes a slot away.

    If the server was stopped or has crashed, it ends all sessions and accepts none afterwards: that is reported
    instead.
    """
    try:
        yield
    except errors.AdminShutdown as error:
        said = str(error).strip()
        try:
            connect(address, about=about).close()
        except GuardError as gone:
            raise ServerUnreachable(f"{about}: the server was stopped during the backup", detail=said) from gone
        raise let_go(f"{about}: the server has ended the session that held its log", said) from error


class Watch:
    """The conditions for holding WAL with a slot of ours: the server answers, has the slot, and has room for the WAL.

    Checked over a session of its own. For a server elsewhere (no `directory`) its free space is unknown here.
    """

    def __init__(
        self, session: Connection, slot: str, directory: DataDirectory | None, about: str, patience: float
    ) -> None:
        self._session, self._slot, self._directory = session, slot, directory
        self._about, self._patience, self.each = about, patience, patience / _ASK_EACH
        self._bytes = 0 if directory is None else directory.free_for_log()
        self._asked = 0.0

    def look(self) -> None:
        """Raise what went wrong, if anything.

        NoSpace if WAL has taken half of the space that was free (see slot.check_room). The file system is checked each
        time, the server only if space has shrunk, because others may have used it. LogBroken if the slot is gone.
        ServerUnreachable if there is no answer: a server that is suspended or hangs keeps its connections open.
        """
        if self._directory is not None and self._directory.free_for_log() < self._bytes // 2:
            with self._answered():
                check_room(self._session, self._slot, self._directory, "during the backup", _MORE_ROOM)
        if time.monotonic() - self._asked >= self.each:
            self._asked = time.monotonic()
            with self._answered():
                held = Slot(self._session, self._slot).holds()
            if not held:
                raise let_go(f"{self._about}: the server has removed WAL that the backup needs")

    def leave(self) -> None:
        """Stop waiting for any answer. Called from another thread than the one in look()."""
        hang_up(self._session)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Limit how long a query inside the block may wait for its answer."""
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
    """Release the WAL as soon as a condition fails (see Watch), and raise why.

    Storing a file, reading the log, a checkpoint: each may take minutes. So a separate thread checks, and on failure
    ends all `connections`, whatever they are waiting for. The first of them has the slot: slot and backup mode end with
    it. The block ends at its next query, or when it calls the function that is yielded.
    """
    found = list[Exception]()
    over = threading.Event()

    def look() -> None:
        while not (over.wait(min(_LOOK_SECONDS, watch.each)) or found):
            try:
                watch.look()
            except Exception as error:  # noqa: BLE001 - a failing check is no reason to hold more WAL
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
        watch.leave()  # a cancelled job waits for no server
        if found and found[0] is not error and isinstance(error, psycopg.Error | GuardError):
            raise found[0] from error
        raise
    finally:
        over.set()
        looking.join()


def hang_up(connection: Connection) -> None:
    """End a session from another thread than the one that uses it; the server notices the disconnect at once."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


@frozen
class BackupStop:
    """The server's answer at the end of backup mode: where a recovery is consistent, and which files it needs.

    Everything committed at the time `at` lies before the end. The log continues at `next`, in a new file; on a standby,
    in the file that contains the end, of which `next` is the start.
    """

    start: int
    stop: int
    next: int
    at: datetime
    timeline: int
    label: bytes
    tablespace_map: bytes


class BackupMode:
    """Backup mode of one backup. Its slot holds WAL from hold() on; it is temporary, so the server drops it with us.

    The checkpoint at its start is immediate if `fast`, else spread over the time that the server's settings allow.
    """

    def __init__(self, keeper: Connection, log: WalTimeline, *, standby: bool = False, fast: bool = True) -> None:
        self._keeper, self._log, self._standby, self.fast = keeper, log, standby, fast
        self._slot = ""

    def hold(self) -> str:
        """Make the slot, and return its name, which identifies the server; see slot.check_own."""
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

    def begin(self, alive: Alive) -> int:
        """Begin backup mode: the server makes a checkpoint, and writes full pages from then on. Return where."""
        fast = b"true" if self.fast else b"false"
        ((start,),) = waited(self._keeper, alive, b"SELECT pg_backup_start('dbguard', fast => %s)::text" % fast)
        return parse_lsn(text(start))

    def end(self, alive: Alive) -> BackupStop:
        """End backup mode. Raises SourceChanged if it had ended already because the server was restarted."""
        at = replayed_at(self._keeper) if self._standby else clock(self._keeper)
        ((stop, label, spaces),) = waited(
            self._keeper,
            alive,
            b"SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(wait_for_archive => false)",
        )
        if not label:
            raise SourceChanged("PostgreSQL: backup mode has ended by itself")
        return self.ended(at, text(stop), bytes(label), bytes(spaces or b""))

    def ended(self, at: datetime, stop: str, label: bytes, spaces: bytes) -> BackupStop:
        """Return the parsed end of backup mode, whether it was ended here or by a base backup."""
        start, timeline = label_start(label)
        if timeline != self._log.timeline:
            raise SourceChanged(
                "PostgreSQL: the standby has had no checkpoint yet since another server took over",
                hints=["CHECKPOINT;  -- on the primary, and back up again"],
            )
        end, size = parse_lsn(stop), self._log.segment
        if end < start:
            raise no_answer((label, stop))
        return BackupStop(
            start,
            end,
            end // size * size if self._standby else -(-end // size) * size,
            at,
            timeline,
            label,
            spaces,
        )

    def let_go(self) -> None:
        """Drop the slot: the WAL that it held is in the backup."""
        rows(self._keeper, b"SELECT pg_drop_replication_slot(%s)", self._slot)
