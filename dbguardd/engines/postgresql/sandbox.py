"""A throw-away server in which a database is restored from a dump by a role without privileges.

Restoring a dump runs code from it: functions in constraints, in indexes, in materialized views. So everything is done
as a role that is no superuser, and cannot become one, even on the throw-away server. Before anything of the dump is in
the database, the superuser only creates what that role needs: an empty database, the original's extensions (as
installed on this host), the names of roles. So owners and grants are not tested, nor the few objects that only a
superuser can create (see _LEFT_OUT).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from dbguardd.engines.postgresql.child import Alive, Completed, run
from dbguardd.engines.postgresql.connect import Connection, connected, rows
from dbguardd.engines.postgresql.dump import Contents, Part
from dbguardd.engines.postgresql.dump_files import how_made
from dbguardd.engines.postgresql.meaning import trouble
from dbguardd.engines.postgresql.server import Server
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.errors import Degraded, NoSpace, ServerUnreachable, TooCostly
from dbguardd.frozen import frozen

_LEFT_OUT = re.compile(r"\d+; \d+ \d+ (EVENT TRIGGER|EXTENSION|COMMENT|PROCEDURAL LANGUAGE|FOREIGN DATA WRAPPER) ")
"""Kinds of objects that only a superuser can create or own; extensions exist already."""
LEAST_SECONDS, _LEAST_BYTES_A_SECOND = 600.0, 4 << 20
_NUMBERS = re.compile(r"^\d+; \d+ \d+ ")
_OF_PUBLIC = "pg_database_owner"  # a predefined role
_ONLY_CONTENT = (
    *("--no-password", "--no-owner", "--no-privileges", "--no-comments", "--no-tablespaces", "--no-security-labels"),
    *("--no-publications", "--no-subscriptions"),
)


@frozen
class Sandbox:
    """A throw-away server with a role in it that may do no more than the owner of a database."""

    server: Server
    role: str
    alive: Alive

    @contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[Connection]:
        """Connect as the superuser, only for statements that run no code of the dump."""
        with connected(self.server.address(), database, about="throw-away server") as connection:
            yield connection

    @contextmanager
    def ordinary(self, database: str) -> Iterator[Connection]:
        """Connect as the role."""
        with connected(self.server.address(self.role), database, about="throw-away server") as connection:
            yield connection


def tools_for(contents: Contents, what: str) -> Tools:
    """Return the programs of a server for restoring a dump: of its version, or of the newer pg_dump that wrote it.

    An older pg_restore cannot read such a dump, and an older server does not know all its syntax. Raises ToolMissing.
    """
    written = f", which pg_dump {contents.dumped_by} has written," * (contents.restored_by > contents.major)
    need = f"{what} a dump of PostgreSQL {contents.server}{written} needs a server of that version"
    tools = [
        find_tools(program, contents.restored_by, need=need)
        for program in ("postgres", "initdb", "pg_restore", "createdb")
    ]
    return tools[0]


def make_roles(sandbox: Sandbox, names: Sequence[str]) -> None:
    """Create the role that restores, and roles with the names of the original ones, without any privileges."""
    with sandbox.superuser() as db:
        db.execute(f'CREATE ROLE "{sandbox.role}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE BYPASSRLS'.encode())
        for name in names:
            db.execute(b"CREATE ROLE " + quoted(name) + b" NOLOGIN")


def make_database(sandbox: Sandbox, part: Part) -> list[str]:
    """Create a database like the original, with its extensions and nothing else.

    Return which extensions this host lacks, in words. Raises ServerUnreachable if it cannot be created here.
    """
    database = part.database
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
    return _make_extensions(sandbox, part)


def _make_extensions(sandbox: Sandbox, part: Part) -> list[str]:
    missing = []
    role = f'"{sandbox.role}"'.encode()
    with sandbox.superuser(part.database.name) as db:
        for extension in part.extensions:
            if extension.name == "plpgsql":
                continue
            schema, name = quoted(extension.schema), quoted(extension.name)
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
    """Let the role use and fill what the extensions created."""
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
        db.execute(bytes(grant) + role + b" WITH GRANT OPTION")


def listed(tools: Tools, dump: Path, alive: Alive) -> list[str]:
    """Return the contents of a dump as pg_restore lists and accepts them: a line for each object."""
    said = run([tools.path("pg_restore"), "--list", str(dump)], alive)
    return said.output.decode(errors="surrogateescape").split("\n")


def restorable(lines: Sequence[str], contents: Contents, part: Part) -> list[str]:
    """Return the lines that the role can restore: all except objects that only a superuser creates, or has created."""
    owners, schemas = (*contents.roles, _OF_PUBLIC), {extension.schema for extension in part.extensions}
    made = {re.sub(r"[\r\n]", " ", f"SCHEMA - {schema} {owner}") for schema in schemas for owner in owners}
    return [line for line in lines if not _LEFT_OUT.match(line) and _NUMBERS.sub("", line, 1) not in made]


def bring_back(sandbox: Sandbox, dump: Path, part: Part, lines: Sequence[str], *more: str) -> Completed:
    """Restore these lines of a dump with pg_restore as the role; `more` are additional options.

    Raises what concerns this host rather than the dump.
    """
    name = part.database.name
    server = make_conninfo("", **{**sandbox.server.address(sandbox.role), "dbname": name})
    tool = sandbox.server.tools.path("pg_restore")
    with chosen(sandbox.server, lines) as use:
        words = [tool, f"--dbname={server}", use, *_ONLY_CONTENT, *more, str(dump)]
        said = run(words, sandbox.alive, keep=(sandbox.server.place,))
    log = sandbox.server.log()
    if trouble(said.errors) is NoSpace or trouble(log) is NoSpace:
        raise NoSpace(f"{name}: not enough space for it in a throw-away server", detail=log)
    if trouble(said.errors) is not None:
        raise Degraded(f"{name}: the throw-away server failed", detail=log)
    return said


def within(size: int, alive: Alive, least_seconds: float = LEAST_SECONDS) -> Alive:
    """Return `alive` with a time limit for restoring `size` bytes: code of their owner runs, and may never end."""
    seconds = least_seconds + size / _LEAST_BYTES_A_SECOND
    end = time.monotonic() + seconds

    def look() -> None:
        alive()
        if time.monotonic() > end:
            raise TooCostly(f"the rows were not restored within {seconds:.0f} s")

    return look


@contextmanager
def chosen(server: Server, lines: Sequence[str]) -> Iterator[str]:
    """Write lines of a dump's list to a file; yield the option that makes pg_restore take only those."""
    place = server.data / "restored.list"
    place.write_text("\n".join(lines), errors="surrogateescape")
    try:
        yield f"--use-list={place}"
    finally:
        place.unlink()


def quoted(name: str) -> bytes:
    """Return a name as a quoted SQL identifier."""
    return b'"' + name.encode(errors="surrogateescape").replace(b'"', b'""') + b'"'
