"""Every event that dbguard reports: one row of the table for each way in which it reads.

The log, `dbguardctl log`, the journal's catalog and dbguardd(8) all derive from this table, so a new event needs only a
new row here. In a sentence, braces hold the name of a fact. The end of the name decides how its value is formatted:
{stored_bytes} as a size, {restore_seconds} as a duration, {until_at} as a moment; {tables:table} is a number with its
noun. A part in brackets is left out when a fact in it is unknown. The subject of the sentence (the database, else the
storage) is put before it automatically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from dbguardd.errors import message_id
from dbguardd.frozen import frozen

LEVELS = ("debug", "info", "warning", "error")
"""From a step that matters only when searching for a fault, to what a person should act on."""


@frozen
class Kind:
    """One way in which an event reads. An event has a general row, and one for each `variant`: the facts in `when`."""

    name: str
    level: str
    sentence: str
    summary: str = ""  # for dbguardd(8): what has happened; a variant has none
    variant: str = ""
    when: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""  # if set, the journal's catalog explains the event
    meaning: str = ""  # in the catalog: what it means for the data; braces hold fields of the journal's entry
    advice: tuple[str, ...] = ()  # in the catalog: what to do, one thing a line

    @property
    def message_id(self) -> str:
        """The journal's MESSAGE_ID."""
        return message_id(f"{self.name} {self.variant}".strip())


_FAILED = "{action} failed: {problem} ({code})[. {detail}]"
_REFUSED = "the {action} was not started: {problem} ({code})[. {detail}]"

