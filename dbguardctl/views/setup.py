"""`protect`: what was found, what was written, and what the protection means."""

from __future__ import annotations

from datetime import datetime, tzinfo
from shlex import quote
from typing import Any

from dbguardctl.humanize import ahead
from dbguardctl.screen import Block, Cell, Line, paragraph, text
from dbguardctl.views.facts import facts
from dbguardctl.views.status import is_bare
from dbguardd.humanize import count, span

Json = dict[str, Any]


def protected(answer: Json, *, whole: bool) -> list[Block]:
    """Return what was found and written; with `whole`, also the text of the drop-in."""
    blocks: list[Block] = []
    for word, name in (
        ("found", "found"),
        ("database", "database"),
        ("wrote", "wrote"),
        ("would write", "would_write"),
    ):
        if answer.get(name):
            blocks.append(text(Cell(f"{word:<11} ", "dim"), str(answer[name])))
    if spared := int(answer.get("spared") or 0):
        gone = f"{count(spared, 'older backup')} would be deleted at once under the usual `keep`"
        blocks.append(text(Cell("keeps all   ", "dim"), f"{gone}, so the drop-in sets a `keep` of 100 years."))
        blocks.append(text("            When they may be deleted, remove that line, see what would go, and accept it:"))
        blocks.append(text("            ", Cell("dbguardctl config diff", "try")))
        blocks.append(text("            ", Cell("dbguardctl config accept", "try")))
    policy = str(answer.get("text") or "").rstrip()
    return [*blocks, Line(), *paragraph(policy, 2), Line()] if policy and whole else blocks


def unprotected(answer: Json) -> list[Block]:
    """Return what was removed, what stays, and how to use it."""
    name, kept = str(answer["database"]), int(answer["backups"])
    verb, them = ("stays", "it") if kept == 1 else ("stay", "them")
    stay = f"its {count(kept, 'backup')} {verb}, and nothing deletes {them}" if kept else ""
    if answer.get("would_remove"):
        blocks: list[Block] = [text(Cell("would remove  ", "dim"), str(answer["would_remove"]))]
        return [*blocks, text(f"No new backups would be made of {name}" + (f"; {stay}." if stay else "; it has none."))]
    blocks = [
        text(Cell("removed   ", "dim"), str(answer["removed"])),
        text(Cell("ok", "good"), "  ", Cell(f"{name} is no longer protected", "strong"), f"; {stay}." if stay else "."),
    ]
    if kept:
        blocks.append(text(Cell("get back  ", "dim"), Cell(f"dbguardctl restore {name} --to PLACE", "try")))
        blocks.append(text(Cell("look      ", "dim"), Cell(f"dbguardctl list {name}", "try")))
        blocks.append(text("To delete the older ones some day, protect it again with a smaller `keep`."))
    more = " --continuous" * bool(answer.get("continuous"))
    again = Cell(
        f"dbguardctl protect {quote(str(answer['path']))}{' --adopt' if kept else ' --name'} {name}{more}", "try"
    )
    return [*blocks, text(Cell("again     ", "dim"), again)]


def loaded(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what a reload reports besides its success."""
    blocks: list[Block] = []
    for row in answer.get("warnings") or ():
        blocks += paragraph(str(row["text"]))
    rest = facts(answer, zone, indent=4, skip=frozenset(("warnings", "ok")))
    return [*blocks, rest] if rest.rows else blocks


def promise(answer: Json, name: str, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return what could be lost from now on, and how to get the data back."""
    row = next((row for row in answer["databases"] if row["name"] == name), None)
    if row is None:
        return []
    blocks: list[Block] = []
    if row["last_proven_at"]:
        takes = f", and a restore takes about {span(row['restore_seconds'])}" if row["restore_seconds"] else ""
        goal = f" You could lose at most {span(row['rpo_seconds'])}." if row["rpo_seconds"] else ""
        if row["continuous"]:
            goal = " Its log is followed: you could lose about a second."
        again = f" The next backup is {ahead(row['next_run_at'], now, zone)}{takes}." if row["next_run_at"] else ""
        blocks.append(text(Cell("safe", "good"), "      ", Cell(f"{name} is protected.", "strong"), goal, again))
    blocks.append(text(Cell("get back  ", "dim"), Cell(f"dbguardctl restore {name} --to PLACE", "try")))
    if row["continuous"]:
        blocks.append(text(Cell("or        ", "dim"), Cell(f"dbguardctl restore {name} --at MOMENT --to PLACE", "try")))
    elif row["engine"] == "postgresql":
        needs = Cell(f"dbguardctl check {name}", "try")
        blocks.append(
            text(
                Cell("more      ", "dim"),
                "any second, with continuous = true in its policy; what that needs: ",
                needs,
            )
        )
    for key in answer["keys"]:
        if is_bare(key):
            blocks.append(text(Cell("NOW       ", "warn"), "save your recovery key somewhere else: ",
                               Cell(f"dbguardctl key recovery-sheet {key['name']}", "try")))  # fmt: skip
    return blocks
