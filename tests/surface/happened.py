"""One event of every kind, as the daemon would tell it: what sentences, fields and the catalog are tried with."""

from __future__ import annotations

from typing import Any

from dbguardd.errors import NoSpace, PolicyInvalid, ProofFailed, TargetExists, Unreachable
from tests.surface.answers import APP_1, APP_2, JOB

FULL = NoSpace(
    "app: the storage is full", detail="Storage local has 1288490188 bytes free.", hints=["dbguardctl prune --dry-run"]
).problem()
AWAY = Unreachable("storage nas: does not answer", detail="/mnt/nas: Input/output error.").problem()
SHORT = ProofFailed(
    f"app: backup {APP_1} failed its test restore", detail="integrity: 2 rows missing", facts={"backup": APP_1}
).problem()
TAKEN = TargetExists("/srv/app.db: exists").problem()
WRONG = PolicyInvalid("policy: 2 mistakes", detail="error: x\n --> a.toml:9:1\n  |\n9 | y").problem()
RECIPIENT = "age1qyqszqgpqyqszqgpqyqszqgp"
FINDINGS = [{"name": "size", "outcome": "ok"}, {"name": "integrity_check", "outcome": "failed", "detail": "2 rows"}]


def of(event: str, database: str | None = "app", **facts: Any) -> dict[str, Any]:
    return {"event": event, "database": database, **facts}


