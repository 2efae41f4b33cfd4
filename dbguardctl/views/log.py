"""The history: sentences for `log`, names and facts for `events`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.humanize import dated, when, zone_name
from dbguardctl.screen import Block, Cell, Screen, Table, paragraph, text
from dbguardctl.views.facts import one_line
from dbguardd.events import LEVELS, level_of
from dbguardd.humanize import absolute, humanized
from dbguardd.sentences import plain, sentence

Json = dict[str, Any]

_STYLES: Mapping[str, str] = {"debug": "dim", "warning": "warn", "error": "bad"}


def entry(event: Json) -> Json:
    """Return an event with its level and its sentence, in which moments are in UTC."""
    told = _told(event)
    return {**event, "level": level_of(plain(told)), "message": sentence(told)}


def _told(event: Json) -> Json:
    return {**event["facts"], "event": event["event"], "database": event["database"], "job": event["job"]}


def matters(row: Json, least: str) -> bool:
    """True if an entry is of this level or above."""
    return LEVELS.index(row["level"]) >= LEVELS.index(least)


def entry_lines(row: Json, screen: Screen, zone: tzinfo | None, *, verbose: bool) -> list[Block]:
    """Return one entry: a line, marked if something went wrong; with `verbose` also its details."""
    told = _told(row)
    style = _STYLES.get(row["level"], "")
    width = max(len(screen.mark(name).text) for name in ("warn", "bad"))
    mark = screen.mark(style).text if style in ("warn", "bad") else ""
    blocks: list[Block] = [
        text(
            f"{absolute(row['at'], zone)}  ",
            Cell(f"{mark:<{width}} ", style),
            Cell(dated(sentence(told, zone), zone), style),
        )
    ]
    if verbose:
        facts = plain(told)
        detail = str(facts.get("detail") or "").strip()
        blocks += paragraph(humanized(detail) if "\n" in detail else "", indent=4, style="dim")
        blocks += [text(Cell("fix  ", "dim"), Cell(str(hint), "try"), indent=4) for hint in facts.get("hints") or ()]
        if row["job"] and style == "bad":
            blocks.append(text(Cell("see  ", "dim"), Cell(f"dbguardctl job show {row['job']}", "try"), indent=4))
    return blocks


def nothing(database: str | None) -> list[Block]:
    """Return the message for a history without entries."""
    return [text(f"Nothing to show{f' for {database}' if database else ''}.")]


def events(rows: list[Json], now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return a table of events."""
    if not rows:
        return [text("No events.")]
    table = [
        [
            str(row["id"]), when(row["at"], now, zone), Cell(row["event"], _style(row)),
            row["database"] or "", one_line(row["facts"], zone),
        ]
        for row in rows
    ]  # fmt: skip
    return [
        text(f"Times are {zone_name(now, zone)}."),
        Table(("ID", "WHEN", "EVENT", "DATABASE", "FACTS"), table, right=frozenset((0,)), fold=frozenset((4,))),
    ]


def event_line(row: Json, zone: tzinfo | None) -> list[Block]:
    """Return one event of a followed stream."""
    database = f"  {row['database']}" if row["database"] else ""
    return [
        text(absolute(row["at"], zone), "  ", Cell(row["event"], _style(row)), database, "  ",
             Cell(one_line(row["facts"], zone), "dim"))
    ]  # fmt: skip


def _style(row: Json) -> str:
    return _STYLES.get(level_of(plain(_told(row))), "")
