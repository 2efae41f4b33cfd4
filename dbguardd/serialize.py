"""Converts records to plain JSON values, for the socket, the seam and the pipe of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

_PLAIN = frozenset((str, int, float, bool))


def to_json(value: Any) -> Any:
    """Return dataclasses, and lists and mappings of them, as plain JSON values."""
    if value is None or type(value) in _PLAIN:
        return value
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
