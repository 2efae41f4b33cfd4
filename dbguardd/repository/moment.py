"""A moment between two backups, for reading: a backup with the log since then. Implements flow.Tree.

Images of pages are applied to the backup; bytes of a log are passed to the engine as an additional stream.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, cast

from dbguardd.durable import write_at
from dbguardd.errors import Damaged, ObjectMissing, Usage
from dbguardd.flow import BLOCK_BYTES, LOG, Facts, Pages
from dbguardd.repository.delivery import refused
from dbguardd.repository.joined import joined
from dbguardd.repository.log import Link, StoredLog
from dbguardd.repository.tree import Tree
from dbguardd.rules.chains import BYTES, LogRange
from dbguardd.serialize import to_json
from dbguardd.sums import as_text, file_sum


class MomentTree:
    """Reads a backup with the log applied. Raises like Tree, before a wrong byte gets out."""

    def __init__(
        self, base: Tree, log: StoredLog, until: LogRange, beat: Callable[[int], None] = lambda _: None
    ) -> None:
        self.base, self._log, self._until, self._beat = base, log, until, beat

    @property
    def facts(self) -> Facts:
        return self.base.facts

    def names(self) -> Iterator[str]:
        return self.base.names()

    def read(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a stream for reading from its start, by way of an unnamed file: its pages do not come in order."""
        return _copied(self, name)

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Write the whole stream, as it was at the moment, into the open file; see flow.Tree."""
        size, last = self.base.deliver(name, file, delta=delta), None
        for last in self._links(name):
            for number, page in last.pages():
                _put(name, file, page, (number - 1) * last.page_size)
            if last.size:
                size = last.size
                os.ftruncate(file, size)  # if it grows again, the new part is written, or zeros
        if last is not None and last.sum:
            self._compare(name, file, last)
        return size

    def _compare(self, name: str, file: int, last: Link) -> None:
        """Raise Damaged if the sum of the pages is not that of the database at the moment."""
        total = file_sum(file, last.size, last.page_size, self._beat)
        if as_text(total) != last.sum:
            raise Damaged(
                f"{name}: the backup with the log applied differs from what the database was",
                detail=f"the sum of its pages is {as_text(total)} instead of {last.sum} at segment {last.number}",
                facts={LOG: self._until.chain.id},
            )

    @contextmanager
    def pages(self, name: str) -> Iterator[Pages]:
        """Open a paged stream for random access: flow.Pages. The whole log is read first."""
        with tempfile.TemporaryFile() as file:
            over = MomentPages(self.base.pages(name), file.fileno())
            for link in self._links(name):
                for number, page in link.pages():
                    over.lay(name, number - 1, page)
                if link.size:
                    over.resize(link.size)
            yield over

    def _links(self, name: str) -> Iterator[Link]:
        """Yield the segments of a stream.

        An error in the log says nothing about the backup, so it has the fact LOG. Raises Damaged also if the log ends
        in the middle of a transaction.
        """
        until, whole = self._until, True
        try:
            for link in self._log.links(until.chain, until.after + 1, until.last):
                if link.stream == name:
                    yield link
                    whole = bool(link.size)
            if not whole:
                raise Damaged(f"{name}: the log ends in the middle of a transaction", detail=f"segment {until.last}")
        except (Damaged, ObjectMissing) as error:
            error.facts[LOG] = until.chain.id
            raise


class LogTree:
    """A backup whose streams are followed by one more stream: the bytes of the log since then. Raises like Tree.

    The facts are those of the backup and `moment`: the `stream` of the log, the places `since` and `until` of its ends,
    and the `target` of LogRange.
    """

    def __init__(
        self, base: Tree, log: StoredLog, until: LogRange, beat: Callable[[int], None] = lambda _: None
    ) -> None:
        self.base, self._log, self._until, self._beat = base, log, until, beat
        first, last = self._link(until.after + 1), self._link(until.last)
        moment = {"stream": last.stream, "since": first.since, "until": last.until, "target": to_json(until.target)}
        self.facts: Facts = {**base.facts, "moment": moment}
        self._stream = last.stream

    def names(self) -> Iterator[str]:
        """Yield the names of the streams in the order they were written; the log is the last."""
        yield from self.base.names()
        yield self._stream

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream for reading from its start."""
        if name == self._stream:
            yield joined(self._parts())
        else:
            with self.base.read(name) as file:
                yield file

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Write the whole stream into the open file; see flow.Tree."""
        if name != self._stream:
            return self.base.deliver(name, file, delta=delta)
        size = 0
        for part in self._parts():
            _put(name, file, part, size)
            size += len(part)
        return size

    def _parts(self) -> Iterator[memoryview]:
        """Yield the bytes of one segment after the other. Errors in them have the fact LOG."""
        until, done = self._until, 0
        try:
            for link in self._log.links(until.chain, until.after + 1, until.last):
                if link.form != BYTES or link.stream != self._stream:
                    raise Damaged(f"segment {link.number}: belongs to {link.stream}, not to {self._stream}")
                yield (part := link.content())
                done += len(part)
                self._beat(done)
        except (Damaged, ObjectMissing) as error:
            error.facts[LOG] = until.chain.id
            raise

    def _link(self, number: int) -> Link:
        try:
            (link,) = self._log.links(self._until.chain, number, number)
        except (Damaged, ObjectMissing) as error:
            error.facts[LOG] = self._until.chain.id
            raise
        return link


class ChangesTree:
    """The changes in a part of a log, for a receiver that has everything before it. A flow.Tree with one stream.

    The stream contains pages in the order of the log, each after its number (4 bytes, big-endian); later ones replace
    earlier ones. The facts come from the last segment: page_size, size and sum of the backup's stream at that point.
    """

    def __init__(self, log: StoredLog, until: LogRange, last: Link) -> None:
        self._log, self._until, self._last = log, until, last

    @property
    def facts(self) -> Facts:
        """Facts about the stream that the pages belong to."""
        return {"page_size": self._last.page_size, "size": self._last.size, "sum": self._last.sum}

    def names(self) -> Iterator[str]:
        yield self._last.stream

    def read(self, name: str) -> AbstractContextManager[BinaryIO]:
        return _copied(self, name)

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Write the stream into the open file; see flow.Tree.

        Raises Damaged for a log of mixed streams or page sizes.
        """
        at = 0
        for link in self._log.links(self._until.chain, self._until.after + 1, self._until.last):
            if link.stream != name or link.page_size != self._last.page_size:
                raise Damaged(f"segment {link.number}: belongs to {link.stream}, with pages of {link.page_size} bytes")
            for number, page in link.pages():
                _put(name, file, memoryview(number.to_bytes(4, "big") + page), at)
                at += 4 + link.page_size
        return at


