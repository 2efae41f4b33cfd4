"""Whether wal_level was minimal at some time: no recovery can continue past that.

A server with a slot, or with archiving on, does not start at that level. So the WAL after the stored log is searched
only if the slot was made later, or there is none. The first record that a server writes at a changed level contains its
settings.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from psycopg import errors

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Address
from dbguardd.engines.postgresql.physical.segments import looked_for
from dbguardd.engines.postgresql.physical.stream import Stream, streaming
from dbguardd.errors import LogBroken

LOWERED = "the server has written its log at wal_level = minimal meanwhile, and no recovery can continue past that"

_BYTES = 54
_RECORD = re.compile(struct.pack("=II", _BYTES, 0) + rb".{8}[\x60-\x6f]\0\0\0.{4}\xff\x1c.{8}\0{4}.{8}\0{4}", re.DOTALL)
"""XLOG_PARAMETER_CHANGE, with max_wal_senders (its third setting) and wal_level (its sixth) equal to 0."""
_WAIT_SECONDS, _PIECE = 0.25, 1 << 20

Pieces = Iterable[bytes | memoryview]


def is_lowered(at: int, pieces: Pieces, segment: int) -> bool:
    """Return whether the pieces of a log from a place on, in files of `segment` bytes, contain such a record."""
    return next(looked_for(_RECORD, _BYTES, at, pieces, segment), None) is not None


def was_lowered(
    address: Address, about: str, segment: int, ranges: Iterable[tuple[int, int, int]], alive: Alive
) -> bool:
    """Return whether these parts of a server's log (timeline, start, end) contain such a record.

    False if the server has removed some of them: the follower finds that out itself.
    """
    for timeline, at, end in ranges:
        with streaming(address, about) as stream, suppress(errors.UndefinedFile):
            stream.start("", timeline, at)
            if is_lowered(at, _sent(stream, end, alive), segment):
                return True
    return False


def _sent(stream: Stream, end: int, alive: Alive) -> Iterator[memoryview]:
    while stream.at < end:
        yield stream.receive(_WAIT_SECONDS)
        alive()


def in_files(opened: Callable[[int], int], at: int, end: int, segment: int) -> Iterator[bytes]:
    """Yield the bytes between two places, from files that `opened` opens by their start; stop at a missing file."""
    while at < end:
        start = at // segment * segment
        try:
            file = opened(start)
        except LogBroken:
            return
        try:
            while at < min(end, start + segment) and (data := os.pread(file, _PIECE, at - start)):
                yield data
                at += len(data)
        finally:
            os.close(file)
