"""What crosses the socket: every request and every answer. Standard library only; all that dbguardctl imports.

A request's docstring is its help, its fields are its options: the command line, the API with its OpenAPI description
and the man page are made from them. Answers are JSON objects with a `schema` member; times are RFC 3339 in UTC and
end in `_at`, numbers carry their unit in the name, unknown is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dbguardd.states import Grade, Health, JobState

API_VERSION = 1
MAX_REQUEST_BYTES = 1 << 20
UNDO_REASON = "restore undo"
"""Why the state is held that a restore in place has replaced."""


def option(text: str, default: Any = "") -> Any:
    """A request field with its help text; bool fields become flags, a field named `database` an argument."""
    return field(default=default, metadata={"help": text})


# ------------------------------------------------------------------------------------------------ requests: jobs


@dataclass(frozen=True, slots=True)
class Request:
    """What every job request has in common: nothing but being one."""


@dataclass(frozen=True, slots=True)
class Backup(Request):
    """Back up a database now."""

    database: str
    full: bool = option("store every page again instead of only what changed", False)
    verify: bool = option("prove the backup by a test restore right away, whatever the policy says", False)
    note: str = option("a remark that is kept with the backup")
    successor: bool = option("the server is what has become of the cluster that was backed up (pg_upgrade)", False)


@dataclass(frozen=True, slots=True)
class Verify(Request):
    """Restore a backup into a private place, compare it with what was backed up, and record the proof."""

    database: str
    backup: str = option("id of the backup, or its first characters; the newest if not given")


@dataclass(frozen=True, slots=True)
class Restore(Request):
    """Restore a database to a new place; the live one is only replaced with --in-place."""

    database: str
    backup: str = option("id of the backup, or its first characters")
    at: str = option("the moment to go back to: '2026-09-12 08:59', 'yesterday 09:00', '5 min ago'")
    lsn: str = option("the place in the log of a PostgreSQL cluster to go back to: 16/B374D848")
    name: str = option("the restore point of a PostgreSQL cluster to go back to, by its pg_create_restore_point()")
    to: str = option("path of the restored database, which must not exist; if not given, beside the live one")
    tablespace: str = option(
        "where tablespaces of a PostgreSQL cluster go: OLD=NEW, several with commas; else below it"
    )
    in_place: bool = option("replace the live database; keeps its present state for `restore undo`", False)
    confirm: str = option("the name of the database, typed in full: needed for --in-place")
    dry_run: bool = option("print what would be done, and do nothing", False)


@dataclass(frozen=True, slots=True)
class Undo(Request):
    """Put back the state that the last restore --in-place replaced."""

    database: str
    confirm: str = option("the name of the database, typed in full")


@dataclass(frozen=True, slots=True)
class Check(Request):
    """Check settings, database, storage, keys and repository without restoring."""

    database: str
    data: bool = option("read and decrypt every stored byte, not only the structure", False)


@dataclass(frozen=True, slots=True)
class Expire(Request):
    """Delete the backups that the policy's `keep` no longer asks for; each verdict has its reasons."""

    database: str
    dry_run: bool = option("print what would be deleted and why, and delete nothing", False)
    confirm: str = option("the name of the database, to let one run delete more than the breaker allows")


@dataclass(frozen=True, slots=True)
class Sweep(Request):
    """Free the space of expired backups whose grace is over."""

    storage: str
    dry_run: bool = option("print what would be freed, and free nothing", False)
    confirm: str = option("the name of the storage, to let one run free more than the breaker allows")


@dataclass(frozen=True, slots=True)
class Query(Request):
    """Answer one SELECT from a backup, without restoring it."""

    database: str
    sql: str = field(metadata={"help": "one SELECT; it is kept with the job and in the audit log"})
    backup: str = option("id of the backup, or its first characters")
    at: str = option("the newest backup to rely on that is not younger than this: 'yesterday 09:00'")
    in_database: str = option("of a server: the database that is asked; the only one if not given")
    rows: int = option("at most so many rows", 1000)
    seconds: int = option("give up after so many seconds", 60)


@dataclass(frozen=True, slots=True)
class Get(Request):
    """Take one table out of a backup, as SQL text or CSV, without restoring the rest."""

    database: str
    table: str = option("the table; SCHEMA.* is all of a schema of a server")
    backup: str = option("id of the backup, or its first characters")
    at: str = option("the newest backup to rely on that is not younger than this: 'yesterday 09:00'")
    in_database: str = option("of a server: the database that is asked; the only one if not given")
    format: str = option("sql: for the sqlite3 shell, or psql; csv: NULL is nothing, blobs are hex", "sql")
    seconds: int = option("give up after so many seconds", 3600)


@dataclass(frozen=True, slots=True)
class Diff(Request):
    """Compare two backups row by row: what was added, removed and changed between them."""

    database: str
    older: str = option("the backup before: a moment, as 'yesterday 09:00', or the id of a backup")
    newer: str = option("the backup after, said in the same way; the newest to rely on if not given")
    table: str = option("only this table")
    in_database: str = option("of a server: the database that is asked; the only one if not given")
    rows: int = option("list at most so many rows of each table; all are counted", 100)
    seconds: int = option("give up after so many seconds", 3600)


@dataclass(frozen=True, slots=True)
class Undelete(Request):
    """Find rows that a backup has and the newest backup has no more, or not as they were, and write SQL for them."""

    database: str
    table: str = option("the table")
    where: str = option('only rows for which this is true, in SQL: "customer = 7 AND paid"')
    backup: str = option("id of the backup that has the rows, or its first characters")
    at: str = option("the newest backup to rely on that is not younger than this: 'yesterday 09:00'")
    in_database: str = option("of a server: the database that is asked; the only one if not given")
    rows: int = option("show at most so many rows; all are counted", 20)
    changed: bool = option("the rows that are still there with other values, and SQL that sets those back", False)
    sql: bool = option("write the SQL instead of showing the rows; nothing runs it", False)
    seconds: int = option("give up after so many seconds", 3600)


REQUESTS: Mapping[str, type[Request]] = {
    "backup": Backup,
    "verify": Verify,
    "restore": Restore,
    "undo": Undo,
    "check": Check,
    "expire": Expire,
    "sweep": Sweep,
    "query": Query,
    "get": Get,
    "diff": Diff,
    "undelete": Undelete,
}
"""Every verb that is a job, and what it takes. POST /v1/jobs/VERB with the fields as a JSON object."""

NOWHERE = "/nonexistent"
"""The path of a database of which only backups are left: no policy says where it was."""

ENGINE_VERBS = frozenset(("backup", "follow", "verify", "restore", "undo", "check", "standby", "promote"))
"""The verbs whose worker has an engine half, because they open a database, live or restored."""

QUESTION_VERBS = frozenset(("query", "get", "diff", "undelete"))
"""The verbs that ask something of backups as they lie: what is found is an answer beside the job, and kept nowhere."""


# ------------------------------------------------------------------------------------------------ answers


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


_PLAIN = frozenset((str, int, float, bool))


def to_json(value: Any) -> Any:
    """Return answers and requests (dataclasses, lists, mappings of them) as plain JSON values."""
    if value is None or type(value) in _PLAIN:
        return value
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
