"""Parses moments and durations as people type them."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from dbguardctl.humanize import day_start, utc_text
from dbguardd.errors import Usage
from dbguardd.humanize import absolute

_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("w", "week", "weeks"), 604800),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_DAYS = {"today": 0, "yesterday": -1}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
_OFFSET = re.compile(r"\s*(utc|z|[+-]\d\d:?\d\d)$", re.I)
_TIME = re.compile(r"(?:^|[\sT])\d{1,2}:\d\d(:\d\d)?$", re.I)
_EXAMPLES = "2026-09-12 08:59   '2026-09-12 08:59+02:00'   09:14:07   'yesterday 09:00'   'Sun 04:20'   '3h ago'   now"


def parse_span(text: str) -> float:
    """Return the seconds of a duration: 90s, 2h, 1h30min, 7d. Raises Usage."""
    rest, total = text.strip().lower(), 0.0
    while rest:
        part = _PART.match(rest)
        if part is None or part[2] not in _UNITS:
            raise Usage(f"{text!r} is not a length of time", detail="Write it like 90s, 15min, 2h, 1h30min or 7d.")
        total += float(part[1]) * _UNITS[part[2]]
        rest = rest[part.end() :]
    if not 0 < total < 1e10:
        raise Usage(f"{text!r} is not a length of time", detail="It must be more than nothing and less than 300 years.")
    return total


def parse_moment(text: str, now: datetime, zone: tzinfo | None) -> datetime:
    """Return the aware UTC moment that `text` means in `zone` (None: the zone of this machine).

    A time without a day is today's. A local time that a clock change skips or repeats is refused, because it is
    ambiguous: it needs an offset. Raises Usage, also for a moment in the future.
    """
    try:
        moment = _moment(text.strip(), now, zone)
        moment = None if moment is None else moment.astimezone(UTC)
    except OverflowError:  # the first or last representable day, in another zone
        moment = None
    if moment is None:
        detail = f"Write it like: {_EXAMPLES}"
        if _is_span(text):
            detail = f"Did you mean '{text} ago'? {detail}"
        raise Usage(f"{text!r} is not a moment that dbguardctl understands", detail=detail)
    if moment > now:
        detail = f"It means {absolute(utc_text(moment), zone)}, and now is {absolute(utc_text(now), zone)}."
        if re.fullmatch(r"[\d:.]+", text.strip()) and moment - now < timedelta(days=1):
            detail += f" Did you mean 'yesterday {text.strip()}'?"
        raise Usage(f"{text!r} is in the future", detail=detail)
    return moment


def unit_of(text: str) -> timedelta:
    """Return the unit in which a moment is typed, if as screens show it: a minute or a second; zero for any other."""
    found = _TIME.search(_OFFSET.sub("", text.strip()))
    return timedelta() if found is None else timedelta(seconds=1) if found[1] else timedelta(minutes=1)


def _is_span(text: str) -> bool:
    with suppress(Usage):
        return parse_span(text) > 0
    return False


def _moment(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    words = text.lower().split()
    if words == ["now"]:
        return now
    if len(words) > 1 and words[-1] == "ago":
        return now.replace(microsecond=0) - timedelta(seconds=parse_span(" ".join(words[:-1])))
    try:
        if found := _OFFSET.search(text):
            offset = "Z" if found[1].lower() in ("utc", "z") else found[1]
            local = _local(text[: found.start()], now, zone)
            return None if local is None else datetime.fromisoformat(f"{local.isoformat()}{offset}")
        local = _local(text, now, zone)
    except ValueError:
        return None
    return local if local is None or local.tzinfo else _aware(local, zone, text)


def _local(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    """Return the moment without its zone; None if it is none. Raises ValueError, too."""
    words = text.lower().split()
    day, clock = _day(words, now.astimezone(zone).date())
    if len(clock) > 1 or not words:
        return datetime.fromisoformat(text)
    midnight = day_start(now, zone, day)
    local = _clock(clock[0], midnight) if clock else midnight
    return datetime.fromisoformat(text) if local is None and len(words) == 1 else local


def _day(words: list[str], today: date) -> tuple[int, list[str]]:
    """Return the day that words begin with, in days from today, and the words after it; without a day, today.

    It is written as `status` and `list` show it: today, yesterday, Sun, 12 Sep, 12 Sep 2025. Raises ValueError.
    """
    if not words:
        return 0, words
    if words[0] in _DAYS:
        return _DAYS[words[0]], words[1:]
    for number, name in enumerate(_WEEKDAYS):
        if words[0] in (name, name[:3]):
            return -((today.weekday() - number) % 7), words[1:]
    for number, name in enumerate(_MONTHS, start=1):
        if words[0].isdecimal() and words[1:2] in ([name], [name[:3]]):
            named = words[2:3] if words[2:] and re.fullmatch(r"\d{4}", words[2]) else []
            found = date(int(named[0]) if named else today.year, number, int(words[0]))
            if not named and found > today:
                found = found.replace(year=today.year - 1)
            return (found - today).days, words[2 + len(named) :]
    return 0, words


def _clock(text: str, midnight: datetime) -> datetime | None:
    if not re.fullmatch(r"\d{1,2}:\d\d(:\d\d(\.\d{1,6})?)?", text):
        return None
    try:
        return datetime.combine(midnight, time.fromisoformat(text.zfill(len(text) + text.index(":") % 2)))
    except ValueError:
        return None


def _aware(local: datetime, zone: tzinfo | None, text: str) -> datetime:
    first, second = (
        (moment.replace(tzinfo=zone) if zone else moment.astimezone()) for moment in (local, local.replace(fold=1))
    )
    back = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0)
    if back != local.replace(fold=0):
        raise Usage(f"{text!r} does not exist: the clocks went forward then", detail="Add the offset, as +02:00.")
    if first.utcoffset() != second.utcoffset():
        raise Usage(
            f"{text!r} occurred twice: the clocks went back then",
            detail=f"Say which: {local:%Y-%m-%d %H:%M:%S}{first:%z} or {local:%Y-%m-%d %H:%M:%S}{second:%z}.",
        )
    return first
