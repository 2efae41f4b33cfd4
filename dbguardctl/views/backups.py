"""`list` and `show`: what can be restored, how certain that is, and why each backup is kept."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any

from dbguardctl.humanize import date, shorten, utc_text, when, zone_name
from dbguardctl.screen import Block, Cell, Line, Table, text
from dbguardctl.views.facts import facts, findings, value
from dbguardd.humanize import absolute, count, parse_utc, size, some, span

Json = dict[str, Any]

GRADES = {"proven": "good", "restored": "", "checked": "", "stored": "warn"}
FEW = 20
_GRAINS = {0: "any second", 60: "once a minute", 3600: "once an hour", 86400: "once a day"}


def grade(row: Json) -> Cell:
    """Return the grade of a backup, or FAILED if its last verification failed."""
    if row.get("failure"):
        return Cell("FAILED", "bad")
    return Cell(row["grade"], GRADES.get(row["grade"], ""))


def backups(answer: Json, now: datetime, zone: tzinfo | None, *, why: bool, everything: bool) -> list[Block]:
    """Return the table of `list NAME`, newest first; without `everything` only the first twenty."""
    rows = answer["backups"]
    name = answer.get("database") or (rows[0]["database"] if rows else "")
    gone = _expired(answer.get("expired") or [], now, zone) if everything else []
    if not rows:
        return [
            text(Cell(name, "strong"), ": there is no backup."),
            text(Cell("fix  ", "dim"), Cell(f"dbguardctl backup {name}", "try")),
            *gone,
        ]
    shown = rows if everything else rows[:FEW]
    proven = sum(row["grade"] == "proven" for row in rows)
    oldest, newest = (when(rows[number]["created_at"], now, zone) for number in (-1, 0))
    tally = f"{count(len(rows), 'backup')}, {proven} proven, from {oldest} to {newest}"
    blocks: list[Block] = [
        text(Cell(name, "strong"), f" \N{MIDDLE DOT} {rows[0]['engine']} \N{MIDDLE DOT} {tally}"),
        *([text(f"The newest has {left}.")] if (left := left_out(rows[0])) else []),
        *_log(answer.get("log") or [], answer.get("log_proof"), now, zone),
        text(f"Times are {zone_name(now, zone)}."),
        Line(),
    ]  # fmt: skip
    short = shorten([row["id"] for row in rows])
    columns = ["ID", "WHEN", "KIND", "SIZE", "STORED", "GRADE", "WHERE"] + (["KEPT BECAUSE", "EXPIRES"] if why else [])
    noted = any(row.get("note") for row in shown)
    minutes = [when(row["created_at"], now, zone) for row in shown]
    exact = len(set(minutes)) < len(minutes)  # without seconds, two would look the same
    table = []
    for row in shown:
        cells: list[Cell | str] = [
            Cell(short[row["id"]], "strong"), when(row["created_at"], now, zone, seconds=exact), row["kind"],
            size(row["source_bytes"]), size(row["stored_bytes"]), grade(row), row["storage"],
        ]  # fmt: skip
        if why:
            cells += [_kept(row), _goes(row, now, zone)]
        if noted:
            cells.append(row.get("note") or "")
        table.append(cells)
    names = columns + (["NOTE"] if noted else [])
    prose = {number for number, name in enumerate(names) if name in ("KEPT BECAUSE", "NOTE")}
    blocks.append(Table(names, table, right=frozenset((3, 4)), fold=frozenset(prose)))
    if len(rows) > len(shown):
        blocks.append(text(f"{len(rows) - len(shown)} older: ", Cell(f"dbguardctl list {name} --all", "try")))
    return blocks + gone


def _log(rows: list[Json], proof: Json | None, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return which moments between the backups can be restored, the gaps, and when the log was last proven."""
    lines, end = list[tuple[str, str]](), ""
    for row in rows:
        since, until = _up(str(row["since_at"])), str(row["until_at"])  # rounded to seconds that are fully covered
        if since[:19] < until[:19]:
            grain, gap = row.get("grain_seconds") or 0, bool(end) and row["since_at"] > end
            lead = "then a gap, and" if gap and not grain else ("a gap, " if gap else "") + _GRAINS[grain]
            lines.append((lead, f"from {absolute(since, zone)} to {absolute(until, zone)}"))
        end = until
    if lines:
        lines.append(("proven", log_proof(proof, now, zone)))
    width = max((len(lead) for lead, _ in lines), default=0)
    return [text(f"{lead:<{max(width, 15)}} {said}") for lead, said in lines]


def left_out(row: Json) -> str:
    """Return whose rows the policy left out, and what was not read; empty if the backup is complete."""
    tables, unread = int(row.get("excluded_tables") or 0), row.get("left_out") or []
    said = [f"no rows of {count(tables, 'excluded table')}: {some(row['excluded'], tables)}"] if tables else []
    return "; ".join([*said, *([f"nothing of {some(unread)}, which could not be read"] if unread else [])])


def log_proof(proof: Json | None, now: datetime, zone: tzinfo | None) -> str:
    """Return when the log was last proven, and which moment was restored."""
    if not proof or not proof["proven_at"]:
        return "not yet"
    return f"{when(proof['proven_at'], now, zone)}, as of {absolute(proof['moment_at'], zone)}"


