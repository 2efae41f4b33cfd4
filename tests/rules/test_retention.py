"""Laws of retention, and examples that a person can follow."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.rules.backup_state import BackupState
from dbguardd.rules.retention import EVIDENCE, Keep, breaker, decide, departures, shrinks

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
ZONES = st.sampled_from(
    [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")]
)
COUNTS = st.integers(0, 6)
UNITS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


@st.composite
def keeps(draw: st.DrawFn) -> Keep:
    within = draw(st.none() | st.integers(1, 24 * 60).map(lambda hours: timedelta(hours=hours)))
    counts = {unit: draw(COUNTS) for unit in UNITS}
    return Keep(**counts, within=within, min_proven=draw(st.integers(1, 4)), zone=draw(ZONES))


@st.composite
def histories(draw: st.DrawFn) -> list[BackupState]:
    ages = draw(st.lists(st.integers(0, 3 * 365 * 24 * 4), max_size=40))
    return [
        BackupState(
            f"{number:04}",
            NOW - timedelta(minutes=15 * age),
            proven=(proven := draw(st.booleans())),
            failed=not proven and draw(st.booleans()),
            holds=("audit",) if draw(st.integers(0, 9)) == 0 else (),
        )
        for number, age in enumerate(ages)
    ]


@given(histories(), keeps())
def test_every_backup_stays_or_goes_and_says_why(backups, keep):
    verdict = decide(backups, keep, NOW)
    assert {*verdict.keep} | {*verdict.drop} == {backup.id for backup in backups}
    assert not {*verdict.keep} & {*verdict.drop}
    assert all(reasons and all(reasons) for reasons in (*verdict.keep.values(), *verdict.drop.values()))


@given(histories(), keeps())
def test_deciding_twice_is_deciding_once(backups, keep):
    kept = decide(backups, keep, NOW).keep
    again = decide([backup for backup in backups if backup.id in kept], keep, NOW)
    assert {*again.keep} == {*kept}


@given(histories(), keeps(), st.sampled_from(UNITS), st.integers(1, 5))
def test_asking_for_more_never_drops_more(backups, keep, unit, more):
    values = {name: getattr(keep, name) for name in (*UNITS, "within", "min_proven", "zone")}
    larger = Keep(**{**values, unit: values[unit] + more})
    if keep.empty:
        return
    assert {*decide(backups, keep, NOW).keep} <= {*decide(backups, larger, NOW).keep}


@given(histories(), keeps())
def test_guarantees(backups, keep):
    kept = decide(backups, keep, NOW).keep
    newest_first = sorted(backups, key=lambda b: b.id, reverse=True)
    assert all(backup.id in kept for backup in newest_first[:1])
    proven = [backup for backup in newest_first if backup.proven and not backup.failed]
    assert all(backup.id in kept for backup in proven[: keep.min_proven])
    assert all(backup.id in kept for backup in backups if backup.holds)


@given(histories(), keeps(), st.integers(0, 10**6))
def test_the_passing_of_time_alone_drops_only_evidence(backups, keep, hours):
    later = decide(backups, keep, NOW + timedelta(hours=hours)).keep
    failed = {backup.id for backup in backups if backup.failed}
    assert {*decide(backups, keep, NOW).keep} - {*later} <= failed


@settings(deadline=None)
@given(histories(), keeps())
def test_departures_are_told_for_what_stays_and_lie_ahead(backups, keep):
    ends = departures(backups, keep, NOW, lambda moment: moment + timedelta(hours=6))
    assert ends.keys() == decide(backups, keep, NOW).keep.keys()
    assert all(end is None or end > NOW - EVIDENCE for end in ends.values())
    assert all(ends[backup.id] is None for backup in backups if backup.holds)


def daily(days: int, **facts: bool) -> list[BackupState]:
    return [BackupState(f"d{999 - day}", NOW - timedelta(days=day), **facts) for day in range(days)]


def test_last_daily_weekly_monthly():
    keep = Keep(last=3, daily=7, weekly=4, monthly=12, min_proven=2)
    verdict = decide(daily(400, proven=True), keep, NOW)
    assert verdict.keep["d999"] == (
        "newest",
        "newest proven",
        "last 1 of 3",
        "daily 1 of 7",
        "weekly 1 of 4",
        "monthly 1 of 12",
    )
    assert verdict.keep["d993"] == ("daily 7 of 7",)
    assert "d992" not in verdict.keep
    assert len(verdict.keep) == 7 + 2 + 10  # two of the Sundays and two of the ends of months are among the seven days
    assert verdict.drop["d992"] == ("beyond last 3, daily 7, weekly 4, monthly 12",)


def test_a_proven_backup_stands_for_its_day_before_a_newer_unproven_one():
    backups = [
        BackupState("3 late", NOW, proven=False),
        BackupState("2 noon", NOW - timedelta(hours=1), proven=True),
        BackupState("1 early", NOW - timedelta(hours=2), proven=True),
    ]
    kept = decide(backups, Keep(daily=1), NOW).keep
    assert kept == {"3 late": ("newest",), "2 noon": ("newest proven", "daily 1 of 1")}


def test_failed_backups_do_not_push_good_ones_out_and_stay_as_evidence():
    bad = [BackupState(f"bad{9 - n}", NOW - timedelta(hours=n), failed=True) for n in range(10)]
    good = BackupState("a good one", NOW - timedelta(days=3))
    kept = decide([*bad, good], Keep(last=1), NOW).keep
    assert kept["a good one"] == ("newest that did not fail", "last 1 of 1")
    assert kept["bad0"] == ("evidence",)
    later = decide([*bad, good], Keep(last=1), NOW + EVIDENCE)
    assert list(later.keep) == ["bad9", "a good one"]
    assert later.drop["bad0"] == ("its verification failed a while ago",)


def test_backups_of_a_clock_that_was_ahead_do_not_push_out_those_that_are_made_since():
    ahead = [BackupState(f"{number:04}", NOW + timedelta(days=3650, hours=number), proven=True) for number in range(3)]
    since = [BackupState(f"{number:04}", NOW + timedelta(hours=number), proven=number != 6) for number in range(3, 7)]
    verdict = decide([*ahead, *since], Keep(last=2, min_proven=1), NOW)
    assert verdict.keep == {"0006": ("newest", "last 1 of 2"), "0005": ("newest proven", "last 2 of 2")}
    before = [BackupState(f"+{backup.id}", backup.created_at) for backup in daily(3)]
    counted = decide([*ahead, *since, *before], Keep(daily=2, within=timedelta(hours=2)), NOW).keep
    assert counted["0002"] == ("daily, later than what was made last", "within 2h")
    assert counted["0005"] == ("newest proven", "daily 1 of 2", "within 2h")
    assert {*counted} == {"0000", "0001", "0002", "0004", "0005", "0006", "+d998"}


def test_what_a_clock_that_was_behind_has_dated_takes_nothing_away():
    behind = BackupState("e000", NOW - timedelta(days=20_000), proven=True)
    kept = decide(daily(30), Keep(daily=7, monthly=2), NOW).keep
    assert {*kept} < {*decide([*daily(30), behind], Keep(daily=7, monthly=2), NOW).keep}


def test_days_are_those_of_the_zone():
    evening, night = (datetime(2026, 6, 1, hour, tzinfo=UTC) for hour in (21, 23))  # 23:00 and 01:00 in Berlin
    backups = [BackupState("evening", evening), BackupState("night", night)]
    assert "evening" not in decide(backups, Keep(daily=2), NOW).keep
    assert "evening" in decide(backups, Keep(daily=2, zone=ZoneInfo("Europe/Berlin")), NOW).keep


def test_no_rule_keeps_everything():
    assert not decide(daily(50), Keep(), NOW).drop


@pytest.mark.parametrize(
    ("total", "dropped", "trips"), [(100, 3, False), (4, 3, False), (16, 4, False), (15, 4, True), (100, 26, True)]
)
def test_breaker(total, dropped, trips):
    assert bool(breaker(total, dropped)) is trips


def test_breaker_stands_in_the_verdict():
    verdict = decide(daily(100), Keep(last=10), NOW)
    assert verdict.breaker == "90 of 100 backups would go; one run deletes at most 3 or 25%."


def test_shrink_guard_names_only_what_the_new_policy_would_delete():
    backups = daily(10)
    assert list(shrinks(backups, Keep(last=8), Keep(last=6), NOW)) == ["d993", "d992"]
    assert shrinks(backups, Keep(last=6), Keep(last=8), NOW) == {}


def test_departures_come_true_when_every_planned_backup_is_made():
    keep = Keep(last=2, daily=3, weekly=2, monthly=2, min_proven=1)
    backups = daily(60, proven=True)
    backups = [backup for backup in backups if backup.id in decide(backups, keep, NOW).keep]
    foretold = departures(backups, keep, NOW, _next_noon)
    gone: dict[str, datetime] = {}
    at = NOW
    for number in range(100):
        at += timedelta(days=1)
        backups.append(BackupState(f"n{number:03}", at, proven=True))
        for id in decide(backups, keep, at).drop:
            gone[id] = at
        backups = [backup for backup in backups if backup.id not in gone]
    assert {id: gone.get(id) for id in foretold} == dict(foretold)


def _next_noon(moment: datetime) -> datetime:
    noon = moment.replace(hour=12, minute=0, second=0, microsecond=0)
    return noon if noon > moment else noon + timedelta(days=1)


def test_keep_comes_from_the_spec_of_a_job():
    spec = {
        "keep": {"last": 3, "hourly": 0, "daily": 7, "weekly": 0, "monthly": 0, "yearly": 0, "within_seconds": 3600.0},
        "min_proven": 2,
        "timezone": "Europe/Berlin",
    }
    keep = Keep.from_spec(spec)
    assert keep == Keep(last=3, daily=7, within=timedelta(hours=1), min_proven=2, zone=ZoneInfo("Europe/Berlin"))


def test_what_a_log_goes_on_from_stays_and_one_a_day_where_it_is_coarser():
    spec = {"keep": {"last": 1, "daily": 7}, "min_proven": 1, "continuous": True, "keep_log_seconds": 30.5 * 86400}
    assert Keep.from_spec(spec) == Keep(last=1, daily=7, within=timedelta(days=30.5))
    spec["thin_log"] = [[60, 2 * 86400.0], [3600, 7 * 86400.0]]
    assert Keep.from_spec(spec) == Keep(last=1, daily=31, within=timedelta(days=2))


def test_a_worker_can_decide_without_pydantic():
    code = "import sys, dbguardd.rules.retention; sys.exit('pydantic' in sys.modules or 'cronsim' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_departures_without_a_schedule_are_not_known():
    backups = [BackupState("b", NOW), BackupState("a", NOW - timedelta(days=1), failed=True)]
    ends = departures(backups, Keep(daily=1, yearly=1), NOW, lambda moment: None)
    assert ends == {"b": None, "a": NOW + timedelta(days=6)}
    assert departures([], Keep(daily=1), NOW, lambda moment: None) == {}


def test_departures_of_many_backups_ask_the_schedule_a_few_times_for_each():
    """The daemon answers nobody else meanwhile: once for each day of each backup were half a million questions."""
    asked = 0

    def next_run(moment: datetime) -> datetime:
        nonlocal asked
        asked += 1
        return _next_noon(moment)

    departures(daily(1000, proven=True), Keep(last=1000, daily=1000), NOW, next_run)
    assert asked <= 5000
