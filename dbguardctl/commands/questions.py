"""query: ask a backup something without restoring it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from dbguardctl import watch
from dbguardctl.app import Command, pass_session
from dbguardctl.moments import parse_moment
from dbguardctl.options import database_argument, request_options
from dbguardctl.session import Session
from dbguardctl.views import questions as view
from dbguardctl.words import utc_text
from dbguardd import wire
from dbguardd.errors import Usage

Json = dict[str, Any]


@click.command(cls=Command, help=wire.Query.__doc__)
@database_argument()
@click.argument("sql", metavar="SELECT")
@request_options(wire.Query, rename={"backup": "id"})
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a head, NULL as nothing, blobs in hex.")
@pass_session
def query(session: Session, database: str, sql: str, as_csv: bool, **fields: Any) -> None:
    """Answer one SELECT."""
    if as_csv and session.json:
        raise Usage("query: --csv and --json are two forms of the answer; give one")
    job = ask(session, "query", {"database": database, "sql": sql, **fields})
    result = job["result"]
    lines = answer_of(session, job)
    columns = next(lines)
    if session.json:
        rows = list(lines)
        session.print_json({"schema": "dbguard.query/1", "job": job["id"], "database": database, **result,
                            "columns": columns, "row_count": result["rows"], "rows": rows})  # fmt: skip
    elif as_csv:
        sys.stdout.writelines(view.csv_lines(columns, lines, terminal=sys.stdout.isatty()))
    else:
        session.out.show(view.table(columns, list(lines)))
    sys.stdout.flush()
    if result["more"] and not session.json:
        session.err.show([view.cut_off(result)])


def ask(session: Session, verb: str, fields: Mapping[str, Any]) -> Json:
    """Have a question answered, say which backup the answer is from, and return the job. Raises what it failed of."""
    session.wanted_database = str(fields["database"])
    wanted = dict(fields)
    if fields["at"] and fields["backup"]:
        raise Usage(f"{verb}: --at and --id are two ways to say which backup; give one")
    if fields["at"]:
        wanted["at"] = utc_text(parse_moment(fields["at"], session.now, session.zone))
    job = watch.wait(session, watch.start(session, verb, wanted, quiet=True))
    if error := watch.failure(job):
        raise error
    for cells in view.said_of(job["result"], session.zone):
        session.say(*cells)
    return job


def answer_of(session: Session, job: Json) -> Iterator[Any]:
    """Yield the lines of JSON of the answer to a question."""
    rest = b""
    for portion in session.daemon.download("jobs", job["id"], "answer"):
        *lines, rest = (rest + portion).split(b"\n")
        yield from map(json.loads, lines)
