"""A copy of a cluster that its server sends: the same streams as those of one that is read where it lies.

What comes is compared page by page with the backup before, but all of it has to come: nothing here knows what has not
changed. Meanwhile lie in the private directory of the job: one file of a relation, the archive of all small files, and
at the end the log that was written during the backup, so that pg_waldump reads it as it reads the server's own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from psycopg.errors import Diagnostic

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address, Connection, connected
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.cluster import Cluster, clock
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
from dbguardd.engines.postgresql.physical.mode import BackupMode, Ended
from dbguardd.engines.postgresql.physical.replayed import replayed_at
from dbguardd.engines.postgresql.physical.segments import Log
from dbguardd.engines.postgresql.physical.sent import Entry, Sent
from dbguardd.engines.postgresql.physical.stream import Stream, history, replicating
from dbguardd.engines.postgresql.physical.tarred import TarWriter, written
from dbguardd.errors import SourceInvalid, of_file
from dbguardd.flow import Sink

_PIECE, _KEPT_BYTES = 1 << 20, 1 << 20
_WAIT_SECONDS = 0.25
_QUOTED = re.compile(r"""["'`«»„“] ?(?:\./)?(.+?) ?["'«»“”]""")


@dataclass(frozen=True, slots=True)
class Source:
    """A cluster to copy: how its server is reached, by whom its log is held, and our room for what it may send."""

    cluster: Cluster
    address: Address
    about: str
    keeper: Connection
    slot: str
    room: Path


class Received(Copy):
    """One copy on its way here; see receiving()."""

    def __init__(self, source: Source, directory: DataDirectory, sink: Sink, begun: float, tell: Tell) -> None:
        super().__init__(directory, source.cluster, sink, begun, tell)
        self._source = source
        self._kept = dict[str, bytes]()
        self._skipped = list[str]()
        self._log_at = 0  # up to where the log was received

    def all(self, mode: BackupMode, alive: Alive) -> Ended:
        source, spaces = self._source, {oid: place for oid, (_, place) in self._cluster.tablespaces.items()}
        at = replayed_at(source.keeper) if self._cluster.standby else clock(source.keeper)
        with self._spool() as small, replicating(source.address, source.about, source.slot) as connection:
            connection.add_notice_handler(self._noticed)
            archive = TarWriter(small)
            archive.directory(TABLESPACES)
            sent = Sent(connection, source.about, spaces, lambda: self._count(0) if self.done else alive())
            for entry in sent.entries():
                self._take(entry, archive)
            for path in self._skipped:
                self.directory.leave(path, self._cluster.directory)
            with connected(source.address, about=source.about) as other:  # a refusal drops the slots of its session
                self._configuration(archive, configuration.Asked(other))
            archive.end()
            small.seek(0)
            with self._sink.write(FILES) as out:
                while data := small.read(_PIECE):
                    out.write(data)
                    self._count(0)
        if not is_control(self._kept.get(CONTROL, b"")) or LABEL not in self._kept:
            raise SourceInvalid(f"{source.about}: what it sends as its base backup has no {LABEL}, or no {CONTROL}")
        self._control = self._kept[CONTROL]
        return mode.ended(at, sent.stop, self._kept[LABEL], self._kept.get(MAP, b""))

    def _noticed(self, said: Diagnostic) -> None:
        """Keep what a server says that it leaves out, in its language: what is no file and no directory, as a link."""
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
        """Write a file as it comes, and yield how much of it is there."""
        at = told = 0
        for piece in self._counted(entry):
            written(file, piece, at)
            at += len(piece)
            if at - told >= _PIECE:
                told = at
                yield at

    @contextmanager
    def _spool(self) -> Iterator[BinaryIO]:
        """Open a file without a name in our room. Raises NoSpace."""
        with _in_room(self._source.room), tempfile.TemporaryFile(dir=self._source.room, buffering=_PIECE) as made:
            yield cast(BinaryIO, made)

    def reach(self, start: int, end: int, alive: Alive) -> None:
        """Receive the log up to a place; it begins at the file that has `start`. Its slot has the server keep it."""
        source, log = self._source, self._cluster.log
        at = self._log_at or start // log.segment * log.segment
        if at >= end:
            return
        clock(source.keeper)  # raises what became of the session that has the slot
        with _in_room(source.room), replicating(source.address, source.about, source.slot) as connection:
            if log.history and not self._log_at:
                (Path(self.directory.path) / WAL / log.history).write_bytes(history(connection, log.timeline))
            stream = Stream(connection, source.about)
            stream.start("", log.timeline, at)
            while at < end:
                for name, offset, piece in _in_files(log, at, stream.receive(_WAIT_SECONDS)):
                    self._write(name, offset, piece)
                    at += len(piece)
                alive()
        self._log_at = at

    def _write(self, name: str, offset: int, piece: memoryview) -> None:
        file = os.open(f"{self.directory.path}/{WAL}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not offset:
                os.ftruncate(file, self._cluster.log.segment)
            written(file, piece, offset)
        finally:
            os.close(file)


@contextmanager
def receiving(source: Source, sink: Sink, begun: float, tell: Tell) -> Iterator[Received]:
    """Make a copy of what a server sends, for the length of a block: its log lies here until then."""
    with _in_room(source.room):
        made = tempfile.mkdtemp(dir=source.room)
        (Path(made) / WAL).mkdir()
    spaces = {oid: place for oid, (_, place) in source.cluster.tablespaces.items()}
    directory = DataDirectory(made, spaces, source.cluster.version_directory)
    try:
        yield Received(source, directory, sink, begun, tell)
    finally:
        directory.close()
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _in_room(room: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of_file(f"{room}: what the server sends cannot be written there", error) from error


def _in_files(log: Log, at: int, data: memoryview) -> Iterator[tuple[str, int, memoryview]]:
    """Yield of each file of the log what comes of it: its name, from where on, and what."""
    while data:
        offset = at % log.segment
        piece, data = data[: log.segment - offset], data[log.segment - offset :]
        yield log.name(at), offset, piece
        at += len(piece)
