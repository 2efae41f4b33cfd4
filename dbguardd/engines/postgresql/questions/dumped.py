"""A database of the past, restored from a dump: definitions at once, rows when they are needed.

A role without privileges restores the dump (see sandbox), and then owns everything in it. Definitions take a moment.
Rows are loaded only for the tables that a question is about, so that one table of a large dump does not cost all
others. Nobody, not even the owner, may read a table that is not loaded, so no view and no function mistakes it for an
empty one. No trigger fires and no foreign key is checked while rows are loaded (session_replication_role).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, shown
from dbguardd.engines.postgresql.dump import CONTENTS, Contents, Part, decode
from dbguardd.engines.postgresql.physical.queries import make_reader
from dbguardd.engines.postgresql.prove import errors_of
from dbguardd.engines.postgresql.sandbox import (
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
from dbguardd.engines.postgresql.server import USER, Server, make_cluster, throwaway
from dbguardd.engines.postgresql.tools import Tools
from dbguardd.errors import TooCostly, Unsupported
from dbguardd.flow import Tree
from dbguardd.frozen import frozen
from dbguardd.humanize import some

_PIECE_BYTES = 1 << 20
_DEFINED_SECONDS = 5.0
_AT_ONCE = 500  # relations in one statement
_LINE = re.compile(r"\d+; \d+ \d+ (TABLE DATA|MATERIALIZED VIEW DATA|BLOB[A-Z ]*|ACL|COMMENT|SECURITY LABEL) (.*)")
"""Entries in the list of a dump that are no definitions."""
_FAILED = re.compile(r"^pg_restore: error: COPY failed for table \"(.*?)\": ", re.MULTILINE)
_BESIDE = ("ACL", "COMMENT", "SECURITY LABEL")
_LARGE, _LARGE_ALL, _ALL = b"pg_catalog.pg_largeobject", b"large objects", b"all"
_SHOWN = 5
_MINE = b"""
SELECT format('%I.%I', n.nspname, c.relname), c.relkind IN ('r', 'p') FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
AND (c.relowner = current_user::regrole OR (
  c.relkind NOT IN ('r', 'p') AND has_table_privilege(c.oid, 'SELECT WITH GRANT OPTION')))
AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
_SCHEMAS = b"SELECT quote_ident(nspname) FROM pg_namespace WHERE nspowner = current_user::regrole"
_OF_USERS = b"SELECT oid FROM pg_class WHERE relkind IN ('r', 'p') AND relowner = current_user::regrole"
_STUCK = b"""
SELECT max(CASE WHEN pg_cancel_backend(pid) THEN since END) FROM (
  SELECT pid, extract(epoch FROM clock_timestamp() - query_start)::float8 AS since FROM pg_stat_activity
  WHERE usename = %s AND state = 'active') AS runs WHERE since > %s
"""
_OF_EXTENSIONS = b"""SELECT objid FROM pg_depend JOIN pg_class c ON c.oid = objid
WHERE classid = 'pg_class'::regclass AND deptype = 'e' AND relkind IN ('r', 'p')"""
_NEEDED = b"""
WITH RECURSIVE needed (number) AS (
  SELECT c.oid FROM pg_class c WHERE c.oid IN (%s)
  UNION SELECT i.inhrelid FROM pg_inherits i JOIN needed ON i.inhparent = needed.number
)
SELECT n.nspname, c.relname, format('%%I.%%I', n.nspname, c.relname), c.relkind = 'r',
  c.relowner = current_user::regrole
FROM needed JOIN pg_class c ON c.oid = needed.number JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') ORDER BY 1, 2
"""
_SEQUENCES = b"""
SELECT n.nspname, c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n
ON n.oid = c.relnamespace WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
AND d.refobjid IN (%s) AND d.deptype IN ('a', 'i') AND c.relkind = 'S'
"""


@frozen
class _Needed:
    """A table that a question is about.

    `stored`: it stores rows itself; `mine`: it is from the dump, not from an extension.
    """

    schema: bytes
    name: bytes
    quoted: bytes
    stored: bool
    mine: bool


