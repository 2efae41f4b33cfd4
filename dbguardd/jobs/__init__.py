"""Jobs do the work, one verb a module. This table lists all of them.

Each is imported when it is run: the imports of all other jobs would be a third of the start of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbguardd.jobs.base import Job

JOBS: Mapping[str, str] = {
    "backup": "backup:BACKUP",
    "follow": "follow:FOLLOW",
    "verify": "verify:VERIFY",
    "restore": "restore:RESTORE",
    "undo": "restore:UNDO",
    "check": "check:CHECK",
    "expire": "expire:EXPIRE",
    "sweep": "expire:SWEEP",
    "query": "question:QUERY",
    "get": "question:GET",
    "diff": "question:DIFF",
    "undelete": "question:UNDELETE",
    "standby": "standby:STANDBY",
    "promote": "standby:PROMOTE",
    "scan": "housekeeping:SCAN",
    "hold": "housekeeping:HOLD",
    "release": "housekeeping:RELEASE",
    "recall": "housekeeping:RECALL",
    "recovery-sheet": "housekeeping:RECOVERY_SHEET",
    "recovery-test": "housekeeping:RECOVERY_TEST",
    "recovery-drop": "housekeeping:RECOVERY_DROP",
    "recover": "housekeeping:RECOVER",
}
"""Every verb that a worker knows: module and name below dbguardd.jobs."""


def job_of(verb: str) -> Job[Any]:
    """Return the job of a verb. Raises KeyError."""
    module, _, name = JOBS[verb].partition(":")
    job: Job[Any] = getattr(import_module(f"dbguardd.jobs.{module}"), name)
    return job
