"""What the events of workers change in the catalog."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from dbguardd.catalog import coverage
from dbguardd.catalog.backups import Backups
from dbguardd.catalog.marks import HoldRow, Holds, ProofRow, Proofs
from dbguardd.catalog.state import Settings
from dbguardd.catalog.times import to_moment, to_text
from dbguardd.errors import Internal
from dbguardd.frozen import frozen
from dbguardd.states import Grade
from dbguardd.wire import BackupRow

Facts = Mapping[str, Any]

_NAMES = {field.name for field in fields(BackupRow)} - {"kept_because", "expires_at", "holds", "verified_at"}

_COVERED = ("chain", "since_at", "until_at")

_PROOF_NAMES = frozenset(("id", "database", "grade", "restore_seconds", "failure", "verified_at", "proven_at"))


@frozen
class Index:
    """The tables that reports change."""

    backups: Backups
    proofs: Proofs
    holds: Holds


def apply(index: Index, event: str, facts: Facts, at: str) -> None:
    """Change the index as the event says; events without an effect are ignored. Raises Internal on bad facts."""
    effect = EFFECTS.get(event)
    if effect is None:
        return
    try:
        effect(index, facts, at)
    except (KeyError, TypeError, ValueError) as error:
        raise Internal(f"{event}: a worker reported facts that cannot be used", detail=repr(error)) from error


def remember(settings: Settings, event: str, facts: Facts, at: str) -> None:
    """Store what an event says about anything but backups: storages, keys, logs, an unfinished restore."""
    match event:
        case "repository.created" | "repository.opened":
            settings.put(f"repository:{facts['storage']}", str(facts["id"]))
            if event == "repository.created":
                settings.put(f"indexed:{facts['storage']}", at)  # it was empty, so there is nothing to read
        case "backup.stored" | "snapshot.fingerprinted" if "database" in facts:
            _remember_content(settings, facts)
        case "restore.replacing" | "restore.kept" | "restore.done" if "database" in facts:
            settings.put(f"replacing:{facts['database']}", at if event == "restore.replacing" else "")
            if event == "restore.done":
                settings.put(f"restored:{facts['database']}", at)
        case "log.begun" | "log.known" | "log.tried":
            _remember_log(settings, event, facts, at)
        case "recovery.tested" | "recovery.used" | "recovery.added" | "recovery.dropped" | "recovery.known":
            _remember_key(settings, event, facts, at)


def _remember_content(settings: Settings, facts: Facts) -> None:
    """Store what distinguishes a database from others, from its newest backup."""
    database = str(facts["database"])
    if facts.get("directory"):
        settings.put(f"directory:{database}", str(facts["directory"]))
    if facts.get("system"):
        settings.put(f"server:{database}", json.dumps({name: facts.get(name) for name in ("system", "position")}))
    if facts.get("rows") is not None:
        settings.put(f"rows:{database}", str(int(facts["rows"])))


def _remember_key(settings: Settings, event: str, facts: Facts, at: str) -> None:
    key = str(facts["key"])
    match event:
        case "recovery.tested" | "recovery.used":  # to use it is to test it
            settings.put(f"recovery_tested:{key}", at)
            settings.put(f"recovery_tested:{key}:{facts['recipient']}", at)
        case "recovery.added":
            _recoverable(settings, key, [str(facts["recipient"])])
        case "recovery.dropped":
            left = [known for known in recovery(settings, key) if known != facts["recipient"]]
            settings.put(f"recovery:{key}", json.dumps(left))
        case "recovery.known":
            _recoverable(settings, key, [str(recipient) for recipient in facts["recipients"]])


def _remember_log(settings: Settings, event: str, facts: Facts, at: str) -> None:
    database = str(facts["database"])
    match event:
        case "log.tried":
            coverage.tried(settings, database, facts, at)
        case "log.begun":
            row = coverage.Covered(str(facts["chain"]), str(facts["begun_at"]), str(facts["at"]))
            coverage.begin(settings, database, row)
        case "log.known":
            rows = [
                coverage.Covered(
                    **{name: str(row[name]) for name in _COVERED},
                    thinned={str(int(grain)): str(until_at) for grain, until_at in (row.get("thinned") or {}).items()},
                )
                for row in facts["chains"]
            ]
            coverage.learn(settings, database, rows)


def _recoverable(settings: Settings, key: str, recipients: list[str]) -> None:
    known = dict.fromkeys([*recovery(settings, key), *recipients])
    settings.put(f"recovery:{key}", json.dumps(list(known)))


def recovery(settings: Settings, key: str) -> list[str]:
    """Return the recovery recipients that were added to the repositories of a key."""
    known: list[str] = json.loads(settings.get(f"recovery:{key}") or "[]")
    return known


def _stored(index: Index, facts: Facts, at: str) -> None:
    known = {name: value for name, value in facts.items() if name in _NAMES}
    known["grade"] = Grade(known.get("grade", Grade.STORED))
    known["created_at"] = _time(known.get("created_at")) or at
    known["proven_at"] = _time(known.get("proven_at"))
    index.backups.put(BackupRow(**known))


def _graded(index: Index, facts: Facts, at: str) -> None:
    id, grade = str(facts["id"]), Grade(facts["grade"])
    failure = facts.get("failure")
    proven_at = _time(facts.get("proven_at"))
    if grade is Grade.PROVEN and proven_at is None:
        proven_at = at
    seconds = facts.get("restore_seconds")
    seconds = None if seconds is None else float(seconds)
    index.backups.grade(id, grade, proven_at, seconds, None if failure is None else str(failure))
    rest = {name: value for name, value in facts.items() if name not in _PROOF_NAMES}
    moment = _time(facts.get("verified_at")) or proven_at or at
    index.proofs.put(ProofRow(id, moment, grade, seconds, failure, rest))


def _expired(index: Index, facts: Facts, at: str) -> None:
    index.backups.expire(str(facts["id"]), _time(facts.get("at")) or at, _time(facts.get("grace_until_at")))


def _recalled(index: Index, facts: Facts, at: str) -> None:
    del at
    index.backups.recall(str(facts["id"]))


def _swept(index: Index, facts: Facts, at: str) -> None:
    del at
    index.backups.forget(str(facts["id"]))


def _held(index: Index, facts: Facts, at: str) -> None:
    moment = _time(facts.get("at")) or at
    index.holds.put(HoldRow(str(facts["id"]), str(facts["reason"]), str(facts.get("actor", "")), moment))


def _released(index: Index, facts: Facts, at: str) -> None:
    del at
    index.holds.drop(str(facts["id"]), facts.get("reasons"))


def _time(value: Any) -> str | None:
    return None if value is None else to_text(to_moment(str(value)))


EFFECTS: Mapping[str, Callable[[Index, Facts, str], None]] = {
    "backup.stored": _stored,
    "backup.graded": _graded,
    "backup.expired": _expired,
    "backup.recalled": _recalled,
    "backup.swept": _swept,
    "backup.held": _held,
    "backup.released": _released,
}
"""Every event that changes the index."""
