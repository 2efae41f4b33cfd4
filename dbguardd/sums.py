"""The sum of a paged stream: eight bytes that show whether every page is what it should be.

It is the sum, modulo 2^64, of one hash for each page: the first 8 bytes (big-endian) of the BLAKE3 of the page's number
(from 1, 4 bytes, big-endian) and its bytes. It does not depend on order, so the sum after a change follows from the old
and the new images of the changed pages alone. It detects pages that are lost, torn, stale or misplaced by accident. It
does not authenticate: a process that can write the database can produce other content with the same sum.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

_WRAP = (1 << 64) - 1
_READ_BYTES = 4 << 20


def page_hash(number: int, page: bytes | memoryview) -> int:
    """Return the contribution of a page to the sum."""
    return int.from_bytes(blake3(number.to_bytes(4, "big") + page).digest(8), "big")


def added(total: int, more: int, less: int = 0) -> int:
    """Return the sum after adding the hashes `more` and removing the hashes `less`."""
    return (total + more - less) & _WRAP


def as_text(total: int) -> str:
    """Return a sum as it is stored: 16 hex digits."""
    return f"{total:016x}"


def file_sum(file: int, size: int, page_size: int, tick: Callable[[int], None], first: bytes = b"") -> int:
    """Return the sum of the first `size` bytes of an open file, with its beginning replaced by `first`.

    Bytes that the file lacks count as zeros. `tick` is called from time to time with the number of bytes done.
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
