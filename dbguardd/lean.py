"""Staying small: what a library loads and we never use, and memory that nothing needs any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_absent = object()
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_HELD_BYTES = 32 << 20


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


def hold_on() -> None:
    """Keep freed memory: who needs the same buffers each second spends a quarter of its time on getting them anew."""
    import ctypes  # noqa: PLC0415 - as above

    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(threshold, _HELD_BYTES)
