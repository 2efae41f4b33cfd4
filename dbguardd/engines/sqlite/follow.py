"""Follows the WAL of a live database: reads each commit once, before SQLite can overwrite it.

A child (`keep`) always holds a read mark; this process only reads the WAL and its index raw (see `live`). Why nothing
is lost between two looks (wal.c; sqlite.org/walformat.html):

- The WAL restarts (new salts, frames from its start) only when every frame is in the main file and no mark above 0 is
  held. A checkpoint writes frames up to the oldest mark at most, and none while a mark of 0 is held.
- A newer mark is taken after the WAL was read up to E, and before the older mark M is released; M was taken before that
  read, so M <= E. The newer mark is 0 only if all frames were in the main file, but M allowed only frames up to M: then
  the WAL ended at M <= E, and all of it was read.
- Under a mark of 0 nothing is written into the main file, so what is appended stays: the WAL can restart once with
  frames, and before that any number of times without frames (a truncating checkpoint). Its salts prove nothing then: a
  connection that does not know the previous salts invents both.

All of this holds only while the child is alive. So its answer that it is alive is required before a new round is
accepted, and the WAL index is read again after the frames: unchanged salts mean that no frame was overwritten. Frames
that were not read when the first mark was taken (`resume`) are unprotected until they are read: if the WAL restarts
before that, there is a gap.
"""

from __future__ import annotations

import math
import os
import time
from datetime import UTC, datetime
from struct import pack

from blake3 import blake3

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import Child
from dbguardd.engines.sqlite.frames import Frames, WalPosition, log_bytes
from dbguardd.engines.sqlite.holders import Stay, named, readers, refuse_second
from dbguardd.engines.sqlite.live import Live, open_live, read_header
from dbguardd.engines.sqlite.marks import Marks, kept
from dbguardd.engines.sqlite.pace import Pace
from dbguardd.engines.sqlite.watch import Watch
from dbguardd.errors import LogBroken, SourceChanged, Unsupported
from dbguardd.flow import Facts, Images, LogSink, Segment

_SETTLED_SECONDS = 1.0  # file times have the granularity of a timer tick
_ROUNDS = 8
_TURN_LOOKS = 4  # between two turns: each blocks writers for a moment
_MOST = 16  # a WAL of this many times turn_frames is restarted without that wait
_BEAT_FRAMES = 1000
_LONG = 4  # times turn_frames: the holders of a longer WAL are reported
_LONGEST = 4  # times behind_bytes: a longer WAL is given up if we alone hold it and never reach its end
_MOST_HASTE = 8.0  # bounds the memory for what is read but not stored
_HELD_SECONDS = 30.0  # longest pause between two attempts to restart a WAL that another process holds


def follow(path: str, pace: Pace, ship: LogSink, resume: Facts | None) -> None:
    """Ship what is committed from now on, or from `resume` on if the WAL still has everything since; never return.

    Raises what `ship` raises; LogBroken if something was lost, Unsupported for a database without a WAL, SourceLocked
    if another process follows it, SourceChanged if the file was replaced, and whatever prevents reading a database.
    """
    with open_live(path) as live:
        if not read_header(live).wal:
            raise Unsupported(
                f"{live.path}: it has no log to follow (journal mode is not WAL)",
                detail="Only in WAL mode can each commit be read beside the application. dbguard never changes it. "
                'Without continuous, backup = "every 1min" in the policy makes a point each minute.',
                hints=[f"sqlite3 {live.path} 'PRAGMA journal_mode=WAL'"],
            )
        wait = pace.lock_timeout_seconds
        with kept(live, wait, pace.max_block_seconds) as (keeper, log, shm):
            refuse_second(live.path, shm, keeper.pid, wait, lambda: ship.reached(None))
            Follower(live, pace, ship, keeper, (log, shm)).run(resume)


