"""schedule, pause, resume, events, audit: what will happen, and what has happened."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from dbguardctl.app import Command, Group, pass_session
from dbguardctl.moments import parse_span
from dbguardctl.options import Name, complete_database, database_argument
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardctl.views import care as view
from dbguardctl.words import when
from dbguardd.errors import DaemonUnreachable

_RETRIES = 30
_BEFORE = 10
_PAGE = 10_000


@click.command(cls=Command)
@click.option("--next", "count", default=10, show_default=True, type=click.IntRange(1, 1000), help="So many runs.")
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
@click.option("--for", "length", metavar="SPAN", default="", help="Resume by itself after that long (30min, 2h, 1d).")
@pass_session
def pause(session: Session, database: str, length: str) -> None:
    """Start no scheduled jobs of a database for a while. What runs goes on; backups by hand still work."""
    session.wanted_database = database
    seconds = parse_span(length) if length else None
    answer = session.daemon.post("databases", database, "pause", body={"seconds": seconds})
    until = answer.get("paused_until_at")
    ends = f"until {when(until, session.now, session.zone)}" if until else "until you say so"
    resume = Cell(f"dbguardctl resume {database}", "try")
    session.answer(answer, [text(Cell("ok", "good"), f"  {database} is paused {ends}   end it: ", resume)])


@click.command(cls=Command)
@database_argument()
@pass_session
def resume(session: Session, database: str) -> None:
    """End a pause: the schedule goes on, and what was missed is made up for."""
    session.wanted_database = database
    answer = session.daemon.post("databases", database, "resume")
    session.answer(answer, [text(Cell("ok", "good"), f"  {database} is no longer paused")])


@click.command(cls=Command)
@click.option("--follow", is_flag=True, help="Go on printing events as they happen, until Ctrl-C.")
@click.option("--after", metavar="EVENT", type=click.IntRange(0), help="Those after this one, instead of the newest.")
@click.option(
    "--database", metavar="NAME", type=Name(), shell_complete=complete_database, help="Only of this database."
)
@click.option("--job", metavar="ID", type=Name(), help="Only of this job.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10000), help="At most so many.")
@pass_session
def events(
    session: Session, *, follow: bool, after: int | None, database: str | None, job: str | None, limit: int
) -> None:
    """Show what has happened, newest last. With --json --follow, one JSON object a line."""
    if after is None:
        answer = _newest(session, database, job, min(limit, _BEFORE) if follow else limit)
    else:
        answer = session.daemon.get("events", after=after, database=database, job=job, limit=limit)
    if not follow:
        if session.json:
            session.print_json(answer)
        else:
            session.out.show(view.events(answer["events"], session.now, session.zone))
        return
    screen = session.out
    last = max([after or 0, *(int(event["id"]) for event in answer["events"])])
    for event in chain(answer["events"], _follow(session, last, database, job)):
        if session.json:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()
        else:
            screen.show(view.event_line(event, session.zone))


def _newest(session: Session, database: str | None, job: str | None, limit: int) -> dict[str, Any]:
    """Return the newest events: the API counts from the oldest, so page through what is kept."""
    newest: deque[dict[str, Any]] = deque(maxlen=limit)
    after = 0
    while True:
        answer = session.daemon.get("events", after=after, database=database, job=job, limit=_PAGE)
        newest.extend(answer["events"])
        if len(answer["events"]) < _PAGE:
            return {**answer, "events": list(newest)}
        after = int(answer["events"][-1]["id"])


def _follow(session: Session, after: int, database: str | None, job: str | None) -> Iterator[dict[str, Any]]:
    """Yield events for ever; a daemon that restarts is waited for, and no event is lost or doubled."""
    failures = 0
    while True:
        try:
            for event in session.daemon.follow("events", after=after, database=database, job=job):
                failures, after = 0, int(event["id"])
                yield event
        except DaemonUnreachable:
            failures += 1
            if failures > _RETRIES:
                raise
        time.sleep(1 if failures else 0.1)


@click.group(cls=Group)
def audit() -> None:
    """Read the audit log, and prove that nobody changed it."""


@audit.command("show")
@click.option("--after", metavar="ENTRY", type=click.IntRange(0), help="Only entries after this one.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10000), help="At most so many.")
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
