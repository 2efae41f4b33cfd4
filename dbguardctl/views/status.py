"""`status`: one screen with what could be restored, when that was proven, how long it takes, and what to do."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, tzinfo
from typing import Any

from dbguardctl.humanize import ago, ahead, days_ago, when, zone_name, zoned
from dbguardctl.screen import Block, Cell, Line, Screen, Table, text
from dbguardctl.views.backups import left_out, log_proof
from dbguardd.humanize import count, humanized, parse_utc, size, span
from dbguardd.states import Health

Json = dict[str, Any]

_STYLES = {
    Health.FAILING: "bad",
    Health.LATE: "warn",
    Health.UNPROVEN: "warn",
    Health.PAUSED: "dim",
    Health.ORPHANED: "dim",
    Health.SAFE: "good",
}
_ORDER = {str(health): number for number, health in enumerate(Health)}
_NAMED = 3
_NEEDY = frozenset((Health.FAILING, Health.LATE, Health.UNPROVEN))


def needs_attention(answer: Json) -> bool:
    """True if a person should look, and `status` exits with 3. A pause or an orphan alone does not count."""
    return bool(
        answer.get("attention")
        or answer.get("policy_problem")
        or any(_needy(row) for row in answer["databases"])
        or any(not row["ok"] or row["stored_bytes"] is None for row in answer["storages"])
        or any(not row["recovery"] for row in answer["keys"])
    )


def _needy(row: Json) -> bool:
    return row["state"] in _NEEDY or (row["state"] == Health.SAFE and bool(row["attention"]))


def status(answer: Json, screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the whole screen: head, databases (worst first), what is wrong and what to do, storages, keys."""
    unread = any(row["stored_bytes"] is None for row in answer["storages"])
    known = [{**row, "unread": unread and not row["backups"]} for row in answer["databases"]]
    rows = sorted(known, key=lambda row: _ORDER.get(row["state"], 0))
    blocks = _head(answer, rows, now, zone)
    if rows:
        columns = ("", "DATABASE", "ENGINE", "COULD RESTORE TO", "PROVEN", "TAKES", "NEXT")
        table = Table(columns, [_row(row, screen, now, zone) for row in rows], fold=frozenset((3, 6)))
        partial = [row for row in rows if left_out(row)]
        blocks += [Line(), table, *(text(Cell(f"{row['name']} has {left_out(row)}", "dim")) for row in partial)]
    elif any(not row["ok"] or row["stored_bytes"] is None for row in answer["storages"]):
        blocks += [Line(), text("The policy names no database. Which databases have backups is not known: see below.")]
    else:
        protect = Cell("dbguardctl protect PATH", "try")
        blocks += [Line(), text("No database is protected yet.  ", Cell("fix  ", "dim"), protect)]
    wrong = _wrong(answer, rows, screen, now, zone)
    blocks += [Line(), *wrong] if wrong else []
    blocks += [Line(), *_storages(answer["storages"], screen, now, zone)]
    return [*blocks, *_keys(answer["keys"], screen, now, zone)]


def is_bare(key: Json) -> bool:
    """Return whether a key is known to have no recovery; before its repository was read, that is unknown."""
    return not key["recovery"] and bool(key.get("known", True))


