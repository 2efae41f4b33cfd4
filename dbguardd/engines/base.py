"""What an engine is: a record of the things that one kind of database can do.

An engine runs in the engine half of a worker, as the owner of the database, without keys, repository or network
beyond its server. It knows the seam (Sink, Tree) and nothing of what is behind it. All methods raise only errors of
dbguardd.errors. `progress(step, done_bytes, total_bytes)` is called at least each second; it raises Cancelled when the
job is to end, so an engine only has to clean up on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.flow import Facts, Pages, Ship, Sink, Tree

Progress = Callable[[str, int, int | None], None]
Find = Callable[[Tree, str, Progress], tuple[int, datetime] | None]
"""Returns the position of the last restore point of that name in the log of a Tree, and when it was made."""
Asked = TypeVar("Asked", contravariant=True)  # noqa: PLC0105 - the field of its kind

REPLACED = "replaced"
"""The fact of an error of replace() that came when the live database had been replaced already."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and how it ended: ok, failed, inconclusive or not configured."""

    name: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is there, found without changing anything."""

    version: str
    size_bytes: int
    facts: Facts
    warnings: tuple[str, ...] = ()  # sentences for people: a vulnerable library, a network file system
    findings: tuple[Finding, ...] = ()  # what a backup or its proof will need, and whether it is there


@dataclass(frozen=True, slots=True)
class Query:
    """A proof query: its single value must lie in [min, max], or equal `equals`."""

    sql: str
    min: float | None = None
    max: float | None = None
    equals: str | float | None = None
    why: str = ""
    database: str = ""  # of a server with many: the one that is asked


@dataclass(frozen=True, slots=True)
class Examination:
    """What the engine found when it opened a restored database."""

    findings: Sequence[Finding]
    fingerprint: Fingerprint | None
    facts: Facts = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if no check failed and none was inconclusive."""
        return all(finding.outcome in ("ok", "not configured") for finding in self.findings)


def judge(name: str, query: Query, value: object) -> Finding:
    """Say whether the single value that a proof query returned is right. Of what is wrong only its size is told."""
    wrong = ""
    number = value if isinstance(value, int | float) else None
    if query.equals is not None:
        same = number == query.equals if isinstance(query.equals, int | float) else value == query.equals
        wrong = "" if same else f"expected {query.equals!r}"
    if query.min is not None and (number is None or number < query.min):
        wrong = f"expected at least {query.min!r}"
    if query.max is not None and (number is None or number > query.max):
        wrong = f"expected at most {query.max!r}"
    if query.equals is None and query.min is None and query.max is None and value is None:
        wrong = "expected a value"
    why = f" ({query.why})" if query.why else ""
    told = repr(value) if query.equals is not None and not wrong else _size_of(value)
    return Finding(name, "failed", f"{told}, {wrong}{why}") if wrong else Finding(name, "ok", f"{told}{why}")


def _size_of(value: object) -> str:
    """Return a number as it is, and of all else how much it is."""
    match value:
        case str():
            return f"a text of {len(value)} character{'s' * (len(value) != 1)}"
        case bytes():
            return f"{len(value)} byte{'s' * (len(value) != 1)}"
        case _:
            return repr(value)


