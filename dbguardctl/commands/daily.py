"""status, list, show, hold, release, recall: what there is, what must not go, and what comes back."""

from __future__ import annotations

import click

from dbguardctl.app import Command, pass_session
from dbguardctl.options import complete_database_or_id, complete_expired, database_argument, id_argument
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session, no_database
from dbguardctl.views import status as status_view
from dbguardd.errors import Usage


@click.command(cls=Command)
@database_argument(required=False)
@pass_session
def status(session: Session, database: str | None = None) -> int:
    """Say what could be restored, when that was proven, how long it takes, and what to do.

    Worst first. The exit status is 3 when something needs attention.
    """
    answer = session.daemon.get("status")
    screen = session.out
    if database is None:
        if session.json:
            session.print_json(answer)
        else:
            screen.show(status_view.status(answer, screen, session.now, session.zone))
        return 3 if status_view.needs_attention(answer) else 0
    rows = [row for row in answer["databases"] if row["name"] == database]
    if not rows:
        raise no_database(database, [row["name"] for row in answer["databases"]])
    if session.json:
        session.print_json({**answer, "databases": rows})
    else:
        screen.show(status_view.database(rows[0], screen, session.now, session.zone))
    return 3 if status_view.needs_attention({"databases": rows, "storages": [], "keys": []}) else 0


def _only(session: Session) -> str:
    """Return the name of the only database. Raises Usage, with all names, if there are several or none."""
    names = [str(row["name"]) for row in session.daemon.get("status")["databases"]]
    if len(names) == 1:
        return names[0]
    known = f"Databases: {', '.join(names)}." if names else "There is none yet."
    hints = [f"dbguardctl list {names[0]}" if names else "dbguardctl protect PATH"]
    raise Usage("list: which database?", detail=known, hints=hints)


@click.command("list", cls=Command)
@database_argument(required=False)
@click.option("--why", is_flag=True, help="Say what keeps each backup and when it goes.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Show all backups, not only the newest twenty, and those that can be recalled.",
)
@pass_session
def list_backups(session: Session, database: str | None, why: bool, everything: bool) -> None:
    """List the backups of a database, newest first. Without NAME: of the only one there is."""
    from dbguardctl.views.backups import backups  # noqa: PLC0415 - status does not need it

    database = database or _only(session)
    session.wanted_database = database
    answer = session.daemon.get("databases", database, "backups", why=why or None, all=everything or None)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(backups(answer, session.now, session.zone, why=why, everything=everything))


@click.command(cls=Command)
@id_argument("ID|NAME", complete_database_or_id)
@pass_session
def show(session: Session, id: str) -> None:
    """Show one backup, job or database in full, by its id, the first characters of it, or its name."""
    from dbguardctl.views import backups, jobs  # noqa: PLC0415 - status does not need them

    session.wanted_database = id
    answer = session.daemon.get("show", id)
    if session.json:
        session.print_json(answer)
        return
    screen = session.out
    match answer.get("kind"):
        case "job":
            screen.show(jobs.job(answer["job"], session.now, session.zone))
        case "database":
            screen.show(status_view.database(answer["database"], screen, session.now, session.zone))
        case _:
            screen.show(backups.show(answer, session.zone))


@click.command(cls=Command)
@id_argument()
@click.option("--reason", required=True, metavar="TEXT", help="Why the backup must stay; shown wherever it is listed.")
@pass_session
def hold(session: Session, id: str, reason: str) -> None:
    """Keep a backup whatever the policy says, until `release`."""
    answer = session.daemon.post("backups", id, "hold", body={"reason": reason})
    held = str(answer["backup"])  # the full id, of which the user may have typed a part
    undo = Cell(f"dbguardctl release {held}", "try")
    session.answer(answer, [text(Cell("ok", "good"), f"  backup {held} is held: {reason}   end it: ", undo)])


@click.command(cls=Command)
@id_argument()
@pass_session
def release(session: Session, id: str) -> None:
    """End the holds of a backup: from now on the policy decides again."""
    answer = session.daemon.post("backups", id, "release")
    session.answer(answer, [text(Cell("ok", "good"), f"  backup {answer['backup']} is no longer held")])


@click.command(cls=Command)
@id_argument(complete=complete_expired)
@pass_session
def recall(session: Session, id: str) -> None:
    """Bring an expired backup back while its grace lasts. `list NAME --all` shows which ones there are.

    A recall changes nothing in the policy: what it does not keep goes again at the next expiry, unless it is held.
    """
    from dbguardctl.views.backups import recalled  # noqa: PLC0415 - status does not need it

    answer = session.daemon.post("backups", id, "recall")
    session.answer(answer, recalled(answer))
