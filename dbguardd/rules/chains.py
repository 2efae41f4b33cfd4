"""What the rules know of a stored log: nearly everything from the names of its objects, the rest by opening a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from datetime import datetime
from typing import Protocol

from dbguardd.facts import LogPosition, Target
from dbguardd.flow import Facts
from dbguardd.frozen import frozen
from dbguardd.ulids import born

BYTES = "bytes"
"""The form of a segment that contains bytes of the log itself, not page images."""


@frozen
class Piece:
    """One object of a log, as its name tells: segments `first` to `last` of a chain, which reach up to `until`."""

    name: str
    chain: str
    first: int
    last: int
    until: datetime
    size: int
    stored_at: datetime
    grain: int = 0  # seconds: it keeps one moment in each period of this length; 0: it keeps every moment

    @property
    def slot(self) -> str:
        """The slot that the object is sealed for."""
        return self.name.rpartition("/")[2].rpartition("-")[0]


@frozen
class Chain:
    """A log without a gap, or the part of it that is left: consecutive pieces."""

    id: str
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def first(self) -> int:
        return self.pieces[0].first

    @property
    def last(self) -> int:
        return self.pieces[-1].last

    @property
    def until(self) -> datetime:
        """The moment that it reaches."""
        return self.pieces[-1].until

    @property
    def begun_at(self) -> datetime:
        """When it was begun."""
        return born(self.id)


class Link(Protocol):
    """One segment of a chain. `size` is 0 if its end is not a consistent moment; see repository.log."""

    @property
    def number(self) -> int: ...  # noqa: D102

    @property
    def at(self) -> datetime: ...  # noqa: D102

    @property
    def since(self) -> Facts: ...  # noqa: D102

    @property
    def until(self) -> Facts: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def form(self) -> str: ...  # noqa: D102

    @property
    def sum(self) -> str: ...  # noqa: D102


def end_of(link: Link) -> LogPosition:
    """Return the place in the log of the database where a segment ends."""
    return LogPosition.read(link.until) or LogPosition("", 0)


@frozen
class LogRange:
    """The segments of a chain between a backup and a moment: those after `after`, up to `last`.

    If the segments contain bytes of a log (`form`), the engine finds the moment in them: `target` defines it.
    """

    chain: Chain
    after: int
    last: int
    form: str = ""
    target: Target = field(default_factory=Target)


@frozen
class LogView:
    """The log of a database: its chains, oldest first, and a function that opens one of their objects.

    A chain with a gap appears as several chains of the same id. open() raises Damaged, ObjectMissing.
    """

    chains: Sequence[Chain]
    open: Callable[[Piece], Sequence[Link]]

    def links(self, chain: Chain, first: int) -> Iterator[Link]:
        """Yield the segments of a chain from the number `first` on."""
        for piece in chain.pieces:
            if piece.last >= first:
                yield from (link for link in self.open(piece) if link.number >= first)

    def end(self, chain: Chain) -> Link:
        """Return the last segment of a chain."""
        return self.open(chain.pieces[-1])[-1]
