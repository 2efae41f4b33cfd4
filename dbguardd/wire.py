"""The answers of the socket, and its limits; the requests are in requests.py. Standard library only.

Answers are JSON objects with a `schema` member; times are RFC 3339 in UTC and end in `_at`, numbers carry their unit in
the name, unknown is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dbguardd.frozen import frozen
from dbguardd.states import Grade, Health, JobState

API_VERSION = 1
MAX_REQUEST_BYTES = 1 << 20


@dataclass(slots=True)
class BackupRow:
    """One backup, as `list` and `show` report it."""

    id: str
    database: str
    engine: str
    created_at: str
    kind: str  # full | incremental
    method: str  # pages | dump
    grade: Grade
    source_bytes: int
    stored_bytes: int
    storage: str
    proven_at: str | None = None
    restore_seconds: float | None = None
    kept_because: list[str] = field(default_factory=list)
    expires_at: str | None = None
    holds: list[str] = field(default_factory=list)
    note: str = ""
    excluded: list[str] = field(default_factory=list)  # the first tables whose rows the policy left out
    excluded_tables: int = 0  # the number of all such tables
    left_out: list[str] = field(default_factory=list)  # the first other omissions: databases, files
    failure: str | None = None  # why the last verification, or a check since then, failed; None if it passed
    verified_at: str | None = None  # when it was last verified or checked


@dataclass(slots=True)
class ExpiredRow:
    """One backup that has expired and is not deleted yet, as `list --all` reports it."""

    backup: BackupRow
    expired_at: str
    recall_until_at: str | None  # until then `recall` brings it back; null if unknown


@dataclass(slots=True)
class CoverageRow:
    """A range of time of which any moment, or one moment every `grain_seconds`, can be restored, as `list` reports it.

    The next range begins where this one ends, or there is a gap between them.
    """

    since_at: str
    until_at: str
    grain_seconds: int = 0


@frozen
class LogProof:
    """The last test restore of a database's log that passed, the moment that it restored, and the last that failed."""

    proven_at: str | None = None
    moment_at: str | None = None
    failed_at: str | None = None
    failure: str | None = None


@dataclass(slots=True)
class JobRow:
    """One job. `result` and `problem` are set when it has ended; `job list` leaves out the results."""

    id: str
    verb: str
    database: str | None
    state: JobState
    actor: str  # "schedule", or the user's name
    request: dict[str, Any]
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None
    attempt: int = 1
    step: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    result: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    stderr_tail: str = ""


@dataclass(slots=True)
class Event:
    """Something that happened; `id` increases, so that a reader can resume after the last event it saw."""

    id: int
    at: str
    event: str  # noun.verb, from the documented list
    database: str | None
    job: str | None
    facts: dict[str, Any]


@frozen
class EventRange:
    """Which events to return: with ids between `after` and `before` (exclusive), from `since` on and before `until`."""

    after: int = 0
    before: int | None = None
    since: str | None = None
    until: str | None = None
    database: str | None = None
    job: str | None = None


@dataclass(slots=True)
class DatabaseStatus:
    """The present status of one database."""

    name: str
    engine: str
    state: Health
    recoverable_to_at: str | None
    recoverable_since_at: str | None
    last_proven_at: str | None
    proven_backup: str | None
    restore_seconds: float | None
    next_run_at: str | None
    next_verb: str | None
    backups: int
    source_bytes: int | None
    rpo_seconds: float | None
    rto_seconds: float | None
    paused_until_at: str | None
    running_job: str | None
    problem: dict[str, Any] | None
    attention: list[str]
    hints: list[str]
    log_problem: str | None = None  # why nothing could be restored from its log now
    continuous: bool = False  # its log is followed: recoverable_to_at is then the end of the stored log
    log_proof: LogProof | None = None
    excluded: list[str] = field(default_factory=list)  # of the newest backup, see BackupRow
    excluded_tables: int = 0
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StorageStatus:
    """The present status of one storage."""

    name: str
    url: str
    ok: bool
    free_bytes: int | None
    total_bytes: int | None
    keep_free_bytes: int | None
    stored_bytes: int | None  # null: the repository in it has not been read yet
    problem: dict[str, Any] | None
    beside: list[str] = field(default_factory=list)  # the databases known to be on the same file system
    reading_job: str | None = None  # the job that reads its repository into the catalog


@dataclass(slots=True)
class RecipientStatus:
    """One recovery key that opens the backups, and when a user last proved that its secret works."""

    recipient: str
    tested_at: str | None


@dataclass(slots=True)
class KeyStatus:
    """The present status of one key."""

    name: str
    kind: str
    recovery: list[str]  # age recipients or "passphrase"; empty: without this machine the backups cannot be read
    recovery_tested_at: str | None  # the latest test of any recipient
    recipients: list[RecipientStatus] = field(default_factory=list)  # each with its own test
    known: bool = True  # false: a repository has not been read yet, and may have more recipients than `recovery`


@dataclass(slots=True)
class Status:
    """What one screen shows: what could be restored, when that was last proven, how long it takes, what to do."""

    schema: str
    version: str
    host: str
    policy_loaded_at: str
    policy_problem: dict[str, Any] | None
    timezone: str
    attention: list[str]
    databases: list[DatabaseStatus]
    storages: list[StorageStatus]
    keys: list[KeyStatus]
