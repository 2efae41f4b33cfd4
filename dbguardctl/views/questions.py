"""Answers from backups: rows as a table or CSV, and which backup they come from."""

from __future__ import annotations

import csv
import io
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import tzinfo
from typing import Any

from dbguardctl.humanize import dated
from dbguardctl.screen import Block, Cell, Line, Table, text
from dbguardd.humanize import absolute, count, grouped, safe

Json = dict[str, Any]

_GRADES = {"proven": "good", "restored": "", "checked": "", "stored": "warn"}
_WIDE = 200
_BLOB_BYTES = 32
_SIGNS = {"added": ("+", "good"), "removed": ("-", "bad"), "changed": ("~", "warn")}
_HEAD = ("TABLE", "ADDED", "REMOVED", "CHANGED", "KEY", "NOTE")


def said_of(result: Json, asked: str, zone: tzinfo | None) -> Iterator[Sequence[Cell | str]]:
    """Yield lines that tell which backup an answer is from, which database of a server, and how reliable it is."""
    grade = Cell("FAILED", "bad") if result["failure"] else Cell(result["grade"], _GRADES.get(result["grade"], ""))
    of = f" of database {asked}" if asked else ""
    at = Cell(absolute(result["created_at"], zone), "strong")
    yield "as of ", at, f": backup {result['backup']}{of}, ", grade
    if log := result.get("segments"):
        partly = ", read only where needed: only a restore proves all of it"
        yield f"and {count(log, 'segment')} of its log{partly if result['sum_compared'] is False else ''}"
    for warning in result["warnings"]:
        yield Cell("note  ", "warn"), dated(str(warning), zone)


