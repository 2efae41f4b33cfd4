"""Translates SQLite's errors for questions to a backup."""

from __future__ import annotations

import re
from collections.abc import Sequence

import apsw

from dbguardd.engines.sqlite.tables import instead_of
from dbguardd.errors import GuardError, SourceDamaged, TooCostly, Unsupported, Usage

_PLAIN = re.compile("integer overflow|malformed JSON|string or blob too big|no such (function|collation sequence): .*")
"""Run-time messages of SQLite that quote no row: all others may, and errors are kept and logged."""


class Refusals:
    """Translates errors of SQLite into ours. They begin with `about`."""

    def __init__(self, about: str) -> None:
        self._about = about

    def of(self, error: Exception, *, late: bool) -> GuardError:
        """Return our error for one that occurred while something ran, or while the file was opened."""
        said = str(error)
        match error:
            case _ if late:
                return TooCostly(f"{self._about}: no answer within the time limit")
            case apsw.AuthError():
                return Usage(f"{self._about}: a question may only read")
            case MemoryError() | apsw.NoMemError():
                return TooCostly(f"{self._about}: the question needs more memory than it may use")
            case apsw.TooBigError():
                return TooCostly(f"{self._about}: a value is too large to be returned")
            case UnicodeDecodeError():
                advice = "Ask for CAST(column AS BLOB) or hex(column) instead."
                return Unsupported(f"{self._about}: a text is not valid UTF-8", detail=advice)
            case apsw.CorruptError() | apsw.NotADBError() | apsw.FormatError():
                what = f"{type(error).__name__}: {said}" if "schema" in said else type(error).__name__
                return SourceDamaged(
                    f"{self._about}: was already damaged when it was backed up, or is no database", detail=what
                )
        if "same text encoding" in said:
            return Unsupported(f"{self._about}: the two have different text encodings and cannot be compared")
        shown = said if _PLAIN.fullmatch(said) else f"{type(error).__name__} while it ran"
        return Usage(f"{self._about}: SQLite cannot answer that", detail=shown)

    def of_statement(self, error: apsw.Error, sql: str, tables: Sequence[str]) -> GuardError:
        """Return our error for a statement that did not start, so the message contains nothing from a row."""
        if isinstance(error, apsw.AuthError):
            return Usage(
                f"{self._about}: a question may only read",
                detail=f"{error}; in: {sql}",
            )
        missing = re.search(r"no such table: (?:main\.)?(.*)", str(error))
        existing = instead_of(missing[1], tables) if missing else []
        return Usage(f"{self._about}: {error}", detail="\n".join([f"in: {sql}", *existing]))
