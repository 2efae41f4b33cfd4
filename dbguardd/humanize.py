"""Formats numbers, times and text for people: in the log, in `dbguardd run` and in the client."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

UNKNOWN = "unknown"
HIDDEN = "***"
UNTOUCHED = "The live database was not touched."
REPLACING = "The live database was just being replaced: it is whole, either as it was or as restored."
OVERWRITING = (
    "The live database was just being written over: its directory has another name until that is done (.in-restore at "
    "the end), so no server starts on it. The same restore again goes on with it; an undo puts back what was there."
)
"""What an error says about a restore in place that was cut short."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Patterns as text: compiling them takes a process 3 ms, and most need none.
_SECRETS = r"(?is)AGE-SECRET-KEY-[0-9A-Z]+|-----BEGIN [A-Z ]*PRIVATE KEY-----.*"
_COMMAND = r"(sudo )?(\S*dbguardctl|\S*dbguardd|systemctl|chmod|chown|mkdir|install|groupadd|sqlite3|runuser) "
_LOOK = (
    r"(sudo )?\S*(systemctl (status|cat)\b|dbguard(ctl|d)\b(.* --(help|version|dry-run|check-config)\b"
    r"| (status|list|show|log|check|schedule|config (check|diff|show|explain)"
    r"|(job|key|audit|credential) (list|show|watch|verify))\b))"
)
_COUNTED = r"(?<![\w.,:-])\d{4,18}(?= (?:more )?(?:rows?|pages?|tables?|objects?|files?|backups?)\b)"
_HOSTILE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def safe(item: object, keep: str = "") -> str:
    """Return text with control, format and direction characters escaped, except those in `keep`.

    Names, notes and messages come from databases and other users; a terminal must not interpret them.
    """
    text = str(item)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in keep or unicodedata.category(char) not in _HOSTILE else ascii(char)[1:-1] for char in text
    )


def discreet(text: str) -> str:
    """Return text with anything that looks like a secret key hidden: for the output of other programs, and traces."""
    return re.sub(_SECRETS, HIDDEN, text)


def size(count: int | float | None) -> str:
    """Return a number of bytes with three digits and a binary unit: 1.04 GiB."""
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
    """Return a duration in its two largest units: 9 s, 4 m 10 s, 3 d 4 h."""
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


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 database, 6 databases."""
    return f"{grouped(number)} {noun}{'' if number == 1 else 's'}"


def grouped(number: int) -> str:
    """Return how many of something there are, its thousands grouped: 52,020. Numbers that identify stay whole."""
    return f"{number:,}"


def some(names: Sequence[str], whole: int | None = None, most: int = 5) -> str:
    """Return the first `most` of the names, and how many more of the `whole` number there are."""
    more = (len(names) if whole is None else whole) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


def humanized(words: str) -> str:
    """Return words in which 1116691497 bytes become 1.04 GiB, and 52020 rows become 52,020 rows."""
    sized = re.sub(r"\b(\d{4,18}) bytes\b", lambda found: size(int(found[1])), words)
    return re.sub(_COUNTED, lambda found: grouped(int(found[0])), sized)


def hint_word(hint: str) -> str:
    """Return the label of a hint: "fix" for a command that changes something, else "try"."""
    return "fix" if re.match(_COMMAND, hint) and not re.match(_LOOK, hint) else "try"


def parse_utc(text: str | None) -> datetime | None:
    """Return the instant of an RFC 3339 string; None for None, an empty or an invalid string. No offset means UTC."""
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


def absolute(text: str | None, zone: tzinfo | None) -> str:
    """Return a moment in full, with its offset: 2026-09-12 08:59:00+02:00. None as the zone means this machine's."""
    moment = parse_utc(text)
    if moment is None:
        return UNKNOWN
    local = moment.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S}{offset(local)}"
