"""The facts of a backup: what is said of it beside its bytes. Those that others than their writer read are named here.

An engine returns facts from dump(), the job adds some, and all of them stand in the manifest (dbguard-repository(5)).
What only an engine itself wants to find again, it names itself, and has it from Tree.facts. All are the word of an
engine half: what is not of its kind is as if nobody had said it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from dbguardd.flow import TURNS, Facts

SENT = "replication"
"""The fact `read_by` of a backup whose server has sent its files: they were not on this host."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """The log left a `round` at the position `left`; it was `stored` up to there, or further. `at`: when (RFC 3339)."""

    round: str
    left: int
    stored: int
    at: str


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A place in the log of a database, as everybody compares it; its engine may say more of it. See flow.Segment.

    A backup has the log itself from there up to `end`, if that is known.
    """

    round: str
    position: int
    turns: tuple[Turn, ...] = ()
    end: int | None = None

    @classmethod
    def read(cls, value: Any) -> LogPosition | None:
        """Read what an engine has said; None for what nobody could compare."""
        match value:
            case {"round": str() as round, "position": int() as position}:
                return cls(round, position, turns_in(value), _of(int, value.get("end")))
        return None

    def left(self, round: str) -> int | None:
        """Return the position where the log left a round on its way here; None if it did not."""
        return next((turn.left for turn in self.turns if turn.round == round), None)


def turns_in(place: Facts) -> tuple[Turn, ...]:
    """Return the turns that led to a place, oldest first."""
    return tuple(turn for value in _of(list, place.get(TURNS)) or () if (turn := _turn(value)) is not None)


def _turn(value: Any) -> Turn | None:
    match value:
        case [str() as round, int() as left, int() as stored, str() as at]:
            return Turn(round, left, stored, at)
    return None


@dataclass(frozen=True, slots=True)
class LogStart:
    """Where the stored log goes on from a backup: behind the segment `after` of a chain, which it contains."""

    chain: str
    after: int

    @classmethod
    def read(cls, value: Any) -> LogStart | None:
        """Read the fact `log`; None where no log goes on."""
        match value:
            case {"chain": str() as chain, "after": int() as after}:
                return cls(chain, after)
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """Which moment an engine finds in the bytes of a log. Nothing is said: all that is there."""

    at: str = ""  # then: nothing that was committed later (RFC 3339)
    position: int | None = None  # the one of this place
    lsn: str = ""  # as a person has written that
    name: str = ""  # or: it is the restore point of that name
    backup: Facts = field(default_factory=dict)  # that of a later backup, which has these facts

    @classmethod
    def read(cls, value: Facts) -> Target:
        """Read the `target` of the fact `moment` of a tree."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """The facts of a backup that others than its engine read, by their types. What is not there is empty."""

    # The engine, of any database.
    log_position: LogPosition | None = None  # `log_place`: where in its log the backup is
    snapshot_at: datetime | None = None  # of which moment it is (UTC)
    blocked_seconds: float | None = None  # how long it kept the application waiting
    size_bytes: int = 0  # of the database; of a dump, as it was in its server
    owner: str = ""  # of the file or the directory
    group: str = ""
    # The engine, of what is behind a server.
    directory: str = ""  # where its files are on this host
    system: str = ""  # which cluster it is
    timeline: int | None = None  # of its history
    standby: bool = False  # it was one, and lags
    resting: bool = False  # no server ran: a safety copy of a restore in place
    read_by: str = ""  # its files were read here, or its server has sent them (SENT)
    tablespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # by number: the name, and where it was
    excluded: tuple[str, ...] = ()  # the first of the tables without rows, by the policy
    excluded_count: int = 0  # and how many these are
    left_out: tuple[str, ...] = ()  # the first of what is not in it: databases without a way in, links, unread files
    # jobs/backup.py
    path: str = ""  # where the policy has the file
    log_start: LogStart | None = None  # `log`
    successor: bool = False  # a person says: this is what has become of the one before
    no_fingerprint: str = ""  # why there is none; the engine may say so, too

    @classmethod
    def read(cls, facts: Facts) -> BackupFacts:
        """Read the facts of a manifest, or what an engine has just returned."""

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
