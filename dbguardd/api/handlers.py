"""The handlers of the routes: each passes the checked request to the service and shapes its answer."""

from __future__ import annotations

from dataclasses import fields

from dbguardd.api import discretion
from dbguardd.api.ask import Ask, Download, Reply, Stream
from dbguardd.api.service import Json
from dbguardd.api.strict import unfit
from dbguardd.errors import Usage
from dbguardd.serialize import to_json
from dbguardd.states import JobState
from dbguardd.wire import EventRange, JobRow

_ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)
_MAX_KEY = 255
_NEWEST = 20
_LONGEST_PAUSE = 100 * 365 * 86_400


async def status(ask: Ask) -> Json:
    """What could be restored, when that was last proven, how long it takes, what to do."""
    await ask.service.look()
    return dict(to_json(ask.service.status()))


def backups(ask: Ask) -> Json:
    """The backups of one database, newest first, with what keeps each; and the expired ones that can be recalled."""
    rows = ask.service.backups(ask.path["name"])
    if not ask.query["all"]:
        rows = rows[:_NEWEST]
    listed = to_json(rows)
    if not ask.query["why"]:
        for row in listed:
            row["kept_because"] = []
    expired = to_json(ask.service.expired(ask.path["name"])) if ask.query["all"] else []
    log, proof = ask.service.coverage(ask.path["name"])
    told = {"log": to_json(log), "log_proof": to_json(proof)}
    return {"database": ask.path["name"], "backups": listed, "expired": expired, **told}


def show(ask: Ask) -> Json:
    """One backup, job or database in full; by its id, the first characters of the id, or its name."""
    found = ask.service.show(ask.path["id"])
    return {**found, "job": discretion.job(found["job"], ask.role)} if found["kind"] == "job" else found


async def submit(ask: Ask) -> Reply:
    """Queue a job; 202 with its location, or 200 if it ended while the peer waited."""
    key = ask.headers.get("Idempotency-Key")
    if key is not None and (not 0 < len(key) <= _MAX_KEY or unfit(key)):
        raise Usage(f"Idempotency-Key: 1 to {_MAX_KEY} printable characters are expected")
    job = ask.service.submit(ask.path["verb"], ask.body, ask.actor, key)
    if ask.query["wait"]:
        job = await ask.service.wait(job.id, ask.query["wait"])
    return Reply(200 if job.state in _ENDED else 202, _job(ask, job), {"Location": f"/v1/jobs/{job.id}"})


def jobs(ask: Ask) -> Json:
    """Jobs, newest first."""
    found = ask.service.jobs(ask.query["database"], ask.query["state"], ask.query["limit"])
    return {"jobs": [discretion.job(row, ask.role) for row in to_json(found)]}


async def job(ask: Ask) -> Json:
    """One job; with wait, after it has ended."""
    found = ask.service.job(ask.path["id"])
    if ask.query["wait"]:
        found = await ask.service.wait(found.id, ask.query["wait"])
    return _job(ask, found)


def answer(ask: Ask) -> Download:
    """The answer to a question: once, and only to the user who asked; it is not stored."""
    return Download(ask.service.answer(ask.path["id"], ask.actor))


def cancel(ask: Ask) -> Json:
    """Stop a job."""
    return _job(ask, ask.service.cancel(ask.path["id"], ask.actor))


def events(ask: Ask) -> Json | Stream:
    """Events of a range as JSON; or, if the peer accepts text/event-stream, those after an id as they occur."""
    query, names = ask.query, [field.name for field in fields(EventRange)]
    asked = EventRange(**{name: query[name] for name in names})
    if "text/event-stream" not in ask.headers.get("Accept", ""):
        return {"events": to_json(ask.service.events(asked, query["limit"], query["last"]))}
    if asked != EventRange(asked.after, database=asked.database, job=asked.job) or query["last"]:
        raise Usage("events: a stream takes after, database and job, and has no end")
    last = ask.headers.get("Last-Event-ID", "")
    if last and not (last.isascii() and last.isdigit() and len(last) <= 18):  # noqa: PLR2004 - fits 64 bits
        raise Usage("Last-Event-ID: the id of an event is expected")
    return Stream(ask.service.follow(int(last) if last else asked.after, asked.database, asked.job))


