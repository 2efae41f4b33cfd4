"""The seam: the one place that a database's bytes cross.

An engine writes a backup into a Sink and reads one back from a Tree. The repository implements both. Neither side
imports the other: jobs join them, in one process (tests) or across two with different privileges (worker/).

A backup is a set of named streams of two kinds. A *flow* stream is a sequence of bytes (a dump, a file): the
repository cuts it by content. A *paged* stream is a file of equal pages (SQLite, DuckDB, a relation): the repository
compares it page by page with the parent backup. Paged data is never pushed through the seam: the engine hands over an
open file, and the repository reads (adopt) or writes (deliver) it with as many threads as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Protocol

Facts = Mapping[str, Any]
"""JSON values that an engine wants to find again: versions, log positions, counts."""


NO_TABLE = "no_table"
"""The fact of an error that asks a backup for a table that is not in it: the name."""

LOG = "log"
"""The fact of an error that is about a log, not about the backup that it goes on from."""


TURNS = "turns"
"""What a place in a log has if the log has left rounds on its way there; see Segment."""


class Sink(Protocol):
    """Where an engine writes one backup."""

    def admit(self, facts: Facts) -> None:
        """Say which of the facts that dump() will return are known already, before anything is read.

        Raises what the backup will be refused for: an hour of copying later it would come to the same.
        """

    def write(self, name: str, *, stamp: str = "") -> AbstractContextManager[BinaryIO]:
        """Open the flow stream `name` for writing; it is kept when the block ends without an exception.

        `stamp` is whatever proves later that the stream has not changed (see reuse).
        """

    def adopt(
        self,
        name: str,
        file: int,
        page_size: int,
        *,
        stamp: str = "",
        filled: Iterable[int] | None = None,
        on_demand: bool = False,
        changing: bool = False,
    ) -> None:
        """Take the paged stream `name` from the open file descriptor `file` and return when all of it was read.

        The file must be a regular file that does not change until this returns; its size need not be a multiple of
        `page_size` (bytes, a power of two from 512 to 65536). The descriptor stays the caller's.

        With `filled` the file is still being written: it has its size, and iterating yields how many bytes, from its
        start, are there for good. It is iterated to its end; what it raises leaves no stream.

        With `on_demand` the next step of `filled` is taken only when the bytes that it adds are wanted, and its end is
        not reached before all were read: the caller watches a live file, and a change makes void all that was read.

        With `changing` others write the file meanwhile, and a log that the engine keeps as well makes it whole again:
        taken are as many bytes as it has now, each page as it is at some moment, half old and half new even, and zeros
        from where it became shorter.
        """

    def reuse(self, name: str, stamp: str) -> bool:
        """Take `name` over from the parent backup if it bears the same stamp; True means: do not send it."""


BLOCK_BYTES = 65536
"""What Pages are read in: SQLite's largest page, and a part of a stream that the repository checks by itself."""


class Pages(Protocol):
    """One paged stream of a finished backup, read wherever one likes: for questions that need a few pages of many."""

    @property
    def size(self) -> int:
        """Bytes of the stream."""

    @property
    def page_size(self) -> int:
        """Bytes of a page."""

    def block(self, number: int) -> bytes:
        """Return the bytes from number * BLOCK_BYTES on, BLOCK_BYTES of them or what there is up to the end.

        Raises Damaged, ObjectMissing before it returns a wrong byte.
        """


class Tree(Protocol):
    """One finished backup, for reading. Raises Damaged before it yields or writes a wrong byte."""

    @property
    def facts(self) -> Facts:
        """What the engine returned from dump()."""

    def names(self) -> Iterator[str]:
        """Yield the names of the streams in the order they were written."""

    def read(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open one stream of either kind for reading from its start. Raises NotFound."""

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Write the whole stream into the open file `file` from offset 0; return its size in bytes.

        Bytes may arrive out of order. The descriptor stays the caller's, and so does making it durable. With `delta`
        the file has another state of the stream, perhaps: it is read, and of a paged stream only those pages are
        fetched and written in which the two differ.
        """


@dataclass(frozen=True, slots=True)
class Images:
    """The newest image of each page that commits changed: what a log comes to.

    They are those of the pages with these ascending `numbers` (from 1), `page_size` bytes each. `size` is what the
    stream has afterwards, in bytes; 0 where it is no moment: in the middle of a transaction, or before all that was
    committed by the `at` of the segment. `sum` is that of all pages of the stream afterwards (sums.as_text), nothing
    where it is not known.
    """

    page_size: int
    size: int
    numbers: Sequence[int] = field(repr=False)
    pages: bytes | bytearray = field(repr=False)
    sum: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a database's log: images of the pages of its paged stream `stream`, or bytes of the log itself.

    `since` and `until` are places in the log: what the engine needs to find them again, and at least a `round` (text)
    and a `position` (a number): in one round of the log, what was committed later has the higher one. Every commit that
    had returned before `at` (UTC) is in this segment or one before.

    Bytes are those of the log from `since` to `until`, and positions count bytes. They may end anywhere; the engine
    that reads them makes a moment of them (see repository.moment). `stream` is then the name under which it reads them.

    Both places are of one round; or the log has left that of `since` for another one, by one turn. Then the bytes are
    those of the new round, from where the old one was left. All turns that led to a place stand in it, oldest first
    (TURNS): [the round, the position where it was left, that up to which it had been stored, when it was left (RFC
    3339)]. What was stored behind the position where a round was left is no part of what follows, and is all that there
    is of a moment before.
    """

    stream: str
    since: Facts
    until: Facts
    at: datetime
    body: Images | bytes | bytearray = field(repr=False)


class LogSink(Protocol):
    """Where an engine puts the log that it follows. Whatever these raise ends the following."""

    def begin(self, place: Facts, *, continued: bool, because: str) -> None:
        """Say where the first segment will begin; `because` tells why the log is not `continued` from before.

        Once, and again after something was found wrong.
        """

    def ship(self, segment: Segment) -> None:
        """Take the next segment; durable on return. Each begins where the one before ended."""

    def audited(self, wrong: str) -> None:
        """Say that all of the live database was compared with its log; after what is `wrong` the log is begun anew."""

    def held(self, log_bytes: int, by: Sequence[str]) -> None:
        """Say how long the log of the database is because others hold it, and `by` whom; by nobody: any more."""

    def reached(self, at: datetime | None) -> None:
        """Say that all that was committed before `at` has been shipped, or only (None) that the engine lives."""