def cut_off(result: Json) -> Line:
    """Return the line that says that there are more rows."""
    how = "raise the limit with --rows" if result["more"] == "rows" else "the answer would be too large, ask for less"
    return text(Cell("note  ", "warn"), f"only the first {count(result['rows'], 'row')}, there are more: {how}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Block]:
    """Return rows as a table, or a line that says that there are none."""
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
            shown = data[:_BLOB_BYTES].hex()
            return f"x'{shown}'" if len(data) <= _BLOB_BYTES else f"x'{shown}… {len(data)} bytes"
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
        case {"text_base64": str(encoded)}:
            return b64decode(encoded).decode(errors="backslashreplace")
        case _:
            return str(item)


def taken_out(result: Json, to: str) -> Iterator[Sequence[Cell | str]]:
    """Yield lines that tell where the rows of a table were written, and how to load them into a database."""
    where = f" is at {to}" if to else ""
    left = f" \N{MIDDLE DOT} without {count(result['triggers'], 'trigger')}" if result["triggers"] else ""
    yield Cell("ok", "good"), f"  table {result['table']}, {count(result['rows'], 'row')}{where}{left}"
    yield from _run(result, to)
    yield from _large(result)


def _large(result: Json) -> Iterator[Sequence[Cell | str]]:
    """Yield a line that says that large objects are not included, if the rows refer to any."""
    if columns := result.get("large_objects"):
        one = f"only their numbers ({', '.join(columns)}); to get one: query with SELECT lo_get(NUMBER)"
        yield Cell("note", "warn"), f"  large objects are not included, {one}"


def _run(result: Json, to: str) -> Iterator[Sequence[Cell | str]]:
    """Yield a line that tells where to find how a server runs the written SQL."""
    if to and result.get("in_database"):
        from shlex import quote  # noqa: PLC0415 - only here

        yield Cell("then  ", "dim"), Cell(f"head -4 {quote(to)}", "try"), "  # shows how to run it on the live server"


def missing(result: Json, to: str, typed: Sequence[str]) -> Iterator[Sequence[Cell | str]]:
    """Yield lines that tell how many rows are missing or changed, and how to put them back."""
    from shlex import join  # noqa: PLC0415 - only here

    more = f", the first {result['listed']} shown" if result["listed"] < result["rows"] else ""
    where = f"; the SQL that puts them back is in {to}" if to else ""
    what = "with other values" if result["changed"] else "missing"
    yield Cell("ok", "good"), f"  {count(result['rows'], 'row')} of {result['table']} {what}{more}{where}"
    again = ["dbguardctl", *(word for word in typed if word not in ("--sql", "--json"))]
    if result["rows"] and not to:
        yield Cell("try  ", "dim"), Cell(join([*again, "--to", "FILE"]), "try")
    if result["rows"]:
        yield from _run(result, to)
        yield from _large(result)
    if result.get("differing"):
        yield Cell("note", "warn"), f"  {count(result['differing'], 'row')} exist now with other values"
        yield Cell("try  ", "dim"), Cell(join([*_without_place(again), "--changed"]), "try")


def _without_place(words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command line without --to and its file."""
    for at, word in enumerate(words):
        if word != "--to" and not word.startswith("--to=") and (not at or words[at - 1] != "--to"):
            yield word


def changes(table: str, lines: Sequence[Json], count_of_all: int) -> list[Block]:
    """Return the rows of a table that have other values."""
    counts = {**dict.fromkeys(_SIGNS, 0), "changed": count_of_all}
    return _changes({"table": table, **counts}, lines)


def difference(found: Mapping[str, list[Json]], *, summary: bool) -> list[Block]:
    """Return what differs between two backups: definitions, how many rows of each table, and rows."""
    blocks: list[Block] = [_definition(row) for row in found["definitions"]]
    differing = [row for row in found["tables"] if row["state"] != "same"]
    same = len(found["tables"]) - len(differing)
    if differing:
        blocks.append(Table(_HEAD, [_counted(row) for row in differing], right=frozenset((1, 2, 3))))
    if not summary:
        for row in differing:
            blocks += _changes(row, [line for line in found["changes"] if line["table"] == row["table"]])
    if same:
        blocks.append(text(Cell(f"{count(same, 'table')} the same", "dim")))
    return blocks


def _definition(row: Json) -> Line:
    word, style = ("changed", "warn") if row["before"] and row["after"] else ("added", "good")
    word, style = (word, style) if row["after"] else ("removed", "bad")
    return text(f"{row['kind']} {row['name']}: ", Cell(f"definition {word}", style))


def _counted(row: Json) -> list[Cell | str]:
    counts = ["?" if row[name] is None else grouped(row[name]) for name in _SIGNS]
    state = {"differs": "", "not compared": "not compared: "}.get(row["state"], f"the table was {row['state']}")
    return [Cell(row["table"], "strong"), *counts, ", ".join(row["keyed_by"]), f"{state}{row['why']}"]


def _changes(row: Json, changes: Sequence[Json]) -> list[Block]:
    blocks: list[Block] = [text(), text(Cell(row["table"], "strong"))] if changes else []
    for change in changes:
        sign, style = _SIGNS[change["change"]]
        key = ", ".join(f"{name} {_short(item)}" for name, item in change["key"].items())
        blocks.append(text(Cell(f"{sign} {key}".rstrip(), style), "  ", _values(change), indent=2))
    whole = sum(row[name] or 0 for name in _SIGNS)
    if changes and len(changes) < whole:
        left = f"and {count(whole - len(changes), 'more row')}; --rows lists more"
        blocks.append(text(Cell(left, "dim"), indent=2))
    return blocks


def _values(change: Json) -> str:
    before, after = change.get("before") or {}, change.get("after") or {}
    if change["change"] == "changed":
        different = [name for name in after if repr(before.get(name)) != repr(after[name])]  # 1 is not 1.0
        return ", ".join(f"{name} {_short(before.get(name))} -> {_short(after[name])}" for name in different)
    return ", ".join(f"{name} {_short(item)}" for name, item in (after or before).items() if name not in change["key"])


def _short(item: Any) -> str:
    cell = _cell(item)
    return cell if isinstance(cell, str) else cell.text


def csv_lines(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, terminal: bool) -> Iterator[str]:
    """Yield rows as CSV (RFC 4180); for a terminal, control characters are escaped."""
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
