"""The closed lists of words that requests, answers and the catalog share: roles, grades, states.

They are apart from requests.py and wire.py, whose many records take milliseconds to load.
"""

from __future__ import annotations

from enum import StrEnum

SAFETY_NOTE = "before restore --in-place"
"""The note of every safety copy. Its hold ends with the time for an undo, the note stays."""


class Role(StrEnum):
    """What a peer may ask for. It follows from the peer's user and groups (SO_PEERCRED) and the policy's [access]."""

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
    """The state of a job. The last four are final."""

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
