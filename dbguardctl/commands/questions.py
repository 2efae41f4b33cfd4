"""query, get, diff and undelete: questions to backups, without restoring them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from shlex import join, quote
from typing import Any

import click

from dbguardctl import watch
from dbguardctl.app import PROGRAM, Command, pass_session
from dbguardctl.meant import meant_moment
from dbguardctl.options import complete_id, database_argument, from_root, request_options, text_option
from dbguardctl.screen import Cell, text
from dbguardctl.session import Session
from dbguardctl.views import questions as view
from dbguardd import requests
from dbguardd.errors import GuardError, NoSpace, TargetExists, Usage, of_file
from dbguardd.humanize import safe

Json = dict[str, Any]

_NAMES = {"backup": "id", "in_database": "database"}
_ID = re.compile("0[0-9a-z]{3,25}", re.I)
"""Matches the beginning of an id, and no moment."""


@click.command(cls=Command, help=requests.Query.__doc__)
@database_argument()
@click.argument("sql", metavar="SELECT")
@request_options(requests.Query, rename=_NAMES)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a header line, NULL as an empty field, blobs in hex.")
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


@click.command(cls=Command, help=requests.Get.__doc__)
@database_argument()
@text_option("--table", required=True, help="The table; 'SCHEMA.*' is a whole PostgreSQL schema, as SQL.")
@request_options(requests.Get, skip=("table", "format"), rename=_NAMES)
@click.option(
    "--format",
    type=click.Choice(["sql", "csv"]),
    default="sql",
    show_default=True,
    help="SQL for the sqlite3 shell, or psql; or CSV: a header line, NULL as an empty field, blobs in hex.",
)
@text_option("--to", metavar="FILE", help="Write into this new file instead of to standard output.")
@pass_session
def get(session: Session, database: str, format: str, to: str, **fields: Any) -> None:
    """Take one table out of a backup."""
    to = _file(to)
    if session.json and not to:
        raise Usage("get: --json tells about the table, which needs a place with --to FILE")
    job = _text(session, "get", {"database": database, "format": format, **fields}, to)
    result = job["result"]
    if session.json:
        session.print_json({"schema": "dbguard.get/1", "job": job["id"], "database": database, **result,
                            "to": from_root(to)})  # fmt: skip
    _conclude(session, view.taken_out(result, to), to)


def _file(to: str) -> str:
    """Return the file to write; empty for standard output, which is "-" by custom."""
    return "" if to == "-" else to


def _text(session: Session, verb: str, fields: Mapping[str, Any], to: str) -> Json:
    """Ask a question that is answered with a text, write the text to its target, and return the job."""
    target = _New(verb, to) if to else None
    try:
        job = ask(session, verb, fields)
        for portion in session.daemon.download("jobs", job["id"], "answer"):
            _write(target, portion)
        if target is not None:
            target.keep()
    except BaseException:
        if target is not None:
            target.drop()
        raise
    return job


def _conclude(session: Session, lines: Iterable[Sequence[Cell | str]], to: str) -> None:
    """Report what was found: as the result, unless standard output is the answer itself."""
    for cells in lines:
        if to and not session.json:
            session.out.show([text(*cells)])
        else:
            session.say(*cells)


class _New:
    """A file that did not exist before: in the end it is complete, or removed."""

    def __init__(self, verb: str, path: str) -> None:
        self._verb, self._path = verb, path
        try:
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            hint = f"choose another name for the file with --to, or move {path} away"
            raise TargetExists(f"{verb}: {path} exists", hints=[hint]) from None
        except OSError as error:
            raise self._failure(error) from error

    def write(self, data: bytes) -> None:
        """Write all bytes."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.file, rest) :]
        except OSError as error:
            raise self._failure(error) from error

    def keep(self) -> None:
        """Make it durable."""
        try:
            os.fsync(self.file)
            os.close(self.file)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> GuardError:
        """Return why the file was not written; if its disk is full, with the command that shows that disk."""
        problem = of_file(f"{self._verb}: {self._path} cannot be written", error)
        if isinstance(problem, NoSpace):
            problem.hints = (f"df -h {quote(os.path.dirname(os.path.abspath(self._path)))}",)
        return problem

    def drop(self) -> None:
        """Remove the file: half a table is useless."""
        with suppress(OSError):
            os.unlink(self._path)
        with suppress(OSError):
            os.close(self.file)


def _write(target: _New | None, portion: bytes) -> None:
    if target is not None:
        target.write(portion)
    elif sys.stdout.isatty():
        sys.stdout.write(safe(portion.decode(errors="replace"), keep="\n"))
    else:
        sys.stdout.buffer.write(portion)
        sys.stdout.flush()


