"""Follows the log of a cluster: commits are stored within a second, byte for byte as the server wrote its WAL.

The server streams its WAL as to a standby. Our replication slot keeps all WAL that is not stored yet, however long
nobody reads it. So a follower that ends, for whatever reason, loses nothing: the next one continues where the stored
log ends. Nothing is written into the cluster: the server's write and flush positions tell whether everything committed
by now was received.

A log continues only if the same cluster has exactly the stored bytes (`check`) before that place. So a server that came
back with less WAL than it had sent, and went on from there, is detected. If another server has taken over, its timeline
history says where it left the timeline that was followed: the log continues up to there, and then along the next
timeline (see history). In all other cases a new log begins, and records why. But it never begins on another cluster, or
on a server that was left behind, which must not be mistaken for the one that was followed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address, Connection, connected, place_of, rows, text
from dbguardd.engines.postgresql.physical.cluster import Cluster, look, tablespaces
from dbguardd.engines.postgresql.physical.datadir import WAL, DataDirectory
from dbguardd.engines.postgresql.physical.history import MOST_TURNS, OTHER_SPACES, WalPosition, across, round_of
from dbguardd.engines.postgresql.physical.lowered import LOWERED, was_lowered
from dbguardd.engines.postgresql.physical.other_servers import Others, watching
from dbguardd.engines.postgresql.physical.segments import PAGE, parse_lsn, turns_of
from dbguardd.engines.postgresql.physical.slot import Slot, check_bound, check_own, check_room, name_of
from dbguardd.engines.postgresql.physical.stream import Stream, history, replicating, streaming
from dbguardd.engines.postgresql.physical.way import way_of
from dbguardd.engines.postgresql.refusals import silent
from dbguardd.engines.postgresql.roles import addresses_of, left_behind, other_cluster, primary_of
from dbguardd.errors import GuardError, LogBroken, NoSpace, SourceInvalid, SourceReplaced, Unsupported
from dbguardd.facts import Turn
from dbguardd.flow import Facts, LogSink, Segment
from dbguardd.frozen import frozen

STREAM = "log"
"""The name of the stream from which a restore reads the log."""

FILES = "files"
"""A member of a place in a log that was stored file by file (see archived): the newest files before it."""

_ROOM = ("dbguardctl status  # why it is not stored", "or give the log of the server more room")
_ENDS = b"SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text"
_WRITTEN = b"SELECT modification FROM pg_ls_waldir() WHERE name = %s"
_DELAY = b"SELECT setting::int8 FROM pg_settings WHERE name = 'wal_writer_delay'"
_DELAYS, _MORE_SECONDS = 3, 0.1  # an asynchronous commit is on disk after three such delays, says PostgreSQL
_WAIT_SECONDS, _SHORT_SECONDS = 0.25, 0.05


@frozen
class Pace:
    """How often the log is stored, how large a segment becomes, and how often the server is checked."""

    look_seconds: float = 0.5
    segment_bytes: int = 8 << 20
    watch_seconds: float = 5.0
    patience_seconds: float = 120.0
    """How long a server may have WAL without sending it."""

    @property
    def others_seconds(self) -> float:
        """How often the other servers of the url are checked."""
        return self.watch_seconds * 12


class PagesLog:
    """The log of a cluster that is backed up by its pages. Implements engines.base.LogSource."""

    def __init__(self, address: Address, staging: str, pace: Pace) -> None:
        self._address, self._pace = address, pace
        self._about, self._slot = place_of(address), name_of(staging)

    def follow(self, ship: LogSink, resume: Facts | None) -> None:
        try:
            address = primary_of(self._address, self._about)
        except SourceReplaced:
            self.unfollow(if_short=True)
            raise
        with connected(address, about=self._about) as keeper, ExitStack() as stack:
            others = stack.enter_context(watching(self._address, self._about, self._pace.others_seconds))
            keeper.execute(b"SET idle_session_timeout = 0", prepare=False)
            cluster = look(keeper, self._about)
            slot = Slot(keeper, self._slot)
            try:
                directory = stack.enter_context(way_of(keeper, cluster)).directory
                server = Server(address, self._about, keeper, cluster, slot, directory, others)
                if resume is not None:
                    server.check_not_left_behind(WalPosition.read(resume))
                check_bound(keeper, None if directory is None else directory.free_for_log(), slot, self._about)
                with streaming(address, self._about):
                    became = slot.take()  # only after a replication connection was accepted
                self._let_others_go(address)
                self._follow(server, became, ship, resume)
            except (NoSpace, SourceInvalid, SourceReplaced, Unsupported):
                if others.problem is None:  # if two servers accept writes, each keeps its log
                    slot.drop()
                raise

    def _let_others_go(self, meant: Address) -> None:
        """Drop our slot on the other servers of the url: the one that was followed before has one."""
        for other in addresses_of(self._address):
            if other != meant:
                with suppress(GuardError), connected(other, about=self._about) as keeper:
                    Slot(keeper, self._slot).drop()

    def _follow(self, server: Server, became: str, ship: LogSink, resume: Facts | None) -> NoReturn:
        """Continue where the stored log ends, if the server has all WAL since; otherwise begin a new log now."""
        because = "the log was not followed before"
        if resume is not None and FILES in resume:
            because = "its files were archived before, and nothing has held it since"
        elif resume is not None:
            because = self._go_on(server, ship, WalPosition.read(resume), datetime.fromisoformat(str(resume["at"])))
        if resume is not None and became:
            because += f" ({became})"
        with streaming(server.address, self._about) as stream:
            at = datetime.now(UTC)
            follower = Follower(stream, server, ship, self._pace)
            ship.begin(follower.start(server.ends()[1]).facts(), continued=False, because=because)
            follower.run(at)
        raise LogBroken(f"{self._about}: its log has ended")

    def _go_on(self, server: Server, ship: LogSink, since: WalPosition, at: datetime) -> str:
        """Continue from a place, along one timeline after the other, forever. Return why if that is impossible."""
        begun = False
        if server.was_lowered(since, lambda: ship.reached(None)):
            return LOWERED
        while True:
            with streaming(server.address, self._about) as stream:
                follower = Follower(stream, server, ship, self._pace)
                if because := follower.lacks(since):
                    if begun:
                        raise LogBroken(f"{self._about}: its log does not continue", detail=because)
                    return because
                if not begun:
                    ship.begin(since.facts(), continued=True, because="")
                begun = True
                since = follower.run(at)

    def unfollow(self, *, if_short: bool = False) -> None:
        lost = list[GuardError]()
        for address in addresses_of(self._address):
            try:
                with connected(address, about=place_of(address)) as keeper:
                    slot = Slot(keeper, self._slot)
                    if not if_short:
                        slot.drop()
                    elif slot.holds():
                        self._let_go_if_short(keeper, slot)
            except GuardError as error:
                drop = f"SELECT pg_drop_replication_slot('{self._slot}')"
                error.detail = f"{error.detail} Its slot may be there still: {drop}".strip()
                lost.append(error)
        lost = [error for error in lost if not if_short or isinstance(error, NoSpace)]
        if lost:
            raise lost[0]

    def _let_go_if_short(self, keeper: Connection, slot: Slot) -> None:
        cluster = look(keeper, self._about)
        directory = DataDirectory(cluster.directory, {}, cluster.version_directory)
        try:
            check_own(directory, slot.name, cluster.log.system)
            check_room(keeper, slot.name, directory, "until it is stored", _ROOM)
        except NoSpace:
            slot.drop()
            raise
        finally:
            directory.close()


@frozen
class Server:
    """The server whose log is followed, with a connection for queries that the stream does not answer."""

    address: Address
    about: str
    keeper: Connection
    cluster: Cluster
    slot: Slot
    directory: DataDirectory | None  # None for a server elsewhere
    others: Others

    def left(self, timeline: int) -> int | None:
        """Return where the server's history leaves a timeline; None for its current one."""
        return dict(self._turns()).get(timeline)

    def after(self, timeline: int) -> int:
        """Return the timeline that follows another one in the server's history."""
        return min((one for one, _ in self._turns() if one > timeline), default=self.cluster.log.timeline)

    def on(self, at: int) -> int:
        """Return the timeline on which a position of its log was written."""
        return next((timeline for timeline, left in self._turns() if left > at), self.cluster.log.timeline)

    def _turns(self) -> list[tuple[int, int]]:
        log = self.cluster.log
        if not log.history:
            return []
        if self.directory is not None:  # a server that archives may accept no replication connection
            return turns_of(self.directory.read(f"{WAL}/{log.history}").decode(errors="replace"))
        with replicating(self.address, self.about) as connection:
            return turns_of(history(connection, log.timeline).decode(errors="replace"))

    def was_lowered(self, since: WalPosition, alive: Alive) -> bool:
        """Return whether wal_level was minimal at some time after a place, if the slot does not cover that time."""
        held, segment = self.slot.since(), self.cluster.log.segment
        if held is not None and held <= since.position:
            return False
        return was_lowered(self.address, self.about, segment, self._behind(since), alive)

    def _behind(self, since: WalPosition) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of its log after a place: timeline, start, end."""
        at = since.position
        for timeline, left in (*self._turns(), (self.cluster.log.timeline, self.ends()[1])):
            at = min(at, left)
            if timeline >= since.timeline and at < left:
                yield timeline, at, left
                at = left

    def turned_at(self, timeline: int) -> str:
        """Return when a timeline began: when its history file was written. The server tells that in whole seconds."""
        name = self.cluster.log.on(timeline).history
        found = self.directory and self.directory.written_at(f"{WAL}/{name}")
        return (found or next((at for (at,) in rows(self.keeper, _WRITTEN, name)), datetime.now(UTC))).isoformat()

    def check_not_left_behind(self, since: WalPosition) -> None:
        """Raise SourceReplaced if the server is of another cluster, or behind the timeline of the stored log."""
        system, timeline = since.round.split("/")[0], self.cluster.log.timeline
        if system != str(self.cluster.log.system):
            raise other_cluster(self.about, str(self.cluster.log.system), system)
        if timeline < since.timeline:
            raise left_behind(self.about, timeline, since.timeline)

    def ends(self) -> tuple[int, int]:
        """Return the write position of its WAL, and the flush position, up to which WAL is sent.

        Everything committed lies before the first; what was committed synchronously also lies before the second.
        """
        ((written, flushed),) = rows(self.keeper, _ENDS)
        return parse_lsn(text(written)), parse_lsn(text(flushed))

    def delay(self) -> float:
        """Return after how many seconds an asynchronous commit (synchronous_commit = off) is on disk."""
        ((milliseconds,),) = rows(self.keeper, _DELAY)
        return float(_DELAYS * milliseconds / 1000 + _MORE_SECONDS)

    def watch(self) -> None:
        """Raise NoSpace before WAL fills the server's disk, and LogBroken where the log cannot continue.

        Raise SourceReplaced if another server of the url accepts writes too. The free space of a server elsewhere is
        unknown here: that server invalidates a slot that holds more than it allows.
        """
        if self.directory is not None:
            check_room(self.keeper, self.slot.name, self.directory, "until it is stored", _ROOM)
        self.others.check()
        if tablespaces(self.keeper) != self.cluster.tablespaces:
            raise LogBroken(
                f"{self.about}: a tablespace was made or dropped", detail="A log cannot continue past that."
            )


class Follower:
    """One stream of the log, along one timeline, on its way into the repository."""

    def __init__(self, stream: Stream, server: Server, ship: LogSink, pace: Pace) -> None:
        self._stream, self._server, self._ship, self._pace = stream, server, ship, pace
        self._place = WalPosition(round_of(server.cluster), 0, "")
        self._end: int | None = None  # where the server left this timeline; None while it is on it
        self._turned: WalPosition | None = None  # where the stored log ends, if that is on the timeline before
        self._tail = b""  # the bytes before the place
        self._waits = bytearray()  # the bytes after it that were received
        self._at = datetime.now(UTC)  # everything committed by then was stored
        self._rest = 0  # the write position when no more came in time: nothing committed lies there

    def lacks(self, since: WalPosition) -> str:
        """Start where the stored log ends; return why that is impossible, or "".

        If the server left the timeline of that place at or before it, start along the next timeline.
        """
        server, log = self._server, self._server.cluster.log
        if across(since.round) != across(self._place.round):
            return OTHER_SPACES
        left = server.left(since.timeline)
        if left is None and since.timeline != log.timeline:
            return f"the server is on timeline {log.timeline}, which does not descend from timeline {since.timeline}"
        if len(since.turns) >= MOST_TURNS:
            return f"other servers have taken over {MOST_TURNS} times"
        try:
            if left is not None and left <= since.position:
                return self._turn(since, left)
            self._place, self._end = replace(since, position=0), left
            if left is None and server.ends()[1] < since.position:
                return "the server's WAL ends before the stored log"
            return "" if self.start(since.position) == since else "the server's WAL differs from the stored log"
        except errors.UndefinedFile:
            return "the server has removed a part of its log before it was stored"

    def _turn(self, since: WalPosition, left: int) -> str:
        """Start along the next timeline, from where the timeline of `since` was left."""
        timeline = self._server.after(since.timeline)
        turns = (*since.turns, Turn(since.round, left, since.position, self._server.turned_at(timeline)))
        self._place = WalPosition(round_of(self._server.cluster, timeline), 0, "", turns)
        self._end, self._turned = self._server.left(timeline), since
        self.start(left)
        return ""

    def start(self, at: int) -> WalPosition:
        """Start streaming at a position; return that place, with the digest of the bytes before it on the server."""
        first = self._first(at)
        self._stream.start(self._server.slot.name, self._place.timeline, first)
        while self._stream.at < at:
            self._waits += self._stream.receive(_WAIT_SECONDS)
            self._ship.reached(None)
        self._place = replace(self._place, position=first)
        self._moved(at - first)
        return self._place

    def _first(self, at: int) -> int:
        """Return the start of the bytes that identify a place: within one page and one file, which the slot keeps."""
        return max(at - PAGE, (at - 1) // self._server.cluster.log.segment * self._server.cluster.log.segment)

    def _moved(self, count: int) -> bytes:
        """Advance the place by `count` received bytes, and return them."""
        part = bytes(self._waits[:count])
        del self._waits[:count]
        position = self._place.position + count
        self._tail = (self._tail + part)[-PAGE:]
        check = hashlib.sha256(self._tail[self._first(position) - position :]).hexdigest()
        self._place = replace(self._place, position=position, check=check)
        return part

    def run(self, at: datetime) -> WalPosition:
        """Store what arrives. Return where the timeline ends if the server has left it; otherwise run forever.

        Everything committed by `at` lies before the starting place.
        """
        self._at, watched = at, 0.0
        while self._end is not None and self._stream.at < self._end:
            self._take(_WAIT_SECONDS)
        if self._end is not None:
            self._store(self._at)
            return self._place
        while True:
            began, at = time.monotonic(), datetime.now(UTC)
            if began - watched >= self._pace.watch_seconds:
                watched = began
                self._server.watch()  # before trying to store anything, which may fail for days
            self._catch_up()
            self._store(at)
            self._ship.reached(at)
            while (left := began + self._pace.look_seconds - time.monotonic()) > 0:
                self._take(left)

    def _catch_up(self) -> None:
        """Receive everything committed by now. A server may delay sending the last bytes if they contain no commit."""
        written, flushed = self._server.ends()
        if written not in (flushed, self._rest):
            patience = time.monotonic() + self._server.delay()
            while self._stream.at < written and time.monotonic() < patience:
                self._take(_SHORT_SECONDS)
            if self._stream.at < written:
                self._rest, (_, flushed) = written, self._server.ends()
        at, came = self._stream.at, time.monotonic()
        while self._stream.at < flushed:
            self._take(_WAIT_SECONDS)
            if self._stream.at > at:
                at, came = self._stream.at, time.monotonic()
            elif time.monotonic() - came > self._pace.patience_seconds:
                raise silent(
                    self._server.about, "the server does not send the WAL that it has", self._pace.patience_seconds
                )

    def _take(self, seconds: float) -> None:
        """Receive what comes next; store it if much is waiting."""
        self._waits += (came := self._stream.receive(seconds))
        if len(self._waits) >= self._pace.segment_bytes:
            self._store(self._at)
        elif came:
            return
        self._ship.reached(None)

    def _store(self, at: datetime) -> None:
        """Store everything received, and allow the server to remove it. Only the last segment covers `at`."""
        while self._waits:
            since, self._turned = self._turned or self._place, None
            part = self._moved(min(len(self._waits), self._pace.segment_bytes))
            all_of = self._at if self._waits else at
            self._ship.ship(Segment(STREAM, since.facts(), self._place.facts(), all_of, part))
            # Keep the WAL file that contains the last stored byte: the next follower compares it.
            position, segment = self._place.position, self._server.cluster.log.segment
            self._stream.confirm(position if position % segment else position - 1)
        self._at = at
