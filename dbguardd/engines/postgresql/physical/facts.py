"""What is stored with a backup of a cluster for its restore and its proof: a part of the facts of its manifest.

Facts that jobs and people read as well are named in dbguardd.facts. They come from an engine half, so an invalid one
makes the backup Damaged before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, field
from typing import Any

from dbguardd.engines.postgresql.physical.history import WalPosition
from dbguardd.engines.postgresql.physical.segments import WalTimeline, format_lsn, parse_lsn
from dbguardd.errors import Damaged, LogBroken
from dbguardd.facts import LogPosition as LogPlace
from dbguardd.facts import Target
from dbguardd.flow import LOG, Facts
from dbguardd.frozen import frozen


@frozen
class Moment:
    """The log that a moment needs on top of its backup: the stream that holds it, its ends, and the target in it."""

    stream: str
    since: WalPosition
    until: WalPosition
    target: Target

    @property
    def log_bytes(self) -> int:
        """The length of that log."""
        return self.until.position - self.since.position

    @classmethod
    def read(cls, value: Facts) -> Moment:
        """Read the fact `moment` of a tree. Raises Damaged, with the fact LOG."""
        with _damaged("the log that continues the backup does not belong to a cluster", {LOG: "moment"}):
            since, until = WalPosition.read(value["since"]), WalPosition.read(value["until"])
            return cls(str(value["stream"]), since, until, Target.read(value["target"]))


@frozen
class ClusterFacts:
    """A backup of a cluster: its origin, its state, where its recovery ends. Places are byte positions in the log."""

    _: KW_ONLY
    # The cluster.
    name: str = ""
    server_version: str
    major: int
    system: int
    page_size: int
    checksums: bool
    segment_bytes: int
    prepared: int  # max_prepared_transactions
    locks: int = 0  # room in the lock table of the server
    superuser: str = ""  # a role that may log in; "" if there is none
    tablespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name and place, by OID
    directory: str = ""  # the data directory, if it is on this host
    service: str = ""  # the systemd unit that runs its server
    owner: str = ""
    # The state.
    started: str = ""  # when the server had started
    timeline: int
    start_lsn: int  # where the log in the backup begins
    stop_lsn: int  # where it makes the copy consistent
    recovery_lsn: int  # recovery ends here, before the next record;
    recovery_record_bytes: int | None = None  # or, if set, after the record at that place, which has this length
    snapshots: Mapping[str, str] = field(default_factory=dict)  # by database, if recovery ends where they were taken
    snapshot_at: str  # the moment of the backup: RFC 3339, or in words
    fingerprint_form: int | None = None
    size_bytes: int
    resting: bool = False  # backed up while stopped: as its server left it
    log_place: LogPlace | None = None  # where a log continues from it
    moment: Moment | None = None  # of a tree that includes further log: what it leads to

    @property
    def restored_bytes(self) -> int:
        """How many bytes a restore writes."""
        return self.size_bytes + (self.moment.log_bytes if self.moment else 0)

    def log(self) -> WalTimeline:
        """Return the log that the backup contains."""
        return WalTimeline(self.system, self.timeline, self.segment_bytes)

    def stored(self) -> Facts:
        """Return the stored form; see read()."""
        return {
            "method": "pages",
            "name": self.name,
            "server_version": self.server_version,
            "major": self.major,
            "system": str(self.system),
            "page_size": self.page_size,
            "checksums": self.checksums,
            "segment_bytes": self.segment_bytes,
            "prepared": self.prepared,
            "locks": self.locks,
            "superuser": self.superuser or None,
            "tablespaces": {number: list(told) for number, told in self.tablespaces.items()},
            "directory": self.directory or None,
            "service": self.service,
            "owner": self.owner or None,
            "timeline": self.timeline,
            "start_lsn": format_lsn(self.start_lsn),
            "stop_lsn": format_lsn(self.stop_lsn),
            "recovery_lsn": format_lsn(self.recovery_lsn),
            "snapshots": dict(self.snapshots),
            "snapshot_at": self.snapshot_at,
            "fingerprint_form": self.fingerprint_form,
            "size_bytes": self.size_bytes,
            **{name: value for name, value in self._if_there() if value},
        }

    def _if_there(self) -> Iterator[tuple[str, Any]]:
        yield "recovery_record_bytes", self.recovery_record_bytes
        yield "resting", self.resting
        yield "started", self.started
        if (at := self.log_place) is not None:
            yield "log_place", {"round": at.round, "end": at.end, "position": at.position}

    @classmethod
    def read(cls, facts: Facts) -> ClusterFacts:
        """Read the facts of a manifest or of a tree. Facts added to the format later may be missing. Raises Damaged."""
        moment, form, record = facts.get("moment"), facts.get("fingerprint_form"), facts.get("recovery_record_bytes")
        with _damaged("the backup does not say what its cluster was", {}):
            return cls(
                name=str(facts.get("name") or ""),
                server_version=str(facts["server_version"]),
                major=int(facts["major"]),
                system=int(facts["system"]),
                page_size=int(facts["page_size"]),
                checksums=bool(facts["checksums"]),
                segment_bytes=int(facts["segment_bytes"]),
                prepared=int(facts["prepared"]),
                locks=int(facts.get("locks") or 0),
                superuser=str(facts["superuser"] or ""),
                tablespaces=_tablespaces(facts.get("tablespaces") or {}),
                directory=str(facts.get("directory") or ""),
                service=str(facts.get("service") or ""),
                owner=str(facts.get("owner") or ""),
                started=str(facts.get("started") or ""),
                timeline=int(facts["timeline"]),
                start_lsn=parse_lsn(str(facts["start_lsn"])),
                stop_lsn=parse_lsn(str(facts["stop_lsn"])),
                recovery_lsn=parse_lsn(str(facts["recovery_lsn"])),
                recovery_record_bytes=None if record is None else int(record),
                snapshots={str(name): str(said) for name, said in (facts.get("snapshots") or {}).items()},
                snapshot_at=str(facts["snapshot_at"]),
                fingerprint_form=None if form is None else int(form),
                size_bytes=int(facts["size_bytes"]),
                resting=facts.get("resting") is True,
                log_place=LogPlace.read(facts.get("log_place")),
                moment=None if moment is None else Moment.read(moment),
            )


def _tablespaces(value: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    found = dict[str, tuple[str, str]]()
    for number, (name, where) in value.items():
        if not number.isdecimal():
            raise ValueError(f"tablespace {number!r}: has no number")
        found[number] = (str(name), str(where))
    return found


@contextmanager
def _damaged(what: str, facts: Facts) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, LogBroken) as error:
        said = f"{type(error).__name__}: {error}"
        raise Damaged(what, detail=said, facts=facts) from error
