"""The seam: the only interface through which a database's bytes pass.

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
from dataclasses import field
from datetime import datetime
from struct import unpack_from
from typing import Any, BinaryIO, Protocol

from dbguardd.frozen import frozen

Facts = Mapping[str, Any]
"""JSON values that an engine stores with a backup and reads back later: versions, log positions, counts."""


NO_TABLE = "no_table"
"""A fact of an error: the name of a table that was asked for and is not in the backup."""

ONLY_WHOLE = "only_whole"
"""A fact of an error: the name of a table whose rows cannot be compared, so that only all of it can be taken out."""

LOG = "log"
"""A fact of an error: the error is about a log, not about the backup that the log continues from."""


TURNS = "turns"
"""The member of a place in a log that lists the rounds which the log left on its way there; see Segment."""


BLOCK_BYTES = 65536
"""The unit in which Pages are read: SQLite's largest page, and the part of a stream that the repository verifies."""


class Sink(Protocol):
    """Where an engine writes one backup."""

    def admit(self, facts: Facts) -> None:
        """Pass the facts of dump() that are already known, before anything is read.

        Raises the error for which the backup would be refused later, after the copy was made.
        """

    def parent(self) -> Facts:
        """Return the facts of the parent backup, with which this one is compared; empty if there is none."""

    def write(self, name: str, *, stamp: str = "") -> AbstractContextManager[BinaryIO]:
        """Open the flow stream `name` for writing; it is kept if the block ends without an exception.

        Several streams may be open at a time, all in one thread. Only in between may the other methods be called.

        `stamp` identifies the state of the stream, so that a later backup can see that it has not changed (see reuse).
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
        changed: bytes | None = None,
    ) -> None:
        """Take the paged stream `name` from the open file descriptor `file`; return when all of it was read.

        The file must be a regular file that does not change until this returns; its size need not be a multiple of
        `page_size` (bytes, a power of two from 512 to 65536). The descriptor stays the caller's.

        With `filled` the file is still being written: it already has its final size, and each item is the number of
        bytes from its start that will not change any more. It is iterated to its end; if it raises, no stream is kept.

        With `on_demand`, another process may change the source, which makes everything read so far void. So `filled` is
        advanced only when the bytes that its next item adds are needed, and is exhausted only after all were read.

        With `changing` other processes write the file during the read, and a log that the engine also stores repairs
        the result. The stream gets the file's present size. Each page is as it was at some moment, or torn between two;
        if the file shrinks, the missing part is read as zeros.

        With `changed` the engine knows which blocks (of BLOCK_BYTES) may differ from the parent's stream of this name:
        those whose bit is set, counted from the lowest bit of the first byte. All others need not be read: what the
        parent has there is as good. Blocks that the parent lacks, or for which there is no bit, are read.
        """

    def reuse(self, name: str, stamp: str) -> bool:
        """Take `name` over from the parent backup if its stamp is the same; True means that it need not be sent."""


class Pages(Protocol):
    """One paged stream of a finished backup with random access, for questions that need few of its pages."""

    @property
    def size(self) -> int:
        """The size of the stream in bytes."""

    @property
    def page_size(self) -> int:
        """The size of a page in bytes."""

    def block(self, number: int) -> bytes:
        """Return BLOCK_BYTES bytes from number * BLOCK_BYTES on, fewer at the end of the stream.

        Raises Damaged or ObjectMissing before it returns a wrong byte.
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

        Bytes may arrive out of order. The descriptor stays the caller's, who must also make the file durable. With
        `delta` the file may contain another state of the stream: it is read, and of a paged stream only the pages that
        differ are fetched and written.
        """


NUMBER_BYTES = 4
"""The bytes of a page number in Images."""


@frozen
class Images:
    """The newest image of each page that a part of the log changes.

    `content` has the numbers of the pages (from 1, ascending), 4 bytes each, big-endian, and then their images. `size`
    is the size of the stream in bytes after them; 0 if the images do not form a consistent state: they end in the
    middle of a transaction, or before everything that was committed by the `at` of the segment. `sum` is the sum of all
    pages of the stream after them (sums.as_text), empty if it is not known.
    """

    page_size: int
    size: int
    content: bytes | bytearray | memoryview = field(repr=False)
    sum: str = ""

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self.content) // (NUMBER_BYTES + self.page_size)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the pages."""
        return unpack_from(f">{self.count}I", self.content)

    @property
    def pages(self) -> memoryview:
        """The images, in the order of the numbers."""
        return memoryview(self.content)[self.count * NUMBER_BYTES :]


@frozen
class Segment:
    """A part of a database's log: page images of its paged stream `stream`, or bytes of the log itself.

    `since` and `until` are places in the log. A place holds what the engine needs to find it again, and at least a
    `round` (text) and a `position` (a number): within one round, a later commit has a higher position. Every commit
    that returned before `at` (UTC) is in this segment or an earlier one.

    If the body is bytes, they are the log from `since` to `until`, and positions count bytes. They may end anywhere;
    the engine that reads them turns them into a moment (see repository.moment), and reads them under the name `stream`.

    Both places are in one round, or the log left the round of `since` for another one, by one turn. Then the bytes are
    those of the new round, from the position where the old one was left. A place lists all turns that led to it, oldest
    first (TURNS): [the round, the position where it was left, the position up to which it had been stored, when it was
    left (RFC 3339)]. What was stored beyond the position where a round was left is not part of what follows; only a
    moment before the turn can be restored from it.
    """

    stream: str
    since: Facts
    until: Facts
    at: datetime
    body: Images | bytes | bytearray = field(repr=False)


class LogSink(Protocol):
    """Where an engine puts the log that it follows. An error that these methods raise ends the following."""

    def begin(self, place: Facts, *, continued: bool, because: str) -> None:
        """Announce where the first segment will begin; `because` says why the log is not `continued` from before.

        Called once, and again each time that the log must be begun anew.
        """

    def ship(self, segment: Segment) -> None:
        """Store the next segment; durable on return. Each begins where the one before ended."""

    def audited(self, wrong: str) -> None:
        """Report that the whole live database was compared with its log; a fault (`wrong`) makes the log begin anew."""

    def held(self, log_bytes: int, by: Sequence[str]) -> None:
        """Report the size of the database's log while processes (`by`) hold it; an empty `by` means that none does."""

    def reached(self, at: datetime | None) -> None:
        """Report that all commits before `at` have been shipped, or with None only that the engine is alive."""
