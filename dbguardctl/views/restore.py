"""Restores: the plan of a dry run, and the result of a restore."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any

from dbguardctl.humanize import dated
from dbguardctl.screen import Block, Cell, Table, text
from dbguardctl.views.facts import findings
from dbguardd.humanize import absolute, count, size, span

Json = dict[str, Any]

_KEPT = "the current state is stored as a backup; restore undo puts it back"


def planned(row: Json, result: Json, zone: tzinfo | None) -> list[Block]:
    """Return what a restore would do, and the command that does it."""
    plan = result.get("plan") or result
    name = str(row["database"])
    sure = plan.get("grade") or "unknown"
    if plan.get("failure"):
        sure = f"FAILED: {plan['failure']}"
    elif plan.get("proven_at"):
        sure = f"proven {absolute(plan['proven_at'], zone)}"
    place = str(plan.get("to"))
    untouched = "(replaces the live database)" if plan.get("in_place") else f"({name} is not touched)"
    takes = plan.get("takes_seconds")
    then = ", plus the replay of its log" if plan.get("log_bytes") else ""
    more = " more than it takes up now" if plan.get("undo_bytes") is not None else ""
    rows: list[tuple[Cell | str, ...]] = [
        ("from", f"backup {plan.get('backup')}, {sure}"),
        *([("and", f"{count(plan['segments'], 'segment')} of its log{_log(plan)}")] if plan.get("segments") else []),
        ("to", f"{place}   {untouched}"),
        *([("before", f"{_KEPT}, for {plan['undo_days']} days")] if plan.get("undo_days") else []),
        *(("tablespace", f"{one['name']} ({one['from']}) to {one['to']}") for one in plan.get("tablespaces") or ()),
        *(("needs", needs) for needs in _needs(plan, more)),
        *([("storage", _kept(plan))] if plan.get("undo_bytes") else []),
        ("takes", f"about {span(takes)}{then}" if takes is not None else "unknown: no restore has been measured"),
        ("do it", Cell(command(row, plan), "try")),
    ]
    if plan.get("next_at"):
        rows.append(("or after", Cell(_next(row, plan), "try")))
    if not plan.get("in_place") and plan.get("replaceable", True):
        rows.append(("replace", Cell("... --in-place", "try")))
    lead = f"  {_which(plan, zone)} ({plan.get('created_at')})"
    return [text("Would restore  ", Cell(name, "strong"), lead), Table((), rows, indent=2), *_warnings(plan, zone)]


def _needs(plan: Json, more: str) -> list[str]:
    """Return what the restore needs and has: of each disk, if its tablespaces are on several."""
    several = plan.get("disks") or []
    if len(several) > 1:
        return [f"{size(one['needs_bytes'])}{more}, {size(one['free_bytes'])} free in {one['path']}" for one in several]
    free = f", {size(plan['free_bytes'])} free" if plan.get("free_bytes") is not None else ""
    return [f"{size(plan.get('needs_bytes'))}{more}{free}"]


def _kept(plan: Json) -> str:
    """Return how many bytes the backup of the current state may add to the storage."""
    free = f", {size(plan['undo_free_bytes'])} may be used" if plan["undo_free_bytes"] is not None else ""
    return f"up to {size(plan['undo_bytes'])} for the current state{free}"


def _which(plan: Json, zone: tzinfo | None) -> str:
    """Return the moment. Of a log position it is only known when the segment that contains it was stored."""
    at = absolute(plan.get("created_at"), zone)
    return f"at {plan['lsn']} in its log, stored about {at}" if plan.get("lsn") else f"as of {at}"


def _log(plan: Json) -> str:
    """Return the amount of log, and its end if that is not a time."""
    much = f", {size(plan['log_bytes'])}" if plan.get("log_bytes") is not None else ""
    place = f", to {plan['lsn']}" if plan.get("lsn") else ""
    return f"{much}{place}" + (f", to the restore point {plan['name']!r}" if plan.get("name") else "")


def _warnings(plan: Json, zone: tzinfo | None) -> list[Block]:
    return [text(Cell("note  ", "warn"), dated(str(line), zone), indent=2) for line in plan.get("warnings") or ()]


def command(row: Json, plan: Json) -> str:
    """Return the command that does what a dry run has planned, with exactly that backup or moment."""
    which = ["--at", str(plan["created_at"])] if plan.get("segments") else ["--id", str(plan.get("backup") or "")]
    for place in ("lsn", "name"):
        which = [f"--{place}", _quoted(str(plan[place]))] if plan.get(place) else which
    return _command(row, which)


def _next(row: Json, plan: Json) -> str:
    """Return the command that restores the next moment after a requested one that cannot be restored."""
    return _command(row, ["--id", str(plan["next_backup"])] if plan["next_backup"] else ["--at", str(plan["next_at"])])


def _command(row: Json, which: list[str]) -> str:
    """Return the command that requests the same restore of another moment."""
    asked = row["request"]
    words = ["dbguardctl", "restore", str(row["database"]), *which]
    for option in ("to", "tablespace"):
        words += [f"--{option}", _quoted(str(asked[option]))] if asked.get(option) else []
    return " ".join(words + (["--in-place", "--confirm", str(row["database"])] if asked.get("in_place") else []))


def _quoted(word: str) -> str:
    from shlex import quote  # noqa: PLC0415 - only for a plan

    return quote(word)


def restored(row: Json, result: Json, zone: tzinfo | None, took: str) -> list[Block]:
    """Return what was restored to where, what was compared, and how to undo it."""
    plan = result.get("plan") or {}
    found = result.get("findings") or []
    blocks = findings(found, zone, verdict=False)
    outcomes = {one.get("outcome") for one in found}
    point = f" {_which(plan, zone)}" if plan.get("created_at") else ""
    done = Cell(f"{row['database']}{point} restored to {result.get('target')}", "strong")
    word, but = Cell("ok", "good"), ""
    if "failed" in outcomes:  # only permissions may fail: different content fails the restore
        word, but = Cell("done", "warn"), ", but not with all its permissions"
    elif "inconclusive" in outcomes and row["verb"] != "undo":  # the state that undo puts back has no fingerprint
        word, but = Cell("UNSURE", "warn"), ", but could not be compared in full"
    blocks += [*_warnings(plan, zone), text(word, "  ", done, f"{but} \N{MIDDLE DOT} {took} in all")]
    if plan.get("next_at"):
        again = {**row, "request": {}}  # at a place of its own
        blocks.append(text(Cell("or    ", "dim"), Cell(f"{_next(again, plan)} --dry-run", "try"), indent=4))
    if result.get("safety_copy"):
        blocks.append(text(f"the previous state is kept as backup {result['safety_copy']}", indent=4))
    if result.get("undo"):
        blocks.append(text(Cell("undo  ", "dim"), Cell(str(result["undo"]), "try"), indent=4))
    return blocks