class Snapshots(Protocol):
    """Backups of one database: the thing that every engine can do."""

    def probe(self) -> Probe:
        """Say what is there. Changes nothing."""

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        """Write a consistent backup of the live database into `sink`; return what restore() must know.

        The fact `snapshot_at` (RFC 3339, with its zone) is the moment that the backup is of.
        The database stays usable meanwhile. Afterwards the same snapshot is still at hand for fingerprint(), until
        release(); unless nobody will ask, because a restore of this backup shall not be `compared`. Whatever happens,
        close() leaves nothing behind.
        """

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        """Read the snapshot that the last dump() wrote, through the engine's own interface, and return its content.

        `stored` is the backup that came of it, for an engine that wrote the live database itself: it may have changed.
        """

    def release(self) -> None:
        """Let go of the snapshot of the last dump(), with all its temporary files. Safe to call at any time."""

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        """Rebuild the database at `target`, which must not exist; durable on return.

        Parts that lay elsewhere go to `places`, by their name or where they were, of an engine that has such. Returns,
        in words, which rights of the original (owner, access list ...) the copy could not be given. On failure nothing
        is left there. Never touches the live database.
        """

    def examine(self, target: Path, queries: Sequence[Query], progress: Progress) -> Examination:
        """Open a restored database, run the engine's own checks and the proof queries, and take its fingerprint."""

    def check_unused(self) -> None:
        """Raise TargetInUse if a process uses the live database, as replace() would; nothing if there is none."""

    def replace(self, source: Path, progress: Progress) -> None:
        """Make the live database equal to the restored one at `source`, as one atomic step for its users.

        Raises TargetInUse if a process uses the live database, and then changes nothing. If the live database is
        missing it is created. An error that comes too late to change nothing has the fact REPLACED.
        """


