"""Checks the names and bytes of objects, as every storage does before anything else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dbguardd.errors import TooLarge, Usage
from dbguardd.storage.base import MAX_OBJECT, Buffer

MAX_PART = 160
"""The longest part of a name; leaves room for the temporary name of a file, which may have 255 bytes."""

_PART = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{MAX_PART - 1}}}", re.ASCII)


def is_part(part: str) -> bool:
    """Return whether `part` may be a part of a name."""
    return _PART.fullmatch(part) is not None


def split_name(name: str) -> list[str]:
    """Return the parts of an object's name. Raises Usage: such a name must not reach a file system."""
    parts = name.split("/")
    if not all(map(is_part, parts)):
        raise Usage(f"{name[:200]!r} is not the name of an object", detail="parts of [A-Za-z0-9._-], no leading dot")
    return parts


def split_prefix(prefix: str) -> tuple[list[str], str]:
    """Return the complete parts of a prefix, and the beginning of the next one. Raises Usage."""
    *parts, start = prefix.split("/")
    if not all(map(is_part, parts)) or (start and not is_part(start)):
        raise Usage(f"{prefix[:200]!r} is not the beginning of a name")
    return parts, start


def as_parts(name: str, data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return `data` as byte views without copying. Raises TooLarge."""
    buffers = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    parts = [memoryview(part).cast("B") for part in buffers]
    if (size := sum(map(len, parts))) > MAX_OBJECT:
        raise TooLarge(f"{name}: too large for one object", detail=f"{size} bytes, at most {MAX_OBJECT}")
    return parts


def as_range(size: int, start: int, length: int | None) -> tuple[int, int] | None:
    """Return offset and length of a range in an object of `size` bytes; None if the object is too short."""
    first = size + start if start < 0 else start
    count = size - first if length is None else length
    return (first, count) if first >= 0 and count >= 0 and first + count <= size else None
