"""log and events: the history, in words and with its facts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from dbguardctl.app import Command, pass_session
from dbguardctl.humanize import utc_text
from dbguardctl.moments import parse_moment
from dbguardctl.options import Name, complete_database, database_argument, text_option
from dbguardctl.session import Session, no_database
from dbguardctl.views import log as view
from dbguardd.errors import DaemonUnreachable, Usage

Json = dict[str, Any]

_RETRIES = 30
_BEFORE = 10
_LINES = 50
_PAGE = 2_000


@click.command(cls=Command)
@database_argument(required=False)
@text_option("--since", metavar="TIME", help="Only what happened then or later, as 'yesterday 09:00'.")
@text_option("--until", metavar="TIME", help="Only what happened before that.")
@click.option("-n", "--lines", metavar="COUNT", type=click.IntRange(1), help="The newest so many; 50 unless --since.")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen, until Ctrl-C.")
@click.option("--errors", is_flag=True, help="Only what went wrong, or may have.")
@pass_session
def log(
    session: Session, database: str | None, *, since: str, until: str, lines: int | None, follow: bool, errors: bool
) -> None:
    """Tell what has happened to a database, or to all, newest last. With -v also each step, and what to do."""
    if follow and until:
        raise Usage("log: --follow has no end", detail="Take either --follow or --until.")
    given = (("since", since), ("until", until))
    moments = {name: utc_text(parse_moment(text, session.now, session.zone)) for name, text in given if text}
    least = "warning" if errors else "debug" if session.verbose else "info"
    limit = lines or (None if since else _BEFORE if follow else _LINES)
    newest = _newest(session, None)
    entries = _entries(session, {"database": database, **moments}, newest, least, limit)
    if not entries:
        must_be_known(session, database)
    if not follow and session.json:
        session.print_json({"schema": "dbguard.log/1", "database": database, "entries": entries})
        return
    if not (entries or follow):
        session.out.show(view.nothing(database))
    later = map(view.entry, _follow(session, newest, database, None)) if follow else iter(())
    for entry in chain(entries, (entry for entry in later if view.matters(entry, least))):
        if session.json:
            _print_line({"schema": "dbguard.log_entry/1", **entry})
        else:
            screen = session.out
            screen.show(view.entry_lines(entry, screen, session.zone, verbose=session.verbose))


def _newest(session: Session, database: str | None) -> int:
    """Return the id of the newest event of a database, or of all; 0 if there is none."""
    found = session.daemon.get("events", database=database, last=True, limit=1)["events"]
    return int(found[-1]["id"]) if found else 0


def _entries(session: Session, asked: Json, newest: int, least: str, limit: int | None) -> list[Json]:
    """Return the last `limit` entries of at least the level `least`, up to event `newest`, oldest first."""
    found: list[Json] = []
    before = newest + 1
    while limit is None or len(found) < limit:
        page = session.daemon.get("events", before=before, last=True, limit=_PAGE, **asked)["events"]
        found[:0] = [entry for entry in map(view.entry, page) if view.matters(entry, least)]
        if len(page) < _PAGE:
            break
        before = int(page[0]["id"])
    return found if limit is None else found[-limit:]


def must_be_known(session: Session, database: str | None) -> None:
    """Raise NotFound for the name of a database that is not in the policy and has no history."""
    if database is None or _newest(session, database):
        return
    names = [str(row["name"]) for row in session.daemon.get("status")["databases"]]
    if database not in names:
        raise no_database(database, names)


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
    """Show events with all their facts, newest last. With --json --follow, one JSON object a line."""
    if after is None:
        limit = min(limit, _BEFORE) if follow else limit
    answer = session.daemon.get("events", after=after, last=after is None, database=database, job=job, limit=limit)
    if not answer["events"]:
        must_be_known(session, database)
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
            _print_line({"schema": "dbguard.event/1", **event})
        else:
            screen.show(view.event_line(event, session.zone))


def _print_line(row: Json) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _follow(session: Session, after: int, database: str | None, job: str | None) -> Iterator[Json]:
    """Yield events forever; after a restart of the daemon, no event is lost or repeated."""
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
