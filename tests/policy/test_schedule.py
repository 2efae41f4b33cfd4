"""The sugar of schedules, against systemd-analyze where it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from pydantic_core import PydanticCustomError

from dbguardd.policy.schedule import first_instant, parse_schedule

ANALYZE = shutil.which("systemd-analyze")
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "cron", "words"),
    [
        ("daily 01:00", "0 1 * * *", "At 01:00 every day"),
        ("daily", "0 0 * * *", "At 00:00 every day"),
        ("Daily 1:05", "5 1 * * *", "At 01:05 every day"),
        ("weekly", "0 0 * * 1", "At 00:00 on Monday"),
        ("weekly 02:00", "0 2 * * 1", "At 02:00 on Monday"),
        ("monthly 02:00", "0 2 1 * *", "At 02:00 on the first day of every month"),
        ("sun 02:00", "0 2 * * 0", "At 02:00 on Sunday"),
        ("Sunday 02:00", "0 2 * * 0", "At 02:00 on Sunday"),
        ("mon..fri 02:30", "30 2 * * 1-5", "At 02:30 on Monday through Friday"),
        ("sat..mon 02:30", "30 2 * * 0,1,6", "At 02:30 on Sunday, Monday, and Saturday"),
        ("sat,sun 02:30", "30 2 * * 0,6", "At 02:30 on Sunday and Saturday"),
        ("mon..wed,fri 02:30", "30 2 * * 1,2,3,5", "At 02:30 on Monday, Tuesday, Wednesday, and Friday"),
        ("first sun 05:00", "0 5 * * 0#1", "At 05:00 on the first Sunday of the month"),
        ("last fri 05:00", "0 5 * * 5L", "At 05:00 on the last Friday of the month"),
        ("30 2 * * mon-fri", "30 2 * * MON-FRI", "At 02:30 on Monday through Friday"),
    ],
)
def test_sugar(text, cron, words):
    schedule = parse_schedule(text)
    assert (schedule.text, schedule.cron, schedule.explain()) == (text, cron, words)


@pytest.mark.parametrize(
    ("text", "every"), [("hourly", 60), ("every 15min", 15), ("every 1h30m", 90), ("EVERY 6h", 360)]
)
def test_intervals(text, every):
    assert parse_schedule(text).every == timedelta(minutes=every)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("dayly 01:00", '"daily 01:00"'),
        ("evry 5min", '"every 5min"'),
        ("daily 25:00", ""),
        ("daily 01:00 02:00", ""),
        ("sonntag 02:00", ""),
        ("every 5s", ""),
        ("every now", ""),
        ("every", ""),
        ("", ""),
        ("61 * * * *", ""),
        ("0 0 30 2 *", ""),
        ("0 0 31 2,4 *", ""),
        ("* * * *", ""),
        ("0 0 0 0 0 0", ""),
        ("9" * 5000 + " * * * *", ""),
        ("fifth sun 01:00", '"first sun 01:00"'),
        (15, ""),
        (None, ""),
    ],
)
def test_what_is_no_schedule(value, hint):
    with pytest.raises(PydanticCustomError) as caught:
        parse_schedule(value)
    assert caught.value.context is not None
    assert caught.value.context["hint"] == hint


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("daily 01:00", "*-*-* 01:00"),
        ("mon..fri 02:30", "Mon..Fri 02:30"),
        ("sat..mon 03:00", "Sat,Sun,Mon 03:00"),
        ("sun 02:00", "Sun 02:00"),
        ("weekly", "Mon *-*-* 00:00"),
        ("monthly 04:00", "*-*-01 04:00"),
        ("first sun 05:00", "Sun *-*-01..07 05:00"),
        ("last sun 05:00", "Sun *-*~07/1 05:00"),
        ("*/20 3 * * *", "*-*-* 03:00/20"),
        ("0 0 29 2 *", "*-02-29 00:00"),
    ],
)
def test_times_are_those_of_systemd(ours, theirs):
    base = datetime(
        2026, 5, 2, 1, 30, tzinfo=UTC
    )  # no change of clocks in the times compared, where systemd skips runs
    command = [str(ANALYZE), "calendar", "--iterations=5", "--base-time=2026-05-02 01:30:00 UTC"]
    told = subprocess.run(
        [*command, f"{theirs} Europe/Berlin"], capture_output=True, text=True, check=True, env={"TZ": "UTC"}
    ).stdout
    expected = re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ (\S+ \S+) UTC", told)
    runs = islice(parse_schedule(ours).after(base, BERLIN), 5)
    assert [run.strftime("%Y-%m-%d %H:%M:%S") for run in runs] == expected


def test_gaps():
    assert parse_schedule("mon..fri 02:30").gaps() == (timedelta(days=1), timedelta(days=3))
    assert parse_schedule("every 15min").gaps() == (timedelta(minutes=15), timedelta(minutes=15))
    assert parse_schedule("first sun 05:00").gaps() == (timedelta(days=28), timedelta(days=35))


@pytest.mark.parametrize(
    ("zone", "wall", "instant"),
    [
        ("Europe/Berlin", "2026-03-29 02:30", "2026-03-29 01:00"),
        ("Europe/Berlin", "2026-10-25 02:30", "2026-10-25 00:30"),
        ("Australia/Lord_Howe", "2026-10-04 02:10", "2026-10-03 15:30"),
        ("Pacific/Apia", "2011-12-30 12:00", "2011-12-30 10:00"),  # a day that never was
        ("UTC", "2026-03-29 02:30", "2026-03-29 02:30"),
    ],
)
def test_wall_times(zone, wall, instant):
    found = first_instant(datetime.fromisoformat(wall), ZoneInfo(zone))
    assert found == datetime.fromisoformat(instant).replace(tzinfo=UTC)