class Follower:
    """One run of following: its place in the WAL, and what it does next."""

    def __init__(self, live: Live, pace: Pace, ship: LogSink, keeper: Child, files: tuple[int, int]) -> None:
        self._live, self._pace, self._ship, self._shm = live, pace, ship, files[1]
        self._frames = Frames(live, *files, pace.lock_timeout_seconds, self._alive)
        self._marks = Marks(live.path, keeper, self._frames, self._shm, self._alive)
        self._file = live.found.st_ino
        self._place = self._shipped = WalPosition(b"", 0, b"", self._file)
        self._read = False  # everything that existed when the first mark was taken
        self._free: WalPosition | None = None  # where the WAL may restart as far as our marks are concerned
        self._next_turn, self._tried = 0.0, 0
        self._pause = _TURN_LOOKS * pace.look_seconds
        self._watch = Watch(live, pace.staging, pace.audit_seconds, pace.scan_bytes)
        self._readers, self._held = set[Stay](), set[Stay]()  # last holders of the WAL; reported ones
        self._expected = ""  # the sum at the end of the stored log, until something follows it

    def run(self, resume: Facts | None) -> None:
        """Find the starting place, then read, ship and renew the mark forever."""
        index = self._frames.index()
        self._marks.note()
        since = None if resume is None else WalPosition.read(resume)
        if since is not None and self._has(since, index):
            self._place = self._shipped = since
            self._ship.begin(since.facts(), continued=True, because="")
            self._expected = str((resume or {}).get("sum", ""))
        else:
            index = self._skipped()
            self._ship.begin(self._place.facts(), continued=False, because=self._why_anew(since))
        self._look_back(index)
        while True:
            began, at = time.monotonic(), datetime.now(UTC)
            if self._look():
                self._renew()
            self._audit()
            if self._is_due():
                self._turn()
            self._ship.reached(at)
            self._marks.check()
            time.sleep(max(0.0, began + self._pace.look_seconds - time.monotonic()))

    def _why_anew(self, since: WalPosition | None) -> str:
        """Return why the log cannot continue from the last position that was read."""
        if since is None:
            return "the log was not followed before"
        if since.file != self._file:
            return "another file took the place of the database"
        return "the WAL starts after the last position that was read"

    def _skipped(self) -> locks.Index:
        """Start at the end of the WAL, once nearly all of it is in the main file; return the WAL index at that point.

        What is committed until then is in no chain. Without this, reading back a long WAL could take so long that too
        much is committed meanwhile, and it would have to start again while the WAL keeps growing.
        """
        for _ in range(_ROUNDS):
            index = self._frames.index()
            check = index.checksum if index.frames else self._untouched()
            self._place = self._shipped = WalPosition(index.salts, index.frames, check, self._file)
            if not self._is_much(index):
                break
            self._marks.bring()
            self._marks.renew(self._place, long=False)
        self._read = True
        return index

    def _look_back(self, index: locks.Index) -> None:
        """Read the part of the WAL before the starting place, except what is in the main file (all, if restarted)."""
        if self._is_much(index):
            self._marks.bring()
            index = self._frames.index()
        page_size = index.page_size or read_header(self._live).page_size
        size, written = self._live.mark().size // page_size, list[int]()
        moved = index.moved if index.salts == self._place.salts else 0
        self._watch.begin(page_size, size)
        for number, found in enumerate(self._frames.up_to(self._place, page_size, moved)):
            if found is None:
                size, written = index.pages, []
                break
            page, commit, image = found
            self._watch.saw({page: image})
            written.append(page)
            if commit:
                size = commit
                written.clear()
            if number % _BEAT_FRAMES == 0:
                self._alive()
        self._watch.begin(page_size, size, written)

    def _audit(self) -> None:
        """Compare some of the live file with its WAL; begin a new log if they do not match."""
        done, wrong = self._watch.compared(), self._watch.looked(self._expected)
        if done or wrong:
            self._ship.audited(wrong)
        if wrong:
            self._shipped, self._expected = self._place, ""
            self._ship.begin(self._place.facts(), continued=False, because=wrong)
        self._watch.step()

    def _has(self, since: WalPosition, index: locks.Index) -> bool:
        """Return whether the WAL still has the frame that was read last, thus all after it, and not too much of it.

        If the WAL was empty then, that proves nothing. But if it is empty now too, and the main file has the same time,
        size and inode, nothing was committed: a commit would be in one or the other.
        """
        if since.file != self._file:
            return False
        if not since.frames:
            return bool(since.checksum) and not index.frames and since.checksum == self._untouched()
        waits = (index.frames - since.frames) * index.page_size
        if since.salts != index.salts or not 0 <= waits <= self._pace.behind_bytes:
            return False
        return self._frames.ends_with(since, index.page_size)

    def _untouched(self) -> bytes:
        """Return a digest that changes when the main file is written; b"" if it was written just now."""
        mark = self._live.mark()
        if abs(time.time() - mark.modified / 1e9) < _SETTLED_SECONDS:
            return b""
        return blake3(repr(mark).encode()).digest(8)

    def _look(self) -> bool:
        """Ship what was committed since the last look; return whether a newer mark is useful. Raises LogBroken.

        It is useful if something was read. If everything is in the main file the newer mark is 0, and releases a
        process that waits, holding the write lock, for all other marks to end (a restarting or truncating checkpoint).
        """
        at, index = datetime.now(UTC), self._frames.index()
        if there := os.path.lexists(self._live.path):
            self._frames.check_files()
        self._watch.glance((index.salts, index.moved))
        if index.salts != self._place.salts:
            self._begin_anew(index)
        fresh = index.frames > self._place.frames
        behind = (index.frames - self._place.frames) * index.page_size
        if behind > self._pace.behind_bytes:
            raise self._outrun(f"{behind} bytes of its WAL are waiting, the limit is {self._pace.behind_bytes}.")
        while self._place.frames < index.frames:
            self._ship.ship(self._next_segment(index, at))
        self._read = True
        if not there:
            self._removed(at)
        if free := self._is_free(index):
            self._free = self._place
            self._name_holders(done=True)
        return fresh or free

    def _removed(self, at: datetime) -> None:
        """Raise SourceChanged after storing everything committed until the main file was found to be missing.

        An unlinked WAL is protected by the same marks. If another main file appears under the name, its users write
        into the same WAL; so nothing more is read once the main file differs from the open one.
        """
        self._ship.reached(at)
        if not os.path.lexists(self._live.path):
            raise SourceChanged(
                f"{self._live.path}: it was removed or renamed while its log was followed",
                detail=f"What was committed until {at:%H:%M:%S} UTC is stored. What is still written to it is not.",
            )
        self._frames.check_files()

    def _begin_anew(self, index: locks.Index) -> None:
        """Go to the start of the next round of the WAL. Raises LogBroken, or WorkerDied if one may have been missed."""
        if not self._read:
            raise LogBroken(f"{self._live.path}: its WAL was reset before all of it was read")
        self._marks.stood()
        self._watch.new_round()
        self._place = WalPosition(index.salts, 0, b"", self._file)

    def _next_segment(self, index: locks.Index, at: datetime) -> Segment:
        """Read the next segment.

        Only the last one of a look contains everything committed before `at`, so only that one is a moment (`size`).
        """
        found = self._frames.part(self._place, index, self._pace.segment_bytes)
        since, self._place, self._shipped = self._shipped, found.until, found.until
        self._watch.took(found.images, found.sizes)
        self._expected = ""
        moment = found.last and bool(found.sizes)
        body = Images(
            page_size=index.page_size,
            size=found.sizes[-1] * index.page_size if moment else 0,
            content=b"".join((pack(f">{len(found.images)}I", *found.images), *found.images.values())),
            sum=self._watch.sum if moment else "",
        )
        return Segment(self._pace.stream, since.facts(), found.until.facts(), at, body)

    def _renew(self) -> None:
        """Let checkpoints proceed to here. Checkpoint a long WAL at once, or a commit of the application will do it."""
        self._marks.renew(self._place, self._place.frames >= self._pace.turn_frames)

    def _is_due(self) -> bool:
        """Return whether to restart the WAL now: if it is long, but not at every look."""
        frames, now = self._place.frames, time.monotonic()
        if frames < self._pace.turn_frames or self._place == self._free:
            return False
        return now >= self._next_turn or frames >= max(_MOST * self._pace.turn_frames, 2 * self._tried)

    def _turn(self) -> None:
        """Restart the WAL, in steps of which only the last and shortest one blocks writers."""
        for _ in range(_ROUNDS):
            index = self._frames.index()
            if self._place == self._free or (self._is_little(index, []) and not self._is_free(index)):
                break
            at = datetime.now(UTC)
            if self._look():
                self._renew()
            self._ship.reached(at)  # on a slow disk all rounds together take long
        rest = list[Segment]()
        done = self._place == self._free or (self._near(rest) and self._finish_round(rest))
        for segment in rest:
            self._ship.ship(segment)
        self._name_holders(done=done)
        least = _TURN_LOOKS * self._pace.look_seconds
        self._pause = least if done else min(2 * self._pause, _HELD_SECONDS)
        self._next_turn, self._tried = time.monotonic() + self._pause, 0 if done else self._place.frames

    def _near(self, rest: list[Segment]) -> bool:
        """Approach the end of the WAL as far as writers allow; return whether it is near enough.

        While frames are stored and checkpointed, others are committed. So frames are read now and stored later
        (`rest`). Each round checkpoints fewer frames than the one before, until that no longer helps and the disk keeps
        up. What existed before is checkpointed first.
        """
        before = math.inf
        if self._is_much(self._frames.index()):
            self._marks.bring()
        for _ in range(_ROUNDS):
            since = self._place.frames
            if not self._read_rest(rest):
                self._check_length()
                return False
            fresh = self._place.frames - since
            if not fresh or (fresh * 2 > before and not self._is_slow()):
                break
            self._renew()
            before = fresh
        return True

    def _check_length(self) -> None:
        """Raise LogBroken if the WAL is far too long, only we hold it, and its end was out of reach just now.

        It is too long also if it has taken half of its file system's free space: the application needs the rest.
        """
        length = log_bytes(self._place.frames, self._frames.index().page_size)
        room = os.statvfs(os.path.dirname(self._live.path))
        free = max(self._pace.least_room_bytes, room.f_bavail * room.f_frsize)
        if length > min(_LONGEST * self._pace.behind_bytes, free) and not readers(self._shm, (self._marks.pid,)):
            raise self._outrun(f"Its WAL has {length} bytes, and its end is not reached.")

    def _outrun(self, why: str) -> LogBroken:
        what = f"{self._live.path}: commits come faster than they can be stored"
        return LogBroken(what, detail=f"{why} dbguard releases the WAL, so that it can be reset.")

    def _finish_round(self, rest: list[Segment]) -> bool:
        """Read the rest of the WAL while writers are blocked, and return whether the WAL will restart.

        It may have restarted just before (under a mark of 0). The next look reads that; the mark must stay until then.
        """
        if self._is_slow():
            return False  # a disk this busy would only use up the time, in vain
        if self._is_much(self._frames.index()):
            return False  # another reader holds it: if it left now, all of that would be checkpointed meanwhile
        if not self._marks.keep_out(self._block_seconds()):
            return False
        near = self._read_rest(rest)
        done = self._marks.let_in(moving=near)
        if done:
            self._free = self._place
        return done

    def _block_seconds(self) -> float:
        """Return how long writers may be blocked."""
        return self._pace.max_block_seconds * self._haste()

    def _haste(self) -> float:
        """Return how many times the usual may wait, and writers with it: the longer the WAL, the more harm it does."""
        return max(1.0, self._place.frames / (2 * _MOST * self._pace.turn_frames))

    def _is_slow(self) -> bool:
        """Return whether the disk is too slow even for the few frames of the last checkpoints."""
        return self._marks.slowest_seconds > self._block_seconds() / 2

    def _read_rest(self, rest: list[Segment]) -> bool:
        """Read to the end of the WAL, if that is not too much; return whether it was not."""
        at, index = datetime.now(UTC), self._frames.index()
        if not self._is_little(index, rest):
            return False
        while self._place.frames < index.frames:
            rest.append(self._next_segment(index, at))
        return True

    def _name_holders(self, *, done: bool) -> None:
        """Report the processes that hold a long WAL, staying at one frame since the last attempt; or that none does."""
        before, self._readers = self._readers, set() if done else readers(self._shm, (self._marks.pid,))
        stay = before & self._readers if self._place.frames >= _LONG * self._pace.turn_frames else set()
        if stay or (done and self._held):
            self._held = stay
            length = log_bytes(self._place.frames, self._frames.index().page_size)
            self._ship.held(length, [named(pid) for pid in sorted({pid for pid, _, _ in stay})])

    def _is_free(self, index: locks.Index) -> bool:
        """Return whether all of the WAL was read and is in the main file. A new mark is 0 then, unless frames come."""
        all_moved = index.salts == self._place.salts and index.moved == index.frames == self._place.frames > 0
        return all_moved and self._free != self._place

    def _is_much(self, index: locks.Index) -> bool:
        """Return whether too much of the WAL is not in the main file to checkpoint the rest while writers wait."""
        return (index.frames - index.moved) * index.page_size > self._rest_bytes()

    def _is_little(self, index: locks.Index, rest: list[Segment]) -> bool:
        """Return whether what comes next, plus what was read but not stored, is little enough to be read at once."""
        waits = (index.frames - self._place.frames) * index.page_size
        waits += sum(len(segment.body.pages) for segment in rest if isinstance(segment.body, Images))
        return index.salts == self._place.salts and waits <= self._rest_bytes()

    def _rest_bytes(self) -> float:
        """Return the bytes that may be read at once: they are in memory until they are stored."""
        return self._pace.segment_bytes * min(self._haste(), _MOST_HASTE)

    def _alive(self) -> None:
        self._ship.reached(None)
