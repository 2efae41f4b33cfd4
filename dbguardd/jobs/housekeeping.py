"""Internal jobs of the daemon: reading a repository into the catalog, holds, recalls, and recovery keys."""

from __future__ import annotations

from contextlib import suppress

from dbguardd.errors import ConfirmMissing, Damaged, Held, KeyMissing, NoSpace, NotFound
from dbguardd.frozen import frozen
from dbguardd.jobs.base import Job, Result, Run, backup_row, grace, instant, server_facts
from dbguardd.jobs.moment import tell_log
from dbguardd.jobs.verify import proof_row, record_damage
from dbguardd.keys import AgeRecipient, Secret, make_key, new_identity, open_wrappers
from dbguardd.repository import Backup, Repository, recallable_until
from dbguardd.requests import Request
from dbguardd.states import Grade


@frozen
class Scan(Request):
    """Report every backup, proof, hold and expiry of a repository, to rebuild a lost catalog."""


@frozen
class Hold(Request):
    """Keep one backup from being deleted."""

    backup: str
    reason: str


@frozen
class Release(Request):
    """End all holds of one backup."""

    backup: str


@frozen
class Recall(Request):
    """Bring one expired backup back."""

    backup: str


@frozen
class RecoverySheet(Request):
    """Make a new recovery identity, give it access to the repository, and return it once."""


@frozen
class RecoveryTest(Request):
    """Test whether a recovery identity opens the repository."""

    identity: str


@frozen
class RecoveryDrop(Request):
    """Remove a recovery recipient from the repository."""

    recipient: str
    confirm: str


@frozen
class Recover(Request):
    """Let this machine's key open a repository that a recovery identity has opened."""

    identity: str


def scan(run: Run, request: Scan) -> Result:
    """Report what the repository contains.

    A backup with a missing pack, as in a copy made during a backup, is condemned.
    """
    storage = run.spec["storage"]["name"]
    backups, gone = run.repository.backups(expired=True), run.repository.expired()
    newest = {backup.id for backup in {backup.database: backup for backup in reversed(backups)}.values()}
    for backup in reversed(backups):  # facts about a server come from its newest backup
        rows = _rows(run, backup) if backup.id in newest else None
        run.report(
            "backup.stored", **backup_row(backup, storage), grade=Grade.STORED, **server_facts(backup), rows=rows
        )
    known = {backup.id for backup in backups}
    for proof in run.repository.proofs():
        if proof.backup in known:
            run.report("backup.graded", **proof_row(proof))
    with suppress(NoSpace):  # it was reported, and everything else must still be known
        lacking = list(run.repository.lacking())
        record_damage(
            run, "packs", {id: f"{found.object}: {found.message}" for found in lacking for id in found.backups}
        )
    for holds in run.repository.holds().values():
        for hold in holds:
            run.report("backup.held", id=hold.backup, reason=hold.reason, actor=hold.actor, at=instant(hold.at))
    for given_up in gone:
        until = recallable_until(given_up.at, grace(run))
        facts = {"reasons": list(given_up.reasons), "at": instant(given_up.at), "grace_until_at": instant(until)}
        run.report("backup.expired", id=given_up.backup, **facts)
    for name, log in run.repository.logs().items():
        mine = [backup for backup in backups if backup.database == name]
        tell_log(run, name, log.chains(), mine)  # even if there is no log: it may have been lost
    recipients = [label for kind, label, _ in run.repository.recipients() if kind == AgeRecipient.kind]
    if recipients:
        run.report("recovery.known", recipients=recipients, key=run.spec["key"]["name"])
    return {"backups": len(known - {given_up.backup for given_up in gone})}


def _rows(run: Run, backup: Backup) -> int | None:
    """Return how many rows a backup has; None if that is unknown."""
    with suppress(Damaged):  # a check reports it
        tables = (run.repository.fingerprint(backup.id) or {}).get("tables", {})
        return sum(int(table["rows"]) for table in tables.values()) if tables else None
    return None


def hold(run: Run, request: Hold) -> Result:
    """Hold a backup."""
    backup = run.repository.backup(request.backup)
    now = run.now()
    run.repository.hold(backup.id, request.reason, run.actor, now)
    run.report("backup.held", id=backup.id, reason=request.reason, actor=run.actor, at=instant(now))
    return {"backup": backup.id}


