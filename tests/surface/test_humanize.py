"""Numbers and times read as designed, and text from elsewhere is harmless."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbguardctl import humanize
from dbguardctl.views.facts import value
from dbguardd import humanize as shared
from tests.surface.answers import NOW

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1024, "1 KiB"), (3250585, "3.1 MiB"),
        (222298112, "212 MiB"), (1116691497, "1.04 GiB"), (1 << 40, "1 TiB"), (1 << 63, "8 EiB"),
    ],
)  # fmt: skip
def test_size(count: int | None, text: str) -> None:
    assert shared.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"), (0, "0 s"), (0.003, "3 ms"), (0.00001, "1 ms"), (0.4, "0.4 s"), (9.1, "9.1 s"), (9, "9 s"),
        (59.6, "1 m"), (60, "1 m"), (62, "1 m 02 s"), (250, "4 m 10 s"), (21600, "6 h"), (7500, "2 h 05 m"),
        (273600, "3 d 4 h"), (-5, "-5 s"),
    ],
)  # fmt: skip
def test_span(seconds: float | None, text: str) -> None:
    assert shared.span(seconds) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (None, "unknown"), ("nonsense", "unknown"), ("2026-09-12T07:14:05Z", "today 09:14"),
        ("2026-09-11T23:30:00Z", "today 01:30"), ("2026-09-11T00:06:00Z", "yesterday 02:06"),
        ("2026-09-13T00:00:00Z", "tonight 02:00"), ("2026-09-13T10:00:00Z", "tomorrow 12:00"),
        ("2026-09-06T02:20:00Z", "Sun 04:20"), ("2026-08-13T00:00:00Z", "13 Aug 02:00"),
        ("2025-01-13T00:00:00Z", "13 Jan 2025 01:00 +01:00"), ("2026-12-01T00:00:00Z", "1 Dec 01:00 +01:00"),
    ],
)  # fmt: skip
def test_when(moment: str | None, text: str) -> None:
    assert humanize.when(moment, NOW, BERLIN) == text


def test_ages_become_days_and_times_after_a_day() -> None:
    assert humanize.ago("2026-09-12T07:14:05Z", NOW, BERLIN) == "2 s ago"
    assert humanize.ago("2026-09-11T23:14:07Z", NOW, BERLIN) == "8 h ago"
    assert humanize.ago("2026-09-11T00:06:00Z", NOW, BERLIN) == "yesterday 02:06"
    assert humanize.ago(None, NOW, BERLIN) == "never"
    assert humanize.ago("2026-09-12T07:14:09Z", NOW, BERLIN) == "0 s ago"  # the answer took longer than a log needs
    assert humanize.ago("2026-09-12T07:16:09Z", NOW, BERLIN) == "today 09:16"  # the clocks differ


def test_what_is_ahead() -> None:
    assert humanize.ahead("2026-09-12T07:18:08Z", NOW, BERLIN) == "in 4 min"
    assert humanize.ahead("2026-09-12T07:14:00Z", NOW, BERLIN) == "now"
    assert humanize.ahead("2026-09-12T23:00:00Z", NOW, BERLIN) == "tonight 01:00"


def test_every_time_has_a_zone() -> None:
    assert humanize.zone_name(NOW, BERLIN) == "Europe/Berlin (UTC+02:00)"
    assert humanize.zone_name(NOW, UTC) == "UTC"
    assert shared.absolute("2026-09-12T06:59:00Z", BERLIN) == "2026-09-12 08:59:00+02:00"
    assert shared.absolute("2026-12-12T06:59:00Z", BERLIN) == "2026-12-12 07:59:00+01:00"


def test_ids_are_as_short_as_they_may_be() -> None:
    assert humanize.shorten(["01K4YJ3M8R01", "01K4W0000B02"]) == {
        "01K4YJ3M8R01": "01K4YJ3M8R", "01K4W0000B02": "01K4W0000B",
    }  # fmt: skip
    assert humanize.shorten(["01K4YJ3M8R01", "01K4YJ3M8R02"])["01K4YJ3M8R02"] == "01K4YJ3M8R02"
    assert humanize.shorten([]) == {}


def test_the_moment_in_an_id() -> None:
    assert humanize.ulid_at("01ARZ3NDEKTSV4RRFFQ69G5FAV") == "2016-07-30T23:54:10.259000Z"
    assert humanize.ulid_at("app") is None


@given(st.text())
def test_no_text_can_command_a_terminal(text: str) -> None:
    shown = shared.safe(text)
    assert all(char.isprintable() or char.isspace() for char in shown)
    assert not set(shown) & set("\x00\x07\x08\x0b\x1b\x7f\x9b\n\r\u202e\u2028")


def test_harmless_text_stays_as_it_is() -> None:
    assert shared.safe("Grüße, 世界") == "Grüße, 世界"
    assert shared.safe("\x1b[2J\x9b") == "\\x1b[2J\\x9b"


@given(st.integers(631152000000, 4102444800000))
def test_a_moment_survives_the_way_to_the_api(milliseconds: int) -> None:
    aware = datetime.fromtimestamp(milliseconds / 1000, UTC)
    assert shared.parse_utc(humanize.utc_text(aware)) == aware


def test_thousands_of_what_is_counted_are_grouped_and_numbers_that_identify_are_not():
    words = "3 tables, 52020 rows equal, 11598 pages of 4096 bytes; process 15022, uid 10001, 2026-11-27, t1234 rows"
    said = "3 tables, 52,020 rows equal, 11,598 pages of 4 KiB; process 15022, uid 10001, 2026-11-27, t1234 rows"
    assert shared.humanized(words) == said
    assert shared.count(52020, "row") == "52,020 rows"
    shown = {name: value(name, 15022, None) for name in ("pid", "port", "rows", "page_count")}
    assert shown == {"pid": "15022", "port": "15022", "rows": "15,022", "page_count": "15,022"}