class MomentPages:
    """The pages of a backup, covered by the newest images of a log, which are in a file; flow.Pages."""

    def __init__(self, base: Pages, file: int) -> None:
        self._base, self._file = base, file
        self._places: dict[int, int] = {}  # the place of a page in the file, counted in pages
        self._left = self.size = base.size
        self.page_size = base.page_size

    def lay(self, name: str, page: int, image: memoryview) -> None:
        """Add the image of a page."""
        place = self._places.setdefault(page, len(self._places))
        _put(name, self._file, image, place * self.page_size)

    def resize(self, size: int) -> None:
        """Set the size of the stream; pages of the backup beyond it are no longer visible, even if it grows again."""
        self.size, self._left = size, min(self._left, size)
        for page in [page for page in self._places if page * self.page_size >= size]:
            _put("", self._file, memoryview(bytes(self.page_size)), self._places[page] * self.page_size)

    def block(self, number: int) -> bytes:
        """Return the bytes of a block; see flow.Pages. Raises Usage if it does not exist."""
        start = number * BLOCK_BYTES
        if not 0 <= start < self.size:
            raise Usage(f"there is no block {number}", detail=f"{self.size} bytes")
        data = bytearray(min(BLOCK_BYTES, self.size - start))
        if start < self._left:
            old = self._base.block(number)[: self._left - start]
            data[: len(old)] = old
        for at in range(0, len(data), self.page_size):
            if (place := self._places.get((start + at) // self.page_size)) is not None:
                data[at : at + self.page_size] = os.pread(self._file, self.page_size, place * self.page_size)
        return bytes(data)


@contextmanager
def _copied(tree: MomentTree | ChangesTree, name: str) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        tree.deliver(name, file.fileno())
        file.seek(0)
        yield cast(BinaryIO, file)


def _put(name: str, file: int, page: memoryview, at: int) -> None:
    try:
        write_at(file, page, at)
    except OSError as error:
        raise refused(name, error, f"{len(page)} bytes at {at}") from error
