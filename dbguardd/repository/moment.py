"""A moment between two backups, for reading: a backup, and the log since then put over it. A flow.Tree."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from dbguardd.errors import Damaged
from dbguardd.flow import Facts
from dbguardd.repository.delivery import refused
from dbguardd.repository.log import Chain, Log
from dbguardd.repository.tree import Tree


@dataclass(frozen=True, slots=True)
class Until:
    """Which segments of a chain lie between a backup and a moment: those after `after`, up to `last`."""

    chain: Chain
    after: int
    last: int


class MomentTree:
    """Reads a backup with the log put over it. Raises as Tree, before a wrong byte gets out."""

    def __init__(self, tree: Tree, log: Log, until: Until) -> None:
        self._tree, self._log, self._until = tree, log, until

    @property
    def facts(self) -> Facts:
        """What the engine returned from dump()."""
        return self._tree.facts

    def names(self) -> Iterator[str]:
        """Yield the names of the streams in the order they were written."""
        return self._tree.names()

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream for reading from its start: from a nameless copy, because its pages come out of order."""
        with tempfile.TemporaryFile() as file:
            self.deliver(name, file.fileno())
            file.seek(0)
            yield cast(BinaryIO, file)

    def deliver(self, name: str, file: int) -> int:
        """Write the whole stream, as it was at the moment, into the open file; see flow.Tree."""
        size = self._tree.deliver(name, file)
        whole = True
        for link in self._log.links(self._until.chain, self._until.after + 1, self._until.last):
            if link.stream != name:
                continue
            for number, page in link.pages():
                _put(name, file, page, (number - 1) * link.page_size)
            whole = bool(link.size)
            if whole:
                size = link.size
                os.ftruncate(file, size)  # what comes back later comes back written, or as zeros
        if not whole:
            raise Damaged(f"{name}: the log ends in the middle of a transaction", detail=f"segment {self._until.last}")
        return size


def _put(name: str, file: int, page: memoryview, at: int) -> None:
    done = 0
    try:
        while done < len(page):
            done += os.pwrite(file, page[done:], at + done)
    except OSError as error:
        raise refused(name, error, f"{len(page)} bytes at {at}") from error
