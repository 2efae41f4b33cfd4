"""Every event that dbguard reports: one row of the table for each way in which it reads.

The log, `dbguardctl log`, the journal's catalog and dbguardd(8) all derive from this table, so a new event needs only a
new row here. In a sentence, braces hold the name of a fact. The end of the name decides how its value is formatted:
{stored_bytes} as a size, {restore_seconds} as a duration, {until_at} as a moment; {tables:table} is a number with its
noun. A part in brackets is left out when a fact in it is unknown. The subject of the sentence (the database, else the
storage) is put before it automatically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dbguardd.errors import message_id

LEVELS = ("debug", "info", "warning", "error")
"""From a step that matters only when searching for a fault, to what a person should act on."""


@dataclass(frozen=True, slots=True)
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
_REFUSED = "the {action} was not taken: {problem} ({code})[. {detail}]"

# fmt: off
KINDS: tuple[Kind, ...] = (
    Kind(
        "api.accept_failed", "warning", "a connection could not be taken[: {reason}]",
        "The socket could not take a connection.",
    ),
    Kind(
        "api.failed", "error", "the request {path} failed because of a bug",
        "A request failed because of a bug; the log has its trace.",
        title="A request failed because of a bug",
        meaning="Jobs and schedules are not affected. Whoever asked was told that there is a bug, and no more.",
        advice=("Keep this entry with its trace, and report it.",),
    ),
    Kind(
        "audit.entry", "info", "audit {seq}: {actor}, {what}[ of {object}]: {result}",
        "An entry of the audit log, so that the journal is a second witness.",
    ),
    Kind(
        "backup.done", "debug", "backup {backup} is complete[, {seconds}]",
        "The copy, its fingerprint and the plain copies of a backup are complete.",
    ),
    Kind(
        "backup.expired", "info",
        "backup {backup} has expired[: {reasons}][; it can be recalled until {grace_until_at}]",
        "Retention gave up a backup; its bytes stay for the grace of the storage.",
        title="Retention gave up a backup",
        meaning="The policy no longer keeps backup {backup}. Its bytes stay for the grace of the storage; the sweep "
                "frees them after that.",
        advice=("Bring it back:  dbguardctl recall {backup}", "Then keep it:   dbguardctl hold {backup} --reason TEXT"),
    ),
    Kind(
        "backup.graded", "error", "backup {backup} is NOT proven, only {grade}[: {failure}]",
        "A backup was verified; grade, proof and time of the restore are known.",
        title="A backup cannot be relied on",
        meaning="Backup {backup} of {database} was restored into a private place, and something was not as it should "
                "be; or a check or a restore found what it needs damaged. It does not count as the last good one, is "
                "restored by its id only, and is kept for a week as evidence. "
                "The live database was not touched. Last proven backup: {last_proven}.",
        advice=("See what failed:  dbguardctl show {backup}", "Make a new one:   dbguardctl backup {database} --full"),
    ),
    Kind(
        "backup.graded", "info", "backup {backup} is proven[: a restore takes {restore_seconds}]",
        variant="proven", when={"grade": "proven"},
        title="A backup is proven",
        meaning="Backup {backup} of {database} was restored into a private place, and its content equals the "
                "fingerprint that was taken in its own snapshot. It can be restored.",
        advice=("Get it back at a new place:  dbguardctl restore {database} --id {backup} --to PATH",),
    ),
    Kind(
        "backup.graded", "warning", "backup {backup} is not proven, only {grade}: nothing failed, but not all is known",
        variant="inconclusive", when={"failure": None},
        title="A backup could not be proven",
        meaning="Backup {backup} of {database} was restored, and nothing failed; but it cannot be compared with its "
                "snapshot, because it has no fingerprint. A safety copy of a restore in place has none, nor has a "
                "backup that was interrupted. Last proven backup: {last_proven}.",
        advice=("See what is not known:        dbguardctl show {backup}",
                "Make one that can be proven:  dbguardctl backup {database}"),
    ),
    Kind("backup.held", "info", "backup {backup} is held[ by {actor}]: {reason}", "A backup got a hold."),
    Kind("backup.recalled", "info", "backup {backup} is back", "An expired backup is back."),
    Kind("backup.released", "info", "backup {backup} is no longer held[: {reason}]", "A hold ended."),
    Kind(
        "backup.stored", "info", "backup {backup} is stored[, {stored_bytes} new][, {seconds}]",
        "A backup is durable and was read back: it is acknowledged.",
        title="A backup is stored",
        meaning="Backup {backup} of {database} is durable, and was read back from its storage and decrypted. That it "
                "can be restored is not proven yet; a verification does that.",
        advice=("See it:        dbguardctl show {backup}", "Prove it now:  dbguardctl verify {backup}"),
    ),
    Kind(
        "backup.swept", "info", "backup {backup} is gone: its bytes are no longer needed and were freed",
        "The bytes of an expired backup are gone.",
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
        title="A check found something wrong",
        meaning="Something that a restore of {database} will need is not as it should be.",
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
        "clock.doubted", "error", "the system clock is not believable: {problem}",
        "The system clock is not believable; nothing is deleted meanwhile.",
        title="The system clock is not believable",
        meaning="Backups go on. Nothing is deleted by schedule for a day, so that a wrong clock cannot make backups "
                "look older than they are.",
        advice=("Look at the clock:                      timedatectl",
                "Once it is right, this ends the doubt:  systemctl restart dbguardd"),
    ),
    Kind(
        "clock.stepped", "warning", "the system clock was set by {seconds}",
        "Somebody set the system clock.",
    ),
    Kind(
        "daemon.broken", "error", "a part of dbguardd failed, so it ends and is started again: {problem}",
        "A part of the daemon failed; it ends and is started again.",
        title="dbguardd ends because of a bug",
        meaning="What was acknowledged is safe. Jobs that ran are interrupted, and repeated after the start.",
        advice=("Keep the journal around this entry, and report the bug.",),
    ),
    Kind(
        "daemon.failed", "error", "dbguardd did not start: {problem} ({code})[. {detail}]",
        "The daemon did not start; without a journal it says so on standard error.",
    ),
    Kind(
        "daemon.ready", "info", "dbguardd is ready and guards {databases:database}[. Next: {next}]",
        "The daemon answers.",
    ),
    Kind("daemon.stopping", "info", "dbguardd stops and takes no more jobs", "The daemon takes no more jobs."),
    Kind("daemon.stopped", "info", "dbguardd has ended", "The daemon has ended."),
    Kind(
        "database.paused", "info", "paused[ by {actor}][ until {until_at}]",
        "No scheduled jobs of a database for a while.",
        title="The schedule of a database is paused",
        meaning="No scheduled jobs of {database} start until the pause ends. Backups by hand still work; what exists "
                "is not affected, and grows older.",
        advice=("End the pause:  dbguardctl resume {database}",),
    ),
    Kind("database.resumed", "info", "no longer paused[, says {actor}]", "A pause ended."),
    Kind(
        "job.cancelled", "warning", "{action} was cancelled[: {problem}][ ({code})]",
        "Somebody stopped a job.",
    ),
    Kind(
        "job.crashed", "error", "a job[ {job}] failed because of a bug",
        "A job failed because of a bug; the log has its trace.",
        title="A job failed because of a bug",
        meaning="That job has failed. What was acknowledged before stays, and the daemon goes on.",
        advice=("Keep this entry with its trace, and report it.",),
    ),
    Kind("job.done", "debug", "{action} is done[, {seconds}]", "A job has ended well."),
    Kind("job.done", "info", "check is done[, {seconds}]", variant="check", when={"action": "check"}),
    Kind("job.failed", "error", _FAILED, "A job has failed; the fact problem says why."),
    Kind("job.failed", "debug", f"a dry run of {_FAILED}", variant="dry run", when={"dry_run": True}),
    Kind(
        "job.interrupted", "warning", "{action} was interrupted[: {problem}][ ({code})]",
        "A job ended with the daemon that ran it.",
    ),
    Kind("job.queued", "debug", "{action} waits for its turn[, asked for by {actor}]", "A job waits for its turn."),
    Kind(
        "job.refused", "warning", _REFUSED,
        "A job that should follow another one was not taken.",
    ),
    Kind(
        "job.retrying", "warning", "{action} is tried again in {wait_seconds}: {problem} ({code})[. {detail}]",
        "A job failed for a reason that may pass, and will be tried again.",
    ),
    Kind("job.started", "debug", "{action} runs[, attempt {attempt}]", "A job runs."),
    Kind("library.said", "warning", "{logger}: {text}", "A library that dbguard uses has something to say."),
    Kind(
        "log.audited", "error", "the live database is NOT what its log says: {detail}",
        "All of a live database was compared with its log.",
        title="A database was changed past its log",
        meaning="Pages of {database} are not what was committed to them: its file was damaged or written to by another "
                "program, or commits were not followed. Its log begins anew; backups and moments of before are as good "
                "as they were.",
        advice=("Is the database sound?  dbguardctl backup {database} --verify",),
    ),
    Kind("log.audited", "debug", "the live database is what its log says", variant="ok", when={"outcome": "ok"}),
    Kind(
        "log.begun", "warning", "its log is followed anew: {because}[; it was stored up to {stored_until_at}]",
        "The log of a database is followed.",
        title="A log could not be continued",
        meaning="Until now the log of {database} was stored up to the moment that is named, and from now on it is "
                "stored again. What was committed in between is in the live database, but no moment between can be "
                "restored. A backup is made at once, and any second after it can be restored.",
        advice=("See what can be restored:  dbguardctl list {database}",),
    ),
    Kind("log.begun", "info", "its log is followed[, without a gap since {begun_at}]",
         variant="continued", when={"continued": True}),
    Kind("log.begun", "info", "its log is followed from now on", variant="first", when={"stored_until_at": None}),
    Kind(
        "log.crashed", "error", "its log is not followed because of a bug",
        "The log of a database is not followed because of a bug; the log has its trace.",
        title="A log is not followed because of a bug",
        meaning="What is committed to {database} is not stored before the next backup. It is tried again.",
        advice=("Keep this entry with its trace, and report it.",),
    ),
    Kind(
        "log.forgotten", "info", "{objects:object} of its log are older than keep_log: deleted[, {bytes}]",
        "What is older than keep_log was deleted from the log of a database.",
    ),
    Kind(
        "log.held", "warning", "its log has {log_bytes} and cannot begin anew: {by} keeps reading",
        "Somebody holds the log of a database, which grows meanwhile; or nobody does any more.",
        title="A log grows because somebody keeps reading",
        meaning="As long as a reader stays in one transaction, SQLite cannot begin the log of {database} anew. What is "
                "committed is stored as ever; the log takes up more and more of the disk.",
        advice=("End that transaction, or the process that is named.",),
    ),
    Kind("log.held", "info", "its log can begin anew: nobody holds it any more", variant="free", when={"by": []}),
    Kind(
        "log.interrupted", "warning", "its log is not followed: {problem} ({code})[. {detail}]",
        "The log of a database is not followed any more; it is tried again.",
        title="A log is not followed",
        meaning="What is committed to {database} from now on is not stored before the log is followed again, or the "
                "next backup is made. The application is not affected.",
        advice=("See whether it goes on:  dbguardctl status {database}",
                "See what happened:       dbguardctl log {database}"),
    ),
    Kind("log.known", "debug", "{chains:part} of its log found in the storage",
         "The log of a database was found in a storage."),
    Kind(
        "log.left", "warning",
        "its log is followed no more, and its server may keep it still: {problem} ({code})[. {detail}]",
        "A log is not followed any more, as the policy says.",
        title="A server may keep its log for nobody",
        meaning="The log of {database} is followed no more. On its server a replication slot may be left over, which "
                "keeps the log, up to max_slot_wal_keep_size, for nobody.",
        advice=("Find it:  SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'dbguard%' AND NOT active;",
                "Drop it:  SELECT pg_drop_replication_slot('NAME');"),
    ),
    Kind("log.left", "info", "its log is followed no more", variant="done", when={"problem": None}),
    Kind(
        "log.thinned", "info", "its log up to {until_at} has one moment in {grain_seconds}: {bytes}, not {freed_bytes}",
        "What is old enough of the log of a database was made coarser, as thin_log asks for.",
    ),
    Kind(
        "log.thinned", "warning", "its log was not made coarser: {problem} ({code})",
        variant="failed", when={"outcome": "failed"},
        title="A log could not be made coarser",
        meaning="A part of the log of {database} cannot be read. All of it stays as it is, and takes up more space "
                "than it should, until that part is older than keep_log.",
        advice=("See what is damaged:  dbguardctl check {database} --data",),
    ),
    Kind(
        "log.tried", "info", "restored as it was at {moment_at}: {detail}",
        "A random moment of the log of a database was restored into a private place, and compared.",
    ),
    Kind("log.tried", "warning", "restored as it was at {moment_at}, which is not proven by that: {detail}",
         variant="inconclusive", when={"outcome": "inconclusive"}),
    Kind(
        "log.tried", "error", "its log can NOT be restored[, as it was at {moment_at}]: {detail}",
        variant="failed", when={"outcome": "failed"},
        title="A log cannot be relied on",
        meaning="The log of {database} was put over a backup in a private place, and something was not as it should "
                "be. The backups are not affected: each can be restored as it was made. From a new backup on the log "
                "is good again.",
        advice=("Make a new backup:    dbguardctl backup {database}",
                "See what is damaged:  dbguardctl check {database} --data"),
    ),
    Kind(
        "log.turned", "warning",
        "another server took over, or it was restored: its log goes on without a gap[, {lost_bytes} of it left behind]",
        "The log of a database goes on along the history of the server that has taken over.",
        title="Another server has taken over",
        meaning="The log of {database} goes on along the timeline of a server that was promoted, or restored. What is "
                "named as left behind was stored, and that server did not have it: a restore of a moment before has "
                "it, and none of a later moment. A backup is made at once.",
        advice=("See what can be restored:  dbguardctl list {database}",),
    ),
    Kind(
        "log.unreadable", "warning", "the end of its log in the storage cannot be read: {problem}",
        "The end of a log in the storage cannot be read; it is begun anew.",
    ),
    Kind(
        "parent.unreadable", "warning", "backup {backup} cannot build upon the one before: {problem} ({code})",
        "A backup could not build upon the one before, and stores more than it would.",
        title="A backup could not build upon the one before",
        meaning="Backup {backup} of {database} is whole: what it could not take from the backup before is stored "
                "again. But that earlier backup may be damaged.",
        advice=("Learn which backups are affected:  dbguardctl check {database} --data",),
    ),
    Kind("plain.written", "info", "a plain copy of backup {backup} is at {path}", "A plain copy was written."),
    Kind("policy.loaded", "info", "the policy is in force: {databases:database}", "A policy is in force."),
    Kind(
        "policy.refused", "error", "the policy was refused, the old one stays in force: {problem} ({code})[. {detail}]",
        "A policy was not taken over; the old one stays in force.",
    ),
    Kind(
        "question.restoring", "info",
        "backup {backup} is brought back to be asked: {needs_bytes}[, as a rule in {usual_seconds}]",
        "A question begins to bring a backup back to where its answer is found.",
    ),
    Kind(
        "recovery.added", "info", "key {key}: the recovery recipient {recipient} can open the repository from now on",
        "A recovery recipient can open a repository.",
        title="Somebody else can open the repository from now on",
        meaning="The holder of the secret of {recipient} can read every backup in this storage, without this machine.",
        advice=("If that is a surprise, see who asked for it:  dbguardctl audit show",),
    ),
    Kind(
        "recovery.dropped", "warning", "key {key}: the recovery recipient {recipient} no longer opens the repository",
        "A recovery recipient was taken away.",
        title="A recovery sheet no longer opens the repository",
        meaning="The holder of the secret of {recipient} can read copies of the storage from before, and no others.",
        advice=("Test that another sheet opens the backups:  dbguardctl key recovery-test {key}",),
    ),
    Kind(
        "recovery.known", "debug", "key {key}: recovery recipients are {recipients}",
        "A repository was read again, and these recovery recipients can open it.",
    ),
    Kind(
        "recovery.tested", "info", "key {key}: the recovery key of {recipient} opens the repository",
        "A recovery key has opened a repository.",
    ),
    Kind(
        "recovery.used", "warning", "key {key}: opens the repository from now on; let in by recovery key {recipient}",
        "A recovery key has let the key of this machine open a repository.",
        title="A recovery key was used",
        meaning="The key of this machine can read all backups in the repository from now on.",
        advice=(
            "If that was you: print a new recovery sheet if the old one was seen by others.",
            "If nobody knows of it, see who asked: dbguardctl audit show",
        ),
    ),
    Kind(
        "repository.created", "info", "storage {storage} was empty: a new repository was made in it",
        "A storage has a new repository.",
        title="A new repository was made",
        meaning="Storage {storage} was empty, so a new repository was made in it. An empty mount point looks like that "
                "too: if backups should have been there, the disk was not mounted.",
        advice=("See which storages there are:     dbguardctl status",
                "Save the recovery key elsewhere:  dbguardctl key recovery-sheet"),
    ),
    Kind("repository.opened", "debug", "the repository in storage {storage} was opened", "A job opened a repository."),
    Kind(
        "restore.done", "info",
        "backup {backup} is restored to {target}[, as of {as_of_at}][, {seconds}]"
        "[; the previous state is kept as backup {safety_copy}]",
        "A restored copy is in its place and was compared.",
        title="A database was restored",
        meaning="Backup {backup} of {database} is at {target}. The content equals what was backed up.",
        advice=("After a restore in place, put back the state before:  dbguardctl restore undo {database}",),
    ),
    Kind("restore.kept", "info", "{target} was not replaced and is as it was", "A restore in place changed nothing."),
    Kind("restore.replacing", "debug", "{target} is being replaced", "A restore in place replaces the live database."),
    Kind(
        "restore.written", "debug", "backup {backup} is written to {target} and will be compared",
        "A restored copy is written and will be compared.",
    ),
    Kind("run.refused", "error", f"the scheduled {_REFUSED.removeprefix('the ')}", "A scheduled run was not taken."),
    Kind(
        "run.skipped", "warning", "a scheduled {action} was left out: {reason}",
        "A scheduled run was left out, with the reason.",
        title="A scheduled run was left out",
        meaning="Nothing was done at that time. What exists is not affected; the next run is as planned.",
        advice=("See what runs next:  dbguardctl schedule",),
    ),
    Kind("run.started", "debug", "a scheduled {action} is taken", "A scheduled run was taken."),
    Kind(
        "safety.unreadable", "error", "the safety copy {backup}, just stored, cannot be read: {problem} ({code})",
        "The safety copy of a restore in place, which was just stored, cannot be read.",
        title="A safety copy is damaged",
        meaning="Backup {backup} of {database} keeps what was there before a restore in place. The restore is not "
                "affected: it has read the files themselves. But the state before may not come back.",
        advice=("Learn what is affected:  dbguardctl check {database} --data",),
    ),
    Kind(
        "scan.refused", "error", "its repository cannot be read into the catalog: {problem} ({code})[. {detail}]",
        "A repository could not be read into the catalog.",
    ),
    Kind(
        "schedule.failed", "error", "schedules cannot be looked at: {problem} ({code})[. {detail}]",
        "Schedules could not be looked at.",
    ),
    Kind(
        "snapshot.fingerprinted", "debug",
        "the fingerprint of backup {backup} is stored: {tables:table}, {rows:row}[, as of {same_as}, page by page]",
        "The fingerprint of a backup is stored.",
    ),
    Kind(
        "snapshot.untold", "warning",
        "backup {backup} is stored without a fingerprint and will not be proven: {reason}",
        "A backup was stored, but what it contains could not be told exactly.",
    ),
    Kind(
        "staging.swept", "warning",
        "a job was cut short by the end of dbguardd; the copy that it had left in the state directory is deleted",
        "What workers that were killed had left of a database was removed at the start.",
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
