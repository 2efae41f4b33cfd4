"""A snapshot of a standby and its place in the log. On a standby, replaying a record is what makes a commit visible.

Commits become visible in the order in which their records are replayed. So all snapshots see exactly the log up to the
last replayed record, if no commit was replayed between just before the first snapshot and just after the last. A
standby cannot write to the log, so that record marks the place, and a recovery ends with it.

Replay is not paused for this: a standby whose replay is paused would stay so if we are killed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, row, text
from dbguardd.engines.postgresql.physical.records import Record, Records
from dbguardd.engines.postgresql.physical.segments import WalTimeline, parse_lsn
from dbguardd.errors import SourceChanged

_PATIENCE_SECONDS = 45.0  # an idle primary reports its position every 30 seconds by default
_LOOK_SECONDS = 0.25
_BACK = 1 << 20
_HEADS = 64  # bytes: most between two records that are separated only by a page header of the log
_REPLAYED = (
    b"SELECT pg_last_wal_replay_lsn()::text, greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text"
)
_AT = b"""
SELECT coalesce(greatest(pg_last_xact_replay_timestamp(), (SELECT last_msg_send_time FROM pg_stat_wal_receiver
  WHERE latest_end_lsn <= pg_last_wal_replay_lsn())), (pg_control_checkpoint()).checkpoint_time)
"""


def replayed_at(keeper: Connection) -> datetime:
    """Return a time, by the primary's clock, such that everything committed by then has been replayed."""
    return cast(datetime, row(keeper, (datetime,), _AT)[0])


def catch_up(keeper: Connection, since: datetime, alive: Alive) -> None:
    """Wait until everything committed by a time was replayed, but not long: a standby may lag for days."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while replayed_at(keeper) < since and time.monotonic() < patience:
        alive()
        time.sleep(_LOOK_SECONDS)


def replayed(keeper: Connection) -> tuple[int, int]:
    """Return how far the log has been replayed, and how far it has been received."""
    done, there = row(keeper, (bytes, bytes), _REPLAYED)
    return parse_lsn(text(done)), parse_lsn(text(there))


def last_record(records: Records, log: WalTimeline, start: int, end: int) -> Record:
    """Return the record that ends where replay has come to. Raises SourceChanged if there is none."""
    found = records.last(near(log, start, end), end) or records.last(start, end)
    if found is None:
        raise SourceChanged("PostgreSQL: no record of the log ends where the standby has replayed to")
    return found


def near(log: WalTimeline, start: int, end: int) -> int:
    """Return a place, not before `start`, from which the records before `end` can be read.

    It is in the same file: the file before may have been ended early, and reading stops in its empty rest.
    """
    return max(start, end - _BACK, (end - 1) // log.segment * log.segment)


def quiet(commits: Sequence[tuple[int, int]], before: int, after: int) -> bool:
    """Return whether no commit was replayed between two places, or begins at the second and may just be visible."""
    return not any(before <= at <= after + _HEADS for at, _xid in commits)
