"""The time and the ids of the daemon, passed in wherever they are needed, so that tests can supply their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from dbguardd.frozen import frozen
from dbguardd.ulids import ulid

Now = Callable[[], datetime]


@frozen
class Clock:
    """The wall clock, which people can set, and a monotonic clock (CLOCK_BOOTTIME: it counts suspension, too)."""

    now: Now
    steady: Callable[[], float]


def system_clock() -> Clock:
    """Return the clocks of this host."""
    return Clock(lambda: datetime.now(UTC), lambda: time.clock_gettime(time.CLOCK_BOOTTIME))


def new_id(now: datetime) -> str:
    """Return a new ULID: 26 characters that sort by time."""
    return ulid(now, os.urandom)
