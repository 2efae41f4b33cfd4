"""The sum of a paged stream: eight bytes that show whether it is, page for page, what it should be.

It is the sum, modulo 2^64, of one hash for each page: the first 8 bytes (big-endian) of the BLAKE3 of the page's number
(from 1, 4 bytes, big-endian) and its bytes. No order is in it, so after a change it is known from the old and the new
images of the changed pages alone. It finds what is lost, torn, stale or misplaced by accident. It is no seal: who
can write the database can make another one with the same sum.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

_WRAP = (1 << 64) - 1
_READ_BYTES = 4 << 20


def page_hash(number: int, page: bytes | memoryview) -> int:
    """Return what a page adds to the sum."""
    return int.from_bytes(blake3(number.to_bytes(4, "big") + page).digest(8), "big")


def added(total: int, more: int, less: int = 0) -> int:
    """Return a sum with the hashes of some pages put in and of others taken out."""
    return (total + more - less) & _WRAP


def as_text(total: int) -> str:
    """Return a sum as it is stored: 16 hex digits."""
    return f"{total:016x}"


def file_sum(file: int, size: int, page_size: int, tick: Callable[[int], None], first: bytes = b"") -> int:
    """Return the sum of `size` bytes of an open file; `first` is taken instead of what the file begins with.

    What the file lacks counts as zeros. `tick` is told now and then how many bytes are done.
    """
    total, step = 0, max(1, _READ_BYTES // page_size) * page_size
    for at in range(0, size, step):
        want = min(step, size - at)
        data = os.pread(file, want, at).ljust(want, b"\0")
        if not at and first:
            data = first + data[len(first) :]
        view = memoryview(data)
        for start in range(0, want, page_size):
            total += page_hash((at + start) // page_size + 1, view[start : start + page_size])
        tick(at + want)
    return total & _WRAP
