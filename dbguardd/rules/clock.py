"""Decides whether the clock can be trusted. A clock that was set to 2099 must not expire anything.

Pure. Doubt stops deletions, never backups.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from dbguardd.frozen import frozen

LARGEST_STEP = timedelta(hours=1)
LONGEST_REST = timedelta(days=45)


@frozen
class Reading:
    """The wall clock and, at the same moment, the seconds since boot (including suspension: CLOCK_BOOTTIME)."""

    wall: datetime
    since_boot_seconds: float
    boot_id: str = ""


def doubt(earlier: Reading, later: Reading, largest: timedelta = LARGEST_STEP) -> str:
    """Return why the wall clock cannot be trusted after `earlier`; empty if it can.

    Within one boot the two clocks must agree. Across boots, a clock that went back is detected. A clock that leapt
    forward looks like a machine that was off: it is doubted if that would have been for very long.
    """
    passed = later.wall - earlier.wall
    if earlier.boot_id != later.boot_id:
        if passed > LONGEST_REST:
            return f"The clock is {_hours(passed)} ahead of where it was before the last start; it may have jumped."
        return f"The clock is {_hours(-passed)} behind where it was before the last start." if passed < -largest else ""
    step = passed - timedelta(seconds=later.since_boot_seconds - earlier.since_boot_seconds)
    if abs(step) <= largest:
        return ""
    return f"The clock was set {'forward' if step > timedelta(0) else 'back'} by {_hours(abs(step))}."


def _hours(span: timedelta) -> str:
    return f"{span / timedelta(hours=1):.1f} h" if span < timedelta(days=2) else f"{span.days} days"
