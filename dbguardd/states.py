"""The words that requests, answers and the catalog share, each a closed list: roles, grades, states.

Apart from requests.py and wire.py, whose many records cost a process ms that only needs a word.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a peer may ask. It comes from the kernel (SO_PEERCRED and groups) and the policy's [access]."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


class Grade(StrEnum):
    """How much is known of a backup, from least to most."""

    STORED = "stored"
    CHECKED = "checked"
    RESTORED = "restored"
    PROVEN = "proven"


class JobState(StrEnum):
    """Where a job is. The last four are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class Health(StrEnum):
    """What `status` says of one database, from worst to best."""

    FAILING = "failing"
    LATE = "late"
    UNPROVEN = "unproven"
    PAUSED = "paused"
    ORPHANED = "orphaned"
    SAFE = "safe"
