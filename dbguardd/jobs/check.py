"""Checks everything that a restore will need, without restoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from dbguardd.engines.base import Finding
from dbguardd.errors import Cancelled, GuardError, SourceReplaced
from dbguardd.facts import BackupFacts
from dbguardd.humanize import count
from dbguardd.jobs.base import Job, Result, Run, instant, shortened
from dbguardd.jobs.choose import newest_proofs, states_of
from dbguardd.jobs.lineage import check_followed, check_same_cluster, newest_at_other_path
from dbguardd.jobs.target import only_backups_left
from dbguardd.jobs.verify import record_damage
from dbguardd.requests import Check
from dbguardd.rules import reliance
from dbguardd.serialize import to_json

_BESIDE = tuple(f"records/{kind}/" for kind in ("proof", "hold", "release", "tomb"))  # no restore needs them
_NAMED = 20  # of the backups that need a damaged object, at most this many are named


def check(run: Run, request: Check) -> Result:
    """Check database, storage, keys and repository; with `data`, every stored byte. Findings, worst last."""
    damage: dict[str, str] = {}
    stored = _guarded("repository", lambda: _repository(run, request.data, damage))
    record_damage(run, "check", damage)  # before _proof: what is found damaged now is not proven
    findings: list[Finding] = []
    for name, look in (("database", _database), ("storage", _storage), ("key", _key), ("proof", _proof)):
        findings += _guarded(name, lambda look=look: look(run))  # type: ignore[misc]
    findings += stored
    for finding in findings:
        (told,) = shortened([finding])
        run.report("check.finding", name=told.name, outcome=told.outcome, detail=told.detail)
    failed = sum(finding.outcome == "failed" for finding in findings)
    damaged = sum(finding.outcome == "failed" for finding in stored)
    return {"findings": to_json(shortened(findings)), "failed": failed, "damaged": damaged, "data": request.data}


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Run one part; an error of ours becomes its finding, and the other parts still run."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except Cancelled:
        raise
    except GuardError as error:
        told = ". ".join(part for part in (error.message, error.detail) if part)
        mend = f". Fix: {error.hints[0]}" if error.hints else ""
        found.append(Finding(name, "failed", f"{error.code} {told.removesuffix('.')}{mend}"))
    return found


def _database(run: Run) -> Iterator[Finding]:
    if only_backups_left(run):
        yield Finding("database", "not configured", "not in the policy: its place is not known, only its backups are")
        return
    probe = run.snapshots.probe()
    yield Finding("database", "ok", f"{run.database['engine']} {probe.version}, {probe.size_bytes} bytes")
    for warning in probe.warnings:
        yield Finding("database", "ok", f"note: {warning}")
    yield from probe.findings
    yield from _other_versions(run, probe.version)
    yield from _same(run, BackupFacts.read(probe.facts))
    yield from _moved(run)


def _other_versions(run: Run, now: str) -> Iterator[Finding]:
    """Report backups of other major versions of the server, as before an upgrade: they need programs that may go."""
    told = (str(backup.raw_facts.get("server_version") or now) for backup in run.repository.backups(run.name))
    for major, number in Counter(version.partition(".")[0] for version in told).items():
        if major != now.partition(".")[0]:
            said = f"note: {count(number, 'backup')} of {run.database['engine']} {major}: keep its programs"
            why = "without them such a backup is restored unproven, and to no moment between two backups"
            yield Finding("database", "ok", f"{said}; {why}")


def _same(run: Run, facts: BackupFacts) -> Iterator[Finding]:
    """Report whether backups and log continue from the server that is there: they are refused if it is another one."""
    if not facts.system or run.database["settings"].get("method") != "pages":
        return
    if not any(backup.facts.system for backup in run.repository.backups(run.name)):
        return  # there is nothing to continue
    try:
        check_same_cluster(run, facts)
        check_followed(run, facts)
    except SourceReplaced as error:
        ways = "; ".join(error.hints)
        yield Finding("the server", "failed", f"{error.code} {error.message}. {error.detail} One of: {ways}")
    else:
        yield Finding("the server", "ok", f"is the one that was backed up: cluster {facts.system}")


def _moved(run: Run) -> Iterator[Finding]:
    """Report that a file has another path than in the newest backup: the next backup is refused if it is a new file."""
    if before := newest_at_other_path(run):
        said = f"the policy says {run.database['settings']['path']}; when the newest backup was made it was "
        said += f"{before.facts.path}. The next backup compares the two"
        yield Finding("the file", "inconclusive", said)


def _storage(run: Run) -> Iterator[Finding]:
    name = f"storage {run.spec['storage']['name']}"
    able = run.storage.probe()
    if not (able.create_only and able.read_after_write):
        yield Finding(name, "failed", "a test object was not read back as it was written")
        return
    room = "" if able.free_bytes is None else f", {able.free_bytes} bytes free"
    yield Finding(name, "ok", f"wrote, read back and deleted a test object{room}")
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
    known = reliance.choose(states_of(run, run.repository.backups(run.name))).backup
    if known is None or not known.proven:
        prove = f"dbguardctl verify {run.name}" if only_backups_left(run) else f"dbguardctl backup {run.name} --verify"
        yield Finding("proof", "failed", f"no backup is proven yet ({prove})")
    else:
        at = instant(newest_proofs(run)[known.id].at)
        yield Finding("proof", "ok", f"backup {known.id} was restored and compared at {at}")


def _repository(run: Run, data: bool, damage: dict[str, str]) -> Iterator[Finding]:
    """Yield the findings of a repository check; put into `damage` why each damaged backup cannot be restored."""
    name = "every stored byte" if data else "repository structure"
    clean = True
    for finding in run.repository.check(data, run.progress):
        if finding.severity == "unseen":
            yield Finding(finding.object or "not looked at", "not configured", finding.message)
            continue
        damaged = finding.severity == "damage"
        clean = clean and not damaged
        if damaged and not finding.object.startswith(_BESIDE):
            damage |= dict.fromkeys(finding.backups, f"{finding.object}: {finding.message}")
        needed = f" Needed by {_some(finding.backups)}." if finding.backups else ""
        yield Finding(finding.object, "failed" if damaged else "inconclusive", f"{finding.message}.{needed}")
    if clean:
        yield Finding(name, "ok", "no damage found")


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - _NAMED
    return ", ".join(ids) if more <= 0 else f"{', '.join(ids[:_NAMED])} and {more} more"


CHECK = Job("check", Check, check)
