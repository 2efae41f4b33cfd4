"""What the socket answers, and its limits; what it is asked for is in requests.py. Standard library only.

Answers are JSON objects with a `schema` member; times are RFC 3339 in UTC and end in `_at`, numbers carry their unit in
the name, unknown is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dbguardd.states import Grade, Health, JobState

API_VERSION = 1
MAX_REQUEST_BYTES = 1 << 20


@dataclass(slots=True)
class BackupRow:
    """One backup, as `list` and `show` tell it."""

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
    excluded: list[str] = field(default_factory=list)  # the first of those tables
    excluded_tables: int = 0  # of which the policy has left out the rows
    left_out: list[str] = field(default_factory=list)  # the first of what else was not read: databases, files
    failure: str | None = None  # why the last verification failed, or a check since then; None if it did not
    verified_at: str | None = None  # when it was last looked at


@dataclass(slots=True)
class ExpiredRow:
    """One backup that the policy gave up and that is not yet deleted, as `list --all` tells it."""

    backup: BackupRow
    expired_at: str
    recall_until_at: str | None  # `recall` brings it back until then; unknown is null


@dataclass(slots=True)
class Stretch:
    """A stretch of time of which any moment can be restored, as `list` tells it; or one in so many seconds.

    The next one goes on from there, or there is a gap between them.
    """

    since_at: str
    until_at: str
    grain_seconds: int = 0


@dataclass(frozen=True, slots=True)
class LogProof:
    """When the log of a database last passed a test restore, and as it was at which moment; when one last failed."""

    proven_at: str | None = None
    moment_at: str | None = None
    failed_at: str | None = None
    failure: str | None = None


@dataclass(slots=True)
class JobRow:
    """One job. `result` and `problem` are there when it has ended; `job list` leaves the results out."""

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
    """Something that happened; `id` grows, so a reader can resume after the last one it saw."""

    id: int
    at: str
    event: str  # noun.verb, from the documented list
    database: str | None
    job: str | None
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventRange:
    """Which events are asked for: those between two ids (neither included), since one moment and before another."""

    after: int = 0
    before: int | None = None
    since: str | None = None
    until: str | None = None
    database: str | None = None
    job: str | None = None


@dataclass(slots=True)
class DatabaseStatus:
    """What can be said of one database now."""

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
    log_problem: str | None = None  # why nothing of its log could be restored now
    continuous: bool = False  # its log is followed: recoverable_to_at is then the end of what is stored of that
    log_proof: LogProof | None = None
    excluded: list[str] = field(default_factory=list)  # see BackupRow: of the newest backup
    excluded_tables: int = 0
    left_out: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StorageStatus:
    """What can be said of one storage now."""

    name: str
    url: str
    ok: bool
    free_bytes: int | None
    total_bytes: int | None
    keep_free_bytes: int | None
    stored_bytes: int | None  # null: the repository there was not read yet
    problem: dict[str, Any] | None
    beside: list[str] = field(default_factory=list)  # the databases on the same file system, as far as that can be seen
    reading_job: str | None = None  # the job that reads what is in it


@dataclass(slots=True)
class RecipientStatus:
    """One recovery key that opens the backups, and when somebody last showed that its secret still does."""

    recipient: str
    tested_at: str | None


@dataclass(slots=True)
class KeyStatus:
    """What can be said of one key now."""

    name: str
    kind: str
    recovery: list[str]  # age recipients or "passphrase"; empty: nobody could read the backups without this machine
    recovery_tested_at: str | None  # of whichever recipient was tested last
    recipients: list[RecipientStatus] = field(default_factory=list)  # each with its own test
    known: bool = True  # false: a repository of it was not read yet, and what opens that may be more than `recovery`


@dataclass(slots=True)
class Status:
    """One screen: what could be restored, when that was last proven, how long it takes, what to do."""

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