@click.command(cls=Command, help=requests.Diff.__doc__)
@database_argument()
@text_option(
    "--from",
    "older",
    metavar="TIME|ID",
    required=True,
    shell_complete=complete_id,
    help="The older backup: a time, such as 'yesterday 09:00', or the id of a backup.",
)
@text_option(
    "--to",
    "newer",
    metavar="TIME|ID",
    shell_complete=complete_id,
    help="The newer backup, in the same form; default: the newest reliable one.",
)
@request_options(requests.Diff, skip=("older", "newer"), rename=_NAMES)
@click.option("--summary", is_flag=True, help="Only the number of rows added, removed and changed in each table.")
@pass_session
def diff(session: Session, database: str, summary: bool, **fields: Any) -> None:
    """Compare two backups."""
    for name in ("older", "newer"):
        fields[name] = which(session, database, fields[name]) if fields[name] else ""
    job = ask(session, "diff", {"database": database, **fields})
    found: dict[str, list[Json]] = {"definitions": [], "tables": [], "changes": []}
    for line in answer_of(session, job):
        if "change" in line:
            found["changes"] += [] if summary else [line]
        elif "table" in line:
            found["tables"].append(line["table"])
        else:
            found["definitions"].append(line["schema"])
    if session.json:
        session.print_json({"schema": "dbguard.diff/1", "job": job["id"], "database": database,
                            "older": job["result"]["older"], "newer": job["result"]["newer"], **found})  # fmt: skip
    else:
        session.out.show(view.difference(found, summary=summary))


@click.command(cls=Command, help=requests.Undelete.__doc__)
@database_argument()
@text_option("--table", required=True, help="The table.")
@request_options(requests.Undelete, skip=("table",), rename=_NAMES)
@text_option("--to", metavar="FILE", help="Write the SQL into this new file; nothing changes until you run it.")
@pass_session
def undelete(session: Session, database: str, sql: bool, to: str, **fields: Any) -> None:
    """Find rows that are gone, or changed."""
    sql, to = bool(sql or to), _file(to)
    if not (fields["at"] or fields["backup"]):
        raise Usage("undelete: which backup has the rows? Say --at or --id", hints=[f"dbguardctl list {database}"])
    if sql and session.json and not to:
        raise Usage("undelete: --json tells about the SQL, which needs a place with --to FILE")
    asked = {"database": database, "sql": sql, **fields}
    columns: list[str] = []
    rows: list[Any] = []
    if asked["sql"]:
        job = _text(session, "undelete", asked, to)
    else:
        job = ask(session, "undelete", asked)
        columns, *rows = answer_of(session, job) if not asked["changed"] else ([], *answer_of(session, job))
    result, changed = job["result"], asked["changed"]
    if session.json:
        session.print_json({"schema": "dbguard.undelete/1", "job": job["id"], "database": database,
                            "older": result["older"], "newer": result["newer"],
                            "missing": None if changed else result["rows"],
                            "differing": result["rows"] if changed else result.get("differing"),
                            "columns": columns, "rows": [] if changed else rows, "changes": rows if changed else [],
                            "to": from_root(to) if to else None})  # fmt: skip
    elif changed and not asked["sql"]:
        session.out.show(view.changes(result["table"], rows, result["rows"]))
    elif not asked["sql"]:
        session.out.show(view.table(columns, rows))
    _conclude(session, view.missing(result, to, session.arguments), to)


def which(session: Session, database: str, said: str) -> str:
    """Return a moment in the API's form, or the id of a backup unchanged. Raises Usage."""
    if _ID.fullmatch(said):
        return said
    try:
        return meant_moment(session, database, said)
    except Usage:
        if said.isalnum() and not said.isdigit():
            return said  # the last characters of an id
        raise


def ask(session: Session, verb: str, fields: Mapping[str, Any]) -> Json:
    """Ask a question, report which backup the answer is from, and return the job. Raises the job's problem."""
    session.wanted_database = str(fields["database"])
    wanted = dict(fields)
    if fields.get("at") and fields["backup"]:
        raise Usage(f"{verb}: --at and --id are two ways to say which backup; give one")
    if fields.get("at"):
        wanted["at"] = meant_moment(session, session.wanted_database, fields["at"])
    job = watch.wait(session, watch.start(session, verb, wanted, quiet=True))
    if error := watch.failure(job):
        error.hints = tuple(_whole(session, hint) for hint in error.hints)
        raise error
    told = [job["result"][name] for name in ("older", "newer")] if "older" in job["result"] else [job["result"]]
    for result in told:
        for cells in view.said_of(result, job["result"].get("in_database") or "", session.zone):
            session.say(*cells)
    return job


def _whole(session: Session, hint: str) -> str:
    """Return a hint; one that is only an option and its value replaces or continues what was typed."""
    if not hint.startswith("--"):
        return hint
    option, words = hint.split(maxsplit=1)[0], list(session.arguments)
    if option in words:
        del words[words.index(option) : words.index(option) + 2]
    kept = [word for word in words if not word.startswith(f"{option}=")]
    return f"{join([PROGRAM, *kept])} {hint}"


def answer_of(session: Session, job: Json) -> Iterator[Any]:
    """Yield the JSON lines of the answer to a question."""
    rest = b""
    for portion in session.daemon.download("jobs", job["id"], "answer"):
        *lines, rest = (rest + portion).split(b"\n")
        yield from map(json.loads, lines)
