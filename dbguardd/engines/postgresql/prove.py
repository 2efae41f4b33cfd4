"""Proves a restored dump: brings it back into a throw-away server, reads every row, and asks the proof queries.

What a dump contains is run when it is restored: functions in constraints, in indexes, in views that are filled. So all
of it is done as a role that is no superuser and may not become one, even of the throw-away server. The superuser there
only makes what that role needs before anything of the dump is in the database: an empty database, the extensions of the
original (as they are installed on this host), the names of roles. So owners and grants are not tried, and not the few
objects that only a superuser may make (see _LEFT_OUT and _BEYOND): those are said.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from dbguardd.engines.base import Examination, Finding, Fingerprint, Progress, Query, judge
from dbguardd.engines.postgresql.child import Alive, run
from dbguardd.engines.postgresql.connect import Connection, connected, rows
from dbguardd.engines.postgresql.content import Content
from dbguardd.engines.postgresql.dump import ROLES, Contents, Part
from dbguardd.engines.postgresql.meaning import refused, trouble
from dbguardd.engines.postgresql.place import MANUAL, how_made, read_contents
from dbguardd.engines.postgresql.server import USER, Server, make_cluster, throwaway
from dbguardd.engines.postgresql.snapshot import Database
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.errors import Degraded, GuardError, NoSpace, ServerUnreachable
from dbguardd.words import count

_QUERY_SECONDS = 60.0
_LEFT_OUT = re.compile(r"\d+; \d+ \d+ (EVENT TRIGGER|EXTENSION|COMMENT|PROCEDURAL LANGUAGE|FOREIGN DATA WRAPPER) ")
"""Kinds of objects that only a superuser makes, or owns; extensions are there already."""
_BEYOND = re.compile("(?i)must be superuser|only superuser|superuser privilege|permission denied for language")
_OWNERS_CODE = re.compile(r"violates check constraint|^(CONTEXT:  )?(PL/\w+|SQL) function ", re.MULTILINE)
_BY_OWNER = " (a check or a function that its owner wrote refuses it, and may go by who restores, or when)"
_NOT_OF_THE_DATA = ("08", "53", "57", "58")  # classes of errors: connections, what a server lacks or was told
_SHOWN = 20
_QUOTES_NO_ROW = re.compile(
    r"""[^"']* "[^"]*" (of [^"']* "[^"]*" )?(does not exist|already exists|is not available|violates .*)"""
    r"""|[^"']*(constraint|index|relation|table|extension|schema|function|language|column) "[^"]*"[^"':]*"""
    r"""|(must|permission denied|only|could not create|function \S+ does not exist)[^':]*"""
)
"""What the server says of objects. All else may quote a value, and findings are kept, logged, and shown."""
_ERROR = re.compile(
    r"^pg_restore: error: (?:could not execute query: )?(?:COPY failed for (table \".*?\"): )?(?:ERROR:\s*)?(.*)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class _Sandbox:
    """A throw-away server with a role in it that may do no more than the owner of a database."""

    server: Server
    role: str
    alive: Alive

    @contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[Connection]:
        with connected(self.server.address(), database, about="throw-away server") as connection:
            yield connection

    @contextmanager
    def ordinary(self, database: str) -> Iterator[Connection]:
        with connected(self.server.address(self.role), database, about="throw-away server") as connection:
            yield connection


def examine(
    target: Path, staging: Path, queries: Sequence[Query], progress: Progress, default_database: str
) -> Examination:
    """Restore what lies in `target` into a throw-away server below `staging` and say what is found."""
    contents = read_contents(target)

    def alive() -> None:
        progress("examine", 0, None)

    tools = find_tools("postgres", contents.major, need="a test restore needs a server of that version")
    for program in ("initdb", "pg_restore"):
        find_tools(program, contents.major, need="a test restore needs it")
    data = staging / "server"
    superuser = f"{USER}_{secrets.token_hex(6)}"
    make_cluster(data, tools, alive, user=superuser)
    findings: list[Finding] = []
    with throwaway(data, tools, alive, user=superuser) as server:
        sandbox = _Sandbox(server, f"{superuser}_restores", alive)
        _make_roles(sandbox, target, contents, findings)
        whole, content = True, Content()
        for part in contents.parts:
            if _bring_back(sandbox, target, part, findings):
                with sandbox.ordinary(part.database.name) as db:
                    content.add(db, part.excluded, lambda size: progress("examine", size, None), large=part.large)
            else:
                whole = False
        found = content.fingerprint() if whole else None
        findings.append(_content(contents, found))
        findings += _ask_all(sandbox, contents, queries, default_database)
    said = f"{target / MANUAL} has the commands that bring it into a server"
    return Examination(tuple(findings), found, {"postgresql": tools.version, "next": said})


def _content(contents: Contents, found: Fingerprint | None) -> Finding:
    if found is None:
        return Finding("content", "inconclusive", "not all of it could be brought back, so it is not compared")
    excluded = sum(len(part.excluded) for part in contents.parts)
    counted = (count(len(contents.parts), "database"), count(len(found.tables), "table"), count(found.rows, "row"))
    said = ", ".join(counted)
    return Finding(
        "content", "ok", said + (f"; the rows of {excluded} more were left out by the policy" * bool(excluded))
    )


# ------------------------------------------------------------------------------------------------ bringing it back


def _make_roles(sandbox: _Sandbox, target: Path, contents: Contents, findings: list[Finding]) -> None:
    """Try the roles of the backup and take them back; then make their names only, without any right."""
    text = (target / ROLES).read_bytes()
    plain = b"\n".join(line for line in text.split(b"\n") if not re.match(rb"\\(un)?restrict \w+$", line))
    maker = contents.roles[0]  # of the original; here somebody else made the cluster
    for name in (_quoted(maker), maker.encode(errors="surrogateescape")):
        plain = plain.replace(b" GRANTED BY " + name + b";", b";")
    with sandbox.superuser() as db:
        findings.append(_tried(db, plain, len(contents.roles)))
        db.execute(f'CREATE ROLE "{sandbox.role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE BYPASSRLS'.encode())
        for role in contents.roles:
            db.execute(b"CREATE ROLE " + _quoted(role) + b" NOLOGIN")


def _tried(db: Connection, statements: bytes, count: int) -> Finding:
    """Run the text of the roles in a transaction that is taken back: nothing of the dump is there that it could run."""
    name = "roles"
    try:
        db.execute(b"BEGIN")
        db.pgconn.exec_(b"SET search_path = ''")
        result = db.pgconn.exec_(statements)
        if result.status not in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.EMPTY_QUERY):
            said = result.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY) or b""  # all else quotes passwords
            return Finding(name, "failed", told(said.decode(errors="replace")))
    finally:
        db.execute(b"ROLLBACK")
    return Finding(name, "ok", f"{count}, with what they may and are members of; made, and taken back")


def _bring_back(sandbox: _Sandbox, target: Path, part: Part, findings: list[Finding]) -> bool:
    """Restore one database; say whether all of it came back."""
    name = part.database.name
    label = f"database {name if name.isprintable() else repr(name)}"
    try:
        _make_database(sandbox, part)
    except GuardError as error:
        findings.append(Finding(label, "inconclusive", f"cannot be made on this host: {error.detail or error.message}"))
        return False
    if missing := _make_extensions(sandbox, part):
        findings.append(Finding(f"extensions of {name}", "inconclusive", "; ".join(missing)))
    chosen = _choose(sandbox, target, part)
    server = make_conninfo("", **{**sandbox.server.address(sandbox.role), "dbname": name})
    words = [
        *(sandbox.server.tools.path("pg_restore"), f"--dbname={server}", f"--use-list={chosen}", "--no-password"),
        *("--no-owner", "--no-privileges", "--no-comments", "--no-tablespaces", "--no-security-labels"),
        *("--no-publications", "--no-subscriptions", str(target / part.stream)),
    ]
    said = run(words, sandbox.alive, keep=(sandbox.server.place,))
    chosen.unlink()
    _refuse_trouble(sandbox, name, said.errors)
    errors = [f"{where}: {told(line)}".removeprefix(": ") for where, line in _ERROR.findall(said.errors)]
    if said.status == 0:
        findings.append(Finding(label, "ok", "restored; constraints and indexes were built anew and hold"))
        return not missing
    by_owner = _OWNERS_CODE.search(said.errors) is not None
    beyond = missing or by_owner or any(_BEYOND.search(line) for line in errors)
    outcome, why = "inconclusive" if beyond else "failed", _BY_OWNER * by_owner
    findings.append(Finding(label, outcome, "; ".join(errors[:_SHOWN]) + why or f"pg_restore ended with {said.status}"))
    return False


def _refuse_trouble(sandbox: _Sandbox, name: str, said: str) -> None:
    """Raise what says something about this host, and nothing about the backup."""
    log = sandbox.server.log()
    if trouble(said) is NoSpace or trouble(log) is NoSpace:
        raise NoSpace(f"{name}: no room for a test restore", detail=log)
    if trouble(said) is not None:
        raise Degraded(f"{name}: the throw-away server of a test restore gave up", detail=log)


def _make_database(sandbox: _Sandbox, part: Part) -> None:
    database: Database = part.database
    tool = sandbox.server.tools.path("createdb")
    told = make_conninfo("", **{**sandbox.server.address(), "dbname": "postgres"})
    words = [tool, f"--maintenance-db={told}", *how_made(database), f"--owner={sandbox.role}", "--", database.name]
    if database.name == "postgres":
        with sandbox.superuser("template1") as db:
            db.execute(b"DROP DATABASE postgres")
        words[1] = f"--maintenance-db={make_conninfo(told, dbname='template1')}"
    said = run(words, sandbox.alive, keep=(sandbox.server.place,))
    if said.status != 0:
        raise ServerUnreachable(f"{database.name}: cannot be made", detail=" ".join(said.errors.split())[:300])


def _make_extensions(sandbox: _Sandbox, part: Part) -> list[str]:
    """Make the extensions that the database had, while nothing else is in it; return what is missing, in words."""
    missing = []
    role = f'"{sandbox.role}"'.encode()
    with sandbox.superuser(part.database.name) as db:
        for extension in part.extensions:
            if extension.name == "plpgsql":
                continue
            schema, name = _quoted(extension.schema), _quoted(extension.name)
            try:
                db.execute(b"CREATE SCHEMA IF NOT EXISTS " + schema + b" AUTHORIZATION " + role)
                db.execute(b"CREATE EXTENSION " + name + b" SCHEMA " + schema + b" CASCADE")
            except psycopg.Error as error:
                said = str(error.diag.message_primary or error)[:300]
                missing.append(f"{extension.name} {extension.version}: {said} (apt-cache search {extension.name})")
        _hand_over(db, role)
        db.execute(b"GRANT SELECT ON pg_largeobject TO " + role)
    return missing


def _hand_over(db: Connection, role: bytes) -> None:
    """Let the role use and fill what the extensions made."""
    asked = rb"""
    SELECT format('GRANT ALL ON %s %I.%I TO ', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
      n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_depend e ON e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e'
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL SELECT format('GRANT USAGE, CREATE ON SCHEMA %I TO ', n.nspname) FROM pg_namespace n
    JOIN pg_depend e ON e.classid = 'pg_namespace'::regclass AND e.objid = n.oid AND e.deptype = 'e'
    UNION ALL SELECT format('GRANT USAGE ON FOREIGN DATA WRAPPER %I TO ', w.fdwname) FROM pg_foreign_data_wrapper w
    """
    for (grant,) in rows(db, asked):
        db.execute(bytes(grant) + role)


def _choose(sandbox: _Sandbox, target: Path, part: Part) -> Path:
    """Write the list of what pg_restore is to bring back: all but what only a superuser makes, or has made."""
    tool = sandbox.server.tools.path("pg_restore")
    said = run([tool, "--list", str(target / part.stream)], sandbox.alive)
    schemas = (extension.schema.replace("\n", " ").replace("\r", " ") for extension in part.extensions)
    made = [f" SCHEMA - {schema} " for schema in schemas]
    lines = [
        line
        for line in said.output.decode(errors="surrogateescape").split("\n")
        if not _LEFT_OUT.match(line) and not any(schema in line for schema in made)
    ]
    chosen = sandbox.server.data / f"{part.stream}.list"
    chosen.write_text("\n".join(lines), errors="surrogateescape")
    return chosen


# ------------------------------------------------------------------------------------------------ proof queries


def _ask_all(sandbox: _Sandbox, contents: Contents, queries: Sequence[Query], default: str) -> list[Finding]:
    if not queries:
        return [Finding("proof queries", "not configured")]
    names = [part.database.name for part in contents.parts]
    return [_ask(sandbox, query, query.database or default or only_of(names), names) for query in queries]


def only_of(names: Sequence[str]) -> str:
    """Return the database that is meant if none is named: the only one beside the one that every server has."""
    others = [name for name in names if name != "postgres"]
    return others[0] if len(others) == 1 else "postgres"


def _ask(sandbox: _Sandbox, query: Query, database: str, names: Sequence[str]) -> Finding:
    if database not in names:
        return no_database(query, database)
    return ask(query, sandbox.ordinary(database))


def no_database(query: Query, database: str) -> Finding:
    """Say that there is no database that a query could be asked of."""
    said = f"there is no database {database} in the backup: say which with `database`"
    return Finding(f"query: {query.sql}", "failed", said)


def ask(query: Query, connecting: AbstractContextManager[Connection]) -> Finding:
    """Ask one query. What stands in rows is not told: findings are kept, logged, and shown to all who may read."""
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
    """Return a value as the policy can name it: text, a number, or none."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode(errors="backslashreplace")
    if isinstance(value, bool) or value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _quoted(name: str) -> bytes:
    return b'"' + name.encode(errors="surrogateescape").replace(b'"', b'""') + b'"'


def told(said: str) -> str:
    """Return what a server said, in one line, without values of rows."""
    line = " ".join(said.split())
    if not _QUOTES_NO_ROW.fullmatch(line):
        line = re.split("[\"':(]", line)[0].strip() + " …"
    return line if len(line) <= 300 else f"{line[:300]}…"
