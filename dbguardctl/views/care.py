"""The schedule and the audit log."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.humanize import ahead, when, zone_name
from dbguardctl.screen import Block, Cell, Table, text
from dbguardctl.views.facts import facts, one_line

Json = dict[str, Any]


def schedule(answer: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the next runs, soonest first."""
    rows = answer.get("runs") or []
    if not rows:
        return [text("Nothing is scheduled.")]
    table: list[list[Cell | str]] = [
        [
            when(row["at"], now, zone),
            _soon(row["at"], now, zone),
            Cell(str(row.get("database") or f"storage {row.get('storage')}"), "strong"),
            str(row.get("verb") or ""),
            str(row.get("schedule") or ""),
            Cell(str(row.get("state") or ""), "warn"),
        ]
        for row in rows
    ]
    return [
        text(
            f"Times are {zone_name(now, zone)}. Schedules are in {answer.get('timezone') or 'the zone of the policy'}."
        ),
        Table(("WHEN", "", "DATABASE", "VERB", "SCHEDULE", ""), table),
    ]


def _soon(moment: str | None, now: datetime, zone: tzinfo | None) -> str:
    soon = ahead(moment, now, zone)
    return soon if soon == "now" or soon.startswith("in ") else ""


def paused(answer: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return what rests until when, what does not, and how to end the pause."""
    name, until = str(answer["database"]), answer.get("paused_until_at")
    ends = f"until {when(until, now, zone)}" if until else "until it is resumed"
    blocks: list[Block] = [text(Cell("ok", "good"), f"  {name} is paused {ends}: no scheduled job starts")]
    if answer.get("continuous"):
        blocks.append(text("Its log is still followed: each commit is stored, and can be restored.", indent=4))
    return [*blocks, text(Cell("end it  ", "dim"), Cell(f"dbguardctl resume {name}", "try"), indent=4)]


def audit(answer: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return a table of audit entries."""
    rows = answer.get("entries") or []
    if not rows:
        return [text("No entries.")]
    table: list[list[Cell | str]] = []
    for row in rows:
        who = row.get("actor") or {}
        who = who if isinstance(who, dict) else {"user": who}
        outcome = str(row.get("outcome") or "")
        uid = f" (uid {who['uid']})" if who.get("uid") is not None else ""
        table.append(
            [
                str(row.get("seq", row.get("id", ""))), when(row.get("at"), now, zone), f"{who.get('user', '')}{uid}",
                str(row.get("action") or ""),
                str(row.get("object") or ""),
                Cell(outcome, "bad" if outcome in ("failed", "denied", "refused") else ""),
                one_line(dict(row.get("facts") or {}), zone),
            ]
        )  # fmt: skip
    return [
        text(f"Times are {zone_name(now, zone)}."),
        Table(
            ("ENTRY", "WHEN", "WHO", "ACTION", "OF", "OUTCOME", "DETAILS"),
            table,
            right=frozenset((0,)),
            fold=frozenset((6,)),
        ),
    ]


def audit_verified(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return the result of verifying the chain."""
    good = answer.get("ok", True)
    verdict = Cell("ok", "good") if good else Cell("FAIL", "bad")
    words = "  the audit log is intact" if good else "  the audit log was changed"
    if good and answer.get("notes"):  # entries without an anchor could have been replaced as a whole
        verdict = Cell("UNSURE", "warn")
        words = "  no single entry was changed; only the journal shows whether all were replaced"
    return [text(verdict, words), facts(answer, zone, skip=frozenset(("ok", "sure")))]
