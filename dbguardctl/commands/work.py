"""backup, verify, check, prune, run: ask for a job and wait for it."""

from __future__ import annotations

from typing import Any

import click

from dbguardctl.app import Command, pass_session
from dbguardctl.moments import parse_span
from dbguardctl.options import Name, complete_database_or_id, database_argument, request_options, wait_options
from dbguardctl.session import Session
from dbguardctl.watch import run as run_job
from dbguardctl.watch import start, tell, wait
from dbguardd import wire
from dbguardd.errors import GuardError, NotFound, Usage


def seconds(text: str) -> float | None:
    """Return a --timeout in seconds, None for no limit."""
    return parse_span(text) if text else None


@click.command(cls=Command, help=wire.Backup.__doc__)
@database_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="Back up every database of the policy.")
@request_options(wire.Backup)
@wait_options
@pass_session
def backup(session: Session, database: str | None, everything: bool, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Back up one database, or all."""
    if everything == bool(database):
        raise Usage("backup: say which database, or --all", hints=["dbguardctl backup NAME", "dbguardctl backup --all"])
    limit = seconds(timeout)
    if database:
        session.wanted_database = database
        return run_job(
            session, "backup", {"database": database, **fields}, name="backup", no_wait=no_wait, timeout=limit
        )
    names = _names(session)
    return many(session, "backup", [{"database": name, **fields} for name in names], name="backup",
                no_wait=no_wait, timeout=limit)  # fmt: skip


def _names(session: Session) -> list[str]:
    names = [str(row["name"]) for row in session.daemon.get("status")["databases"] if row["state"] != "orphaned"]
    if not names:
        raise NotFound("dbguard: no database is protected yet", hints=["dbguardctl protect PATH"])
    return names


def many(
    session: Session, verb: str, requests: list[dict[str, Any]], *, name: str, no_wait: bool, timeout: float | None
) -> int:
    """Start one job for each request, wait for all, and return the worst exit status; one JSON object for all."""
    quiet, session.json = session.json, False
    rows, statuses = [], [0]
    session.quiet = session.quiet or quiet
    try:
        for fields in requests:
            try:
                rows.append(start(session, verb, fields))
            except GuardError as error:
                if not quiet:
                    session.report(error)
                rows.append({"database": fields.get("database"), "state": "failed", "problem": error.problem()})
                statuses.append(error.exit_status)
        for number, row in enumerate(rows):
            if "id" not in row:
                continue
            try:
                rows[number] = row if no_wait else wait(session, row, timeout)
                statuses.append(_tell(session, rows[number], name, quiet))
            except GuardError as error:
                if not quiet:
                    session.report(error)
                statuses.append(error.exit_status)
    finally:
        session.json = quiet
    if quiet:
        session.print_json({"schema": f"dbguard.{name}/1", "jobs": rows})
    failures = [status for status in statuses if status not in (0, 3)]
    return failures[0] if failures else max(statuses)


def _tell(session: Session, row: dict[str, Any], name: str, quiet: bool) -> int:
    from dbguardctl.watch import failure, verdict  # noqa: PLC0415 - names that read badly at the top

    if not quiet:
        return tell(session, row, name=name)
    error = failure(row) if row["state"] in ("failed", "cancelled", "interrupted") else None
    return error.exit_status if error else verdict(row)


@click.command(cls=Command, help=wire.Verify.__doc__)
@click.argument("what", metavar="NAME|ID", type=Name(), shell_complete=complete_database_or_id)
@wait_options
@pass_session
def verify(session: Session, what: str, no_wait: bool, timeout: str) -> int:
    """Prove a backup; NAME means its newest one."""
    session.wanted_database = what
    shown = session.daemon.get("show", what)
    fields = {"database": what, "backup": ""}
    if shown.get("kind") == "backup":
        fields = {"database": shown["backup"]["database"], "backup": shown["backup"]["id"]}
    elif shown.get("kind") != "database":
        raise Usage(f"{what}: neither a database nor a backup", hints=["dbguardctl status"])
    return run_job(session, "verify", fields, name="verify", no_wait=no_wait, timeout=seconds(timeout))


@click.command(cls=Command, help=wire.Check.__doc__)
@database_argument(required=False)
@request_options(wire.Check)
@wait_options
@pass_session
def check(session: Session, database: str | None, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Check one database, or all."""
    limit = seconds(timeout)
    if database:
        session.wanted_database = database
        return run_job(session, "check", {"database": database, **fields}, name="check", no_wait=no_wait, timeout=limit)
    requests = [{"database": name, **fields} for name in _names(session)]
    return many(session, "check", requests, name="check", no_wait=no_wait, timeout=limit)


@click.command(cls=Command)
@database_argument(required=False)
@request_options(wire.Expire)
@wait_options
@pass_session
def prune(session: Session, database: str | None, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Delete the backups that the policy no longer asks for, then free the space of those whose grace is over.

    Without NAME all databases. With --dry-run, nothing is deleted and the reasons are shown.
    """
    limit = seconds(timeout)
    if database:
        session.wanted_database = database
    names = [database] if database else _names(session)
    statuses = [many(session, "expire", [{"database": name, **fields} for name in names], name="prune-expire",
                     no_wait=no_wait, timeout=limit)]  # fmt: skip
    if max(statuses) in (0, 3) and not no_wait:
        storages = [str(row["name"]) for row in session.daemon.get("status")["storages"]]
        sweeps = [{"storage": name, "dry_run": fields["dry_run"]} for name in storages]
        statuses.append(many(session, "sweep", sweeps, name="prune-sweep", no_wait=no_wait, timeout=limit))
    return max(statuses)


@click.command(cls=Command)
@database_argument()
@click.argument("verb", metavar="VERB", type=click.Choice(["backup", "verify", "check", "expire"]))
@wait_options
@pass_session
def run(session: Session, database: str, verb: str, no_wait: bool, timeout: str) -> int:
    """Run a job of a database now, as the schedule would."""
    session.wanted_database = database
    return run_job(session, verb, {"database": database}, name="run", no_wait=no_wait, timeout=seconds(timeout))