def release(run: Run, request: Release) -> Result:
    """Release a backup from all its holds. Raises NotFound if there is none."""
    backup = run.repository.backup(request.backup)
    holds = run.repository.holds().get(backup.id, [])
    if not holds:
        raise NotFound(f"backup {backup.id} is not held", hints=[f"dbguardctl list {backup.database} --why"])
    run.repository.release(backup.id, run.actor, run.now())
    reasons = [hold.reason for hold in holds]
    run.report("backup.released", id=backup.id, reason=", ".join(reasons), reasons=reasons)
    return {"backup": backup.id, "released": reasons}


def recall(run: Run, request: Recall) -> Result:
    """Bring an expired backup back. Nothing else keeps it: the next expiry decides again. Raises NotFound, Busy."""
    run.repository.recall([request.backup], run.now(), grace(run))
    run.report("backup.recalled", id=request.backup)
    return {"backup": request.backup}


def recovery_sheet(run: Run, request: RecoverySheet) -> Result:
    """Wrap the root key for a new age identity. The identity is returned and stored nowhere."""
    identity, recipient = new_identity()
    run.repository.add_recipient(AgeRecipient(recipient))
    run.report("recovery.added", recipient=recipient, key=run.spec["key"]["name"])
    mark, reader = run.repository.marks()
    told = {"recipient": recipient, "repository": run.repository.id, "mark": mark, "reader": reader}
    return {"identity": identity.reveal().decode(), **told}


def recovery_test(run: Run, request: RecoveryTest) -> Result:
    """Open the repository with the identity alone, exactly as after a disaster. Raises KeyUnsafe, KeyRefused."""
    wrapper = AgeRecipient.from_identity(Secret(request.identity.encode()))
    opened = Repository.open(run.storage, [wrapper])
    count = len(opened.backups())
    run.report("recovery.tested", recipient=wrapper.label, key=run.spec["key"]["name"], at=instant(run.now()))
    return {"recipient": wrapper.label, "repository": opened.id, "backups": count}


def recovery_drop(run: Run, request: RecoveryDrop) -> Result:
    """Remove a recovery recipient. Copies of the storage made before still open for it.

    Raises NotFound, Held (the policy names it, or no other available key opens), ConfirmMissing (it is the last one).
    """
    gone, key = request.recipient, run.spec["key"]
    known = [(kind, label) for kind, label, offline in run.repository.recipients() if offline]
    if (AgeRecipient.kind, gone) not in known:
        raise NotFound(f"{gone}: no such recovery recipient", hints=["dbguardctl key list"])
    if gone in key.get("recovery", ()):
        raise Held(
            f"{gone}: the policy names it",
            detail=f"The next job would let it in again. Take it out of recovery of [key.{key['name']}] and reload.",
            hints=[f"dbguardctl config explain key.{key['name']}.recovery"],
        )
    if len(known) == 1 and request.confirm != gone:
        raise ConfirmMissing(
            f"{gone}: it is the last recovery recipient of the repository",
            detail="Without it nobody can read the backups when this machine is lost.",
            hints=[f"dbguardctl key recovery-sheet {key['name']}"],
        )
    run.repository.drop_recipient(gone)
    run.report("recovery.dropped", recipient=gone, key=key["name"])
    return {"recipient": gone, "left": [label for _, label in known if label != gone]}


def recover(run: Run, request: Recover) -> Result:
    """Wrap the root key for the key of the policy; a missing machine key is created. Nothing is removed."""
    key = run.spec["key"]
    try:
        wrappers = open_wrappers(key)
    except KeyMissing as missing:
        make_key(key, missing)
        wrappers = open_wrappers(key)
    for wrapper in wrappers:
        run.repository.add_recipient(wrapper)
    used = AgeRecipient.from_identity(Secret(request.identity.encode())).label
    run.report("recovery.used", recipient=used, key=key["name"])
    mark, _ = run.repository.marks()
    return {"recipient": used, "repository": run.repository.id, "mark": mark, "backups": len(run.repository.backups())}


SCAN = Job("scan", Scan, scan)
HOLD = Job("hold", Hold, hold)
RELEASE = Job("release", Release, release)
RECALL = Job("recall", Recall, recall)
RECOVERY_SHEET = Job("recovery-sheet", RecoverySheet, recovery_sheet)
RECOVERY_TEST = Job("recovery-test", RecoveryTest, recovery_test)
RECOVERY_DROP = Job("recovery-drop", RecoveryDrop, recovery_drop)
RECOVER = Job("recover", Recover, recover)
