"""What people type as a time is understood as they meant it, or refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardctl.humanize import utc_text, when
from dbguardctl.moments import parse_moment, parse_span
from dbguardd.errors import Usage
from tests.surface.answers import NOW

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-09-12 08:59", "2026-09-12T06:59:00Z"),
        ("2026-09-12T08:59:30", "2026-09-12T06:59:30Z"),
        ("2026-09-12 08:59+02:00", "2026-09-12T06:59:00Z"),
        ("2026-09-12 08:59:00+0530", "2026-09-12T03:29:00Z"),
        ("2026-09-12T06:59:00Z", "2026-09-12T06:59:00Z"),
        ("2026-09-11", "2026-09-10T22:00:00Z"),
        ("2026-01-12 08:59", "2026-01-12T07:59:00Z"),
        ("09:14:07", "2026-09-12T07:14:07Z"),
        ("9:14", "2026-09-12T07:14:00Z"),
        ("09:14:06.5", "2026-09-12T07:14:06.500000Z"),
        ("today 9:14:06.863", "2026-09-12T07:14:06.863000Z"),  # as an error shows which backup is the oldest
        ("Sun 04:20:05.25 UTC", "2026-09-06T04:20:05.250000Z"),
        ("today 08:59", "2026-09-12T06:59:00Z"),
        ("Yesterday 09:00", "2026-09-11T07:00:00Z"),
        ("yesterday", "2026-09-10T22:00:00Z"),
        ("3h ago", "2026-09-12T04:14:07Z"),
        ("1h30min ago", "2026-09-12T05:44:07Z"),
        ("2 days ago", "2026-09-10T07:14:07Z"),
        ("now", "2026-09-12T07:14:07Z"),
        ("Sat 09:00", "2026-09-12T07:00:00Z"),  # today is one
        ("Sun 04:20:05", "2026-09-06T02:20:05Z"),
        ("monday", "2026-09-06T22:00:00Z"),
        ("11 Sep 02:06", "2026-09-11T00:06:00Z"),
        ("13 Sep 02:06", "2025-09-13T00:06:00Z"),
        ("3 January 2026 02:06", "2026-01-03T01:06:00Z"),
        ("12 Mar 02:06 +01:00", "2026-03-12T01:06:00Z"),
        ("2026-09-12 06:59 UTC", "2026-09-12T06:59:00Z"),
        ("today 06:59 UTC", "2026-09-12T06:59:00Z"),
    ],
)
def test_understood(text: str, moment: str) -> None:
    assert utc_text(parse_moment(text, NOW, BERLIN)) == moment


@pytest.mark.parametrize(
    "text",
    ["", "soon", "25:00", "today 24:30", "12.9.2026", "2026-13-01", "ago", "x ago", "-3h ago", "today today"]
    + ["31 Feb 09:00", "Sun Mon", "12 Sept 09:00", "Sun 25:00", "12 Sep 9999999", "5 min"]
    + ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"],
)
def test_nonsense_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Usage) as refused:
        parse_moment(text, NOW, BERLIN)
    assert "Write it like" in refused.value.detail


def test_a_length_of_time_is_no_moment_but_may_be_meant_as_one() -> None:
    with pytest.raises(Usage) as refused:
        parse_moment("5 min", NOW, BERLIN)
    assert refused.value.detail.startswith("Did you mean '5 min ago'?")


@given(st.integers(60, 500 * 86400))
def test_what_the_screen_shows_can_be_typed(seconds: int) -> None:
    moment = NOW - timedelta(seconds=seconds)
    shown = when(utc_text(moment), NOW, BERLIN, seconds=True)
    try:
        assert parse_moment(shown, NOW, BERLIN) == moment
    except Usage as error:
        assert "occurred twice" in error.message  # the screen shows the offset where it differs from now's


@pytest.mark.parametrize("text", ["09:15", "2026-09-12 09:14:08", "today 23:00"])
def test_the_future_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="future"):
        parse_moment(text, NOW, BERLIN)


def test_a_later_hour_of_today_may_be_meant_as_that_of_yesterday() -> None:
    with pytest.raises(Usage, match="future") as refused:
        parse_moment("23:00", NOW, BERLIN)
    assert refused.value.detail.endswith("Did you mean 'yesterday 23:00'?")


def test_hours_that_happen_twice_or_never_need_an_offset() -> None:
    later = NOW + timedelta(days=365)
    with pytest.raises(Usage, match="occurred twice") as twice:
        parse_moment("2026-10-25 02:30", later, BERLIN)
    assert "+0200" in twice.value.detail and "+0100" in twice.value.detail
    assert utc_text(parse_moment("2026-10-25 02:30+02:00", later, BERLIN)) == "2026-10-25T00:30:00Z"
    with pytest.raises(Usage, match="does not exist"):
        parse_moment("2026-03-29 02:30", later, BERLIN)


@given(st.integers(631152000, 1788000000), st.sampled_from(["UTC", "Asia/Kolkata", "Pacific/Apia"]))
def test_what_is_shown_in_utc_can_be_typed_again(seconds: int, zone: str) -> None:
    aware = datetime.fromtimestamp(seconds, UTC)
    assert parse_moment(utc_text(aware), NOW, ZoneInfo(zone)) == aware


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("2h", 7200), ("1h30min", 5400), ("1h 30m", 5400), ("7d", 604800), ("0.5h", 1800)],
)
def test_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "h", "5", "5 parsecs", "-1h", "1h,", "99999999999d", "nan s"])
def test_no_spans(text: str) -> None:
    with pytest.raises(Usage):
        parse_span(text)
