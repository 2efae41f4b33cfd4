"""`protect`: what was found, what was written, and what that promises."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any

from dbguardctl.screen import Block, Cell, Line, text
from dbguardctl.views.facts import facts, one_line, value
from dbguardctl.words import span

Json = dict[str, Any]

_OWN = frozenset(("schema", "job", "text", "policy_text", "dry_run", "hints"))


def protected(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what was found and written, and the drop-in itself."""
    blocks: list[Block] = []
    for name, part in answer.items():
        if name in _OWN or part in (None, "", [], {}):
            continue
        words = one_line(part, zone) if isinstance(part, dict) else value(name, part, zone)
        blocks.append(text(Cell(f"{name.removesuffix('_at').replace('_', ' '):<9} ", "dim"), words))
    policy = answer.get("text") or answer.get("policy_text")
    if policy:
        blocks += [Line(), *(text(line, indent=2) for line in str(policy).splitlines()), Line()]
    return blocks


def loaded(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what a reload has to say besides that it succeeded."""
    blocks: list[Block] = [
        text(Cell("warning  ", "warn"), str(line), indent=4) for line in answer.get("warnings") or ()
    ]
    rest = facts(answer, zone, indent=4, skip=frozenset(("warnings", "ok")))
    return [*blocks, rest] if rest.rows else blocks


def promise(answer: Json, name: str) -> list[Block]:
    """Return what could be lost from now on, and how to get the data back."""
    row = next((row for row in answer["databases"] if row["name"] == name), None)
    if row is None:
        return []
    blocks: list[Block] = []
    if row["last_proven_at"]:
        takes = f", and a restore takes about {span(row['restore_seconds'])}" if row["restore_seconds"] else ""
        goal = f" You could lose at most {span(row['rpo_seconds'])}{takes}." if row["rpo_seconds"] else ""
        blocks.append(text(Cell("proven", "good"), "    ", Cell(f"{name} is protected.", "strong"), goal))
    blocks.append(text(Cell("get back  ", "dim"), Cell(f"dbguardctl restore {name} --to PLACE", "try")))
    for key in answer["keys"]:
        if not key["recovery"]:
            blocks.append(text(Cell("NOW       ", "warn"), "save your recovery key somewhere else: ",
                               Cell(f"dbguardctl key recovery-sheet {key['name']}", "try")))  # fmt: skip
    return blocks
