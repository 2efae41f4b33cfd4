"""Reads the answers of a throw-away server: row by row, as bytes, with limits on their cost.

No driver converts values: a row contains the server's text. The server parses each statement before running it, without
planning it, so no user's function has run yet. So an error message at that stage quotes the statement, and no row.
Later messages are not passed on.
"""

from __future__ import annotations

import json
import math
import select
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg import errors
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.meaning import library_in
from dbguardd.engines.postgresql.physical.check import LOCKED
from dbguardd.engines.postgresql.questions.scratch import check_room
from dbguardd.errors import (
    Degraded,
    GuardError,
    NoSpace,
    SourceDamaged,
    SourceLocked,
    TooCostly,
    ToolMissing,
    Unsupported,
    Usage,
)

Row = Sequence[bytes | None]

_BEAT_SECONDS = 0.25
_BOOL, _BYTEA = 16, 17
_REALS = frozenset((700, 701))
ROWS, LARGE = "rows", "large objects"
_LACKS = {ROWS: ("42501", "permission denied for table"), LARGE: ("42704", "large object ")}
INTEGERS = frozenset((20, 21, 23, 26))
"""OIDs of integer types."""
_LOCKED = """
SELECT DISTINCT relation FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation'
"""
_PARTS = 4
_VALUE_BYTES = 64 << 20
_TICK_ROWS = 1024
_NO_MULTIPLE = "cannot insert multiple commands"


class Meter:
    """What a question has used so far: time, size of the answer, and space in `place`, where its servers work."""

    def __init__(self, bounds: Bounds, answer: Answer, place: Path) -> None:
        self.about, self.rows = bounds.about, bounds.rows
        self.seconds, self.all = bounds.seconds, bounds.bytes
        self._answer, self._place = answer, place
        self._left, self._end = bounds.bytes, time.monotonic() + bounds.seconds
        self._counted, self._paused = 0, 0.0

    def alive(self) -> None:
        """Report life. Raises Cancelled, TooCostly, NoSpace."""
        self.ready()
        if self.over:
            raise self.late()

    def count(self) -> None:
        """Count a row that arrived without waiting."""
        self._counted += 1
        if not self._counted % _TICK_ROWS:
            self.alive()

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() - self._paused > self._end

    def late(self) -> TooCostly:
        """Return the error for a question whose time is used up."""
        return TooCostly(f"{self.about}: no answer within the time limit")

    @contextmanager
    def part(self) -> Iterator[None]:
        """Limit the block to a part of the remaining time: one user's function that never ends must not use up all."""
        end, now = self._end, time.monotonic() - self._paused
        self._end = now + (end - now) / _PARTS
        try:
            yield
        finally:
            self._end = end

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, which only prepares for the question."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began

    def ready(self) -> None:
        """Report life while time is not counted. Raises Cancelled, NoSpace."""
        self._answer.beat()
        check_room(self._place)

    def fits(self, data: bytes, spare: int = 0) -> bool:
        """Write `data` if there is room for it and `spare` more bytes; return whether there was."""
        if len(data) + spare > self._left:
            return False
        self._left -= len(data)
        self._answer.write(data)
        return True

    def write(self, data: bytes) -> None:
        """Write data that must not be missing. Raises TooCostly."""
        if not self.fits(data):
            message = f"{self.about}: this host has no room for the answer"
            raise TooCostly(message, detail="Half of it would be no answer.")


