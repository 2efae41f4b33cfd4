"""ULIDs: the ids of backups, logs and jobs. 26 letters that sort by creation time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(now: datetime, randomness: Callable[[int], bytes], after: str = "") -> str:
    """Return a new ULID: 48 bits of milliseconds, 80 random bits.

    It sorts after the ULID `after`, whatever the clock says.
    """
    milliseconds = max(int(now.timestamp() * 1000), _milliseconds(after) + 1)
    value = milliseconds << 80 | int.from_bytes(randomness(10), "big")
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def born(id: str) -> datetime:
    """Return the creation time of a ULID. Raises ValueError if it is none."""
    return datetime.fromtimestamp(_milliseconds(id) / 1000, UTC)


def _milliseconds(id: str) -> int:
    found = 0
    for letter in id[:10]:
        found = found << 5 | _ALPHABET.index(letter)
    return found
