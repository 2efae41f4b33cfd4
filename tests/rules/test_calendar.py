"""When things run: both nights on which clocks change, downtime, clocks that were set, and many hosts at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dbguardd.policy.schedule import parse_schedule
from dbguardd.rules.calendar import Timing, Verdict, due, full_due, jitter, next_due, upcoming

BERLIN, NEW_YORK, LORD_HOWE = (ZoneInfo(n) for n in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe"))
SCHEDULES = (
    "hourly",
    "every 15min",
    "every 6h",
    "daily 02:30",
    "daily 00:00",
    "mon..fri 02:30",
    "sun 02:00",
    "first sun 02:15",
    "*/20 2 * * *",
    "30 * * * *",
    "0 1,2,3 * * *",
    "monthly 02:00",
)
MOMENTS = st.integers(0, 15 * 366 * 86400).map(
    lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
ZONES = st.sampled_from(
    [BERLIN, NEW_YORK, LORD_HOWE, ZoneInfo("UTC"), ZoneInfo("Africa/Cairo"), ZoneInfo("Asia/Kathmandu")]
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local_runs(text: str, zone: ZoneInfo, start: str, count: int) -> list[str]:
    timing = Timing(parse_schedule(text), zone)
    return [run.astimezone(zone).strftime("%m-%d %H:%M%z") for run in islice(upcoming(timing, at(start)), count)]


@pytest.mark.parametrize(
    ("zone", "text", "start", "expected"),
    [
        (BERLIN, "daily 02:30", "2026-03-27 12:00", ["03-28 02:30+0100", "03-29 03:00+0200", "03-30 02:30+0200"]),
        (BERLIN, "daily 02:30", "2026-10-23 12:00", ["10-24 02:30+0200", "10-25 02:30+0200", "10-26 02:30+0100"]),
        (NEW_YORK, "daily 02:30", "2026-03-07 12:00", ["03-08 03:00-0400", "03-09 02:30-0400"]),
        (NEW_YORK, "daily 01:30", "2026-10-31 12:00", ["11-01 01:30-0400", "11-02 01:30-0500"]),
        (LORD_HOWE, "daily 02:15", "2026-10-02 18:00", ["10-04 02:30+1100", "10-05 02:15+1100"]),
        (LORD_HOWE, "daily 01:45", "2026-04-03 18:00", ["04-05 01:45+1100", "04-06 01:45+1030"]),
        (BERLIN, "*/20 2 * * *", "2026-03-28 12:00", ["03-29 03:00+0200", "03-30 02:00+0200"]),
        (BERLIN, "*/30 2 * * *", "2026-10-24 12:00", ["10-25 02:00+0200", "10-25 02:30+0200", "10-26 02:00+0100"]),
        (BERLIN, "0 1,2,3 * * *", "2026-03-28 12:00", ["03-29 01:00+0100", "03-29 03:00+0200", "03-30 01:00+0200"]),
        (BERLIN, "30 * * * *", "2026-10-24 23:45", ["10-25 02:30+0200", "10-25 02:30+0100", "10-25 03:30+0100"]),
    ],
)  # fmt: skip
def test_both_nights_on_which_the_clocks_change(zone, text, start, expected):
    assert local_runs(text, zone, start, len(expected)) == expected


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, LORD_HOWE])
@pytest.mark.parametrize("night", ["2026-03-08", "2026-03-29", "2026-04-04", "2026-10-03", "2026-10-25", "2026-11-01"])
def test_intervals_leave_no_hole_on_any_of_them(zone, night):
    runs = list(islice(upcoming(Timing(parse_schedule("every 15min"), zone), at(f"{night} 00:00")), 200))
    assert {later - earlier for earlier, later in pairwise(runs)} == {timedelta(minutes=15)}


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), ZONES, MOMENTS)
def test_times_grow_and_are_strictly_after(text, zone, moment):
    runs = list(islice(upcoming(Timing(parse_schedule(text), zone), moment), 5))
    assert runs[0] > moment
    assert all(earlier < later for earlier, later in pairwise(runs))
    assert all(run.tzinfo is UTC for run in runs)


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), ZONES, MOMENTS)
def test_the_latest_and_the_next_are_neighbours(text, zone, moment):
    schedule = parse_schedule(text)
    latest = schedule.latest(moment, zone)
    following = next(schedule.after(moment, zone))
    assert latest is not None
    assert latest <= moment < following
    assert next(schedule.after(latest, zone)) == following


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), ZONES, MOMENTS)
def test_a_run_that_started_is_not_due_again(text, zone, moment):
    timing = Timing(parse_schedule(text), zone)
    verdict = due(timing, moment, moment, moment - timedelta(days=900))
    assert verdict.verdict is Verdict.WAIT
    assert verdict.next_at == next_due(timing, moment)


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), ZONES, MOMENTS, st.integers(1, 3 * 10**7))
def test_downtime_gives_at_most_one_run(text, zone, last, seconds):
    timing = Timing(parse_schedule(text), zone)
    now = last + timedelta(seconds=seconds)
    verdict = due(timing, now, last, last)
    expected = next_due(timing, last)
    assert expected is not None
    assert (verdict.verdict is Verdict.WAIT) == (expected > now)
    if verdict.verdict is Verdict.RUN:
        assert due(timing, now, now, last).verdict is Verdict.WAIT


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), st.text(max_size=20), st.text(max_size=20), st.integers(0, 10**6))
def test_jitter_is_stable_and_bounded(text, host, name, seconds):
    schedule = parse_schedule(text)
    shift = jitter(host, name, timedelta(seconds=seconds), schedule)
    shortest = schedule.gaps()
    assume(shortest is not None)
    assert shift == jitter(host, name, timedelta(seconds=seconds), schedule)
    assert timedelta(0) <= shift <= min(timedelta(seconds=seconds), shortest[0] / 10)


def test_jitter_spreads_hosts():
    schedule = parse_schedule("daily 01:00")
    shifts = {jitter(f"host{n}", "app", timedelta(minutes=5), schedule) for n in range(200)}
    assert len(shifts) > 100


DAILY = Timing(parse_schedule("daily 01:00"), ZoneInfo("UTC"))
SINCE = at("2026-01-01 00:00")


def test_the_first_run_waits_for_its_time():
    assert due(DAILY, at("2026-01-01 00:30"), None, SINCE).verdict is Verdict.WAIT
    found = due(DAILY, at("2026-01-01 01:00:01"), None, SINCE)
    assert (found.verdict, found.missed, found.overdue) == (Verdict.RUN, 0, False)


def test_three_days_off_are_made_up_for_once():
    found = due(DAILY, at("2026-01-10 09:00"), at("2026-01-06 01:00:02"), SINCE)
    assert (found.verdict, found.missed, found.overdue) == (Verdict.RUN, 3, True)
    assert found.planned_at == at("2026-01-10 01:00")
    assert found.reason == "catches up on a missed run"


def test_nothing_is_made_up_for_shortly_before_the_next_run():
    found = due(DAILY, at("2026-01-10 19:30"), at("2026-01-09 01:00:02"), SINCE)
    assert (found.verdict, found.reason) == (Verdict.SKIP, "late, and the next regular run is soon")
    assert found.next_at == at("2026-01-11 01:00")


def test_a_machine_that_is_off_each_night_is_backed_up_all_the_same():
    last, ran = None, []
    for day in range(1, 31):  # it is on from 19:30 to 23:30
        for minute in range(0, 240, 10):
            now = at("2026-03-01 19:30") + timedelta(days=day, minutes=minute)
            if due(DAILY, now, last, at("2026-03-01 19:30")).verdict is Verdict.RUN:
                last, ran = now, [*ran, day]
    assert ran == list(range(2, 31, 2))


def test_missed_skip_skips_what_is_later_than_its_window():
    timing = Timing(parse_schedule("daily 01:00"), ZoneInfo("UTC"), missed="skip")
    assert due(timing, at("2026-01-10 04:59"), at("2026-01-09 01:00:02"), SINCE).verdict is Verdict.RUN
    assert due(timing, at("2026-01-10 05:01"), at("2026-01-09 01:00:02"), SINCE).verdict is Verdict.SKIP


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=73 * 365)])
def test_a_clock_that_was_set_back_leaves_no_hole(back):
    timing = Timing(parse_schedule("every 15min"), BERLIN)
    start = at("2026-06-01 11:03")
    last, ran = start + back, []
    for minute in range(60):
        now = start + timedelta(minutes=minute)
        if due(timing, now, last, start + back - timedelta(days=9)).verdict is Verdict.RUN:
            ran.append(minute)
            last = now
    assert ran == [0, 12, 27, 42, 57]


def test_a_start_that_is_a_moment_ahead_is_a_start():
    now = at("2026-01-10 01:00")
    assert due(DAILY, now, now + timedelta(seconds=1), SINCE).verdict is Verdict.WAIT


def test_ten_years_off_are_answered_at_once():
    timing = Timing(parse_schedule("* * * * *"), BERLIN)
    found = due(timing, at("2036-01-01 00:00:30"), at("2026-01-01 00:00"), SINCE)
    assert (found.verdict, found.missed) == (Verdict.RUN, 999)


def test_the_shift_moves_every_run():
    timing = Timing(parse_schedule("daily 01:00"), ZoneInfo("UTC"), shift=timedelta(minutes=3))
    assert next_due(timing, at("2026-01-01 01:02")) == at("2026-01-01 01:03")
    assert due(timing, at("2026-01-01 01:02"), None, SINCE).verdict is Verdict.WAIT
    assert due(timing, at("2026-01-01 01:03"), None, SINCE).verdict is Verdict.RUN


def test_full_backups_by_age():
    month = timedelta(days=30)
    assert not full_due(at("2026-02-01"), None, None)
    assert full_due(at("2026-02-01"), None, month)
    assert full_due(at("2026-02-01"), at("2026-01-02"), month)
    assert not full_due(at("2026-02-01"), at("2026-01-03"), month)


def test_explain():
    assert parse_schedule("mon..fri 02:30").explain() == "At 02:30 on Monday through Friday"
    assert parse_schedule("every 90min").explain() == "Every 1h30min, counted from midnight UTC"


def test_skip_also_holds_for_rare_schedules():
    timing = Timing(parse_schedule("monthly 01:00"), ZoneInfo("UTC"), missed="skip")
    assert due(timing, at("2026-02-01 06:00"), at("2026-01-01 01:00"), SINCE).verdict is Verdict.SKIP
