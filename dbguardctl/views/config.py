"""The policy: mistakes with their places, values with their origins, changes with their consequences."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.humanize import shorten, when
from dbguardctl.screen import Block, Cell, Line, Table, paragraph, text
from dbguardctl.views.facts import facts
from dbguardd.humanize import count

Json = dict[str, Any]


def checked(answer: Json) -> list[Block]:
    """Return every mistake and warning, then the verdict."""
    errors, warnings = answer.get("errors") or [], answer.get("warnings") or []
    blocks: list[Block] = []
    for row in (*errors, *warnings):
        blocks += [*paragraph(str(row.get("text") or row.get("message") or "")), Line()]
    files = ", ".join(answer.get("files") or ())
    if not answer.get("ok", not errors):
        where = ", ".join(dict.fromkeys(str(row["file"]) for row in errors if row.get("file"))) or files
        number = Cell(f"{count(len(errors), 'mistake')} in {where}.", "bad")
        return [*blocks, text(number, " The running policy is unchanged.")]
    noted = f", {count(len(warnings), 'warning')}" if warnings else ""
    return [*blocks, text(Cell("ok", "good"), f"  the policy is valid{noted}: {files}")]


def flat(item: Any, path: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    if not isinstance(item, dict):
        return {path: item}
    return {key: part for name, inner in item.items() for key, part in flat(inner, f"{path}.{name}".strip(".")).items()}


def shown(answer: Json) -> list[Block]:
    """Return the policy in force as dotted keys, with the origin of each value if the answer has it."""
    origins = answer.get("origins") or {}
    rows = [
        (key, _toml(part), Cell(str(origins.get(key, "default")) if origins else "", "dim"))
        for key, part in flat(answer["policy"]).items()
    ]
    blocks: list[Block] = [Table((), rows, fold=frozenset((1,)))]
    if problem := answer.get("problem"):
        blocks.append(
            text(Cell("The policy files were refused at the last reload: ", "bad"), str(problem.get("message")))
        )
        blocks.append(text("Once they are corrected: ", Cell("dbguardctl reload", "try")))
    return blocks


def _toml(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return f'"{item}"'
    if isinstance(item, list):
        return f"[{', '.join(map(_toml, item))}]"
    if isinstance(item, dict):
        return f"{{ {', '.join(f'{key} = {_toml(part)}' for key, part in item.items() if part is not None)} }}"
    return "-" if item is None else str(item)


def _change(row: Json) -> list[Block]:
    """Return one change; for a table that is added or removed (a database, a storage), one line for each key."""
    key, old, new = str(row.get("key")), row.get("old"), row.get("new")
    if isinstance(old, dict) and isinstance(new, dict):
        was, now = flat(old, key), flat(new, key)
        rows = [(name, was.get(name), now.get(name)) for name in dict.fromkeys([*was, *now])]
        return [text(Cell(name, "strong"), f": {_toml(a)} -> {_toml(b)}") for name, a, b in rows if a != b]
    if not isinstance(old, dict) and not isinstance(new, dict):
        return [text(Cell(key, "strong"), f": {_toml(old)} -> {_toml(new)}")]
    table, word, sign = (new, "added", "+") if isinstance(new, dict) else (old, "removed", "-")
    keys = ((name, part) for name, part in flat(table).items() if part not in (None, {}, []))
    return [
        text(Cell(f"{key} is {word}", "strong")),
        *(text(f"{sign} {name} = {_toml(part)}", indent=2) for name, part in keys),
    ]


def explained(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what a key means, its type, default and present value."""
    blocks: list[Block] = [text(Cell(str(answer.get("key") or ""), "strong"))]
    blocks += paragraph(str(answer.get("text") or answer.get("means") or ""), 2)
    words = {name: _toml(answer[name]) for name in ("default", "value") if answer.get(name) is not None}
    known = {"type": answer.get("type"), **words, "stands at": answer.get("origin"), "in": answer.get("tables")}
    rest = {name: part for name, part in known.items() if part}
    return [*blocks, facts(rest, zone)] if rest else blocks


def differing(answer: Json, now: datetime, zone: tzinfo | None, *, accepted: bool = False) -> list[Block]:
    """Return the changes, then the backups that would be deleted, or will be if the policy was `accepted`."""
    changes, doomed = answer.get("changes") or [], answer.get("deletes") or []
    if accepted and not doomed:
        return [text("This deletes no backup.", indent=2)]
    if not changes and not doomed:
        return [text("The files on disk are the policy in force.")]
    blocks: list[Block] = [block for row in changes for block in _change(row)]
    if not doomed:
        apply = Cell("dbguardctl reload", "try")
        return [*blocks, text("No backup would be deleted.  ", Cell("apply it  ", "dim"), apply)]
    backups = [str(row["id"]) for row in doomed if row["id"] != "log"]  # "log" stands for a part of the log
    ids = {**shorten(backups), "log": "log"}
    rows = [
        (
            Cell(ids[str(row["id"])], "strong"),
            str(row.get("database") or ""),
            when(row.get("created_at"), now, zone),
            ", ".join(row.get("reasons") or ()),
        )
        for row in doomed
    ]
    parts = [f"{len(backups)} backup{'' if len(backups) == 1 else 's'}"] if backups else []
    number = " and ".join(parts + ["a part of a log, for good"] * (len(backups) < len(doomed)))
    what = f"The next expiry deletes {number}:" if accepted else f"This would delete {number}:"
    lead, command = (
        ("keep one  ", "dbguardctl hold ID --reason TEXT") if accepted else ("accept it  ", "dbguardctl config accept")
    )
    return [
        *blocks,
        text(Cell(what, "bad")),
        Table(("ID", "DATABASE", "WHEN", "WHY"), rows, indent=2, fold=frozenset((3,))),
        text(Cell(lead, "dim"), Cell(command, "try")),
    ]
