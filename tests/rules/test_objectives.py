"""What status says of a database, and when the clock is not believed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardd.rules.clock import Reading, doubt
from dbguardd.rules.objectives import Facts, judge, length
from dbguardd.states import Health

NOW = datetime(2026, 9, 12, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
SAFE = Facts(
    "app",
    backups=5,
    newest_at=NOW - HOUR,
    recoverable_to_at=NOW - HOUR,
    restore_seconds=9.0,
    rpo=2 * HOUR,
    rto=HOUR,
    interval=timedelta(days=1),
    has_recovery=True,
)


def test_a_safe_database_needs_nobody():
    assert judge(SAFE, NOW) == judge(replace(SAFE, rpo=None, rto=None), NOW)
    assert judge(SAFE, NOW).state is Health.SAFE
    assert judge(SAFE, NOW).attention == ()


@pytest.mark.parametrize(
    ("change", "state", "attention", "hint"),
    [
        (
            {"recoverable_to_at": NOW - 3 * HOUR, "newest_at": NOW - 3 * HOUR},
            Health.LATE,
            "app: the newest proven backup is 3 h old, the goal is 2 h",
            "dbguardctl backup app",
        ),
        (
            {"recoverable_to_at": NOW - 3 * HOUR},
            Health.LATE,
            "app: the newest proven backup is 3 h old, the goal is 2 h",
            "dbguardctl verify app",
        ),
        (
            {"rpo": None, "recoverable_to_at": NOW - 37 * HOUR, "newest_at": NOW - 37 * HOUR},
            Health.LATE,
            "app: the newest proven backup is 1 d 13 h old, planned is every 1 d",
            "dbguardctl backup app",
        ),
        (
            {"recoverable_to_at": None},
            Health.UNPROVEN,
            "app: a backup exists, but none has ever been proven by a restore",
            "dbguardctl verify app",
        ),
        (
            {"recoverable_to_at": None, "newest_at": None, "backups": 0},
            Health.UNPROVEN,
            "app: there is no backup yet",
            "dbguardctl backup app --verify",
        ),
        (
            {"failures": 11, "failing_since_at": NOW - 3 * HOUR, "problem": "app: no space", "failed_job": "01J"},
            Health.FAILING,
            "app: 11 runs failed since 2026-09-12 06:00 UTC: no space",
            "dbguardctl job show 01J",
        ),
        (
            {"newest_doubt": "content is not lost: no table has a row any more"},
            Health.UNPROVEN,
            "app: the newest backup is not proven: content is not lost: no table has a row any more",
            "dbguardctl list app",
        ),
        ({"paused": True}, Health.PAUSED, "app: paused until somebody resumes it", "dbguardctl resume app"),
        (
            {"in_policy": False},
            Health.ORPHANED,
            "app: not in the policy any more; its 5 backups stay, no new ones are made",
            "dbguardctl list app",
        ),
        (
            {"has_recovery": False, "key": "hr"},
            Health.SAFE,
            "app: nobody can read its backups if this machine is lost: key hr has no recovery recipient",
            "dbguardctl key recovery-sheet hr",
        ),
        (
            {"overdue_since_at": NOW - 5 * HOUR},
            Health.LATE,
            "app: overdue, it should have run at 2026-09-12 04:00 UTC",
            "dbguardctl job list --database app",
        ),
    ],
)
def test_states(change, state, attention, hint):
    found = judge(replace(SAFE, **change), NOW)
    assert (found.state, found.attention, found.hints) == (state, (attention,), (hint,))


def test_a_slow_restore_is_said():
    found = judge(replace(SAFE, restore_seconds=4000.0), NOW)
    assert found.attention == ("app: a restore takes 1 h 6 min, longer than the goal of 1 h",)


def test_the_worst_comes_first():
    found = judge(replace(SAFE, paused=True, failures=1, recoverable_to_at=NOW - 9 * HOUR, has_recovery=False), NOW)
    assert found.state is Health.FAILING
    assert [sentence.split(":")[1].split()[0] for sentence in found.attention] == ["the", "the", "paused", "nobody"]
    assert found.attention[0] == "app: the last run failed"


def test_a_clock_set_back_makes_nothing_late():
    assert judge(replace(SAFE, recoverable_to_at=NOW + 9 * HOUR), NOW).state is Health.SAFE


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (9.25, "9.25 s"), (90, "1 min 30 s"), (7200, "2 h"), (90061, "1 d 1 h")]
)
def test_lengths(seconds, text):
    assert length(timedelta(seconds=seconds)) == text


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**7))
def test_within_one_boot_a_step_of_more_than_an_hour_is_doubted(step, passed):
    earlier = Reading(NOW, 1000.0, "a")
    later = Reading(NOW + timedelta(seconds=passed + step), 1000.0 + passed, "a")
    assert bool(doubt(earlier, later)) is (abs(step) > 3600)


def test_across_boots_a_clock_that_went_back_or_very_far_ahead_is_doubted():
    earlier = Reading(NOW, 1e6, "a")
    assert doubt(earlier, Reading(NOW + timedelta(days=9), 5.0, "b")) == ""
    assert doubt(earlier, Reading(NOW + timedelta(days=46), 5.0, "b")).startswith("The clock is 46 days ahead of")
    behind = doubt(earlier, Reading(NOW - timedelta(days=9), 5.0, "b"))
    assert behind == "The clock is 9 days behind what it was before the last start."
    assert doubt(earlier, Reading(NOW + timedelta(days=9000), 1e6, "a")) == "The clock was set forward by 9000 days."