@frozen
class Dumped:
    """A database whose definitions were restored below `place`, and from where its rows are loaded.

    `data` are the lines of the dump's list for rows, by table and owner as named in that list; `beside` those for
    privileges and comments, `large` those for large objects. `lacking` tells which definitions could not be restored
    here. `loaded` contains names of tables, and markers for what was loaded as a whole.
    """

    place: Path
    tools: Tools
    superuser: str
    reader: str
    part: Part
    owners: Sequence[str]
    data: Mapping[str, str]
    beside: Mapping[str, str]
    large: Sequence[str]
    lacking: Sequence[str]
    loaded: set[bytes] = field(default_factory=set)

    @property
    def cluster(self) -> Path:
        """The data directory of its server."""
        return _cluster(self.place)

    @property
    def file(self) -> Path:
        """The dump."""
        return self.place / self.part.stream

    def load(self, server: Server, numbers: bytes, alive: Alive) -> None:
        """Load the rows of tables and of those that inherit from them; `numbers` is an SQL list. Raises Unsupported."""
        sandbox = self._sandbox(server, alive)
        with sandbox.ordinary(self.part.database.name) as db:
            needed = self._needed(db, numbers)
            self._load(sandbox, db, needed)
        if any(one.quoted == _LARGE for one in needed):
            self.load_large(server, alive)

    def load_large(self, server: Server, alive: Alive) -> bool:
        """Restore all large objects; return whether they were missing before. Raises Unsupported."""
        if not self.large or _LARGE_ALL in self.loaded:
            return False
        sandbox = replace(self._sandbox(server, alive), alive=within(self.file.stat().st_size, alive))
        said = bring_back(sandbox, self.file, self.part, self.large)
        if said.status != 0:
            raise Unsupported(
                "the large objects cannot be brought back on this host",
                detail="; ".join(errors_of(said.errors)[:_SHOWN]),
            )
        self.loaded.add(_LARGE_ALL)
        return True

    def load_all(self, server: Server, alive: Alive) -> bool:
        """Load everything in the dump; return whether that was not done before."""
        if _ALL in self.loaded:
            return False
        self.loaded.add(_ALL)
        self.load_large(server, alive)
        sandbox = self._sandbox(server, alive)
        with sandbox.ordinary(self.part.database.name) as db:
            there = [one for one in _found(db, _OF_USERS) if shown(one.quoted) not in self.part.excluded]
            self._load(sandbox, db, there, some_may_fail=True)
        return True

    def _load(
        self, sandbox: Sandbox, db: Connection, needed: Sequence[_Needed], *, some_may_fail: bool = False
    ) -> None:
        needed = [one for one in needed if one.quoted not in self.loaded]
        names, lines = [one.quoted for one in needed], self._rows(needed)
        if lines:
            look = within(self.file.stat().st_size, sandbox.alive)
            said = bring_back(replace(sandbox, alive=look), self.file, self.part, lines, "--data-only")
            failed = set(_FAILED.findall(said.errors))
            if said.status != 0 and not (some_may_fail and failed):
                raise Unsupported(
                    f"the rows of {some([shown(name) for name in names])} cannot be brought back on this host",
                    detail="; ".join(errors_of(said.errors)[:_SHOWN]),
                )
            names = [one.quoted for one in needed if _listed_as(one.name) not in failed]
        _each(db, b"GRANT SELECT ON %s TO CURRENT_USER", names)  # for views, and functions that run as their owner
        self._let_read(db, names)
        self.loaded.update(names)

    def taken(self, server: Server, numbers: bytes, alive: Alive) -> tuple[Sequence[str], Sequence[str]]:
        """Return the lines of the list with which pg_restore writes the rows of tables, and the lines about the tables.

        Nothing is loaded. The tables become readable for the reader, who can then dump their definitions: they have no
        rows.
        """
        with self._sandbox(server, alive).ordinary(self.part.database.name) as db:
            needed = self._needed(db, numbers)
            owned = [(bytes(schema), bytes(name)) for schema, name in rows(db, _SEQUENCES % numbers)]
            self._let_read(db, [one.quoted for one in needed])
        parts = [(one.schema, b"TABLE", one.name) for one in needed]
        parts += [(schema, b"SEQUENCE", name) for schema, name in owned]
        whole = {f"{_listed_as(*part)} {owner}" for part in parts for owner in self.owners}
        columns = tuple(f"{_listed_as(one.schema, b'COLUMN', one.name)}." for one in needed)
        about = [line for tail, line in self.beside.items() if tail in whole or tail.startswith(columns)]
        return self._rows(needed), about

    def owner(self, schema: str, name: str) -> str:
        """Return the original owner of a table; "" if the dump has no rows of it."""
        named = _listed_as(*(part.encode(errors="surrogateescape") for part in (schema, name)))
        return next((owner for owner in self.owners if f"{named} {owner}" in self.data), "")

    def _needed(self, db: Connection, numbers: bytes) -> list[_Needed]:
        """Return tables and those that inherit from them. Raises Unsupported if the rows of one were left out."""
        needed = _found(db, numbers)
        if left_out := [shown(one.quoted) for one in needed if shown(one.quoted) in self.part.excluded]:
            raise excluded(left_out)
        return needed

    def _rows(self, needed: Sequence[_Needed]) -> list[str]:
        lines = list[str]()
        for one in needed:
            line = self._line(one) if one.stored else None
            if line is None and one.stored and one.mine:
                raise Unsupported(f"the dump has no rows of {shown(one.quoted)}")
            lines += [] if line is None else [line]
        return lines

    def _line(self, table: _Needed) -> str | None:
        named = _listed_as(table.schema, table.name)
        exactly = (self.data.get(f"{named} {owner}") for owner in self.owners)
        begun = (line for tail, line in self.data.items() if tail.startswith(f"{named} "))
        return next(filter(None, exactly), None) or next(begun, None)

    def _let_read(self, db: Connection, names: Sequence[bytes]) -> None:
        _each(db, b"GRANT SELECT ON %s TO " + self.reader.encode(), names)

    def _sandbox(self, server: Server, alive: Alive) -> Sandbox:
        return Sandbox(server, _role(self.superuser), alive)


