"""Numbers and times as people read them: sizes, spans, moments with their zone, and text made harmless."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta, tzinfo

UNKNOWN = "unknown"
NEVER = "never"

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_HOSTILE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def safe(item: object, keep: str = "") -> str:
    """Return text whose control, format and direction characters are escaped; those in `keep` stay.

    Names, notes and messages come from databases and other people; a terminal must not obey them.
    """
    text = str(item)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keep or unicodedata.category(char) not in _HOSTILE else ascii(char)[1:-1] for char in text
    )


def size(count: int | float | None) -> str:
    """Return bytes with three digits and a binary unit: 1.04 GiB."""
    if count is None:
        return UNKNOWN
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{int(value)} B"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {_UNITS[unit]}"


def span(seconds: float | None) -> str:
    """Return a length of time in its two largest units: 9 s, 4 m 10 s, 3 d 4 h."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0:
        return f"-{span(-seconds)}"
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 10 and round(seconds, 1) != round(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for length, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= length:
            rest = whole % length // smaller
            tail = f" {rest} {name}" if length == 86400 else f" {rest:02d} {name}"
            return f"{whole // length} {unit}{tail if rest else ''}"
    return f"{whole} s"


def parse_utc(text: str | None) -> datetime | None:
    """Return the instant of an RFC 3339 string, None for unknown or for what is no such string."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def offset(moment: datetime) -> str:
    """Return the offset of an aware moment from UTC: +02:00."""
    text = moment.strftime("%z") or "+0000"
    return f"{text[:3]}:{text[3:5]}"


def zone_name(now: datetime, zone: tzinfo | None) -> str:
    """Return the zone that times are shown in: CEST (UTC+02:00)."""
    local = now.astimezone(zone)
    name = getattr(zone, "key", "") or local.tzname() or ""
    if name == "UTC":
        return "UTC"
    return f"{safe(name)} (UTC{offset(local)})"


def absolute(text: str | None, zone: tzinfo | None) -> str:
    """Return a moment in full, with its offset: 2026-09-12 08:59:00+02:00."""
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    local = moment.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S}{offset(local)}"


def when(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return a moment as a day and a time: today 01:02, Sun 04:20, 12 Sep 02:06.

    The screen that shows it names the zone once; a moment on the other side of a change of clocks brings its own
    offset.
    """
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    here, local = now.astimezone(zone), moment.astimezone(zone)
    time = f"{local:%H:%M}" + ("" if local.utcoffset() == here.utcoffset() else f" {offset(local)}")
    days = (local.date() - here.date()).days
    if days == 0:
        return f"today {time}"
    if days == -1:
        return f"yesterday {time}"
    if days == 1:
        return f"tonight {time}" if local.hour < 6 else f"tomorrow {time}"
    if -7 < days < 7:
        return f"{_DAYS[local.weekday()]} {time}"
    year = "" if abs(days) < 300 else f" {local.year}"
    return f"{local.day} {_MONTHS[local.month - 1]}{year} {time}"


def date(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return the day of a moment: 12 Oct, 14 Sep 2025."""
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    local = moment.astimezone(zone)
    year = "" if abs((moment - now).days) < 300 else f" {local.year}"
    return f"{local.day} {_MONTHS[local.month - 1]}{year}"


def humanized(words: str) -> str:
    """Return words in which long numbers of bytes read as sizes: 1116691497 bytes become 1.04 GiB."""
    return re.sub(r"\b(\d{4,18}) bytes\b", lambda found: size(int(found[1])), words)


def ago(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return how long ago a moment was if that is less than a day, and the moment itself if it is more."""
    moment = parse_utc(text)
    if moment is None:
        return NEVER
    age = (now - moment).total_seconds()
    return f"{_coarse(age)} ago" if 0 <= age < 86400 else when(text, now, zone)


def ahead(text: str | None, now: datetime, zone: tzinfo | None) -> str:
    """Return when something will be: in 4 min, tonight 02:00; now if it is due."""
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


def shorten(ids: list[str], least: int = 10) -> dict[str, str]:
    """Return the shortest first characters, `least` or more, by which each id still differs from the others.

    Ten characters of a ULID are its millisecond.
    """
    unique = set(ids)
    longest = max((len(id) for id in unique), default=0)
    for length in range(least, longest):
        if len({id[:length] for id in unique}) == len(unique):
            return {id: id[:length] for id in unique}
    return {id: id for id in unique}


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 database, 6 databases."""
    return f"{number:,}".replace(",", " ") + f" {noun}{'' if number == 1 else 's'}"


def utc_text(moment: datetime) -> str:
    """Return an aware moment as the API takes it: RFC 3339, UTC, ending in Z."""
    moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds" if not moment.microsecond else "microseconds").replace("+00:00", "Z")


def day_start(moment: datetime, zone: tzinfo | None, days: int = 0) -> datetime:
    """Return the naive local midnight of the day `days` after that of `moment`."""
    local = moment.astimezone(zone).replace(tzinfo=None)
    return local.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=days)


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid_at(id: str) -> str | None:
    """Return the moment in a ULID as RFC 3339, None for what is no ULID."""
    if len(id) != 26 or any(char not in _CROCKFORD for char in id[:10]):
        return None
    milliseconds = 0
    for char in id[:10]:
        milliseconds = milliseconds * 32 + _CROCKFORD.index(char)
    return utc_text(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds))
