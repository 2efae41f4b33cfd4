"""Answers one SELECT from the pages of a backup."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from typing import Any

import apsw

from dbguardd.engines.base import Answer, Bounds
from dbguardd.engines.sqlite.pages import Opened, opened
from dbguardd.engines.sqlite.refuse import Refusals
from dbguardd.errors import Usage
from dbguardd.flow import Facts, Pages


def query(pages: Pages, sql: str, bounds: Bounds, answer: Answer) -> Facts:
    """See engines.base.Questions."""
    with opened({"main": pages}, bounds, answer) as backup:
        return _Statement(backup, sql).run()


class _Statement:
    """One statement of a user, from its text to its last row."""

    def __init__(self, backup: Opened, sql: str) -> None:
        self._backup, self._sql = backup, sql
        self._about = backup.bounds.about
        self._columns: list[str] = []

    def run(self) -> Facts:
        """Write the names of the columns, and as many rows as the limits allow."""
        backup = self._backup
        tables = stored_names(backup.connection)  # reads the schema, so that its damage is not blamed on the statement
        cursor = backup.connection.cursor()
        cursor.exec_trace = self._begin
        rows, more = 0, None
        try:
            for row in cursor.execute(self._sql):
                if rows >= backup.bounds.rows or not backup.fits(encoded(row)):
                    more = "rows" if rows >= backup.bounds.rows else "bytes"
                    break
                rows += 1
        except apsw.ExecTraceAbort as error:
            raise Usage(f"{self._about}: one statement at a time", detail=f"in: {self._sql}") from error
        except apsw.Error as error:
            if not self._columns and isinstance(error, apsw.SQLError | apsw.AuthError):
                raise Refusals(self._about).of_statement(error, self._sql, tables) from error
            raise
        if not self._columns:
            raise Usage(f"{self._about}: there is no statement", detail=f"in: {self._sql}")
        return {"rows": rows, "more": more}

    def _begin(self, cursor: apsw.Cursor, statement: str, bindings: Any) -> bool:
        """Write the column names when the statement is parsed.

        Refuse a second statement; a comment after the first is none.
        """
        columns = [str(column[0]) for column in cursor.get_description()]
        if not columns or self._columns:
            return not columns
        self._columns = columns
        self._backup.fits(encoded(columns))
        return True


def stored_names(connection: apsw.Connection, schema: str = "main") -> list[str]:
    """Return the names of the tables and views of a database, sorted."""
    query = f"SELECT name FROM {schema}.sqlite_schema WHERE type IN ('table', 'view') ORDER BY name"  # noqa: S608
    return [str(name) for (name,) in connection.execute(query)]


def encoded(row: Any) -> bytes:
    """Return a row as a line of JSON in ASCII; a blob is {"base64": …}, a number that JSON lacks {"real": "inf"}."""
    try:
        line = _encode(row)
    except ValueError:
        line = _encode([{"real": repr(item)} if _odd(item) else item for item in row])
    return f"{line}\n".encode("ascii")


def _odd(item: Any) -> bool:
    return isinstance(item, float) and not math.isfinite(item)


def _blob(value: bytes) -> dict[str, str]:
    return {"base64": b64encode(value).decode()}


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_blob).encode
