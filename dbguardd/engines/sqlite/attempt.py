"""One attempt at a copy: what it works with, how it is told, and what it returns. The ways are in wal and rollback."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.sqlite.live import Live, State
from dbguardd.flow import Facts

NAME = "snapshot.db"
SUFFIXES = ("", "-wal", "-shm", "-journal")
TICK_SECONDS = 0.01  # file times have the grain of a timer tick (at most 10 ms)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long the application may be held, how long a quiet moment is waited for, how often life is shown."""

    max_block_seconds: float
    lock_timeout_seconds: float
    beat_seconds: float = 0.5
    growth_bytes: int = 1 << 20  # of a log under one mark: with 4 MiB its writers wait twice as long (measured)
    step_bytes: int = 8 << 20  # copying in steps of 1 MiB takes two to four times the processor time (measured)


@dataclass(frozen=True, slots=True)
class Taken:
    """How the copy was made. `way` is unmoved (there is none), wal, idle, rollback, split or hot-journal."""

    way: str
    blocked_seconds: float  # wal: how long checkpoints could not reset the log; else the longest lock held
    copy_seconds: float
    log_bytes: int
    tries: int
    cloned: bool
    found: os.stat_result
    at: float  # seconds since the epoch: every commit before is in the copy, none after
    place: Facts | None = None  # where in the log that is (see follow), if the way tells
    state: State | None = None  # of the live database, if it was read itself and nothing is in staging


class Moved(Exception):  # noqa: N818 - an event, not an error
    """Somebody changed the database in the middle; the copy is worthless."""


@dataclass(slots=True)
class Attempt:
    """The live database, the place for its copy, and how far it is."""

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
    cloned: bool = False
    shown: bool = False  # some of the copy was handed out as final
    in_place: bool = False  # there is no copy: the live file is read itself

    def staged(self, suffix: str = "") -> Path:
        """Return the place of the copied database, or of a side file of it."""
        return self.staging / f"{NAME}{suffix}"

    def alive(self) -> None:
        """Show life."""
        self.progress("snapshot", min(self.done, self.total), self.total)

    def tick(self, done: int) -> None:
        """Show life now and then; cheap enough for each step."""
        self.done = done
        now = time.monotonic()
        if now - self.beat >= self.budget.beat_seconds:
            self.beat = now
            self.alive()
