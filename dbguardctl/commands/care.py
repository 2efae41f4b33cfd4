"""schedule, pause, resume, audit: what will happen, and which user asked for what."""

from __future__ import annotations

import click

from dbguardctl.app import Command, Group, pass_session
from dbguardctl.moments import parse_span
from dbguardctl.options import database_argument, text_option
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardctl.views import care as view


@click.command(cls=Command)
@click.option("--next", "count", default=10, show_default=True, type=click.IntRange(1, 1000), help="Number of runs.")
@pass_session
def schedule(session: Session, count: int) -> None:
    """Show what will run next, and when."""
    answer = session.daemon.get("schedule", next=count)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.schedule(answer, session.now, session.zone))


@click.command(cls=Command)
@database_argument()
@text_option("--for", "length", metavar="SPAN", help="Resume automatically after this time (30min, 2h, 1d).")
@pass_session
def pause(session: Session, database: str, length: str) -> None:
    """Start no scheduled jobs of a database for a while.

    Running jobs continue, following the log does, and jobs can still be started by hand.
    """
    session.wanted_database = database
    seconds = parse_span(length) if length else None
    answer = session.daemon.post("databases", database, "pause", body={"seconds": seconds})
    session.answer(answer, view.paused(answer, session.now, session.zone))


@click.command(cls=Command)
@database_argument()
@pass_session
def resume(session: Session, database: str) -> None:
    """End a pause: the schedule goes on, and what was missed is made up for."""
    session.wanted_database = database
    answer = session.daemon.post("databases", database, "resume")
    done = "is no longer paused" if answer.get("was_paused", True) else "was not paused"
    session.answer(answer, [text(Cell("ok", "good"), f"  {database} {done}")])


@click.group(cls=Group)
def audit() -> None:
    """Read the audit log, and prove that nobody changed it."""


@audit.command("show")
@click.option("--after", metavar="ENTRY", type=click.IntRange(0), help="Only entries after this one.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10000), help="At most this many.")
@pass_session
def audit_show(session: Session, after: int | None, limit: int) -> None:
    """Show who asked for what, and what was refused."""
    answer = session.daemon.get("audit", after=after, limit=limit)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.audit(answer, session.now, session.zone))


@audit.command("verify")
@pass_session
def audit_verify(session: Session) -> int:
    """Check the chain of the audit log from its first entry."""
    answer = session.daemon.post("audit", "verify")
    ok = answer.get("ok", True)
    if session.json:
        session.print_json(answer)
    else:
        session.out.show(view.audit_verified(answer, session.zone))
    return 0 if ok else 4
