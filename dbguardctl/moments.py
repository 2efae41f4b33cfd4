"""Parses moments and durations as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, tzinfo

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
_EXAMPLES = "2026-09-12 08:59   '2026-09-12 08:59+02:00'   09:14:07   'yesterday 09:00'   '3h ago'   now"


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
        raise Usage(f"{text!r} is not a moment that dbguardctl understands", detail=f"Write it like: {_EXAMPLES}")
    if moment > now:
        raise Usage(
            f"{text!r} is in the future",
            detail=f"It means {absolute(utc_text(moment), zone)}, and now is {absolute(utc_text(now), zone)}.",
        )
    return moment


def _moment(text: str, now: datetime, zone: tzinfo | None) -> datetime | None:
    words = text.lower().split()
    if words == ["now"]:
        return now
    if len(words) > 1 and words[-1] == "ago":
        return now.replace(microsecond=0) - timedelta(seconds=parse_span(" ".join(words[:-1])))
    day, clock = (words[0], words[1:]) if words and words[0] in _DAYS else ("today", words)
    if len(clock) <= 1:
        local = _clock(clock[0], day_start(now, zone, _DAYS[day])) if clock else day_start(now, zone, _DAYS[day])
        if local is not None and words:
            return _aware(local, zone, text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else _aware(moment, zone, text)


def _clock(text: str, midnight: datetime) -> datetime | None:
    if not re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text):
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
        raise Usage(f"{text!r} does not exist: the clocks were put forward then", detail="Add the offset, as +02:00.")
    if first.utcoffset() != second.utcoffset():
        raise Usage(
            f"{text!r} happened twice: the clocks were put back then",
            detail=f"Say which: {local:%Y-%m-%d %H:%M:%S}{first:%z} or {local:%Y-%m-%d %H:%M:%S}{second:%z}.",
        )
    return first
