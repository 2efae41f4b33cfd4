"""Answers to questions until the user fetches them: unnamed open files, each given once and never stored."""

from __future__ import annotations

import asyncio
from typing import IO

from dbguardd.errors import NotFound
from dbguardd.frozen import frozen

WAIT_SECONDS = 120.0
_MOST = 16


@frozen
class _Kept:
    uid: int | None
    file: IO[bytes]
    timer: asyncio.TimerHandle


class Answers:
    """The answers of one daemon. One that nobody fetches is dropped after WAIT_SECONDS, or when too many wait."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def put(self, job: str, uid: int | None, file: IO[bytes]) -> None:
        """Keep the answer of a job for the user who asked."""
        while len(self._kept) >= _MOST:
            self._drop(next(iter(self._kept)))
        timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, self._drop, job)
        self._kept[job] = _Kept(uid, file, timer)

    def take(self, job: str, uid: int) -> IO[bytes]:
        """Return the answer of a job to the user who asked for it, once. Raises NotFound."""
        kept = self._kept.get(job)
        if kept is None or kept.uid != uid:
            raise NotFound(
                f"job {job}: no answer is kept for this user",
                detail=f"An answer is kept for {WAIT_SECONDS:g} s, given once, and only to the user who asked.",
            )
        del self._kept[job]
        kept.timer.cancel()
        return kept.file

    def close(self) -> None:
        """Drop all answers."""
        for job in list(self._kept):
            self._drop(job)

    def _drop(self, job: str) -> None:
        kept = self._kept.pop(job, None)
        if kept is not None:
            kept.timer.cancel()
            kept.file.close()
