"""Every outcome that dbguard reports on purpose: one class, one row of the table.

An error says what happened (message), what was seen (detail) and what to do (hints: lines to paste into a shell). Its
class says the rest: a stable code, the exit status of a command, the status of an HTTP answer, whether a retry can
help, and what it means for the data. Exit codes, problem objects (RFC 9457), `dbguardctl explain` and
dbguard-errors(7) all derive from this table, so a new error needs only a new row here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

_NAMED = 10  # databases, in the error for one that does not exist
_NAMESPACE = "6a1f3c0e-5d7b-4f0c-9a2e-8b4d1c3f5a70"


class GuardError(Exception):
    """Something that dbguard could not do.

    `message` is one line, starting with the object it is about; `detail` holds the real numbers and names; `hints` are
    commands or orders; `facts` are machine-readable members of the problem object (JSON values, snake_case).
    """

    code: ClassVar[str] = ""
    title: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    transient: ClassVar[bool] = False
    meaning: ClassVar[str] = ""
    advice: ClassVar[str] = ""

    def __init__(
        self, message: str, *, detail: str = "", hints: Sequence[str] = (), facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hints = tuple(hints)
        self.facts: dict[str, Any] = dict(facts or {})

    def advice_for(self) -> str:
        """Return the advice, with NAME replaced by the name of the database if the error knows it."""
        name = self.facts.get("database")
        return self.advice.replace("NAME", name) if isinstance(name, str) and name else self.advice

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem object, the form in which an error crosses pipes and the socket."""
        return {
            **self.facts,
            "type": f"urn:dbguard:error:{self.code}",
            "title": self.title,
            "status": self.http_status,
            "code": self.code,
            "message": self.message,
            "detail": self.detail,
            "retryable": self.transient,
            "hints": list(self.hints),
            "exit_code": self.exit_status,
        }


_MEMBERS = frozenset(("type", "title", "status", "code", "message", "detail", "retryable", "hints", "exit_code"))


def from_problem(problem: Mapping[str, Any]) -> GuardError:
    """Rebuild the error that problem() described; an unknown code becomes an Internal error."""
    kind = OUTCOMES.get(str(problem.get("code")), Internal)
    hints = problem.get("hints")
    return kind(
        str(problem.get("message") or problem.get("title") or "unknown error"),
        detail=str(problem.get("detail") or ""),
        hints=[str(hint) for hint in hints] if isinstance(hints, list) else (),
        facts={key: value for key, value in problem.items() if key not in _MEMBERS},
    )


