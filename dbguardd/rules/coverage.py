"""To which moments a database can be restored by its log: pure.

A log goes on from a backup. So a stretch begins with the oldest backup in it that can be relied on, and one that has
none covers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dbguardd.rules.retention import Dated


@dataclass(frozen=True, slots=True)
class Stretch:
    """Every moment from `since` to `until`."""

    since: datetime
    until: datetime


def coverage(logged: Iterable[Stretch], backups: Sequence[Dated]) -> list[Stretch]:
    """Return what can be restored of the stretches that are logged, oldest first."""
    sound = sorted(backup.created_at for backup in backups if not backup.failed and not backup.safety)
    found = []
    for stretch in logged:
        begins = next((moment for moment in sound if stretch.since <= moment <= stretch.until), None)
        if begins is not None:
            found.append(Stretch(begins, stretch.until))
    return sorted(found, key=lambda stretch: stretch.since)
