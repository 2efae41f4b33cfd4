"""Staying small: what a library loads and we never use, and memory that nothing needs any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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


def give_back() -> None:
    """Return freed memory to the kernel: the process is to wait now, and the one that works needs it."""
    import ctypes  # noqa: PLC0415 - the client, which never calls this, loads the module

    with suppress(AttributeError):  # only glibc keeps so much
        ctypes.CDLL(None).malloc_trim(0)
