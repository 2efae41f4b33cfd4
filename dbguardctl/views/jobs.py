"""Jobs: the list, one in full, and the result of a finished one."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.humanize import shorten, ulid_at, when
from dbguardctl.screen import Block, Cell, Line, Table, text
from dbguardctl.views.facts import facts, findings, one_line
from dbguardctl.views.restore import planned, restored
from dbguardd.humanize import absolute, count, hint_word, parse_utc, size, span
from dbguardd.requests import RESERVED

Json = dict[str, Any]

STATES = {"queued": "dim", "running": "", "done": "good", "failed": "bad", "cancelled": "warn", "interrupted": "warn"}
FINAL = frozenset(("done", "failed", "cancelled", "interrupted"))
_OK = Cell("ok", "good")
_VERDICTS = ("ok", "done", "proven", "UNSURE")


def seconds(row: Json, now: datetime | None = None) -> float | None:
    """Return how long a job ran, or has been running until `now`."""
    begin, end = parse_utc(row["started_at"]), parse_utc(row["finished_at"]) or now
    return (end - begin).total_seconds() if begin and end else None


def state(row: Json) -> Cell:
    """Return the state of a job; a queued job that has failed before is shown as retrying."""
    if row["state"] == "queued" and row["problem"]:
        return Cell("retrying", "warn")
    return Cell(row["state"], STATES.get(row["state"], ""))


def part_done(row: Json) -> str:
    """Return the progress of a running job: snapshot 63 %."""
    total, done = row["total_bytes"], row["done_bytes"]
    amount = f" {done * 100 // total} %" if total else f" {size(done)}" if done else ""
    return f"{row['step'] or 'not yet begun'}{amount}"


def jobs(answer: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the table of `job list`, newest first."""
    rows = answer["jobs"]
    if not rows:
        return [text("No jobs.")]
    short = shorten([row["id"] for row in rows])
    table: list[list[Cell | str]] = [
        [
            Cell(short[row["id"]], "strong"),
            row["verb"],
            row["database"] or row["request"].get("storage") or "",
            state(row),
            when(row["started_at"] or row["created_at"], now, zone),
            span(seconds(row, now)) if row["started_at"] else "",
            row["actor"],
            _outcome(row),
        ]
        for row in rows
    ]
    return [Table(("ID", "VERB", "DATABASE", "STATE", "STARTED", "TOOK", "BY", "OUTCOME"), table, fold=frozenset((7,)))]


def _outcome(row: Json) -> str:
    if row["problem"]:
        return f"{row['problem'].get('code', '')} {row['problem'].get('message', '')}".strip()
    return part_done(row) if row["state"] == "running" else ""