class Reader:
    """A connection to a database of the past, in one read-only transaction. Text arrives as UTF-8.

    `encoding` is that of the text: "SQL_ASCII" if the database's encoding is not known.
    """

    def __init__(self, connection: Connection, meter: Meter) -> None:
        self._connection = connection  # keeps the connection alive, which closes itself when unreferenced
        self._pg: PGconn = connection.pgconn
        self._meter = meter
        self.columns: list[tuple[str, int]] = []
        self.lacks = ""  # what was unreadable: the ROWS of a table, or a LARGE object
        known = self._pg.parameter_status(b"server_encoding") or b""
        self.encoding = "SQL_ASCII"
        if known != b"SQL_ASCII" and self._pg.exec_(b"SET client_encoding = 'UTF8'").status == ExecStatus.COMMAND_OK:
            self.encoding = "UTF8"
        for setting in (f"SET statement_timeout = {int(meter.seconds * 1000)}", "BEGIN READ ONLY"):
            self._pg.exec_(setting.encode())

    def use_search_path(self) -> None:
        """Resolve names as an application of the database does."""
        self._pg.exec_(b"RESET search_path")

    def understand(self, statement: str, shown: str, seen: str = "") -> None:
        """Have a statement parsed for run(). Raises Usage, with what the user typed (`shown`)."""
        result = self._done(lambda: self._pg.send_prepare(b"", as_bytes(statement)))
        if result is not None:
            message = said_of(result)
            if _NO_MULTIPLE in message:
                raise Usage(f"{self._meter.about}: one statement at a time", detail=f"in: {shown}")
            raise Usage(f"{self._meter.about}: {message}", detail="\n".join(filter(None, [f"in: {shown}", seen])))
        described = self._pg.describe_prepared(b"")
        if described.nparams:
            raise Usage(f"{self._meter.about}: a question has no parameters", detail=f"in: {shown}")
        if not described.nfields:
            raise Usage(
                f"{self._meter.about}: there is no answer to that: one SELECT is expected", detail=f"in: {shown}"
            )
        names = ((described.fname(at) or b"", described.ftype(at)) for at in range(described.nfields))
        self.columns = [(name.decode(errors="surrogateescape"), kind) for name, kind in names]

    def about(self) -> bytes:
        """Return the OIDs, as a list in SQL, of all tables and views that the parsed statement refers to.

        The server has locked them, including those that views are made of.
        """
        found = self.rows(_LOCKED)
        return b", ".join(number for (number,) in found if number) or b"NULL"

    def run(self) -> Iterator[Row]:
        """Yield the rows of the parsed statement."""
        width = range(len(self.columns))
        for result in self._results(lambda: self._pg.send_query_prepared(b"", None), single=True):
            if result.status == ExecStatus.SINGLE_TUPLE:
                row = [result.get_value(0, at) for at in width]
                if any(value is not None and len(value) > _VALUE_BYTES for value in row):
                    raise TooCostly(f"{self._meter.about}: a value is too large to be returned")
                self._meter.count()
                yield row

    def rows(self, statement: str) -> Iterator[Row]:
        """Yield the rows of a statement of ours."""
        self.understand(statement, "")
        yield from self.run()

    def copy(self, statement: str) -> Iterator[bytes]:
        """Yield the output of our COPY ... TO STDOUT, row by row."""
        for result in self._results(lambda: self._pg.send_query(as_bytes(statement))):
            while result.status == ExecStatus.COPY_OUT:
                size, data = self._pg.get_copy_data(1)
                if size > 0:
                    self._meter.count()
                    yield bytes(data)
                elif size == 0:
                    self._await()
                else:
                    break

    def _done(self, send: Any) -> PGresult | None:
        """Send something; return the error, if any."""
        bad = None
        for result in self._raw(send):
            bad = result if result.status == ExecStatus.FATAL_ERROR else bad
        return bad

    def _results(self, send: Any, *, single: bool = False) -> Iterator[PGresult]:
        for result in self._raw(send, single=single):
            if result.status == ExecStatus.FATAL_ERROR:
                raise self._refusal(result)
            yield result

    def _raw(self, send: Any, *, single: bool = False) -> Iterator[PGresult]:
        try:
            yield from self._heard(send, single=single)
        except errors.OperationalError as error:
            raise Degraded(f"{self._meter.about}: the throw-away server failed") from error

    def _heard(self, send: Any, *, single: bool) -> Iterator[PGresult]:
        send()
        if single:
            self._pg.set_single_row_mode()
        while self._pg.flush():
            self._await(writing=True)
        while True:
            while self._pg.is_busy():
                self._await()
            result = self._pg.get_result()
            if result is None:
                return
            yield result

    def _await(self, *, writing: bool = False) -> None:
        """Wait until the server has sent something, or can receive something."""
        file = self._pg.socket
        select.select([file], [file] if writing else [], [], _BEAT_SECONDS)
        self._meter.alive()
        self._pg.consume_input()

    def _refusal(self, result: PGresult) -> GuardError:
        """Return our error for an error at run time. The server's message may quote a row, so it is not kept."""
        state, about = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode(), self._meter.about
        self.lacks = next(
            (what for what, told in _LACKS.items() if (state, said_of(result)[: len(told[1])]) == told), ""
        )
        if state == "57014":
            return self._meter.late()
        if library_in(said_of(result)):
            hint = f"dbguardctl check {about.partition(',')[0]}  # it names the library"
            raise ToolMissing(f"{about}: it needs a library that is not on this host", hints=[hint])
        name = f"{_name_of(state)} (SQLSTATE {state})"
        kind, said = _MEANT.get(state) or _MEANT.get(state[:2]) or (Usage, "PostgreSQL cannot answer that")
        return kind(f"{about}: {said}", detail=LOCKED if kind is SourceLocked else f"{name} while it ran")


