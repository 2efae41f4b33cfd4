"""Wakes all tasks that wait for something to happen."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Wakes the tasks that wait now. A task that is not waiting misses nothing: it reads the catalog."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Wake all waiting tasks."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for the next wake(); return False if none came in time."""
        try:
            async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 loses a cancellation that comes with it
                await self._event.wait()
        except TimeoutError:
            return False
        return True