def job(row: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return one job in full."""
    rows: list[tuple[Cell | str, ...]] = [
        ("state", state(row)),
        ("by", row["actor"]),
        ("asked", absolute(row["created_at"], zone)),
        ("started", absolute(row["started_at"], zone) if row["started_at"] else "not yet"),
        ("ended", absolute(row["finished_at"], zone) if row["finished_at"] else "not yet"),
        ("took", span(seconds(row, now))),
        ("attempt", str(row["attempt"])),
    ]
    if row["state"] == "running":
        rows.append(("step", part_done(row)))
    if row["state"] == "queued" and (at := (row["problem"] or {}).get("next_try_at")):
        rows.append(("next try", absolute(at, zone)))
    if asked := one_line({name: part for name, part in row["request"].items() if part not in (False, "")}, zone):
        rows.append(("request", asked))
    if reserved := [name for name, part in row["request"].items() if part is None and name in RESERVED]:
        rows.append(("not shown", f"{', '.join(reserved)}: only for users who may ask this (access.operate)"))
    blocks: list[Block] = [
        text(f"job {row['verb']} ", Cell(row["id"], "strong"), f" of {row['database']}" if row["database"] else ""),
        Table((), rows, indent=2),
    ]
    if row["result"] and row["state"] == "done":
        blocks += finished(row, now, zone)
    elif row["result"]:
        blocks += [text(Cell("result", "strong")), facts(row["result"], zone)]
    if problem := row["problem"]:
        blocks.append(text(Cell(f"{problem.get('code')} {problem.get('message')}", "bad")))
        blocks += [text(line, indent=2) for line in str(problem.get("detail") or "").splitlines()]
        hints = [str(hint) for hint in problem.get("hints") or ()]
        blocks += [text(Cell(f"{hint_word(hint)}  ", "dim"), Cell(hint, "try"), indent=2) for hint in hints]
    if row["stderr_tail"]:
        blocks.append(text(Cell("last output of the worker", "strong")))
        blocks += [text(line, indent=2) for line in row["stderr_tail"].splitlines()]
    return blocks


def finished(row: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the result of a finished job: a line of summary, and details before it if there are any."""
    result = dict(row["result"] or {})
    took = span(seconds(row))
    match row["verb"]:
        case "backup":
            return _backup(row, result, took)
        case "verify":
            return _verify(row, result, zone, took)
        case "restore" if row["request"].get("dry_run"):
            return planned(row, result, zone)
        case "restore" | "undo":
            return restored(row, result, zone, took)
        case "check":
            return [text(Cell(row["database"] or "", "strong")), *findings(result.get("findings") or [], zone)]
        case "expire":
            return _expire(row, result, now, zone, took)
        case "sweep":
            return _sweep(row, result, now, zone, took)
        case _:
            verdict = Cell(f"{row['verb']} {row['database'] or ''}: done", "strong")
            return [facts(result, zone), text(_OK, "  ", verdict, f" \N{MIDDLE DOT} {took} in all")]


def verdicts(blocks: list[Block]) -> list[Block]:
    """Return what --quiet keeps of a finished job: the summary line, or all lines if there is none."""
    said: list[Block] = [
        block for block in blocks if isinstance(block, Line) and block.cells[:1] and _word(block) in _VERDICTS
    ]
    return said or blocks


def _word(line: Line) -> str:
    first = line.cells[0]
    return first if isinstance(first, str) else first.text


def _sweep(row: Json, result: Json, now: datetime, zone: tzinfo | None, took: str) -> list[Block]:
    dry = bool(row["request"].get("dry_run"))
    freed = f"{size(result.get('freed_bytes'))} in {count(int(result.get('objects') or 0), 'object')}"
    blocks: list[Block] = []
    if marked := result.get("marked"):
        many = count(marked, "object")
        words = f"{many} ({size(result.get('marked_bytes'))}) no longer needed, to be freed after the grace period"
        blocks.append(text(words, indent=2))
    if young := result.get("young"):
        many = f"{count(young, 'object')} ({size(result.get('young_bytes'))})"
        blocks.append(text(f"{many} in no backup, too new to delete: from a failed job or a running one", indent=2))
    if result.get("next_at"):
        blocks.append(text(f"more can be freed after {when(result['next_at'], now, zone)}", indent=2))
    if dry:
        done = f"{freed} would be freed; nothing was deleted" if result.get("objects") else "nothing could be freed now"
    else:
        done = f"freed {freed}"
    verdict = Cell(f"storage {row['request'].get('storage')}: {done}", "strong")
    return [*blocks, text(_OK, "  ", verdict, f" \N{MIDDLE DOT} {took} in all")]


def _backup(row: Json, result: Json, took: str) -> list[Block]:
    made = result.get("backup") or {}
    blocks: list[Block] = []
    if made.get("source_bytes") is not None:
        already = _already(made)
        blocks.append(
            text(
                f"{made.get('kind', '')} {size(made['source_bytes'])}, {size(made.get('stored_bytes'))} new{already}",
                f" in {made.get('storage') or 'the storage'}",
                indent=2,
            )
        )
    blocked = (result.get("facts") or {}).get("blocked_seconds")
    if blocked is not None:
        longer = f" longer than {span(blocked)}" if blocked else ""
        blocks.append(text(f"the application was never blocked{longer}", indent=2))
    if (result.get("facts") or {}).get("read_by") == "replication":
        blocks.append(text("the server sent its files over a replication connection; no file was read here", indent=2))
    grade = made.get("grade") or "stored"
    verdict = Cell(f"backup {made.get('id')} of {row['database']} is {grade}", "strong")
    return [*blocks, text(_OK, "  ", verdict, f" \N{MIDDLE DOT} {took} in all")]


def _already(made: Json) -> str:
    source, stored = made.get("source_bytes"), made.get("stored_bytes")
    if not source or stored is None or made.get("kind") != "incremental" or stored >= source:
        return ""
    return f" ({(1 - stored / source) * 100:.1f} % saved)"


def _verify(row: Json, result: Json, zone: tzinfo | None, took: str) -> list[Block]:
    proof = result.get("proof") or {}
    blocks = findings([*(proof.get("findings") or []), *filter(None, [result.get("log")])], zone, verdict=False)
    if proof.get("grade") == "proven":
        line = Cell(f"{row['database']} can be restored in {span(proof.get('restore_seconds'))}", "strong")
        blocks.append(text(Cell("proven", "good"), "  ", line, f" \N{MIDDLE DOT} backup {proof.get('id')}",
                           f" \N{MIDDLE DOT} {took} in all"))  # fmt: skip
    else:
        line = Cell(f"backup {proof.get('id')} of {row['database']} is {proof.get('grade')}, not proven", "strong")
        blocks.append(text(Cell("UNSURE", "warn"), "  ", line, f" \N{MIDDLE DOT} {took} in all"))
    if plain := result.get("plain_copy"):
        blocks.append(text(f"plain copy {one_line(plain, None) if isinstance(plain, dict) else plain}", indent=2))
    return blocks


def _expire(row: Json, result: Json, now: datetime, zone: tzinfo | None, took: str) -> list[Block]:
    plan = result.get("plan") or {}
    dry = bool(row["request"].get("dry_run"))
    keep, drop = plan.get("keep") or [], plan.get("drop") or []
    ids = shorten([item["id"] for item in (*keep, *drop)])
    rows: list[tuple[Cell | str, ...]] = [
        (Cell(ids[item["id"]], "strong"), when(ulid_at(item["id"]), now, zone), Cell(word, style),
         ", ".join(item.get("because") or ()))
        for items, word, style in ((keep, "keep", ""), (drop, "expire" if dry else "expired", "warn"))
        for item in items
    ]  # fmt: skip
    blocks: list[Block] = [text(Cell(str(row["database"]), "strong"))]
    blocks += [Table(("ID", "WHEN", "VERDICT", "BECAUSE"), rows, indent=2, fold=frozenset((3,)))] if rows else []
    if plan.get("breaker"):
        confirm = Cell(f"dbguardctl prune {row['database']} --confirm {row['database']}", "try")
        blocks.append(text(Cell(f"{plan['breaker']}  ", "warn"), Cell("fix  ", "dim"), confirm, indent=2))
    done = f"{len(drop)} would expire, {len(keep)} kept; nothing was deleted"
    done = done if dry else f"{len(drop)} expired, {len(keep)} kept"
    return [*blocks, text(_OK, "  ", Cell(f"{row['database']}: {done}", "strong"), f" \N{MIDDLE DOT} {took} in all")]
