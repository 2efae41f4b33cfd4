"""backup, verify, check, prune, run: ask for a job and wait for it."""

from __future__ import annotations

from typing import Any

import click

from dbguardctl import watch
from dbguardctl.app import Command, pass_session
from dbguardctl.moments import parse_span
from dbguardctl.options import Name, complete_database_or_id, database_argument, request_options, wait_options
from dbguardctl.session import Session
from dbguardd import requests
from dbguardd.errors import NotFound, Usage
from dbguardd.humanize import some
from dbguardd.states import Health


def seconds(text: str) -> float | None:
    """Return a --timeout in seconds; None for no limit."""
    return parse_span(text) if text else None


def names_of(session: Session, kind: str = "databases", *, orphans: bool = False, none: bool = False) -> list[str]:
    """Return the names of all databases in the policy, or of all storages. Raises NotFound if there are none.

    With `orphans`, also the databases that only have backups; with `none`, these may be all that there are.
    """
    rows = session.daemon.get("status")[kind]
    names = [str(row["name"]) for row in rows if orphans or row.get("state") != Health.ORPHANED]
    if not names and rows and not none:
        what = "dbguard: no database is in the policy"
        raise NotFound(what, detail=f"Backups of {some([row['name'] for row in rows])} are kept, and nothing expires.",
                       hints=["dbguardctl status"])  # fmt: skip
    if not rows:
        raise NotFound("dbguard: no database is protected yet", hints=["dbguardctl protect PATH"])
    return names


@click.command(cls=Command, help=requests.Backup.__doc__)
@database_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="Back up every database in the policy.")
@request_options(requests.Backup)
@wait_options
@pass_session
def backup(
    session: Session, *, database: str | None, everything: bool, no_wait: bool, timeout: str, **fields: Any
) -> int:
    """Back up one database, or all."""
    if everything == bool(database):
        raise Usage(
            "backup: name a database, or use --all", hints=["dbguardctl backup NAME", "dbguardctl backup --all"]
        )
    limit = seconds(timeout)
    if not database:
        requests = [{"database": name, **fields} for name in names_of(session)]
        return _batch(session, "backup", requests, no_wait, limit)
    session.wanted_database = database
    return watch.run(session, "backup", {"database": database, **fields}, no_wait=no_wait, timeout=limit)


def _batch(session: Session, verb: str, requests: list[dict[str, Any]], no_wait: bool, limit: float | None) -> int:
    rows, status = watch.batch(session, verb, requests, no_wait=no_wait, timeout=limit)
    if session.json:
        session.print_json({"schema": f"dbguard.{verb}/1", "jobs": rows})
    elif no_wait:
        watch.print_ids(session, rows)
    return status


@click.command(cls=Command, help=requests.Verify.__doc__)
@click.argument("what", metavar="[NAME|ID]", type=Name(), required=False, shell_complete=complete_database_or_id)
@click.option("--all", "everything", is_flag=True, help="Prove the newest backup of every database, one by one.")
@wait_options
@pass_session
def verify(session: Session, what: str | None, everything: bool, no_wait: bool, timeout: str) -> int:
    """Prove a backup; NAME means its newest one."""
    if everything == bool(what):
        hints = ["dbguardctl verify NAME", "dbguardctl verify --all"]
        raise Usage("verify: name a database or a backup, or use --all", hints=hints)
    limit = seconds(timeout)
    if not what:
        requests = [{"database": name} for name in names_of(session, orphans=True)]
        return _batch(session, "verify", requests, no_wait, limit)
    session.wanted_database = what
    shown = session.daemon.get("show", what)
    fields = {"database": what, "backup": ""}
    if shown.get("kind") == "backup":
        fields = {"database": shown["backup"]["database"], "backup": shown["backup"]["id"]}
    elif shown.get("kind") != "database":
        raise Usage(f"{what}: neither a database nor a backup", hints=["dbguardctl status"])
    return watch.run(session, "verify", fields, no_wait=no_wait, timeout=limit)


@click.command(cls=Command, help=requests.Check.__doc__)
@database_argument(required=False)
@request_options(requests.Check)
@wait_options
@pass_session
def check(session: Session, database: str | None, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Check one database, or all, those that only have backups too."""
    limit = seconds(timeout)
    if not database:
        read: set[str] = set()  # storages: --data reads a whole storage, whichever of its databases is named
        requests = [{"database": name, **fields} for name in names_of(session, orphans=True)]
        named = session.daemon.get("config")["policy"]["database"] if fields["data"] else {}
        for request in requests if fields["data"] else ():
            name = request["database"]
            if name in named:
                storage = named[name]["storage"][0]
            else:
                storage = session.daemon.get("databases", name, "backups")["backups"][0]["storage"]
            request["data"] = storage not in read
            read.add(storage)
        return _batch(session, "check", requests, no_wait, limit)
    session.wanted_database = database
    return watch.run(session, "check", {"database": database, **fields}, no_wait=no_wait, timeout=limit)


@click.command(cls=Command)
@database_argument(required=False)
@request_options(requests.Expire)
@wait_options
@pass_session
def prune(session: Session, database: str | None, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Delete the backups that the policy no longer asks for, then free the space of those whose grace is over.

    Without NAME all databases. With --dry-run, nothing is deleted and the reasons are shown.
    """
    limit = seconds(timeout)
    if fields["confirm"] and not database:
        raise Usage("prune: --confirm is for one database", hints=["dbguardctl prune NAME --confirm NAME"])
    if fields["confirm"] and fields["confirm"] != database:
        raise Usage(f"prune: --confirm says {fields['confirm']!r}, and the database is {database}")
    session.wanted_database = database or ""
    names = [database] if database else names_of(session, none=True)
    requests = [{"database": name, **fields} for name in names]
    if not names:
        session.say("no database is in the policy: no backup expires")
    expired, status = watch.batch(session, "expire", requests, no_wait=no_wait, timeout=limit)
    swept: list[dict[str, Any]] = []
    if status in (0, 3) and not no_wait:
        sweeps = [{"storage": name, "dry_run": fields["dry_run"]} for name in names_of(session, "storages")]
        swept, second = watch.batch(session, "sweep", sweeps, no_wait=no_wait, timeout=limit)
        status = second or status
    if session.json:
        session.print_json({"schema": "dbguard.prune/1", "expire": expired, "sweep": swept})
    elif no_wait:
        watch.print_ids(session, expired)
    return status


@click.command(cls=Command)
@database_argument()
@click.argument("verb", metavar="VERB", type=click.Choice(["backup", "verify", "check", "expire"]))
@wait_options
@pass_session
def run(session: Session, database: str, verb: str, no_wait: bool, timeout: str) -> int:
    """Run a job of a database now, as the schedule would: backup, verify, check or expire."""
    session.wanted_database = database
    return watch.run(session, verb, {"database": database}, name="run", no_wait=no_wait, timeout=seconds(timeout))
