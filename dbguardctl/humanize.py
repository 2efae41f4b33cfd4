"""Formats moments and ids for the client: relative to now, in the user's zone, as short as possible."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from dbguardd.humanize import UNKNOWN, absolute, offset, parse_utc, safe
from dbguardd.ulids import born

NEVER = "never"
_SHORTEST_ID = 10  # characters: of a ULID they are its millisecond
_WHILE_SECONDS = 60  # the longest time that an answer may take

_MOMENT = re.compile(r"\b(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?)(?: UTC\b|Z\b)")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def zone_name(now: datetime, zone: tzinfo | None) -> str:
    """Return the zone that times are shown in: CEST (UTC+02:00)."""
    local = now.astimezone(zone)
    name = getattr(zone, "key", "") or local.tzname() or ""
    if name == "UTC":
        return "UTC"
    return f"{safe(name)} (UTC{offset(local)})"


def when(text: str | None, now: datetime, zone: tzinfo | None, *, seconds: bool = False) -> str:
    """Return a moment as a day and a time: today 01:02, Sun 04:20, 12 Sep 02:06.

    The screen names the zone once; a moment on the other side of a clock change shows its own offset.
    """
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    here, local = now.astimezone(zone), moment.astimezone(zone)
    time = f"{local:%H:%M:%S}" if seconds else f"{local:%H:%M}"
    time += "" if local.utcoffset() == here.utcoffset() else f" {offset(local)}"
    days = (local.date() - here.date()).days
    if days == 0:
        return f"today {time}"
    if days == -1:
        return f"yesterday {time}"
    if days == 1:
        return f"tonight {time}" if local.hour < 6 <= here.hour else f"tomorrow {time}"
    if -7 < days < 7:
        return f"{_DAYS[local.weekday()]} {time}"
    year = "" if abs(days) < 300 else f" {local.year}"
    return f"{local.day} {_MONTHS[local.month - 1]}{year} {time}"


def zoned(words: str, now: datetime, zone: tzinfo | None, *, exact: bool = False) -> str:
    """Return a text of the daemon, whose moments are in UTC, with the moments formatted like the rest of the screen.

    With `exact` they keep their seconds and what is below: the moment that was asked for may be one of two in a second.
    """

    def shown(found: re.Match[str]) -> str:
        parts = found[2][8:].rstrip("0.") and found[2][8:]  # below a second: two moments may differ only there
        seconds = exact and (found[2][6:8] not in ("", "00") or bool(parts))
        text = when(f"{found[1]}T{found[2]}Z", now, zone, seconds=seconds)
        return re.sub(r"(\d\d:\d\d:\d\d)", rf"\g<1>{parts}", text) if seconds else text

    return _MOMENT.sub(shown, words)


def dated(words: str, zone: tzinfo | None) -> str:
    """Return a text of the daemon, whose moments are in UTC, with the moments in full in the user's zone."""
    return _MOMENT.sub(lambda found: absolute(f"{found[1]}T{found[2]}Z", zone), words)


def date(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return the day of a moment: 12 Oct, 14 Sep 2025."""
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    local = moment.astimezone(zone)
    year = "" if abs((moment - now).days) < 300 else f" {local.year}"
    return f"{local.day} {_MONTHS[local.month - 1]}{year}"


def ago(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return how long ago a moment was, or the moment itself if that is a day or more.

    The log grows while the daemon answers a client that read the clock before: slightly in the future counts as now.
    """
    moment = parse_utc(text)
    if moment is None:
        return NEVER
    age = (now - moment).total_seconds()
    age = 0 if -_WHILE_SECONDS < age < 0 else age
    return f"{_coarse(age)} ago" if 0 <= age < 86400 else when(text, now, zone)


def ahead(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return when something will happen: in 4 min, tonight 02:00; now if it is due."""
    moment = parse_utc(text)
    if moment is None:
        return NEVER
    rest = (moment - now).total_seconds()
    if rest <= 0:
        return "now"
    return f"in {_coarse(rest)}" if rest < 3600 else when(text, now, zone)


def _coarse(seconds: float) -> str:
    if seconds < 60:
        return f"{int(seconds)} s"
    return f"{int(seconds / 60)} min" if seconds < 3600 else f"{int(seconds / 3600)} h"


def days_ago(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return the age of something in days: today, yesterday, 9 days ago, never."""
    moment = parse_utc(text)
    if moment is None:
        return NEVER
    days = (now.astimezone(zone).date() - moment.astimezone(zone).date()).days
    return "today" if days <= 0 else "yesterday" if days == 1 else f"{days} days ago"


def shorten(ids: list[str]) -> dict[str, str]:
    """Return the shortest prefixes, of ten or more characters, that distinguish the ids."""
    unique = set(ids)
    longest = max((len(id) for id in unique), default=0)
    for length in range(_SHORTEST_ID, longest):
        if len({id[:length] for id in unique}) == len(unique):
            return {id: id[:length] for id in unique}
    return {id: id for id in unique}


def utc_text(moment: datetime) -> str:
    """Return an aware moment in the form of the API: RFC 3339, UTC, ending in Z."""
    moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds" if not moment.microsecond else "microseconds").replace("+00:00", "Z")


def day_start(moment: datetime, zone: tzinfo | None, days: int = 0) -> datetime:
    """Return the naive local midnight of the day `days` after that of `moment`."""
    local = moment.astimezone(zone).replace(tzinfo=None)
    return local.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=days)


def ulid_at(id: str) -> str | None:
    """Return the moment in a ULID as RFC 3339, or None for another text."""
    try:
        return utc_text(born(id)) if len(id) == 26 else None
    except ValueError:
        return None
