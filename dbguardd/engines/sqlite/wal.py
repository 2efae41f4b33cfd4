"""Copies a database in WAL mode: the WAL first, and the main file except for the pages in the WAL.

The copied WAL tells which pages it contains. Only those are copied first, and SQLite applies the WAL to them. From then
on the staged file has its final size, and every byte copied later is final at once, so the copy can be stored while it
is made (see `FollowedCopy` in snapshot).
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import field
from itertools import chain
from struct import unpack_from

from dbguardd.engines.landing import side_files
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.attempt import TICK_SECONDS, Attempt, Moved, Snapshot
from dbguardd.engines.sqlite.child import Hold, hold, refusal
from dbguardd.engines.sqlite.copy import Copy, copying, opened
from dbguardd.engines.sqlite.live import Mark, open_side
from dbguardd.errors import NoSpace, SourceChanged, SourceDamaged
from dbguardd.flow import Facts
from dbguardd.frozen import frozen

_LOG_HEADER, _FRAME_HEADER = 32, 24
_HEAD = 65536  # at least one page
_ENDLESS = 1 << 62

Span = tuple[int, int]


def beside_users(run: Attempt) -> Generator[int, None, Snapshot]:
    """Copy the WAL, then the main file, while a child holds a read mark. Applications continue to read and write.

    Let M be the last frame committed when the mark was taken (sqlite.org/walformat.html, wal.c), and E the last one
    that the WAL index knows afterwards, when the WAL is copied up to it. The snapshot is the commit E.

    Mark above 0: a checkpoint writes frames up to M at most into the main file, and nobody may reset the WAL. All those
    frames are in the copied WAL. So a page in the copied WAL comes from there, and any other page of the main file is
    what it was at E, and stays so as long as the mark is held.

    Mark 0 (all of the WAL was in the main file already, or the WAL was empty): the main file cannot change as long as
    the mark is held. But the WAL may be restarted from its beginning, or truncated. Its header is written (new salts)
    before the first frame of a new round, so if the header is the same after copying the WAL as before, no frame was
    overwritten in between, and the copy is valid as above. Otherwise the copied WAL is discarded, and the main file
    alone is the snapshot, as of the mark. A restart is only possible with mark 0, so discarding it is never wrong.

    Raises Moved if the WAL grows much: the application would notice at its next checkpoint (see beside_writers).
    """
    with _marked(run) as (child, log):
        at, before, began = time.time(), _header(log), time.monotonic()
        end, place = _end(run, log)
        ended_at = time.time()
        _copy_log(run, log, end)
        if _header(log) == before:
            at = ended_at
        else:
            run.staged("-wal").unlink()
            end = 0  # the place stays: it was read after the mark was taken, so it is not before the snapshot
        for final in _around_log(run):
            if not run.cloned and _grown(run, log, end):
                raise Moved
            yield final
        seconds = time.monotonic() - began
    return Snapshot("wal", child.longest, seconds, end, run.tries, run.cloned, run.live.found, at, place)


def beside_writers(run: Attempt) -> Snapshot:
    """Copy the main file, then the WAL, beside a busy writer: the mark is renewed whenever the WAL has grown.

    So checkpoints continue meanwhile, each as small as usual, and none has to make up for the whole copy. A new mark is
    held before the old one is released. It is above 0, because the WAL has frames that the old one kept out of the main
    file. As long as some mark above 0 is held nobody may reset the WAL: whatever a checkpoint wrote into the main file
    since its copy began is in the WAL when that is copied, up to E, and SQLite applies it to the copy. The snapshot is
    the commit E.

    The first mark may have been 0. Then the WAL may be restarted under it, but the main file does not change before it
    is released. So the WAL may have a new header when the second mark is held too, but must keep it from then on:
    otherwise Moved. If the first mark was never renewed, a WAL with another header is discarded as in beside_users.
    """
    live = run.live
    with _marked(run) as (child, log):
        at, header, renewed, began = time.time(), _header(log), False, time.monotonic()
        before = os.fstat(log).st_size

        def both_stand() -> None:
            nonlocal header
            if renewed and _header(log) != header:
                raise Moved
            header = _header(log)

        with copying(live.file, run.staged(), live.path) as copy:
            run.cloned = copy.clone()
            if not run.cloned:
                copy.check_room(copy.source_bytes)
                marked = locks.log_end(live.path, os.fstat(log).st_size)
                for _ in _span(run, copy, (0, _ENDLESS), 0):
                    if _grown(run, log, marked) and child.renew(both_stand):
                        renewed, marked = True, locks.log_end(live.path, os.fstat(log).st_size)
                    _check_growth(run, log, before)
        end, place = _end(run, log)
        ended_at = time.time()
        _copy_log(run, log, end)
        if _header(log) == header:
            at = ended_at
        elif renewed:
            raise Moved
        else:
            run.staged("-wal").unlink()
            end = 0  # the place stays: it was read after the mark was taken, so it is not before the snapshot
        seconds = time.monotonic() - began
    return Snapshot("wal", child.longest, seconds, end, run.tries, run.cloned, live.found, at, place)


@contextmanager
def _marked(run: Attempt) -> Iterator[tuple[Hold, int]]:
    """Hold a read mark, and the open WAL, until the block ends. Raises SourceChanged if the WAL was replaced then."""
    live = run.live
    # This SHARED lock and the child's keep the last application from deleting -wal and -shm when it closes now. The
    # child cannot create new ones, so we leave none behind.
    with hold(live.path, run.budget.lock_timeout_seconds) as child:
        child.wait(run.alive)
        log = open_side(live.path + "-wal")
        if log is None:
            raise SourceChanged(f"{live.path}: its -wal was deleted while in use", detail="the log is gone")
        try:
            yield child, log
            child.release()
            if not Mark.of(os.fstat(log)).same_file(live.side("-wal")):
                why = "the log has another inode"
                raise SourceChanged(f"{live.path}: its -wal was replaced while in use", detail=why)
        finally:
            os.close(log)


def _end(run: Attempt, log: int) -> tuple[int, Facts | None]:
    """Return where the last commit ends: in bytes, and as a place in the WAL if the WAL index tells it."""
    size, index = os.fstat(log).st_size, locks.log_index(run.live.path)
    return (size, None) if index is None else (min(size, index.end), index.place)


def _header(log: int) -> bytes:
    return os.pread(log, _LOG_HEADER, 0)


def _grown(run: Attempt, log: int, marked: int) -> bool:
    """Return whether much was committed since the WAL ended at `marked`. It is shorter after a restart."""
    end = locks.log_end(run.live.path, os.fstat(log).st_size)
    return end < marked or end - marked >= run.budget.growth_bytes


def _check_growth(run: Attempt, log: int, before: int) -> None:
    """Raise NoSpace if the WAL, which cannot restart meanwhile, has taken half of what was free on its file system.

    `before` is its size in bytes when the copy began. The application needs the other half.
    """
    room, grown = os.fstatvfs(log), os.fstat(log).st_size - before
    free = room.f_bavail * room.f_frsize
    if grown > free:
        raise NoSpace(
            f"{run.live.path}: its WAL grew too much while it was copied",
            detail=f"The WAL cannot be reset during the copy. It grew by {grown} bytes, "
            f"and {free} bytes are free on its file system. Of {run.total} bytes, {run.done} were copied.",
            hints=[f"df -h {shlex.quote(os.path.dirname(run.live.path))}"],
            facts={"grown_bytes": grown, "free_bytes": free},
        )


def while_idle(run: Attempt) -> Generator[int, None, Snapshot]:
    """Copy a WAL database that nobody has open: after a clean close (no WAL) or a crash (WAL left).

    Even a read-only SQLite connection would create -wal and -shm here and leave them, or fail in a directory where it
    may not. SHARED alone suffices: nobody can delete the side files, and a process that opens the database now has to
    change at least one of the three files, so equal marks before and after prove that nothing happened.
    """
    live = run.live
    before = _marks(run)
    time.sleep(TICK_SECONDS)  # from here on every change gets another file time
    began = time.monotonic()
    log = open_side(live.path + "-wal")
    if log is not None:
        try:
            _copy_log(run, log, os.fstat(log).st_size)
        finally:
            os.close(log)
    yield from _around_log(run)
    seconds = time.monotonic() - began
    if _marks(run) != before or locks.wal_in_use_at(live.path):
        raise Moved
    log_mark = before[1]
    log_bytes = log_mark.size if log_mark else 0
    return Snapshot("idle", 0.0, seconds, log_bytes, run.tries, run.cloned, live.found, time.time())


def _marks(run: Attempt) -> tuple[Mark, Mark | None, Mark | None]:
    return run.live.mark(), run.live.side("-wal"), run.live.side("-shm")


def _copy_log(run: Attempt, log: int, end: int) -> None:
    """Copy the WAL up to `end`: a busy writer would otherwise make it endless."""
    base = run.done
    with copying(log, run.staged("-wal"), run.live.path) as copy:
        copy.check_room(end)
        for _ in _span(run, copy, (0, end), base):
            pass
    run.done = base + end


def _around_log(run: Attempt) -> Iterator[int]:
    """Copy the main file; yield how many bytes of the staged file, from its start, are final.

    At the first yield the file has its final size. A page that the WAL names but SQLite does not take from it (the
    frame is of an earlier round, or torn) is that of the main file, as it is for SQLite.
    """
    live, base = run.live, run.done
    with copying(live.file, run.staged(), live.path) as copy:
        run.cloned = copy.clone()
        there = copy.source_bytes
        logged = _logged(run, there)
        if not run.cloned:
            copy.check_room(there)
            copy.extend(there)
            for start, end in logged.spans():  # pages beyond the end are only in the WAL, or named by a torn frame
                for _ in _span(run, copy, (start, min(end, there)), base):
                    pass
        recover(run)
        size = run.staged().stat().st_size
        run.shown = True
        yield size if run.cloned else 0
        for span in _between(logged.spans(), size) if not run.cloned else ():
            yield from _span(run, copy, span, base)


def _span(run: Attempt, copy: Copy, span: Span, base: int) -> Iterator[int]:
    """Copy one span in steps; yield the position after each. It ends early if the source does."""
    copy.position, end = span  # nothing, if it ends before it begins
    while copy.position < end and copy.step(min(run.budget.step_bytes, end - copy.position)):
        run.tick(base + copy.position)
        yield copy.position


@frozen
class Logged:
    """The pages that frames of a WAL name, valid or not: a bit for each page of the main file, and those beyond it.

    A WAL may have millions of frames, each naming any page: a list of them would need more memory than a worker has.
    """

    page_size: int = 1
    inside: bytearray = field(default_factory=bytearray, repr=False)
    behind: set[int] = field(default_factory=set, repr=False)

    def note(self, number: int) -> None:
        """Note that a frame contains a page."""
        if number >> 3 < len(self.inside):
            self.inside[number >> 3] |= 1 << (number & 7)
        else:
            self.behind.add(number)

    def spans(self) -> Iterator[Span]:
        """Yield their byte ranges and the head of the file: sorted, neighbours joined."""
        begin, end = 0, _HEAD
        for number in chain(self._inside(), sorted(self.behind)):
            start = (number - 1) * self.page_size
            if start > end:
                yield begin, end
                begin = start
            end = max(end, start + self.page_size)
        yield begin, end

    def _inside(self) -> Iterator[int]:
        for place, bits in enumerate(self.inside):
            if bits:
                yield from (place * 8 + bit for bit in range(8) if bits >> bit & 1 and place + bit)


def _logged(run: Attempt, there: int) -> Logged:
    """Return the pages that the copied WAL names, for a main file of `there` bytes."""
    if not run.staged("-wal").exists():
        return Logged()
    with opened(run.staged("-wal")) as log:
        page = int.from_bytes(os.pread(log, 4, 8), "big")
        if page not in (1 << bits for bits in range(9, 17)):
            return Logged()  # SQLite ignores such a WAL
        found = Logged(page, bytearray(there // page // 8 + 1))
        for start in range(_LOG_HEADER, os.fstat(log).st_size - _FRAME_HEADER - page + 1, _FRAME_HEADER + page):
            found.note(unpack_from(">I", os.pread(log, 4, start))[0])
    return found


def _between(spans: Iterable[Span], size: int) -> Iterator[Span]:
    """Yield the ranges of `size` bytes that the spans leave. Spans are sorted by their starts."""
    at = 0
    for start, end in spans:
        if at < min(start, size):
            yield at, min(start, size)
        at = max(at, end)
    if at < size:
        yield at, size


def recover(run: Attempt) -> None:
    """Let SQLite bring the copy to rest: apply its WAL or journal, and leave one plain file.

    Opening, reading one header field and closing is enough: reading recovers, and the last connection to close
    checkpoints and deletes the WAL. No statement needs the schema: a damaged one is kept as it is, and one larger than
    the head of the file may lie where nothing was copied yet.
    """
    sides = side_files(run.staged())
    if not any(side.exists() for side in sides):
        return
    try:
        with closing(sqlite3.connect(run.staged(), isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")  # so that the following works without a schema
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA user_version").fetchall()
    except sqlite3.Error as error:
        raise refusal(run.live.path, str(error), error.sqlite_errorcode) from error
    if left := [side.name for side in sides if side.exists()]:
        raise SourceDamaged(f"{run.live.path}: SQLite could not apply its log to the copy", detail=f"left over: {left}")
