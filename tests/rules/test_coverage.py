"""Which moments can be restored: what goes on from a backup, as fine as it is by now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.coverage import Logged, TimeRange, coverage

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def test_a_log_covers_from_its_first_sound_backup_on_and_alone_nothing():
    backups = [BackupState("a", day(1), failed=True), BackupState("b", day(2)), BackupState("c", day(9), safety=True)]
    assert coverage([Logged(day(0), day(5)), Logged(day(8), day(9.5))], backups) == [TimeRange(day(2), day(5))]


def test_each_part_of_a_log_has_its_grain():
    log = Logged(day(0), day(10), {3600: day(4), 60: day(8)})
    found = coverage([log], [BackupState("a", day(1))])
    assert found == [TimeRange(day(1), day(4), 3600), TimeRange(day(4), day(8), 60), TimeRange(day(8), day(10))]
    assert coverage([log], [BackupState("a", day(5))]) == [TimeRange(day(5), day(8), 60), TimeRange(day(8), day(10))]
    assert coverage([log], [BackupState("a", day(9))]) == [TimeRange(day(9), day(10))]
