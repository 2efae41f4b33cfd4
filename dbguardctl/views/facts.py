"""Formats any JSON object as lines: the unit at the end of a member's name decides how its value is formatted."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any

from dbguardctl.humanize import dated
from dbguardctl.screen import Block, Cell, Table, text
from dbguardd.humanize import absolute, count, grouped, humanized, size, span

_COUNTS = frozenset(("rows", "pages", "tables", "count", "objects", "packs", "segments", "files", "backups", "entries"))
_UNITS = ("_at", "_bytes", "_seconds", "_ratio")


def value(name: str, item: Any, zone: tzinfo | None) -> str:
    """Return one value in words: sizes for _bytes, durations for _seconds, moments for _at, unknown for null."""
    match item:
        case None:
            return "never" if name.endswith("_at") else "unknown"
        case bool():
            return "yes" if item else "no"
        case int() | float():
            return _number(name, item)
        case str():
            return absolute(item, zone) if name.endswith("_at") or name == "at" else item
        case list() | tuple():
            return ", ".join(value(name, part, zone) for part in item) or "none"
        case dict():
            return one_line(item, zone) or "none"
        case _:
            return str(item)


def _number(name: str, item: float) -> str:
    if name.endswith("_bytes"):
        return size(item)
    if name.endswith("_seconds"):
        return span(item)
    if name.endswith("_ratio"):
        return f"{item * 100:.1f} %"
    if isinstance(item, float):
        return f"{item:g}"
    return grouped(item) if name.rpartition("_")[2] in _COUNTS else str(item)


def _label(name: str) -> str:
    for ending in _UNITS:
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def facts(item: dict[str, Any], zone: tzinfo | None, *, indent: int = 2, skip: frozenset[str] = frozenset()) -> Table:
    """Return an object as a table of names and values."""
    rows: list[tuple[Cell | str, ...]] = [
        (_label(name), value(name, part, zone)) for name, part in item.items() if name not in skip and name != "schema"
    ]
    return Table((), rows, indent=indent, fold=frozenset((1,)))


def one_line(item: dict[str, Any], zone: tzinfo | None) -> str:
    """Return an object in one line: name value, name value. Objects in it are named or counted, not shown in full."""
    return ", ".join(
        f"{_label(name)} {_short(part) or value(name, part, zone)}"
        for name, part in item.items()
        if part not in ("", None, [], {})
    )


def _short(item: Any) -> str:
    """Return a list of objects as their number, a problem as its message and code; empty for anything else."""
    if isinstance(item, dict) and item.keys() >= {"message", "code"}:
        return f"{item['message']} [{item['code']}]"
    if not (isinstance(item, list) and item and all(isinstance(part, dict) for part in item)):
        return ""
    outcomes = [part.get("outcome") for part in item]
    said = [f"{n} {word}" for word in ("failed", "inconclusive") if (n := outcomes.count(word))]
    return grouped(len(item)) + (f" ({', '.join(said)})" if said else "")


def findings(rows: list[dict[str, Any]], zone: tzinfo | None, *, verdict: bool = True) -> list[Block]:
    """Return the results of checks, one a line, with hints below those that did not pass."""
    styles = {"ok": "good", "failed": "bad", "inconclusive": "warn", "not configured": "dim"}
    words = {"ok": "ok", "failed": "FAIL", "inconclusive": "UNSURE", "not configured": "-"}
    blocks: list[Block] = []
    width = min(40, max((len(str(row.get("name", ""))) for row in rows), default=0))
    for row in rows:
        outcome = str(row.get("outcome", "inconclusive"))
        word = Cell(f"{words.get(outcome, outcome):<8}", styles.get(outcome, "warn"))
        blocks.append(
            text(
                f"{str(row.get('name', '')):<{width}}  ",
                word,
                dated(humanized(str(row.get("detail") or (outcome if outcome == "not configured" else ""))), zone),
                indent=2,
            )
        )
        for hint in row.get("hints") or ():
            blocks.append(text(Cell("fix  ", "dim"), Cell(str(hint), "try"), indent=width + 12))
    if verdict:
        bad = sum(row.get("outcome") in ("failed", "inconclusive") for row in rows)
        unseen = sum(row.get("outcome") == "not configured" for row in rows)
        of = count(len(rows) - unseen, "check")
        said = Cell(f"{bad} of {of} did not pass.", "bad") if bad else Cell(f"{of}, all passed.", "good")
        blocks.append(text(said, f" Not configured: {unseen}." if unseen else ""))
    return blocks
