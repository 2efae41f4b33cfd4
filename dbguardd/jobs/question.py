"""Questions to the past: query, get, diff, undelete. The backup is chosen as for a restore.

It is read in place; or, if only a server can read it, restored into the private directory of the job, and deleted with
that. The findings are the answer, which goes past the job to whoever asked. The result of the job contains no rows: it
is stored, logged and shown to all who may read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from dbguardd.engines.base import Bounds, ScratchRestore, ServerQuestions
from dbguardd.errors import GuardError, NoSpace, SourceDamaged, Unsupported, Usage, of_file
from dbguardd.flow import LOG, NO_TABLE, ONLY_WHOLE, Pages
from dbguardd.frozen import frozen
from dbguardd.jobs.base import Job, Result, Run, instant
from dbguardd.jobs.choose import failure_of, newest_proofs
from dbguardd.jobs.moment import Moment, opened, reach
from dbguardd.jobs.room import check_staging
from dbguardd.jobs.verify import DAMAGE, record_damage
from dbguardd.repository import Backup, Tree
from dbguardd.requests import Diff, Get, Query, Undelete
from dbguardd.states import Grade
from dbguardd.verbs import has_engine_half

_ANSWER_BYTES = 64 << 20
_PART = 2  # a table may take 1/this of the free space where answers are kept
_MOST_ROWS, _MOST_SECONDS = 1_000_000, 86_400
_STREAM = "database"
_LOOKED_AT = 100  # backups that are searched for a table that another one lacks


@frozen
class _Written:
    """The answer in the unnamed file that the daemon has opened for it; a stream of bytes, not a record."""

    run: Run
    file: int

    def write(self, data: bytes, /) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.file, rest) :]
        except OSError as error:
            problem = of_file(f"{self.run.name}: the answer cannot be kept", error)
            if isinstance(problem, NoSpace):
                problem.hints = (f"df -h {shlex.quote(str(self.run.spec['state']))}",)
            raise problem from error

    def beat(self) -> None:
        self.run.progress("answer", 0, None)


def query(run: Run, request: Query) -> Result:
    """Answer one SELECT. Raises NotFound, Usage, Unsupported, TooCostly, SourceDamaged, Damaged."""
    bounds = _bounds(run, request.rows, request.seconds, _ANSWER_BYTES)
    moment = chosen(run, request.backup, request.at)
    with _asking(run, (moment,), request.in_database) as (asked,):
        facts = questions(run).query(asked, request.sql, _about(bounds, run, moment), answer(run))
    return {**source(run, moment), **facts}


def get(run: Run, request: Get) -> Result:
    """Extract one table. Raises like query()."""
    if not request.table:
        raise Usage(f"{run.name}: which table?", hints=[f"dbguardctl get {run.name} --table TABLE"])
    bounds = _bounds(run, 1, request.seconds, _room(run))
    moment = chosen(run, request.backup, request.at)
    with _offering(run, moment, request.in_database), _asking(run, (moment,), request.in_database) as (asked,):
        facts = questions(run).table(asked, request.table, request.format, _about(bounds, run, moment), answer(run))
    return {**source(run, moment), "table": request.table, **facts}


def diff(run: Run, request: Diff) -> Result:
    """Compare two backups. Raises like query()."""
    if not request.older:
        raise Usage(f"{run.name}: compared with which backup?", hints=[f"dbguardctl diff {run.name} --from TIME"])
    bounds = _bounds(run, request.rows, request.seconds, _ANSWER_BYTES)
    older, newer = (chosen(run, *_said(moment)) for moment in (request.older, request.newer))
    about = Bounds(_both(run, older, newer), bounds.seconds, bounds.rows, bounds.bytes)
    with _asking(run, (older, newer), request.in_database) as (before, after):
        facts = questions(run).difference(before, after, request.table, about, answer(run))
    return {"older": source(run, older), "newer": source(run, newer), **facts}


def undelete(run: Run, request: Undelete) -> Result:
    """Find rows that are missing or changed in the newest backup. Nothing is put back. Raises like query()."""
    if not request.table:
        raise Usage(f"{run.name}: of which table?", hints=[f"dbguardctl undelete {run.name} --table TABLE"])
    if not (request.backup or request.at):
        raise Usage(f"{run.name}: which backup has the rows? Say --at or --id", hints=[f"dbguardctl list {run.name}"])
    bounds = _bounds(run, request.rows, request.seconds, _room(run) if request.sql else _ANSWER_BYTES)
    older, newer = chosen(run, request.backup, request.at), chosen(run, "", "")
    _check_two(run, older, newer)
    about = Bounds(_both(run, older, newer), bounds.seconds, bounds.rows, bounds.bytes)
    search, form = (request.table, request.where), "sql" if request.sql else "rows"
    form = f"changed {form}" if request.changed else form
    asking = _asking(run, (older, newer), request.in_database)
    with _offering(run, older, request.in_database), _offering_whole(run, request), asking as (before, after):
        facts = questions(run).missing((before, after), search, form, about, answer(run))
    of = {"older": source(run, older), "newer": source(run, newer)}
    return {**of, "table": request.table, "changed": request.changed, **facts}


@contextmanager
def _offering(run: Run, moment: Moment, database: str) -> Iterator[None]:
    """Add to an error about a table missing from a backup which earlier backup had it, judging by fingerprints."""
    try:
        yield
    except Usage as error:
        table = str(error.facts.get(NO_TABLE, ""))
        earlier = (one for one in run.repository.backups(run.name) if table and one.created_at < moment.at)
        for backup in islice(earlier, _LOOKED_AT):
            if _has(run.repository.fingerprint(backup.id) or {}, table, database):
                error.detail += f"\nBackup {backup.id} of {instant(backup.created_at)} had it."
                where = ["--database", database] if database else []
                words = ["dbguardctl", "get", run.name, "--table", table, *where, "--id", backup.id]
                error.hints = (shlex.join([*words, "--to", "table.sql"]), *error.hints)
                break
        raise


@contextmanager
def _offering_whole(run: Run, request: Undelete) -> Iterator[None]:
    """Add to an error about a table whose rows cannot be compared the commands that show and export all of it."""
    try:
        yield
    except Unsupported as error:
        if table := str(error.facts.get(ONLY_WHOLE, "")):
            since = ["--id", request.backup] if request.backup else ["--at", request.at]
            of = ["--table", table, *(["--database", request.in_database] if request.in_database else [])]
            error.hints = (shlex.join(["dbguardctl", "get", run.name, *of, *since, "--to", "table.sql"]), *error.hints)
        raise


def _check_two(run: Run, older: Moment, newer: Moment) -> None:
    """Raise Usage for one state that would be compared with itself: "nothing is missing" would mislead."""
    if older.backup.id == newer.backup.id and older.until == newer.until:
        raise Usage(
            f"{run.name}: backup {older.backup.id} would be compared with itself",
            detail="No newer backup is known, and the live database is not compared: first make a backup of it.",
            hints=[f"dbguardctl backup {run.name}"],
        )


def _has(fingerprint: Mapping[str, Any], table: str, database: str) -> bool:
    """Return whether a table is in a fingerprint, whose names may be quoted and include a database and a schema."""
    names = [str(name).replace('"', "").lower() for name in fingerprint.get("tables", ())]
    asked = table.replace('"', "").lower()
    return any(
        f".{name}".endswith(f".{asked}") and name.startswith(f"{database.lower()}." if database else "")
        for name in names
    )


def _room(run: Run) -> int:
    """Return how many bytes an answer that must be complete may have."""
    room = os.fstatvfs(int(run.spec["answer"]))
    return room.f_bavail * room.f_frsize // _PART


def _both(run: Run, older: Moment, newer: Moment) -> str:
    if older.backup.id == newer.backup.id:  # the same backup, with its log up to two moments
        return f"{run.name}, backup {older.backup.id} at {older.shown} and at {newer.shown}"
    if older.until is None and newer.until is None:
        return f"{run.name}, backups {older.backup.id} and {newer.backup.id}"
    return f"{run.name}, {_named(older)} and {_named(newer)}"


def _named(moment: Moment) -> str:
    """Return the backup that is read; and the moment, if its log is read too."""
    return f"backup {moment.backup.id}" + ("" if moment.until is None else f" at {moment.shown}")


def _said(which: str) -> tuple[str, str]:
    """Return the id and the moment that a text means; one of them is empty."""
    return ("", which) if ":" in which else (which, "")


def chosen(run: Run, id: str, at: str) -> Moment:
    """Return the requested moment, as a restore would choose it."""
    if id and at:
        raise Usage(f"{run.name}: give a backup id or --at, not both")
    moment = reach(run, id, at)
    backup = moment.backup
    if backup.method == "dump" and not _asked_in_server(run):
        raise Unsupported(
            f"{run.name}: backup {backup.id} is a text (method dump), which cannot be asked where it lies",
            detail="Restore it to a new place and ask that copy.",
            hints=[f"dbguardctl restore {run.name} --id {backup.id} --to PLACE"],
        )
    return moment


def questions(run: Run) -> ServerQuestions[Pages | ScratchRestore]:
    """Return the engine's capability to answer questions."""
    if run.questions is None:
        raise Unsupported(f"{run.name}: {run.database['engine']} backups cannot be asked anything")
    return run.questions


