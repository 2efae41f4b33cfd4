"""Looks at a server: what is there, and whether a backup and its proof will have what they need.

Each finding that is not ok ends with the command that fixes it.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Finding, Probe
from dbguardd.engines.postgresql.child import run
from dbguardd.engines.postgresql.connect import Address, Connection, connected, place_of, rows, shown, text, version_of
from dbguardd.engines.postgresql.content import Stored, stored_tables
from dbguardd.engines.postgresql.dump import fits_nothing, left_out
from dbguardd.engines.postgresql.physical.cluster import tablespaces
from dbguardd.engines.postgresql.physical.history import round_on
from dbguardd.engines.postgresql.physical.local import BY_PAGES, by_pages, followed, lacking
from dbguardd.engines.postgresql.snapshot import Database, extensions_of, list_closed, list_databases
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.engines.postgresql.typed import in_one_line
from dbguardd.errors import GuardError, ToolMissing
from dbguardd.humanize import some

_SHOWN = 5
_ONE = "and any second: only of a whole server, with a url that names no database; one database is dumped"
_CLUSTER = b"""
SELECT (SELECT system_identifier FROM pg_control_system()), pg_wal_lsn_diff(
  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, '0/0')::int8,
  CASE WHEN NOT pg_is_in_recovery() THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 END
"""
_STORED = b"""
SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""


def probe(address: Address, only: str, exclude: Sequence[str] = (), writing: Address | None = None) -> Probe:
    """Return what is there. Raises what connecting and listing raise.

    `writing`: the server with its log, if another one.
    """
    with connected(address) as connection:
        version, major = version_of(connection), connection.info.server_version // 10000
        databases = list_databases(connection, only)
        closed = [] if only else list_closed(connection)
        ((role, quoted, superuser, bypass, checksums),) = rows(
            connection,
            b"SELECT rolname, quote_ident(rolname), rolsuper, rolbypassrls, current_setting('data_checksums') "
            b"FROM pg_roles WHERE rolname = current_user",
        )
    role = shown(bytes(role))
    physical = [Finding(BY_PAGES, "not configured", _ONE) if only else by_pages(address)]
    lacks = lacking(writing or address) if physical[0].outcome == "ok" else None
    physical += [] if lacks is None else [followed(lacks)]
    findings = [
        Finding("connection", "ok", f"{place_of(address)}: version {version}, role {role}"),
        *_privileges(address, databases, role, in_one_line(quoted), superuser=bool(superuser), bypass=bool(bypass)),
        *_programs(major),
        *_extensions(address, databases, major),
        *(_closed(closed) if closed else ()),
        *(_excluded(address, databases, exclude) if exclude else ()),
        *physical,
    ]
    facts: dict[str, Any] = {
        "server_version": version,
        "databases": len(databases),
        "role": role,
        "superuser": bool(superuser),
        "checksums": text(checksums) == "on",
        "method": "pages" if lacks is not None else "dump",
        "followed": lacks == [],
        "mends": [one.mend for one in lacks or () if one.mend],
        **_content(address, databases),
    }
    warnings = []
    if text(checksums) != "on":
        warnings.append(
            "data checksums are off: PostgreSQL does not notice a flipped bit, and a dump copies it "
            "(server stopped: pg_checksums --enable)"
        )
    size = sum(database.size_bytes for database in databases)
    return Probe(version, size, facts, tuple(warnings), tuple(findings))


def _content(address: Address, databases: Sequence[Database]) -> dict[str, Any]:
    """Return what identifies the server: its cluster, the position of its log, and whether all tables are empty.

    A standby has no timeline of its own.
    """
    with connected(address) as connection:
        ((system, position, timeline),) = rows(connection, _CLUSTER)
        spaces = {} if timeline is None else tablespaces(connection)
    empty = True
    for database in databases:
        if empty:
            with connected(address, database.name, about=f"database {database.name}") as connection:
                ((size,),) = rows(connection, _STORED)
            empty = not size
    found = {"empty": empty, "system": str(system), "position": int(position), "timeline": timeline}
    place = None if timeline is None else {"round": round_on(system, timeline, spaces), "position": int(position)}
    return {**found, "log_place": place}


