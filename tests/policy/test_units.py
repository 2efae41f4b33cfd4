"""Durations and sizes, against systemd-analyze where it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from dbguardd.policy.units import format_duration, format_size, parse_duration, parse_room, parse_size

ANALYZE = shutil.which("systemd-analyze")
TEXTS = ("5min", "100ms", "1h30m", "30d", "1.5h", "2w", "1y", "3 months", "1y 2months 3w 4d 5h 6min 7s 8ms", "90m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5min", timedelta(minutes=5)),
        ("100ms", timedelta(milliseconds=100)),
        ("1h30m", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
        (" 1 h 3 s ", timedelta(hours=1, seconds=3)),
        ("0s", timedelta(0)),
    ],
)
def test_durations(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze")
@pytest.mark.parametrize("text", TEXTS)
def test_durations_are_those_of_systemd(text):
    told = subprocess.run([str(ANALYZE), "timespan", text], capture_output=True, text=True, check=True).stdout
    match = re.search(r"s: (\d+)", told)
    assert match is not None
    assert parse_duration(text) // timedelta(microseconds=1) == int(match[1])


@given(st.timedeltas(timedelta(0), timedelta(days=36000)))
def test_durations_survive_being_written(value):
    value -= timedelta(microseconds=value.microseconds % 1000)
    assert parse_duration(format_duration(value)) == value


@pytest.mark.parametrize(
    ("value", "said", "hint"),
    [
        (5, 'must be a duration in quotes, such as "5min" or "30d"', '"5ms", "5s" or "5min"'),
        ("5", '"5" is not a duration, such as "5min", "1h30m" or "30d"', '"5ms", "5s" or "5min"'),
        ("", '"" is not a duration, such as "5min", "1h30m" or "30d"', ""),
        ("-5min", '"-5min" is not a duration, such as "5min", "1h30m" or "30d"', ""),
        ("5 minuts", '"5 minuts": no unit of time is called "minuts"; there are ms, s, min, h, d, w, month, y', ""),
        ("101y", '"101y" is longer than 100 years', ""),
        ("1h and", '"1h and" is not a duration, such as "5min", "1h30m" or "30d"', ""),
        (True, 'must be a duration in quotes, such as "5min" or "30d"', ""),
        ("9" * 400 + "s", None, ""),
    ],
)
def test_what_is_no_duration(value, said, hint):
    with pytest.raises(PydanticCustomError) as caught:
        parse_duration(value)
    assert caught.value.context is not None
    assert said is None or caught.value.context["reason"] == said
    assert caught.value.context["hint"] == hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200GiB", 200 << 30), ("500MB", 500_000_000), ("64M", 64 << 20), ("1.5 KiB", 1536), ("7B", 7), ("5kB", 5000)],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@given(st.integers(0, (1 << 60) - 1).filter(lambda n: n < 10**15 or n % 1024 == 0))
def test_sizes_survive_being_written(value):
    text = format_size(value)
    if len(re.sub(r"\D", "", text)) <= 15:
        assert parse_size(text) == value


@pytest.mark.parametrize("value", [5, "5", "GiB", "-5GiB", "5 Gib", "2000PiB", "5GiB or so", None])
def test_what_is_no_size(value):
    with pytest.raises(PydanticCustomError):
        parse_size(value)


@pytest.mark.parametrize(("value", "expected"), [("10%", "10%"), ("20GiB", 20 << 30), ("0%", "0%")])
def test_room(value, expected):
    assert parse_room(value) == expected


@pytest.mark.parametrize("value", ["100%", "-1%", "10.5%", "ten", 10])
def test_what_is_no_room(value):
    with pytest.raises(PydanticCustomError):
        parse_room(value)