_GAVE_UP = (Degraded, "the throw-away server gave up")
_ELSEWHERE = (Unsupported, "it needs another server, or a file, which is in no backup: ask each partition by itself")
_MEANT: Mapping[str, tuple[type[GuardError], str]] = {
    "25006": (Usage, "a question may only read"),
    "42704": (Usage, "something that it names is not there, such as a large object that was deleted before"),
    "55000": (Unsupported, "something is not as it has to be for that: a materialized view has no rows in a dump"),
    "55P03": (SourceLocked, "what is asked for cannot be read"),
    "53100": (NoSpace, "the question needs more room than there is"),
    "53": (TooCostly, "the question needs more than it may have"),
    "54": (TooCostly, "the question needs more than it may have"),
    "58P01": (Unsupported, "it needs a file that is not in the backup: a proof tells which"),
    "58": (Degraded, "the throw-away server could not read or write a file"),
    "08001": _ELSEWHERE,  # a foreign table, or dblink: the throw-away server connects to nothing
    "HV": _ELSEWHERE,
    "XX001": (SourceDamaged, "was damaged when it was backed up"),
    "XX002": (SourceDamaged, "was damaged when it was backed up"),
    "57": _GAVE_UP,
    "08": _GAVE_UP,
    "": _GAVE_UP,
}
"""The meaning of a SQLSTATE, or of a class of them."""


def _name_of(state: str) -> str:
    try:
        return errors.lookup(state).__name__
    except KeyError:
        return "An error"


def said_of(result: PGresult) -> str:
    """Return the server's message about a statement that it cannot parse, with its hint."""
    fields = (DiagnosticField.MESSAGE_PRIMARY, DiagnosticField.MESSAGE_HINT)
    said = [(result.error_field(field) or b"").decode(errors="replace") for field in fields]
    return ". ".join(filter(None, said))[:1000]


def as_bytes(statement: str) -> bytes:
    """Return a statement as it is sent; names in it come from said()."""
    return statement.encode(errors="surrogateescape")


def said(value: bytes | None) -> str:
    """Return a name from the server; bytes that are not UTF-8 are preserved."""
    return (value or b"").decode(errors="surrogateescape")


def plain(value: bytes | None, kind: int) -> Any:
    """Return a value for JSON, given its type's OID; one without a JSON form becomes an object that describes it."""
    if value is None:
        return None
    if kind in INTEGERS:
        return int(value)
    if kind in _REALS:
        real = float(value)
        return real if math.isfinite(real) else {"real": repr(real)}
    if kind == _BOOL:
        return value == b"t"
    if kind == _BYTEA and value.startswith(b"\\x"):
        return {"base64": b64encode(bytes.fromhex(value[2:].decode("ascii"))).decode()}
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"text_base64": b64encode(value).decode()}


def encoded(row: Any) -> bytes:
    """Return something as a line of JSON in ASCII."""
    return f"{_encode(row)}\n".encode("ascii")


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
