"""Proves a backup: restores it into a private place and compares it with the fingerprint of its own snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbguardd import __version__
from dbguardd.engines.base import Examination, Finding, ProofQuery
from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.errors import Damaged, GuardError, KeyRefused, ObjectMissing, ProofFailed
from dbguardd.jobs.base import Job, Result, Run, instant, read_progress, shortened
from dbguardd.jobs.choose import existing, failure_of, named, newest_proofs
from dbguardd.jobs.lineage import successor_command
from dbguardd.jobs.moment import Moment, backup_at, log_leading_to, opened, random_moment, read_log
from dbguardd.jobs.plain_copies import keep_plain
from dbguardd.jobs.room import check_staging
from dbguardd.repository import Backup, Proof
from dbguardd.requests import Verify
from dbguardd.serialize import to_json
from dbguardd.states import SAFETY_NOTE, Grade

DAMAGE = (Damaged, ObjectMissing, KeyRefused)
"""Errors that concern the stored bytes, wherever they occur."""
_VERDICTS = (*DAMAGE, ProofFailed)
_NAMED = 5  # tables


def verify(run: Run, request: Verify) -> Result:
    """Restore one backup, examine it, record the proof. Raises ProofFailed if it differs from what was backed up."""
    backup = named(run, request.backup) if request.backup else newest_with_content(run)
    proof = prove(run, backup)
    plain = keep_plain(run, backup) if proof.grade == Grade.PROVEN else None
    log = _prove_log(run, backup) if run.database.get("continuous") else None
    return {"proof": proof_row(proof), "plain_copy": plain, "log": None if log is None else to_json(log)}


def _prove_log(run: Run, backup: Backup) -> Finding | None:
    """Restore a random moment of the last day into the staging directory; return None if no log reaches one.

    This proof is responsible for the log that led up to `backup`: all of that is read, and a gap in it fails the proof.
    If a moment elsewhere cannot be restored, that is reported, and the end of this log is tried instead.
    """
    moment: Moment | None = None
    try:
        whole = log_leading_to(run, backup)
        read_log(run, whole)
    except _VERDICTS as error:
        raise _log_proof_failed(run, _report_log_proof(run, None, "", [_line(error)])) from None
    try:
        moment = random_moment(run) or whole
        tried = None if moment is None else _restore_moment(run, moment, "log")
    except _VERDICTS as error:
        tried = _report_log_proof(run, None, "", [_line(error)])
    if tried is None or tried.outcome != "failed" or whole is None:
        return tried
    if moment is None or (moment.backup.id, moment.at) != (whole.backup.id, whole.at):
        tried = _restore_moment(run, whole, "log-again")
    if tried.outcome == "failed":
        raise _log_proof_failed(run, tried)
    return tried


def _restore_moment(run: Run, moment: Moment, name: str) -> Finding:
    """Restore a moment, and compare it with what was recorded then.

    That is the sum of all pages; and the fingerprint of a backup, if one was made exactly there.
    """
    target, said, bad, unsure = Path(run.staging) / name, moment.describe_log(), list[str](), not moment.compared
    try:
        check_staging(run, moment.backup, moment.bytes)
        with opened(run, moment) as tree:
            run.snapshots.restore(tree, target, run.progress)
        examined = run.snapshots.examine(target, _queries(run.database), run.progress)
        findings = list(examined.findings)
        if (twin := backup_at(run, moment)) and (expected := run.repository.fingerprint(twin.id)):
            compared = same_content(examined, expected, twin)
            findings.append(replace(compared, name=f"content of backup {twin.id}, made at the same moment"))
            said += f"; {findings[-1].name}: {compared.detail}"
            unsure = False
        bad = [f"{found.name}: {found.detail or 'failed'}" for found in findings if found.outcome == "failed"]
        unsure = unsure or any(found.outcome == "inconclusive" for found in findings)
    except _VERDICTS as error:
        bad = [_line(error)]
    finally:
        with suppress(GuardError):
            run.snapshots.release()
    return _report_log_proof(run, moment, said, bad, "inconclusive" if unsure else "ok")


def _report_log_proof(run: Run, moment: Moment | None, said: str, bad: Sequence[str], outcome: str = "ok") -> Finding:
    """Report the result of testing a log, and return it as a finding."""
    at = None if moment is None else moment.shown
    outcome, detail = "failed" if bad else outcome, "; ".join(bad or [said])
    run.report("log.tried", database=run.name, outcome=outcome, detail=detail, moment_at=at)
    return Finding("a moment of its log", outcome, detail if at is None else f"as it was at {at}: {detail}")


def _line(error: GuardError) -> str:
    return f"{error.code} {error.message}. {error.detail}".strip()


def _log_proof_failed(run: Run, tried: Finding) -> ProofFailed:
    return ProofFailed(
        f"{run.name}: its log failed a test restore; the backups are not affected",
        detail=tried.detail,
        hints=[f"dbguardctl backup {run.name}", f"dbguardctl check {run.name} --data"],
        facts={"database": run.name},
    )


def newest_with_content(run: Run) -> Backup:
    """Return the newest backup that can be proven; the newest of all if none has a fingerprint.

    Safety copies have none: they keep the bytes of a database that may be damaged.
    """
    backups = existing(run)
    return next((b for b in backups if run.repository.fingerprint(b.id)), backups[0])


def prove(run: Run, backup: Backup) -> Proof:
    """Restore `backup` into the staging directory and grade it; the result is stored whatever it is.

    Damage and differences are a verdict. Any other problem (no space, no storage, no permission, a bug) is none about
    the backup: it is raised as it is and nothing is stored, because a failed backup counts for nothing and is deleted.
    """
    target = Path(run.staging) / "proof"
    started = run.monotonic()
    findings: list[Finding] = []
    grade = Grade.STORED
    seconds: float | None = None
    examined: Examination | None = None
    check_staging(run, backup, backup.source_bytes)
    try:
        with run.repository.tree(backup, read_progress(run, backup.source_bytes)) as tree:
            run.snapshots.restore(tree, target, run.progress)
        grade = Grade.CHECKED
        findings.append(Finding("every stored byte equals the source", "ok", f"{backup.source_bytes} bytes"))
        examined = run.snapshots.examine(target, _queries(run.database), run.progress)
        seconds = run.monotonic() - started  # a restore, too, compares before it reports success
        same = same_content(examined, run.repository.fingerprint(backup.id), backup)
        findings += shortened([*examined.findings, same, *_lost_content(run, backup, examined)])
        grade = _grade(examined, findings)
    except _VERDICTS as error:
        findings.append(Finding("restore", "failed", _line(error)))
    finally:
        with suppress(GuardError):
            run.snapshots.release()
    proof = Proof(backup.id, run.now(), grade, seconds, tuple(to_json(findings)), __version__)
    run.repository.add_proof(proof)
    run.report("backup.graded", **proof_row(proof))
    if failure := failure_of(proof):
        meaning, hints = _what_helps(run, backup, examined)
        raise ProofFailed(
            f"{run.name}: backup {backup.id} failed its test restore",
            detail=f"{failure.removesuffix('.')}. {meaning}".strip(),
            hints=[f"dbguardctl show {backup.id}", *hints],
            facts={"database": run.name, "backup": backup.id},
        )
    return proof


def _what_helps(run: Run, backup: Backup, examined: Examination | None) -> tuple[str, list[str]]:
    """Return what a failed proof means for the live database, in words, and commands that help.

    If the database's own checks fail although each byte is as it was read, a new backup meets the same.
    """
    again = f"dbguardctl backup {run.name} --full"
    failed = [] if examined is None else [found.name for found in examined.findings if found.outcome == "failed"]
    if examined is None or not failed:
        return "", [again]
    damaged = not all(name.startswith("query: ") for name in failed)
    what = "is probably damaged" if damaged else "has that content"
    hints = [str(examined.facts["try_live"])] if damaged and "try_live" in examined.facts else []
    if any(proof.grade == Grade.PROVEN for proof in newest_proofs(run).values()):
        hints.append(f"dbguardctl restore {run.name} --dry-run  # the newest proven backup")
    if backup.kind != "full":
        hints.append(f"{again}  # if the live database is sound: this reads all of it again")
    return f"Every stored byte is as it was read: the live database {what}, and new backups fail like this one.", hints


def _lost_content(run: Run, backup: Backup, examined: Examination) -> Iterator[Finding]:
    """Yield a finding if no table has any row now that had one when the database was last proven.

    A full disk, a new installation, another database in its place or a mistake can leave such a database, and it passes
    every check. The backup is kept, but an unproven backup does not replace proven ones: those stay (`min_proven`), and
    are what is restored. No finding if a person has declared since that it is right.
    """
    if examined.fingerprint is None:
        return
    proven = {id for id, proof in newest_proofs(run).items() if proof.grade == Grade.PROVEN}
    before, right = None, False
    for one in run.repository.newest(run.name):  # only as far as necessary: each is an object to read
        if one.id < backup.id and one.id in proven:
            before = one
            break
        right = right or (one.id <= backup.id and one.facts.successor)
    if before is None or right:
        return
    try:
        known = run.repository.fingerprint(before.id) or {}
    except GuardError as error:  # this says nothing about the present backup
        if not examined.fingerprint.rows:
            yield Finding("content is not lost", "inconclusive", f"what was in the backup before: {_line(error)}")
        return
    had = Fingerprint.read(known)
    if gone := lost_content(had, examined.fingerprint, alike=before.method == backup.method):
        said = f"{gone}; {before.id}, the last proven backup before, has {had.rows} rows"
        yield Finding("content is not lost", "inconclusive", f"{said}. If that is intended: {successor_command(run)}")


def lost_content(before: Fingerprint, now: Fingerprint, *, alike: bool) -> str:
    """Return that no table which had rows has any now; "" if one has.

    `alike`: both use the same form of table names.
    """
    had = {name for name, table in before.tables.items() if table.rows}
    if had and not now.rows:
        return "no table has any row now"
    folded = any(":" in table.digest for found in (before, now) for table in found.tables.values())
    if not had or folded or not alike or any(name in had and table.rows for name, table in now.tables.items()):
        return ""
    named = ", ".join(sorted(had)[:_NAMED]) + (f" and {len(had) - _NAMED} more" if len(had) > _NAMED else "")
    return f"none of the tables that had rows has any row now ({named})"


def record_damage(run: Run, source: str, damage: Mapping[str, str]) -> None:
    """Record damage of backups (by id) as failed proofs; a later proof can clear them.

    Not if the newest proof already failed, and not in the repository if the manifest is gone or has expired. All are
    reported before the first is stored, so a full storage keeps nobody from learning of damage.
    """
    known, newest = {backup.id: backup for backup in run.repository.backups()}, newest_proofs(run)
    proofs: list[Proof] = []
    for id, detail in damage.items():
        if id in newest and failure_of(newest[id]) is not None:
            continue
        (finding,) = shortened([Finding(source, "failed", detail)])
        proof = Proof(id, run.now(), Grade.STORED, None, (to_json(finding),), __version__)
        proofs += [proof] if id in known else []
        whose = {"database": known[id].database} if id in known else {}
        run.report("backup.graded", **proof_row(proof), **whose)
    for proof in proofs:
        run.repository.add_proof(proof)


def same_content(examined: Examination, expected: Mapping[str, Any] | None, backup: Backup) -> Finding:
    """Compare a restored database with the fingerprint taken inside the backup's own snapshot."""
    name = "content equals the snapshot"
    if expected is None:
        later = f"dbguardctl log has the cause. Make another backup: dbguardctl backup {backup.database}"
        more = backup.facts.no_fingerprint or later
        said = "a safety copy has none" if backup.note == SAFETY_NOTE else more
        return Finding(name, "inconclusive", f"the backup has no fingerprint: {said}")
    if examined.fingerprint is None:
        why = any(finding.outcome == "failed" for finding in examined.findings)
        return Finding(name, "failed" if why else "inconclusive", "the restored database could not be read")
    found = to_json(examined.fingerprint)
    if found == expected:
        count = examined.fingerprint.count
        return Finding(name, "ok", f"{count} table{'s' * (count != 1)}, {examined.fingerprint.rows} rows equal")
    return Finding(name, "failed", "; ".join(_differences(expected, found)))


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[str]:
    """Return in words what differs, worst first, at most five."""
    said = [] if expected["schema_digest"] == found["schema_digest"] else ["the schema differs"]
    wanted, got = expected["tables"], found["tables"]
    said += [f"table {name} is missing" for name in wanted if name not in got]
    said += [f"table {name} was not there" for name in got if name not in wanted]
    for name in wanted:
        if name in got and wanted[name] != got[name]:
            rows, now = wanted[name]["rows"], got[name]["rows"]
            said.append(f"table {name} has {now} rows instead of {rows}" if rows != now else f"table {name} differs")
    return said[:5]


def _grade(examined: Examination, findings: Sequence[Finding]) -> Grade:
    if any(finding.outcome == "failed" for finding in findings):
        return Grade.RESTORED if examined.ok else Grade.CHECKED
    known = all(finding.outcome in ("ok", "not configured") for finding in findings)
    return Grade.PROVEN if known else Grade.RESTORED


def _queries(database: Mapping[str, Any]) -> list[ProofQuery]:
    return [ProofQuery(**query) for query in database.get("queries", ())]


def proof_row(proof: Proof) -> dict[str, Any]:
    """Return what the catalog keeps of a proof."""
    return {
        "id": proof.backup,
        "grade": proof.grade,
        "verified_at": instant(proof.at),
        "proven_at": instant(proof.at) if proof.grade == Grade.PROVEN else None,
        "restore_seconds": None if proof.restore_seconds is None else round(proof.restore_seconds, 3),
        "failure": failure_of(proof),
        "findings": list(proof.findings),
    }


VERIFY = Job("verify", Verify, verify)