def _found(db: Connection, numbers: bytes) -> list[_Needed]:
    return [
        _Needed(bytes(schema), bytes(name), bytes(quoted), stored, mine)
        for schema, name, quoted, stored, mine in rows(db, _NEEDED % numbers)
    ]


def excluded(names: Sequence[str]) -> Unsupported:
    """Return an error: the policy has left out the rows that are needed."""
    return Unsupported(
        f"the rows of {some(names)} are not in this backup: the policy leaves them out",
        detail="Its `exclude` named them when the backup was made; what they are defined as is in there. An older "
        "backup may have the rows: `dbguardctl list NAME --all` shows what each has left out, and --id asks that one. "
        "Taken out of `exclude`, they are in the next backup.",
        hints=["man 5 dbguard.toml  # exclude"],
    )


def fetch(tree: Tree, place: Path, choose: Callable[[Sequence[str]], str], progress: Progress) -> Dumped:
    """Restore the definitions of one database of a dump below the private directory `place`.

    `choose` picks one of the databases' names. Raises ToolMissing, Damaged, what `choose` raises.
    """

    def alive() -> None:
        progress("recover", 0, None)

    with tree.read(CONTENTS) as source:
        contents = decode(source.read())
    wanted = choose([part.database.name for part in contents.parts])
    part = next(part for part in contents.parts if part.database.name == wanted)
    tools = tools_for(contents, "a question to")
    _write(tree, part.stream, place, progress)
    superuser = f"{USER}_{secrets.token_hex(6)}"
    _cluster(place).parent.mkdir(mode=0o700)
    make_cluster(_cluster(place), tools, alive, user=superuser)
    lines = listed(tools, place / part.stream, alive)
    found = [(match, line) for line in lines if (match := _LINE.match(line)) is not None]
    data = {match[2]: line for match, line in found if match[1] == "TABLE DATA"}
    beside = {match[2]: line for match, line in found if match[1] in _BESIDE}
    large = [line for match, line in found if match[1].startswith("BLOB")]
    owners = tuple(_listed_as(role.encode(errors="surrogateescape")) for role in contents.roles)
    with throwaway(_cluster(place), tools, alive, user=superuser, keep=True) as server:
        sandbox = Sandbox(server, _role(superuser), alive)
        reader, lacking = _define(sandbox, place / part.stream, contents, part, lines)
        made = Dumped(place, tools, superuser, reader, part, owners, data, beside, large, lacking)
        made.load(server, _OF_EXTENSIONS, alive)  # the few rows that users have added to extensions' tables
    return made


