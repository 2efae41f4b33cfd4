"""Copies a cluster: large relations as paged streams, small files in an archive, and the WAL that makes it consistent.

Streams: each relation file of at least PAGED_BYTES, under its path; for each directory of a database an archive of its
smaller files, `base/16384.tar`, which is reused while none of them is written; `files.tar` with everything else except
pg_control; `log.tar` with what is known only at the end: pg_control, backup_label, tablespace_map and the WAL.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.physical import configuration
from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.engines.postgresql.physical.datadir import CONTROL, WAL, DataDirectory, Member, database_of
from dbguardd.engines.postgresql.physical.mode import BackupMode, BackupStop
from dbguardd.engines.postgresql.physical.segments import open_segment, recycled
from dbguardd.engines.postgresql.physical.summaries import Changes
from dbguardd.engines.postgresql.physical.tarred import TarWriter, writing
from dbguardd.flow import Sink

ARCHIVE = ".tar"
FILES, LOG = f"files{ARCHIVE}", f"log{ARCHIVE}"
LABEL, MAP = "backup_label", "tablespace_map"
PAGED_BYTES = 1 << 20
"""Smaller files are not compared page by page: there are thousands of them, and each stream has a cost."""

_SECOND = 1_000_000_000
_SURE_SECONDS = 2  # a file system's clock may lag by a tick, and its timestamps may be this coarse

Tell = Callable[[int], None]
"""Called with the bytes read so far; raises Cancelled."""

LookUp = Callable[[int, Alive], Changes]


@dataclass(slots=True)
class _Small:
    """The small files of one database, as they were before any of them was read: number, bytes, known stamps."""

    files: int = 0
    bytes: int = 0
    stamps: list[str] = field(default_factory=list)

    @property
    def stamp(self) -> str:
        """Return a stamp of all of them, "" if there is none."""
        whole = "\0".join(self.stamps).encode(errors="surrogateescape")
        return hashlib.sha256(whole).hexdigest() if len(self.stamps) == self.files else ""


class Copy:
    """One copy of a data directory. `begun` is when backup mode was requested, before its checkpoint.

    With `every`, every byte is read, even of files that have not been written since the backup before. `look_up` is
    asked, with the start of the log of this backup, for what has changed since then.
    """

    def __init__(
        self,
        directory: DataDirectory,
        cluster: Cluster,
        sink: Sink,
        begun: float,
        tell: Tell,
        *,
        every: bool = False,
        look_up: LookUp = lambda start, alive: Changes(),
    ) -> None:
        self.directory, self._cluster, self._sink, self._tell = directory, cluster, sink, tell
        self._begun, self._sure, self._every = begun, int((begun - _SURE_SECONDS) * _SECOND), every
        self._paged: set[str] = set()
        self._small: dict[str, _Small] = {}
        self._look_up, self.changes = look_up, Changes()
        self.done = 0
        self.reused = self.summarized = 0

    def all(self, mode: BackupMode, alive: Alive) -> BackupStop:
        """Copy everything except the WAL, in backup mode."""
        self.changes = self._look_up(mode.begin(alive), alive)
        self.relations()
        self.files()
        self.last()
        return mode.end(alive)

    def reach(self, start: int, end: int, alive: Alive) -> None:
        """Ensure that the WAL from the file with `start` up to `end` is in the directory; here the server writes it."""

    def relations(self) -> None:
        """Hand over the large relation files, and look at the small files of each database."""
        for member in self.directory.members():
            database = database_of(member.path)
            if member.directory or not (member.relation or database):
                continue
            with member.opened() as file:
                if file is None:
                    continue
                found = os.fstat(file)
                if member.relation and found.st_size >= PAGED_BYTES:
                    self._relation(member, file, found)
                elif database:
                    small = self._small.setdefault(database, _Small())
                    small.files, small.bytes = small.files + 1, small.bytes + found.st_size
                    small.stamps += [f"{member.path}:{stamp}" for stamp in [self._stamp(found)] if stamp]

    def _relation(self, member: Member, file: int, found: os.stat_result) -> None:
        stamp, size = self._stamp(found), found.st_size
        if not self._reuse(member.path, stamp, 1):
            changed = self.changes.within(member.path, size)
            self._sink.adopt(member.path, file, self._cluster.page, stamp=stamp, changing=True, changed=changed)
            self.summarized += changed is not None
        self._paged.add(member.path)
        self._count(size)

    def _reuse(self, name: str, stamp: str, files: int) -> bool:
        """Take a stream over from the backup before if nothing of it has been written since."""
        if not stamp or self._every or not self._sink.reuse(name, stamp):
            return False
        self.reused += files
        return True

    def _stamp(self, found: os.stat_result) -> str:
        """Return a stamp that stays the same as long as nobody writes the file; "" if that cannot be known.

        A write sets a file's timestamps before its bytes, and the checkpoint at the start of a backup waits for all
        writes that had begun. So a file whose timestamps precede that start was read after those writes, and while the
        timestamps stay the same to the nanosecond, nothing has been written since. This cannot be known if the clock
        was set back meanwhile, nor without full_page_writes: after a power failure bytes may be newer than the
        timestamps, and only full pages in the WAL repair them. See decision 0037.
        """
        if now() < self._begun or not self._cluster.whole_pages or self._cluster.standby:
            return ""  # a standby does not checkpoint on request
        if max(found.st_mtime_ns, found.st_ctime_ns) >= self._sure or found.st_mtime_ns % _SECOND == 0:
            return ""
        times = f"{found.st_mtime_ns}:{found.st_ctime_ns}"
        return f"{self._cluster.log.system}:{found.st_ino}:{found.st_size}:{times}"

    def files(self) -> None:
        """Write everything else, except what is known only at the end. Only after relations()."""
        reused = {database for database in self._small if self._reuse_small(database)}
        with self._sink.write(FILES) as out, writing(out) as archive:
            for database, members in groupby(self.directory.members(), lambda member: database_of(member.path)):
                if not database:
                    self._add_all(archive, members)
                elif database not in reused:
                    stamp = self._small[database].stamp if database in self._small else ""
                    with self._sink.write(f"{database}{ARCHIVE}", stamp=stamp) as small, writing(small) as own:
                        self._add_all(own, members)
            self._configuration(archive, configuration.LocalFiles())

    def _reuse_small(self, database: str) -> bool:
        """Reuse the archive of the small files of a database.

        Its stamp is older than what is read: a file that is written, made or removed in between changes the stamp of
        the next backup.
        """
        small = self._small[database]
        reused = self._reuse(f"{database}{ARCHIVE}", small.stamp, small.files)
        if reused:
            self._count(small.bytes)
        return reused

    def _add_all(self, archive: TarWriter, members: Iterable[Member]) -> None:
        for member in members:
            if member.directory:
                archive.directory(member.path)
            elif member.path not in self._paged:
                with member.opened() as file:
                    if file is not None and not recycled(member.path, file):
                        self._add(archive, member.path, file, os.fstat(file).st_size)

    def _configuration(self, archive: TarWriter, host: configuration.ConfigurationFiles) -> None:
        unread = dict(self._cluster.configuration)
        for name, content in configuration.contents(unread.copy(), host):
            if content is None:
                archive.directory(name)
            else:
                archive.content(name, content)
                del unread[name]
                with suppress(ValueError):  # it was left out as a link to this file
                    self.directory.left_out.remove(name.removeprefix(f"{configuration.DIRECTORY}/"))
        self.directory.left_out += unread.values()

    @contextmanager
    def log(self, ended: BackupStop) -> Iterator[Callable[[int, int], None]]:
        """Write pg_control, the label, and the WAL up to the end of the file in which backup mode ended.

        Yields a function that writes more WAL from there, up to a position that the caller finds; zeros fill the rest.
        """
        with self._sink.write(LOG) as out, writing(out) as archive:
            archive.content(CONTROL, self._control)
            archive.content(LABEL, ended.label)
            if ended.tablespace_map:
                archive.content(MAP, ended.tablespace_map)
            log = self._cluster.log
            if log.history:  # the timeline history: no server recovers along a timeline without it
                archive.content(f"{WAL}/{log.history}", self.directory.read(f"{WAL}/{log.history}"))
            write = partial(self._segments, archive, ended.start)
            write(ended.start, ended.next)
            yield write

    def control(self) -> None:
        """Write pg_control only: the WAL of a stopped cluster is among the files."""
        with self._sink.write(LOG) as out, writing(out) as archive:
            archive.content(CONTROL, self._control)

    def last(self) -> None:
        """Read pg_control, while backup mode is on and after all other files."""
        self._control = self.directory.control()

    def _segments(self, archive: TarWriter, first: int, start: int, end: int) -> None:
        log = self._cluster.log
        self.reach(first, end, lambda: self._count(0))
        for name, at in log.names(start, end):
            file = open_segment(self.directory, log, name, at)
            try:
                used = min(log.segment, end - at)
                archive.file(f"{WAL}/{name}", file, log.segment, used)
                self._count(used)
            finally:
                os.close(file)

    def _add(self, archive: TarWriter, path: str, file: int, size: int) -> None:
        archive.file(path, file, size, size)
        self._count(size)

    def _count(self, size: int) -> None:
        self.done += size
        self._tell(self.done)


def now() -> float:
    """Return the host's time, which is also that of its file systems."""
    return time.time()
