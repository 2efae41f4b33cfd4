"""A copy of a cluster that its server sends, with the same streams as a copy of local files.

What arrives is compared page by page with the backup before, but all of it has to be sent: nothing here knows what has
not changed. The job's private directory temporarily holds one relation file, the archive of all small files, and at the
end the WAL written during the backup, so that pg_waldump can read it like the server's own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from psycopg.errors import Diagnostic

from dbguardd.durable import write_at
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address, Connection, connect
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.cluster import Cluster, check_same, clock
from dbguardd.engines.postgresql.physical.copy import FILES, LABEL, MAP, PAGED_BYTES, Copy, Tell
from dbguardd.engines.postgresql.physical.datadir import (
    CONTROL,
    TABLESPACES,
    WAL,
    DataDirectory,
    belongs,
    is_control,
    is_relation,
)
from dbguardd.engines.postgresql.physical.mode import BackupMode, BackupStop
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.segments import WalTimeline
from dbguardd.engines.postgresql.physical.sent import BaseBackupStream, Entry
from dbguardd.engines.postgresql.physical.stream import Stream, history, replicating
from dbguardd.engines.postgresql.physical.tarred import TarWriter
from dbguardd.engines.postgresql.refusals import silent
from dbguardd.errors import NoSpace, SourceChanged, SourceInvalid, of_file
from dbguardd.flow import Sink
from dbguardd.frozen import frozen

_PIECE, _KEPT_BYTES = 1 << 20, 1 << 20
_WAIT_SECONDS = 0.25
_HANGS = 3  # patience is multiplied by this: a server that still answers may have a slow disk
_QUOTED = re.compile(r"""["'`«»„“] ?(?:\./)?(.+?) ?["'«»“”]""")


@frozen
class Source:
    """A cluster to copy: how to reach its server, our room for what it sends, and how long it may stay silent.

    The first of our `sessions` on it has the slot that holds its WAL.
    """

    cluster: Cluster
    address: Address
    about: str
    sessions: list[Connection]
    slot: str
    room: Path
    patience: float

    @property
    def keeper(self) -> Connection:
        """The session that has the slot."""
        return self.sessions[0]

    def session(self, stack: ExitStack, database: str = "") -> Connection:
        """Open one more session, closed with `stack`. It may be idle, and is ended together with the others.

        Raises SourceInvalid if it reached another server.
        """
        session = connect(self.address, database, about=self.about)
        stack.callback(session.close)
        check_same(session, self.cluster, self.about)
        self.sessions.append(session)
        return session


class StreamedCopy(Copy):
    """A copy that is being received; see receiving()."""

    def __init__(self, source: Source, directory: DataDirectory, sink: Sink, begun: float, tell: Tell) -> None:
        super().__init__(directory, source.cluster, sink, begun, tell)
        self._source = source
        self._kept = dict[str, bytes]()
        self._skipped = list[str]()
        self._log_at = 0  # where the received WAL ends

    def all(self, mode: BackupMode, alive: Alive) -> BackupStop:
        source, spaces = self._source, {oid: place for oid, (_, place) in self._cluster.tablespaces.items()}
        at = replayed_at(source.keeper) if self._cluster.standby else clock(source.keeper)
        with self._spool() as small, replicating(source.address, source.about, source.slot) as connection:
            connection.add_notice_handler(self._noticed)
            archive = TarWriter(small)
            archive.directory(TABLESPACES)
            life = partial(self._alive, alive)
            patience = source.patience * _HANGS
            sent = BaseBackupStream(connection, source.about, spaces, life, patience, fast=mode.fast)
            for entry in sent.entries():
                self._take(entry, archive)
            for path in self._skipped:
                self.directory.leave(path, self._cluster.directory)
            with ExitStack() as stack:  # an error drops a session's temporary slots, so the keeper is not used for this
                self._configuration(archive, configuration.ServerFiles(source.session(stack)))
            archive.end()
            small.seek(0)
            with self._sink.write(FILES) as out:
                while data := small.read(_PIECE):
                    out.write(data)
                    self._count(0)
        if not {LABEL, CONTROL} <= self._kept.keys():
            raise SourceInvalid(f"{source.about}: what it sends as its base backup has no {LABEL}, or no {CONTROL}")
        self._control = self._kept[CONTROL]
        if not is_control(self._control):
            raise SourceChanged(
                f"{source.about}: {CONTROL} came with a wrong checksum",
                detail="The server wrote that file while it sent it; or the file is damaged, if it comes so again.",
                hints=["back up again"],
            )
        return mode.ended(at, sent.stop, self._kept[LABEL], self._kept.get(MAP, b""))

    def _alive(self, alive: Alive) -> None:
        """Report progress under the current step, never an earlier one."""
        if self.done:
            self._count(0)
        else:
            alive()

    def _noticed(self, said: Diagnostic) -> None:
        """Note the path in a server's notice (in any language) that it skips something that is no file or directory."""
        if said.source_function == "sendDir" and (path := _QUOTED.search(said.message_primary or "")):
            self._skipped.append(path[1])

    def _take(self, entry: Entry, archive: TarWriter) -> None:
        if entry.path in (CONTROL, LABEL, MAP) and entry.size <= _KEPT_BYTES:
            self._kept[entry.path] = b"".join(entry.pieces())
        elif entry.path == TABLESPACES or not belongs(entry.path):
            return
        elif entry.directory:
            archive.directory(entry.path)
            self.directory.met(entry.path)
        elif entry.size >= PAGED_BYTES and is_relation(entry.path):
            with self._spool() as spool:
                file = spool.fileno()
                os.ftruncate(file, entry.size)
                self._sink.adopt(entry.path, file, self._cluster.page, filled=self._filled(entry, file))
        else:
            archive.pieces(entry.path, entry.size, self._counted(entry))

    def _counted(self, entry: Entry) -> Iterator[memoryview]:
        for piece in entry.pieces():
            yield piece
            self._count(len(piece))

    def _filled(self, entry: Entry, file: int) -> Iterator[int]:
        """Write a file as it arrives, and yield how many bytes are there."""
        at = told = 0
        for piece in self._counted(entry):
            write_at(file, piece, at)
            at += len(piece)
            if at - told >= _PIECE:
                told = at
                yield at

    @contextmanager
    def _spool(self) -> Iterator[BinaryIO]:
        """Open an unnamed file in our room. Raises NoSpace."""
        with _in_room(self._source.room), tempfile.TemporaryFile(dir=self._source.room, buffering=_PIECE) as made:
            yield cast(BinaryIO, made)

    def reach(self, start: int, end: int, alive: Alive) -> None:
        """Receive WAL up to `end`, from the file that contains `start` on. The slot makes the server keep it."""
        source, log = self._source, self._cluster.log
        at = self._log_at or start // log.segment * log.segment
        if at >= end:
            return
        clock(source.keeper)  # raises if the session that has the slot has failed
        self._check_room(end - at)
        with _in_room(source.room), replicating(source.address, source.about, source.slot) as connection:
            if log.history and not self._log_at:
                (Path(self.directory.path) / WAL / log.history).write_bytes(history(connection, log.timeline))
            stream = Stream(connection, source.about)
            stream.start("", log.timeline, at)
            came = time.monotonic()
            while at < end:
                for name, offset, piece in _in_files(log, at, stream.receive(_WAIT_SECONDS)):
                    self._write(name, offset, piece)
                    at += len(piece)
                    came = time.monotonic()
                if time.monotonic() - came > source.patience * _HANGS:
                    raise silent(source.about, "the server does not send the WAL that it has", source.patience * _HANGS)
                alive()
        self._log_at = at

    def _check_room(self, size: int) -> None:
        """Raise NoSpace before the WAL of the backup fills a disk that others write to as well."""
        free = shutil.disk_usage(self._source.room).free
        if size + self._cluster.log.segment > free:
            raise NoSpace(
                f"{self._source.room}: has no room for the log that was written during the backup",
                detail=f"It has {size} bytes, and {free} bytes are free there. It is read there before it is stored.",
                hints=["give that file system more room, or back up when less is written"],
                facts={"needed_bytes": size, "free_bytes": free},
            )

    def _write(self, name: str, offset: int, piece: memoryview) -> None:
        file = os.open(f"{self.directory.path}/{WAL}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not offset:
                os.ftruncate(file, self._cluster.log.segment)
            write_at(file, piece, offset)
        finally:
            os.close(file)


@contextmanager
def receiving(source: Source, sink: Sink, begun: float, tell: Tell) -> Iterator[StreamedCopy]:
    """Make a copy of what a server sends, for the length of a block: the WAL stays here that long."""
    with _in_room(source.room):
        made = tempfile.mkdtemp(dir=source.room)
        (Path(made) / WAL).mkdir()
    spaces = {oid: place for oid, (_, place) in source.cluster.tablespaces.items()}
    directory = DataDirectory(made, spaces, source.cluster.version_directory)
    try:
        yield StreamedCopy(source, directory, sink, begun, tell)
    finally:
        directory.close()
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _in_room(room: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of_file(f"{room}: what the server sends cannot be written there", error) from error


def _in_files(log: WalTimeline, at: int, data: memoryview) -> Iterator[tuple[str, int, memoryview]]:
    """Split received WAL by file: yield each file's name, the offset in it, and the bytes."""
    while data:
        offset = at % log.segment
        piece, data = data[: log.segment - offset], data[log.segment - offset :]
        yield log.name(at), offset, piece
        at += len(piece)
