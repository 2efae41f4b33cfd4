"""Dumps the databases of a server with PostgreSQL's own programs, straight into the sink.

Streams: `contents.json` (what is in the backup, see Contents), `roles.sql`, `tablespaces.sql`, and one `OID.dump` for
each database, in pg_dump's custom format. It is uncompressed, because the repository compresses, and deduplicates
against the backup before.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from psycopg.conninfo import make_conninfo

from dbguardd.engines.base import Progress
from dbguardd.engines.postgresql.child import Alive, Work, nothing, side_by_side, tool
from dbguardd.engines.postgresql.connect import LIVELY, Address, connected, give_way, parameters, place_of, rows
from dbguardd.engines.postgresql.content import Stored
from dbguardd.engines.postgresql.meaning import TOO_LONG
from dbguardd.engines.postgresql.refusals import READ_ALL, READ_HIDDEN
from dbguardd.engines.postgresql.signs import Signs
from dbguardd.engines.postgresql.snapshot import Database, Extension, Held
from dbguardd.engines.postgresql.tools import Tools
from dbguardd.errors import (
    Damaged,
    GuardError,
    ServerUnreachable,
    SourceChanged,
    SourceDamaged,
    SourceDenied,
    SourceLocked,
    Stalled,
    Unsupported,
)
from dbguardd.flow import Sink
from dbguardd.frozen import frozen

CONTENTS, ROLES, TABLESPACES = "contents.json", "roles.sql", "tablespaces.sql"
_VERSION = 1
_PAUSE_SECONDS = 1.0
_LOOKS = 10  # in a time that a server may be silent
_WORDS: Sequence[tuple[str, type[GuardError]]] = (
    ("permission denied", SourceDenied),
    ("row-level security", SourceDenied),
    ("lock timeout", SourceLocked),
    ("could not obtain lock", SourceLocked),
    ("invalid page in block", SourceDamaged),
    ("could not read block", SourceDamaged),
    ("missing chunk number", SourceDamaged),
    ("connection to server", ServerUnreachable),
    ("server closed the connection", ServerUnreachable),
    ("terminating connection", ServerUnreachable),
)
"""What pg_dump says, in English, and what it means; anything else is a change that it could not follow."""


@frozen
class Part:
    """One database in a backup: its stream, how it was created, and what is missing from it."""

    stream: str
    database: Database
    extensions: tuple[Extension, ...]
    excluded: tuple[str, ...]  # tables whose rows were left out, as content.Stored.shown
    large: bool  # large objects are included, and in the fingerprint


@frozen
class Contents:
    """The contents of a backup of the method dump."""

    server: str  # its version
    parts: tuple[Part, ...]
    roles: tuple[str, ...]  # the first one is the cluster's bootstrap superuser
    passwords: bool  # passwords of roles are included
    dumped_by: str = ""  # the version of pg_dump; unknown in old backups

    @property
    def major(self) -> int:
        """The major version of the server."""
        return _major(self.server)

    @property
    def restored_by(self) -> int:
        """The oldest major version that can restore all of it: pg_dump may have been newer than the server."""
        return max(self.major, _major(self.dumped_by or self.server))

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1).encode() + b"\n"


def decode(data: bytes) -> Contents:
    """Read what encode() wrote. Raises Damaged."""
    try:
        found = json.loads(data)
        if found["version"] != _VERSION:
            raise Damaged(f"{CONTENTS}: was written by a newer version of dbguard")
        parts = [
            Part(
                str(part["stream"]),
                Database(**part["database"]),
                tuple(Extension(**{**one, "filled": tuple(one.get("filled", ()))}) for one in part["extensions"]),
                tuple(part["excluded"]),
                bool(part["large"]),
            )
            for part in found["parts"]
        ]
        told = str(found["server"]), tuple(parts), tuple(found["roles"]), bool(found["passwords"])
        return Contents(*told, str(found.get("dumped_by", "")))
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{CONTENTS}: is not what was written", detail=str(error)) from error


def _major(version: str) -> int:
    return int(re.match(r"\d*", version)[0] or 0)  # type: ignore[index]  # "18beta1"


def stream_of(number: int) -> str:
    """Return the name of the stream of a database with that OID: the same in each backup, as deduplication needs."""
    return f"{number:04}.dump"


def left_out(database: str, tables: Sequence[Stored], patterns: Sequence[str]) -> list[Stored]:
    """Return the tables whose rows the policy leaves out (SCHEMA.TABLE or DATABASE.SCHEMA.TABLE, * as a wildcard)."""
    return [table for table in tables if any(_fits(database, table, pattern) for pattern in patterns)]


def fits_nothing(tables: Mapping[str, Sequence[Stored]], patterns: Sequence[str]) -> list[str]:
    """Return the patterns that match no table of any database (by name), probably because of a typing error."""
    return [
        pattern
        for pattern in patterns
        if not any(_fits(database, table, pattern) for database, known in tables.items() for table in known)
    ]


def _fits(database: str, table: Stored, pattern: str) -> bool:
    name = b".".join((table.schema, table.name)).decode(errors="backslashreplace")
    whole = f"{database}.{name}"
    pattern = pattern.replace("[", "[[]").replace("?", "[?]")
    return fnmatchcase(name, pattern) if pattern.count(".") < 2 else fnmatchcase(whole, pattern)


class Dumper:
    """Runs the programs of one backup and writes their output into the sink, of which they know nothing."""

    def __init__(
        self,
        address: Address,
        tools: Tools,
        sink: Sink,
        progress: Progress,
        lock_seconds: float,
        *,
        stall_seconds: float = 600.0,
        plain: bool,
    ) -> None:
        self._address, self._tools, self._sink, self._progress = address, tools, sink, progress
        self._plain = plain  # see connect.told
        self._lock_milliseconds = max(1, int(lock_seconds * 1000))
        self._most_silent = max(stall_seconds, lock_seconds)
        self._done = 0
        self._heard, self._silent, self._looks = time.monotonic(), 0.0, 0
        self.signs = Signs(address)

    def globals(self, database: str, *, passwords: bool) -> None:
        """Write the roles and the tablespaces of the server; roles' passwords only if they may be read."""
        session = _new_session()
        words = [self._tools.path("pg_dumpall"), "--no-password", f"--dbname={self._told(database, session)}"]
        secret = [] if passwords else ["--no-role-passwords"]
        roles = self._stream(ROLES, [*words, "--roles-only", *secret], "the roles")
        spaces = self._stream(TABLESPACES, [*words, "--tablespaces-only"], "the tablespaces")
        with self.signs.of(session):
            side_by_side([roles, spaces], 1, self.alive)

    def database(self, held: Held, stream: str, excluded: Sequence[Stored], begins: Alive) -> Work:
        """Write one database as of its held snapshot; call `begins` once pg_dump has that."""

        def begun() -> None:
            self._give_way(session)
            begins()

        session = _new_session()
        words = [
            *(self._tools.path("pg_dump"), "--format=custom", "--compress=0", "--no-password"),
            f"--snapshot={held.snapshot}",
            f"--lock-wait-timeout={self._lock_milliseconds}",
            *(f"--exclude-table-data={_pattern(table)}" for table in excluded),
            f"--dbname={self._told(held.database.name, session)}",
        ]
        with self.signs.of(session):
            yield from self._stream(stream, words, f"database {held.database.name}", begun)

    def contents(self, contents: Contents) -> None:
        """Write the description of the backup's contents."""
        with self._sink.write(CONTENTS) as out:
            out.write(contents.encode())

    def _told(self, database: str, session: str) -> str:
        where: Mapping[str, Any] = {**LIVELY, **parameters(self._address, database, plain=self._plain)}
        return make_conninfo("", **{**where, "application_name": session})

    def _give_way(self, session: str) -> None:
        """Let the server's process of the session with that name give way as our own sessions do."""
        if os.getpriority(os.PRIO_PROCESS, 0) <= 0 or not self._address.get("host", "").startswith("/"):
            return
        with suppress(GuardError), connected(self._address) as connection:
            for (pid,) in rows(
                connection, b"SELECT pid::int8 FROM pg_stat_activity WHERE application_name = %s", session
            ):
                give_way(connection, pid, reads_much=True)

    def moved(self) -> None:
        """Note that the server has sent something, or that it is not its turn."""
        self._silent, self._looks = 0.0, 0

    def alive(self) -> None:
        """Report how much was dumped. Raises Cancelled, and Stalled when the server did nothing for stall_timeout.

        A report is taken for progress, so nobody else can see that. A time in which we did not run does not count.
        While the server is silent, we look now and then whether it is at work.
        """
        now = time.monotonic()
        self._heard, self._silent = now, self._silent + min(now - self._heard, _PAUSE_SECONDS)
        if self._silent * _LOOKS > self._most_silent * (self._looks + 1):
            self._looks += 1
            if self.signs.at_work():
                self.moved()
        if self._silent > self._most_silent:
            raise Stalled(
                f"{place_of(self._address)}: has sent nothing to the dump for {self._most_silent:g} s",
                detail="Whenever its sessions were looked at meanwhile, none was at work.",
            )
        self._progress("dump", self._done, None)

    def _stream(self, name: str, words: Sequence[str], what: str, begins: Alive = nothing) -> Work:
        """Write the output of a program into a stream; `begins` is called before the first piece of it."""
        with tool(words) as child, self.signs.of(child.pid), self._sink.write(name) as out:
            while (piece := child.take()) != b"":
                if piece is not None:
                    begins()
                    begins = nothing
                    out.write(piece)
                    self._done += len(piece)
                    self.moved()
                yield child.files
            if child.wait(self.alive) != 0:
                raise self._refusal(what, words[0], child.last_words())

    def _refusal(self, what: str, program: str, said: str) -> GuardError:
        words = re.sub('"[^"]*"', '""', said)  # names are chosen by users
        kind = next((kind for sign, kind in _WORDS if sign in words), SourceChanged)
        if kind is SourceChanged and TOO_LONG.search(words):
            return Unsupported(
                f"{place_of(self._address)}: {what} has a row that is too large for a dump",
                detail=f"{said}\nThe text of a row has at most 1 GiB; that of a bytea is twice as long as its value. "
                "If no value is that large, the row is damaged. A backup by pages has it as it is.",
                hints=['set method = "pages"', 'set exclude = ["SCHEMA.TABLE"]  # leaves out the rows of that table'],
            )
        mends = {"permission denied": READ_ALL, "row-level security": READ_HIDDEN}
        hints = [mend for sign, mend in mends.items() if sign in words]
        return kind(f"{place_of(self._address)}: {program} could not dump {what}", detail=said, hints=hints)


def _new_session() -> str:
    """Return a name by which the session of a program is found."""
    return f"dbguard {secrets.token_hex(6)}"


def _pattern(table: Stored) -> str:
    """Return a pattern for pg_dump that matches this table only."""
    parts = (part.decode(errors="surrogateescape").replace('"', '""') for part in (table.schema, table.name))
    return ".".join(f'"{part}"' for part in parts)
