"""Which backup a restore takes by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.reliance import choose, doubt
from dbguardd.rules.retention import Keep, decide

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)


def id_of(age: int) -> str:
    return f"{99 - age}"


def history(*kinds: str) -> list[BackupState]:
    """Return backups, newest first: proven, stored, failed or safety; each an hour older than the one before."""
    return [
        BackupState(id_of(age), NOW - timedelta(hours=age), proven=kind == "proven", failed=kind == "failed",
              safety=kind == "safety")
        for age, kind in enumerate(kinds)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "chosen", "passed"),
    [
        (("proven", "proven"), 0, 0),
        (("stored", "proven"), 1, 1),
        (("safety", "failed", "stored", "proven", "proven"), 3, 3),
        (("safety", "failed", "stored", "stored"), 2, 2),
        (("safety", "failed"), None, 2),
        ((), None, 0),
    ],
)
def test_the_newest_proven_one_else_the_newest_that_nothing_speaks_against(kinds, chosen, passed):
    choice = choose(history(*kinds))
    assert (choice.backup and choice.backup.id) == (None if chosen is None else id_of(chosen))
    assert (len(choice.passed_over), choice.later) == (passed, ())
    assert all(doubt(backup) for backup in choice.passed_over)


def test_what_is_younger_than_asked_for_does_not_count():
    backups = history("proven", "safety", "stored", "proven")
    choice = choose(backups, NOW - timedelta(minutes=30))
    assert [backup.id for backup in (choice.backup, *choice.passed_over)] == [id_of(age) for age in (3, 1, 2)]
    assert choose(backups, NOW - timedelta(days=1)).backup is None


def test_the_time_that_is_shown_in_milliseconds_finds_the_backup():
    made = BackupState("01", NOW + timedelta(microseconds=320_456))
    assert choose([made], NOW + timedelta(microseconds=320_000)).backup == made
    assert choose([made], NOW + timedelta(microseconds=319_999)).backup is None


def test_a_later_time_is_no_newer_state():
    """A clock that was ahead has dated what was made before it was set right."""
    ahead = BackupState("01", NOW + timedelta(days=365), proven=True)
    unproven = BackupState("00", NOW + timedelta(days=366))
    since = BackupState("02", NOW, proven=True)
    choice = choose([unproven, ahead, since])
    assert (choice.backup, choice.passed_over, choice.later) == (since, (), (ahead,))
    assert choose([unproven, ahead, since], NOW + timedelta(hours=1)).later == ()
    assert choose([ahead, since], NOW + timedelta(days=400)).backup == since


@given(st.lists(st.sampled_from(("proven", "stored", "failed", "safety")), max_size=12), st.randoms())
def test_the_order_in_which_they_are_told_does_not_matter(kinds, random):
    backups = history(*kinds)
    mixed = random.sample(backups, len(backups))
    assert choose(mixed) == choose(backups)
    assert "proven" not in kinds or choose(backups).backup.proven


def test_safety_copies_push_no_backup_out():
    backups = history(*["safety"] * 6, "proven", "stored", "proven")
    verdict = decide(backups, Keep(last=3), NOW)
    assert {id_of(6), id_of(7), id_of(8)} <= set(verdict.keep)
    assert verdict.drop[id_of(1)] == ("a safety copy that is no longer held",)
    held = [
        BackupState(b.id, b.created_at, b.proven, ("restore undo",) if b.safety else (), safety=b.safety)
        for b in backups
    ]
    assert not decide(held, Keep(last=3), NOW).drop
