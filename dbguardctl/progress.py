"""Shows the progress of a job: bars on a terminal, a line for each step and tenth elsewhere, nothing with --json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from dbguardctl.session import Session
from dbguardd.humanize import safe, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Json = dict[str, Any]
Look = Callable[[Json], None]

_TERMINAL_SECONDS, _PLAIN_SECONDS, _SILENT_SECONDS = 0.2, 1.0, 20.0


def looker(session: Session) -> tuple[AbstractContextManager[Look], float]:
    """Return what shows the rows of a job, and how many seconds to wait between two of them."""
    if session.json or session.quiet:
        return nullcontext(lambda row: None), _SILENT_SECONDS
    screen = session.err
    if screen.stream.isatty() and screen.utf8:
        return _Bars(session), _TERMINAL_SECONDS
    return nullcontext(_Lines(session).look), _PLAIN_SECONDS


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
            amount = f" {tenth * 10} % of {size(total)}" if tenth else f" of {size(total)}" if total else ""
            self._session.say(f"  {row['step']}{amount}")


class _Bars:
    """A bar for each step of a job."""

    def __init__(self, session: Session) -> None:
        from rich import progress  # noqa: PLC0415 - rich takes 30 ms to import and only a terminal needs it

        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress = progress.Progress(
            progress.TextColumn("  {task.description:<12}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.fields[amount]}", markup=False),
            progress.TimeElapsedColumn(),
            console=session.err.console(),
        )

    def __enter__(self) -> Look:
        self._progress.start()
        return self._look

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _look(self, row: Json) -> None:
        step = safe(row["step"]) if row["state"] == "running" else ""
        for name, task in self._tasks.items():
            bar = self._progress.tasks[task]
            if name != step and not bar.finished and row["state"] in ("running", "done"):  # a failed bar stays short
                whole = bar.total or bar.completed
                self._progress.update(task, total=whole or 1, completed=whole or 1, amount=size(whole) if whole else "")
        if not step:
            return
        total, done = row["total_bytes"], row["done_bytes"]
        amount = f"{size(done)} of {size(total)}" if total else size(done) if done else ""
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total, amount=amount)
        self._progress.update(self._tasks[step], total=total, completed=done, amount=amount)
