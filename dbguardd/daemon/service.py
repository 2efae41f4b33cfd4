"""What the API can ask for: checks each request, writes the audit log, and calls the part that answers it.

Implements api.service.Service without importing it; __main__ connects the two.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from typing import IO, Any

from dbguardd.catalog import Audit, Catalog, Pause, Who, to_moment, to_text
from dbguardd.daemon import asked, configuration, keyring, protect
from dbguardd.daemon.live import Order
from dbguardd.daemon.operations import Operations
from dbguardd.daemon.peers import Peer, Refusals, role_of
from dbguardd.errors import ConfirmMissing, GuardError, Internal, NotFound, Usage, no_database
from dbguardd.requests import REQUESTS
from dbguardd.serialize import to_json
from dbguardd.states import JobState, Role
from dbguardd.wire import BackupRow, CoverageRow, Event, EventRange, ExpiredRow, JobRow, LogProof, Status

Json = dict[str, Any]
HEARTBEAT_SECONDS = 15.0
_BATCH = 500


class Service:
    """The answers of one daemon."""

    def __init__(self, operations: Operations) -> None:
        self._do = operations
        self._refusals = Refusals()

    @property
    def _catalog(self) -> Catalog:
        return self._do.catalog

    @property
    def _audit(self) -> Audit:
        return self._do.audit

    # ------------------------------------------------------------------------------------------------ who

    def role(self, actor: Peer) -> Role | None:
        """Return the role that the policy in force gives to this peer; None if it may not even read."""
        return role_of(actor, self._do.inforce.policy.access)

    def denied(self, actor: Peer, action: str) -> None:
        """Record a refused request in the audit log; the same one within a minute is only counted."""
        count = self._refusals.count(actor.uid, action, self._do.clock.steady())
        if count is not None:
            self._note(actor, action, "", "denied", {"repeated": count} if count else {})

    # ------------------------------------------------------------------------------------------------ looking

    async def look(self) -> None:
        """Measure storages and keys again; a path that does not answer at once is not waited for."""
        await self._do.views.storages.paths.glance(self._do.views.storages.places())
        self._do.look_again()

    def status(self) -> Status:
        """Return the content of the status screen."""
        return self._do.views.status(self._do.now())

    def backups(self, database: str) -> list[BackupRow]:
        """Return the backups of one database, newest first, with what keeps each. Raises NotFound."""
        return self._do.views.backups(database, self._do.now())

    def expired(self, database: str) -> list[ExpiredRow]:
        """Return the backups that have expired and are not deleted yet, newest first."""
        return self._catalog.backups.expired(database)

    def coverage(self, database: str) -> tuple[list[CoverageRow], LogProof | None]:
        """Return the time ranges to which a database can be restored, oldest first, and the proof of its log."""
        found = self._do.views.coverage(database)
        rows = [CoverageRow(to_text(one.since), to_text(one.until), one.grain_seconds) for one in found]
        return rows, self._do.views.following.proof(database)

    def show(self, id: str) -> Json:
        """Return one backup, job or database in full, by its id, the first characters of the id, or its name."""
        now = self._do.now()
        if id in self._do.inforce.policy.names() or id in self._catalog.backups.databases():
            return {"kind": "database", "database": to_json(self._do.views.database(id, now))}
        try:
            found = self._catalog.backups.get(id)
        except NotFound as missing:
            try:
                job = self._do.runner.job(id)
            except NotFound:
                if missing.facts:  # the backup has expired
                    return self._shown(self._catalog.backups.get(id, expired=True))
                error = no_database(id, self._do.views.names())
                error.message = f"{id}: no such backup, job or database"
                raise error from None
            events = self._catalog.events.find(EventRange(job=job.id), _BATCH)
            return {"kind": "job", "job": to_json(job), "events": to_json(events)}
        return self._shown(next(row for row in self._do.views.backups(found.database, now) if row.id == found.id))

    def _shown(self, row: BackupRow) -> Json:
        gone = next((gone for gone in self._catalog.backups.expired(row.database) if gone.backup.id == row.id), None)
        expired = {} if gone is None else {"expired_at": gone.expired_at, "recall_until_at": gone.recall_until_at}
        proofs = [{**asdict(proof), "facts": dict(proof.facts)} for proof in self._catalog.proofs.of(row.id)]
        holds = [asdict(hold) for hold in self._catalog.holds.of(row.id)]
        return {"kind": "backup", "backup": to_json(row), "proofs": proofs, "holds": holds, "expired": expired or None}

    def schedule(self, count: int) -> Json:
        """Return the next planned runs."""
        texts = {(item.target, item.verb): item.timing.schedule for item in self._do.scheduler.planned()}
        runs = []
        for run in self._do.scheduler.upcoming(count):
            plan, storage = texts[run.target, run.verb], run.target.removeprefix("storage:")
            runs.append(
                {
                    "at": to_text(run.at),
                    "database": run.target if storage == run.target else None,
                    "storage": storage if storage != run.target else None,
                    "verb": run.verb,
                    "schedule": plan.text,
                    "means": plan.explain(),
                    "state": "paused" if run.paused else "",
                }
            )
        return {"timezone": str(self._do.inforce.policy.defaults.timezone), "runs": runs}

    # ------------------------------------------------------------------------------------------------ jobs

    def submit(self, verb: str, fields: Mapping[str, Any], actor: Peer, idempotency_key: str | None) -> JobRow:
        """Queue a job; the same key from the same uid returns the same job. Raises Usage, NotFound, Busy."""
        request = _request(verb, fields)
        digest = hashlib.sha256(json.dumps([verb, request], sort_keys=True).encode()).hexdigest()
        if idempotency_key is not None:
            known = self._catalog.requests.job(idempotency_key, actor.uid, digest)
            if known is not None:
                return self._do.runner.job(known)
        asked.check(self._do, verb, request)
        who = self._who(actor)
        job = self._do.runner.submit(Order(verb, request, who, request.get("database"), request.get("storage")))
        if idempotency_key is not None:
            self._catalog.requests.put(idempotency_key, actor.uid, digest, job.id, job.created_at)
        target = str(request.get("database") or request.get("storage") or "")
        self._note(actor, f"job.{verb}", target, "asked", {"job": job.id, "request": request})
        return job

    async def wait(self, job: str, seconds: float) -> JobRow:
        """Return the job when it has ended, or its state after `seconds`."""
        return await self._do.runner.wait(self._do.runner.job(job).id, seconds)

    def jobs(self, database: str | None, state: str | None, limit: int) -> list[JobRow]:
        """Return jobs, the newest first."""
        return self._do.runner.jobs(database, state, limit)

    def job(self, id: str) -> JobRow:
        """Return one job in its present state. Raises NotFound."""
        return self._do.runner.job(id)

    def answer(self, id: str, actor: Peer) -> IO[bytes]:
        """Return the answer to a question, once, to the user who asked. Raises NotFound."""
        return self._do.runner.answers.take(self._do.runner.job(id).id, actor.uid)

    def cancel(self, id: str, actor: Peer) -> JobRow:
        """Stop a job. Raises NotFound; Busy if it has ended."""
        job = self._do.runner.cancel(id, actor.user)
        self._note(actor, "job.cancel", job.id, "done", {"verb": job.verb, "database": job.database})
        return job

    # ------------------------------------------------------------------------------------------------ events

    def events(self, asked: EventRange, limit: int, last: bool) -> list[Event]:
        """Return the first or the last events of a range, oldest first. Raises Usage for an invalid moment."""
        asked = replace(asked, since=_moment("since", asked.since), until=_moment("until", asked.until))
        return self._catalog.events.find(asked, limit, last=last)

    async def follow(self, after: int, database: str | None, job: str | None) -> AsyncIterator[Event | None]:
        """Yield events after that id as they occur, and None from time to time if there are none (a heartbeat)."""
        while True:
            found = self._catalog.events.find(EventRange(after, database=database, job=job), _BATCH)
            for event in found:
                after = event.id
                yield event
            if found:
                continue
            deadline = self._do.clock.steady() + HEARTBEAT_SECONDS
            last = self._catalog.events.last_id()
            while self._catalog.events.last_id() == last:
                left = deadline - self._do.clock.steady()
                if left <= 0 or not await self._do.runner.wakeup.wait(left):
                    yield None
                    break

    # ------------------------------------------------------------------------------------------------ schedule

    def pause(self, database: str, seconds: float | None, actor: Peer) -> Json:
        """Pause the schedule of a database; following its log goes on. Raises NotFound."""
        continuous = bool(self._do.inforce.policy.guarded(database).continuous)
        now = self._do.now()
        until = None if seconds is None else to_text(now + timedelta(seconds=seconds))
        self._note(actor, "database.pause", database, "done", {"until_at": until})
        self._catalog.pauses.put(Pause(database, until, actor.user, to_text(now)))
        self._do.tell("database.paused", database, {"until_at": until, "actor": actor.user})
        self._do.replan(database)
        return {"database": database, "paused_until_at": until, "continuous": continuous}

    def resume(self, database: str, actor: Peer) -> Json:
        """Resume the schedule of a database. Raises NotFound."""
        self._do.inforce.policy.guarded(database)
        self._note(actor, "database.resume", database, "done", {})
        was = self._catalog.pauses.drop(database)
        if was:
            self._do.tell("database.resumed", database, {"actor": actor.user})
        self._do.replan(database)
        return {"database": database, "was_paused": was}

    # ------------------------------------------------------------------------------------------------ holds

    async def hold(self, backup: str, reason: str, actor: Peer) -> Json:
        """Keep a backup from being deleted. Raises NotFound."""
        return await self._errand("hold", self._catalog.backups.get(backup), actor, {"reason": reason})

    async def release(self, backup: str, actor: Peer) -> Json:
        """End all holds of a backup. Raises NotFound."""
        return await self._errand("release", self._catalog.backups.get(backup), actor, {})

    async def recall(self, backup: str, actor: Peer) -> Json:
        """Bring an expired backup back; the answer says what keeps it from now on. Raises NotFound, Busy."""
        row = self._catalog.backups.get(backup, expired=True)
        answer = await self._errand("recall", row, actor, {})
        rows = self._do.views.backups(row.database, self._do.now())
        kept = next((other.kept_because for other in rows if other.id == row.id), [])
        return {**answer, "database": row.database, "kept_because": kept}

    async def _errand(self, verb: str, row: BackupRow, actor: Peer, more: Mapping[str, Any]) -> Json:
        order = Order(verb, {"backup": row.id, **more}, self._who(actor), row.database, row.storage)
        result = await self._do.runner.perform(order)
        return {"backup": row.id, **more, **result, "holds": self._catalog.backups.get(row.id).holds}

    # ------------------------------------------------------------------------------------------------ policy

    async def reload(self, actor: Peer) -> Json:
        """Reload the policy; it is refused as a whole if it has mistakes or would delete backups. Raises Policy..."""
        with self._reloading(actor, "policy.reload", str(self._do.inforce.path), {}):
            self._do.reload()
        inforce = self._do.inforce
        loaded_at, names = to_text(inforce.loaded_at), inforce.policy.names()
        return {"policy_loaded_at": loaded_at, "databases": names, "warnings": configuration.warned(inforce)}

    async def protect(self, fields: Mapping[str, Any], actor: Peer) -> Json:
        """Detect a database, write its drop-in, reload, back up and prove."""
        inforce = self._do.inforce
        path, name = str(fields.get("path") or ""), str(fields.get("name") or "")
        adopt, confirm = str(fields.get("adopt") or ""), str(fields.get("confirm") or "")
        wanted = protect.Wanted(name, bool(fields.get("continuous")), adopt, confirm)
        found = await protect.detect(path, wanted, self._do.look, inforce.state)
        self._do.views.storages.check_read(inforce.policy.defaults.storage[0])
        plan = protect.plan(found, wanted, inforce, self._catalog, self._do.now())
        about = {name: getattr(plan, name) for name in ("database", "engine", "path", "found", "spared")}
        if fields.get("dry_run"):
            return {**about, "wrote": None, "would_write": str(plan.file), "text": plan.text, "job": None}
        with self._reloading(actor, "policy.protect", plan.database, {"path": plan.path, "file": str(plan.file)}):
            await asyncio.to_thread(protect.write, plan)
            was = inforce.problem
            try:
                self._do.reload()
            except GuardError:
                protect.undo(plan)
                inforce.problem = was  # the drop-in that was refused is gone
                raise
        request = {"database": plan.database, "verify": True, "successor": plan.successor}
        order = Order("backup", _request("backup", request), self._who(actor), plan.database, once=True)
        job = self._do.runner.submit(order)
        self._note(actor, f"job.{order.verb}", plan.database, "asked", {"job": job.id, "request": request})
        return {**about, "wrote": str(plan.file), "would_write": None, "text": plan.text, "job": to_json(job)}

    async def unprotect(self, database: str, fields: Mapping[str, Any], actor: Peer) -> Json:
        """Remove the drop-in of a database and reload; its backups stay. Raises NotFound, Usage, ConfirmMissing."""
        inforce = self._do.inforce
        loaded = await asyncio.to_thread(inforce.read)
        file = await asyncio.to_thread(protect.drop_in, database, loaded, inforce.path)
        guarded, kept = loaded.policy.guarded(database), self._catalog.backups.summary(database).count
        about: Json = {"database": database, "path": guarded.source, "continuous": guarded.continuous, "backups": kept}
        if fields.get("dry_run"):
            return {**about, "removed": None, "would_remove": str(file)}
        if fields.get("confirm") != database:
            raise ConfirmMissing(
                f"{database}: its protection ends only with its name typed in full",
                hints=[f"dbguardctl unprotect {database} --confirm {database}"],
            )
        with self._reloading(actor, "policy.unprotect", database, {"file": str(file)}), protect.away(file):
            self._do.reload()
        for job in self._do.runner.jobs(database, JobState.QUEUED, _BATCH):
            if job.verb in ("backup", "expire"):  # they need the policy of the database
                self._do.runner.cancel(job.id, actor.user)
        return {**about, "removed": str(file), "would_remove": None}

    def config(self, origin: bool) -> Json:
        """Return the policy in force."""
        return configuration.shown(self._do.inforce, origin)

    def config_check(self) -> Json:
        """Check the policy files; nothing changes."""
        return configuration.checked(self._do.inforce)

    def config_diff(self) -> Json:
        """Return what a reload would change, and what it would delete."""
        return configuration.difference(self._do.inforce, self._catalog)

    async def config_accept(self, actor: Peer) -> Json:
        """Put the policy files into force although they delete backups."""
        found = configuration.difference(self._do.inforce, self._catalog)
        facts = {"deletes": [row["id"] for row in found["deletes"]][:1000]}
        with self._reloading(actor, "policy.accept", str(self._do.inforce.path), facts):
            self._do.accept()
        return {**found, "policy_loaded_at": to_text(self._do.inforce.loaded_at)}

    def config_explain(self, key: str) -> Json:
        """Return what a setting means, its value and its origin. Raises NotFound."""
        return configuration.explained(self._do.inforce, key)

    def config_schema(self) -> Json:
        """Return the JSON Schema of the policy."""
        return configuration.schema()

    # ------------------------------------------------------------------------------------------------ keys

    def keys(self) -> Json:
        """Return the keys, and when their recovery was last tested."""
        return {"keys": to_json(self._do.views.storages.keys())}

    def credentials(self) -> Json:
        """Return the systemd credentials that the policy names or that this process was given."""
        return {"credentials": keyring.credentials(self._do.inforce.policy, os.environ)}

    async def recovery_sheet(self, key: str, actor: Peer) -> Json:
        """Make a recovery key and return its sheet, once. Raises NotFound, Unsupported."""
        return await keyring.make_sheet(self._do, key, self._who(actor))

    async def recovery_test(self, key: str, identity: str, actor: Peer) -> Json:
        """Prove that the identity on a recovery sheet opens the repositories. Raises NotFound, KeyRefused."""
        return await keyring.try_identity(self._do, key, identity, self._who(actor))

    async def recovery_drop(self, key: str, recipient: str, confirm: str, actor: Peer) -> Json:
        """Stop a recovery recipient from opening the repositories. Raises NotFound, Held, ConfirmMissing."""
        return await keyring.drop(self._do, key, recipient, confirm, self._who(actor))

    async def recover(self, key: str, identity: str, actor: Peer) -> Json:
        """Let this machine open the repositories again, with a recovery key. Raises NotFound, KeyRefused."""
        return await keyring.recover(self._do, key, identity, self._who(actor))

    # ------------------------------------------------------------------------------------------------ audit

    async def audit(self, after: int, limit: int) -> Json:
        """Return entries of the audit log: those after a number, or for 0 the newest."""
        entries = await asyncio.to_thread(self._audit.show, after or -1, limit)
        return {"entries": [asdict(entry) for entry in entries]}

    async def audit_verify(self) -> Json:
        """Recompute the chain of the audit log. Raises AuditBroken."""
        verified = await asyncio.to_thread(self._audit.verification())
        notes = list(verified.notes)
        return {"ok": True, "sure": not notes, "entries": verified.entries, "head": verified.head, "notes": notes}

    @contextmanager
    def _reloading(self, actor: Peer, action: str, object: str, facts: Mapping[str, Any]) -> Iterator[None]:
        with self._do.reloading(), self._do.audited(self._who(actor), action, object, facts):
            yield

    def _note(self, actor: Peer, action: str, object: str, outcome: str, facts: Mapping[str, Any]) -> None:
        who = self._who(actor)
        self._audit.append(self._do.now(), who, action=action, object=object, outcome=outcome, facts=facts)

    def _who(self, actor: Peer) -> Who:
        role = self.role(actor)
        return Who(actor.user, actor.uid, actor.pid, "" if role is None else str(role))


def _moment(name: str, text: str | None) -> str | None:
    try:
        return None if text is None else to_text(to_moment(text))
    except Internal as error:
        message = f"{name}: a moment with its zone is expected, such as 2026-09-12T06:59:00Z"
        raise Usage(message, detail=error.message) from error


def _request(verb: str, fields: Mapping[str, Any]) -> Json:
    kind = REQUESTS.get(verb)
    if kind is None:
        raise NotFound(f"{verb}: there is no such job", detail=f"Jobs: {', '.join(REQUESTS)}.")
    try:
        request: Json = to_json(kind(**fields))
    except TypeError as error:
        raise Usage(f"{verb}: {str(error).partition(') ')[2] or error}") from error
    return request
