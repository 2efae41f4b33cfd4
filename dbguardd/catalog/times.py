"""Moments as text: RFC 3339 in UTC with milliseconds, so that text order is time order."""

from __future__ import annotations

from datetime import UTC, datetime

from dbguardd.errors import Internal


def to_text(moment: datetime) -> str:
    """Return an aware moment as `2026-09-12T06:59:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_moment(text: str) -> datetime:
    """Return the aware moment in UTC of an RFC 3339 text. Raises Internal."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise Internal(f"{text!r} has no time zone")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # in UTC it may fall before the year 1 or after 9999
        raise Internal(f"{text!r} is not a time", detail=str(error)) from error
