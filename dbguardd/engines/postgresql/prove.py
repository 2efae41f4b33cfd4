"""Proves a restored dump: restores it into a throw-away server, reads every row, and runs the proof queries.

All of this is done by a role without privileges (see sandbox). What only a superuser may do is reported (_BEYOND).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from dbguardd.engines.base import Examination, Finding, Progress, ProofQuery, judge
from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.content import Content, name_of, prints_of, schema_lines
from dbguardd.engines.postgresql.dump import ROLES, Contents, Part
from dbguardd.engines.postgresql.dump_files import MANUAL, read_contents
from dbguardd.engines.postgresql.meaning import refused
from dbguardd.engines.postgresql.sandbox import (
    LEAST_SECONDS,
    Sandbox,
    bring_back,
    listed,
    make_database,
    make_roles,
    quoted,
    restorable,
    tools_for,
    within,
)
from dbguardd.engines.postgresql.server import USER, make_cluster, roomy, throwaway
from dbguardd.errors import GuardError, TooCostly
from dbguardd.humanize import count, some

_QUERY_SECONDS = 60.0
_BEYOND = re.compile('(?i)superuser|permission denied|(language|foreign-data wrapper) ".*" does not exist')
"""Errors of a role without rights: refused, or missing because only a superuser can create it (see sandbox)."""
_FILLING = "\nCommand was: REFRESH MATERIALIZED VIEW "
_OWNERS_CODE = re.compile(r"violates check constraint|^(CONTEXT:  )?(PL/\w+|SQL) function ", re.MULTILINE)
_BY_OWNER = " (a check or a function that its owner wrote refuses it, and may go by who restores, or when)"
_BY_QUERY = " (a materialized view is filled by its query, which needs something that is not here; the rows are here)"
_NOT_OF_THE_DATA = ("08", "53", "57", "58")  # classes of errors: connections, and resources or settings of a server
_SHOWN = 20
_QUOTES_NO_ROW = re.compile(
    r"""[^"']* "[^"]*" (of [^"']* "[^"]*" )?(does not exist|already exists|is not available|violates .*)"""
    r"""|[^"']*(constraint|index|relation|table|extension|schema|function|language|column) "[^"]*"[^"':]*"""
    r"""|(must|permission denied|only|could not create|function \S+ does not exist)[^':]*"""
)
"""Messages about objects. All others may quote a value, and findings are kept, logged, and displayed."""
_ERROR = re.compile(
    r"^pg_restore: error: (?:could not execute query: )?(?:COPY failed for (table \".*?\"): )?(?:ERROR:\s*)?(.*)$",
    re.MULTILINE,
)


def examine(
    target: Path,
    staging: Path,
    queries: Sequence[ProofQuery],
    progress: Progress,
    default_database: str,
    *,
    least_seconds: float = LEAST_SECONDS,
) -> Examination:
    """Restore the dumps in `target` into a throw-away server below `staging` and report what is found.

    Each database gets `least_seconds`, and more for its size, because a function of its owner may never end.
    """
    contents = read_contents(target)

    def alive() -> None:
        progress("examine", 0, None)

    tools = tools_for(contents, "a test restore of")
    data = staging / "server"
    superuser = f"{USER}_{secrets.token_hex(6)}"
    make_cluster(data, tools, alive, user=superuser)
    findings: list[Finding] = []
    with throwaway(data, tools, alive, user=superuser) as server:
        sandbox = Sandbox(server, f"{superuser}_restores", alive)
        findings.append(_roles(sandbox, target, contents))
        make_roles(sandbox, contents.roles)
        whole, content, bounded = True, Content(), roomy(staging, alive)
        for part in contents.parts:
            if _bring_back(
                replace(sandbox, alive=bounded), target, contents, part, findings, least_seconds=least_seconds
            ):
                with sandbox.ordinary(part.database.name) as db:
                    lines = schema_lines(db)
                    prints = prints_of(db, part.excluded, lambda n: progress("examine", n, None), large=part.large)
                    content.add(name_of(db), lines, prints)
            else:
                whole = False
        found = content.fingerprint() if whole else None
        findings.append(_content(contents, found))
        findings += _ask_all(sandbox, contents, queries, default_database)
    said = f"{target / MANUAL} has the commands that load it into a server"
    return Examination(tuple(findings), found, {"postgresql": tools.version, "next": said})


def _content(contents: Contents, found: Fingerprint | None) -> Finding:
    if found is None:
        return Finding("content", "inconclusive", "not all of it could be restored, so it is not compared")
    excluded = sum(len(part.excluded) for part in contents.parts)
    counted = (count(len(contents.parts), "database"), count(len(found.tables), "table"), count(found.rows, "row"))
    said = ", ".join(counted) + f"; the rows of {excluded} more were left out by the policy" * bool(excluded)
    if filled := [name for part in contents.parts for extension in part.extensions for name in extension.filled]:
        said += f"; the rows that users added to tables of extensions are not compared: {some(filled, most=_SHOWN)}"
    return Finding("content", "ok", said)


# ------------------------------------------------------------------------------------------------ restoring


def _roles(sandbox: Sandbox, target: Path, contents: Contents) -> Finding:
    """Create the roles of the backup in a transaction that is rolled back."""
    text = (target / ROLES).read_bytes()
    plain = b"\n".join(line for line in text.split(b"\n") if not re.match(rb"\\(un)?restrict \w+$", line))
    maker = contents.roles[0]  # in the original; here another role created the cluster
    for name in (quoted(maker), maker.encode(errors="surrogateescape")):
        plain = plain.replace(b" GRANTED BY " + name + b";", b";")
    with sandbox.superuser() as db:
        return _tried(db, plain, len(contents.roles))


def _tried(db: Connection, statements: bytes, count: int) -> Finding:
    """Run the role statements in a transaction that is rolled back, before any code of the dump is in the server."""
    name = "roles"
    try:
        db.execute(b"BEGIN")
        db.pgconn.exec_(b"SET search_path = ''")
        result = db.pgconn.exec_(statements)
        if result.status not in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.EMPTY_QUERY):
            said = result.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY) or b""  # others may quote passwords
            return Finding(name, "failed", without_rows(said.decode(errors="replace")))
    finally:
        db.execute(b"ROLLBACK")
    return Finding(name, "ok", f"{count}, with what they may and are members of; made, and taken back")


def _bring_back(
    sandbox: Sandbox, target: Path, contents: Contents, part: Part, findings: list[Finding], *, least_seconds: float
) -> bool:
    """Restore one database; return whether all of it was restored. Its time begins once the empty database exists."""
    name = part.database.name
    label = f"database {name if name.isprintable() else repr(name)}"
    try:
        missing = make_database(sandbox, part)
    except GuardError as error:
        findings.append(Finding(label, "inconclusive", f"cannot be made on this host: {error.detail or error.message}"))
        return False
    if missing:
        findings.append(Finding(f"extensions of {name}", "inconclusive", "; ".join(missing)))
    dump = target / part.stream
    sandbox = replace(sandbox, alive=within(dump.stat().st_size, sandbox.alive, least_seconds))
    try:
        lines = restorable(listed(sandbox.server.tools, dump, sandbox.alive), contents, part)
        said = bring_back(sandbox, dump, part, lines)
    except TooCostly as error:
        findings.append(Finding(label, "inconclusive", f"{error.message}: a function in the database may run forever"))
        return False
    errors = errors_of(said.errors)
    if said.status == 0:
        findings.append(Finding(label, "ok", "restored; constraints and indexes were built again and hold"))
        return not missing
    outcome, why, has_rows = judged(said.errors)
    outcome = "inconclusive" if missing else outcome
    findings.append(Finding(label, outcome, "; ".join(errors[:_SHOWN]) + why or f"pg_restore ended with {said.status}"))
    return has_rows and not missing


def judged(said: str) -> tuple[str, str, bool]:
    """Return what it means for a backup that pg_restore did not bring all of it back.

    The outcome; why, where that is not plain; and if all rows are there, so that they can be compared.
    """
    errors = errors_of(said)
    if errors and all(_FILLING in one for one in said.split("pg_restore: error: ")[1:]):
        return "inconclusive", _BY_QUERY, True
    if _OWNERS_CODE.search(said) is not None:
        return "inconclusive", _BY_OWNER, False
    return "inconclusive" if any(_BEYOND.search(line) for line in errors) else "failed", "", False


def errors_of(said: str) -> list[str]:
    """Return what pg_restore could not restore, one line each, without values of rows."""
    return [f"{where}: {without_rows(line)}".removeprefix(": ") for where, line in _ERROR.findall(said)]


# ------------------------------------------------------------------------------------------------ proof queries


def _ask_all(sandbox: Sandbox, contents: Contents, queries: Sequence[ProofQuery], default: str) -> list[Finding]:
    if not queries:
        return [Finding("proof queries", "not configured")]
    names = [part.database.name for part in contents.parts]
    return [_ask(sandbox, query, query.database or default or only_of(names), names) for query in queries]


def only_of(names: Sequence[str]) -> str:
    """Return the database to use if none is named: the only one besides `postgres`, which every server has."""
    others = [name for name in names if name != "postgres"]
    return others[0] if len(others) == 1 else "postgres"


def _ask(sandbox: Sandbox, query: ProofQuery, database: str, names: Sequence[str]) -> Finding:
    if database not in names:
        return no_database(query, database)
    return ask(query, sandbox.ordinary(database))


def no_database(query: ProofQuery, database: str) -> Finding:
    """Return the finding for a query whose database does not exist."""
    said = f"there is no database {database} in the backup: say which with `database`"
    return Finding(f"query: {query.sql}", "failed", said)


def ask(query: ProofQuery, connecting: AbstractContextManager[Connection]) -> Finding:
    """Run one query. Values of rows are not reported: findings are kept, logged, and shown to all who may read."""
    label = f"query: {query.sql}"
    try:
        with connecting as db:
            db.execute(b"RESET search_path")
            db.execute(f"SET statement_timeout = {int(_QUERY_SECONDS * 1000)}".encode())
            db.execute(b"BEGIN READ ONLY")
            found = db.execute(query.sql.encode(), prepare=False).fetchmany(2)
    except GuardError as error:
        state = getattr(error.__cause__, "sqlstate", None) or ""
        if state == "57014":
            return Finding(label, "inconclusive", f"no answer within {_QUERY_SECONDS:.0f} s")
        if state == "55P03":
            return Finding(label, "inconclusive", "what it reads is locked by a prepared transaction")
        if not state or state.startswith(_NOT_OF_THE_DATA):
            return refused(label, error)
        told = error.detail if state.startswith("42") else f"SQLSTATE {state} while it ran"
        return Finding(label, "failed", told)
    except psycopg.ProgrammingError:
        return Finding(label, "failed", "it returns no rows")
    if len(found) != 1 or len(found[0]) != 1:
        return Finding(label, "failed", "the query must return exactly one row of one value")
    return judge(label, query, _plain(found[0][0]))


def _plain(value: Any) -> Any:
    """Return a value in a form that a policy can state: text, a number, or null."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode(errors="backslashreplace")
    if isinstance(value, bool) or value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def without_rows(said: str) -> str:
    """Return a server's message in one line, without values of rows."""
    line = " ".join(said.split())
    if not _QUOTES_NO_ROW.fullmatch(line):
        line = re.split("[\"':(]", line)[0].strip() + " …"
    return line if len(line) <= 300 else f"{line[:300]}…"