def answer(run: Run) -> _Written:
    """Return where the answer goes."""
    return _Written(run, int(run.spec["answer"]))


def source(run: Run, moment: Moment) -> dict[str, Any]:
    """Return the source of an answer, which is as reliable as that backup and the log applied to it.

    Each page that is read of both is authentic. But only a restore compares the sum of all pages: a question reads a
    few of many. A recovered server has no such sum: it verifies its log itself.
    """
    proof = newest_proofs(run).get(moment.backup.id)
    return {
        **moment.plan(),
        "grade": proof.grade if proof else str(Grade.STORED),
        "failure": failure_of(proof) if proof else None,
        "warnings": moment.warnings,
        "sum_compared": None if moment.until is None or _asked_in_server(run) else False,
    }


def _bounds(run: Run, rows: int, seconds: int, most: int) -> Bounds:
    for name, value, limit in (("rows", rows, _MOST_ROWS), ("seconds", seconds, _MOST_SECONDS)):
        if not 1 <= value <= limit:
            raise Usage(f"{run.name}: {name}: 1 to {limit} is expected, not {value}")
    return Bounds(run.name, seconds, rows, most)


def _about(bounds: Bounds, run: Run, moment: Moment) -> Bounds:
    return Bounds(f"{run.name}, {_named(moment)}", bounds.seconds, bounds.rows, bounds.bytes)


