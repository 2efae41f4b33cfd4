"""How far a log was followed, and along which timelines.

A server that takes over continues on a new timeline, from some place of the old one: there the log turns. WAL that the
old server wrote after that place is not part of the new history. It may still be stored: it was sent, and lost when a
server that had less of it took over. So a place records the turns that led to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.facts import Turn, turns_in
from dbguardd.flow import TURNS, Facts
from dbguardd.frozen import frozen

OTHER_SPACES = "its tablespaces are others than before, or lie elsewhere"
"""Why no log continues: replaying that would not lead to the same cluster. A standby may have them elsewhere."""

MOST_TURNS = 20
"""A place has a size limit (see worker.remote). A log with more turns begins anew."""


@frozen
class WalPosition:
    """A place in the log of a cluster (`round`: see round_of), a digest of the bytes before it, and its turns."""

    round: str
    position: int
    check: str
    turns: tuple[Turn, ...] = ()

    @property
    def timeline(self) -> int:
        """The timeline of this place."""
        return timeline_in(self.round)

    def facts(self) -> Facts:
        """Return the stored form."""
        told = {"round": self.round, "position": self.position, "check": self.check}
        return {**told, TURNS: [[t.round, t.left, t.stored, t.at] for t in self.turns]} if self.turns else told

    @classmethod
    def read(cls, facts: Facts) -> WalPosition:
        """Read what facts() returned. A place stored by another engine belongs to no cluster."""
        return cls(str(facts["round"]), int(facts["position"]), str(facts.get("check")), turns_in(facts))


@frozen
class TimelineRange:
    """A part of a log on one timeline, between two places. `stored` is where its stored bytes end."""

    timeline: int
    since: int
    until: int
    stored: int


def round_of(cluster: Cluster, timeline: int = 0) -> str:
    """Return the round within which places of a log are ordered and a log continues from a backup: "cluster/timeline".

    A digest of the tablespaces is added if there are any: replaying the creation of one empties a directory of this
    host, so no log continues past it.
    """
    return round_on(cluster.log.system, timeline or cluster.log.timeline, cluster.tablespaces)


def round_on(system: int, timeline: int, tablespaces: Mapping[str, tuple[bytes, str]]) -> str:
    """Return what round_of() returns, from single values."""
    spaces = sorted((oid, place) for oid, (_name, place) in tablespaces.items())
    digest = f"/{hashlib.sha256(repr(spaces).encode()).hexdigest()[:16]}" if spaces else ""
    return f"{system}/{timeline}{digest}"


def timeline_in(round: str) -> int:
    """Return the timeline of a round; 0 if it is not one of a cluster."""
    _system, _, rest = round.partition("/")
    timeline = rest.partition("/")[0]
    return int(timeline) if timeline.isdecimal() else 0


def across(round: str) -> tuple[str, str]:
    """Return the part of a round that is the same on every timeline: the cluster, and the digest of its tablespaces."""
    system, _, rest = round.partition("/")
    return system, rest.partition("/")[2]


def timeline_ranges(since: WalPosition, until: WalPosition) -> Sequence[TimelineRange]:
    """Return the parts of the log between two places, in the order in which their bytes are stored."""
    return tuple(_timeline_ranges(since, until))


def _timeline_ranges(since: WalPosition, until: WalPosition) -> Iterator[TimelineRange]:
    at = since.position
    for turn in until.turns[len(since.turns) :]:
        yield TimelineRange(timeline_in(turn.round), at, turn.left, turn.stored)
        at = turn.left
    yield TimelineRange(until.timeline, at, until.position, until.position)
