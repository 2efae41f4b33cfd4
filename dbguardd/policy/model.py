"""The policy: every table and key, its default, and one line that describes it.

The line under a key is its documentation, which reference.py reads from here for `config explain` and the JSON schema:
pydantic would do so at each start. A key that is not here is an error. Tables given for a database override those of
its class, and those override [defaults], key by key; a value that is a table itself (keep, retry, objective, proof,
keep_plain) is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from dbguardd.kinds import KINDS
from dbguardd.policy.addresses import server_url, socket_of, sockets_of
from dbguardd.policy.schedule import Schedule, Timetable, parse_schedule
from dbguardd.policy.units import Duration, Room, Size, refuse
from dbguardd.states import Role

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""The pattern for names of databases, classes, storages and keys."""

_ACCOUNT = r"^(group:)?[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?$"
_TABLE = r"^[^.]+(\.[^.]+){1,2}$"
_RECIPIENT = r"^age1[02-9ac-hj-np-z]{58}$"


def _zone(value: Any) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        if isinstance(value, str) and value:
            return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        close = get_close_matches(str(value), sorted(available_timezones()), 1, 0.7) if len(str(value)) < 64 else []
        hint = f'"{close[0]}"' if close else ""
        raise refuse(f'"{value}" is not a time zone, such as "Europe/Berlin" or "UTC"', hint=hint) from error
    raise refuse('must be a time zone in quotes, such as "Europe/Berlin" or "UTC"')


def _absolute(value: str) -> str:
    if not value.startswith("/") or "//" in value or {"..", "."} & set(value.split("/")):
        raise refuse("must be an absolute path without . and .. in it")
    return value.rstrip("/") or "/"


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise refuse("must be longer than nothing")
    return value


def _schedule_or(value: Any, words: Collection[str]) -> Any:
    if isinstance(value, str) and value in words:
        return value
    try:
        return parse_schedule(value)
    except PydanticCustomError as error:
        close = get_close_matches(value, words, 1, 0.5) if isinstance(value, str) else []
        reason, hint = (error.context or {}).get("reason", ""), (error.context or {}).get("hint", "")
        choice = " or ".join(f'"{word}"' for word in words)
        raise refuse(f"{reason}; or {choice}", hint=f'"{close[0]}"' if close else hint) from error


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _at(schedule: str | Schedule) -> str:
    return schedule if isinstance(schedule, str) else schedule.text


Zone = Annotated[
    ZoneInfo, PlainValidator(_zone), PlainSerializer(str), WithJsonSchema({"x-kind": "time zone", "type": "string"})
]
AbsolutePath = Annotated[str, Field(max_length=4096), AfterValidator(_absolute)]
Name = Annotated[str, Field(pattern=NAME)]
Names = Annotated[tuple[Annotated[StrictStr, Field(pattern=NAME)], ...], Field(strict=False)]
Accounts = Annotated[tuple[Annotated[StrictStr, Field(pattern=_ACCOUNT)], ...], Field(strict=False)]
Recipients = Annotated[
    tuple[Annotated[StrictStr, Field(pattern=_RECIPIENT)], ...], BeforeValidator(_as_list), Field(strict=False)
]
ServerUrl = Annotated[str, Field(max_length=4096), AfterValidator(server_url)]
Tables = Annotated[tuple[Annotated[StrictStr, Field(pattern=_TABLE)], ...], Field(strict=False, max_length=1000)]
Words = Annotated[tuple[Annotated[StrictStr, Field(min_length=1)], ...], Field(strict=False, min_length=1)]
Length = Annotated[Duration, AfterValidator(_positive)]
Count = Annotated[int, Field(ge=0, le=1000)]
When = Annotated[
    Schedule | Literal["after-backup", "off"],
    PlainValidator(partial(_schedule_or, words=("after-backup", "off"))),
    PlainSerializer(_at),
    WithJsonSchema(
        {
            "x-kind": '"after-backup", schedule or "off"',
            "type": "string",
            "examples": ["after-backup", "sun 04:00", "off"],
        }
    ),
]


