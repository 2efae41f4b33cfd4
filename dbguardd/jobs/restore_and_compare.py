"""Writes a backup, or a moment, to a place, and reads it through its engine: it must equal what was backed up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dbguardd.engines.base import REPLACED, DeltaRestore, Examination, Finding
from dbguardd.errors import Cancelled, GuardError, ProofFailed, ToolMissing, Unsupported, WorkerDied
from dbguardd.flow import LOG
from dbguardd.humanize import OVERWRITING
from dbguardd.jobs.base import Run, shortened
from dbguardd.jobs.moment import Moment, opened
from dbguardd.jobs.target import elsewhere, is_server
from dbguardd.jobs.verify import DAMAGE, record_damage, same_content
from dbguardd.repository import Backup, Tree
from dbguardd.states import SAFETY_NOTE


def delta_restore(run: Run) -> DeltaRestore:
    """Return the engine's capability to write over the live database. Raises Unsupported."""
    if run.delta_restore is None:
        raise Unsupported(f"{run.name}: is not restored in place")
    return run.delta_restore


@contextmanager
def replaced(run: Run) -> Iterator[None]:
    """Add to every error inside the block that the live database was overwritten.

    Not if a half of the worker died, or was told to stop: whoever started it adds that.
    """
    try:
        yield
    except (Cancelled, WorkerDied):
        raise
    except GuardError as error:
        if not error.facts.get(REPLACED):  # else the engine has said it
            error.facts[REPLACED] = True
            error.detail = f"{error.detail}\n{OVERWRITING}".lstrip()
        raise


def restore_and_compare(
    run: Run,
    moment: Moment,
    target: Path,
    hints: Sequence[str],
    others: Mapping[str, str] | None = None,
    *,
    in_staging: bool = False,
    over: bool = False,
    there: Backup | None = None,
) -> tuple[list[Finding], Sequence[str]]:
    """Restore to `target` and read it once through the engine; return the findings, and the permissions that it lacks.

    Raises ProofFailed if it differs from what was backed up, or was already damaged then: a safety copy has no
    fingerprint and keeps its bytes whatever they are. With `over`, `target` is the live database, which is overwritten;
    `there` is a backup of it made just now.
    """
    target, lost = _write(run, moment, target, others, in_staging=in_staging, over=over, there=there)
    with replaced(run) if over else nullcontext():
        return _found(run, moment, target, hints, in_staging=in_staging), lost


def _found(run: Run, moment: Moment, target: Path, hints: Sequence[str], *, in_staging: bool) -> list[Finding]:
    """Return the findings about the copy. Raises ProofFailed."""
    examined, compared = _compare(run, moment, target, in_staging=in_staging)
    then = [Finding("what to do next", "ok", str(examined.facts["next"]))] if "next" in examined.facts else []
    findings = shortened([*examined.findings, compared, *then])
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        compares = run.repository.fingerprint(moment.backup.id) is not None
        what = "differs from what was backed up" if compares else "equals what was backed up, which was already damaged"
        raise ProofFailed(
            f"{run.name}: the restored copy of {moment.backup.id} {what}",
            detail="; ".join(f"{finding.name}: {finding.detail}" for finding in failed),
            hints=[f"dbguardctl list {run.name}", *hints],
        )
    return findings


def _write(
    run: Run,
    moment: Moment,
    target: Path,
    others: Mapping[str, str] | None,
    *,
    in_staging: bool,
    over: bool,
    there: Backup | None,
) -> tuple[Path, Sequence[str]]:
    """Write the copy, durably; return where it is, and which permissions of the original it lacks."""
    started, backup = run.monotonic(), moment.backup
    try:
        with _known(run, there) as known, opened(run, moment, known) as tree:
            lost: Sequence[str] = ()
            if over:
                target = delta_restore(run).overwrite(tree, target, run.progress)
            else:
                with nullcontext() if in_staging else elsewhere(backup, target):
                    lost = run.snapshots.restore(tree, target, run.progress, *([others] if others else []))
    except DAMAGE as error:
        if LOG in error.facts:
            error.hints = (f"dbguardctl restore {run.name} --id {backup.id}  # the backup alone", *error.hints)
            raise
        record_damage(run, "restore", {backup.id: " ".join((error.code, error.message, error.detail)).strip()})
        error.hints = (f"dbguardctl restore {run.name} --dry-run", f"dbguardctl check {run.name} --data", *error.hints)
        raise
    seconds = round(run.monotonic() - started, 3)
    run.report("restore.written", backup=backup.id, target=str(target), seconds=seconds)
    return target, lost


@contextmanager
def _known(run: Run, there: Backup | None) -> Iterator[Tree | None]:
    """Open the backup, made just now, of what is overwritten; report what cannot be read of it."""
    if there is None:
        yield None
        return
    with run.repository.tree(there) as tree:
        try:
            yield tree
        finally:
            for doubt in tree.doubts:
                run.report("safety.unreadable", backup=there.id, code=doubt.code, problem=doubt.message)


def _compare(run: Run, moment: Moment, target: Path, *, in_staging: bool) -> tuple[Examination, Finding]:
    """Read the copy through the engine; return what that found, and whether it equals what was backed up."""

    def comparing(step: str, done_bytes: int, total_bytes: int | None) -> None:
        # An impatient user may use a file already; in a directory our server works until this is over.
        there = step if in_staging or is_server(run) else f"written to {target}, compare"
        run.progress(there, done_bytes, total_bytes)

    try:
        examined = run.snapshots.examine(target, (), comparing)
    except (ToolMissing, Unsupported) as error:  # a new machine lacks what reads it; the files are whole
        if in_staging:
            raise
        examined = _unread(run, target, error)
    if moment.until is not None:
        return examined, Finding("log since the backup", "ok", moment.describe_log())
    expected = run.repository.fingerprint(moment.backup.id)
    compared = same_content(examined, expected, moment.backup)
    if in_staging and expected is None and moment.backup.note == SAFETY_NOTE:  # there is nothing to compare
        compared = Finding(compared.name, "not configured", "a safety copy is restored as stored")
    return examined, compared


def _unread(run: Run, target: Path, error: GuardError) -> Examination:
    """Return the examination of a restored database that nothing on this machine can read."""
    lacks = " ".join([error.message, *(f"({hint})" for hint in error.hints)])
    then = {"next": f"{target} holds all that was backed up, and a text with the commands to load it into a server"}
    return Examination([Finding("test restore", "inconclusive", lacks)], None, then if is_server(run) else {})
