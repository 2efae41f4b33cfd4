"""Takes a consistent copy of the live database into staging, by the way that its journal mode asks for.

Everything here reads the live file raw, so no SQLite connection to it may exist in this process (see `live`). SQLite
itself only ever opens the copy, to recover it. Why each way is consistent stands where it is done; the options that
were weighed are in man/decisions.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import hold, refusal
from dbguardd.engines.sqlite.copy import Copy, copying
from dbguardd.engines.sqlite.live import Live, Mark, open_live, open_side, read_header
from dbguardd.errors import SourceChanged, SourceDamaged, SourceLocked, WouldBlock

NAME = "snapshot.db"
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_CARE = 0.8  # share of max_block that a slice may take, its next step included
_SLICE_STEP_BYTES = 4 << 20
_TICK_SECONDS = 0.01  # file times have the grain of a timer tick (at most 10 ms)
_AHEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """How long the application may be held, how long a quiet moment is waited for, how often life is shown."""

    max_block_seconds: float
    lock_timeout_seconds: float
    beat_seconds: float = 0.5
    step_bytes: int = 8 << 20  # copying in steps of 1 MiB takes two to four times the processor time (measured)


@dataclass(frozen=True, slots=True)
class Taken:
    """How the copy was made. `way` is wal, idle, rollback, split or hot-journal."""

    way: str
    blocked_seconds: float  # wal: how long checkpoints could not reset the log; else the longest lock held
    copy_seconds: float
    log_bytes: int
    tries: int
    cloned: bool
    found: os.stat_result
    at: float  # seconds since the epoch: every commit before is in the copy, none after


class _Moved(Exception):  # noqa: N818 - an event, not an error
    """Somebody changed the database in the middle; the copy is worthless."""


@dataclass(slots=True)
class _Run:
    live: Live
    staging: Path
    budget: Budget
    progress: Progress
    deadline: float
    tries: int
    total: int
    beat: float = 0.0
    done: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def alive(self) -> None:
        self.progress("snapshot", min(self.done, self.total), self.total)

    def tick(self, position: int) -> None:
        """Show life now and then; cheap enough for each step."""
        self.done = position
        now = time.monotonic()
        if now - self.beat >= self.budget.beat_seconds:
            self.beat = now
            self.alive()


def wipe(staging: Path) -> None:
    """Remove what a copy or an earlier run left in staging; touches no other name."""
    for suffix in _SUFFIXES:
        (staging / f"{NAME}{suffix}").unlink(missing_ok=True)


def take(path: str, staging: Path, budget: Budget, progress: Progress) -> Taken:
    """Copy the database to staging/NAME: one plain file, consistent, without side files.

    Raises SourceLocked, SourceChanged, SourceDamaged, SourceDenied, SourceInvalid, WouldBlock, NoSpace. On any error
    staging is empty again.
    """
    deadline, tries = time.monotonic() + budget.lock_timeout_seconds, 0
    try:
        while True:
            tries += 1
            wipe(staging)
            with open_live(path) as live:
                run = _Run(live, staging, budget, progress, deadline, tries, live.found.st_size)
                try:
                    taken = _attempt(run)
                except _Moved as event:
                    if time.monotonic() >= deadline:
                        raise _give_up(run) from event
                    continue
                live.check_same()
            _recover(live.path, staging)
            return taken
    except BaseException:
        wipe(staging)
        raise


def _attempt(run: _Run) -> Taken:
    live = run.live
    run.alive()
    locks.wait_shared(live, run.deadline, run.alive)
    header = read_header(live)  # under SHARED no page is half written
    if _hot_journal(live):
        return _in_slices(run, "-journal")
    wal = live.side("-wal")
    if not header.wal and not (wal and wal.size):
        return _in_slices(run, None)
    run.total += wal.size if wal else 0
    return _beside_users(run) if locks.wal_in_use_at(live.path) else _while_idle(run)


def _hot_journal(live: Live) -> bool:
    """Say whether a crashed transaction left its journal (pager.c, hasHotJournal); call it under SHARED.

    A journal is hot if it has content, its header is not zeroed (PERSIST) and no living writer holds RESERVED.
    """
    journal = live.side("-journal")
    if journal is None or journal.size == 0 or locks.writer_present(live):
        return False
    file = open_side(live.path + "-journal")
    if file is None:
        return False
    try:
        return os.pread(file, 1, 0) not in (b"", b"\0")
    finally:
        os.close(file)


# ------------------------------------------------------------------------------------------------ WAL mode


def _beside_users(run: _Run) -> Taken:
    """Copy main file, then log, while a child holds a read mark. Applications go on reading and writing.

    Let M be the last frame committed when the mark was taken (sqlite.org/walformat.html, wal.c).

    Mark above 0: a checkpoint writes frames up to M at most into the main file, and nobody may reset the log. All
    those frames are in the log when it is copied, after the main file. So whatever mixture of old and new pages the
    main file's copy holds, each page that changed meanwhile has its newest version in the log's copy, and recovery
    puts it there: the snapshot is the last commit in the copied log. A commit torn by the copy fails the running
    checksum and is left out, as after a power cut.

    Mark 0 (all of the log was in the main file already, or the log was empty): the main file cannot change as long as
    the mark stands, so it alone is the snapshot. But the log may be restarted from its beginning, or truncated. Its
    header is written (new salts) before the first frame of a new round, so a header that is the same after the copy as
    before proves that no frame was overwritten in between, and the log's copy is good as above. Else it is dropped.
    A restart is possible with mark 0 only, so dropping is never wrong.

    The log is copied up to the last commit that its index knows after the main file was copied: the file itself never
    shrinks by itself, and a busy writer would lead us on for ever.
    """
    live = run.live
    # This SHARED lock and the child's keep the last application from deleting -wal and -shm when it closes now: the
    # child cannot create new ones, so none are left behind by us.
    with hold(live.path, run.budget.lock_timeout_seconds) as child, ExitStack() as files:
        child.wait(run.alive)
        marked_at = time.time()
        log = open_side(live.path + "-wal")
        if log is None:
            raise SourceChanged(f"{live.path}: its -wal was deleted while in use", detail="the log is gone")
        files.callback(os.close, log)
        before = os.pread(log, 32, 0)
        began = time.monotonic()
        cloned = _copy_all(run, live.file, "")
        end = locks.log_end(live.path, os.fstat(log).st_size)
        ended_at = time.time()
        _copy_all(run, log, "-wal", end)
        seconds = time.monotonic() - began
        restarted = os.pread(log, 32, 0) != before
        child.release()
        log_mark = Mark.of(os.fstat(log))
        if not log_mark.same_file(live.side("-wal")):
            raise SourceChanged(f"{live.path}: its -wal was replaced while in use", detail="the log has another inode")
    if restarted:
        (run.staging / f"{NAME}-wal").unlink()
    at = marked_at if restarted else ended_at
    return Taken("wal", child.seconds, seconds, 0 if restarted else end, run.tries, cloned, live.found, at)


def _while_idle(run: _Run) -> Taken:
    """Copy a WAL database that nobody has open: after a clean end (no log) or a crash (log left).

    Even a read-only SQLite connection would create -wal and -shm here and leave them, or fail in a directory where it
    may not. SHARED alone is enough: nobody can delete the side files, and whoever opens the database now has to touch
    at least one of the three files, so equal marks before and after prove that nothing happened.
    """
    live = run.live
    before = _marks(live)
    time.sleep(_TICK_SECONDS)  # from here on every change gets another file time
    began = time.monotonic()
    cloned = _copy_all(run, live.file, "")
    log = open_side(live.path + "-wal")
    if log is not None:
        try:
            _copy_all(run, log, "-wal")
        finally:
            os.close(log)
    seconds = time.monotonic() - began
    if _marks(live) != before or locks.wal_in_use_at(live.path):
        raise _Moved
    log_mark = before[1]
    return Taken("idle", 0.0, seconds, log_mark.size if log_mark else 0, run.tries, cloned, live.found, time.time())


def _marks(live: Live) -> tuple[Mark, Mark | None, Mark | None]:
    return live.mark(), live.side("-wal"), live.side("-shm")


def _copy_all(run: _Run, source: int, suffix: str, end: int | None = None) -> bool:
    with copying(source, run.staging / f"{NAME}{suffix}", run.live.path) as copy:
        if end is None and copy.clone():
            return True
        copy.check_room()
        base, end = run.done, os.fstat(source).st_size if end is None else end
        while copy.position < end and copy.step(min(run.budget.step_bytes, end - copy.position)):
            run.tick(base + copy.position)
        return False


# ------------------------------------------------------------------------------------------------ rollback journal


def _in_slices(run: _Run, journal: str | None) -> Taken:
    """Copy under SHARED, which makes committing writers wait, but never longer than max_block at a time.

    Under SHARED nobody holds EXCLUSIVE, so the main file is exactly the last commit (or, with a hot journal, exactly
    what the crash left). If the copy takes longer than max_block, SHARED is given back between slices and then the
    change counter, size and journal state must be what they were: each commit changes the counter (SQLite relies on
    this for its own cache). Which pages a commit in between changed cannot be known, so the copy starts again.
    """
    live = run.live
    first = _state(live, journal)
    longest = 0.0
    slices = 1
    began = start = time.monotonic()
    with ExitStack() as files:
        copies = [files.enter_context(copying(live.file, run.staging / NAME, live.path))]
        if journal:
            copies.append(files.enter_context(_copying_side(run, journal)))
        for copy in [copy for copy in copies if not copy.clone()]:
            copy.check_room()
            while _timed_step(run, copy):
                # The slowest step so far stands for the next one.
                if time.monotonic() - start + run.slowest < run.budget.max_block_seconds * _CARE:
                    continue
                longest = max(longest, _let_writers_in(run, copy, start))
                slices += 1
                start = time.monotonic()
                if _state(live, journal) != first or bool(journal) != _hot_journal(live):
                    raise _Moved
    end, at = time.monotonic(), time.time()
    locks.drop_shared(live.file)
    longest = max(longest, end - start)
    way = "hot-journal" if journal else ("rollback" if slices == 1 else "split")
    log = live.side(journal) if journal else None
    if journal:
        _forget_super_journal(run.staging / f"{NAME}{journal}")
    return Taken(way, longest, end - began, log.size if log else 0, run.tries, copies[0].cloned, live.found, at)


def _timed_step(run: _Run, copy: Copy) -> bool:
    began = time.monotonic()
    more = copy.step(min(run.budget.step_bytes, _SLICE_STEP_BYTES))
    run.slowest = max(run.slowest, time.monotonic() - began)
    return more


def _let_writers_in(run: _Run, copy: Copy, start: float) -> float:
    """Give SHARED back and take it again; return how long it was held (seconds).

    A writer that waits holds PENDING, so it is served first. Meanwhile the kernel reads ahead for the next slice.
    """
    locks.drop_shared(run.live.file)
    held = time.monotonic() - start
    run.seconds += held
    run.tick(copy.position)
    os.posix_fadvise(run.live.file, copy.position, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
    time.sleep(_TICK_SECONDS)
    locks.wait_shared(run.live, time.monotonic() + run.budget.lock_timeout_seconds, run.alive)
    return held


def _state(live: Live, journal: str | None) -> tuple[int, bytes, Mark | None]:
    return live.mark().size, live.head(100)[24:100], live.side(journal) if journal else None


@contextmanager
def _copying_side(run: _Run, suffix: str) -> Iterator[Copy]:
    file = open_side(run.live.path + suffix)
    if file is None:
        raise _Moved
    try:
        with copying(file, run.staging / f"{NAME}{suffix}", run.live.path) as copy:
            yield copy
    finally:
        os.close(file)


def _forget_super_journal(journal: Path) -> None:
    """Cut the name of a super-journal off the copied journal, or drop the journal if its transaction had committed.

    A transaction over several attached databases is committed by deleting their super-journal. SQLite would follow
    the name to the live directory when it recovers the copy, and might delete there.
    """
    magic, trailer = bytes.fromhex("d9d505f920a163d7"), 16
    with open(journal, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - trailer))
        tail = file.read(trailer)
        length = int.from_bytes(tail[:4], "big")
        if len(tail) < trailer or tail[8:] != magic or not 0 < length <= size - trailer - 4:
            return
        file.seek(size - trailer - length)
        name = file.read(length).rstrip(b"\0")
        if os.path.exists(name):
            file.truncate(size - trailer - length - 4)
            return
    journal.unlink()


# ------------------------------------------------------------------------------------------------ the copy


def _recover(live_path: str, staging: Path) -> None:
    """Let SQLite bring the copy to rest: apply its log or journal, and leave one plain file.

    Opening, reading one header field and closing is enough: reading recovers, and the last connection to close
    checkpoints and deletes the log. No statement that parses the schema is run, so a damaged schema is kept as it is.
    """
    sides = [suffix for suffix in _SUFFIXES[1:] if (staging / f"{NAME}{suffix}").exists()]
    if not sides:
        return
    try:
        with closing(sqlite3.connect(staging / NAME, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error as error:
        raise refusal(live_path, str(error), error.sqlite_errorcode) from error
    left = [suffix for suffix in _SUFFIXES[1:] if (staging / f"{NAME}{suffix}").exists()]
    if left:
        raise SourceDamaged(f"{live_path}: SQLite could not apply its log to the copy", detail=f"left over: {left}")


def _give_up(run: _Run) -> WouldBlock | SourceLocked:
    size, block = run.live.found.st_size, run.budget.max_block_seconds
    speed = run.done / run.seconds if run.seconds else 0.0
    if not run.done or not speed:
        return SourceLocked(f"{run.live.path}: no quiet moment for a copy", detail=f"{run.tries} tries")
    return WouldBlock(
        f"{run.live.path}: copying it would block writers for about {size / speed:.1f} s",
        detail=(
            f"{size} bytes at {speed / 1e6:.0f} MB/s; max_block is {block:g} s; "
            f"{run.tries} copies in slices were each overtaken by a commit within {run.budget.lock_timeout_seconds:g} s"
        ),
        hints=["sqlite3 " + run.live.path + " 'PRAGMA journal_mode=WAL'"],
        facts={"needed_seconds": size / speed, "max_block_seconds": block, "tries": run.tries},
    )
