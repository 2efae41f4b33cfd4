"""Durations, sizes and shares in the form of the policy: "1h30m", "200GiB", "10%".

The units are those of systemd.time(7), so a year is 365.25 days and a month a twelfth of that. Numbers without a unit
are refused: a timeout of 5 does not show whether it means seconds.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_MICROSECONDS = {
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
    "month": 2_629_800_000_000,
    "y": 31_557_600_000_000,
}
_NAMES = {
    **{name: "ms" for name in ("ms", "msec")},
    **{name: "s" for name in ("s", "sec", "second", "seconds")},
    **{name: "min" for name in ("m", "min", "minute", "minutes")},
    **{name: "h" for name in ("h", "hr", "hour", "hours")},
    **{name: "d" for name in ("d", "day", "days")},
    **{name: "w" for name in ("w", "week", "weeks")},
    **{name: "month" for name in ("month", "months")},
    **{name: "y" for name in ("y", "year", "years")},
}
_BYTES = {"B": 1} | {
    unit: factor
    for power, letter in enumerate("KMGTP", start=1)
    for unit, factor in (
        (f"{letter}iB", 1024**power),
        (letter, 1024**power),
        (f"{letter}B", 1000**power),
        (f"{letter.lower()}B", 1000**power),
    )
}
_TERM = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]+)")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{1,3})")
_SHARE = re.compile(r"(\d{1,2})%")

CENTURY = timedelta(days=36525)
"""The longest duration: a longer one is a mistake."""


def refuse(reason: str, *, hint: str = "") -> PydanticCustomError:
    """Return the error for a value that a setting cannot have; `hint` is what may have been meant."""
    return PydanticCustomError("policy", "{reason}", {"reason": reason, "hint": hint})


def parse_duration(value: Any) -> timedelta:
    """Return the duration that a text like "5min", "100ms" or "1h30m" names. Raises ValueError."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        hint = _with_unit(value) if isinstance(value, int) and not isinstance(value, bool) else ""
        raise refuse('must be a duration in quotes, such as "5min" or "30d"', hint=hint)
    total, at = Decimal(0), 0
    while match := _TERM.match(value, at):
        unit = _NAMES.get(match[2])
        if unit is None:
            raise refuse(f'"{value}": no unit of time is called "{match[2]}"; there are ms, s, min, h, d, w, month, y')
        total += Decimal(match[1]) * _MICROSECONDS[unit]
        at = match.end()
    if at == 0 or value[at:].strip():
        hint = _with_unit(value.strip()) if value.strip().isdigit() else ""
        raise refuse(f'"{value}" is not a duration, such as "5min", "1h30m" or "30d"', hint=hint)
    if total > CENTURY // timedelta(microseconds=1):
        raise refuse(f'"{value}" is longer than 100 years')
    return timedelta(microseconds=int(total))


def _with_unit(number: int | str) -> str:
    """Return what a bare number may mean. The unit cannot be guessed: seconds for max_block would be a disaster."""
    return f'"{number}ms", "{number}s" or "{number}min"'


def format_duration(value: timedelta) -> str:
    """Return the shortest text that parse_duration() reads as `value`: "1h30min"."""
    rest, parts = value // timedelta(microseconds=1), []
    for unit in ("d", "h", "min", "s", "ms"):
        count, rest = divmod(rest, _MICROSECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(value: Any) -> int:
    """Return the bytes that a text like "200GiB", "1.5TB" or "64M" (binary) names. Raises ValueError."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        hint = f'"{value}B"' if isinstance(value, int) and not isinstance(value, bool) else ""
        raise refuse('must be a size in quotes, such as "200GiB" or "500MB"', hint=hint)
    factor = _BYTES.get(match[2])
    if factor is None:
        raise refuse(f'"{value}": no unit of size is called "{match[2]}"; there are B, KiB, MiB, GiB, TiB and kB, MB …')
    size = int(Decimal(match[1]) * factor)
    if size >= 1 << 60:
        raise refuse(f'"{value}" is more than 1024 PiB')
    return size


def format_size(value: int) -> str:
    """Return the shortest text that parse_size() reads as `value`: "200GiB"."""
    for power, letter in reversed(tuple(enumerate("KMGTP", start=1))):
        if value and value % 1024**power == 0:
            return f"{value // 1024**power}{letter}iB"
    return f"{value}B"


def parse_room(value: Any) -> str | int:
    """Return a share of a file system ("10%", unchanged) or a size in bytes. Raises ValueError."""
    if isinstance(value, str) and _SHARE.fullmatch(value.strip()):
        return value.strip()
    try:
        return parse_size(value)
    except PydanticCustomError as error:
        raise refuse('must be a share or a size in quotes, such as "10%" or "20GiB"') from error


def _format_room(value: str | int) -> str:
    return value if isinstance(value, str) else format_size(value)


Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema(
        {
            "x-kind": "duration",
            "type": "string",
            "pattern": r"^(\s*\d+(\.\d+)?\s*[a-z]+)+\s*$",
            "examples": ["5min", "30d"],
        }
    ),
]
"""A length of time."""

Size = Annotated[
    int,
    PlainValidator(parse_size),
    PlainSerializer(format_size),
    WithJsonSchema(
        {"x-kind": "size", "type": "string", "pattern": r"^\d+(\.\d+)?\s*[A-Za-z]{1,3}$", "examples": ["200GiB"]}
    ),
]
"""A number of bytes."""

Room = Annotated[
    str | int,
    PlainValidator(parse_room),
    PlainSerializer(_format_room),
    WithJsonSchema(
        {
            "x-kind": "share or size",
            "type": "string",
            "pattern": r"^(\d{1,2}%|\d+(\.\d+)?\s*[A-Za-z]{1,3})$",
            "examples": ["10%", "20GiB"],
        }
    ),
]
"""A share of a file system, or a number of bytes."""
