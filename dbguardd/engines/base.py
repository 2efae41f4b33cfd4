"""What an engine is: a record of the things that one kind of database can do.

An engine runs in the engine half of a worker, as the owner of the database, without keys, repository or network beyond
its server. It knows the seam (Sink, Tree) and nothing behind it. All methods raise only errors of dbguardd.errors.
`progress(step, done_bytes, total_bytes)` is called at least every second; it raises Cancelled when the job is to end,
so an engine only has to clean up on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.flow import Facts, LogSink, Pages, Sink, Tree
from dbguardd.frozen import frozen

Progress = Callable[[str, int, int | None], None]
FindRestorePoint = Callable[[Tree, str, Progress], tuple[int, datetime] | None]
"""Returns the position and the time of the last restore point with that name in the log of a Tree."""
OpenBackup = TypeVar("OpenBackup", contravariant=True)  # noqa: PLC0105 - the field of its kind

REPLACED = "replaced"
"""The fact of an error of replace() that occurred after the live database had been replaced."""


@frozen
class Finding:
    """One check and its outcome: ok, failed, inconclusive or not configured."""

    name: str
    outcome: str
    detail: str = ""


@frozen
class Probe:
    """What is there, found without changing anything."""

    version: str
    size_bytes: int
    facts: Facts
    warnings: tuple[str, ...] = ()  # sentences for people: a vulnerable library, a network file system
    findings: tuple[Finding, ...] = ()  # what a backup or its proof will need, and whether it is there


@frozen
class ProofQuery:
    """A proof query: its single value must be in [min, max], or equal `equals`."""

    sql: str
    min: float | None = None
    max: float | None = None
    equals: str | float | None = None
    why: str = ""
    database: str = ""  # on a server with many databases: the one to query


@frozen
class Examination:
    """What the engine found in a restored database."""

    findings: Sequence[Finding]
    fingerprint: Fingerprint | None
    facts: Facts = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no check failed or was inconclusive."""
        return all(finding.outcome in ("ok", "not configured") for finding in self.findings)


def judge(name: str, query: ProofQuery, value: object) -> Finding:
    """Return whether the single value of a proof query is right, as a finding.

    A wrong text is reported only by its length.
    """
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
    """Return a number as it is, and only the length of a text or of bytes."""
    match value:
        case str():
            return f"a text of {len(value)} character{'s' * (len(value) != 1)}"
        case bytes():
            return f"{len(value)} byte{'s' * (len(value) != 1)}"
        case _:
            return repr(value)


