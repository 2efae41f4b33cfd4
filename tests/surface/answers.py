"""Canned answers of a daemon: one world, seen at 2026-09-12 09:14:07 in Berlin."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dbguardd import wire
from dbguardd.errors import NoSpace, ProofFailed
from dbguardd.serialize import to_json
from dbguardd.states import Grade, Health, JobState

NOW = datetime(2026, 9, 12, 7, 14, 7, tzinfo=UTC)

APP_1 = "01K4YJ3M8R0000000000000001"
APP_2 = "01K4W0000B0000000000000002"
APP_3 = "01K4SZZZZA0000000000000003"
APP_4 = "01K4QAAAAC0000000000000004"
APP_5 = "01K4MBBBBD0000000000000005"
JOB = "01K4Z7Q2AB0000000000000J01"


def database(name: str, state: Health, **fields: Any) -> wire.DatabaseStatus:
    plain = wire.DatabaseStatus(
        name=name, engine="sqlite", state=state, recoverable_to_at=None, recoverable_since_at=None,
        last_proven_at=None, proven_backup=None, restore_seconds=None, next_run_at=None, next_verb=None, backups=0,
        source_bytes=None, rpo_seconds=None, rto_seconds=None, paused_until_at=None, running_job=None, problem=None,
        attention=[], hints=[],
    )  # fmt: skip
    return replace(plain, **fields)


APP = database(
    "app", Health.SAFE, recoverable_to_at="2026-09-12T07:14:05Z", recoverable_since_at="2026-08-13T23:00:04Z",
    last_proven_at="2026-09-11T23:02:11Z", proven_backup=APP_1, restore_seconds=9.1, rpo_seconds=60, backups=34,
    next_run_at="2026-09-12T23:00:00Z", next_verb="backup", source_bytes=1116691497,
)  # fmt: skip
CRM = database(
    "crm", Health.UNPROVEN, backups=1, source_bytes=5368709120,
    attention=["crm: a backup exists, but none has ever been proven by a restore"], hints=["dbguardctl verify crm"],
    next_run_at="2026-09-13T00:00:00Z", next_verb="backup",
)  # fmt: skip
CACHE = database(
    "cache", Health.FAILING, recoverable_to_at="2026-09-09T01:00:00Z", last_proven_at="2026-09-09T01:00:30Z",
    restore_seconds=3.0, rpo_seconds=21600, backups=3, next_run_at="2026-09-12T07:18:07Z", next_verb="backup",
    problem=NoSpace(
        "cache: the storage is full", detail="Storage local has 1.2 GiB free, this backup needs 2.1 GiB.",
        hints=["dbguardctl prune --dry-run"],
        facts={"free_bytes": 1288490188, "needed_bytes": 2254857830, "last_proven_at": "2026-09-09T01:00:30Z"},
    ).problem(),
    attention=["cache: 11 runs failed since 2026-09-09 12:00 UTC: the storage is full"],
    hints=[f"dbguardctl job show {JOB}"],
)  # fmt: skip
QUIET = database(
    "quiet", Health.PAUSED, recoverable_to_at="2026-09-11T23:00:00Z", last_proven_at="2026-09-11T23:10:00Z",
    restore_seconds=62.0, backups=7, paused_until_at="2026-09-12T12:00:00Z",
    attention=["quiet: paused until 2026-09-12 12:00 UTC"], hints=["dbguardctl resume quiet"],
)  # fmt: skip

LOCAL = wire.StorageStatus(
    name="local", url="/var/lib/dbguard/store", ok=True, free_bytes=47244640256, total_bytes=214748364800,
    keep_free_bytes=21474836480, stored_bytes=167503724544, problem=None, beside=["app", "crm"],
)  # fmt: skip
MAIN = wire.KeyStatus("main", "machine", ["age1qyqszqgpqyqszqgpqyqszqgp"], "2026-09-03T10:00:00Z")


def status(
    databases: tuple[wire.DatabaseStatus, ...] = (APP, CRM, CACHE, QUIET),
    storages: tuple[wire.StorageStatus, ...] = (LOCAL,),
    keys: tuple[wire.KeyStatus, ...] = (MAIN,),
    **fields: Any,
) -> dict[str, Any]:
    answer = wire.Status(
        schema="dbguard.status/1", version="0.1.0", host="db1", policy_loaded_at="2026-09-12T07:14:00Z",
        policy_problem=None, timezone="Europe/Berlin", attention=[], databases=list(databases),
        storages=list(storages), keys=list(keys),
    )  # fmt: skip
    return to_json(replace(answer, **fields))


def backup(id: str, created_at: str, **fields: Any) -> wire.BackupRow:
    plain = wire.BackupRow(
        id=id, database="app", engine="sqlite", created_at=created_at, kind="incremental", method="pages",
        grade=Grade.PROVEN, source_bytes=1116691497, stored_bytes=3250585, storage="local",
    )  # fmt: skip
    return replace(plain, **fields)


BACKUPS = [
    backup(APP_1, "2026-09-11T23:00:00Z", kind="full", stored_bytes=222298112, proven_at="2026-09-11T23:02:11Z",
           restore_seconds=9.1, kept_because=["last 1", "daily 1"], expires_at="2026-10-11T23:00:00Z"),
    backup(APP_2, "2026-09-10T23:00:00Z", kept_because=["last 2", "daily 2"], expires_at="2026-10-12T23:00:00Z"),
    backup(APP_3, "2026-09-09T23:00:00Z", grade=Grade.CHECKED, kept_because=["daily 3"], holds=["audit"],
           note="before the \x1b[31mmigration"),
    backup(APP_4, "2026-09-08T23:00:00Z", grade=Grade.STORED, kept_because=["evidence"],
           expires_at="2026-09-15T23:00:00Z", failure="2 rows missing in table orders"),
]  # fmt: skip


EXPIRED = [
    wire.ExpiredRow(backup(APP_5, "2026-09-07T23:00:00Z"), "2026-09-11T23:02:12Z", "2026-09-12T22:57:12Z"),
]


def listing() -> dict[str, Any]:
    return {
        "schema": "dbguard.list/1", "database": "app", "backups": to_json(BACKUPS),
        "expired": to_json(EXPIRED),
    }  # fmt: skip


_COLUMNS = ["id", "who", "body"]
_ROWS = [[7, "M\u00fcller\x1b[31m", {"base64": "3q2+7w=="}], [8, None, {"real": "inf"}]]
DIFFERENCE: list[dict[str, Any]] = [
    {"schema": {"kind": "index", "name": "by_who", "before": None, "after": "CREATE INDEX by_who ON orders(who)"}},
    {"table": "orders", "change": "added", "key": {"id": 9}, "after": {"id": 9, "who": "x", "body": None}},
    {"table": "orders", "change": "changed", "key": {"id": 7},
     "before": {"id": 7, "who": "a", "body": 1}, "after": {"id": 7, "who": "b", "body": 1.0}},
    {"table": {"table": "orders", "state": "differs", "why": "", "keyed_by": ["id"], "added": 1, "removed": 1234567,
               "changed": 1, "listed": 2}},
    {"table": {"table": "kv", "state": "same", "why": "", "keyed_by": ["k"], "added": 0, "removed": 0, "changed": 0,
               "listed": 0}},
    {"table": {"table": "odd", "state": "not compared", "why": "its key has changed", "keyed_by": [], "added": None,
               "removed": None, "changed": None, "listed": 0}},
]  # fmt: skip
ANSWERS: dict[str, bytes] = {
    "query": b"".join(json.dumps(row).encode() + b"\n" for row in (_COLUMNS, *_ROWS)),
    "undelete": b"".join(json.dumps(row).encode() + b"\n" for row in (_COLUMNS, *_ROWS)),
    "diff": b"".join(json.dumps(row).encode() + b"\n" for row in DIFFERENCE),
    "get": b"CREATE TABLE orders(id, who, body);\n",
}
"""What the daemon gives at /jobs/ID/answer, by verb."""


def job(verb: str = "backup", state: str = "done", **fields: Any) -> dict[str, Any]:
    plain = wire.JobRow(
        id=JOB, verb=verb, database="app", state=JobState(state), actor="alice",
        request={"database": "app"}, created_at="2026-09-12T07:14:00Z", started_at="2026-09-12T07:14:00Z",
        finished_at="2026-09-12T07:14:11.800000Z" if state not in ("queued", "running") else None,
    )  # fmt: skip
    return to_json(replace(plain, **fields))


FINDINGS = [
    {"name": "every stored byte equals the source", "outcome": "ok", "detail": "1116691497 bytes"},
    {"name": "integrity", "outcome": "ok", "detail": "quick_check and foreign keys"},
    {"name": "content equals the snapshot", "outcome": "ok", "detail": "41 tables, 9016812 rows equal"},
]
PLAN = {
    "backup": APP_1, "created_at": "2026-09-11T23:00:00.000Z", "grade": "proven",
    "proven_at": "2026-09-11T23:02:11.000Z", "to": "/var/lib/app/app_20260911T230000Z.db", "in_place": False,
    "needs_bytes": 1116691497, "free_bytes": 47244640256, "takes_seconds": 9.1,
}  # fmt: skip
_ASKED = {
    "backup": APP_1, "created_at": "2026-09-11T23:00:00.000Z", "grade": "proven", "failure": None, "warnings": [],
}  # fmt: skip
_BOTH = {"older": {**_ASKED, "backup": APP_5, "grade": "stored"}, "newer": _ASKED}

RESULTS: dict[str, dict[str, Any]] = {
    "query": {**_ASKED, "rows": 2, "more": "rows"},
    "get": {**_ASKED, "table": "orders", "rows": 2, "triggers": 1},
    "diff": {
        **_BOTH, "tables": 3, "differing": 2, "not_compared": 1, "added": 1, "removed": 1, "changed": 1, "listed": 2,
    },
    "undelete": {**_BOTH, "table": "orders", "changed": False, "rows": 7, "listed": 2},
    "backup": {
        "backup": {
            "id": APP_1, "database": "app", "engine": "sqlite", "created_at": "2026-09-11T23:00:00.000Z",
            "kind": "incremental", "method": "pages", "source_bytes": 1116691497, "stored_bytes": 3250585,
            "storage": "local", "note": "",
        },
        "facts": {"blocked_seconds": 0.003},
    },
    "verify": {
        "proof": {
            "id": APP_1, "grade": "proven", "verified_at": "2026-09-12T07:14:11.000Z",
            "proven_at": "2026-09-12T07:14:11.000Z", "restore_seconds": 9.1, "failure": None, "findings": FINDINGS,
        },
        "plain_copy": None,
    },
    "restore": {"target": PLAN["to"], "plan": PLAN, "findings": FINDINGS, "seconds": 9.1},
    "undo": {
        "target": "/var/lib/app/app.db",
        "plan": {**PLAN, "to": "/var/lib/app/app.db", "in_place": True, "undo_days": 7},
        "findings": FINDINGS, "seconds": 9.1, "safety_copy": APP_2,
        "undo": "dbguardctl restore undo app --confirm app",
    },
    "check": {
        "findings": [
            {"name": "database", "outcome": "ok", "detail": "sqlite 3.46, 1116691497 bytes"},
            {"name": "key main", "outcome": "failed", "detail": "no recovery recipient"},
        ],
        "failed": 1, "data": False,
    },
    "expire": {
        "plan": {
            "keep": [{"id": APP_1, "because": ["last 1", "daily 1"]}],
            "drop": [{"id": APP_4, "because": ["older than the policy keeps"]}],
            "breaker": "",
        },
        "expired": [APP_4],
    },
    "sweep": {
        "backups": [], "objects": 12, "freed_bytes": 1048576, "marked": 0, "marked_bytes": 0, "waiting": 0,
        "next_at": None, "dry_run": False,
    },
}  # fmt: skip

CRM_1 = "01K4Z0000E0000000000000006"
SHORT = ProofFailed(
    f"crm: backup {CRM_1} did not pass its test restore", detail="table orders has 5 rows instead of 7",
    hints=[f"dbguardctl show {CRM_1}", "dbguardctl backup crm --full"], facts={"database": "crm", "backup": CRM_1},
).problem()  # fmt: skip
EVENTS = [
    {"id": 41, "at": "2026-09-12T07:13:59Z", "event": "job.queued", "database": "app", "job": JOB,
     "facts": {"verb": "backup", "actor": "schedule"}},
    {"id": 42, "at": "2026-09-12T07:14:00Z", "event": "backup.stored", "database": "app", "job": JOB,
     "facts": {"id": APP_1, "stored_bytes": 222298112, "seconds": 9.1}},
    {"id": 43, "at": "2026-09-12T07:14:01Z", "event": "clock.stepped", "database": None, "job": None,
     "facts": {"seconds": -3.5}},
    {"id": 44, "at": "2026-09-12T07:14:05Z", "event": "backup.graded", "database": "crm", "job": JOB,
     "facts": {"id": CRM_1, "grade": "restored", "failure": "table orders has 5 rows instead of 7"}},
    {"id": 45, "at": "2026-09-12T07:14:05Z", "event": "job.failed", "database": "crm", "job": JOB,
     "facts": {"verb": "verify", "seconds": 4.0, "problem": SHORT}},
]  # fmt: skip


def events(query: dict[str, str], rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Answer GET /events as the daemon does."""
    found = [
        row for row in (EVENTS if rows is None else rows)
        if int(query.get("after", 0)) < row["id"] < int(query.get("before", 1 << 60))
        and query.get("since", "") <= row["at"] < query.get("until", "9")
        and query.get("database", row["database"]) == row["database"]
        and query.get("job", row["job"]) == row["job"]
    ]  # fmt: skip
    limit = int(query.get("limit", 100))
    return {"schema": "dbguard.events/1", "events": found[-limit:] if query.get("last") == "true" else found[:limit]}
