"""Takes a consistent copy of the live database into staging, by the method that suits its journal mode.

Everything here reads the live file raw, so this process must have no SQLite connection to it (see `live`). SQLite
itself only opens the copy, to recover it. `wal` and `rollback` explain why each method is consistent; the alternatives
are in man/decisions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.landing import side_files
from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.attempt import NAME, Attempt, Budget, Moved, Snapshot
from dbguardd.engines.sqlite.copy import opened
from dbguardd.engines.sqlite.live import State, open_live, read_header
from dbguardd.engines.sqlite.rollback import hot_journal, in_slices
from dbguardd.engines.sqlite.unmoved import clones, copy_again, read_in_place
from dbguardd.engines.sqlite.wal import beside_users, beside_writers, recover, while_idle
from dbguardd.errors import Internal, SourceLocked, WouldBlock


def wipe(staging: Path) -> None:
    """Delete what a copy or an earlier run left in staging; no other files."""
    for path in (staging / NAME, *side_files(staging / NAME)):
        path.unlink(missing_ok=True)


def take(path: str, staging: Path, budget: Budget, progress: Progress, *, tries: int = 0) -> Snapshot:
    """Copy the database to staging/NAME: one plain file, consistent, without side files. `tries` have failed already.

    Raises SourceLocked, SourceChanged, SourceDamaged, SourceDenied, SourceInvalid, WouldBlock, NoSpace. After any error
    staging is empty.
    """
    deadline = time.monotonic() + budget.lock_timeout_seconds
    while True:
        tries += 1
        steps = _try(path, staging, budget, progress, deadline=deadline, tries=tries)
        with suppress(Moved):
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    taken: Snapshot = end.value
                    return taken


class FollowedCopy:
    """A copy that its reader follows. Iterating continues it and yields how many bytes, from the start, are final.

    Or the live file itself (see `unmoved`); then each step must be taken when its bytes are needed, and the last one
    when all were read. There is only one try: Moved means that everything yielded is void. Otherwise like take().
    """

    def __init__(self, path: str, staging: Path, budget: Budget, progress: Progress) -> None:
        deadline = time.monotonic() + budget.lock_timeout_seconds
        self._runs: list[Attempt] = []
        self._steps = _try(path, staging, budget, progress, deadline=deadline, tries=1, reader=self._runs)
        self._taken: Snapshot | None = None

    def begin(self) -> None:
        """Wait until there is a file to be read, with its final size: see opened()."""
        next(self._steps)

    @property
    def in_place(self) -> bool:
        """Whether that is the live file itself."""
        return any(run.in_place for run in self._runs)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file to be read.

        Our own descriptor of the live file has the locks, so the reader gets another one.
        """
        (run,) = self._runs
        with opened(f"/proc/self/fd/{run.live.file}", os.O_RDONLY) if run.in_place else opened(run.staged()) as file:
            yield file

    def __iter__(self) -> Iterator[int]:
        self._taken = yield from self._steps

    @property
    def taken(self) -> Snapshot:
        """How the copy was made, once it is finished."""
        if self._taken is None:
            raise Internal("a copy was not followed to its end")
        return self._taken

    def close(self) -> None:
        """Abandon an unfinished copy."""
        self._steps.close()


def again(path: str, staging: Path, budget: Budget, progress: Progress, state: State) -> None:
    """Copy a database that was read in place to staging/NAME. Raises Moved if it is no longer in this state."""
    try:
        with open_live(path) as live:
            copy_again(Attempt(live, staging, budget, progress, 0.0, 1, live.found.st_size), state)
    except BaseException:
        wipe(staging)
        raise


def _try(
    path: str,
    staging: Path,
    budget: Budget,
    progress: Progress,
    *,
    deadline: float,
    tries: int,
    reader: list[Attempt] | None = None,
) -> Generator[int, None, Snapshot]:
    """Make one attempt. A `reader` gets it, and may be given the live file itself."""
    try:
        wipe(staging)
        with open_live(path) as live:
            run = Attempt(live, staging, budget, progress, deadline, tries, live.found.st_size)
            if reader is not None:
                reader.append(run)
            try:
                taken = yield from _attempt(run, may_stay=reader is not None)
            except Moved as event:
                begun = reader is not None and (run.in_place or run.shown)  # then there is one more try in any case
                if time.monotonic() >= deadline and not begun:
                    raise _give_up(run) from event
                raise
            live.check_same()
        recover(run)
        if not run.shown:
            yield run.staged().stat().st_size
        return taken
    except BaseException:
        wipe(staging)
        raise


def _attempt(run: Attempt, *, may_stay: bool) -> Generator[int, None, Snapshot]:
    live = run.live
    run.alive()
    locks.wait_shared(live, run.deadline, run.alive)
    header = read_header(live)  # under SHARED no page is half written
    if hot_journal(live):
        return in_slices(run, "-journal")
    wal = live.side("-wal")
    used = locks.wal_in_use_at(live.path)
    if may_stay and not used and not (wal and wal.size) and not clones(run):
        return (yield from read_in_place(run))
    if not header.wal and not (wal and wal.size):
        return in_slices(run, None)
    run.total += wal.size if wal else 0
    if not used:
        return (yield from while_idle(run))
    return (yield from beside_users(run)) if run.tries == 1 else beside_writers(run)


def _give_up(run: Attempt) -> WouldBlock | SourceLocked:
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