class Snapshots(Protocol):
    """Backups of one database: what every engine can do."""

    def probe(self) -> Probe:
        """Report what is there. Changes nothing."""

    def dump(self, sink: Sink, progress: Progress, *, compared: bool = True) -> Facts:
        """Write a consistent backup of the live database into `sink`; return the facts that restore() must know.

        The fact `snapshot_at` (RFC 3339, with time zone) is the moment of the backup. The database stays usable
        meanwhile. The same snapshot then stays available to fingerprint() until release(), unless `compared` is false
        because no restore will be compared with it. Whatever happens, release() leaves nothing behind.
        """

    def fingerprint(self, progress: Progress, stored: Tree | None = None) -> Fingerprint | NoFingerprint:
        """Read the snapshot of the last dump() through the engine's own interface, and return its content.

        `stored` is the backup made from it, for an engine that read the live database in place: that may have changed
        since.
        """

    def release(self) -> None:
        """Release the snapshot of the last dump() with all its temporary files. Safe to call at any time."""

    def restore(
        self, tree: Tree, target: Path, progress: Progress, places: Mapping[str, str] | None = None
    ) -> Sequence[str]:
        """Rebuild the database at `target`, which must not exist; durable on return.

        `places` are new places for parts outside the main directory (tablespaces), by name or former place. Returns, in
        words, which permissions of the original (owner, ACL ...) could not be set. On failure nothing is left there.
        Never touches the live database.
        """

    def examine(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Examination:
        """Open a restored database, run the engine's own checks and the proof queries, and take its fingerprint."""

    def check_unused(self) -> None:
        """Raise TargetInUse if a process uses the live database, like replace(); do nothing if there is no database."""

    def replace(self, source: Path, progress: Progress) -> None:
        """Make the live database equal to the restored one at `source`, in one atomic step for its users.

        Raises TargetInUse, with nothing changed, if a process uses the live database. If the live database is missing
        it is created. An error after the change has the fact REPLACED.
        """


class LogSource(Protocol):
    """The log of one database, followed while it is written."""

    def follow(self, ship: LogSink, resume: Facts | None) -> None:
        """Ship every commit from now on, or from the place `resume` on if the log still has everything since.

        Never return.

        Writers wait for max_block at most. Raises LogBroken if commits were missed, Unsupported for a database without
        a log, and what `ship` raises.
        """

    def unfollow(self, *, if_short: bool = False) -> None:
        """Release whatever keeps the log for us (a slot, say), because it is no longer followed.

        With `if_short`, only if it is filling the server's disk; then raises NoSpace.
        """


@frozen
class Bounds:
    """The limits of a question. `about`, the start of its error messages, names the database and the backup."""

    about: str
    seconds: float
    rows: int
    bytes: int


class Answer(Protocol):
    """Where the answer to a question goes: bytes, in a form that depends on the question."""

    def write(self, data: bytes, /) -> None: ...

    def beat(self) -> None:
        """Report life, several times a second. Raises Cancelled when the question is to end."""


class Questions(Protocol[OpenBackup]):
    """Questions to backups (query, get, diff, undelete).

    `OpenBackup` is how a backup is read: SQLite's Pages, of which a question reads a few and restores nothing; for
    PostgreSQL a ScratchRestore. The content may be hostile: only the answer is written, no other file is opened, and
    limits end a question. The returned facts say how much was found, never what. Raises Usage (the question is wrong),
    TooCostly, Unsupported, SourceDamaged (it was damaged when it was backed up), and what `asked` and `answer` raise.
    """

    def query(self, asked: OpenBackup, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        """Answer one SELECT: JSON lines in ASCII, first the names of the columns, then each row.

        Facts: rows, more (which limit cut the answer: "rows", "bytes", or None).
        """

    def table(self, asked: OpenBackup, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        """Write one whole table: as the SQL text of its database (form "sql"), or as CSV in UTF-8 ("csv").

        Facts: rows, triggers (the number left out of the text).
        """

    def difference(self, older: OpenBackup, newer: OpenBackup, table: str, bounds: Bounds, answer: Answer) -> Facts:
        """Compare two backups row by row, in one table or (if "") in all.

        The answer is JSON lines in ASCII: {schema: {kind, name, before, after}} for each definition that differs; then
        for each table at most `bounds.rows` lines {table, change: added | removed | changed, key, before, after}, and
        {table: {table, state: same | differs | added | removed | not compared, why, keyed_by, added, removed, changed:
        counts of all rows or None, listed: how many of them have a line}}. Facts: tables, differing, not_compared,
        added, removed, changed, listed.
        """

    def missing(
        self, both: tuple[OpenBackup, OpenBackup], search: tuple[str, str], form: str, bounds: Bounds, answer: Answer
    ) -> Facts:
        """Find rows of a table that are missing from the second backup; `search` is the table and a condition (or "").

        The answer is like that of query() (form "rows"), or SQL that inserts them where no row has their key ("sql").
        For rows with other values: as in difference() ("changed rows"), or SQL ("changed sql"). Facts: rows (all of
        them), listed (at most `bounds.rows`), and, if none is missing, `differing`: the number of rows with other
        values.
        """


@frozen
class ScratchRestore:
    """A backup that was restored for questions: its private directory, and the database to query in it."""

    directory: Path
    database: str


class ServerQuestions(Questions[OpenBackup], Protocol[OpenBackup]):
    """Questions to backups that only a server can read: one is started on a restored copy for the answer."""

    def scratch_restore(self, tree: Tree, place: Path, database: str, progress: Progress) -> ScratchRestore:
        """Restore what questions to `database` ("": the only one) need, into the new private directory `place`.

        Nobody else gets what is there, so it need not be durable. Raises Usage, listing their names, if there are
        several databases and none is named, Unsupported, and SourceDamaged.
        """


class Standby(Protocol):
    """A copy of the database that is kept up to date: consistent for readers at any time, and closed to all writers.

    It is made and changed by one process at a time, and survives the end of that process at any moment. `mark` says how
    far the copy is, in a form that the job defines: it is stored beside the copy, and durable with it. All methods
    raise StandbyChanged, with nothing changed, if another process has written to the copy.
    """

    def found(self, target: Path, progress: Progress) -> Facts | None:
        """Open the copy at `target` and return its mark; None if there is no copy yet.

        The mark has `promoted` if a promotion was begun. Raises TargetExists for a file that is no standby, TargetInUse
        if another process keeps it up to date.
        """

    def make(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> Sequence[str]:
        """Make the copy and open it; see Snapshots.restore."""

    def advance(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        """Apply a part of the log, as the repository's ChangesTree provides it, to the copy in one step.

        Raises TargetInUse while readers prevent it, Damaged if the result is not what the log says.
        """

    def rebase(self, tree: Tree, target: Path, mark: Facts, progress: Progress) -> None:
        """Make the copy equal to another state of the database in one step. Raises TargetInUse like advance()."""

    def promote(self, target: Path, queries: Sequence[ProofQuery], progress: Progress) -> Sequence[Finding]:
        """Check the copy like examine(), and make it an ordinary database that no longer follows.

        Raises ProofFailed, and leaves the copy as it is, if a check failed.
        """


BODY, WAL = "", "log"
"""Parts of a database beside its tablespaces, which are named by their numbers: the rest of it, and its log."""


@frozen
class LiveDisk:
    """A disk that a restore in place writes to: its free bytes, those of the database on it, and what will be there."""

    path: str
    bytes: int
    free_bytes: int
    parts: tuple[str, ...]  # BODY, WAL, and the numbers of tablespaces


@frozen
class LiveState:
    """What is where a restore in place goes: the disks, and whether a restore has begun there."""

    disks: tuple[LiveDisk, ...]
    spare_bytes: int  # of the free bytes of each disk, what must stay free
    begun: bool

    @property
    def bytes(self) -> int:
        """The bytes of the database that is there."""
        return sum(disk.bytes for disk in self.disks)


class DeltaRestore(Protocol):
    """A restore over the live database itself: only differences are written, and no second copy is needed.

    While it is written the database has another name, so that no server finds it. If the restore is killed the database
    stays there, and the next restore continues it. `live` is its place, `facts` are those of the backup. All methods
    raise, with nothing changed, SourceReplaced if another database is at that place, and SourceInvalid if that is
    unknown.
    """

    def inspect(self, live: Path, facts: Facts) -> LiveState:
        """Report what is there. Changes nothing."""

    def check_unused(self, live: Path, facts: Facts) -> None:
        """Raise TargetInUse, with the command that stops it, if a process uses the live database."""

    def save(self, live: Path, facts: Facts, sink: Sink, progress: Progress) -> Facts:
        """Back up the stopped database as it is; see Snapshots.dump. Raises SourceMissing if nothing is there."""

    def overwrite(self, tree: Tree, live: Path, progress: Progress) -> Path:
        """Make it equal to `tree`, durably; return where it is, for Snapshots.examine and publish().

        Raises TargetInUse, also if it was used since save(), and NoSpace before any change; a later error has the fact
        REPLACED.
        """

    def publish(self, live: Path) -> str:
        """Move the result of overwrite() to its place, in one step; return the place."""


@frozen
class Engine:
    """One guarded database. A capability that an engine lacks is None, so the record is the documentation."""

    name: str
    snapshots: Snapshots
    log: LogSource | None = None
    standby: Callable[[], Standby] | None = None  # made where one is kept
    questions: Callable[[], Questions[Pages]] | None = None  # made where it is used: only there is its driver needed
    server_questions: ServerQuestions[ScratchRestore] | None = None
    delta_restore: DeltaRestore | None = None
    find_restore_point: FindRestorePoint | None = None


OpenEngine = Callable[[Mapping[str, Any]], Engine]
"""Makes an Engine from its settings (the JSON form of the policy's table, plus `staging`: a private directory)."""
