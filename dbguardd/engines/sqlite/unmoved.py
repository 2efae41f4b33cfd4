"""Lets the live file itself be read, where nobody changes it meanwhile: nothing is copied, and nobody is held.

Whoever reads it asks for each step (see Taking in `snapshot`). At the last one all was read, and only then it is known
whether it was one commit. If it was not, it is copied, by the way that its journal mode asks for.
"""

from __future__ import annotations

import time
from collections.abc import Generator

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.attempt import TICK_SECONDS, Attempt, Moved, Taken
from dbguardd.engines.sqlite.copy import copying
from dbguardd.engines.sqlite.live import State

_LOOK_BYTES = 32 << 20


def clones(run: Attempt) -> bool:
    """Say if the file system copies without copying: then a copy costs nothing, and stays whatever happens."""
    with copying(run.live.file, run.staged(), run.live.path) as copy:
        cloned = copy.clone()
    run.staged().unlink()
    return cloned


def read_in_place(run: Attempt) -> Generator[int, None, Taken]:
    """Yield how much may be read, of a database without a log or hot journal; call it under SHARED. Raises Moved.

    Whoever changes the main file gives it another time, size or change counter; whoever is in the middle of it at the
    end has a lock that keeps SHARED out. In WAL mode commits do not touch the main file; but who makes one has made a
    log for it, and that is there until a checkpoint has written the main file. A state that is the same after the last
    byte was read as before the first one proves that nothing happened in between. No lock is held meanwhile: all that
    is read may take minutes, and an application that wants the file for itself then is not to wait for it.
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
    return Taken("unmoved", 0.0, 0.0, 0, run.tries, False, live.found, time.time(), state=before)


def copy_again(run: Attempt, state: State) -> None:
    """Copy a database that was read in place and is in the same state still. Raises Moved."""
    if run.live.state() != state:
        raise Moved
    with copying(run.live.file, run.staged(), run.live.path) as copy:
        if not copy.clone():
            copy.check_room(copy.source_bytes)
            while copy.step(run.budget.step_bytes):
                run.tick(copy.position)
    _check_unmoved(run, state)


def _check_unmoved(run: Attempt, before: State) -> None:
    """Raise Moved unless the database is, and was all the time, in the state of before."""
    if not locks.try_shared(run.live.file):
        raise Moved
    if run.live.state() != before or locks.wal_in_use_at(run.live.path):
        raise Moved
