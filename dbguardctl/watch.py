"""Starts a job and waits for it. The job lives in the daemon; this only watches it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from dbguardctl.humanize import ulid_at, when
from dbguardctl.progress import Look, looker
from dbguardctl.screen import Cell
from dbguardctl.session import Session
from dbguardctl.views.jobs import FINAL, finished, part_done, verdicts
from dbguardd.errors import DaemonUnreachable, GuardError, Internal, StillRunning, from_problem
from dbguardd.humanize import count, hint_word, humanized, span

Json = dict[str, Any]
_EXPIRY_SECONDS = 10.0  # longer than an expiry takes; one that waits behind other jobs is not waited for
_SHOWN = 3


def start(session: Session, verb: str, fields: Mapping[str, Any], *, quiet: bool = False) -> Json:
    """Submit a job and return its row. If a lost answer makes it submit again, the daemon still runs only one job."""
    key = os.urandom(16).hex()
    session.asking = True
    try:
        answer = session.daemon.post("jobs", verb, body=fields, key=key)
    except DaemonUnreachable:
        answer = session.daemon.post("jobs", verb, body=fields, key=key)
    session.asking = False
    row: Json = answer["job"]
    session.looks_on[row["id"]] = what(row)
    if not quiet:
        session.say(f"{what(row)} started")
    return row


def what(row: Json) -> str:
    """Return the name of a job for people: app: backup 01K4Z7Q2AB0000000000000J01."""
    return f"{row['database'] or row['request'].get('storage') or 'dbguard'}: {row['verb']} {row['id']}"


def wait(session: Session, row: Json, timeout: float | None = None) -> Json:
    """Return the job when it has ended, and show its progress until then.

    Raises StillRunning after `timeout` seconds, DaemonUnreachable. Ctrl-C does not stop the job.
    """
    session.asking = False
    session.looks_on[row["id"]] = what(row)
    if row["state"] not in FINAL:
        look, pause = looker(session)
        row = _poll(session, row, look, pause, None if timeout is None else time.monotonic() + timeout)
    del session.looks_on[row["id"]]
    return row


def _poll(
    session: Session, row: Json, looking: AbstractContextManager[Look], pause: float, deadline: float | None
) -> Json:
    begun = time.monotonic()
    with looking as look:
        while row["state"] not in FINAL:
            rest = pause if deadline is None else min(pause, deadline - time.monotonic())
            if rest <= 0:
                raise StillRunning(
                    f"{what(row)}: not done after {span(time.monotonic() - begun)}",
                    detail=f"It is {row['state']}: {part_done(row)}.",
                    hints=[f"dbguardctl job watch {row['id']}"],
                    facts={"job": row["id"]},
                )
            tried = row["attempt"]
            row = session.daemon.get("jobs", row["id"], wait=round(rest, 3))["job"]
            if row["attempt"] > tried and row["problem"]:
                _say_again(session, row, tried)
            look(row)
    return row


def _say_again(session: Session, row: Json, tried: int) -> None:
    """Report why an attempt failed: the waiting user can correct it now, and ask again for an immediate retry."""
    problem = row["problem"]
    if session.json:  # it may be minutes until the answer
        session.report(from_problem(problem))
    at = problem.get("next_try_at")
    again = f" {when(at, session.now, session.zone)}" if at else ""
    session.say(f"{what(row)}: attempt {tried} failed, it is tried again{again}: {problem.get('message')} "
                f"[{problem.get('code')}]")  # fmt: skip
    for line in humanized(str(problem.get("detail") or "")).splitlines()[:_SHOWN]:
        session.say(f"       {line}")
    for hint in map(str, (problem.get("hints") or ())[:1]):
        session.say(f"       {hint_word(hint)}  ", Cell(hint, "try"))
    session.say("       Ctrl-C only stops waiting; the job goes on (as with --no-wait). To cancel it: ",
                Cell(f"dbguardctl job cancel {row['id']}", "try"))  # fmt: skip


def proof_job(session: Session, row: Json) -> Json | None:
    """Return the verification that follows a backup; None if neither policy nor request asks for one."""
    result = row["result"] or {}
    if "verify_job" not in result:
        return None
    if not result["verify_job"]:
        session.say(f"{what(row)}: its proof could not be started; the journal of dbguardd says why")
        return None
    job: Json = session.daemon.get("jobs", str(result["verify_job"]))["job"]
    return job


def failure(row: Json) -> GuardError | None:
    """Return why an ended job failed; None if it succeeded, or still runs."""
    if row["state"] == "done" or row["state"] not in FINAL:
        return None
    if row["problem"]:
        error = from_problem(row["problem"])
        error.facts.setdefault("job", row["id"])
        return error
    return Internal(f"{what(row)}: {row['state']} without a reason", hints=[f"dbguardctl job show {row['id']}"])


def settle(session: Session, row: Json, timeout: float | None = None) -> list[Json]:
    """Wait for a job and for the proof that follows a backup, print their results, and return their rows."""
    rows = [wait(session, row, timeout)]
    _show(session, rows[0])
    follower = proof_job(session, rows[0])
    if follower is not None:
        session.say(f"{what(follower)} proves it")
        rows.append(wait(session, follower, timeout))
        _show(session, rows[1])
    if expiry := (rows[-1]["result"] or {}).get("expire_job"):
        _say_expired(session, session.daemon.get("jobs", str(expiry), wait=_EXPIRY_SECONDS)["job"])
    return rows


def _say_expired(session: Session, row: Json) -> None:
    """Report the backups that expired because of a new one, so that nobody has to search a log for them."""
    result = row["result"] or {}
    gone = result.get("expired") or []
    for id in gone[:_SHOWN]:
        until = f" (until {when(result['recall_until_at'], session.now, session.zone)})"
        made = when(ulid_at(id), session.now, session.zone, seconds=True)
        session.say(f"an older backup, of {made}, has expired by the policy's `keep`; bring it back{until}: ",
                    Cell(f"dbguardctl recall {id}", "try"))  # fmt: skip
    if len(gone) > _SHOWN:
        all_of_them = Cell(f"dbguardctl list {row['database']} --all", "try")
        session.say(f"{count(len(gone) - _SHOWN, 'more backup')} expired: ", all_of_them)


def _show(session: Session, row: Json) -> None:
    if not session.json and failure(row) is None:
        blocks = finished(row, session.now, session.zone)
        session.out.show(verdicts(blocks) if session.quiet and not row["request"].get("dry_run") else blocks)


def verdict(rows: list[Json]) -> int:
    """Return the exit status of finished jobs: 3 if a check failed or a proof fell short, 4 for damage."""
    statuses = [0]
    for row in rows:
        result = row["result"] or {}
        proof = result.get("proof") or {}
        found = (*(result.get("findings") or ()), *(proof.get("findings") or ()))
        if row["verb"] == "undo":
            continue  # the state that is put back has no fingerprint to compare; damage would have failed the job
        short = bool(proof) and proof.get("grade") not in (None, "proven")
        if result.get("damaged"):
            statuses.append(4)
        elif short or any(finding.get("outcome") in ("failed", "inconclusive") for finding in found):
            statuses.append(3)
    return max(statuses)


def answer(name: str, rows: list[Json]) -> Json:
    """Return the JSON answer of a command that ran a job: its row, its result, and the proof that followed."""
    merged: Json = {"schema": f"dbguard.{name}/1", "job": rows[0]}
    for row in rows:
        merged = {**(row["result"] or {}), **merged}
    if len(rows) > 1:
        merged["proof_job"] = rows[1]
    return merged


def finish(session: Session, name: str, rows: list[Json]) -> int:
    """Print the JSON answer if requested, and return the exit status. Raises the problem of a failed job."""
    if session.json:
        session.print_json(answer(name, rows))
    for row in rows:
        if error := failure(row):
            raise error
    return verdict(rows)


def run(
    session: Session,
    verb: str,
    fields: Mapping[str, Any],
    *,
    name: str = "",
    no_wait: bool = False,
    timeout: float | None = None,
) -> int:
    """Start a job, wait for it, print its result and return the exit status. `name`: the command, for JSON."""
    row = start(session, verb, fields)
    if no_wait:
        print_ids(session, [row])
        return finish(session, name or verb, [row])
    return finish(session, name or verb, settle(session, row, timeout))


def print_ids(session: Session, rows: list[Json]) -> None:
    """Print the ids of started jobs, one a line, unless the answer is JSON."""
    if not session.json:
        session.out.stream.writelines(f"{row['id']}\n" for row in rows if row["id"])


def batch(
    session: Session, verb: str, requests: list[dict[str, Any]], *, no_wait: bool, timeout: float | None
) -> tuple[list[Json], int]:
    """Start one job for each request, then wait for all; return their rows and the exit status.

    A failed job does not stop the others: its error is printed, and the exit status is that of the first failure.
    """
    rows: list[Json] = []
    failures: list[int] = []

    def failed(error: GuardError) -> None:
        failures.append(error.exit_status)
        if not session.json:
            session.report(error)

    for fields in requests:
        try:
            rows.append(start(session, verb, fields))
        except GuardError as error:
            failed(error)
            rows.append({"id": None, "verb": verb, "request": fields, "state": "failed", "problem": error.problem()})
    ended: list[Json] = []
    for row in rows:
        try:
            settled = settle(session, row, timeout) if row["id"] and not no_wait else [row]
        except GuardError as error:
            settled = [row]
            failed(error)
        ended += settled
        for problem in [failure(done) for done in settled if done["id"]]:
            if problem is not None:
                failed(problem)
    if failures:
        return ended, failures[0]
    return ended, 0 if no_wait else verdict(ended)
