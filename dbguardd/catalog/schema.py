"""The tables of the catalog: one step of SQL for each version of the schema.

All times are text in the form of times.to_text; `request`, `result`, `problem` and `facts` are JSON.
"""

from __future__ import annotations

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE settings (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        verb TEXT NOT NULL,
        database TEXT,
        storage TEXT,
        state TEXT NOT NULL,
        actor TEXT NOT NULL,
        request TEXT NOT NULL,
        created_at TEXT NOT NULL,
        started_at TEXT,
        finished_at TEXT,
        attempt INTEGER NOT NULL,
        step TEXT NOT NULL,
        done_bytes INTEGER NOT NULL,
        total_bytes INTEGER,
        result TEXT,
        problem TEXT,
        stderr_tail TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX jobs_of_database ON jobs (database, id);
    CREATE INDEX jobs_unfinished ON jobs (id) WHERE finished_at IS NULL;

    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        event TEXT NOT NULL,
        database TEXT,
        job TEXT,
        facts TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_database ON events (database, id);
    CREATE INDEX events_of_job ON events (job, id);

    CREATE TABLE backups (
        id TEXT PRIMARY KEY,
        database TEXT NOT NULL,
        engine TEXT NOT NULL,
        created_at TEXT NOT NULL,
        kind TEXT NOT NULL,
        method TEXT NOT NULL,
        grade TEXT NOT NULL,
        source_bytes INTEGER NOT NULL,
        stored_bytes INTEGER NOT NULL,
        storage TEXT NOT NULL,
        proven_at TEXT,
        restore_seconds REAL,
        note TEXT NOT NULL,
        failure TEXT,
        expired_at TEXT,
        grace_until_at TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX backups_of_database ON backups (database, created_at);
    CREATE INDEX backups_by_grade ON backups (database, grade, created_at);

    CREATE TABLE proofs (
        backup TEXT NOT NULL,
        at TEXT NOT NULL,
        grade TEXT NOT NULL,
        restore_seconds REAL,
        failure TEXT,
        facts TEXT NOT NULL,
        PRIMARY KEY (backup, at)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE holds (
        backup TEXT NOT NULL,
        reason TEXT NOT NULL,
        actor TEXT NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (backup, reason)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE runs (
        target TEXT NOT NULL,
        verb TEXT NOT NULL,
        known_at TEXT NOT NULL,
        started_at TEXT,
        finished_at TEXT,
        succeeded_at TEXT,
        failures INTEGER NOT NULL,
        failing_since_at TEXT,
        job TEXT,
        problem TEXT,
        PRIMARY KEY (target, verb)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE pauses (
        database TEXT PRIMARY KEY,
        until_at TEXT,
        actor TEXT NOT NULL,
        at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE requests (
        key TEXT NOT NULL,
        uid INTEGER NOT NULL,
        digest TEXT NOT NULL,
        job TEXT NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (key, uid)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE backups ADD COLUMN excluded TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE backups ADD COLUMN excluded_tables INTEGER NOT NULL DEFAULT 0;
    """,
    "ALTER TABLE backups ADD COLUMN left_out TEXT NOT NULL DEFAULT '[]'",
    """
    DROP INDEX backups_of_database;
    DROP INDEX backups_by_grade;
    CREATE INDEX backups_of_database ON backups (database, id);
    CREATE INDEX backups_by_grade ON backups (database, grade, id);
    ALTER TABLE proofs ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
    """,
)
"""STEPS[n] upgrades version n to version n + 1 (PRAGMA user_version)."""
