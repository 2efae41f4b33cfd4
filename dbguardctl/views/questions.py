"""Answers of backups: rows as a table or CSV, and where they come from."""

from __future__ import annotations

import csv
import io
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from datetime import tzinfo
from typing import Any

from dbguardctl.screen import Block, Cell, Line, Table, text
from dbguardd.words import absolute, count, safe

Json = dict[str, Any]

_GRADES = {"proven": "good", "restored": "", "checked": "", "stored": "warn"}
_WIDE = 200
_BLOB_BYTES = 32


def said_of(result: Json, zone: tzinfo | None) -> Iterator[Sequence[Cell | str]]:
    """Yield lines that say which backup an answer is from, and what that is worth."""
    grade = Cell("FAILED", "bad") if result["failure"] else Cell(result["grade"], _GRADES.get(result["grade"], ""))
    yield "as it was at ", Cell(absolute(result["created_at"], zone), "strong"), f": backup {result['backup']}, ", grade
    for warning in result["warnings"]:
        yield Cell("note  ", "warn"), str(warning)


def cut_off(result: Json) -> Line:
    """Return the line that says that there are more rows."""
    how = "allow more with --rows" if result["more"] == "rows" else "the answer would be too large: ask for less"
    return text(Cell("note  ", "warn"), f"only the first {count(result['rows'], 'row')}, there are more: {how}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Block]:
    """Return rows as a table; no row is a line that says so."""
    if not rows:
        return [text(Cell("no rows", "dim"))]
    numbers = frozenset(
        at for at in range(len(columns)) if all(isinstance(row[at], int | float) or row[at] is None for row in rows)
    )
    return [Table(columns, [[_cell(item) for item in row] for row in rows], right=numbers)]


def _cell(item: Any) -> Cell | str:
    match item:
        case None:
            return Cell("NULL", "dim")
        case {"base64": str(encoded)}:
            data = b64decode(encoded)
            return (
                f"x'{data.hex()}'" if len(data) <= _BLOB_BYTES else f"x'{data[:_BLOB_BYTES].hex()}… {len(data)} bytes"
            )
    words = _plain(item)
    return words if len(words) <= _WIDE else f"{words[:_WIDE]}… ({len(words)} characters)"


def _plain(item: Any) -> str:
    match item:
        case None:
            return ""
        case {"base64": str(encoded)}:
            return b64decode(encoded).hex()
        case {"real": str(real)}:
            return real
        case _:
            return str(item)


def csv_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, terminal: bool) -> Iterator[str]:
    """Yield rows as CSV (RFC 4180); a terminal gets no control characters of them."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    yield _taken(buffer, terminal)
    for row in rows:
        writer.writerow([_plain(item) for item in row])
        yield _taken(buffer, terminal)


def _taken(buffer: io.StringIO, terminal: bool) -> str:
    words = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return safe(words, keep="\n") if terminal else words
