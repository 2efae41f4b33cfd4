"""Check everything that a restore will need, without restoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dbguardd.engines.base import Finding
from dbguardd.errors import Cancelled, GuardError
from dbguardd.jobs.base import Job, Result, Run, brief, instant
from dbguardd.wire import Check, Grade, to_json

_NAMED = 20  # so many of the backups that need a damaged object are named


def check(run: Run, request: Check) -> Result:
    """Look at database, storage, keys and repository; with `data`, at every stored byte. Findings, worst last."""
    findings: list[Finding] = []
    for name, look in (("database", _database), ("storage", _storage), ("key", _key), ("proof", _proof)):
        findings += _guarded(name, lambda look=look: look(run))  # type: ignore[misc]
    stored = _guarded("repository", lambda: _repository(run, request.data))
    findings += stored
    for finding in findings:
        (told,) = brief([finding])
        run.report("check.finding", name=told.name, outcome=told.outcome, detail=told.detail)
    failed = sum(finding.outcome == "failed" for finding in findings)
    damaged = sum(finding.outcome == "failed" for finding in stored)
    return {"findings": to_json(brief(findings)), "failed": failed, "damaged": damaged, "data": request.data}


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run one part; an error of ours is its finding, and the other parts still run."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except Cancelled:
        raise
    except GuardError as error:
        found.append(
            Finding(name, "failed", " ".join(part for part in (error.code, error.message, error.detail) if part))
        )
    return found


def _database(run: Run) -> Iterator[Finding]:
    probe = run.snapshots.probe()
    yield Finding("database", "ok", f"{run.database['engine']} {probe.version}, {probe.size_bytes} bytes")
    for warning in probe.warnings:
        yield Finding("database", "ok", f"note: {warning}")


def _storage(run: Run) -> Iterator[Finding]:
    name = f"storage {run.spec['storage']['name']}"
    able = run.storage.probe()
    if not (able.create_only and able.read_after_write):
        yield Finding(name, "failed", "a probe was not read back as it was written")
        return
    room = "" if able.free_bytes is None else f", {able.free_bytes} bytes free"
    yield Finding(name, "ok", f"wrote, read back and deleted a probe{room}")
    if not able.durable:
        yield Finding(name, "inconclusive", "directory entries cannot be made durable on this file system")


def _key(run: Run) -> Iterator[Finding]:
    name = f"key {run.spec['key']['name']}"
    offline = [label for _, label, offline in run.repository.recipients() if offline]
    if offline:
        so = "does" if len(offline) == 1 else "do"
        yield Finding(name, "ok", f"opens the repository; so {so} {', '.join(offline)} after the machine is lost")
    else:
        detail = "no recovery recipient: if this machine is lost, nobody can read the backups"
        yield Finding(name, "failed", f"{detail} (dbguardctl key recovery-sheet {run.spec['key']['name']})")


def _proof(run: Run) -> Iterator[Finding]:
    known = {backup.id for backup in run.repository.backups(run.name)}
    proven = [p for p in run.repository.proofs() if p.grade == Grade.PROVEN and p.backup in known]
    newest = max(proven, key=lambda proof: proof.at, default=None)
    if newest is None:
        yield Finding("proof", "failed", f"no backup was ever proven (dbguardctl verify {run.name})")
    else:
        yield Finding("proof", "ok", f"backup {newest.backup} was restored and compared at {instant(newest.at)}")


def _repository(run: Run, data: bool) -> Iterator[Finding]:
    name = "every stored byte" if data else "repository structure"
    clean = True
    for finding in run.repository.check(data, run.progress):
        if finding.severity == "unseen":
            yield Finding(finding.object or "not looked at", "not configured", finding.message)
            continue
        damage = finding.severity == "damage"
        clean = clean and not damage
        needed = f" Needed by {_some(finding.backups)}." if finding.backups else ""
        yield Finding(finding.object, "failed" if damage else "inconclusive", f"{finding.message}.{needed}")
    if clean:
        yield Finding(name, "ok", "no damage found")


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - _NAMED
    return ", ".join(ids) if more <= 0 else f"{', '.join(ids[:_NAMED])} and {more} more"


CHECK = Job("check", Check, check)
