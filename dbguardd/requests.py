"""The requests of all jobs that the socket accepts. Standard library only.

The docstring of a request is its help and its fields are its options: the command line, the API, its OpenAPI
description and the man page derive from them. A worker is given one of them. Answers are in wire.py, which workers need
not load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from dbguardd.frozen import frozen

UNDO_REASON = "restore undo"
"""Why the state that a restore in place has replaced is held."""


def option(text: str, default: Any = "", *, reserved: bool = False, several: bool = False) -> Any:
    """Return a request field with its help text; a bool becomes a flag, a field named `database` an argument.

    A `reserved` field is hidden from users who may only read: see RESERVED. Of `several`, the option may be repeated;
    the field has them separated by commas.
    """
    return field(default=default, metadata={"help": text, "reserved": reserved, "several": several})


@frozen
class Request:
    """The base of all job requests; it has no fields."""


@frozen
class Backup(Request):
    """Back up a database now."""

    database: str
    full: bool = option("store every page again instead of only what changed", False)
    verify: bool = option("prove the backup by a test restore right away, whatever the policy says", False)
    note: str = option("a remark that is kept with the backup")
    successor: bool = option(
        "accept the present database as the successor of the one that was backed up",
        False,
    )


@frozen
class Verify(Request):
    """Restore a backup into a private place, compare it with what was backed up, and record the proof."""

    database: str
    backup: str = option("id of the backup, or its first characters; the newest if not given")


@frozen
class Restore(Request):
    """Restore a database to a new place, or replace the live one (--in-place)."""

    database: str
    backup: str = option("id of the backup, or its first characters")
    at: str = option("the moment to go back to: '2026-09-12 08:59', 'yesterday 09:00', '5 min ago'")
    lsn: str = option("the place in the log of a PostgreSQL cluster to go back to: 16/B374D848")
    name: str = option("the restore point of a PostgreSQL cluster to go back to, by its pg_create_restore_point()")
    to: str = option("path of the restored database, which must not exist; if not given, beside the live one")
    tablespace: str = option(
        "where tablespaces of a PostgreSQL cluster go: OLD=NEW; may be repeated; else below it", several=True
    )
    in_place: bool = option("replace the live database; keeps its present state for `restore undo`", False)
    confirm: str = option("the name of the database, typed in full: needed for --in-place")
    dry_run: bool = option("print what would be done, and do nothing", False)


@frozen
class Undo(Request):
    """Put back the state that the last restore --in-place replaced."""

    database: str
    confirm: str = option("the name of the database, typed in full")


@frozen
class Check(Request):
    """Check settings, database, storage, keys and repository without restoring."""

    database: str
    data: bool = option("read and decrypt every stored byte, not only the structure", False)


@frozen
class Expire(Request):
    """Delete the backups that the policy's `keep` no longer asks for; each verdict has its reasons."""

    database: str
    dry_run: bool = option("print what would be deleted and why, and delete nothing", False)
    confirm: str = option("the name of the database, to let one run delete more than the breaker allows")


@frozen
class Sweep(Request):
    """Free the space of expired backups whose grace is over."""

    storage: str
    dry_run: bool = option("print what would be freed, and free nothing", False)
    confirm: str = option("the name of the storage, to let one run free more than the breaker allows")


@frozen
class Query(Request):
    """Answer one SELECT from a backup, without restoring it."""

    database: str
    sql: str = field(metadata={"help": "one SELECT; it is kept with the job and in the audit log", "reserved": True})
    backup: str = option("id of the backup, or its first characters")
    at: str = option("as it was at this moment, or at the last one before: 'yesterday 09:00'")
    in_database: str = option("of a server: the database to query; the only one if not given")
    rows: int = option("return at most this many rows", 1000)
    seconds: int = option("give up after this many seconds", 60)


@frozen
class Get(Request):
    """Extract one table from a backup, as SQL text or CSV, without restoring the rest."""

    database: str
    table: str = option("the table; SCHEMA.* is all of a schema of a server")
    backup: str = option("id of the backup, or its first characters")
    at: str = option("as it was at this moment, or at the last one before: 'yesterday 09:00'")
    in_database: str = option("of a server: the database to query; the only one if not given")
    format: str = option("sql: for the sqlite3 shell, or psql; csv: NULL as an empty field, blobs in hex", "sql")
    seconds: int = option("give up after this many seconds", 3600)


@frozen
class Diff(Request):
    """Compare two backups row by row: what was added, removed and changed between them."""

    database: str
    older: str = option("the backup before: a moment, as 'yesterday 09:00', or the id of a backup")
    newer: str = option("the newer backup, in the same form; the newest reliable one if not given")
    table: str = option("only this table")
    in_database: str = option("of a server: the database to query; the only one if not given")
    rows: int = option("list at most this many rows of each table; all are counted", 100)
    seconds: int = option("give up after this many seconds", 3600)


@frozen
class Undelete(Request):
    """Find rows that the newest backup lacks, or has with other values, and write SQL that puts them back."""

    database: str
    table: str = option("the table")
    where: str = option('only rows for which this is true, in SQL: "customer = 7 AND paid"', reserved=True)
    backup: str = option("id of the backup that has the rows, or its first characters")
    at: str = option("as it was at this moment, or at the last one before: 'yesterday 09:00'")
    in_database: str = option("of a server: the database to query; the only one if not given")
    rows: int = option("show at most this many rows; all are counted", 20)
    changed: bool = option("the rows that are still there with other values, and SQL that sets those back", False)
    sql: bool = option("write the SQL instead of showing the rows; it is not run", False)
    seconds: int = option("give up after this many seconds", 3600)


REQUESTS: Mapping[str, type[Request]] = {
    "backup": Backup,
    "verify": Verify,
    "restore": Restore,
    "undo": Undo,
    "check": Check,
    "expire": Expire,
    "sweep": Sweep,
    "query": Query,
    "get": Get,
    "diff": Diff,
    "undelete": Undelete,
}
"""Every verb that is a job, and its request: POST /v1/jobs/VERB with the fields as a JSON object."""

RESERVED = frozenset(
    member.name for kind in REQUESTS.values() for member in fields(kind) if member.metadata.get("reserved")
)
"""The fields that show what a user looked for, and so perhaps whom it concerns: see decision 0077."""

BY_SCHEDULE = "schedule"
"""The actor of scheduled jobs: nobody waits for them."""

NOWHERE = "/nonexistent"
"""Stands for the path of a database that only has backups: no policy says where it was."""

ENGINE_VERBS = frozenset(("backup", "follow", "verify", "restore", "undo", "check", "standby", "promote"))
"""The verbs whose worker has an engine half, because they open a database, live or restored."""

QUESTION_VERBS = frozenset(("query", "get", "diff", "undelete"))
"""The verbs that question stored backups: the answer is returned beside the job and not kept."""