def pause(ask: Ask) -> Json:
    """Stop the schedule of a database."""
    seconds = ask.body["seconds"]
    if seconds is not None and not 0 < seconds <= _LONGEST_PAUSE:
        raise Usage("seconds: more than nothing and at most 100 years; leave it out to pause until resumed")
    return ask.service.pause(ask.path["name"], seconds, ask.actor)


def resume(ask: Ask) -> Json:
    """Resume the schedule of a database."""
    return ask.service.resume(ask.path["name"], ask.actor)


async def hold(ask: Ask) -> Json:
    """Forbid the deletion of a backup."""
    reason = ask.body["reason"].strip()
    if not reason:
        raise Usage("reason: say why the backup must stay; others will read it when they want to delete it")
    return await ask.finish(ask.service.hold(ask.path["id"], reason, ask.actor))


async def release(ask: Ask) -> Json:
    """End the holds of a backup."""
    return await ask.finish(ask.service.release(ask.path["id"], ask.actor))


async def recall(ask: Ask) -> Json:
    """Bring an expired backup back while its grace lasts."""
    return await ask.finish(ask.service.recall(ask.path["id"], ask.actor))


def schedule(ask: Ask) -> Json:
    """The next planned runs."""
    return ask.service.schedule(ask.query["next"])


async def reload(ask: Ask) -> Json:
    """Reload the policy."""
    return await ask.finish(ask.service.reload(ask.actor))


async def protect(ask: Ask) -> Json:
    """Detect a database, write its policy and reload."""
    return await ask.finish(ask.service.protect(ask.body, ask.actor))


async def unprotect(ask: Ask) -> Json:
    """Remove the policy of a database and reload; its backups stay."""
    return await ask.finish(ask.service.unprotect(ask.path["name"], ask.body, ask.actor))


def config(ask: Ask) -> Json:
    """The policy in force."""
    return ask.service.config(ask.query["origin"])


def config_check(ask: Ask) -> Json:
    """Check the policy files; nothing changes."""
    return ask.service.config_check()


def config_diff(ask: Ask) -> Json:
    """What a reload would change, and what it would delete."""
    return ask.service.config_diff()


async def config_accept(ask: Ask) -> Json:
    """Put a policy into force that deletes backups."""
    return await ask.finish(ask.service.config_accept(ask.actor))


def config_explain(ask: Ask) -> Json:
    """What a setting means, its value and its origin."""
    if ask.query["key"] is None:
        raise Usage("key: missing", hints=("dbguardctl config explain database.NAME.keep",))
    return ask.service.config_explain(ask.query["key"])


def config_schema(ask: Ask) -> Json:
    """The JSON Schema of the policy, for editors."""
    return ask.service.config_schema()


def keys(ask: Ask) -> Json:
    """The keys, and when their recovery was last tested."""
    return ask.service.keys()


def credentials(ask: Ask) -> Json:
    """The systemd credentials that the policy names or that the daemon was given; names, never secrets."""
    return ask.service.credentials()


async def recovery_sheet(ask: Ask) -> Json:
    """Make a recovery key and return its sheet: once, it is not stored."""
    return await ask.finish(ask.service.recovery_sheet(ask.path["name"], ask.actor))


async def recovery_test(ask: Ask) -> Json:
    """Prove that the identity on a recovery sheet opens the repositories."""
    return await ask.finish(ask.service.recovery_test(ask.path["name"], ask.body["identity"], ask.actor))


async def recovery_drop(ask: Ask) -> Json:
    """Stop a recovery recipient, for example of a lost sheet, from opening the repositories."""
    name, body = ask.path["name"], ask.body
    if not body["recipient"]:
        raise Usage("recipient: must not be empty")
    return await ask.finish(ask.service.recovery_drop(name, body["recipient"], body["confirm"], ask.actor))


async def recover(ask: Ask) -> Json:
    """Let this machine open the repositories again, with a recovery key."""
    return await ask.finish(ask.service.recover(ask.path["name"], ask.body["identity"], ask.actor))


async def audit(ask: Ask) -> Json:
    """Entries of the audit log."""
    found = await ask.service.audit(ask.query["after"], ask.query["limit"])
    return {**found, "entries": [discretion.entry(row, ask.role) for row in found["entries"]]}


async def audit_verify(ask: Ask) -> Json:
    """Recompute the chain of the audit log."""
    return await ask.service.audit_verify()


def _job(ask: Ask, row: JobRow) -> Json:
    return {"job": discretion.job(to_json(row), ask.role)}
