"""Leaving out what a library loads and we never use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_absent = object()


@contextmanager
def without(name: str) -> Iterator[None]:
    """Make the module `name` look uninstalled to whatever is imported in the block."""
    there = sys.modules.get(name, _absent)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if there is _absent:
            del sys.modules[name]
        else:
            sys.modules[name] = there  # type: ignore[assignment]
