"""Jobs: the list, one in full, and what a finished one has achieved."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.screen import Block, Cell, Table, text
from dbguardctl.views.facts import facts, findings, one_line, value
from dbguardctl.words import absolute, parse_utc, shorten, size, span, when

Json = dict[str, Any]

STATES = {"queued": "dim", "running": "", "done": "good", "failed": "bad", "cancelled": "warn", "interrupted": "warn"}
_OK = Cell("ok", "good")
FINAL = frozenset(("done", "failed", "cancelled", "interrupted"))


def seconds(row: Json, now: datetime | None = None) -> float | None:
    """Return how long a job ran, until `now` if it still does."""
    begin, end = parse_utc(row["started_at"]), parse_utc(row["finished_at"]) or now
    return (end - begin).total_seconds() if begin and end else None


def part_done(row: Json) -> str:
    """Return how far a running job is: snapshot 63 %."""
    total, done = row["total_bytes"], row["done_bytes"]
    amount = f" {done * 100 // total} %" if total else f" {size(done)}" if done else ""
    return f"{row['step'] or 'starting'}{amount}"


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
            row["database"] or "",
            Cell(row["state"], STATES.get(row["state"], "")),
            when(row["started_at"] or row["created_at"], now, zone),
            span(seconds(row, now)),
            row["actor"],
            _outcome(row),
        ]
        for row in rows
    ]
    return [Table(("ID", "VERB", "DATABASE", "STATE", "STARTED", "TOOK", "BY", "OUTCOME"), table)]


def _outcome(row: Json) -> str:
    if row["problem"]:
        return f"{row['problem'].get('code', '')} {row['problem'].get('message', '')}".strip()
    return part_done(row) if row["state"] == "running" else ""


def job(row: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return one job in full."""
    rows: list[tuple[Cell | str, ...]] = [
        ("state", Cell(row["state"], STATES.get(row["state"], ""))),
        ("by", row["actor"]),
        ("asked", absolute(row["created_at"], zone)),
        ("started", absolute(row["started_at"], zone) if row["started_at"] else "never"),
        ("ended", absolute(row["finished_at"], zone) if row["finished_at"] else "not yet"),
        ("took", span(seconds(row, now))),
        ("attempt", str(row["attempt"])),
    ]
    if row["state"] == "running":
        rows.append(("step", part_done(row)))
    if asked := one_line({name: part for name, part in row["request"].items() if part is not False}, zone):
        rows.append(("request", asked))
    blocks: list[Block] = [
        text(f"job {row['verb']} ", Cell(row["id"], "strong"), f" of {row['database']}" if row["database"] else ""),
        Table((), rows, indent=2),
    ]
    if row["result"]:
        blocks += [text(Cell("result", "strong")), facts(row["result"], zone)]
    if problem := row["problem"]:
        blocks.append(text(Cell(f"{problem.get('code')} {problem.get('message')}", "bad")))
        blocks += [text(line, indent=2) for line in str(problem.get("detail") or "").splitlines()]
        blocks += [text(Cell("fix  ", "dim"), Cell(str(hint), "try"), indent=2) for hint in problem.get("hints") or ()]
    if row["stderr_tail"]:
        blocks.append(text(Cell("last words of the worker", "strong")))
        blocks += [text(line, indent=2) for line in row["stderr_tail"].splitlines()]
    return blocks