# fmt: off
KINDS: tuple[Kind, ...] = (
    Kind(
        "api.accept_failed", "warning", "a connection could not be accepted[: {reason}]",
        "The socket could not accept a connection.",
    ),
    Kind(
        "api.failed", "error", "the request {path} failed because of a bug",
        "A request failed because of a bug; the log has the traceback.",
        title="A request failed because of a bug",
        meaning="Jobs and schedules are not affected. The client was told only that there is a bug.",
        advice=("Keep this entry with its traceback, and report it.",),
    ),
    Kind(
        "audit.entry", "info", "audit {seq}: {actor}, {what}[ of {object}]: {result}",
        "An entry of the audit log; the journal keeps a second copy.",
    ),
    Kind(
        "backup.done", "debug", "backup {backup} is complete[, {seconds}]",
        "The copy, its fingerprint and the plain copies of a backup are complete.",
    ),
    Kind(
        "backup.expired", "info",
        "backup {backup} has expired[: {reasons}][; it can be recalled until {grace_until_at}]",
        "Retention expired a backup; its data stays for the grace period of the storage.",
        title="A backup has expired",
        meaning="The policy no longer keeps backup {backup}. Its data stays for the grace period of the storage; after "
                "that the sweep deletes it.",
        advice=("Bring it back:  dbguardctl recall {backup}", "Then keep it:   dbguardctl hold {backup} --reason TEXT"),
    ),
    Kind(
        "backup.graded", "error", "backup {backup} is NOT proven, only {grade}[: {failure}]",
        "A backup was verified; its grade, proof and restore time are known.",
        title="A backup cannot be relied on",
        meaning="A test restore of backup {backup} of {database} did not give what was backed up, or a check or a "
                "restore found that data it needs is damaged. It no longer counts as a good backup, can be restored "
                "only by its id, and is kept for a week as evidence. "
                "The live database was not touched. Last proven backup: {last_proven}.",
        advice=(
            "See what failed:  dbguardctl show {backup}",
            "Make a new one:   dbguardctl backup {database} --full",
            "If the live database itself is damaged, a new one fails, too: repair that first.",
        ),
    ),
    Kind(
        "backup.graded", "info", "backup {backup} is proven[: a restore takes {restore_seconds}]",
        variant="proven", when={"grade": "proven"},
        title="A backup is proven",
        meaning="Backup {backup} of {database} was restored into a private place, and its content equals the "
                "fingerprint taken in its own snapshot. It can be restored.",
        advice=("Restore it to a new place:  dbguardctl restore {database} --id {backup} --to PATH",),
    ),
    Kind(
        "backup.graded", "warning",
        "backup {backup} is not proven, only {grade}: nothing failed, but not all was compared",
        variant="inconclusive", when={"failure": None},
        title="A backup could not be proven",
        meaning="Backup {backup} of {database} was restored and nothing failed, but not all of it was compared with "
                "its snapshot, mostly because it has no fingerprint: a safety copy of a restore in place has none, nor "
                "has a backup that was interrupted. Last proven backup: {last_proven}.",
        advice=("See what was not compared:    dbguardctl show {backup}",
                "Make one that can be proven:  dbguardctl backup {database}"),
    ),
    Kind("backup.held", "info", "backup {backup} is held[ by {actor}]: {reason}", "A hold was placed on a backup."),
    Kind("backup.recalled", "info", "backup {backup} was recalled", "An expired backup was recalled."),
    Kind("backup.released", "info", "backup {backup} is no longer held[: {reason}]", "A hold ended."),
    Kind(
        "backup.stored", "info", "backup {backup} is stored[, {stored_bytes} new][, {seconds}]",
        "A backup is durable and was read back: it is acknowledged.",
        title="A backup is stored",
        meaning="Backup {backup} of {database} is durable, and was read back from its storage and decrypted. It is not "
                "proven yet that it can be restored; a verification does that.",
        advice=("See it:        dbguardctl show {backup}", "Prove it now:  dbguardctl verify {backup}"),
    ),
    Kind(
        "backup.swept", "info", "backup {backup} was deleted: its grace period was over",
        "The data of an expired backup was deleted.",
    ),
    Kind(
        "catalog.failed", "error", "the catalog cannot be written: {problem} ({code})[. {detail}]",
        "The catalog could not be written.",
    ),
    Kind(
        "catalog.indexed", "info", "its repository was read into the catalog[, {facts_read:fact}]",
        "A repository was read into the catalog.",
    ),
    Kind(
        "check.finding", "error", "check {name}: FAILED[, {detail}]",
        "One line of a check.",
        title="A check found a problem",
        meaning="A restore of {database} may fail because of it.",
        advice=("See all checks, and what to do about each:  dbguardctl check {database}",),
    ),
    Kind(
        "check.finding", "warning", "check {name}: inconclusive[, {detail}]",
        variant="inconclusive", when={"outcome": "inconclusive"},
    ),
    Kind("check.finding", "debug", "check {name}: ok[, {detail}]", variant="ok", when={"outcome": "ok"}),
    Kind(
        "check.finding", "debug", "check {name}: not configured[, {detail}]",
        variant="not configured", when={"outcome": "not configured"},
    ),
    Kind(
        "clock.doubted", "error", "the system clock may be wrong: {problem}",
        "The system clock may be wrong; nothing is deleted until that is settled.",
        title="The system clock may be wrong",
        meaning="Backups continue. Schedules delete nothing for a day, so that a wrong clock cannot make backups look "
                "older than they are.",
        advice=("Check the clock:                             timedatectl",
                "Once it is right, deletions resume at once:  systemctl restart dbguardd"),
    ),
    Kind(
        "clock.stepped", "warning", "the system clock jumped by {seconds}",
        "The system clock was set.",
    ),
    Kind(
        "daemon.broken", "error", "a part of dbguardd failed, so dbguardd restarts: {problem}",
        "A part of the daemon failed; the daemon exits and is restarted.",
        title="dbguardd restarts because of a bug",
        meaning="Everything acknowledged is safe. Jobs that ran are interrupted; backups are repeated afterwards.",
        advice=("Keep the journal from around this entry, and report the bug.",),
    ),
    Kind(
        "daemon.failed", "error", "dbguardd did not start: {problem} ({code})[. {detail}]",
        "The daemon did not start; without a journal it says so on standard error.",
    ),
    Kind(
        "daemon.ready", "info", "dbguardd is ready and protects {databases:database}[. Next: {next}]",
        "The daemon answers.",
    ),
    Kind("daemon.stopping", "info", "dbguardd stops and accepts no more jobs", "The daemon accepts no more jobs."),
    Kind("daemon.stopped", "info", "dbguardd has stopped", "The daemon has stopped."),
    Kind(
        "database.paused", "info", "paused[ by {actor}][ until {until_at}]",
        "The scheduled jobs of a database are paused.",
        title="The schedule of a database is paused",
        meaning="No scheduled jobs of {database} start until the pause ends. Backups by hand still work. "
                "Existing backups are not affected, but grow older.",
        advice=("End the pause:  dbguardctl resume {database}",),
    ),
    Kind("database.resumed", "info", "resumed[ by {actor}]", "A pause ended."),
    Kind(
        "job.cancelled", "warning", "{action} was cancelled[: {problem}][ ({code})]",
        "A job was cancelled.",
    ),
    Kind(
        "job.crashed", "error", "job[ {job}] failed because of a bug",
        "A job failed because of a bug; the log has the traceback.",
        title="A job failed because of a bug",
        meaning="That job has failed. Everything acknowledged before is kept, and the daemon continues.",
        advice=("Keep this entry with its traceback, and report it.",),
    ),
    Kind("job.done", "debug", "{action} is done[, {seconds}]", "A job has succeeded."),
    Kind("job.done", "info", "check is done[, {seconds}]", variant="check", when={"action": "check"}),
    Kind("job.failed", "error", _FAILED, "A job has failed; the fact problem has the reason."),
    Kind("job.failed", "debug", f"a dry run of {_FAILED}", variant="dry run", when={"dry_run": True}),
    Kind("job.failed", "info", _FAILED, variant="of a mistaken request", when={"mistaken": True}),
    Kind(
        "job.interrupted", "warning", "{action} was interrupted[: {problem}][ ({code})]",
        "A job was interrupted because the daemon stopped.",
    ),
    Kind("job.queued", "debug", "{action} is queued[, requested by {actor}]", "A job is queued."),
    Kind(
        "job.refused", "warning", _REFUSED,
        "A job that should follow another one was not started.",
    ),
    Kind(
        "job.retrying", "warning", "{action} failed and is retried in {wait_seconds}: {problem} ({code})[. {detail}]",
        "A job failed for a reason that may pass, and will be retried.",
    ),
    Kind("job.started", "debug", "{action} has started[, attempt {attempt}]", "A job has started."),
    Kind("library.said", "warning", "{logger}: {text}", "A message from a library that dbguard uses."),
    Kind(
        "log.audited", "error", "the live database does NOT match its log: {detail}",
        "The whole live database was compared with its log.",
        title="A database was changed outside its log",
        meaning="Pages of {database} differ from what its log says: the file was damaged, another program wrote to it, "
                "or commits were missed. The log starts again from now; earlier backups and moments are not affected.",
        advice=("Find out whether the database is intact:  dbguardctl backup {database} --verify",),
    ),
    Kind("log.audited", "debug", "the live database matches its log", variant="ok", when={"outcome": "ok"}),
    Kind(
        "log.begun", "warning", "its log has a gap: {because}[; it is stored up to {stored_until_at}, and from now on]",
        "The log of a database is followed.",
        title="A log has a gap",
        meaning="The log of {database} is stored up to the moment that is named, and again from now on. The commits in "
                "between are in the live database, but no moment in between can be restored. A backup is made at once; "
                "any second after it can be restored.",
        advice=("See what can be restored:  dbguardctl list {database}",),
    ),
    Kind("log.begun", "info", "its log is followed[, without a gap since {begun_at}]",
         variant="continued", when={"continued": True}),
    Kind("log.begun", "info", "its log is followed from now on", variant="first", when={"stored_until_at": None}),
    Kind(
        "log.crashed", "error", "its log is not followed because of a bug",
        "The log of a database is not followed because of a bug; the daemon's log has the traceback.",
        title="A log is not followed because of a bug",
        meaning="Commits to {database} are not stored until the next backup. Following the log is retried.",
        advice=("Keep this entry with its traceback, and report it.",),
    ),
    Kind(
        "log.forgotten", "info", "{objects:object} of its log, older than keep_log, deleted[, {bytes}]",
        "The part of a log that is older than keep_log was deleted.",
    ),
    Kind(
        "log.held", "warning", "its WAL of {log_bytes} cannot be reset: {by} keeps a read transaction open",
        "A reader keeps the WAL of a database from being reset, so that it grows; or no longer does.",
        title="A WAL grows because of a long read transaction",
        meaning="As long as a reader stays in one transaction, SQLite cannot reset the WAL of {database}. Commits are "
                "still stored, but the WAL takes up more and more of the disk.",
        advice=("End that transaction, or the process that is named.",),
    ),
    Kind("log.held", "info", "its WAL can be reset again: the reader is gone", variant="free", when={"by": []}),
    Kind(
        "log.interrupted", "warning", "its log is not followed now: {problem} ({code})[. {detail}]",
        "The log of a database is not followed; it is retried.",
        title="A log is not followed",
        meaning="Commits to {database} are not stored until its log is followed again or the next backup is made. The "
                "application is not affected.",
        advice=("See whether it has resumed:  dbguardctl status {database}",
                "See what happened:           dbguardctl log {database}"),
    ),
    Kind("log.known", "debug", "{chains:part} of its log found in the storage",
         "The log of a database was found in a storage."),
    Kind(
        "log.left", "warning",
        "its log is no longer followed, but its server may still retain WAL for it: {problem} ({code})[. {detail}]",
        "A log is no longer followed, as the policy says.",
        title="A server may retain WAL that nothing needs",
        meaning="The log of {database} is no longer followed. A replication slot may be left on its server; it retains "
                "WAL that nothing needs, up to max_slot_wal_keep_size. Until dbguardd stops, it tries every minute to "
                "drop the slot, and status says so.",
        advice=("See whether it is dropped:  dbguardctl log",
                "Find it:  SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbguard%' AND NOT active;",
                "Drop it:  SELECT pg_drop_replication_slot('NAME');"),
    ),
    Kind("log.left", "info", "its log is no longer followed", variant="done", when={"problem": None}),
    Kind(
        "log.moved", "warning", "its url has changed: if {before} is another server, that one still retains WAL for it",
        "The log of a database is followed at another url than before.",
        title="A server that the url no longer names may retain WAL",
        meaning="The log of {database} is followed at another url than before. If that is another server, the one "
                "before still has a replication slot of dbguard. It is kept in case that the url was wrong, and "
                "retains WAL, up to max_slot_wal_keep_size. If it is the same server, there is nothing to do.",
        advice=("If the new url is right, on the server before:",
                "Find it:  SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbguard%' AND NOT active;",
                "Drop it:  SELECT pg_drop_replication_slot('NAME');"),
    ),
    Kind(
        "log.thinned", "info",
        "its log up to {until_at} now has one moment every {grain_seconds}: {bytes} instead of {freed_bytes}",
        "An old part of the log of a database was thinned, as thin_log says.",
    ),
    Kind(
        "log.thinned", "warning", "its log could not be thinned: {problem} ({code})",
        variant="failed", when={"outcome": "failed"},
        title="A log could not be thinned",
        meaning="A part of the log of {database} cannot be read. The log is left unchanged, and takes up more space "
                "than it should until that part is older than keep_log.",
        advice=("See what is damaged:  dbguardctl check {database} --data",),
    ),
    Kind(
        "log.tried", "info", "a test restore as of {moment_at} succeeded: {detail}",
        "A random moment of the log of a database was restored into a private place and compared.",
    ),
    Kind("log.tried", "warning", "a test restore as of {moment_at} succeeded, but could not be compared: {detail}",
         variant="inconclusive", when={"outcome": "inconclusive"}),
    Kind(
        "log.tried", "error", "a test restore of its log[ as of {moment_at}] FAILED: {detail}",
        variant="failed", when={"outcome": "failed"},
        title="A log cannot be relied on",
        meaning="A test restore of a backup of {database} plus its log did not give the right content. The backups "
                "themselves are not affected. After a new backup, the log can be relied on again.",
        advice=("Make a new backup:    dbguardctl backup {database}",
                "See what is damaged:  dbguardctl check {database} --data"),
    ),
    Kind(
        "log.turned", "warning",
        "another server took over, or it was restored: its log continues without a gap[, {lost_bytes} left behind]",
        "The log of a database continues on the timeline of the server that took over.",
        title="Another server has taken over",
        meaning="The log of {database} continues on the timeline of a server that was promoted or restored. WAL that "
                "is named as left behind was stored, but that server does not have it: only a restore to a moment "
                "before the switch contains it. A backup is made at once.",
        advice=("See what can be restored:  dbguardctl list {database}",),
    ),
    Kind(
        "log.unreadable", "warning", "the end of its log in the storage cannot be read: {problem}",
        "The end of a log in the storage cannot be read; the log starts again with a gap.",
    ),
    Kind(
        "parent.unreadable", "warning",
        "the parent of backup {backup} cannot be read, so its data is stored again: {problem} ({code})",
        "The parent of a backup cannot be read, so its data is stored again.",
        title="The parent of a backup cannot be read",
        meaning="Backup {backup} of {database} is complete: data that it could not share with the backup before was "
                "stored again. But that earlier backup may be damaged.",
        advice=("See which backups are affected:  dbguardctl check {database} --data",),
    ),
    Kind("plain.written", "info", "a plain copy of backup {backup} is at {path}", "A plain copy was written."),
    Kind("policy.loaded", "info", "the policy is in force: {databases:database}", "A policy is in force."),
    Kind(
        "policy.refused", "error", "the policy was refused, the old one stays in force: {problem} ({code})[. {detail}]",
        "A policy was refused; the old one stays in force.",
    ),
    Kind(
        "policy.warned", "warning", "{problem}[, at {place}]",
        "A warning about the policy that is in force: a goal that its schedule cannot meet, for example.",
    ),
    Kind(
        "question.restoring", "info",
        "restoring backup {backup} to answer a question: {needs_bytes}[, usually {usual_seconds}]",
        "A question starts to restore a backup in order to answer from it.",
    ),
    Kind(
        "recovery.added", "info", "key {key}: the recovery recipient {recipient} can open the repository from now on",
        "A recovery recipient can open a repository.",
        title="One more key can open the repository from now on",
        meaning="The holder of the secret of {recipient} can read every backup in this storage, without this machine.",
        advice=("If that is a surprise, see who did it:  dbguardctl audit show",),
    ),
    Kind(
        "recovery.dropped", "warning", "key {key}: the recovery recipient {recipient} no longer opens the repository",
        "A recovery recipient was removed.",
        title="A recovery sheet no longer opens the repository",
        meaning="The holder of the secret of {recipient} can still read older copies of the storage, but no new ones.",
        advice=("Test that another sheet opens the backups:  dbguardctl key recovery-test {key}",),
    ),
    Kind(
        "recovery.known", "debug", "key {key}: recovery recipients are {recipients}",
        "A repository was read, and these recovery recipients can open it.",
    ),
    Kind(
        "recovery.tested", "info", "key {key}: the recovery key of {recipient} opens the repository",
        "A recovery key has opened a repository.",
    ),
    Kind(
        "recovery.used", "warning", "key {key} opens the repository from now on; recovery key {recipient} admitted it",
        "A recovery key admitted the key of this machine to a repository.",
        title="A recovery key was used",
        meaning="The key of this machine can read all backups in the repository from now on.",
        advice=(
            "If that was you: print a new recovery sheet if the old one was seen by others.",
            "If nobody knows about it, see who did it: dbguardctl audit show",
        ),
    ),
    Kind(
        "repository.created", "info", "storage {storage} was empty: a new repository was created in it",
        "A storage has a new repository.",
        title="A new repository was created",
        meaning="Storage {storage} was empty, so a new repository was created in it. An unmounted disk looks the same: "
                "if backups should have been there, check the mount.",
        advice=("See all storages:                 dbguardctl status",
                "Save the recovery key elsewhere:  dbguardctl key recovery-sheet"),
    ),
    Kind("repository.opened", "debug", "the repository in storage {storage} was opened", "A job opened a repository."),
    Kind(
        "restore.done", "info",
        "backup {backup} was restored to {target}[, as of {as_of_at}][, at {lsn} in its log][, {seconds}]"
        "[; the previous state is kept as backup {safety_copy}]",
        "A restore is complete and was compared.",
        title="A database was restored",
        meaning="Backup {backup} of {database} is at {target}. The content equals what was backed up.",
        advice=("After a restore in place, put the previous state back:  dbguardctl restore undo {database}",),
    ),
    Kind("restore.kept", "info", "{target} was not replaced and is unchanged", "A restore in place changed nothing."),
    Kind("restore.replacing", "debug", "{target} is being replaced", "A restore in place replaces the live database."),
    Kind(
        "restore.written", "debug", "backup {backup} was written to {target} and will be compared",
        "A restored copy was written and will be compared.",
    ),
    Kind("run.refused", "error", f"the scheduled {_REFUSED.removeprefix('the ')}", "A scheduled run was not started."),
    Kind(
        "run.skipped", "warning", "a scheduled {action} was skipped: {reason}",
        "A scheduled run was skipped, with the reason.",
        title="A scheduled run was skipped",
        meaning="Nothing was done at that time. Existing backups are not affected; the next run is as planned.",
        advice=("See what runs next:  dbguardctl schedule",),
    ),
    Kind("run.started", "debug", "a scheduled {action} was started", "A scheduled run was started."),
    Kind(
        "safety.unreadable", "error", "the safety copy {backup}, just stored, cannot be read: {problem} ({code})",
        "The safety copy of a restore in place, which was just stored, cannot be read.",
        title="A safety copy is damaged",
        meaning="Backup {backup} of {database} holds the state before a restore in place. The restore itself is not "
                "affected: it read the original files instead. But the previous state may be lost.",
        advice=("See what is affected:  dbguardctl check {database} --data",),
    ),
    Kind(
        "scan.refused", "error", "its repository cannot be read into the catalog: {problem} ({code})[. {detail}]",
        "A repository could not be read into the catalog.",
    ),
    Kind(
        "schedule.failed", "error", "schedules cannot be evaluated: {problem} ({code})[. {detail}]",
        "Schedules could not be evaluated.",
    ),
    Kind(
        "snapshot.fingerprinted", "debug",
        "the fingerprint of backup {backup} is stored: {tables:table}, {rows:row}[, as of {same_as}, page by page]",
        "The fingerprint of a backup is stored.",
    ),
    Kind(
        "snapshot.untold", "warning",
        "backup {backup} is stored without a fingerprint and will not be proven: {reason}",
        "A backup was stored, but no fingerprint of its content could be taken.",
    ),
    Kind(
        "staging.swept", "warning",
        "a job was cut short when dbguardd stopped; the copy that it left in the state directory was deleted",
        "At the start, files that killed workers had left of a database were deleted.",
    ),
    Kind("sweep.done", "info", "freed {freed_bytes} in {objects:object}", "The space of expired backups was freed."),
    Kind("sweep.done", "debug", "there was nothing to free", variant="nothing", when={"objects": 0}),
)
# fmt: on
"""Every row; a row without a variant applies when no variant of the event does."""

EVENTS: Mapping[str, tuple[Kind, ...]] = {
    kind.name: tuple(sorted((other for other in KINDS if other.name == kind.name), key=lambda other: not other.when))
    for kind in KINDS
}
"""The rows of each event by its name, the general one last."""

Facts = Mapping[str, Any]


def kind_of(event: Facts) -> Kind | None:
    """Return the row for an event with these facts, under the names that plain() gives them; None if there is none."""
    rows = EVENTS.get(str(event.get("event")), ())
    return next((row for row in rows if all(event.get(name) == value for name, value in row.when.items())), None)


def level_of(event: Facts) -> str:
    """Return the level of an event; info if the table has no row for it."""
    kind = kind_of(event)
    return "info" if kind is None else kind.level
