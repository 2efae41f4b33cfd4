"""Tells everybody who waits that something happened."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Wakes all who wait now. Whoever does not wait misses nothing that is not in the catalog."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Wake everybody who waits."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until somebody wakes; False if none came in time."""
        try:
            async with asyncio.timeout(seconds):  # wait_for() of Python 3.11 forgets to be cancelled when both come
                await self._event.wait()
        except TimeoutError:
            return False
        return True
