"""Starting a job and waiting for it: the job lives in the daemon, this only looks on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from dbguardctl.screen import Cell
from dbguardctl.session import Session
from dbguardctl.views.jobs import FINAL, finished, part_done
from dbguardctl.words import size, span
from dbguardd.errors import DaemonUnreachable, GuardError, Internal, StillRunning, from_problem

if TYPE_CHECKING:
    from rich.progress import Progress

Json = dict[str, Any]
Look = Callable[[Json], None]

_TERMINAL_WAIT, _PLAIN_WAIT, _SILENT_WAIT = 0.2, 1.0, 20.0


def start(session: Session, verb: str, fields: Mapping[str, Any]) -> Json:
    """Ask for a job and return its row. Asked again after a lost answer, the daemon still makes one job only."""
    key = os.urandom(16).hex()
    try:
        answer = session.daemon.post("jobs", verb, body=fields, key=key)
    except DaemonUnreachable:
        answer = session.daemon.post("jobs", verb, body=fields, key=key)
    return dict(answer["job"])


def wait(session: Session, row: Json, timeout: float | None = None) -> Json:
    """Return the job when it has ended, showing how far it is meanwhile.

    Raises StillRunning after `timeout` seconds, DaemonUnreachable. Ctrl-C leaves the job alone.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    looker, pause = _looker(session)
    try:
        with looker as look:
            while row["state"] not in FINAL:
                rest = pause if deadline is None else min(pause, deadline - time.monotonic())
                if rest <= 0:
                    raise StillRunning(
                        f"{_what(row)}: not done after {span(timeout)}",
                        detail=f"It is {row['state']}: {part_done(row)}.",
                        hints=[f"dbguardctl job watch {row['id']}"],
                        facts={"job": row["id"]},
                    )
                row = session.daemon.get("jobs", row["id"], wait=round(rest, 3))["job"]
                look(row)
    except KeyboardInterrupt:
        session.say(f"{_what(row)} goes on. Watch it: ", Cell(f"dbguardctl job watch {row['id']}", "try"),
                    "   stop it: ", Cell(f"dbguardctl job cancel {row['id']}", "try"))  # fmt: skip
        raise
    return row


def _what(row: Json) -> str:
    return f"{row['database'] or 'dbguard'}: {row['verb']} {row['id']}"


def failure(row: Json) -> GuardError | None:
    """Return why a job that ended did not succeed; None if it did."""
    if row["state"] == "done":
        return None
    if row["problem"]:
        error = from_problem(row["problem"])
        error.facts.setdefault("job", row["id"])
        return error
    return Internal(f"{_what(row)}: {row['state']} without a reason", hints=[f"dbguardctl job show {row['id']}"])


def run(
    session: Session,
    verb: str,
    fields: Mapping[str, Any],
    *,
    name: str,
    no_wait: bool = False,
    timeout: float | None = None,
) -> int:
    """Start a job, wait for it, print what it achieved and return the exit status. `name`: the command, for JSON."""
    row = start(session, verb, fields)
    if not no_wait:
        session.say(
            f"{row['database'] or 'dbguard'}: {verb} {row['id']} {'started' if row['state'] != 'queued' else 'queued'}"
        )
        row = wait(session, row, timeout)
    return tell(session, row, name=name)


def tell(session: Session, row: Json, *, name: str) -> int:
    """Print a job as it is now and return the exit status; raise its problem if it has failed."""
    screen = session.out
    answer = {**(row["result"] or {}), "schema": f"dbguard.{name}/1", "job": row}
    if row["state"] not in FINAL:
        if session.json:
            session.print_json(answer)
        else:
            screen.stream.write(f"{row['id']}\n")
        return 0
    if error := failure(row):
        if session.json:
            session.print_json(answer)
        raise error
    if session.json:
        session.print_json(answer)
    else:
        screen.show(finished(row, session.now, session.zone))
    return verdict(row)


def verdict(row: Json) -> int:
    """Return the exit status of a job that is done: 3 if a check failed or a verification stopped short of proven."""
    result = row["result"] or {}
    outcomes = {found.get("outcome") for found in result.get("findings") or () if isinstance(found, dict)}
    if outcomes & {"failed", "inconclusive"} or result.get("attention"):
        return 3
    if row["verb"] == "verify":
        proof = result.get("proof")
        grade = (proof if isinstance(proof, dict) else result).get("grade")
        return 0 if grade in (None, "proven") else 3
    return 0


def _looker(session: Session) -> tuple[AbstractContextManager[Look], float]:
    if session.json or session.quiet:
        return nullcontext(lambda row: None), _SILENT_WAIT
    screen = session.err
    if screen.rich and screen.stream.isatty():
        return _Bars(session), _TERMINAL_WAIT
    return nullcontext(_Lines(session).look), _PLAIN_WAIT


class _Lines:
    """One line for each step and each tenth of it: for logs and pipes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._said = ("", -1)

    def look(self, row: Json) -> None:
        total = row["total_bytes"]
        tenth = row["done_bytes"] * 10 // total if total else 0
        if row["step"] and row["state"] == "running" and (row["step"], tenth) != self._said:
            self._said = (row["step"], tenth)
            amount = f" {tenth * 10} % of {size(total)}" if total else ""
            self._session.say(f"  {row['step']}{amount}")


class _Bars:
    """A bar for each step, on a terminal."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tasks: dict[str, Any] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> Look:
        from rich import progress  # noqa: PLC0415 - rich costs 30 ms and only a terminal needs it

        self._progress = progress.Progress(
            progress.TextColumn("  {task.description:<12}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.fields[amount]}", markup=False),
            progress.TimeElapsedColumn(),
            console=self._session.err.console(),
        )
        self._progress.start()
        return self._look

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _look(self, row: Json) -> None:
        bars = self._progress
        if bars is None:
            return
        step = row["step"] if row["state"] == "running" else ""
        for name, task in self._tasks.items():
            if name != step and not bars.tasks[task].finished:
                bars.update(task, total=bars.tasks[task].completed or 1, completed=bars.tasks[task].completed or 1)
        if not step:
            return
        total, done = row["total_bytes"], row["done_bytes"]
        amount = f"{size(done)} of {size(total)}" if total else size(done) if done else ""
        if step not in self._tasks:
            self._tasks[step] = bars.add_task(_encodable(step), total=total, amount=amount)
        bars.update(self._tasks[step], total=total, completed=done, amount=amount)


def _encodable(words: str) -> str:
    return words if words.isprintable() else ascii(words)
