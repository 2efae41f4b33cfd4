"""Restores a backup of the method dump: a directory of plain files, with instructions in RESTORE.txt.

All or nothing, durable, never over anything: the directory gets its name when it is complete.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from psycopg.conninfo import make_conninfo

from dbguardd.durable import create_file
from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.connect import address_of
from dbguardd.engines.postgresql.dump import CONTENTS, ROLES, TABLESPACES, Contents, decode
from dbguardd.engines.postgresql.fresh import fresh
from dbguardd.engines.postgresql.snapshot import Database
from dbguardd.errors import Damaged
from dbguardd.flow import Tree
from dbguardd.humanize import safe

MANUAL = "RESTORE.txt"
_STREAM = re.compile(r"[0-9]{4,}\.dump")
_PIECE_BYTES = 1 << 20
_VARIABLES = {"host": "PGHOST", "port": "PGPORT", "service": "PGSERVICE", "sslmode": "PGSSLMODE"}
"""Variables by which PostgreSQL's programs find a server. User and password are omitted: another user may restore."""


def write_files(tree: Tree, target: Path, progress: Progress, address: Mapping[str, str]) -> None:
    """Write all streams of a backup into the new directory `target`, with instructions for using them.

    `address` is that of the policy's server, if there is one.
    """
    with fresh(target) as work:
        done = 0
        for name in tree.names():
            if name not in (CONTENTS, ROLES, TABLESPACES) and not _STREAM.fullmatch(name):
                raise Damaged(f"{name}: not a stream of a dump")
            with tree.read(name) as source, (work / name).open("xb") as out:
                while piece := source.read(_PIECE_BYTES):
                    out.write(piece)
                    done += len(piece)
                    progress("restore", done, None)
                out.flush()
                os.fsync(out.fileno())
        contents = read_contents(work)
        create_file(work / MANUAL, manual(contents, target, address).encode(errors="backslashreplace"))


def read_contents(place: Path) -> Contents:
    """Return the contents of a directory that write_files() made. Raises Damaged."""
    try:
        return decode((place / CONTENTS).read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{place}: has no {CONTENTS}") from error


def how_made(database: Database) -> list[str]:
    """Return the createdb options that create an empty database like that one."""
    words = ["--template=template0", f"--encoding={database.encoding}"]
    words += [f"--lc-collate={database.collate}", f"--lc-ctype={database.ctype}"]
    if database.provider == "i":
        words += ["--locale-provider=icu", f"--icu-locale={database.locale}"]
    elif database.provider == "b":
        words += ["--locale-provider=builtin", f"--builtin-locale={database.locale}"]
    return words


def _reached(address: Mapping[str, str]) -> list[str]:
    """Return the lines by which the commands below reach the server that was backed up."""
    words = [f"{name}={shlex.quote(address[key])}" for key, name in _VARIABLES.items() if key in address]
    if not words or address == address_of(""):
        return ["# If psql does not find the right server by itself, first: export PGHOST=... PGPORT=..."]
    words += ["PGTARGETSESSIONATTRS=read-write"] * ("," in address.get("host", ""))
    return [
        "# The server that was backed up (for another server, change host and port):",
        safe(f"export {' '.join(words)}"),
    ]


def _under_its_own_name(name: str, live: str, stream: str) -> list[str]:
    """Return the lines that restore a database as what it was called, for a server without it.

    pg_restore goes on after an error: into an existing database it would add all rows once more. So that is tested
    first; each server has a database `postgres`, so for that one the line is a comment, which nobody pastes unread.
    """
    if name == "postgres":
        return [
            "# Or, where it has no tables yet, as on a new server (elsewhere this would add all rows once more):",
            f"#   pg_restore -d postgres {stream}",
        ]
    there = shlex.quote(f"{name} exists: nothing was restored")
    return [
        "# Or under its own name, on a server that does not have this database:",
        f"if psql -X -d {live} -c '' >/dev/null 2>&1; then echo {there}; else pg_restore -C -d postgres {stream}; fi",
    ]


def manual(contents: Contents, target: Path, address: Mapping[str, str]) -> str:
    """Return the instructions beside the dumps: how to restore each database, in commands that can be pasted."""
    place = shlex.quote(str(target))
    lines = [
        f"A backup of PostgreSQL {contents.server}, as pg_dump writes it. This restore has not changed any server.",
        f"Run these commands as superuser of a server {contents.restored_by} or newer; as root, first: su - postgres",
        "A dump contains SQL of its owners, which runs with your rights: use a server on which they need no others.",
        "",
        *_reached(address),
        f"cd {place}",
        '# Roles, if the server lacks some (the error "already exists" for the others does no harm):',
        f"psql -X -d postgres -f {ROLES}",
        f"# Tablespaces: look at {TABLESPACES} first; it names directories that must exist.",
    ]
    if not contents.passwords:
        lines.insert(-1, "# They have no passwords: the role that made the backup may not read them. Set new ones.")
    for part in contents.parts:
        name = part.database.name
        new = f"{name}_restored"
        beside = shlex.quote(new)
        into, live = (shlex.quote(make_conninfo("", dbname=one)) for one in (new, name))  # a name may be an address
        lines += [
            "",
            safe(f"# Database {name!r}" + (f"; without the rows of {', '.join(part.excluded)}" * bool(part.excluded))),
            "# Under a new name, beside the existing database, which does not change:",
            f"createdb {shlex.join(how_made(part.database))} -- {beside}",
            f"pg_restore -d {into} {part.stream}",
            *_under_its_own_name(name, live, part.stream),
            "# One lost table from the new name, with its indexes and its own constraints (not those of other tables):",
            f"pg_dump -d {into} -t SCHEMA.TABLE | psql -X -1 -v ON_ERROR_STOP=1 -d {live}",
        ]
    return "\n".join([*lines, ""])