def bare(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return a problem without its texts, which may quote the request."""
    kept = ("type", "title", "status", "code", "retryable", "exit_code")
    told = {name: problem[name] for name in kept if name in problem}
    return {**told, "message": problem.get("title") or "unknown error", "detail": "", "hints": []}


def message_id(code: str) -> str:
    """Return the journal MESSAGE_ID (32 hex digits) of an outcome."""
    from uuid import UUID, uuid5  # noqa: PLC0415 slow to load, and only the journal needs it

    return uuid5(UUID(_NAMESPACE), code).hex


# ------------------------------------------------------------------------------------------------ 0: asking


class Usage(GuardError):
    """The request is not valid."""

    code, title = "DBG-0001", "Wrong usage"
    exit_status, http_status = 2, 400
    meaning = "Nothing was done."
    advice = "Read the help of the command: dbguardctl COMMAND --help."

    def advice_for(self) -> str:
        """Return nothing: a message about a request explains the mistake, and a hint points to the help."""
        return ""


class DaemonUnreachable(GuardError):
    """The client cannot talk to the daemon."""

    code, title = "DBG-0002", "Cannot reach dbguardd"
    exit_status, http_status, transient = 6, 503, True
    meaning = "The state of the backups is not known; while the daemon is down, no backups are made."
    advice = (
        "Start the service: systemctl start dbguardd; if it does not stay up, journalctl -u dbguardd says why. "
        "A restore does not need the daemon: dbguardd run restore NAME --to PLACE."
    )


class NotPermitted(GuardError):
    """The peer's role does not allow the request."""

    code, title = "DBG-0003", "Not permitted"
    exit_status, http_status = 5, 403
    meaning = "Nothing was done. The daemon records each refusal in its audit log."
    advice = "Ask an administrator for the role, or to be added to the group that [access] names in the policy."


class NotFound(GuardError):
    """No such database, backup, job, hold, storage or code."""

    code, title = "DBG-0004", "Not found"
    exit_status, http_status = 8, 404
    meaning = "Nothing was done."
    advice = "See what exists: dbguardctl status, dbguardctl list NAME, dbguardctl job list."


def no_database(name: str, names: Iterable[str]) -> NotFound:
    """Return the error for a database that does not exist, with similar names and all `names`."""
    known = sorted(set(names))  # of the policy and of the catalog: most are in both
    if not known:
        return NotFound(f"{name}: no such database", detail="There is none yet.", hints=["dbguardctl protect PATH"])
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    near = f" {near}" if (near := did_you_mean(name, known)) else ""
    detail = f"Databases: {', '.join(known[:_NAMED])}{more}.{near}"
    return NotFound(f"{name}: no such database", detail=detail, hints=["dbguardctl status"])


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """Return a question that suggests similar names; empty if there is none."""
    from difflib import get_close_matches  # noqa: PLC0415 - only on the way to an error

    near = get_close_matches(word, words, 3, 0.6) or [one for one in words if one.startswith(word)][:3]
    return f"Did you mean {' or '.join(near)}?" if near else ""


class Busy(GuardError):
    """Another job holds what this one needs."""

    code, title = "DBG-0005", "Busy"
    exit_status, http_status, transient = 7, 409, True
    meaning = "Nothing was done, and running jobs were not disturbed."
    advice = "If another job is in the way, watch it with dbguardctl job watch ID, then try again."


class StillRunning(GuardError):
    """Waiting ended before the job did."""

    code, title = "DBG-0006", "Waiting timed out"
    exit_status, http_status, transient = 12, 504, True
    meaning = "The job goes on in the daemon."
    advice = "Go on waiting with dbguardctl job watch ID, or stop it with dbguardctl job cancel ID."


class Cancelled(GuardError):
    """The job was cancelled by someone."""

    code, title = "DBG-0007", "Cancelled"
    exit_status, http_status = 1, 409
    meaning = "Unfinished work does not count; everything acknowledged before is kept."
    advice = "Start the job again when you want it."


class Internal(GuardError):
    """A bug in dbguard."""

    code, title = "DBG-0008", "Internal error"
    meaning = "The job failed. Everything acknowledged before is kept."
    advice = "Keep the journal of dbguardd from around the failure and report the bug."


class TooLarge(GuardError):
    """A request exceeds a limit of the API."""

    code, title = "DBG-0009", "Request too large"
    exit_status, http_status = 2, 413
    meaning = "Nothing was done."
    advice = "Requests are small JSON objects of at most 1 MiB; ask for less at once."


class SecondInstance(GuardError):
    """Another dbguardd owns the state directory or the socket."""

    code, title = "DBG-0010", "Another dbguardd is running"
    exit_status, http_status = 7, 409
    meaning = "The running daemon is not disturbed. The new one did nothing."
    advice = "Use the running daemon, or give the new one its own --state and --socket."


class Overloaded(GuardError):
    """More connections than the API serves at once, in total or for one user."""

    code, title = "DBG-0011", "Too many connections"
    exit_status, http_status, transient = 7, 503, True
    meaning = "Nothing was done. Jobs and schedules continue."
    advice = "Try again, or end commands that keep a connection open, such as dbguardctl job watch or events --follow."


class PlaceDenied(GuardError):
    """The operating system does not let this user read or write a file or directory on this host."""

    code, title = "DBG-0012", "A file or directory is not accessible"
    exit_status, http_status = 5, 403
    meaning = "Nothing was done there, and existing files are unchanged."
    advice = "Give the working user access, or choose another place. On some file systems even root has none."


# ------------------------------------------------------------------------------------------------ 1: policy


class PolicyInvalid(GuardError):
    """The policy has mistakes. `detail` lists all of them with file, line and column."""

    code, title = "DBG-1001", "Policy not valid"
    exit_status, http_status = 9, 422
    meaning = "A running daemon keeps its current policy until the files are correct."
    advice = "Correct the file and run dbguardctl config check."


class PolicyShrinks(GuardError):
    """The new policy would delete existing backups at once."""

    code, title = "DBG-1002", "The policy would delete backups"
    exit_status, http_status = 10, 409
    meaning = "The old policy stays in force. No backup was deleted."
    advice = "See what would be deleted with dbguardctl config diff; to accept that, run dbguardctl config accept."


class PolicyUnsafe(GuardError):
    """Someone who should not can change or read a policy or secret file."""

    code, title = "DBG-1003", "A file is not safe to trust"
    exit_status, http_status = 9, 422
    meaning = "The file was not used."
    advice = "Let root or the daemon's user own it; no write permission for group and others (secrets: 0600)."


class SecretMissing(GuardError):
    """A secret that the policy names cannot be read."""

    code, title = "DBG-1004", "A secret is missing"
    exit_status, http_status = 11, 503
    meaning = "Jobs that need the secret cannot run; other databases are not affected."
    advice = "Provide the credential, file or command that the policy names, then reload or restart dbguardd."


# ------------------------------------------------------------------------------------------------ 2: databases


class SourceMissing(GuardError):
    """The database is not where the policy says."""

    code, title = "DBG-2001", "Database missing"
    http_status = 502
    meaning = "No backup was made. Earlier backups, if there are any, are untouched and can be restored."
    advice = "Moved? Correct path in the policy. Lost? dbguardctl status NAME shows what can be restored."


class SourceInvalid(GuardError):
    """The file is not a database that the engine can read."""

    code, title = "DBG-2002", "Not a database"
    http_status = 502
    meaning = "No backup was made. Earlier backups are untouched."
    advice = "Check the path and the engine in the policy."


class SourceEncrypted(GuardError):
    """The file looks encrypted, or is not what its header should be."""

    code, title = "DBG-2003", "Database is encrypted or has an unknown header"
    http_status = 502
    meaning = "No backup was made. Earlier backups are untouched."
    advice = "Check the path. This version cannot read files that SQLCipher or SEE encrypted."


class SourceLocked(GuardError):
    """The application holds a lock for longer than dbguard waits."""

    code, title = "DBG-2004", "Database locked"
    http_status, transient = 503, True
    meaning = "No backup was made; the application was not disturbed. `retry` sets when it is tried again."
    advice = "Find the process that holds the lock (lslocks); raise lock_timeout if the application needs long locks."


class SourceDamaged(GuardError):
    """The live database itself is damaged."""

    code, title = "DBG-2005", "The live database is damaged"
    exit_status, http_status = 4, 502
    meaning = "The damage is in the live file, not in the backups. Earlier proven backups are the good copies."
    advice = (
        "Stop the application, then restore the last proven backup. See the plan: dbguardctl restore NAME --dry-run."
    )


class SourceChanged(GuardError):
    """The file was replaced, truncated or changed in a way that breaks the snapshot."""

    code, title = "DBG-2006", "Database replaced during the backup"
    http_status, transient = 503, True
    meaning = "The unfinished backup was discarded. Earlier backups are untouched. `retry` sets when it is tried again."
    advice = "If this repeats, a program replaces the file instead of writing to it: schedule the backup after that."


class SourceDenied(GuardError):
    """The engine has no permission to read the database."""

    code, title = "DBG-2007", "No permission to read the database"
    http_status = 502
    meaning = "No backup was made. Earlier backups are untouched."
    advice = "Set run_as to a user who may read the file and write to its directory (SQLite needs its -shm file there)."


class Unsupported(GuardError):
    """The engine or storage cannot do that."""

    code, title = "DBG-2008", "Not supported"
    exit_status, http_status = 2, 422
    meaning = "Nothing was done."
    advice = "See dbguardctl(1) for what this version supports, and dbguard.toml(5) for the methods of each engine."


class WouldBlock(GuardError):
    """A consistent copy would block the application for longer than max_block allows."""

    code, title = "DBG-2009", "The application would be blocked for too long"
    http_status, transient = 503, True
    meaning = "No backup was made; the application was not blocked any longer. `retry` sets when it is tried again."
    advice = "Use WAL mode (PRAGMA journal_mode=WAL), raise max_block, or back up in a quiet window."


class LogBroken(GuardError):
    """The log of a database does not continue where dbguard last read it."""

    code, title = "DBG-2010", "The log was interrupted"
    exit_status, http_status, transient = 1, 409, True
    meaning = "Commits made in the gap can only be restored as of the next backup, which ends the gap."
    advice = "See what is covered: dbguardctl list NAME. Following the log resumes by itself."


class ServerUnreachable(GuardError):
    """The server of a database does not answer, or accepts no connection."""

    code, title = "DBG-2011", "Database server not reachable"
    exit_status, http_status, transient = 1, 503, True
    meaning = "No backup was made. Earlier backups are untouched."
    advice = "Check that the server runs (pg_lsclusters, systemctl status postgresql), and check url in the policy."


class ToolMissing(GuardError):
    """A program that comes with the database is not installed, or is too old for the server."""

    code, title = "DBG-2012", "A database program is missing"
    http_status = 502
    meaning = "Nothing was done; earlier backups are untouched. The programs must have the version of the server."
    advice = "Install the programs of the server's version, for example: apt-get install postgresql-client-15."


class SourceReplaced(GuardError):
    """The database is, or may be, a different one than the existing backups were made of."""

    code, title = "DBG-2013", "A different database than before"
    http_status = 502
    meaning = "No backup was made. Earlier backups are untouched, and are not replaced by others."
    advice = "If the database that was backed up is lost, restore it first; otherwise say which one this is, as shown."


# ------------------------------------------------------------------------------------------------ 3: storage


class Unreachable(GuardError):
    """A storage does not answer, or answers with input/output errors."""

    code, title = "DBG-3001", "Storage not reachable"
    exit_status, http_status, transient = 11, 503, True
    meaning = "Nothing new could be stored. Backups acknowledged before are not affected by this error."
    advice = "Check the disk, mount or network of the storage, then dbguardctl check."


class NoSpace(GuardError):
    """There is not enough free space."""

    code, title = "DBG-3002", "Not enough space"
    exit_status, http_status, transient = 11, 507, True
    meaning = "The work was not done; nothing was changed or deleted to make room."
    advice = "Free space on that file system. In a storage, retention may free some: dbguardctl prune --dry-run."


class Conflict(GuardError):
    """An object with that name exists and has different content."""

    code, title = "DBG-3003", "An object exists with other content"
    exit_status, http_status = 4, 409
    meaning = "Nothing was overwritten. The stored object is damaged, or something else wrote it."
    advice = "See which backups are affected: dbguardctl check --data."


class ObjectMissing(GuardError):
    """An object that should be in the storage is not there."""

    code, title = "DBG-3004", "An object is missing from the storage"
    exit_status, http_status = 4, 404
    meaning = "Backups that need the object cannot be restored in full from this storage."
    advice = "Make a new full backup now. See which backups are affected: dbguardctl check --data."


class Degraded(GuardError):
    """The storage failed to make bytes durable twice in a row."""

    code, title = "DBG-3005", "Storage failed to make data durable"
    exit_status, http_status, transient = 11, 503, True
    meaning = "The job was not acknowledged. The disk may be failing: check the older backups on it."
    advice = "Look at the kernel log (journalctl -k), then run dbguardctl check --data."


# ------------------------------------------------------------------------------------------------ 4: repository


class Damaged(GuardError):
    """Stored bytes have changed since they were written."""

    code, title = "DBG-4001", "Damage in the repository"
    exit_status, http_status = 4, 500
    meaning = "No wrong data was returned. The backups named here cannot be restored in full from this storage."
    advice = (
        "Run dbguardctl check --data for the whole extent, and make a new full backup: dbguardctl backup NAME --full."
    )


class NotARepository(GuardError):
    """There is no repository in the storage, or its description is unreadable."""

    code, title = "DBG-4002", "No repository there"
    exit_status, http_status = 11, 503
    meaning = "Nothing was read or written. An empty mount point looks like this too."
    advice = "Check that the right disk is mounted there. A new storage gets its repository automatically."


class FormatTooNew(GuardError):
    """The repository needs a newer dbguard."""

    code, title = "DBG-4003", "Repository format not known"
    exit_status, http_status = 11, 503
    meaning = "Nothing was written. The backups are intact; this version cannot read them."
    advice = "Install the dbguard version that wrote it, or a newer one."


# ------------------------------------------------------------------------------------------------ 5: keys


class KeyRefused(GuardError):
    """The key does not open this repository."""

    code, title = "DBG-5001", "The key does not open the repository"
    exit_status, http_status = 11, 503
    meaning = "The data is not damaged; it is encrypted with another key. Nothing was written."
    advice = "Use the key of the machine that wrote it, or open it with the recovery key: dbguardctl key recover."


class KeyMissing(GuardError):
    """A key that the policy names cannot be found."""

    code, title = "DBG-5002", "Key missing"
    exit_status, http_status = 11, 503
    meaning = "Backups can be neither made nor read until the key is back. Stored data is not affected."
    advice = "Restore the key file or credential, or open the backups with the recovery key: dbguardctl key recover."


class KeyUnsafe(GuardError):
    """A key file is readable by others, or a recovery recipient is unusable."""

    code, title = "DBG-5003", "Key not safe"
    exit_status, http_status = 9, 422
    meaning = "The key was not used."
    advice = "Set the key file to mode 0600, owned by the daemon's user."


# ------------------------------------------------------------------------------------------------ 6: proof, restore


class ProofFailed(GuardError):
    """The result of a test restore differs from what was backed up."""

    code, title = "DBG-6001", "Verification failed"
    exit_status, http_status = 4, 500
    meaning = "The backup is not proven and does not count as the last good one. Older proven backups are kept."
    advice = (
        "See the failed step: dbguardctl show ID. Against damage in the storage, a new backup helps: dbguardctl backup "
        "NAME --full. Not if the live database is damaged: repair that, or restore the last proven backup."
    )


class TargetExists(GuardError):
    """Something already exists where the restore should go."""

    code, title = "DBG-6002", "The target exists"
    exit_status, http_status = 10, 409
    meaning = "Nothing was overwritten."
    advice = "Choose another place with --to, or replace the live database with --in-place."


class TargetInUse(GuardError):
    """Another process uses the database to be replaced."""

    code, title = "DBG-6003", "The target is in use"
    exit_status, http_status = 10, 409
    meaning = "The live database was not touched."
    advice = "Stop the application that uses it, then repeat the restore."


class ConfirmMissing(GuardError):
    """A destructive request lacks its typed confirmation."""

    code, title = "DBG-6004", "Confirmation missing"
    exit_status, http_status = 10, 409
    meaning = "Nothing was done."
    advice = "Repeat with --confirm NAME, typing the name of the database."


class TooCostly(GuardError):
    """A question to a backup needs more time, memory or space than it may use."""

    code, title = "DBG-6005", "The question is too costly"
    http_status = 422
    meaning = "The question was stopped without an answer. Nothing was changed."
    advice = "Ask for less (WHERE, LIMIT), allow more with --seconds, or restore a copy: dbguardctl restore NAME."


class StandbyChanged(GuardError):
    """Something other than dbguard has written to a standby."""

    code, title = "DBG-6006", "The standby was changed"
    exit_status, http_status = 10, 409
    meaning = (
        "It no longer follows the database and is left as it is. What was written to it is in no backup and no log."
    )
    advice = "Look at its content, then start a new standby. Until it is promoted, a standby may only be read."


# ------------------------------------------------------------------------------------------------ 7: guards


class Held(GuardError):
    """A hold or a guarantee of the policy forbids the deletion."""

    code, title = "DBG-7001", "Held"
    exit_status, http_status = 10, 409
    meaning = "Nothing was deleted."
    advice = "See the reasons with dbguardctl list NAME --why; a hold ends with dbguardctl release ID."


class Breaker(GuardError):
    """One run would delete more than a single run is allowed to."""

    code, title = "DBG-7002", "Too much would be deleted at once"
    exit_status, http_status = 10, 409
    meaning = "Nothing was deleted."
    advice = "See dbguardctl prune --dry-run; if it is right, repeat with --confirm NAME."


class ClockDoubt(GuardError):
    """The clock cannot be trusted, so nothing is deleted."""

    code, title = "DBG-7003", "The clock is in doubt"
    exit_status, http_status, transient = 10, 503, True
    meaning = "Backups continue; nothing is deleted until the clocks of the host and of the storage agree."
    advice = "Check the time on this host (timedatectl) and on the storage."


# ------------------------------------------------------------------------------------------------ 8: jobs


class WorkerDied(GuardError):
    """A worker process ended without a result."""

    code, title = "DBG-8001", "The worker died"
    http_status, transient = 500, True
    meaning = "The job failed. Everything acknowledged before is kept; the next run starts over."
    advice = "Out of memory? journalctl -k. Otherwise look at the job: dbguardctl job show ID."


class Stalled(GuardError):
    """A worker made no progress for stall_timeout, or no end within job_timeout, and was stopped."""

    code, title = "DBG-8002", "The job stalled"
    http_status, transient = 504, True
    meaning = "The job was stopped. Everything acknowledged before is kept."
    advice = "Does the storage or the database hang? If it is just slow, raise stall_timeout or job_timeout."


class Interrupted(GuardError):
    """The daemon stopped while the job ran."""

    code, title = "DBG-8003", "Interrupted"
    http_status, transient = 500, True
    meaning = (
        "The job did not finish. Everything acknowledged before is kept; dbguardd repeats a backup at its next start."
    )
    advice = "Backups and scheduled jobs run again by themselves; start other jobs again."


class Outdated(GuardError):
    """The daemon runs an older or newer version than is installed now: it was not restarted after an upgrade."""

    code, title = "DBG-8004", "The daemon was not restarted"
    http_status, transient = 503, True
    meaning = "No job starts until the daemon is restarted. Existing backups are untouched."
    advice = "Restart the daemon: systemctl restart dbguardd."


# ------------------------------------------------------------------------------------------------ 9: own books


class AuditBroken(GuardError):
    """The audit chain does not verify."""

    code, title = "DBG-9001", "The audit log was changed"
    exit_status, http_status = 4, 500
    meaning = "The named entry and all later ones cannot be trusted. Backups are not affected."
    advice = (
        "Compare with the journal: journalctl -u dbguardd DBGUARD_ACTION=audit. To start a new log, stop dbguardd and "
        "move audit.jsonl and catalog.db away."
    )


class CatalogDamaged(GuardError):
    """The catalog cannot be read."""

    code, title = "DBG-9002", "The catalog is damaged"
    meaning = "The catalog is only an index; every backup is still in its repository."
    advice = "Move the catalog file away and restart dbguardd: it is rebuilt from the repositories."


OUTCOMES: Mapping[str, type[GuardError]] = {
    kind.code: kind
    for kind in (
        *(Usage, DaemonUnreachable, NotPermitted, NotFound, Busy, StillRunning, Cancelled, Internal, TooLarge),
        *(SecondInstance, Overloaded, PlaceDenied, PolicyInvalid, PolicyShrinks, PolicyUnsafe, SecretMissing),
        *(SourceMissing, SourceInvalid, SourceEncrypted, SourceLocked, SourceDamaged, SourceChanged, SourceDenied),
        *(Unsupported, WouldBlock, LogBroken, ServerUnreachable, ToolMissing, SourceReplaced),
        *(Unreachable, NoSpace, Conflict, ObjectMissing, Degraded),
        *(Damaged, NotARepository, FormatTooNew, KeyRefused, KeyMissing, KeyUnsafe),
        *(ProofFailed, TargetExists, TargetInUse, ConfirmMissing, TooCostly, StandbyChanged),
        *(Held, Breaker, ClockDoubt),
        *(WorkerDied, Stalled, Interrupted, Outdated, AuditBroken, CatalogDamaged),
    )
}
"""Every row, by code."""


FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""The errors of the operating system for no room: a full disk, a used-up quota, a limit of the size of files."""


def of_file(message: str, error: OSError) -> GuardError:
    """Translate an operating system error at a file of the daemon, or of the user who asks."""
    detail = f"{error.strerror or error}: {error.filename}" if error.filename else error.strerror or str(error)
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PlaceDenied(message, detail=detail)
        case _ if error.errno in FULL:
            return NoSpace(message, detail=detail)
        case errno.ENOENT | errno.ENOTDIR | errno.EEXIST | errno.EISDIR | errno.ELOOP | errno.ENAMETOOLONG:
            return Usage(message, detail=detail)
    return Degraded(message, detail=detail)


EXIT_STATUSES: Mapping[int, str] = {
    0: "done, healthy",
    1: "failed",
    2: "wrong usage",
    3: "done, but something needs attention (late, warning, partial)",
    4: "verification failed: a backup is not proven, or damage was found",
    5: "not permitted",
    6: "daemon not reachable",
    7: "busy, or a conflicting job",
    8: "no such database, backup or job",
    9: "policy not valid",
    10: "refused by a guard (hold, confirmation missing, target exists, shrink)",
    11: "storage or key not available, or no space",
    12: "waiting timed out; the job goes on",
    130: "interrupted; the job goes on",
}
"""What the exit status of every command means."""