class Table(BaseModel):
    """A table of the policy: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        serialize_by_alias=True,
        title=None,
    )


class Keep(Table):
    """Which backups stay: each that at least one of these asks for."""

    last: Count = 0
    """the newest N backups"""
    hourly: Count = 0
    """one backup for each of the newest N hours that have a backup"""
    daily: Count = 0
    """one backup for each of the newest N days that have a backup"""
    weekly: Count = 0
    """one backup for each of the newest N weeks (from Monday) that have a backup"""
    monthly: Count = 0
    """one backup for each of the newest N months that have a backup"""
    yearly: Count = 0
    """one backup for each of the newest N years that have a backup"""
    within: Length | None = None
    """every backup that is at most this much older than the newest one"""

    @property
    def empty(self) -> bool:
        """True if it asks for no backup."""
        return self.within is None and not any(
            (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        )


class ThinLog(Table):
    """How coarse a log becomes with age."""

    minute: Length | None = None
    """of log older than this, one moment a minute stays"""
    hour: Length | None = None
    """of log older than this, one moment an hour stays"""
    day: Length | None = None
    """of log older than this, one moment a day stays"""

    @property
    def grains(self) -> tuple[tuple[str, timedelta, timedelta], ...]:
        """The levels that are set, finest first: name, length, and the age from which it applies."""
        lengths = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
        return tuple((name, one, age) for name, one in lengths.items() if (age := getattr(self, name)) is not None)


class Retry(Table):
    """What happens after a transient failure."""

    times: Annotated[int, Field(ge=0, le=20)] = 3
    """how often a failed job is tried again before it waits for its next scheduled time"""
    wait: Length = timedelta(minutes=2)
    """how long to wait before the first retry"""
    backoff: Annotated[float, Field(ge=1, le=10)] = 2.0
    """the factor by which each wait is longer than the one before"""


class Objective(Table):
    """The goals for this database; `status` compares them with reality."""

    rpo: Length | None = None
    """the goal for data loss: the greatest age of the newest proven backup"""
    rto: Length | None = None
    """the goal for the restore time, as measured by the last proof"""


class KeepPlain(Table):
    """Plain copies outside the repository: complete, verified files that can be restored with cp."""

    count: Annotated[int, Field(ge=1, le=1000)]
    """how many of the newest plain copies stay"""
    path: AbsolutePath
    """the directory for them; named NAME_YYYYMMDDTHHMMSSZ (_ID if that is taken); `latest` points to a checked one"""


class ProofQuery(Table):
    """A question to a restored database; its single value must be within [min, max], or equal `equals`."""

    sql: Annotated[str, Field(min_length=1, max_length=65536)]
    """the query; it runs read-only in the restored copy, never in the live database"""
    min: int | float | None = None
    """the smallest correct value"""
    max: int | float | None = None
    """the largest correct value"""
    equals: StrictStr | int | float | None = None
    """the only correct value"""
    database: StrictStr = ""
    """the database to query on a server with several; by default the one in url, or the only one"""
    why: str = ""
    """what the query proves, for people"""


class Proof(Table):
    """What "restored correctly" means for this database, beyond the engine's checks and equal content."""

    queries: Annotated[tuple[ProofQuery, ...], Field(strict=False, max_length=100)] = ()
    """questions to the restored copy, each with its correct answer"""


class Settings(Table):
    """The settings of [defaults], [class.NAME] and [database.NAME]."""

    timezone: Zone = ZoneInfo("UTC")
    """the time zone of all schedules, and of the days, weeks and months of `keep`"""
    backup: Timetable = parse_schedule("daily 01:00")
    """when to back up: "daily 01:00", "every 15min", "mon..fri 02:30", "first sun 05:00" or five cron fields"""
    window: Length = timedelta(hours=4)
    """how late a run may start; after that it is overdue"""
    missed: Literal["run-once", "skip"] = "run-once"
    """what to do about runs that were missed for longer than `window`: make up for all of them once, or skip them"""
    jitter: Duration = timedelta(minutes=5)
    """delays runs by up to this much (at most a tenth of the interval); the delay of a database is always the same"""
    verify: When = "after-backup"
    """when to prove the newest backup by a test restore: "after-backup", a schedule, or "off" """
    expire: When = "after-backup"
    """when to delete the backups that `keep` no longer asks for: "after-backup", a schedule, or "off" """
    keep: Keep = Keep(last=3, daily=7, weekly=4, monthly=12)
    """which backups stay: counts of last, hourly, daily, weekly, monthly, yearly; or all `within` a duration"""
    min_proven: Annotated[int, Field(ge=1, le=100)] = 2
    """how many of the newest proven backups are never deleted, whatever `keep` says"""
    continuous: bool | Literal["archive"] = False
    """follow its log, so that any second can be restored: true, within a second; "archive", a file at a time"""
    keep_log: Length = timedelta(days=7)
    """how long the log stays, and each backup in it; of older backups, those that `keep` asks for"""
    thin_log: ThinLog = ThinLog()
    """how coarse the log becomes: `minute`, `hour`, `day`, each an age; beyond the first, one backup a day stays"""
    full_every: Length | None = None
    """store every page again if the newest full backup is older than this; by default, the repository decides"""
    fingerprint_every: Length | None = None
    """read every row for comparison if the newest backup with a fingerprint is older; by default, at each backup"""
    storage: Names = ("local",)
    """the storage for the backups; exactly one in this version"""
    compress: Annotated[str, Field(pattern=r"^zstd:([1-9]|1[0-9])$")] = "zstd:1"
    """the compression, "zstd:1" (fast) to "zstd:19" (small)"""
    key: Name = "main"
    """the key that seals the backups"""
    retry: Retry = Retry()
    """retries after a transient failure: times, wait, backoff"""
    stall_timeout: Length = timedelta(minutes=10)
    """a job without progress for this long is stopped"""
    job_timeout: Length = timedelta(days=1)
    """a job that runs for this long is stopped, whatever its progress"""
    objective: Objective = Objective()
    """the goals: rpo, rto; `status` reports when one is missed"""
    proof: Proof = Proof()
    """what a test restore must show beyond the engine's checks and equal content"""

    @property
    def compress_level(self) -> int:
        """The zstd level."""
        return int(self.compress.removeprefix("zstd:"))


