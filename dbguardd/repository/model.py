"""What a repository knows: backups, proofs, holds, and the results of sweeps and checks. Plain values.

A Backup is exactly its stored manifest (canonical JSON, sealed): nothing about a backup comes from anywhere else.
Whether it has expired, is held or was proven is in records beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import Any

from dbguardd.facts import BackupFacts
from dbguardd.frozen import frozen


@frozen
class Root:
    """The place of the root of a stream's map: the name of a pack (hex) and the number of a frame in it."""

    pack: str
    frame: int


@frozen
class Stream:
    """One stream of a backup. `kind` is paged or flow; `digest` (hex) is keyed; `size` in bytes."""

    name: str
    kind: str
    size: int
    page_size: int  # 0 for a flow stream
    digest: str
    stamp: str
    root: Root


@frozen
class Backup:
    """One restorable point of one database: its manifest. `kind` is full or incremental."""

    id: str
    database: str
    engine: str
    method: str
    kind: str
    created_at: datetime
    parent: str | None
    raw_facts: Mapping[str, Any] = field(repr=False)
    note: str
    streams: tuple[Stream, ...] = field(repr=False)
    source_bytes: int
    stored_bytes: int
    packs: int
    tool_version: str
    seq: int

    @property
    def facts(self) -> BackupFacts:
        """The facts that other code than its engine reads."""
        return BackupFacts.read(self.raw_facts)


@frozen
class Proof:
    """The result of one test restore of a backup. `findings` are JSON objects of the steps that were taken."""

    backup: str
    at: datetime
    grade: str
    restore_seconds: float | None
    findings: tuple[Mapping[str, Any], ...]
    tool_version: str
    number: int = 0  # increases with each proof of a backup, whatever the clock says; assigned when it is stored


@frozen
class Hold:
    """Why a backup may not be deleted, who said so and when."""

    backup: str
    reason: str
    actor: str
    at: datetime


@frozen
class Expired:
    """A backup that is invisible and will be swept. `at` is the storage's own time of the tomb."""

    backup: str
    reasons: tuple[str, ...]
    at: datetime


@frozen
class StorageFinding:
    """Something that a check found, or did not look at.

    `severity` is damage (a backup cannot be restored in full), warning (untidy, no backup is affected) or unseen (what
    this check did not look at). `object` is the name of the stored object; `backups` are the ids that need it.
    """

    severity: str
    object: str
    message: str
    backups: tuple[str, ...] = ()


@frozen
class Swept:
    """What a sweep did, or would do. Bytes are bytes in the storage."""

    backups: tuple[str, ...] = ()  # deleted now: their grace was over
    objects: int = 0  # all objects deleted now
    bytes: int = 0
    marked: int = 0  # packs that got a tomb now
    marked_bytes: int = 0
    young: int = 0  # unneeded packs younger than the grace: left by a failed job, or of a backup being made
    young_bytes: int = 0
    waiting: int = 0  # packs whose tomb is younger than the grace
    kept: int = 0  # packs that became needed again after their tomb was written
    next_at: datetime | None = None  # when the oldest waiting tomb is due, by the storage's clock
    dry_run: bool = False


def encode(value: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def rfc3339(moment: datetime) -> str:
    """Return a time as text, UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """Parse what rfc3339() returned. Raises ValueError."""
    return datetime.fromisoformat(text)


def manifest(backup: Backup) -> dict[str, Any]:
    """Return the manifest of a backup as stored."""
    streams = [
        {
            "digest": stream.digest,
            "kind": stream.kind,
            "name": stream.name,
            "page_size": stream.page_size,
            "root": {"frame": stream.root.frame, "pack": stream.root.pack},
            "size": stream.size,
            "stamp": stream.stamp,
        }
        for stream in backup.streams
    ]
    return {
        **{name: getattr(backup, name) for name in _PLAIN},
        "created_at": rfc3339(backup.created_at),
        "facts": dict(backup.raw_facts),
        "streams": streams,
    }


_PLAIN = (
    *("id", "database", "engine", "method", "kind", "parent", "note"),
    *("source_bytes", "stored_bytes", "packs", "tool_version", "seq"),
)


def backup_from(body: Mapping[str, Any]) -> Backup:
    """Parse a manifest. Raises KeyError, TypeError or ValueError if it is none."""
    streams = tuple(
        Stream(
            *(stream["name"], stream["kind"], stream["size"], stream["page_size"], stream["digest"], stream["stamp"]),
            Root(stream["root"]["pack"], stream["root"]["frame"]),
        )
        for stream in body["streams"]
    )
    plain = {name: body[name] for name in _PLAIN}
    return Backup(**plain, created_at=moment(body["created_at"]), raw_facts=body["facts"], streams=streams)
