"""Whether a log was written at wal_level = minimal for a while: no recovery goes past that.

No server starts so while it has a slot, and none archives so. So the log that is behind what is stored is looked
through where the slot was made later than that, or there is none: what a server writes first at another level is a
record of its settings.
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

LOWERED = "the server has written its log at wal_level = minimal meanwhile, and no recovery goes past that"

_BYTES = 54
_RECORD = re.compile(struct.pack("=II", _BYTES, 0) + rb".{8}[\x60-\x6f]\0\0\0.{4}\xff\x1c.{8}\0{4}.{8}\0{4}", re.DOTALL)
"""XLOG_PARAMETER_CHANGE: of its settings max_wal_senders, the third, and wal_level, the sixth, are 0 then."""
_WAIT_SECONDS, _PIECE = 0.25, 1 << 20

Pieces = Iterable[bytes | memoryview]


def is_lowered(at: int, pieces: Pieces, segment: int) -> bool:
    """Say if the pieces of a log from a place on, in files of `segment` bytes, have such a record."""
    return next(looked_for(_RECORD, _BYTES, at, pieces, segment), None) is not None


def was_lowered(
    address: Address, about: str, segment: int, stretches: Iterable[tuple[int, int, int]], alive: Alive
) -> bool:
    """Say if that is in these stretches of a server's log (timeline, from where, to where).

    Not if it has removed a part of them: whoever goes on there is told so.
    """
    for timeline, at, end in stretches:
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
    """Yield what lies between two places, in files that are `opened` by where they start; up to one that is gone."""
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
