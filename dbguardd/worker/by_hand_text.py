"""The output of a job by hand for people: how it ended, the plan of a dry run, or an error and what to do.

It is worded like dbguardctl's output; that is a client, while this works without a daemon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dbguardd.errors import GuardError
from dbguardd.humanize import count, hint_word, humanized, size, span

Json = Mapping[str, Any]

_OUTCOMES = {"ok": "ok", "failed": "FAIL", "inconclusive": "UNSURE", "not configured": "-"}
_HERE = {
    "dbguardctl restore undo ": "undo ",
    "dbguardctl backup ": "backup ",
    "dbguardctl verify ": "verify ",
    "dbguardctl restore ": "restore ",
    "dbguardctl check ": "check ",
    "dbguardctl prune ": "expire ",
}
"""The commands of dbguardctl, and the verbs that do the same without a daemon."""


def of_result(verb: str, request: Json, made: Json, seconds: float) -> Iterator[str]:
    """Yield the lines for a finished job; the last one is the summary."""
    name = request.get("database") or f"storage {request.get('storage')}"
    took = f" ({span(seconds)} in all)"
    if (answered := _ANSWERED.get(verb)) is not None:
        yield from answered(made)
        return
    match verb:
        case "backup":
            yield from _backup(made, took)
        case "restore" if request.get("dry_run"):
            yield from _plan(str(name), made["plan"])
        case "restore" | "undo":
            yield from _restored(str(name), made, took)
        case "verify":
            yield from _proven(str(name), made, took)
        case "standby" | "promote":
            yield from _kept(str(name), made, took, ended=verb == "promote")
        case "check":
            yield from _findings(made["findings"])
            bad = sum(row["outcome"] in ("failed", "inconclusive") for row in made["findings"])
            verdict = f"{bad} of {len(made['findings'])} checks did not pass" if bad else "all checks passed"
            yield f"{'FAIL' if bad else 'ok'}  {name}: {verdict}{took}"
        case "expire":
            yield from _expired(str(name), made, dry=bool(request.get("dry_run")), took=took)
        case _:
            yield from _swept(str(name), made, took)


def status(verb: str, made: Json) -> int:
    """Return the exit status of a finished job: 4 for damage, 3 if a check did not pass, else 0."""
    if verb == "undo":
        return 0  # the state that is put back has no fingerprint to compare; damage would have failed the job
    if made.get("damaged"):
        return 4
    proof = made.get("proof") or {}
    found = [*made.get("findings", ()), *proof.get("findings", ())]
    short = proof.get("grade", "proven") != "proven" or (verb == "promote" and made["warnings"])
    return 3 if short or any(row["outcome"] in ("failed", "inconclusive") for row in found) else 0


def of_report(event: str, facts: Json) -> str | None:
    """Return the line for an event that people should see before the end of a job; None for others."""
    match event:
        case "backup.stored":
            return f"stored  backup {facts['id']}: durable, and read back from the storage"
        case "repository.created":
            return f"note  storage {facts['storage']} was empty: a new repository was created in it"
        case "standby":
            return _of_standby(facts)
        case "parent.unreadable":
            return f"note  the parent backup cannot be read, so everything is stored again: {facts['problem']}"
        case "safety.unreadable":
            return f"FAIL  the safety copy {facts['backup']} cannot be read; an undo may fail: {facts['problem']}"
        case "recovery.added":
            return f"note  recovery recipient {facts['recipient']} can open the repository from now on"
    return None


def _of_standby(facts: Json) -> str | None:
    match facts["state"]:
        case "made":
            return f"made  {facts['target']} from backup {facts['backup']}, as of {facts['at']}: for reading only"
        case "rebased":
            between = f"between {facts['from_at']} and {facts['until_at']}"
            return f"GAP  the copy skips all moments {between}: {facts['because']}"
        case "waiting":
            return f"note  the copy stays as of {facts['at']}: {facts['why']}"
    return None


def of_error(error: GuardError, program: Sequence[str]) -> Iterator[str]:
    """Yield the lines of an error; `program` is the command line of dbguardd up to the verb."""
    yield f"error[{error.code}]: {error.message}"
    for line in [*humanized(error.detail).splitlines(), error.meaning]:
        yield f"       {line}".rstrip()
    if error.hints:
        yield from (f"       {hint_word(hint)}  {here(hint, program)}" for hint in error.hints)
    elif advice := error.advice_for():
        yield f"       try  {advice}"


def here(hint: str, program: Sequence[str]) -> str:
    """Return a hint with a command for the daemon replaced by one that works without it."""
    from shlex import join  # noqa: PLC0415 - only on the way to an error

    for asked, verb in _HERE.items():
        if hint.startswith(asked):
            return f"{join(program)} {verb}{hint.removeprefix(asked).replace('--id ', '--backup ')}"
    return hint


def _backup(made: Json, took: str) -> Iterator[str]:
    backup, blocked = made["backup"], made["facts"].get("blocked_seconds")
    stored = f"{size(backup['source_bytes'])}, {size(backup['stored_bytes'])} new in {backup['storage']}"
    yield f"  {backup['kind']} {stored}"
    if blocked is not None:
        yield f"  the application was never blocked{f' longer than {span(blocked)}' if blocked else ''}"
    if made["facts"].get("read_by") == "replication":
        yield "  the server sent its files over a replication connection; no file was read here"
    if "proof" in made:
        yield from _proven(backup["database"], made, took)
    else:
        yield f"ok  backup {backup['id']} of {backup['database']} is stored, not yet proven{took}"


def _proven(name: str, made: Json, took: str) -> Iterator[str]:
    proof = made["proof"]
    yield from _findings([*proof["findings"], *filter(None, [made.get("log")])])
    if made.get("plain_copy"):
        yield f"  plain copy {made['plain_copy']}"
    if proof["grade"] == "proven":
        yield f"proven  backup {proof['id']} of {name} can be restored in {span(proof['restore_seconds'])}{took}"
    else:
        yield f"UNSURE  backup {proof['id']} of {name} is {proof['grade']}, not proven{took}"


def _plan(name: str, plan: Json) -> Iterator[str]:
    takes, more = plan["takes_seconds"], ", plus the replay of its log" if plan["log_bytes"] else ""
    yield f"Would restore {name} as of {plan['created_at']}"
    yield f"  from   backup {plan['backup']}, {'FAILED' if plan['failure'] else plan['grade']}"
    if plan["segments"]:
        much = f", {size(plan['log_bytes'])}" if plan["log_bytes"] is not None else ""
        end = "".join(f", to {plan[place]}" for place in ("lsn", "name") if plan[place])
        yield f"  and    {count(plan['segments'], 'segment')} of its log{much}{end}"
    yield from _warnings(plan)
    yield f"  to     {plan['to']}{'   (replaces the live database)' if plan['in_place'] else ''}"
    if plan["undo_days"]:
        yield f"  before the current state is stored as a backup; undo puts it back, for {plan['undo_days']} days"
    for one in plan["tablespaces"]:
        yield f"  space  {one['name']} ({one['from']}) to {one['to']}"
    kept, room = plan["undo_bytes"], plan["undo_free_bytes"]
    grows = "" if kept is None else " more than it takes up now"
    for one in plan["disks"]:
        yield f"  needs  {size(one['needs_bytes'])}{grows}, {size(one['free_bytes'])} free in {one['path']}"
    if kept:
        yield f"  store  up to {size(kept)} for the current state, {'?' if room is None else size(room)} may be used"
    yield f"  takes  {'unknown: no restore has been measured' if takes is None else f'about {span(takes)}{more}'}"
    yield "Nothing was done."


def _warnings(plan: Json) -> Iterator[str]:
    yield from (f"  note   {line}" for line in plan.get("warnings", ()))


def _restored(name: str, made: Json, took: str) -> Iterator[str]:
    yield from _findings(made["findings"])
    yield from _warnings(made["plan"])
    if made.get("safety_copy"):
        back = f"run undo {name} --confirm {name} puts it back"
        yield f"  the previous state is kept as backup {made['safety_copy']}; {back}"
    plan = made["plan"]
    more = f" and {count(plan['segments'], 'segment')} of its log" if plan["segments"] else ""
    yield f"ok  {name} as of {plan['created_at']} (backup {plan['backup']}{more}) restored to {made['target']}{took}"


def _kept(name: str, made: Json, took: str, *, ended: bool) -> Iterator[str]:
    yield from _findings(made.get("findings", ()))
    yield from _warnings(made)
    if ended:
        yield f"ok  {name} as of {made['at']} is at {made['target']}, an ordinary database from now on{took}"
    else:
        yield f"ok  {name}: {made['target']} is as of {made['at']}; run it again to continue{took}"


def _expired(name: str, made: Json, *, dry: bool, took: str) -> Iterator[str]:
    plan = made["plan"]
    for rows, word in ((plan["keep"], "keep"), (plan["drop"], "expire" if dry else "expired")):
        yield from (f"  {row['id']}  {word}  {', '.join(row['because'])}" for row in rows)
    if plan["breaker"]:
        yield f"  {plan['breaker']}; if that is right: --confirm {name}"
    stay, go = len(plan["keep"]), len(plan["drop"])
    yield (
        f"ok  {name}: "
        + (f"{go} would expire, {stay} kept; nothing was deleted" if dry else f"{go} expired, {stay} kept")
        + took
    )


def _answered(made: Json) -> Iterator[str]:
    yield from _warnings(made)
    more = f"; the answer is cut off, there are more rows (limit: {made['more']})" if made.get("more") else ""
    yield f"ok  {count(made['rows'], 'row')} from {_of(made)}{_asked(made)}{more}"


def _compared(made: Json) -> Iterator[str]:
    yield from _warnings(made["older"])
    yield from _warnings(made["newer"])
    yield f"  from  {_of(made['older'])}"
    yield f"  to    {_of(made['newer'])}{_asked(made)}"
    counts = ", ".join(f"{count(made[change], 'row')} {change}" for change in ("added", "removed", "changed"))
    unknown = f", {count(made['not_compared'], 'table')} not compared" if made["not_compared"] else ""
    yield f"ok  {made['differing']} of {count(made['tables'], 'table')} differ: {counts}{unknown}"


def _missing(made: Json) -> Iterator[str]:
    yield from _warnings(made["older"])
    yield f"  in    {_of(made['older'])}"
    yield f"  {'other in' if made['changed'] else 'not in'}  {_of(made['newer'])}{_asked(made)}"
    what = "with other values" if made["changed"] else "missing"
    yield f"ok  {count(made['rows'], 'row')} of {made['table']} {what}; nothing was put back"
    if made.get("differing"):
        yield f"  {count(made['differing'], 'row')} with other values: add --changed"


def _asked(made: Json) -> str:
    return f", database {made['in_database']}" if made.get("in_database") else ""


def _of(made: Json) -> str:
    return f"backup {made['backup']} of {made['created_at']}, {'FAILED' if made['failure'] else made['grade']}"


def _swept(name: str, made: Json, took: str) -> Iterator[str]:
    if made["marked"]:
        marked = f"{count(made['marked'], 'object')} ({size(made['marked_bytes'])})"
        yield f"  {marked} no longer needed, to be freed after the grace period"
    if made["young"]:
        young = f"{count(made['young'], 'object')} ({size(made['young_bytes'])})"
        yield f"  {young} in no backup, too new to delete: from a failed job or a running one"
    if made["next_at"]:
        yield f"  more can be freed after {made['next_at']}"
    freed = f"{size(made['freed_bytes'])} in {count(made['objects'], 'object')}"
    if made["dry_run"]:
        done = f"{freed} would be freed; nothing was deleted" if made["objects"] else "nothing could be freed now"
    else:
        done = f"freed {freed}"
    yield f"ok  {name}: {done}{took}"


def _findings(rows: Sequence[Json]) -> Iterator[str]:
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        words = humanized(row["detail"]) or (row["outcome"] if row["outcome"] == "not configured" else "")
        yield f"  {row['name']:<{min(40, width)}}  {_OUTCOMES.get(row['outcome'], row['outcome']):<8}{words}".rstrip()


_ANSWERED = {"query": _answered, "get": _answered, "diff": _compared, "undelete": _missing}
"""How to report the answers of questions, besides the answers themselves."""
