"""One attempt at a copy: its inputs, its progress, and its result. The methods are in wal and rollback."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.sqlite.live import Live, State
from dbguardd.flow import Facts
from dbguardd.frozen import frozen

NAME = "snapshot.db"
TICK_SECONDS = 0.01  # file times have the granularity of a timer tick (at most 10 ms)


@frozen
class Budget:
    """How long the application may be blocked, how long to wait for a quiet moment, how often to report life."""

    max_block_seconds: float = 0.1
    lock_timeout_seconds: float = 10.0
    beat_seconds: float = 0.5
    growth_bytes: int = 1 << 20  # of the WAL under one read mark: with 4 MiB its writers wait twice as long (measured)
    step_bytes: int = 8 << 20  # copying in steps of 1 MiB takes two to four times the processor time (measured)


@frozen
class Snapshot:
    """How the copy was made. `way` is unmoved (no copy was made), wal, idle, rollback, split or hot-journal."""

    way: str
    blocked_seconds: float  # wal: how long checkpoints could not reset the WAL; else the longest lock held
    copy_seconds: float
    log_bytes: int
    tries: int
    cloned: bool
    found: os.stat_result
    at: float  # seconds since the epoch: every commit before is in the copy, none after
    place: Facts | None = None  # where in the WAL that is (see follow), if known
    state: State | None = None  # of the live database, if it was read in place and nothing is in staging


class Moved(Exception):  # noqa: N818 - an event, not an error
    """The database was changed during the copy, which is useless now."""


@dataclass(slots=True)
class Attempt:
    """The live database, the place for its copy, and the progress."""

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
    step_bytes: int = 0
    cloned: bool = False
    shown: bool = False  # some of the copy was handed out as final
    in_place: bool = False  # no copy is made: the live file is read itself

    def __post_init__(self) -> None:
        self.step_bytes = self.budget.step_bytes

    def staged(self, suffix: str = "") -> Path:
        """Return the path of the copied database, or of one of its side files."""
        return self.staging / f"{NAME}{suffix}"

    def alive(self) -> None:
        """Report life."""
        self.progress("snapshot", min(self.done, self.total), self.total)

    def tick(self, done: int) -> None:
        """Report life at intervals; cheap enough for every step."""
        self.done = done
        now = time.monotonic()
        if now - self.beat >= self.budget.beat_seconds:
            self.beat = now
            self.alive()
