"""Follows the log of a cluster: what is committed is stored within a second, byte for byte as the server wrote it.

The server sends its log as to a standby; a slot of ours keeps all of it that is not stored yet, however long nobody
takes it. So a follower that ends, for whatever reason, loses nothing: the next one goes on at the place where the
stored log ends. Nothing is written into the cluster: whether all that had committed by now was received, the server
says, by the places up to which its log is written, and on disk.

A log goes on only where the same cluster, on the same timeline, has the very bytes before that place which were stored
(`check`): a server that came back with less of its log than it had sent, and went on from there, is noticed. In all
other cases the log begins anew, and says why.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NoReturn

from psycopg import errors

from dbguardd.engines.postgresql.connect import Address, Connection, connected, place_of, rows, text
from dbguardd.engines.postgresql.physical.cluster import Cluster, look, tablespaces
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.segments import PAGE
from dbguardd.engines.postgresql.physical.segments import place as place_in
from dbguardd.engines.postgresql.physical.slot import Slot, check_bound, check_own, check_room, name_of
from dbguardd.engines.postgresql.physical.stream import Stream, streaming
from dbguardd.errors import LogBroken, NoSpace, SourceInvalid, Unsupported
from dbguardd.flow import Facts, Segment, Ship

STREAM = "log"
"""The name of the stream that a restore reads the log by."""

FILES = "files"
"""The member of a place where the log was taken file by file (see archived): the newest files before it."""

_ENDS = b"SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text"
_DELAY = b"SELECT setting::int8 FROM pg_settings WHERE name = 'wal_writer_delay'"
_DELAYS, _MORE_SECONDS = 3, 0.1  # a commit that did not wait for the disk is there after so many, say the manuals
_WAIT_SECONDS, _SHORT_SECONDS = 0.25, 0.05


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the log is stored, how much of it becomes one segment, and how often the server is looked at."""

    look_seconds: float = 0.5
    segment_bytes: int = 8 << 20
    watch_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log of a cluster (`round`: see round_of), and a digest of the bytes right before it."""

    round: str
    position: int
    check: str

    def facts(self) -> Facts:
        """Return it as it is stored."""
        return {"round": self.round, "position": self.position, "check": self.check}

    @classmethod
    def read(cls, facts: Facts) -> Place:
        """Read what facts() returned. What another engine has stored under the same name is a place of no cluster."""
        return cls(str(facts["round"]), int(facts["position"]), str(facts.get("check")))


def round_of(cluster: Cluster) -> str:
    """Return within what places of a log are in order, and a backup goes on by it: "cluster/timeline".

    And, if there are tablespaces, a digest of which: the making of one empties a directory of this host where it is
    replayed, so no log goes past that.
    """
    spaces = sorted((oid, place) for oid, (_name, place) in cluster.tablespaces.items())
    digest = f"/{hashlib.sha256(repr(spaces).encode()).hexdigest()[:16]}" if spaces else ""
    return f"{cluster.log.system}/{cluster.log.timeline}{digest}"


class PagesLog:
    """The log of a cluster whose pages are backed up. Implements engines.base.Log."""

    def __init__(self, address: Address, staging: str, pace: Pace) -> None:
        self._address, self._pace = address, pace
        self._about, self._slot = place_of(address), name_of(staging)

    def follow(self, ship: Ship, resume: Facts | None) -> None:
        with connected(self._address, about=self._about) as keeper, ExitStack() as stack:
            keeper.execute(b"SET idle_session_timeout = 0", prepare=False)
            cluster = look(keeper, self._about)
            directory = DataDirectory(cluster.directory, {}, cluster.version_directory)
            stack.callback(directory.close)
            slot = Slot(keeper, self._slot)
            try:
                check_bound(keeper, directory.free_for_log(), slot, self._about)
                with streaming(self._address, self._about):
                    became = slot.take()  # not for who may not read from it
                check_own(directory, slot.name, cluster.log.system)
                self._follow(Server(self._about, keeper, cluster, slot, directory), became, ship, resume)
            except (NoSpace, SourceInvalid, Unsupported):
                slot.drop()
                raise

    def _follow(self, server: Server, became: str, ship: Ship, resume: Facts | None) -> NoReturn:
        """Go on where the stored log ends, if the server has all since then; else begin anew, here and now."""
        because = "the log was not followed before"
        if resume is not None and FILES in resume:
            because = "its files were archived before, and nothing has held it since"
        elif resume is not None:
            since = Place.read(resume)
            with streaming(self._address, self._about) as stream:
                follower = Follower(stream, server, ship, self._pace)
                if not (because := follower.lacks(since)):
                    ship.begin(since.facts(), continued=True, because="")
                    follower.run(datetime.fromisoformat(str(resume["at"])))
            because += f" ({became})" if became else ""
        with streaming(self._address, self._about) as stream:
            at = datetime.now(UTC)
            follower = Follower(stream, server, ship, self._pace)
            ship.begin(follower.start(server.ends()[1]).facts(), continued=False, because=because)
            follower.run(at)

    def unfollow(self) -> None:
        with connected(self._address, about=self._about) as keeper:
            Slot(keeper, self._slot).drop()


@dataclass(frozen=True, slots=True)
class Server:
    """The server whose log is followed, by a connection that asks it what no stream tells."""

    about: str
    keeper: Connection
    cluster: Cluster
    slot: Slot
    directory: DataDirectory

    def ends(self) -> tuple[int, int]:
        """Return up to where its log is written, and up to where it is on disk, and so is sent.

        All that has committed lies before the first; before the second, if the commit has waited for the disk.
        """
        ((written, flushed),) = rows(self.keeper, _ENDS)
        return place_in(text(written)), place_in(text(flushed))

    def differs(self, since: Place, round: str) -> str:
        """Say why the log of the server does not go on from a place; nothing if it may."""
        log, (system, timeline, *_) = self.cluster.log, (*since.round.split("/"), "")
        if system != str(log.system):
            return f"it is another cluster: {log.system}, and {system} was followed"
        if timeline != str(log.timeline):
            return f"the server is on timeline {log.timeline}, and timeline {timeline} was followed"
        if since.round != round:
            return "a tablespace was made or dropped"
        return "the server has less of its log than was stored of it" if self.ends()[1] < since.position else ""

    def delay(self) -> float:
        """Return after how many seconds a commit is on disk that did not wait for that (synchronous_commit = off)."""
        ((milliseconds,),) = rows(self.keeper, _DELAY)
        return float(_DELAYS * milliseconds / 1000 + _MORE_SECONDS)

    def watch(self) -> None:
        """Raise NoSpace before the log takes the last room of the server, LogBroken where no log goes on."""
        hints = ["dbguardctl status  # why it is not stored", "or give the log of the server more room"]
        check_room(self.keeper, self.slot.name, self.directory, "until it is stored", hints)
        if tablespaces(self.keeper) != self.cluster.tablespaces:
            raise LogBroken(f"{self.about}: a tablespace was made or dropped", detail="A log does not go past that.")


class Follower:
    """One stream of the log on its way into the repository."""

    def __init__(self, stream: Stream, server: Server, ship: Ship, pace: Pace) -> None:
        self._stream, self._server, self._ship, self._pace = stream, server, ship, pace
        self._place = Place(round_of(server.cluster), 0, "")
        self._tail = b""  # what lies before the place
        self._waits = bytearray()  # what lies behind it, and was received
        self._at = datetime.now(UTC)  # all that had committed by then was stored
        self._rest = 0  # up to where the log was written when it did not come in time: no commit lies there

    def lacks(self, since: Place) -> str:
        """Start at the place where the stored log ends; say why that cannot be, nothing if it can."""
        if because := self._server.differs(since, self._place.round):
            return because
        try:
            return "" if self.start(since.position) == since else "the server has another log than was stored of it"
        except errors.UndefinedFile:
            return "the server has removed a part of its log before it was stored"

    def start(self, at: int) -> Place:
        """Have the log sent from a place on; return that place, with what lies before it there."""
        log = self._server.cluster.log
        first = self._first(at)
        self._stream.start(self._server.slot.name, log.timeline, first)
        while self._stream.at < at:
            self._waits += self._stream.receive(_WAIT_SECONDS)
            self._ship.reached(None)
        self._place = replace(self._place, position=first)
        self._moved(at - first)
        return self._place

    def _first(self, at: int) -> int:
        """Return the first byte of those that a place is told by: of one page, and of one file, which is held."""
        return max(at - PAGE, (at - 1) // self._server.cluster.log.segment * self._server.cluster.log.segment)

    def _moved(self, count: int) -> bytes:
        """Move the place behind so many bytes that were received, and return them."""
        part = bytes(self._waits[:count])
        del self._waits[:count]
        position = self._place.position + count
        self._tail = (self._tail + part)[-PAGE:]
        check = hashlib.sha256(self._tail[self._first(position) - position :]).hexdigest()
        self._place = replace(self._place, position=position, check=check)
        return part

    def run(self, at: datetime) -> NoReturn:
        """Store what comes, for ever. All that had committed by `at` lies before the place where it starts."""
        self._at, watched = at, 0.0
        while True:
            began, at = time.monotonic(), datetime.now(UTC)
            if began - watched >= self._pace.watch_seconds:
                watched = began
                self._server.watch()  # before it is tried to store anything: that may fail for days
            self._catch_up()
            self._store(at)
            self._ship.reached(at)
            while (left := began + self._pace.look_seconds - time.monotonic()) > 0:
                self._take(left)

    def _catch_up(self) -> None:
        """Receive all that has committed by now. A server may leave the last, if it is no commit, unsent for long."""
        written, flushed = self._server.ends()
        if written not in (flushed, self._rest):
            patience = time.monotonic() + self._server.delay()
            while self._stream.at < written and time.monotonic() < patience:
                self._take(_SHORT_SECONDS)
            if self._stream.at < written:
                self._rest, (_, flushed) = written, self._server.ends()
        while self._stream.at < flushed:
            self._take(_WAIT_SECONDS)

    def _take(self, seconds: float) -> None:
        """Receive what comes next; store it, if much waits already."""
        self._waits += (came := self._stream.receive(seconds))
        if len(self._waits) >= self._pace.segment_bytes:
            self._store(self._at)
        elif came:
            return
        self._ship.reached(None)

    def _store(self, at: datetime) -> None:
        """Store all that was received, and let the server remove it. Only the last segment has all of `at`."""
        while self._waits:
            since, part = self._place, self._moved(min(len(self._waits), self._pace.segment_bytes))
            all_of = self._at if self._waits else at
            self._ship.ship(Segment(STREAM, since.facts(), self._place.facts(), all_of, part))
            # The file with the last byte of it stays: the next follower compares that.
            position, segment = self._place.position, self._server.cluster.log.segment
            self._stream.confirm(position if position % segment else position - 1)
        self._at = at