def finished(row: Json, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return what a job that is done has achieved: one line that says it, more where there is more."""
    result = dict(row["result"] or {})
    took = span(seconds(row))
    match row["verb"]:
        case "backup":
            return _backup(row, result, took)
        case "verify":
            return _verify(row, result, zone, took)
        case "restore" | "undo":
            return _restore(row, result, zone, took)
        case "check":
            return [text(Cell(row["database"] or "", "strong")), *findings(result.get("findings") or [])]
        case _:
            return _plan(row, result, now, zone, took)


def _backup(row: Json, result: Json, took: str) -> list[Block]:
    made = result.get("backup")
    made = made if isinstance(made, dict) else {"id": made or "", **result}
    proven = made.get("grade") == "proven"
    blocks: list[Block] = []
    if made.get("source_bytes") is not None:
        blocks.append(text(f"{size(made['source_bytes'])} {made.get('kind', '')}, {size(made.get('stored_bytes'))} new "
                           f"in {made.get('storage') or 'the storage'}", indent=2))  # fmt: skip
    restore = made.get("restore_seconds")
    about = f" \N{MIDDLE DOT} a restore takes about {span(restore)}" if restore else ""
    verdict = f"backup {made.get('id')} is {made.get('grade') or 'stored'} \N{MIDDLE DOT} {took} in all{about}"
    blocks.append(text(_OK, "  ", Cell(verdict, "strong")))
    if not proven:
        blocks.append(text(Cell("try  ", "dim"), Cell(f"dbguardctl verify {row['database']}", "try"),
                           "   proves it by a test restore", indent=4))  # fmt: skip
    return blocks


def _verify(row: Json, result: Json, zone: tzinfo | None, took: str) -> list[Block]:
    proof = result.get("proof")
    proof = dict(proof) if isinstance(proof, dict) else result
    blocks: list[Block] = []
    found = proof.get("findings")
    if found and isinstance(found, list):
        blocks += findings(found)
    grade, at = proof.get("grade", "restored"), proof.get("created_at") or proof.get("backup_created_at")
    point = f" to {absolute(at, zone)}" if at else ""
    id = proof.get("backup") or row["request"].get("backup") or ""
    if grade == "proven":
        takes = span(proof.get("restore_seconds"))
        line = f"{row['database']} can be restored{point} in {takes}"
        blocks.append(text(Cell("proven", "good"), "  ", Cell(line, "strong"), f" \N{MIDDLE DOT} {took} in all"))
    else:
        blocks.append(
            text(Cell(str(grade), "warn"), f"  backup {id} of {row['database']} \N{MIDDLE DOT} {took} in all")
        )
    return blocks


def _restore(row: Json, result: Json, zone: tzinfo | None, took: str) -> list[Block]:
    if row["request"].get("dry_run"):
        plan = result.get("plan")
        return [
            text("Would restore ", Cell(str(row["database"]), "strong")),
            facts(plan if isinstance(plan, dict) else result, zone, skip=frozenset(("dry_run",))),
            text(Cell("do it  ", "dim"), Cell(_same(row), "try"), indent=2),
        ]
    target = result.get("target") or row["request"].get("to") or "its place"
    line = f"{row['database']} is restored to {target}"
    blocks: list[Block] = [text(_OK, "  ", Cell(line, "strong"), f" \N{MIDDLE DOT} {took} in all")]
    rest = facts(result, zone, skip=frozenset(("target",)), indent=4)
    if rest.rows:
        blocks.append(rest)
    if row["request"].get("in_place"):
        undo = f"dbguardctl restore undo {row['database']}"
        blocks.append(text(Cell("undo  ", "dim"), Cell(undo, "try"), "   brings back what was replaced", indent=4))
    return blocks


def _same(row: Json) -> str:
    """Return the command that does what a dry run has planned."""
    asked = row["request"]
    words = ["dbguardctl", "restore", str(row["database"])]
    for name, flag in (("at", "--at"), ("backup", "--id"), ("to", "--to")):
        if asked.get(name):
            quoted = str(asked[name]).replace("'", "'\\''")
            words += [flag, f"'{quoted}'" if not quoted.replace("/", "").replace("-", "").isalnum() else quoted]
    return " ".join(words + (["--in-place"] if asked.get("in_place") else []))


def _plan(row: Json, result: Json, now: datetime, zone: tzinfo | None, took: str) -> list[Block]:
    """Return what an expiry or a sweep has done or would do: tables for lists of objects, lines for the rest."""
    what = f"{row['verb']} {row['database'] or row['request'].get('storage') or ''}".strip()
    blocks: list[Block] = []
    rest: Json = {}
    for name, part in result.items():
        if not (isinstance(part, list) and part and all(isinstance(item, dict) for item in part)):
            rest[name] = part
            continue
        names = list(dict.fromkeys(key for item in part for key in item))
        rows = [[_short(key, item.get(key), now, zone) for key in names] for item in part]
        heads = [key.removesuffix("_at").removesuffix("_bytes").replace("_", " ").upper() for key in names]
        blocks += [text(Cell(name.replace("_", " "), "strong")), Table(heads, rows, indent=2)]
    if rest:
        blocks.append(facts(rest, zone))
    dry = bool(row["request"].get("dry_run"))
    done = f"{what}: this would be done; nothing was" if dry else f"{what} is done \N{MIDDLE DOT} {took} in all"
    return [*blocks, text(_OK, "  ", Cell(done, "strong"))]


def _short(name: str, item: Any, now: datetime, zone: tzinfo | None) -> str:
    return when(item, now, zone) if name.endswith("_at") and item else value(name, item, zone)