class Log(Protocol):
    """The log of one database, followed while it is written."""

    def follow(self, ship: Ship, resume: Facts | None) -> None:
        """Ship every commit from now on, or from the place `resume` on if the log still has all since; never returns.

        Writers wait for max_block at most. Raises LogBroken when commits were missed, Unsupported for a database
        without a log, and what `ship` raises.
        """

    def unfollow(self, *, if_short: bool = False) -> None:
        """Release what holds the log for us (a slot, say): it is followed no more.

        With `if_short` only if it takes the last room of the server's disk; then raises NoSpace.
        """


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a question may cost. `about` is what its errors begin with: the database and the backup."""

    about: str
    seconds: float
    rows: int
    bytes: int


class Answer(Protocol):
    """Where the answer to a question goes: bytes, in a form that the question has."""

    def write(self, data: bytes, /) -> None: ...

    def beat(self) -> None:
        """Show life, some times a second. Raises Cancelled when the question is to end."""


class Past(Protocol[Asked]):
    """Questions to backups (query, get, diff, undelete).

    `Asked` is what a backup is read through: its Pages, for SQLite, of which a question reads a few and nothing is
    restored; a Revived server, for PostgreSQL. What is read may be hostile: nothing is written but the answer, no other
    file is opened, and a question ends by its bounds. The facts that are returned say how much was found, never what.
    Raises Usage (the question is wrong), TooCostly, Unsupported, SourceDamaged (it was damaged when it was backed up),
    and what `asked` and `answer` raise.
    """

    def query(self, asked: Asked, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        """Answer one SELECT: JSON lines in ASCII, first the names of the columns, then each row.

        Facts: rows, more (why there are more than that: "rows", "bytes", or None).
        """

    def table(self, asked: Asked, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        """Write one table, all of it: as the text of its database (form "sql"), or as CSV in UTF-8 ("csv").

        Facts: rows, triggers (so many were left out of the text).
        """

    def difference(self, older: Asked, newer: Asked, table: str, bounds: Bounds, answer: Answer) -> Facts:
        """Compare two backups row by row, in one table or ("") in all.

        The answer is JSON lines in ASCII: {schema: {kind, name, before, after}} for each definition that differs; then
        of each table at most `bounds.rows` lines {table, change: added | removed | changed, key, before, after}, and
        {table: {table, state: same | differs | added | removed | not compared, why, keyed_by, added, removed, changed:
        counts of all rows or None, listed: how many of them have a line}}.
        Facts: tables, differing, not_compared, added, removed, changed, listed.
        """

    def missing(
        self, both: tuple[Asked, Asked], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        """Find the rows of a table (and with a condition on them, or "") that the second backup has no more.

        The answer is as that of query() (form "rows"), or SQL that inserts them where nothing has their key ("sql").
        Those with other values: as of difference() ("changed rows"), or SQL ("changed sql"). Facts: rows (all of them),
        listed (at most `bounds.rows`), and `differing`: how many, if none is missing.
        """


@dataclass(frozen=True, slots=True)
class Revived:
    """A backup that was restored to be asked: its private directory, and which database in there is meant."""

    place: Path
    database: str


class Reviving(Past[Asked], Protocol[Asked]):
    """Questions to backups of a server: nothing but a server reads its files, so one is brought back for the answer."""

    def revive(self, tree: Tree, place: Path, database: str, progress: Progress) -> Revived:
        """Bring back what questions to `database` ("": the only one) need, in the new private directory `place`.

        Nobody else is given what is there, so it need not be durable. Raises Usage, with their names, if there are
        several databases and none is named, Unsupported, and SourceDamaged.
        """


class Standby(Protocol):
    """A copy of the database that is kept up to date: whole for its readers at any time, and closed to all writers.

    It is made and changed by one process at a time, and survives the end of that process at any moment. `mark` says
    how far the copy is, in the words of the job that keeps it up to date: it is stored beside the copy, and durable
    with it. All raise StandbyChanged when somebody else has written to the copy, and then change nothing.
    """

    def found(self, target: Path, progress: Progress) -> Facts | None:
        """Open the copy at `target` and return its mark; None if there is no copy yet.

        The mark has `promoted` if a promotion was begun. Raises TargetExists for a file that is no standby, TargetInUse
        if another process keeps it.
        """

    def make(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> Sequence[str]:
        """Make the copy and open it; see Snapshots.restore."""

    def advance(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        """Put a stretch of the log, as the repository's StretchTree has it, over the copy in one step.

        Raises TargetInUse while readers do not let it, Damaged when what comes out is not what the log says.
        """

    def rebase(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        """Make the copy equal to another state of the database in one step. Raises TargetInUse as advance()."""

    def promote(self, target: Path, queries: Sequence[Query], progress: Progress) -> Sequence[Finding]:
        """Check the copy as examine() does, and make it an ordinary database that follows no more.

        Raises ProofFailed, and leaves it as it is, if a check failed.
        """


@dataclass(frozen=True, slots=True)
class Present:
    """What is where a restore in place goes: so many bytes, so many that are free; and if one has begun there."""

    bytes: int
    free_bytes: int
    begun: bool


class DeltaRestore(Protocol):
    """A restore over the live database itself: only what differs is written, and no second copy is needed.

    While it is written the database has another name, under which no server finds it. If the restore is killed the
    database stays there, and the next restore goes on with it. `live` is its place, `facts` are those of the backup.
    All raise SourceReplaced if another database is at that place, SourceInvalid if it cannot be told which, and then
    have changed nothing.
    """

    def present(self, live: Path, facts: Facts) -> Present:
        """Say what is there. Changes nothing."""

    def check_unused(self, live: Path, facts: Facts) -> None:
        """Raise TargetInUse, with the command that ends that, if a process uses the live database."""

    def keep(self, live: Path, facts: Facts, sink: Sink, progress: Progress) -> Facts:
        """Back up what rests there just as it is; see Snapshots.dump. Raises SourceMissing if nothing is there."""

    def overwrite(self, tree: Tree, live: Path, progress: Progress) -> Path:
        """Make it what `tree` has, durable; return where it is, for Snapshots.examine and put().

        Raises TargetInUse, also if used since keep(), and NoSpace before a change; else REPLACED tells of one.
        """

    def put(self, live: Path) -> str:
        """Put what overwrite() has left into its place, in one step; return that."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One guarded database. A capability that an engine lacks is None, so the record is the documentation."""

    name: str
    snapshots: Snapshots
    log: Log | None = None
    standby: Callable[[], Standby] | None = None  # made where one is kept
    past: Callable[[], Past[Pages]] | None = None  # made where it is asked: its driver is needed there only
    reviving: Reviving[Revived] | None = None
    delta_restore: DeltaRestore | None = None
    find: Find | None = None


OpenEngine = Callable[[Mapping[str, Any]], Engine]
"""Makes an Engine from its settings (the JSON form of the policy's table, plus `staging`: a private directory)."""
