"""Where a log was followed to, and by which timelines it came there.

A server that takes over goes on along a new timeline, from some place of the one before: there a log turns. What the
old one has behind that place is no part of the new history, and may be stored all the same: it was sent, and was lost
when another server took over that had less of it. So a place names the turns that led to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.facts import Turn, turns_in
from dbguardd.flow import TURNS, Facts

MOST_TURNS = 20
"""A place has a bound (see worker.remote); a log that turns more often begins anew."""


@dataclass(frozen=True, slots=True)
class WalPosition:
    """A place in the log of a cluster (`round`: see round_of), a digest of the bytes right before it, and its turns."""

    round: str
    position: int
    check: str
    turns: tuple[Turn, ...] = ()

    @property
    def timeline(self) -> int:
        """The timeline that it is on."""
        return timeline_in(self.round)

    def facts(self) -> Facts:
        """Return it as it is stored."""
        told = {"round": self.round, "position": self.position, "check": self.check}
        return {**told, TURNS: [[t.round, t.left, t.stored, t.at] for t in self.turns]} if self.turns else told

    @classmethod
    def read(cls, facts: Facts) -> WalPosition:
        """Read what facts() returned. What another engine has stored under the same name is a place of no cluster."""
        return cls(str(facts["round"]), int(facts["position"]), str(facts.get("check")), turns_in(facts))


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a log that is on one timeline, from a place to a place. `stored` is where what is stored of it ends."""

    timeline: int
    since: int
    until: int
    stored: int


def round_of(cluster: Cluster, timeline: int = 0) -> str:
    """Return within what places of a log are in order, and a backup goes on by it: "cluster/timeline".

    And, if there are tablespaces, a digest of which: the making of one empties a directory of this host where it is
    replayed, so no log goes past that.
    """
    return round_on(cluster.log.system, timeline or cluster.log.timeline, cluster.tablespaces)


def round_on(system: int, timeline: int, tablespaces: Mapping[str, tuple[bytes, str]]) -> str:
    """Return what round_of() does, of what a server says."""
    spaces = sorted((oid, place) for oid, (_name, place) in tablespaces.items())
    digest = f"/{hashlib.sha256(repr(spaces).encode()).hexdigest()[:16]}" if spaces else ""
    return f"{system}/{timeline}{digest}"


def timeline_in(round: str) -> int:
    """Return the timeline of a round; 0 for what is none of a cluster."""
    _system, _, rest = round.partition("/")
    timeline = rest.partition("/")[0]
    return int(timeline) if timeline.isdecimal() else 0


def across(round: str) -> tuple[str, str]:
    """Return what is the same of a round on every timeline: the cluster, and a digest of its tablespaces."""
    system, _, rest = round.partition("/")
    return system, rest.partition("/")[2]


def stretches(since: WalPosition, until: WalPosition) -> Sequence[Stretch]:
    """Return of which parts the log between two places is, in the order in which their bytes are stored."""
    return tuple(_stretches(since, until))


def _stretches(since: WalPosition, until: WalPosition) -> Iterator[Stretch]:
    at = since.position
    for turn in until.turns[len(since.turns) :]:
        yield Stretch(timeline_in(turn.round), at, turn.left, turn.stored)
        at = turn.left
    yield Stretch(until.timeline, at, until.position, until.position)
