"""job list, show, watch, cancel: running and past work."""

from __future__ import annotations

import click

from dbguardctl.app import Group, pass_session
from dbguardctl.commands.log import must_be_known
from dbguardctl.commands.work import seconds
from dbguardctl.options import Name, complete_database, complete_job, id_argument, text_option
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardctl.views import jobs as view
from dbguardctl.watch import finish, settle
from dbguardd.states import JobState


@click.group(cls=Group)
def job() -> None:
    """Look at running and past work, wait for it, or stop it."""


@job.command("list")
@click.option(
    "--database", metavar="NAME", type=Name(), shell_complete=complete_database, help="Only of this database."
)
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only in this state.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10000), help="At most so many.")
@pass_session
def job_list(session: Session, database: str | None, state: str | None, limit: int) -> None:
    """List jobs, newest first."""
    answer = session.daemon.get("jobs", database=database, state=state, limit=limit)
    if not answer["jobs"]:
        must_be_known(session, database)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.jobs(answer, session.now, session.zone))


@job.command("show")
@id_argument(complete=complete_job)
@pass_session
def job_show(session: Session, id: str) -> None:
    """Show one job in full."""
    answer = session.daemon.get("jobs", id)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.job(answer["job"], session.now, session.zone))


@job.command("watch")
@id_argument(complete=complete_job)
@text_option("--timeout", metavar="SPAN", help="Stop waiting after that long (90s, 2h); the job goes on.")
@pass_session
def job_watch(session: Session, id: str, timeout: str) -> int:
    """Wait for a job, and end as the command that started it would have."""
    session.looks_on[id] = f"job {id}"
    row = session.daemon.get("jobs", id)["job"]
    return finish(session, "job", settle(session, row, seconds(timeout)))


@job.command("cancel")
@id_argument(complete=complete_job)
@pass_session
def job_cancel(session: Session, id: str) -> None:
    """Stop a job. What it had acknowledged stays."""
    answer = session.daemon.post("jobs", id, "cancel")
    row = answer["job"]
    ended = (
        "is cancelled"
        if row["state"] == "cancelled"
        else f"is {row['state']}"
        if row["state"] in view.FINAL
        else "stops"
    )
    session.answer(answer, [text(Cell("ok", "good"), f"  {row['verb']} {row['id']} {ended}")])
