"""Jobs: do. One verb a module; this table is all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbguardd.jobs.backup import BACKUP
from dbguardd.jobs.base import Job
from dbguardd.jobs.books import BOOKS
from dbguardd.jobs.check import CHECK
from dbguardd.jobs.expire import EXPIRE, SWEEP
from dbguardd.jobs.follow import FOLLOW
from dbguardd.jobs.question import DIFF, GET, QUERY, UNDELETE
from dbguardd.jobs.restore import RESTORE, UNDO
from dbguardd.jobs.standby import PROMOTE, STANDBY
from dbguardd.jobs.verify import VERIFY

JOBS: Mapping[str, Job[Any]] = {
    job.name: job
    for job in (
        *(BACKUP, FOLLOW, VERIFY, RESTORE, UNDO, CHECK, EXPIRE, SWEEP),
        *(QUERY, GET, DIFF, UNDELETE),
        *(STANDBY, PROMOTE),
        *BOOKS,
    )
}
"""Every verb that a worker knows."""