HAPPENED: tuple[dict[str, Any], ...] = (
    of("api.accept_failed", None, reason="Too many open files"),
    of("api.failed", None, path="/v1/status"),
    of("audit.entry", None, seq=7, actor="alice", actor_uid=1000, what="job.restore", object="app", result="intent"),
    of("backup.done", backup=APP_1, seconds=0.6),
    of("backup.expired", id=APP_2, reasons=["older than the policy keeps"], grace_until_at="2026-09-12T22:57:12Z"),
    of("backup.graded", id=APP_1, grade="restored", failure="integrity: 2 rows missing", findings=FINDINGS),
    of("backup.graded", id=APP_1, grade="proven", restore_seconds=9.1, failure=None, findings=FINDINGS[:1]),
    of("backup.graded", id=APP_1, grade="restored", restore_seconds=9.1, failure=None),
    of("backup.held", id=APP_1, reason="before the migration", actor="alice"),
    of("backup.recalled", id=APP_2),
    of("backup.released", id=APP_1, reason="before the migration", reasons=["before the migration"]),
    of("backup.stored", id=APP_1, engine="sqlite", grade="stored", kind="incremental", storage="local",
       source_bytes=1116691497, stored_bytes=20172, seconds=0.31, blocked_seconds=0.003),
    of("backup.swept", id=APP_2),
    of("catalog.failed", None, problem=FULL),
    of("catalog.indexed", None, storage="local", facts_read=34),
    of("check.finding", name="key main", outcome="failed", detail="no recovery recipient"),
    of("check.finding", name="fingerprint", outcome="inconclusive", detail="the newest backup has none"),
    of("check.finding", name="database", outcome="ok", detail="1116691497 bytes"),
    of("check.finding", name="proof queries", outcome="not configured", detail=""),
    of("clock.doubted", None, problem="The clock was set forward by 26.0 h."),
    of("clock.stepped", None, seconds=-93600.0),
    of("daemon.broken", None, problem="KeyError('x')"),
    of("daemon.failed", None, problem=WRONG),
    of("daemon.ready", None, databases=1, pid=4711),
    of("daemon.ready", None, databases=0, pid=4711, next="dbguardctl protect PATH"),
    of("daemon.stopping", None),
    of("daemon.stopped", None),
    of("database.paused", until_at="2026-09-12T12:00:00Z", actor="alice"),
    of("database.resumed", actor="alice"),
    of("job.cancelled", verb="backup", problem={"message": "the job was cancelled", "code": "DBG-0007"}),
    of("job.crashed", job=JOB),
    of("job.done", verb="expire", seconds=0.2),
    of("job.done", verb="check", seconds=1.0),
    of("job.failed", job=JOB, verb="backup", seconds=3.0, problem=FULL),
    of("job.failed", job=JOB, verb="restore", seconds=3.0, problem=FULL, dry_run=True),
    of("job.failed", job=JOB, verb="restore", seconds=3.0, problem=TAKEN, mistaken=True),
    of("job.failed", job=JOB, verb="verify", seconds=3.0, problem=SHORT),
    of("job.failed", None, job=JOB, verb="sweep", storage="nas", problem=AWAY),
    of("job.interrupted", verb="backup", problem={"message": "job 01 ended with its daemon", "code": "DBG-8003"}),
    of("job.queued", verb="backup", actor="schedule"),
    of("job.refused", verb="verify", problem=FULL),
    of("job.retrying", verb="backup", wait_seconds=120.5, attempt=2, problem=AWAY),
    of("job.started", verb="backup", attempt=1),
    of("library.said", None, logger="asyncio", text="Task exception was never retrieved"),
    of("log.audited", outcome="ok", detail=""),
    of("log.audited", outcome="failed", detail="pages of it were changed past its log: 7, 9 (2 of 1000)"),
    of("log.begun", chain=APP_1, begun_at="2026-09-12T07:14:00Z", at="2026-09-12T07:14:00Z", continued=False,
       because="the WAL starts after the last position that was read", stored_until_at="2026-09-12T07:10:00Z"),
    of("log.begun", chain=APP_1, begun_at="2026-09-12T07:14:00Z", at="2026-09-12T08:14:00Z", continued=True,
       because="", stored_until_at="2026-09-12T08:13:00Z"),
    of("log.begun", chain=APP_1, begun_at="2026-09-12T07:14:00Z", at="2026-09-12T07:14:00Z", continued=False,
       because="the log was not followed before", stored_until_at=None),
    of("log.crashed"),
    of("log.forgotten", objects=64, bytes=1116691, until_at="2026-09-05T07:14:00Z"),
    of("log.held", log_bytes=41_200_000, by=["process 1234 (python3, user app)"]),
    of("log.held", log_bytes=32, by=[]),
    of("log.interrupted", problem={"message": "/srv/app.db: its log began anew 2 times since it was read",
                                   "code": "DBG-2010"}),
    of("log.known", chains=[{"chain": APP_1, "since_at": "2026-09-12T07:14:00Z", "until_at": "2026-09-12T08:14:00Z"}]),
    of("log.left", problem=None),
    of("log.left", problem={"message": "PostgreSQL, local server: cannot be reached", "code": "DBG-2011"}),
    of("log.moved", before="postgresql:///?port=5433"),
    of("log.thinned", outcome="ok", chain="01K4CHAIN", grain_seconds=3600, until_at="2026-09-12T03:00:00Z",
       bytes=310_000, freed_bytes=6_200_000),
    of("log.thinned", outcome="failed", code="DBG-4001",
       problem="log/…: its bytes do not match the hash in its name"),
    of("log.turned", round="7301234567890123456/2", left_round="7301234567890123456/1", lost_bytes=None),
    of("log.turned", round="7301234567890123456/3", left_round="7301234567890123456/2", lost_bytes=8192),
    of("log.tried", outcome="ok", moment_at="2026-09-12T03:14:07.250Z",
       detail="34 segments without a gap, its page checksum equals the database's"),
    of("log.tried", outcome="inconclusive", moment_at="2026-09-12T03:14:07.250Z",
       detail="34 segments without a gap, no page checksum is known"),
    of("log.tried", outcome="failed", detail="34 segments without a gap; integrity_check: page 7 is torn",
       moment_at="2026-09-12T03:14:07.250Z"),
    of("log.unreadable", problem="log/…: its bytes do not match the hash in its name"),
    of("parent.unreadable", backup=APP_1, code="DBG-4001", problem="backup 01K4 is damaged"),
    of("plain.written", backup=APP_1, path="/srv/copies/app_20260912T071400Z.db"),
    of("policy.loaded", None, databases=3),
    of("policy.refused", None, problem=WRONG),
    of("policy.warned", None, problem="app: rpo is 1 h, but backups are 1 day apart", place="/etc/dbguard/a.toml:9"),
    of("question.restoring", backup=APP_1, needs_bytes=48_000_000, usual_seconds=2.5),
    of("recovery.added", None, storage="local", key="main", recipient=RECIPIENT),
    of("recovery.dropped", None, storage="local", key="main", recipient=RECIPIENT),
    of("recovery.known", None, storage="local", key="main", recipients=[RECIPIENT]),
    of("recovery.tested", None, storage="local", key="main", recipient=RECIPIENT),
    of("recovery.used", None, storage="local", key="main", recipient=RECIPIENT),
    of("repository.created", storage="local", id="b0a1"),
    of("repository.opened", None, storage="local", id="b0a1"),
    of("restore.done", backup=APP_1, target="/srv/look.db", as_of_at="2026-09-11T23:00:00.000Z", seconds=9.1),
    of("restore.done", backup=APP_1, target="/srv/cluster", lsn="16/B374D848", seconds=9.1),
    of("restore.done", backup=APP_1, target="/var/lib/app/app.db", seconds=9.1, safety_copy=APP_2),
    of("restore.kept", database="app", target="/var/lib/app/app.db"),
    of("restore.replacing", database="app", target="/var/lib/app/app.db"),
    of("restore.written", backup=APP_1, target="/srv/look.db", seconds=1.25),
    of("run.refused", verb="backup", planned_at="2026-09-12T01:00:00Z", problem=FULL),
    of("run.skipped", verb="backup", reason="missed while the machine was off"),
    of("run.started", None, verb="sweep", storage="local"),
    of("safety.unreadable", backup=APP_1, code="DBG-4001", problem="pack 7f3a: damaged"),
    of("scan.refused", None, storage="local", problem=FULL),
    of("schedule.failed", None, problem=FULL),
    of("snapshot.fingerprinted", backup=APP_1, tables=41, rows=9016812),
    of("snapshot.untold", backup=APP_1, reason="no log position matches a snapshot: 40 were tried"),
    of("staging.swept"),
    of("sweep.done", None, storage="local", objects=12, freed_bytes=1048576, marked=0),
    of("sweep.done", None, storage="local", objects=0, freed_bytes=0, marked=0),
)  # fmt: skip
"""Every row of the table is met at least once; a test sees to that."""