def _define(
    sandbox: Sandbox, dump: Path, contents: Contents, part: Part, lines: Sequence[str]
) -> tuple[str, Sequence[str]]:
    """Create the database with its definitions; return the role for questions, and which definitions failed."""
    make_roles(sandbox, contents.roles)
    with sandbox.superuser() as db:
        db.execute(b"ALTER ROLE " + quoted(sandbox.role) + b" SET session_replication_role = replica")
    lacking = make_database(sandbox, part)
    with sandbox.superuser("template1") as db:
        reader = make_reader(db, quoted(part.database.name), reads="pg_monitor")
    with sandbox.superuser(part.database.name) as db:
        db.execute(b"GRANT SELECT ON pg_largeobject TO " + reader.encode())
    definitions = [line for line in restorable(lines, contents, part) if not _LINE.match(line)]
    with sandbox.superuser("template1") as db:
        said = bring_back(replace(sandbox, alive=_impatient(db, sandbox)), dump, part, definitions)
    with sandbox.ordinary(part.database.name) as db:
        mine = [(bytes(name), stored) for name, stored in rows(db, _MINE)]
        _each(db, b"REVOKE SELECT ON %s FROM CURRENT_USER", [name for name, stored in mine if stored])
        _each(db, b"GRANT SELECT ON %s TO " + reader.encode(), [name for name, stored in mine if not stored])
        _each(db, b"GRANT USAGE ON SCHEMA %s TO " + reader.encode(), [bytes(name) for (name,) in rows(db, _SCHEMAS)])
    return reader, [*lacking, *(errors_of(said.errors) if said.status else [])]


def _write(tree: Tree, stream: str, place: Path, progress: Progress) -> None:
    done = 0
    with tree.read(stream) as source, (place / stream).open("xb") as out:
        while piece := source.read(_PIECE_BYTES):
            out.write(piece)
            done += len(piece)
            progress("restore", done, None)


def _each(db: Connection, statement: bytes, names: Sequence[bytes]) -> None:
    for start in range(0, len(names), _AT_ONCE):
        db.execute(statement.replace(b"%s", b", ".join(names[start : start + _AT_ONCE])), prepare=False)


def _impatient(db: Connection, sandbox: Sandbox) -> Alive:
    """Return `alive` for restoring definitions, which takes hardly any time, as tables are empty.

    But creating an index may call a function that never ends. Such a statement is cancelled, and the restore continues;
    if cancelling does not help, the whole restore is given up.
    """

    def look() -> None:
        sandbox.alive()
        ((waits,),) = rows(db, _STUCK, sandbox.role, _DEFINED_SECONDS)
        if waits is not None and waits > 2 * _DEFINED_SECONDS:
            raise TooCostly("a function in the definitions of the database does not end")

    return look


def _listed_as(*names: bytes) -> str:
    return " ".join(re.sub(r"[\r\n]", " ", name.decode(errors="surrogateescape")) for name in names)


def _role(superuser: str) -> str:
    return f"{superuser}_restores"


def _cluster(place: Path) -> Path:
    return place / "server" / "data"  # a server may write beside it
