"""Answers about the policy: what is in force, which mistakes the files have, what a reload would change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from dbguardd.catalog import Catalog, coverage, to_text
from dbguardd.daemon.inforce import LOG, PolicyInForce
from dbguardd.policy import reference
from dbguardd.policy.load import Host, check
from dbguardd.policy.mistakes import Mistake

Json = dict[str, Any]


def shown(inforce: PolicyInForce, origin: bool) -> Json:
    """Return the policy in force with every default, and if asked for, the origin of each key."""
    loaded = inforce.loaded
    answer: Json = {
        "policy": reference.effective(loaded.policy, str(inforce.state), inforce.storages()),
        "files": list(loaded.files),
        "policy_loaded_at": to_text(inforce.loaded_at),
        "problem": None if inforce.problem is None else inforce.problem.problem(),
    }
    return {**answer, "origins": dict(loaded.origins)} if origin else answer


def checked(inforce: PolicyInForce) -> Json:
    """Return every mistake in the files as they are now. Raises PolicyUnsafe; PolicyInvalid if there is no file."""
    _, sources, mistakes = check(inforce.path, os.geteuid(), Host(str(inforce.state)))
    rows = _rows(mistakes)
    errors = [row for row in rows if row["severity"] == "error"]
    return {
        "ok": not errors,
        "errors": errors,
        "warnings": [row for row in rows if row["severity"] != "error"],
        "files": [source.path for source in sources],
        "policy_loaded_at": to_text(inforce.loaded_at),
    }


def warned(inforce: PolicyInForce) -> list[Json]:
    """Return the warnings about the policy in force."""
    return _rows(inforce.loaded.warnings)


def _rows(mistakes: Iterable[Mistake]) -> list[Json]:
    return [{**mistake.to_json(), "text": mistake.to_text()} for mistake in mistakes]


def difference(inforce: PolicyInForce, catalog: Catalog) -> Json:
    """Return what a reload would change, and which backups it would delete at once. Raises PolicyInvalid."""
    loaded = inforce.read()
    deletes = []
    for name, ids in inforce.going(loaded.policy).items():
        made = {row.id: row.created_at for row in catalog.backups.of(name)}
        made[LOG] = min((row.since_at for row in coverage.read(catalog.settings, name)), default="")
        deletes += [
            {"id": id, "database": name, "created_at": made[id], "reasons": list(reasons)}
            for id, reasons in ids.items()
        ]
    changes = [change.to_json() for change in reference.diff(inforce.policy, loaded.policy)]
    return {"changes": changes, "deletes": deletes}


def explained(inforce: PolicyInForce, key: str) -> Json:
    """Return what a key means, its value and its origin. Raises NotFound."""
    found = reference.explain(key, inforce.policy)
    origins = inforce.loaded.origins
    return {**found, "text": found["means"], "origin": origins.get(key)}


def schema() -> Json:
    """Return the JSON Schema of the policy."""
    return reference.json_schema()