class _Noted:
    """Pages that note the damage found in them: another backup may be read at the same time."""

    def __init__(self, tree: Tree, pages: Pages) -> None:
        self.tree, self._pages = tree, pages
        self.size, self.page_size = self._pages.size, self._pages.page_size
        self.damage: GuardError | None = None

    def block(self, number: int) -> bytes:
        try:
            return self._pages.block(number)
        except DAMAGE as error:
            self.damage = error
            raise


def _asked_in_server(run: Run) -> bool:
    """Return whether backups of this engine are restored for questions."""
    return has_engine_half("query", run.database["engine"])


@contextmanager
def _asking(run: Run, moments: Sequence[Moment], database: str) -> Iterator[Sequence[Pages | ScratchRestore]]:
    """Prepare moments for questions, in this order."""
    if database and not _asked_in_server(run):
        raise Usage(f"{run.name}: is one database, so --database names none in it")
    with ExitStack() as stack:
        if _asked_in_server(run):
            yield _brought_back(run, moments, database)
            return
        asked = list[_Noted]()
        for moment in moments:
            asked.append(stack.enter_context(_reading(run, moment, asked[0] if asked else None)))
        yield asked


def _brought_back(run: Run, moments: Sequence[Moment], database: str) -> Sequence[ScratchRestore]:
    """Restore moments into the private directory of the job, after reporting and checking what that needs."""
    backups = [moment.backup for moment in moments]
    proofs = newest_proofs(run)
    known = [proofs[one.id].restore_seconds for one in backups if one.id in proofs]
    seconds = None if len(known) < len(backups) or None in known else round(sum(filter(None, known)), 1)
    size = sum(moment.bytes for moment in moments)
    check_staging(run, backups[0], size, "a question to")
    ids = " and ".join(dict.fromkeys(backup.id for backup in backups))
    run.report("question.restoring", backup=ids, needs_bytes=size, usual_seconds=seconds)
    found = []
    for number, moment in enumerate(moments):
        try:
            with opened(run, moment) as tree:
                place = Path(run.staging) / f"past{number}"
                found.append(questions(run).scratch_restore(tree, place, database, run.progress))
        except DAMAGE as error:
            raise _condemned(run, moment.backup, error) from None
        except (Usage, Unsupported, SourceDamaged) as error:
            error.message = f"{run.name}, backup {moment.backup.id}: {error.message}"
            if isinstance(error, SourceDamaged):  # a proof would say so of the backup
                error.hints = (f"dbguardctl verify {moment.backup.id}", *error.hints)
            raise
    return found


@contextmanager
def _reading(run: Run, moment: Moment, beside: _Noted | None = None) -> Iterator[_Noted]:
    """Open the pages of a moment. Damage found is recorded for its backup, as by a restore."""
    backup, until, shared = moment.backup, moment.until, beside.tree if beside else None
    with ExitStack() as stack:
        try:
            if until is None:
                tree = stack.enter_context(run.repository.tree(backup, beside=shared))
                pages = _Noted(tree, tree.pages(_STREAM))
            else:
                over = stack.enter_context(run.repository.moment(backup, until, beside=shared))
                pages = _Noted(over.base, stack.enter_context(over.pages(_STREAM)))
        except DAMAGE as error:
            raise _condemned(run, backup, error) from None
        try:
            yield pages
        except DAMAGE as error:
            if error is pages.damage:
                _condemned(run, backup, error)
            raise


def _condemned(run: Run, backup: Backup, error: GuardError) -> GuardError:
    if LOG not in error.facts:
        record_damage(run, "question", {backup.id: " ".join((error.code, error.message, error.detail)).strip()})
    error.hints = (f"dbguardctl check {run.name} --data", *error.hints)
    return error


QUERY = Job("query", Query, query)
GET = Job("get", Get, get)
DIFF = Job("diff", Diff, diff)
UNDELETE = Job("undelete", Undelete, undelete)
