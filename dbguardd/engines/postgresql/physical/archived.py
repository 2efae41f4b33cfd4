"""Stores the log of a cluster file by file, as the server's archiver hands it over, for servers that want no slot.

The server keeps each WAL file until archive_command has succeeded for it. That command is `dbguardctl push`. It asks
this process, over a socket in the engine half's private directory, whether exactly this file is stored, and succeeds
only if it is. So the server decides what it keeps, and removes nothing that is not stored; whichever side dies, the
archiver asks again.

A file is read once it is complete. It is stored in segments, like streamed WAL, from the place where the stored log
ends. That place includes the digests of the newest files: a file that is offered again must be identical, and a server
that lost the end of its log and wrote a different one is detected.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from dbguardd.engines.base import Finding
from dbguardd.engines.postgresql.connect import Address, connected, place_of, rows, text
from dbguardd.engines.postgresql.physical.cluster import look, tablespaces
from dbguardd.engines.postgresql.physical.datadir import WAL, DataDirectory
from dbguardd.engines.postgresql.physical.follow import FILES, STREAM, Pace, PagesLog, Server
from dbguardd.engines.postgresql.physical.history import MOST_TURNS, OTHER_SPACES, WalPosition, across, round_of
from dbguardd.engines.postgresql.physical.local import FOLLOWED
from dbguardd.engines.postgresql.physical.lowered import LOWERED, in_files, is_lowered
from dbguardd.engines.postgresql.physical.other_servers import watching
from dbguardd.engines.postgresql.physical.segments import PAGE, open_segment
from dbguardd.engines.postgresql.physical.slot import RELOAD, Slot, name_of
from dbguardd.engines.postgresql.physical.way import way_of
from dbguardd.engines.postgresql.roles import choose_server
from dbguardd.engines.postgresql.typed import statements
from dbguardd.errors import GuardError, LogBroken, Unsupported
from dbguardd.facts import Turn
from dbguardd.flow import Facts, LogSink, Segment
from dbguardd.places import PUSH_SOCKET

_KEPT = 16
_HEAD_BYTES = 40  # of each file: no record starts there
_DIGEST = 32  # hexadecimal digits of a digest that are kept
_SNAPSHOT = b"SELECT pg_current_snapshot()::text"
_FILE = re.compile(r"[0-9A-F]{8}(\.history|[0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?)")
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_ASKED = re.compile(rb"1 (\S{1,64}) ([0-9a-f]{64})\n")
_ASKED_BYTES, _ASKED_SECONDS = 256, 2.0
_PIECE = 1 << 20


class ArchivedLog:
    """The log of a cluster whose archiver waits until we have stored each file. Implements engines.base.LogSource."""

    def __init__(self, address: Address, staging: str, pace: Pace) -> None:
        self._address, self._pace = address, pace
        self._about, self._staging = place_of(address), staging

    def follow(self, ship: LogSink, resume: Facts | None) -> None:
        address = choose_server(self._address, self._about)
        with connected(address, about=self._about) as keeper, ExitStack() as stack:
            others = stack.enter_context(watching(self._address, self._about, self._pace.others_seconds))
            cluster = look(keeper, self._about)
            way = stack.enter_context(way_of(keeper, cluster))
            if way.directory is None:
                raise _elsewhere(self._about, way.why)
            slot = Slot(keeper, name_of(self._staging))
            server = Server(address, self._about, keeper, cluster, slot, way.directory, others)
            follower = ArchiveFollower(server, way.directory, ship, self._pace)
            if resume is not None:
                server.check_not_left_behind(WalPosition.read(resume))
            because = "the log was not followed before" if resume is None else follower.lacks(resume)
            follower.begin(resume if not because else None, because)
            follower.look()
            slot.drop()  # left from when the log was streamed
            with listening(Path(self._staging)) as door:
                follower.run(door)

    def unfollow(self, *, if_short: bool = False) -> None:
        PagesLog(self._address, self._staging, self._pace).unfollow(if_short=if_short)


class ArchiveFollower:
    """The WAL files of one server on their way into the repository."""

    def __init__(self, server: Server, directory: DataDirectory, ship: LogSink, pace: Pace) -> None:
        self._server, self._ship, self._pace = server, ship, pace
        self._log, self._directory = server.cluster.log, directory
        self._place = WalPosition(round_of(server.cluster), 0, "")
        self._files = dict[str, str]()
        self._facts: Facts = {}
        self._seen = list[tuple[datetime, int, str]]()  # when, how far the log was written, the server's snapshot then
        self._at = datetime.now(UTC)  # everything committed by then is stored

    def lacks(self, resume: Facts) -> str:
        """Return why the log cannot continue where the stored log ends; "" if it can."""
        since = WalPosition.read(resume)
        _, flushed = self._server.ends()
        if across(since.round) != across(self._place.round):
            return OTHER_SPACES
        left = self._server.left(since.timeline)
        if left is None and since.timeline != self._log.timeline:
            return (
                f"the server is on timeline {self._log.timeline}, which does not descend from timeline {since.timeline}"
            )
        if len(since.turns) >= MOST_TURNS:
            return f"other servers have taken over {MOST_TURNS} times"
        if left is None and flushed < since.position:
            return "the server's WAL ends before the stored log"
        for name, known in dict(resume.get(FILES) or {}).items():
            kept = left is None or _start_of(name, self._log.segment) + self._log.segment <= left
            if kept and self._digest(name)[:_DIGEST] not in ("", known):
                return "the server's WAL differs from the stored log"
        return self._lacks_files(since, since.position if left is None else min(since.position, left), flushed)

    def _lacks_files(self, since: WalPosition, at: int, flushed: int) -> str:
        """Return why the server's files do not continue at `at`; "" if they do.

        `at` is the position of `since`, or the place where the server left that timeline if that comes first.
        """
        start = at // self._log.segment * self._log.segment
        there = self._directory.has(f"{WAL}/{self._name(start)}")
        if not there and (at > start or flushed >= start + self._log.segment):
            return "the server has removed a part of its log before it was stored"
        if start < since.position == at and self._check(at) != since.check:
            return "the server's WAL differs from the stored log"
        segment = self._log.segment
        return LOWERED if is_lowered(at, in_files(self._opened, at, flushed, segment), segment) else ""

    def _name(self, start: int) -> str:
        """Return the name of the WAL file that starts at a position.

        A server that begins a timeline begins a new file, which starts with a copy of the old file up to that place.
        """
        return self._log.on(self._server.on(start + self._log.segment - 1)).name(start)

    def _opened(self, start: int) -> int:
        return open_segment(self._directory, self._log.on(self._server.on(start)), self._name(start), start)

    def begin(self, resume: Facts | None, because: str) -> None:
        """Continue at a place, or begin a new log with the file that the server is writing now."""
        if resume is not None:
            self._place, self._files = WalPosition.read(resume), dict(resume.get(FILES) or {})
            self._facts = {name: resume[name] for name in (*self._place.facts(), FILES) if name in resume}
            self._at = datetime.fromisoformat(str(resume["at"]))
            self._turn()
            self._ship.begin(self._facts, continued=True, because="")
            return
        at, (_, flushed) = datetime.now(UTC), self._server.ends()
        start = flushed // self._log.segment * self._log.segment
        self._move(start, "")
        self._at = at
        self._ship.begin(self._facts, continued=False, because=because)

    def run(self, door: socket.socket) -> NoReturn:
        """Store files as they are completed, and answer archivers, forever."""
        watched = 0.0
        while True:
            began = time.monotonic()
            if began - watched >= self._pace.watch_seconds:
                watched = began
                self._watch()
            self.look()
            self._ship.reached(self._at)
            while (left := began + self._pace.look_seconds - time.monotonic()) > 0:
                if select.select([door], [], [], left)[0]:
                    self._answer(door)

    def _watch(self) -> None:
        self._server.others.check()
        if tablespaces(self._server.keeper) != self._server.cluster.tablespaces:
            raise LogBroken(
                f"{self._server.about}: a tablespace was made or dropped", detail="A log cannot continue past that."
            )

    def look(self) -> None:
        """Store each file that is complete by now. Raises LogBroken, and what storing raises."""
        at = datetime.now(UTC)
        ((snapshot,),) = rows(self._server.keeper, _SNAPSHOT)
        written, flushed = self._server.ends()
        self._observe(at, written, text(snapshot))
        while self._place.position // self._log.segment < flushed // self._log.segment:
            self._store()

    def _observe(self, at: datetime, written: int, snapshot: str) -> None:
        """Remember how far the log was written at `at`: everything committed by then lies before that position.

        WAL written while no transaction ends (by a checkpoint, say) contains no commit. The server does not switch to a
        new file for such WAL either, whatever archive_timeout is.
        """
        least, most, running = snapshot.split(":")
        quiet = least == most and not running
        if self._seen and (self._seen[-1][1] == written or (quiet and self._seen[-1][2] == snapshot)):
            written = self._seen.pop()[1]
        self._seen.append((at, written, snapshot))
        self._reached()

    def _reached(self) -> None:
        """Find the latest time up to which everything is stored. The header of a new file contains no record."""
        position = self._place.position
        end = position + (0 if position % self._log.segment else _HEAD_BYTES)
        stored = [one for one in self._seen if one[1] <= end]
        if stored:
            self._at = max(self._at, stored[-1][0])
            self._seen = [stored[-1], *self._seen[len(stored) :]]

    def _turn(self) -> None:
        """Move to the next timeline if the server left the current one at or before the place."""
        while (left := self._server.left(self._place.timeline)) is not None and left <= self._place.position:
            since, timeline = self._place, self._server.after(self._place.timeline)
            turn = Turn(since.round, left, since.position, self._server.turned_at(timeline))
            self._place = WalPosition(round_of(self._server.cluster, timeline), left, "", (*since.turns, turn))

    def _store(self) -> None:
        """Store the part of the next complete file that is not stored yet."""
        start = self._place.position // self._log.segment * self._log.segment
        name, whole, tail, at = self._name(start), hashlib.sha256(), b"", start
        if not self._directory.has(f"{WAL}/{name}"):
            raise LogBroken(
                f"{self._server.about}: has removed {name} of its log before it was stored",
                detail="archive_command has succeeded for it, or archive_mode is off.",
                hints=["dbguardctl check"],
            )
        file = self._opened(start)
        try:
            while at < (end := start + self._log.segment):
                left = self._server.left(self._place.timeline)
                until = end if left is None or left <= at else min(end, left)
                part = os.pread(file, min(self._pace.segment_bytes, until - at), at - start)
                if not part:
                    raise LogBroken(f"{name}: has ended before its end")
                whole.update(part)
                tail = (tail + part)[-PAGE:]
                at += len(part)
                if at == end:
                    self._files = dict([*self._files.items(), (name, whole.hexdigest()[:_DIGEST])][-_KEPT:])
                self._put(part[max(0, self._place.position - (at - len(part))) :], at, tail)
                self._turn()
        finally:
            os.close(file)

    def _put(self, part: bytes, until: int, tail: bytes) -> None:
        if not part:
            return
        since = self._facts
        self._move(until, hashlib.sha256(tail).hexdigest())
        self._reached()
        self._ship.ship(Segment(STREAM, since, self._facts, self._at, part))

    def _move(self, position: int, check: str) -> None:
        self._place = replace(self._place, position=position, check=check)  # keeps the earlier turns
        self._facts = {**self._place.facts(), FILES: dict(self._files)}

    # ------------------------------------------------------------------------------------------ the archiver

    def _answer(self, door: socket.socket) -> None:
        """Answer one archiver. Only our own user and root get a verdict."""
        with suppress(OSError), door.accept()[0] as line:
            line.settimeout(_ASKED_SECONDS)
            _pid, uid, _gid = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            asked = _ASKED.fullmatch(line.recv(_ASKED_BYTES))
            if uid not in (0, os.geteuid()) or asked is None:
                line.sendall(b"no this is not how it is asked\n")
                return
            line.sendall(self.verdict(asked[1].decode("ascii", "replace"), asked[2].decode()).encode() + b"\n")

    def verdict(self, name: str, digest: str) -> str:
        """Return "ok ..." for a file that the server may remove, else "no ..." with the reason."""
        if not _FILE.fullmatch(name):
            return "no that is no file of a log"
        start = _start_of(name, self._log.segment) if _SEGMENT.fullmatch(name) else None
        end = start + self._log.segment if start is not None and self._name(start) == name else 0
        if end > self._place.position:
            self.look()  # the file may be complete by now
        if (known := self._files.get(name)) is not None:
            if known == digest[:_DIGEST]:
                return "ok it is stored"
            return "no a different file is stored under that name: of another server, or rewritten"
        if end > self._place.position:
            return "no it is not stored yet"
        if self._digest(name) != digest:
            return "no it is no file of the server whose log is followed here"
        return "ok it is not part of the followed log, which begins later or is on another timeline"

    def _digest(self, name: str) -> str:
        """Return the digest of a WAL file of the server; "" if there is no such file."""
        if not _FILE.fullmatch(name):
            return ""
        found = hashlib.sha256()
        try:
            file = os.open(f"{WAL}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory.file)
        except OSError:
            return ""
        with os.fdopen(file, "rb") as opened:
            while piece := opened.read(_PIECE):
                found.update(piece)
        return found.hexdigest()

    def _check(self, position: int) -> str:
        """Return the digest of the bytes right before a position within a file."""
        start = position // self._log.segment * self._log.segment
        file = self._opened(start)
        try:
            first = max(position - PAGE, start)
            return hashlib.sha256(os.pread(file, position - first, first - start)).hexdigest()
        finally:
            os.close(file)


def _elsewhere(about: str, why: str) -> Unsupported:
    return Unsupported(
        f"{about}: its files are not read here, so an archiver cannot hand them over",
        detail=why,
        hints=["set continuous = true: then the server sends its log"],
    )


def _start_of(name: str, segment: int) -> int:
    """Return the position at which a WAL file begins."""
    return (int(name[8:16], 16) * ((1 << 32) // segment) + int(name[16:24], 16)) * segment


@contextmanager
def listening(staging: Path) -> Iterator[socket.socket]:
    """Listen on a socket in a directory that only its owner may enter, however long its path is."""
    place = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with socket.socket(socket.AF_UNIX) as door:
            with suppress(FileNotFoundError):
                os.unlink(PUSH_SOCKET, dir_fd=place)
            door.bind(f"/proc/self/fd/{place}/{PUSH_SOCKET}")
            door.listen()
            yield door
    finally:
        with suppress(FileNotFoundError):
            os.unlink(PUSH_SOCKET, dir_fd=place)
        os.close(place)


_ARCHIVER = b"""
SELECT current_setting('archive_mode') <> 'off', current_setting('archive_command'),
  coalesce(current_setting('archive_library', true), ''),
  (SELECT setting::int FROM pg_settings WHERE name = 'archive_timeout'), coalesce(last_failed_wal, ''),
  coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false),
  (SELECT count(*)::int FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')
FROM pg_stat_archiver
"""
_COMMAND = "ALTER SYSTEM SET archive_command = '{}'"
_LIBRARY = "ALTER SYSTEM SET archive_library = ''"
_MODE = "ALTER SYSTEM SET archive_mode = 'on'"
_TIMEOUT = "ALTER SYSTEM SET archive_timeout = '60s'"


def command(staging: str) -> str:
    """Return the archive_command that makes a server wait for the follower with this private directory."""
    beside = Path(sys.executable).with_name("dbguardctl")
    program = shutil.which("dbguardctl", path="/usr/bin:/usr/local/bin") or str(beside)
    return f"{shlex.quote(program)} push {shlex.quote(staging)} %p"


def archived(address: Address, staging: str) -> Finding:
    """Return whether the server archives its log through us and how that goes; if it does not, say how to fix that."""
    try:
        with connected(address) as keeper:
            with way_of(keeper, look(keeper, about := place_of(address))) as way:
                if way.directory is None:
                    raise _elsewhere(about, way.why)
            ((on, *told, timeout, failed, failing, waiting),) = rows(keeper, _ARCHIVER)
            said, library = (text(one) for one in told)
            wanted, lacking = command(staging), list[str]()
            if library:
                lacking.append(f"archive_library is set. Fix: {statements(keeper, _LIBRARY, RELOAD)}")
            if said != wanted:
                mend = statements(keeper, _COMMAND.format(wanted.replace("'", "''")), RELOAD)
                lacking.append(f"archive_command is not ours. Fix: {mend}")
            if not on:
                lacking.append(f"archive_mode is off. Fix: {statements(keeper, _MODE)}  # then restart the server")
            lately = statements(keeper, _TIMEOUT, RELOAD)
    except GuardError as error:
        mend = f" Fix: {error.hints[0]}" if error.hints else ""
        return Finding(FOLLOWED, "failed", f"{error.message}. {error.detail}".strip() + mend)
    if failing and not lacking:
        lacking.append(f"archive_command fails for {text(failed)}, and {waiting} files wait: the server log says why")
    if lacking:
        return Finding(FOLLOWED, "failed", "\n".join(lacking))
    if not timeout:
        what = "archive_timeout is 0, so commits are stored only when their file is full, whenever that is"
        return Finding(FOLLOWED, "inconclusive", f"{what}. Fix: {lately}")
    return Finding(FOLLOWED, "ok", f"{wanted}: commits are stored within {timeout} s, file by file")