class Database(Settings):
    """A database to protect."""

    engine: Literal["sqlite", "postgresql"]
    """the kind of database: "sqlite" or "postgresql" """
    path: AbsolutePath | None = None
    """the database file (required for SQLite)"""
    url: ServerUrl | None = None
    """the server (required for PostgreSQL): "postgresql:///" is the local one with all its databases"""
    class_: Name | None = Field(default=None, alias="class")
    """the class whose settings override those of [defaults]"""
    method: Literal["pages", "dump"] | None = None
    """how it is read: "pages" (the default for SQLite) stores only changed pages, "dump" (for PostgreSQL) text"""
    exclude: Tables = ()
    """tables whose rows are left out of a dump (PostgreSQL): "schema.table" or "database.schema.table", * for any"""
    checkpoint: Literal["spread", "fast"] = "spread"
    """the checkpoint of a scheduled backup by pages (PostgreSQL): "spread" like the server's own, or "fast" """
    max_block: Length = timedelta(milliseconds=100)
    """how long the application may be kept from writing (SQLite); longer if a WAL has over 32,000 frames"""
    lock_timeout: Duration = timedelta(seconds=5)
    """how long to wait for a lock that the application holds"""
    run_as: Annotated[str, Field(pattern=_ACCOUNT)] | None = None
    """the user who reads the database; by default the owner of the file, or of the server's socket"""
    keep_plain: KeepPlain | None = None
    """plain copies beside the repository (SQLite): count and path"""

    @property
    def way(self) -> str:
        """The method: the configured one, or the default of the engine."""
        return self.method or KINDS[self.engine].methods[0]

    @property
    def source(self) -> str:
        """The path or the address, as written in the policy."""
        return getattr(self, KINDS[self.engine].where) or ""

    @property
    def place(self) -> str | None:
        """The path of the file or the socket, whose owner opens it; None if it is reached over the network."""
        return self.path if self.url is None or KINDS[self.engine].where == "path" else socket_of(self.url)

    @property
    def places(self) -> list[str]:
        """The paths where it may be on this host: a primary and its standbys each have a socket, and one suffices."""
        if self.url is not None and KINDS[self.engine].where == "url":
            return sockets_of(self.url)
        return [self.path] if self.path else []


class Storage(Table):
    """A place for backups."""

    type: Literal["directory"]
    """the kind of storage: "directory" """
    path: AbsolutePath
    """the directory; on another disk than the databases if possible"""
    keep_free: Room = "10%"
    """backups stop before less than this is free on its file system: a share or a size"""
    max_size: Size | None = None
    """backups stop before the storage holds more than this"""
    grace: Duration = timedelta(hours=24)
    """how long the bytes of deleted backups stay, so that a deletion can be undone"""
    sweep: Timetable = parse_schedule("daily 05:00")
    """when to free the space of deleted backups whose grace is over, in the zone of [defaults]"""


class Secret(Table):
    """Where a secret is: set exactly one of these."""

    credential: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")] | None = None
    """the name of a systemd credential"""
    file: AbsolutePath | None = None
    """a file that only its owner may read (0600)"""
    command: Words | None = None
    """a command that prints it: an absolute path and its arguments"""


class Key(Table):
    """Who can open the backups."""

    type: Literal["machine", "passphrase"]
    """"machine": a key that lives on this host; "passphrase": a secret that people know"""
    path: AbsolutePath | None = None
    """the machine key's file; by default machine.key in the state directory"""
    credential: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")] | None = None
    """the systemd credential that is the machine key, instead of a file"""
    secret: Secret | None = None
    """where the passphrase is: { credential = "NAME" }, { file = "/path" } or { command = ["/path", "..."] }"""
    recovery: Recipients = ()
    """age recipients ("age1...") that open the backups when this machine is lost; keep their identities elsewhere"""


class Access(Table):
    """The roles: lists of "USER" and "group:NAME", as the kernel knows them."""

    read: Accounts = ("group:adm",)
    """may see status, backups, jobs, events and the audit log, but not what questions to backups looked for"""
    operate: Accounts = ("group:dbguard",)
    """may also start backups, verifications and restores to new places"""
    admin: Accounts = ("root",)
    """may also restore in place, delete, hold, reload, and use keys"""

    def role(self, user: str, groups: Collection[str]) -> Role | None:
        """Return the highest role of a user who is in these groups; None if the user may not even read."""
        names = {user.removeprefix("group:"), *(f"group:{group}" for group in groups)}
        for role, accounts in ((Role.ADMIN, self.admin), (Role.OPERATE, self.operate), (Role.READ, self.read)):
            if names & set(accounts):
                return role
        return None


class Daemon(Table):
    """The daemon itself."""

    max_jobs: Annotated[int, Field(ge=1, le=64)] = 2
    """how many jobs run at the same time at most"""
