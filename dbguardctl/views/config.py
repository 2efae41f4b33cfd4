"""The policy: mistakes with their place, values with their origin, changes with their consequences."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.screen import Block, Cell, Table, paragraph, text
from dbguardctl.views.facts import facts, value
from dbguardctl.words import when

Json = dict[str, Any]


def checked(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return every mistake and warning, then the verdict."""
    blocks: list[Block] = []
    errors, warnings = answer.get("errors") or [], answer.get("warnings") or []
    for word, style, rows in (("error", "bad", errors), ("warning", "warn", warnings)):
        for row in rows:
            blocks += _mistake(row, word, style)
    if not answer.get("ok", not errors):
        blocks += paragraph(str(answer.get("detail") or ""))
        blocks.append(text(Cell(f"{len(errors) or 'Some'} mistakes.", "bad"), " The running policy is unchanged."))
    else:
        rest = facts(answer, zone, skip=frozenset(("ok", "errors", "warnings")))
        blocks += [text(Cell("ok", "good"), "  the policy is valid"), *([rest] if rest.rows else [])]
    return blocks


def _mistake(row: Json | str, word: str, style: str) -> list[Block]:
    if isinstance(row, str):
        first, _, rest = row.partition("\n")
        return [text(Cell(word, style), f": {first.removeprefix(f'{word}: ')}"), *paragraph(rest)]
    if row.get("text"):
        return [*paragraph(str(row["text"])), text()]
    place = ":".join(str(row[name]) for name in ("file", "line", "column") if row.get(name))
    blocks: list[Block] = [text(Cell(word, style), f": {row.get('message', '')}")]
    blocks += [text(f" --> {place}")] if place else []
    blocks += paragraph(str(row.get("source") or row.get("excerpt") or ""), 2)
    hint = row.get("hint") or row.get("suggestion")
    return blocks + ([text(Cell("fix  ", "dim"), Cell(str(hint), "try"), indent=2)] if hint else [])


def flat(item: Any, path: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    if not isinstance(item, dict):
        return {path: item}
    return {key: part for name, inner in item.items() for key, part in flat(inner, f"{path}.{name}".strip(".")).items()}


def shown(answer: Json) -> list[Block]:
    """Return the policy in force as TOML if the daemon sent that, else as dotted keys; origins in a second column."""
    if answer.get("text"):
        return paragraph(str(answer["text"]))
    values = answer.get("values")
    if isinstance(values, list):
        rows = [
            (str(row.get("key")), _toml(row.get("value")), Cell(str(row.get("origin") or ""), "dim")) for row in values
        ]
        return [Table((), rows)]
    origins = answer.get("origins") or answer.get("origin") or {}
    policy = flat(
        answer.get("policy") or {name: part for name, part in answer.items() if name not in ("schema", "origins")}
    )
    origins = flat(origins) if isinstance(origins, dict) else {}
    return [Table((), [(key, _toml(part), Cell(str(origins.get(key, "")), "dim")) for key, part in policy.items()])]


def _toml(item: Any) -> str:
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return f'"{item}"'
    if isinstance(item, list):
        return f"[{', '.join(map(_toml, item))}]"
    return "-" if item is None else str(item)


def explained(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what a key means, its type, default and value now."""
    lead = str(answer.get("text") or answer.get("description") or answer.get("help") or "")
    blocks: list[Block] = [text(Cell(str(answer.get("key") or ""), "strong")), *paragraph(lead, 2)]
    rest = {name: part for name, part in answer.items() if name not in ("schema", "key", "text", "description", "help")}
    return [*blocks, facts(rest, zone)] if rest else blocks


def differing(answer: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the changes, then the backups that would go."""
    changes, doomed = answer.get("changes") or [], answer.get("deletes") or answer.get("expires") or []
    blocks: list[Block] = paragraph(str(answer.get("text") or answer.get("diff") or ""))
    for row in changes:
        if isinstance(row, str):
            blocks.append(text(row))
            continue
        key = row.get("key") or row.get("path") or ""
        old, new = row.get("old", row.get("before")), row.get("new", row.get("after"))
        blocks.append(text(Cell(f"{key}", "strong"), f": {_toml(old)} -> {_toml(new)}"))
    if not blocks and not doomed:
        return [text("The files on disk say what is in force.")]
    if doomed:
        blocks.append(text(Cell(f"This would delete {len(doomed)} backup{'' if len(doomed) == 1 else 's'}:", "bad")))
        rows = []
        for row in doomed:
            made = when(row.get("created_at"), now, zone) if isinstance(row, dict) else ""
            rows.append(
                (str(row.get("id")), str(row.get("database") or ""), made, value("", row.get("reasons") or "", zone))
                if isinstance(row, dict)
                else (str(row), "", "", "")
            )
        blocks += [Table(("ID", "DATABASE", "WHEN", "WHY"), rows, indent=2),
                   text(Cell("accept it  ", "dim"), Cell("dbguardctl config accept", "try"))]  # fmt: skip
    else:
        blocks.append(
            text("No backup would be deleted. ", Cell("apply it  ", "dim"), Cell("systemctl reload dbguardd", "try"))
        )
    return blocks