def _wrong(answer: Json, rows: list[Json], screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return all problems, each once: a key without recovery has its own line at the end."""
    bare = [key["name"] for key in answer["keys"] if is_bare(key)]
    said = tuple(f"key {name} has no recovery recipient" for name in bare)
    hinted = frozenset(f"dbguardctl key recovery-sheet {name}" for name in bare)
    blocks: list[Block] = []
    problem = answer.get("policy_problem")
    if problem:
        blocks += _problem("policy", problem, screen, "bad")
    for row in rows:
        attention = [line for line in row["attention"] if not any(words in line for words in said)]
        hints = [hint for hint in row["hints"] if hint not in hinted]
        blocks += trouble({**row, "attention": attention, "hints": hints}, screen, now, zone)
    for line in answer.get("attention") or ():
        if not problem or str(problem.get("message")) not in line:
            blocks.append(text(screen.mark("warn"), " ", zoned(line, now, zone)))
    return blocks


def _head(answer: Json, rows: list[Json], now: datetime, zone: tzinfo | None) -> list[Block]:
    states = Counter(row["state"] for row in rows)
    tally = ", ".join(f"{states[str(health)]} {health}" for health in reversed(Health) if states[str(health)])
    policy = "policy has mistakes" if answer.get("policy_problem") else "policy ok"
    return [
        text(
            Cell(f"dbguard {answer['version']} on {answer['host']}", "strong"),
            f" \N{MIDDLE DOT} {policy} (loaded {when(answer['policy_loaded_at'], now, zone)})",
            f" \N{MIDDLE DOT} {count(len(rows), 'database')}" + (f": {tally}" if tally else ""),
        ),
        text(f"Times are {zone_name(now, zone)}."),
    ]


def _row(row: Json, screen: Screen, now: datetime, zone: tzinfo | None) -> list[Cell | str]:
    style = _STYLES.get(row["state"], "warn")
    restorable = ago(row["recoverable_to_at"], now, zone) if row["recoverable_to_at"] else _nothing(row)
    goal = f" (goal {span(row['rpo_seconds'])})" if row.get("rpo_seconds") else ""
    takes = span(row["restore_seconds"])
    takes += f" (goal {span(row['rto_seconds'])})" if row.get("rto_seconds") else ""
    return [
        screen.mark(style),
        Cell(row["name"], "strong"),
        row["engine"],
        Cell(restorable + goal, style if style in ("bad", "warn") else ""),
        Cell(*_proven(row, now, zone)),
        takes,
        _next(row, now, zone),
    ]


def _nothing(row: Json) -> str:
    if row["last_proven_at"]:
        return "nothing now"
    if row.get("unread"):
        return "not known yet"
    return "nothing proven yet" if row["backups"] else "nothing yet"


def _proven(row: Json, now: datetime, zone: tzinfo | None) -> tuple[str, str]:
    moment = row["last_proven_at"]
    return (when(moment, now, zone), "good") if moment else ("not known yet" if row.get("unread") else "never", "warn")


def _next(row: Json, now: datetime, zone: tzinfo | None) -> str:
    if row["state"] == Health.ORPHANED:
        return "never: not in the policy"
    if row["running_job"]:
        return "running now"
    if row["state"] == Health.PAUSED:
        until = row["paused_until_at"]
        return f"paused until {when(until, now, zone)}" if until else "paused"
    if not row["next_run_at"]:
        return "not scheduled"
    verb = row["next_verb"] or "backup"
    return ahead(row["next_run_at"], now, zone) + ("" if verb == "backup" else f" ({verb})")


def trouble(row: Json, screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return the problems of a database, worst first, and commands that help."""
    style = _STYLES.get(row["state"], "warn")
    problem, hints = row["problem"] or {}, list(row["hints"])
    lines = list(row["attention"])
    if not lines and problem:
        lines = [str(problem.get("message") or "failed")]
    if not lines and row["state"] in _NEEDY:
        lines = [_plain_state(row)]
        hints = hints or [f"dbguardctl {'verify' if row['backups'] else 'backup'} {row['name']}"]
    blocks: list[Block] = []
    told = str(problem.get("message") or "")
    of = next((number for number, line in enumerate(lines) if told in line), 0)  # the line that is about the problem
    for number, line in enumerate(lines):
        mark = screen.mark("warn" if style == "good" or (number and style == "bad") else style)
        code = Cell(f"  [{problem['code']}]", "dim") if problem.get("code") and number == of else ""
        blocks.append(text(mark, " ", zoned(_named(row["name"], line), now, zone), code))
        if number == of:
            details = zoned(humanized(str(problem.get("detail") or "")), now, zone)
            blocks += [text(words, indent=4) for words in details.splitlines()]
    hints = list(dict.fromkeys([*(problem.get("hints") or ()), *hints]))
    return blocks + [text(Cell("try  ", "dim"), Cell(str(hint), "try"), indent=4) for hint in hints if blocks]


def _plain_state(row: Json) -> str:
    if not row["backups"]:
        return "there is no backup yet."
    if row["state"] == Health.UNPROVEN:
        return "a backup exists, but the newest has not been proven by a restore."
    if row["state"] == Health.LATE:
        return "the last backup is older than the goal allows."
    return "the last run failed."


def _named(name: str, line: str) -> str:
    return line if line.startswith(name) else f"{name}: {line}"


def _problem(name: str, problem: Json, screen: Screen, style: str) -> list[Block]:
    message = _named(name, str(problem.get("message") or problem.get("title") or "failed"))
    code = Cell(f"  [{problem.get('code', 'DBG-0008')}]", "dim")
    blocks: list[Block] = [text(screen.mark(style), " ", message, code)]
    blocks += [text(line, indent=4) for line in humanized(str(problem.get("detail") or "")).splitlines()]
    hints = problem.get("hints") or ()
    return blocks + [text(Cell("try  ", "dim"), Cell(str(hint), "try"), indent=4) for hint in hints]


def _storages(rows: list[Json], screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    blocks: list[Block] = []
    for row in rows:
        if not row["ok"]:
            problem = row["problem"] or {"message": "not reachable", "code": "DBG-3001"}
            if again := problem.get("next_try_at"):
                soon = when(again, now, zone, seconds=True)
                waits = f"Its content is not known. The next attempt to read it is {soon}."
                problem = {**problem, "detail": f"{problem.get('detail') or ''}\n{waits}".strip()}
            blocks += _problem(f"storage {row['name']}", problem, screen, "bad")
            continue
        unread = row["stored_bytes"] is None
        if unread and row.get("reading_job"):
            words = f" storage {row['name']}: the backups in {row['url']} are being read now."
            blocks.append(text(screen.mark("warn"), words))
            watch = Cell(f"dbguardctl job watch {row['reading_job']}", "try")
            blocks.append(text(Cell("try  ", "dim"), watch, indent=4))
        elif unread:
            blocks.append(text(screen.mark("warn"), f" storage {row['name']}: the backups in {row['url']} are not read"
                               " yet, so none are shown."))  # fmt: skip
            blocks.append(text(Cell("try  ", "dim"), Cell("dbguardctl reload", "try"), indent=4))
        held = "not read yet" if unread else f"{size(row['stored_bytes'])} stored"
        parts = [f"storage  {row['name']}: {row['url']}, {held}"]
        if row["free_bytes"] is not None:
            room = f", {size(row['free_bytes'])} free"
            if row["total_bytes"]:
                room += f" of {size(row['total_bytes'])}"
            if row["keep_free_bytes"]:
                room += f" (stops at {size(row['keep_free_bytes'])})"
            parts.append(room)
        blocks.append(text(*parts))
        if beside := row.get("beside"):
            names = ", ".join(beside[:_NAMED]) + (f" and {len(beside) - _NAMED} more" if len(beside) > _NAMED else "")
            blocks.append(text(f"on the same file system as {names}: one failure there loses both", indent=9))
    return blocks


def _keys(rows: list[Json], screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    blocks: list[Block] = []
    for row in rows:
        if row["recovery"]:
            tests = [one["tested_at"] for one in row.get("recipients") or ()] or [row["recovery_tested_at"]]
            never, oldest = tests.count(None), min(filter(None, tests), default=None)
            age = f"proven {days_ago(oldest, now, zone)}" if oldest else "never tested"
            if len(tests) > 1:
                age = f"{len(tests)} recovery copies, {f'{never} never tested' if never else f'all {age} or later'}"
            else:
                age = f"recovery copy {age}"
            blocks.append(text(f"key      {row['name']}: {age}"))
            if never:
                blocks.append(text(Cell("try  ", "dim"), Cell(f"dbguardctl key recovery-test {row['name']}", "try"),
                                   indent=9))  # fmt: skip
        elif not is_bare(row):
            words = f" key {row['name']}: who can open the backups is not known until they have been read."
            blocks.append(text(screen.mark("warn"), words))
        else:
            blocks += [
                text(screen.mark("warn"), f" key {row['name']}: no recovery recipient. "
                     "If this machine is lost, nobody can read the backups."),
                text(Cell("fix  ", "dim"), Cell(f"dbguardctl key recovery-sheet {row['name']}", "try"), indent=4),
            ]  # fmt: skip
    return blocks


def database(row: Json, screen: Screen, now: datetime, zone: tzinfo | None) -> list[Block]:
    """Return what `status NAME` shows of one database."""
    style = _STYLES.get(row["state"], "warn")
    since, to = row["recoverable_since_at"], row["recoverable_to_at"]
    window = _nothing(row) if not to else f"{when(to, now, zone)} ({_age(to, now)} ago)"
    if since and since != to:
        window += f", the oldest proven backup is from {when(since, now, zone)}"
    proven = "never"
    if row["last_proven_at"]:
        proven = when(row["last_proven_at"], now, zone)
        proven += f", backup {row['proven_backup']}" if row["proven_backup"] else ""
    goals = [f"lose at most {span(row['rpo_seconds'])}"] if row["rpo_seconds"] else []
    goals += [f"restore within {span(row['rto_seconds'])}"] if row["rto_seconds"] else []
    rows: list[tuple[Cell | str, ...]] = [
        ("could restore to", window),
        ("proven", proven),
        ("a restore takes", f"about {span(row['restore_seconds'])}" if row["restore_seconds"] else "unknown"),
        ("goals", ", ".join(goals) or "none in the policy"),
        ("next", _next(row, now, zone)),
        ("backups", f"{row['backups']}, database {size(row['source_bytes'])}"),
    ]
    if left := left_out(row):
        rows.append(("left out", left))
    if row["continuous"]:
        followed = f"followed; dbguardctl list {row['name']} shows which seconds can be restored"
        if not row["backups"]:
            followed = "not followed yet: that begins with the first backup"
        elif row.get("log_problem") or not to:
            followed = "see below"
        rows.insert(1, ("its log", followed))
        rows.insert(3, ("its log proven", log_proof(row.get("log_proof"), now, zone)))
    if row["running_job"]:
        rows.append(("running job", Cell(f"dbguardctl job watch {row['running_job']}", "try")))
    blocks: list[Block] = [
        text(screen.mark(style), " ", Cell(row["name"], "strong"), f" \N{MIDDLE DOT} {row['engine']} \N{MIDDLE DOT} ",
             Cell(row["state"], style)),
        text(f"Times are {zone_name(now, zone)}."),
        Line(),
        Table((), rows, indent=2),
    ]  # fmt: skip
    wrong = trouble(row, screen, now, zone)
    return blocks + ([Line(), *wrong] if wrong else [])


def _age(moment: str, now: datetime) -> str:
    parsed = parse_utc(moment)
    return span((now - parsed).total_seconds()) if parsed else "unknown"
