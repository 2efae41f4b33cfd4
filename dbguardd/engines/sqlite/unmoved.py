"""Reads the live file itself if nobody changes it meanwhile: nothing is copied, and nobody is blocked.

The reader requests each step (see FollowedCopy in `snapshot`). At the last one everything was read, and only then it is
known whether it was a single commit. If it was not, the database is copied by the method for its journal mode.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.attempt import TICK_SECONDS, Attempt, Moved, Snapshot
from dbguardd.engines.sqlite.copy import copying
from dbguardd.engines.sqlite.live import State

_LOOK_BYTES = 32 << 20


def clones(run: Attempt) -> bool:
    """Return whether the file system supports reflinks: then a copy costs nothing and later writes do not affect it."""
    with copying(run.live.file, run.staged(), run.live.path) as copy:
        cloned = copy.clone()
    run.staged().unlink()
    return cloned


def read_in_place(run: Attempt) -> Generator[int, None, Snapshot]:
    """Yield how much may be read, of a database without a WAL or hot journal; call it under SHARED. Raises Moved.

    A change of the main file changes its time, size or change counter; a change in progress at the end holds a lock
    that conflicts with SHARED. In WAL mode commits do not touch the main file, but they create a WAL, which exists
    until a checkpoint has written the main file. So if the state after reading the last byte equals that before the
    first one, nothing happened in between. No lock is held meanwhile: reading everything may take minutes, and an
    application that wants exclusive access must not have to wait that long.
    """
    live = run.live
    before = live.state()
    locks.drop_shared(live.file)
    time.sleep(TICK_SECONDS)  # from here on every change gets another file time
    run.in_place = run.shown = True
    size = before[1].size
    for there in range(0, size, _LOOK_BYTES):
        if live.state() != before:
            raise Moved
        yield there
    yield size
    _check_unmoved(run, before)
    return Snapshot("unmoved", 0.0, 0.0, 0, run.tries, False, live.found, time.time(), state=before)


def copy_again(run: Attempt, state: State) -> None:
    """Copy a database that was read in place and is still in the same state. Raises Moved."""
    if run.live.state() != state:
        raise Moved
    with copying(run.live.file, run.staged(), run.live.path) as copy:
        if not copy.clone():
            copy.check_room(copy.source_bytes)
            while copy.step(run.budget.step_bytes):
                run.tick(copy.position)
    _check_unmoved(run, state)


def _check_unmoved(run: Attempt, before: State) -> None:
    """Raise Moved unless the database has been in the state `before` all the time."""
    if not locks.try_shared(run.live.file):
        raise Moved
    if run.live.state() != before or locks.wal_in_use_at(run.live.path):
        raise Moved
