"""Commands for the child that keeps a WAL (`keep`), and what is known from it about its marks and the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.child import Child, child, refusal, uri
from dbguardd.engines.sqlite.frames import Frames, WalPosition
from dbguardd.engines.sqlite.live import Live, open_side
from dbguardd.errors import SourceChanged, WorkerDied

KEEP = Path(__file__).with_name("keep.py")
"""The program of the child that holds the marks."""

_LAST = 3  # checkpoints beside writers: the slowest one shows how long one takes while writers are blocked


@contextmanager
def kept(live: Live, timeout_seconds: float, block_seconds: float) -> Iterator[tuple[Child, int, int]]:
    """Hold marks, and keep the WAL and its index open, until the block ends."""
    timing = (str(timeout_seconds), str(block_seconds))
    with child(["-S", str(KEEP), uri(live.path, ""), live.path, *timing]) as keeper:
        answer = keeper.answer(_wait)
        if "held" not in answer:
            raise refusal(live.path, str(answer.get("error", "no answer")), int(answer.get("code", 0)))
        log, shm = open_side(live.path + "-wal"), open_side(live.path + "-shm")
        try:
            if log is None or shm is None:
                raise SourceChanged(f"{live.path}: its -wal or -shm is not there while in use")
            yield keeper, log, shm
        finally:
            for file in (log, shm):
                if file is not None:
                    os.close(file)


def _wait() -> None:
    """Do nothing: called while waiting for the first mark, for which lock_timeout is the limit."""


class Marks:
    """The read marks of one child on a live database."""

    def __init__(self, path: str, keeper: Child, frames: Frames, shm: int, alive: Callable[[], None]) -> None:
        """Send commands to `keeper`, and call `alive` while it works; `frames` and `shm` give the WAL index."""
        self._path, self._keeper, self._frames, self._shm, self._alive = path, keeper, frames, shm, alive
        self._most = (b"", 0)  # round, and frames beyond which our mark cannot be
        self._taken = deque[float](maxlen=_LAST)

    @property
    def pid(self) -> int:
        """The process that holds the marks."""
        return self._keeper.pid

    @property
    def slowest_seconds(self) -> float:
        """The time that the slowest of the last checkpoints beside writers took, including the sync."""
        return max(self._taken, default=0.0)

    def stood(self) -> None:
        """Raise WorkerDied unless all marks have been held until now."""
        self._asked("ping")

    def check(self) -> None:
        """Raise WorkerDied if the child has ended: its marks are then gone, even if nothing is committed."""
        if not self._keeper.silent():
            raise self._died()

    def renew(self, read: WalPosition, long: bool) -> None:
        """Take a newer mark, after the WAL was `read` up to there; of a `long` WAL, checkpoint at once what it allows.

        Nothing is checkpointed under a mark of 0, beside which a writer can restart the WAL. The newer mark is not 0 if
        frames existed after the older one: these are not in the main file. Raises the reason if no newer mark was
        taken.
        """
        salts, frames = self._most
        beyond = read.salts != salts or read.frames > frames
        answer = self._asked("move" if long and beyond else "renew")
        if "error" in answer:  # if ignored, the application's WAL would grow unnoticed
            raise refusal(self._path, str(answer["error"]), int(answer.get("code", 0)))
        if "seconds" in answer:
            self._taken.append(float(answer["seconds"]))
        self.note(int(answer.get("frames", -1)))

    def note(self, frames: int = -1) -> None:
        """Note that a newer mark is at most `frames` frames into the WAL; -1: at the current end of the WAL.

        Or it is 0, if the WAL has restarted since; it cannot have if frames were checkpointed under that mark.
        """
        index = self._frames.index()
        self._most = index.salts, index.frames if frames < 0 else frames

    def bring(self) -> None:
        """Checkpoint what the current mark allows, beside writers; do nothing if it may be 0."""
        if not locks.mark_0_stands(self._shm):
            self._asked("bring")

    def keep_out(self, seconds: float) -> bool:
        """Block writers, for at most `seconds`; return whether that succeeded. Then call let_in()."""
        return bool(self._asked(f"turn {seconds:.6f}").get("still"))

    def let_in(self, *, moving: bool) -> bool:
        """Admit writers; if `moving`, once the rest is checkpointed or the time is over.

        Return whether the WAL restarts now.
        """
        turned = bool(self._asked("go" if moving else "stay").get("turned"))
        self.note()
        return turned

    def _asked(self, line: str) -> Mapping[str, Any]:
        self._keeper.ask(line)
        answer = self._keeper.answer(self._alive)
        if not answer:
            raise self._died()
        return answer

    def _died(self) -> WorkerDied:
        return WorkerDied(f"{self._path}: the process that keeps its log ended too early")