def _up(moment: str) -> str:
    """Round a moment up to a whole second."""
    found = parse_utc(moment)
    return moment if found is None else utc_text(found + timedelta(microseconds=999_999 if found.microsecond else 0))


def _expired(rows: list[Json], now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the expired backups that can still be recalled."""
    if not rows:
        return []
    short = shorten([row["backup"]["id"] for row in rows])
    table: list[list[Cell | str]] = [
        [
            Cell(short[row["backup"]["id"]], "strong"), when(row["backup"]["created_at"], now, zone),
            size(row["backup"]["source_bytes"]), grade(row["backup"]), row["backup"]["storage"],
            f"expired, recall until {when(row['recall_until_at'], now, zone)}",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        Line(),
        text(f"{count(len(rows), 'backup')} expired and not yet deleted; bring one back: ",
             Cell("dbguardctl recall ID", "try")),
        Table((), table, right=frozenset((2,)), indent=2),
    ]  # fmt: skip


def recalled(answer: Json) -> list[Block]:
    """Return that a backup was recalled, and what keeps it now."""
    kept = ", ".join(answer.get("kept_because") or ())
    back = text(Cell("ok", "good"), f"  backup {answer['backup']} of {answer.get('database')} is back")
    if kept:
        return [back, text(f"the policy keeps it: {kept}", indent=4)]
    return [
        back,
        text("the policy does not keep it: it expires again at the next expiry, unless it is held", indent=4),
        text(Cell("keep it  ", "dim"), Cell(f"dbguardctl hold {answer['backup']} --reason TEXT", "try"), indent=4),
    ]


def _kept(row: Json) -> str:
    holds = [f'HOLD "{reason}"' for reason in row["holds"]]
    return ", ".join([*row["kept_because"], *holds]) or "nothing"


def _goes(row: Json, now: datetime, zone: tzinfo | None) -> str:
    if row["holds"]:
        return "held"
    return date(row["expires_at"], now, zone) if row["expires_at"] else "never"


def backup(row: Json, zone: tzinfo | None) -> list[Block]:
    """Return one backup in full."""
    lead: list[tuple[Cell | str, ...]] = [
        ("made", absolute(row["created_at"], zone)),
        ("kind", f"{row['kind']}, {row['method']}, {row['engine']}"),
        ("size", f"{size(row['source_bytes'])}, {size(row['stored_bytes'])} stored in {row['storage']}"),
        ("grade", grade(row)),
        ("proven", absolute(row["proven_at"], zone) if row["proven_at"] else "never"),
        ("a restore takes", f"about {span(row['restore_seconds'])}" if row["restore_seconds"] else "unknown"),
        ("kept because", _kept(row)),
        ("expires", absolute(row["expires_at"], zone) if row["expires_at"] and not row["holds"] else "never"),
    ]
    if left := left_out(row):
        lead.append(("left out", left))
    if row.get("note"):
        lead.append(("note", row["note"]))
    if row.get("failure"):
        lead.append(("failed", Cell(row["failure"], "bad")))
    known = frozenset(
        ("id", "database", "engine", "created_at", "kind", "method", "grade", "source_bytes", "stored_bytes", "storage")
        + ("proven_at", "restore_seconds", "kept_because", "expires_at", "holds", "note", "failure", "verified_at")
        + ("excluded", "excluded_tables", "left_out")
    )
    lead += [(name.replace("_", " "), value(name, part, zone)) for name, part in row.items() if name not in known]
    blocks: list[Block] = [
        text("backup ", Cell(row["id"], "strong"), f" of {row['database']}"),
        Table((), lead, indent=2, fold=frozenset((1,))),
    ]
    return blocks


def show(answer: Json, zone: tzinfo | None) -> list[Block]:
    """Return what `show ID` prints for a backup: the backup with its fingerprint and proofs."""
    row = answer["backup"]
    blocks = backup(row, zone)
    if answer.get("expired"):
        blocks.append(text(Cell("try  ", "dim"), Cell(f"dbguardctl recall {row['id']}", "try"), indent=2))
    elif not row.get("failure"):
        command = f"dbguardctl restore {row['database']} --id {row['id'][:12]} --dry-run"
        blocks.append(text(Cell("try  ", "dim"), Cell(command, "try"), indent=2))
    for name, part in answer.items():
        if name in ("schema", "kind", "backup") or not part:
            continue
        blocks.append(text(Cell(name.replace("_", " "), "strong")))
        for item in part if isinstance(part, list) else [part]:
            if not isinstance(item, dict):
                blocks.append(text(value(name, item, zone), indent=2))
                continue
            known = {key: inner for key, inner in item.items() if inner not in (None, "", [], {})}
            inner = known.pop("facts", {})
            checks = inner.pop("findings", []) if isinstance(inner, dict) else []
            blocks.append(facts({**known, **({"facts": inner} if inner else {})}, zone, skip=frozenset(("backup",))))
            blocks += findings(checks, zone, verdict=False)
    return blocks