def _closed(databases: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Report the databases that nobody can connect to, so that no dump contains them and no proof compares them."""
    said = f"{some([name for name, _ in databases])}: nobody can connect, so it is in no dump and no proof"
    yield Finding("databases", "inconclusive", f"{said}. Fix: {' '.join(mend for _, mend in databases[:_SHOWN])}")


def _privileges(
    address: Address, databases: Sequence[Database], role: str, quoted: str, *, superuser: bool, bypass: bool
) -> Iterator[Finding]:
    """Report whether every table can be read."""
    name = "privileges"
    if superuser:
        yield Finding(name, "ok", f"{role} is a superuser")
        return
    unread, hidden, large = list[str](), list[str](), list[str]()
    for database in databases:
        with connected(address, database.name, about=f"database {database.name}") as connection:
            unread += [f"{database.name}: {table}" for table in _unreadable(connection)]
            hidden += [f"{database.name}: {table}" for table in ([] if bypass else _guarded(connection))]
            large += [database.name] if rows(connection, _OTHERS_LARGE) != [(False,)] else []
    if unread:
        mend = f"GRANT pg_read_all_data TO {quoted};"
        yield Finding(name, "failed", f"{role} may not read {some(unread)}. Fix, as a superuser: {mend}")
    if hidden:
        mend = f"ALTER ROLE {quoted} BYPASSRLS;"
        yield Finding("row security", "failed", f"it hides rows of {some(hidden)}. Fix, as a superuser: {mend}")
    if large:
        mend = "ask as a superuser (user= in url)"
        yield Finding("large objects", "failed", f"{role} may not read the large objects of {some(large)}. Fix: {mend}")
    if not unread and not hidden and not large:
        yield Finding(name, "ok", f"{role} may read every table")


_OTHERS_LARGE = (
    b"SELECT EXISTS (SELECT FROM pg_largeobject_metadata WHERE lomacl IS NULL AND NOT pg_has_role(lomowner, 'USAGE'))"
)


def _unreadable(connection: Connection) -> list[str]:
    readable = {
        bytes(quoted)
        for (quoted,) in rows(
            connection,
            b"SELECT format('%I.%I', n.nspname, c.relname) "
            b"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            b"WHERE c.relkind = 'r' AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')",
        )
    }
    return [table.shown for table in stored_tables(connection) if table.quoted not in readable]


def _guarded(connection: Connection) -> list[str]:
    asked = (
        b"SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        b"WHERE c.relkind = 'r' AND c.relrowsecurity AND (c.relforcerowsecurity OR NOT "
        b"pg_has_role(c.relowner, 'USAGE')) ORDER BY 1"
    )
    return [shown(bytes(name)) for (name,) in rows(connection, asked)]


def _programs(major: int) -> Iterator[Finding]:
    """Report whether PostgreSQL's own programs are here: those for a dump, and those for a test restore."""
    for name, programs, or_newer in (
        ("programs for a dump", ("pg_dump", "pg_dumpall"), True),
        ("programs for a test restore", ("initdb", "postgres", "pg_restore", "createdb"), False),
    ):
        try:
            found = [find_tools(program, major, or_newer=or_newer) for program in programs]
        except ToolMissing as error:
            yield Finding(name, "failed", f"{error.message}. {error.detail} Fix: {error.hints[0]}")
        else:
            yield Finding(name, "ok", f"of PostgreSQL {found[0].version}, in {found[0].directory}")
    if os.geteuid() == 0:
        yield Finding(
            "user",
            "failed",
            'a test restore cannot run as root. Fix: run_as = "postgres" in the policy of the database',
        )
    else:
        yield Finding("user", "ok", f"{_user()}, who starts the server of a test restore")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _extensions(address: Address, databases: Sequence[Database], major: int) -> Iterator[Finding]:
    """Report which extensions and libraries the databases use and this host, where a test restore needs them, lacks."""
    name = "extensions for test restores"
    try:
        tools = find_tools("postgres", major)
    except ToolMissing:
        return  # already reported
    there, places = _installed(tools), _library_directories(tools)
    missing = dict[str, str]()  # what to search for, by what is said
    for database in databases:
        with connected(address, database.name, about=f"database {database.name}") as connection:
            used = {extension.name for extension in extensions_of(connection)}
            libraries = [(shown(bytes(one)), shown(bytes(of))) for one, of in rows(connection, _LIBRARIES)]
        missing |= {one: one for one in used - there}
        for library, of in libraries:
            if places and of not in missing and not _is_there(library, places):
                missing[f"the library {library}" + f" of {of}" * bool(of)] = of or Path(library).stem
    if missing:
        searched = sorted(set(missing.values()))[:_SHOWN]
        mend = "; ".join(shlex.join(["apt-cache", "search", f"postgresql-{major}.*{one}"]) for one in searched)
        yield Finding(name, "failed", f"not installed on this host: {some(sorted(missing))}. Find: {mend}")
    else:
        yield Finding(name, "ok", "all are installed here")


_LIBRARIES = b"""
SELECT DISTINCT p.probin, coalesce(e.extname, '') FROM pg_proc p
LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid WHERE p.probin IS NOT NULL
"""


def _excluded(address: Address, databases: Sequence[Database], patterns: Sequence[str]) -> Iterator[Finding]:
    """Report which rows the policy leaves out, and which of its patterns match nothing."""
    tables = dict[str, list[Stored]]()
    for database in databases:
        with connected(address, database.name, about=f"database {database.name}") as connection:
            tables[database.name] = stored_tables(connection)
    if unmatched := fits_nothing(tables, patterns):
        yield Finding("exclude", "inconclusive", f"fits no table: {some(unmatched)}. Fix: exclude in the policy")
    out = [f"{name}.{one.shown}" for name, known in tables.items() for one in left_out(name, known, patterns)]
    if out:
        yield Finding("exclude", "ok", f"the rows of {some(out)} are left out of every backup")


def _installed(tools: Tools) -> set[str]:
    """Return the names of the extensions that are available to a server of this installation."""
    guess = Path(str(tools.directory).replace("/lib/", "/share/")).parent
    places = [place / "extension" for place in (_told(tools, "--sharedir"), guess) if place is not None]
    return {path.stem for place in places for path in place.glob("*.control")}


def _library_directories(tools: Tools) -> list[Path]:
    """Return where a server of this installation has its libraries; nothing if that is not known."""
    found = [place for place in (_told(tools, "--pkglibdir"), tools.directory.parent / "lib") if place is not None]
    return [place for place in found if (place / "plpgsql.so").exists()]


def _is_there(library: str, places: Sequence[Path]) -> bool:
    """Return whether a server would find a library, which a function names with or without directory and suffix."""
    for place in places:
        path = library.replace("$libdir", str(place), 1) if "/" in library else f"{place}/{library}"
        if os.path.isfile(path) or os.path.isfile(f"{path}.so"):
            return True
    return False


def _told(tools: Tools, option: str) -> Path | None:
    try:
        said = run([tools.path("pg_config"), option], lambda: None)
    except GuardError:
        return None
    return Path(said.output.decode().strip()) if said.status == 0 else None
