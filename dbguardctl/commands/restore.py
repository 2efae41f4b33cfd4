"""restore and undo: get the data back, by default to a new place."""

from __future__ import annotations

from typing import Any

import click

from dbguardctl import watch
from dbguardctl.app import Command, pass_session
from dbguardctl.commands.work import seconds
from dbguardctl.consent import can_ask, confirmed
from dbguardctl.humanize import when
from dbguardctl.meant import meant_moment
from dbguardctl.options import Name, complete_database, database_argument, from_root, request_options, wait_options
from dbguardctl.session import Session
from dbguardd import requests
from dbguardd.errors import NotFound, Usage
from dbguardd.humanize import absolute
from dbguardd.kinds import KINDS
from dbguardd.requests import UNDO_REASON


@click.command(
    cls=Command, help=f"{requests.Restore.__doc__}\n\n`restore undo NAME` puts back what --in-place replaced."
)
@click.argument("words", metavar="NAME", nargs=-1, required=True, type=Name(), shell_complete=complete_database)
@click.option("--undo", "back", is_flag=True, help="Put back the state that the last restore --in-place replaced.")
@request_options(requests.Restore, rename={"backup": "id"})
@click.option("--latest", is_flag=True, help="The newest state that can be restored, as without any of these.")
@wait_options
@pass_session
def restore(session: Session, words: tuple[str, ...], back: bool, no_wait: bool, timeout: str, **fields: Any) -> int:
    """Restore a database, or undo that."""
    back, words = (True, words[1:]) if words[0] == "undo" and len(words) == 2 else (back, words)
    if len(words) != 1:
        from dbguardctl.mistyped import unquoted  # noqa: PLC0415 - only on the way to an error

        raise unquoted(session, Usage("restore: one database at a time", hints=["dbguardctl restore NAME --dry-run"]))
    database = words[0]
    session.wanted_database = database
    if back:
        if any(value for name, value in fields.items() if name != "confirm"):
            raise Usage(
                "restore undo: takes only --confirm",
                detail="It puts back the newest backup that is held for it.",
                hints=[f"dbguardctl list {database} --why"],
            )
        return _undo(session, database, fields["confirm"], no_wait, timeout)
    if fields.pop("latest") + sum(bool(fields[way]) for way in ("at", "backup", "lsn", "name")) > 1:
        raise Usage("restore: --at, --id, --lsn, --name and --latest are ways to say what to restore; give one")
    if fields["in_place"] and fields["to"]:
        raise Usage("restore: --to is a new place and --in-place the live one; give one")
    if fields["to"]:
        fields["to"] = from_root(fields["to"])
    if fields["at"]:
        fields["at"] = meant_moment(session, database, fields["at"])
        session.say(f"{database}: as it was at {absolute(fields['at'], session.zone)} ({fields['at']})")
    if fields["in_place"] and not fields["dry_run"] and _asks(session, database):
        fields["confirm"] = confirmed(session, database, fields["confirm"], "replaces the live database")
    return watch.run(session, "restore", {"database": database, **fields}, no_wait=no_wait,
                   timeout=seconds(timeout))  # fmt: skip


def _asks(session: Session, database: str) -> bool:
    """Return whether the user must type the name before the job is submitted.

    For a database of a server only the job knows whether a restore in place is possible, and a script need not confirm
    what is refused. For a dump it never is: then nobody has to type a name.
    """
    newest = session.daemon.get("databases", database, "backups")["backups"][:1]
    kinds = [KINDS.get(row["engine"]) for row in newest]
    if not any(kind is not None and bool(kind.addresses) for kind in kinds):
        return True
    return can_ask(session) and newest[0]["method"] != "dump"


@click.command(cls=Command, help=requests.Undo.__doc__)
@database_argument()
@request_options(requests.Undo)
@wait_options
@pass_session
def undo(session: Session, database: str, no_wait: bool, timeout: str, confirm: str) -> int:
    """Undo a restore in place."""
    session.wanted_database = database
    return _undo(session, database, confirm, no_wait, timeout)


def _undo(session: Session, database: str, confirm: str, no_wait: bool, timeout: str) -> int:
    if not confirm and can_ask(session):
        _must_have_something(session, database)
    how = " by its state before the last restore"
    if undone := _undone(session, database):
        how = f" by what the undo of {undone} replaced: it undoes that undo"
        session.say(f"{database}: the last restore in place was undone {undone}; this undoes the undo")
    confirm = confirmed(session, database, confirm, "replaces the live database", how)
    fields = {"database": database, "confirm": confirm}
    return watch.run(session, "undo", fields, no_wait=no_wait, timeout=seconds(timeout))


def _undone(session: Session, database: str) -> str:
    """Return when the last restore in place was undone; empty if it was not, or if one was interrupted since."""
    for row in session.daemon.get("jobs", database=database, limit=1000)["jobs"]:
        request = row["request"]
        if row["verb"] == "undo" or (row["verb"] == "restore" and request.get("in_place") and not request["dry_run"]):
            if row["state"] == "done":
                return when(row["finished_at"], session.now, session.zone) if row["verb"] == "undo" else ""
            if row["state"] != "failed" or (row["problem"] or {}).get("replaced"):
                return ""
    return ""


def _must_have_something(session: Session, database: str) -> None:
    """Raise NotFound if there is no restore to undo, before the user has to type anything."""
    rows = session.daemon.get("databases", database, "backups")["backups"]
    if not any(UNDO_REASON in row["holds"] for row in rows):
        raise NotFound(f"{database}: there is no restore to undo", hints=[f"dbguardctl list {database} --why"])
