"""The status of each database and of the whole daemon.

Reads the catalog, judges by the rules, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta
from functools import cache

from dbguardd import __version__
from dbguardd.catalog import Catalog, Run, Summary, to_moment, to_text
from dbguardd.daemon.following import Following
from dbguardd.daemon.inforce import PolicyInForce, states_of
from dbguardd.daemon.installed import installed
from dbguardd.daemon.runner import Runner
from dbguardd.daemon.scheduler import Scheduler
from dbguardd.daemon.storages import Storages
from dbguardd.daemon.timetable import longest_gap, timing
from dbguardd.errors import (
    GuardError,
    ServerUnreachable,
    SourceMissing,
    from_problem,
    no_database,
)
from dbguardd.frozen import frozen
from dbguardd.humanize import size
from dbguardd.policy.policy import database_spec
from dbguardd.policy.schedule import Schedule
from dbguardd.rules import retention
from dbguardd.rules.calendar import next_due
from dbguardd.rules.coverage import TimeRange, coverage
from dbguardd.rules.objectives import Facts, judge, length
from dbguardd.rules.reliance import UNDO_DAYS
from dbguardd.states import SAFETY_NOTE, Grade, JobState
from dbguardd.wire import BackupRow, DatabaseStatus, KeyStatus, Status, StorageStatus

Lost = Callable[[str], GuardError | None]
"""Returns why nothing could be restored from a storage now; None if it could."""
_LEAST_ROOM = 16 << 20
_PATIENCE = timedelta(seconds=30)  # how long a log may wait for its first backup, or for its follower
_OF_SOURCE = "DBG-2"  # begins the codes of errors of a live database
_OF_WAY = ("DBG-3001", "DBG-4002", "DBG-5")  # errors that keep us from a repository: storage, mount, key


@frozen
class Views:
    """The parts from which the status is made."""

    catalog: Catalog
    inforce: PolicyInForce
    runner: Runner
    scheduler: Scheduler
    following: Following
    storages: Storages
    host: str
    machine_id: str  # for the jitter
    notes: tuple[str, ...] = ()  # what happened at start that a user should know
    found: dict[str, str] = field(default_factory=dict)  # faults of the daemon's own files, by their names

    def status(self, now: datetime) -> Status:
        """Return the content of the status screen."""
        keys = self.storages.keys()
        return Status(
            schema="dbguard.status/1",
            version=__version__,
            host=self.host,
            policy_loaded_at=to_text(self.inforce.loaded_at),
            policy_problem=None if self.inforce.problem is None else self.inforce.problem.problem(),
            timezone=str(self.inforce.policy.defaults.timezone),
            attention=list(self._attention()),
            databases=self.databases(now, keys),
            storages=[self._storage(name) for name in self.inforce.storages()],
            keys=keys,
        )

    def _storage(self, name: str) -> StorageStatus:
        """Return the status of one storage; if it has not been read, with the reason."""
        row, scan = self.storages.storage(name), self.runner.active(f"storage:{name}")
        if row.stored_bytes is not None:
            return row
        if scan is not None and scan.problem is None:
            return replace(row, reading_job=scan.id)
        problem = row.problem if scan is None else scan.problem
        if problem is None or not problem["retryable"]:
            return row
        hints = [*problem["hints"], "dbguardctl reload  # once that is corrected: the storage is read at once"]
        return replace(row, ok=False, problem={**problem, "hints": hints})

    def databases(self, now: datetime, keys: list[KeyStatus] | None = None) -> list[DatabaseStatus]:
        """Return every database of the policy in its order, then those that only have backups."""
        keys = self.storages.keys() if keys is None else keys
        recoverable = {key.name: bool(key.recovery) if key.known else None for key in keys}
        guarded = self.inforce.policy.names()
        orphans = {name: engine for name, engine in self.catalog.backups.databases().items() if name not in guarded}
        lost = cache(self.storages.lost)
        found = [self._database(name, now, recoverable, lost) for name in guarded]
        return found + [self._orphan(name, engine, now, lost) for name, engine in sorted(orphans.items())]

    def names(self) -> list[str]:
        """Return every database of the policy, then those that only have backups."""
        return list(dict.fromkeys((*self.inforce.policy.names(), *self.catalog.backups.databases())))

    def database(self, name: str, now: datetime) -> DatabaseStatus:
        """Return one database. Raises NotFound."""
        found = {row.name: row for row in self.databases(now)}
        if name not in found:
            raise no_database(name, found)
        return found[name]

    def backups(self, name: str, now: datetime) -> list[BackupRow]:
        """Return the backups of one database, newest first, with what keeps each and until when. Raises NotFound."""
        rows = self.catalog.backups.of(name)
        if name not in self.inforce.policy.names():
            if not rows:
                raise no_database(name, self.names())
            return [replace(row, kept_because=["not in the policy: nothing expires"]) for row in rows]
        guarded = self.inforce.policy.guarded(name)
        keep = retention.Keep.from_spec(database_spec(guarded, lambda user: 0))
        facts = states_of(rows)
        kept = retention.decide(facts, keep, now).keep
        when = timing(guarded, guarded.backup, f"{name} backup", self.machine_id)
        ends = retention.departures(facts, keep, now, lambda moment: next_due(when, moment))
        goes = guarded.expire if isinstance(guarded.expire, Schedule) else guarded.backup
        expire = next_due(timing(guarded, goes, f"{name} expire", self.machine_id), now)
        for row in rows:
            row.kept_because = [
                reason for reason in kept.get(row.id, ()) if not reason.startswith('hold "')
            ]  # holds are reported in `holds`
            end = ends.get(row.id) if row.id in kept else expire
            row.expires_at = None if end is None or row.holds else to_text(end)
        return rows

    def _attention(self) -> Iterable[str]:
        yield from self.notes
        yield from self.found.values()
        if (version := installed()) not in ("", __version__):
            what = (
                f"dbguardd {__version__} is running, but {version} is installed: no job starts before it is restarted"
            )
            yield f"{what} (systemctl restart dbguardd)"
        if self.inforce.problem is not None:
            yield f"the policy files were refused: {self.inforce.problem.message}"
        if self.runner.trouble is not None:
            yield f"the catalog could not be written: {self.runner.trouble.message}"
        room = self.storages.paths.level(str(self.inforce.state)).free_bytes
        if room is not None and room < _LEAST_ROOM:
            yield f"the state directory {self.inforce.state} has only {size(room)} free: jobs will fail"
        doubt = self.scheduler.doubt()
        if doubt is not None:
            yield doubt
        yield from self.following.left_behind()
        for name in self.inforce.storages():
            run = self.catalog.runs.get(f"storage:{name}", "sweep")
            if run is not None and run.problem is not None:
                yield f"storage {name}: the last sweep failed: {run.problem.get('message', '')}"

    def _database(self, name: str, now: datetime, recoverable: dict[str, bool | None], lost: Lost) -> DatabaseStatus:
        guarded = self.inforce.policy.guarded(name)
        summary = self.catalog.backups.summary(name)
        failing = self._failing(name)
        nowhere = all(self.storages.paths.level(place).missing for place in guarded.places)
        missing = guarded.place if guarded.place and nowhere else ""
        worst = max(failing, key=lambda run: run.finished_at or "", default=None)
        pause = self.catalog.pauses.active(to_text(now)).get(name)
        newest, proven, held = summary.newest, summary.proven, summary.proven or summary.newest
        away = lost(held.storage) if held else None
        gone = away or lost(guarded.storage[0])
        active, ahead = self.runner.active(name), self.scheduler.next_run(name, ("backup", "verify"))
        rpo, rto = guarded.objective.rpo, guarded.objective.rto
        logged, unlogged = self._logged(name, proven), self._unlogged(name, newest, now)
        facts = Facts(
            name=name,
            backups=summary.count,
            unread=self.storages.is_unread(guarded.storage[0]),
            lost=gone.message if gone else "",
            missing=missing,
            served=guarded.url is not None,
            newest_at=_moment(newest.created_at if newest else None),
            newest_failure=(newest.failure or "") if newest else "",
            newest_doubt=self._doubt(newest),
            failed=summary.failed,
            recoverable_to_at=_moment(logged or (proven.created_at if proven else None)),
            log_problem=unlogged,
            restore_seconds=proven.restore_seconds if proven else None,
            rpo=rpo,
            rto=rto,
            interval=longest_gap(guarded),
            verified=guarded.verify != "off",
            overdue_since_at=self._overdue(name),
            failures=sum(run.failures for run in failing),
            failing_since_at=min(
                (to_moment(run.failing_since_at) for run in failing if run.failing_since_at), default=None
            ),
            problem=str((worst.problem or {}).get("message", "")) if worst else "",
            failed_job=(worst.job or "") if worst else "",
            paused=pause is not None,
            paused_until_at=_moment(pause.until_at if pause else None),
            key=guarded.key,
            has_recovery=recoverable.get(guarded.key),
        )
        kind = ServerUnreachable if guarded.url else SourceMissing
        here = kind(f"{missing}: no such {'socket' if guarded.url else 'file'}") if missing else None
        trouble = gone or here or (from_problem(worst.problem) if worst and worst.problem else None)
        row = self._row(facts, guarded.engine, summary, now, trouble)
        expire = self.catalog.runs.get(name, "expire")
        if expire is not None and expire.problem is not None:  # old backups stay: worth a mention, but nothing is lost
            row.attention.append(f"{name}: the last expiry failed: {expire.problem.get('message', '')}")
            row.hints.append(f"dbguardctl job show {expire.job}")
        row.next_run_at, row.next_verb = (to_text(ahead[0]), ahead[1]) if ahead else (None, None)
        if active and active.problem and active.state is JobState.QUEUED:  # an attempt failed, and a retry waits
            what = f"{name}: {active.verb} failed and will be retried: {active.problem.get('message', '')}"
            row.attention.insert(0, what)
            row.problem = row.problem if gone else active.problem  # the problem that the text above describes
            row.next_run_at, row.next_verb, active = active.problem.get("next_try_at"), active.verb, None
        since = _moment(self.catalog.settings.get(f"replacing:{name}") or None)
        if since and not (active and active.verb in ("restore", "undo")) and now - since < timedelta(days=UNDO_DAYS):
            what = "restore or undo it again" if guarded.url else "the database is complete, as before or restored"
            row.attention.append(f"{name}: a restore in place was interrupted; {what}")
            row.hints.append(f"dbguardctl restore undo {name}")
        self._say_of_log(row, now)
        if worst and not gone and _code(worst).startswith(_OF_WAY):
            row.hints.insert(0, f"dbguardctl check {name}  # shows whether this is settled; a backup does, too")
        if away:
            row = _unrecoverable(row)
        return replace(
            row,
            recoverable_to_at=(logged if row.recoverable_to_at else None) or row.recoverable_to_at,
            continuous=bool(guarded.continuous),
            log_problem=unlogged or None,
            log_proof=self.following.proof(name) if guarded.continuous else None,
            rpo_seconds=rpo.total_seconds() if rpo else None,
            rto_seconds=rto.total_seconds() if rto else None,
            paused_until_at=pause.until_at if pause else None,
            running_job=active.id if active else None,
        )

    def _failing(self, name: str) -> list[Run]:
        """Return the last backup and verification of a database if they failed for a reason that still holds."""
        known = [run for verb in ("backup", "verify", "check") if (run := self.catalog.runs.get(name, verb))]
        opened = max((run.succeeded_at or "" for run in known), default="")
        over = {_OF_SOURCE: self.catalog.settings.get(f"restored:{name}") or "", **dict.fromkeys(_OF_WAY, opened)}
        return [run for run in known if run.verb != "check" and run.problem and not _is_mended(run, over)]

    def _say_of_log(self, row: DatabaseStatus, now: datetime) -> None:
        """Add what is wrong with the log of a database, and what helps."""
        if troubles := self.following.trouble(row.name, now):
            row.attention += [f"{row.name}: {one}" for one in troubles]
            row.hints.append(f"dbguardctl log {row.name}")
        if (problem := self.following.problem(row.name)) is not None:
            row.hints += [hint for hint in problem.hints if hint not in row.hints]

    def _doubt(self, backup: BackupRow | None) -> str:
        """Return why a backup was restored without a failed check and still not proven; empty if that is not so."""
        if backup is None or backup.grade is not Grade.RESTORED or backup.failure or backup.note == SAFETY_NOTE:
            return ""
        found = next((proof.facts.get("findings", ()) for proof in self.catalog.proofs.of(backup.id)), ())
        return "; ".join(f"{one['name']}: {one['detail']}" for one in found if one["outcome"] == "inconclusive")

    def _logged(self, name: str, proven: BackupRow | None) -> str | None:
        """Return up to when the log is stored that continues from the last proven backup; None without such a log."""
        covered = self.following.covered(name)[-1:]
        if proven is None or not covered or proven.created_at < covered[0].since_at:
            return None
        return max(covered[0].until_at, proven.created_at)

    def _unlogged(self, name: str, newest: BackupRow | None, now: datetime) -> str:
        """Return why nothing of a database's log could be restored now; empty if it could, or if it is not followed."""
        if not self.inforce.policy.guarded(name).continuous:
            return ""
        if (problem := self.following.problem(name)) is not None:
            return f"its log is not followed now: {problem.message.removeprefix(f'{name}: ')}"
        if (silent := timedelta(seconds=self.following.silent_seconds(name))) > _PATIENCE:
            return f"its log is {length(silent)} behind: what was committed since then may not be stored yet"
        covered = self.following.covered(name)[-1:]
        if not covered or newest is None or newest.created_at >= covered[0].since_at:
            return ""
        waits = now - to_moment(covered[0].since_at)
        return "its log waits for a backup to start from" if waits > _PATIENCE else ""

    def coverage(self, name: str) -> list[TimeRange]:
        """Return the time ranges to which a database can be restored, oldest first."""
        return coverage(
            [row.logged() for row in self.following.covered(name)], states_of(self.catalog.backups.of(name))
        )

    def _orphan(self, name: str, engine: str, now: datetime, lost: Lost) -> DatabaseStatus:
        summary = self.catalog.backups.summary(name)
        held = summary.proven or summary.newest
        gone = lost(held.storage) if held else None
        facts = Facts(name=name, in_policy=False, backups=summary.count, lost=gone.message if gone else "")
        row = self._row(facts, engine, summary, now, gone)
        if gone:
            return _unrecoverable(row)
        return replace(row, recoverable_to_at=self._logged(name, summary.proven) or row.recoverable_to_at)

    def _row(
        self, facts: Facts, engine: str, summary: Summary, now: datetime, problem: GuardError | None
    ) -> DatabaseStatus:
        judgement, proven, newest = judge(facts, now), summary.proven, summary.newest
        return DatabaseStatus(
            name=facts.name,
            engine=engine,
            state=judgement.state,
            recoverable_to_at=proven.created_at if proven else None,
            recoverable_since_at=summary.proven_since_at,
            last_proven_at=proven.proven_at if proven else None,
            proven_backup=proven.id if proven else None,
            restore_seconds=proven.restore_seconds if proven else None,
            next_run_at=None,
            next_verb=None,
            backups=summary.count,
            source_bytes=newest.source_bytes if newest else None,
            excluded=newest.excluded if newest else [],
            excluded_tables=newest.excluded_tables if newest else 0,
            left_out=newest.left_out if newest else [],
            rpo_seconds=None,
            rto_seconds=None,
            paused_until_at=None,
            running_job=None,
            problem=problem.problem() if problem else None,
            attention=list(judgement.attention),
            hints=list(judgement.hints),
        )

    def _overdue(self, name: str) -> datetime | None:
        for item in self.scheduler.planned():
            if item.target == name and item.verb == "backup":
                verdict = self.scheduler.judge(item)
                return verdict.planned_at if verdict.overdue else None
        return None


def _is_mended(run: Run, since: Mapping[str, str]) -> bool:
    """Return whether the cause of a failed run is gone: `since` has, by the prefix of error codes, when that was seen.

    It is gone after a restore in place has replaced the live database, or after a repository was opened again.
    """
    return any(_code(run).startswith(kind) and (run.finished_at or "") < at for kind, at in since.items())


def _code(run: Run) -> str:
    return str((run.problem or {}).get("code", ""))


def _unrecoverable(row: DatabaseStatus) -> DatabaseStatus:
    """Return the row without anything that could be restored: the storage is not available, whatever was proven."""
    return replace(row, recoverable_to_at=None, recoverable_since_at=None, proven_backup=None)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else to_moment(text)
