"""Saves memory: hides modules that libraries load and dbguard never uses, and controls when freed memory goes back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_absent = object()
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_HELD_BYTES = 32 << 20


@contextmanager
def without(name: str) -> Iterator[None]:
    """Make the module `name` look uninstalled to imports within the block."""
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
    """Return freed memory to the kernel: this process is about to wait, and the one that works needs the memory."""
    import ctypes  # noqa: PLC0415 - the client loads this module and never calls this function

    with suppress(AttributeError):  # only glibc keeps so much freed memory
        ctypes.CDLL(None).malloc_trim(0)


def hold_on() -> None:
    """Keep freed memory: allocating the same buffers anew each second takes a quarter of a process's time."""
    import ctypes  # noqa: PLC0415 - as above

    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(threshold, _HELD_BYTES)
