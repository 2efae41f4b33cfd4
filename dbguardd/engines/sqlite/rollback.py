"""Copies a database in a rollback journal mode: under SHARED, in slices no longer than max_block.

SQLite rolls a hot journal back in the copy, never in the live file.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.attempt import TICK_SECONDS, Attempt, Moved, Snapshot
from dbguardd.engines.sqlite.copy import Copy, copying
from dbguardd.engines.sqlite.live import Live, Mark, open_side

_CARE = 0.8  # share of max_block that a slice may take, including its next step
_STEP_BYTES = 64 << 10, 4 << 20  # least and greatest step; the greatest takes 80 ms at 50 MB/s
_BYTES_PER_SECOND = 40 << 20  # assumed until the first steps were measured
_AHEAD_BYTES = 64 << 20
_NAME_BYTES = 512  # of a super-journal (os_unix.c, MAX_PATHNAME)
_U32 = 0xFFFF_FFFF


def hot_journal(live: Live) -> bool:
    """Return whether a crashed transaction left its journal (pager.c, hasHotJournal); call it under SHARED.

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


def in_slices(run: Attempt, journal: str | None) -> Snapshot:
    """Copy under SHARED, which delays committing writers, but never longer than max_block at a time.

    Under SHARED nobody holds EXCLUSIVE, so the main file is exactly the last commit (or, with a hot journal, exactly
    what the crash left). If the copy takes longer than max_block, SHARED is released between slices, and afterwards the
    change counter, size and journal state must be unchanged: each commit changes the counter (SQLite relies on this for
    its own cache). Which pages a commit in between has changed is unknown, so then the copy starts again.
    """
    live = run.live
    first = _state(live, journal)
    longest = 0.0
    slices = 1
    began = start = time.monotonic()
    with ExitStack() as files:
        copies = [files.enter_context(copying(live.file, run.staged(), live.path))]
        if journal:
            copies.append(files.enter_context(_copying_side(run, journal)))
        for copy in [copy for copy in copies if not copy.clone()]:
            copy.check_room(copy.source_bytes)
            while _timed_step(run, copy):
                # The slowest step so far is the estimate for the next one.
                if time.monotonic() - start + run.slowest < run.budget.max_block_seconds * _CARE:
                    continue
                longest = max(longest, _let_writers_in(run, copy, start))
                slices += 1
                start = time.monotonic()
                if _state(live, journal) != first or bool(journal) != hot_journal(live):
                    raise Moved
    end, at = time.monotonic(), time.time()
    locks.drop_shared(live.file)
    longest = max(longest, end - start)
    way = "hot-journal" if journal else ("rollback" if slices == 1 else "split")
    log = live.side(journal) if journal else None
    if journal:
        _forget_super_journal(run.staged(journal))
    return Snapshot(way, longest, end - began, log.size if log else 0, run.tries, copies[0].cloned, live.found, at)


def _timed_step(run: Attempt, copy: Copy) -> bool:
    """Copy a step; if it took too long for a slice, make the next ones smaller."""
    least, most = _STEP_BYTES
    size = max(least, min(run.step_bytes, most, int(run.budget.max_block_seconds * _BYTES_PER_SECOND)))
    began = time.monotonic()
    more = copy.step(size)
    run.slowest = max(run.slowest, time.monotonic() - began)
    if run.slowest > run.budget.max_block_seconds * _CARE and size > least:
        run.step_bytes, run.slowest = size // 2, run.slowest / 2
    return more


def _let_writers_in(run: Attempt, copy: Copy, start: float) -> float:
    """Release SHARED and take it again; return how long it was held (seconds).

    A waiting writer holds PENDING, so it goes first. Meanwhile the kernel reads ahead for the next slice.
    """
    locks.drop_shared(run.live.file)
    held = time.monotonic() - start
    run.seconds += held
    run.tick(copy.position)
    os.posix_fadvise(run.live.file, copy.position, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
    time.sleep(TICK_SECONDS)
    locks.wait_shared(run.live, time.monotonic() + run.budget.lock_timeout_seconds, run.alive)
    return held


def _state(live: Live, journal: str | None) -> tuple[int, bytes, Mark | None]:
    return live.mark().size, live.head(100)[24:100], live.side(journal) if journal else None


@contextmanager
def _copying_side(run: Attempt, suffix: str) -> Iterator[Copy]:
    file = open_side(run.live.path + suffix)
    if file is None:
        raise Moved
    try:
        with copying(file, run.staged(suffix), run.live.path) as copy:
            yield copy
    finally:
        os.close(file)


def _forget_super_journal(journal: Path) -> None:
    """Cut the name of a super-journal off the copied journal, or delete the journal if its transaction had committed.

    A transaction over several attached databases is committed by deleting their super-journal. SQLite would follow the
    name to the live directory when it recovers the copy, and might delete files there. A name that is too long or has a
    wrong checksum is none (pager.c, readSuperJournal).
    """
    magic, trailer = bytes.fromhex("d9d505f920a163d7"), 16
    with open(journal, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - trailer))
        tail = file.read(trailer)
        length = int.from_bytes(tail[:4], "big")
        if len(tail) < trailer or tail[8:] != magic or not 0 < length <= min(_NAME_BYTES, size - trailer - 4):
            return
        file.seek(size - trailer - length)
        name = file.read(length)
        signed = sum(byte - (byte > 127) * 256 for byte in name)  # char has a sign on most machines
        path = name.partition(b"\0")[0] if int.from_bytes(tail[4:8], "big") in (sum(name), signed & _U32) else b""
        if not path or _stands(path):
            file.truncate(size - trailer - length - 4)
            return
    journal.unlink()


def _stands(super_journal: bytes) -> bool:
    """Return whether a super-journal exists; like SQLite, not if it is empty (os_unix.c, unixAccess)."""
    try:
        found = os.stat(super_journal)
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_size > 0
