"""The facts of a backup: what is recorded about it beside its bytes. This module types those that several parts read.

An engine returns facts from dump(), the job adds some, and all of them are stored in the manifest
(dbguard-repository(5)). A fact that only its engine reads is named there, and the engine gets it back from Tree.facts.
Facts come from an engine half and are not trusted: a value of the wrong type counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime
from typing import Any, TypeVar

from dbguardd.flow import TURNS, Facts
from dbguardd.frozen import frozen

SENT = "replication"
"""The value of the fact `read_by` when the server sent the files of the backup: they need not be on this host."""

T = TypeVar("T")


@frozen
class Turn:
    """The log left a `round` at position `left`, and had been stored to `stored` or further. `at`: when (RFC 3339)."""

    round: str
    left: int
    stored: int
    at: str


@frozen
class LogPosition:
    """A position in the log of a database, in the form that all parts can compare. See flow.Segment.

    The engine may record more about it. If `end` is known, the backup itself contains the log from here to `end`.
    """

    round: str
    position: int
    turns: tuple[Turn, ...] = ()
    end: int | None = None

    @classmethod
    def read(cls, value: Any) -> LogPosition | None:
        """Parse what an engine has recorded; return None if it cannot be compared."""
        match value:
            case {"round": str() as round, "position": int() as position}:
                return cls(round, position, turns_in(value), _of(int, value.get("end")))
        return None

    def left(self, round: str) -> int | None:
        """Return the position at which the log left a round on its way here, or None if it did not."""
        return next((turn.left for turn in self.turns if turn.round == round), None)


def turns_in(place: Facts) -> tuple[Turn, ...]:
    """Return the turns that led to a place, oldest first."""
    return tuple(turn for value in _of(list, place.get(TURNS)) or () if (turn := _turn(value)) is not None)


def _turn(value: Any) -> Turn | None:
    match value:
        case [str() as round, int() as left, int() as stored, str() as at]:
            return Turn(round, left, stored, at)
    return None


@frozen
class LogStart:
    """Where the stored log continues from a backup: after segment `after` of a chain, which the backup contains."""

    chain: str
    after: int

    @classmethod
    def read(cls, value: Any) -> LogStart | None:
        """Parse the fact `log`; return None if no log continues from the backup."""
        match value:
            case {"chain": str() as chain, "after": int() as after}:
                return cls(chain, after)
        return None


@frozen
class Target:
    """The moment to which an engine replays a log. With no field set: to its end."""

    at: str = ""  # up to this moment: nothing that was committed later (RFC 3339)
    position: int | None = None  # up to this position
    lsn: str = ""  # the same position as the user wrote it
    name: str = ""  # up to the restore point of this name
    backup: Facts = field(default_factory=dict)  # up to the moment of a later backup that has these facts

    @classmethod
    def read(cls, value: Facts) -> Target:
        """Parse the `target` in the fact `moment` of a tree."""
        return cls(**value)


@frozen
class BackupFacts:
    """The facts of a backup that other parts than its engine read, with their types. A fact that is absent is empty."""

    # From any engine.
    log_position: LogPosition | None = None  # `log_place`: the position of the backup in the log of its database
    snapshot_at: datetime | None = None  # the moment of the snapshot (UTC)
    blocked_seconds: float | None = None  # how long the backup kept the application waiting
    size_bytes: int = 0  # of the database; for a dump, its size in the server
    owner: str = ""  # of the file or directory
    group: str = ""
    # From an engine of a database server.
    directory: str = ""  # the data directory on this host
    system: str = ""  # the system identifier of the cluster
    timeline: int | None = None  # the timeline of the cluster
    standby: bool = False  # the backup was taken from a standby, which lags
    resting: bool = False  # no server was running: this is the safety copy of a restore in place
    read_by: str = ""  # how the files were read: from this host's disk, or sent by the server (SENT)
    tablespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # by number: name and original location
    excluded: tuple[str, ...] = ()  # the first tables whose rows the policy leaves out
    excluded_count: int = 0  # the number of all such tables
    left_out: tuple[str, ...] = ()  # the first other omissions: databases without access, links, unread files
    # jobs/backup.py
    path: str = ""  # the path of the file in the policy
    log_start: LogStart | None = None  # `log`
    successor: bool = False  # the user said that this database replaces the one backed up before
    no_fingerprint: str = ""  # why there is no fingerprint; an engine may set this, too

    @classmethod
    def read(cls, facts: Facts) -> BackupFacts:
        """Parse the facts of a manifest, or those that an engine has just returned."""

        def text(name: str) -> str:
            return _of(str, facts.get(name)) or ""

        excluded = tuple(str(name) for name in _of(list, facts.get("excluded")) or ())
        return cls(
            log_position=LogPosition.read(facts.get("log_place")),
            snapshot_at=_moment(facts.get("snapshot_at")),
            blocked_seconds=_seconds(facts.get("blocked_seconds")),
            size_bytes=_of(int, facts.get("size_bytes")) or 0,
            owner=text("owner"),
            group=text("group"),
            directory=text("directory"),
            system=text("system"),
            timeline=_of(int, facts.get("timeline")),
            standby=facts.get("standby") is True,
            resting=facts.get("resting") is True,
            read_by=text("read_by"),
            tablespaces=_spaces(facts.get("tablespaces")),
            excluded=excluded,
            excluded_count=_of(int, facts.get("excluded_count")) or len(excluded),
            left_out=tuple(str(name) for name in _of(list, facts.get("left_out")) or ()),
            path=text("path"),
            log_start=LogStart.read(facts.get("log")),
            successor=facts.get("successor") is True,
            no_fingerprint=text("no_fingerprint"),
        )


def _of(kind: type[T], value: Any) -> T | None:
    return value if isinstance(value, kind) else None


def _seconds(value: Any) -> float | None:
    match value:
        case int() | float():
            return float(value)
    return None


def _moment(value: Any) -> datetime | None:
    with suppress(TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(value).astimezone(UTC)
    return None


def _spaces(value: Any) -> dict[str, tuple[str, str]]:
    found = dict[str, tuple[str, str]]()
    for number, told in (_of(dict, value) or {}).items():
        match told:
            case [str() as name, str() as place]:
                found[str(number)] = (name, place)
    return found
