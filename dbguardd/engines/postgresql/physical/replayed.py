"""A snapshot of a standby, and its place in the log: there the log makes what is seen, and not the other way round.

A commit is seen on a standby when its record was replayed, one after the other. So what all snapshots see is what the
log has up to the last record that was replayed, if no commit was replayed from before the first snapshot until after
the last. A standby writes nothing into the log, so the place is told by that record, and a recovery ends with it.

Nobody stops the replaying for that: a standby whose replaying is paused stays so when we are killed.
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

_PATIENCE_SECONDS = 45.0  # a primary at rest says each half minute how far it is, as PostgreSQL comes
_LOOK_SECONDS = 0.25
_BACK = 1 << 20
_HEADS = 64  # bytes: between two records with nothing but the head of a page of the log between them
_REPLAYED = (
    b"SELECT pg_last_wal_replay_lsn()::text, greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text"
)
_AT = b"""
SELECT coalesce(greatest(pg_last_xact_replay_timestamp(), (SELECT last_msg_send_time FROM pg_stat_wal_receiver
  WHERE latest_end_lsn <= pg_last_wal_replay_lsn())), (pg_control_checkpoint()).checkpoint_time)
"""


def replayed_at(keeper: Connection) -> datetime:
    """Return a time by which all that had committed is in what was replayed, by the clock of the primary."""
    return cast(datetime, row(keeper, (datetime,), _AT)[0])


def catch_up(keeper: Connection, since: datetime, alive: Alive) -> None:
    """Wait until all that had committed by a time was replayed; not for long: a standby may lag for days."""
    patience = time.monotonic() + _PATIENCE_SECONDS
    while replayed_at(keeper) < since and time.monotonic() < patience:
        alive()
        time.sleep(_LOOK_SECONDS)


def replayed(keeper: Connection) -> tuple[int, int]:
    """Return up to where the log was replayed, and up to where it is there."""
    done, there = row(keeper, (bytes, bytes), _REPLAYED)
    return parse_lsn(text(done)), parse_lsn(text(there))


def last_record(records: Records, log: WalTimeline, start: int, end: int) -> Record:
    """Return the record that ends where the log was replayed up to. Raises SourceChanged if there is none."""
    found = records.last(near(log, start, end), end) or records.last(start, end)
    if found is None:
        raise SourceChanged("PostgreSQL: no record of the log ends where the standby has replayed to")
    return found


def near(log: WalTimeline, start: int, end: int) -> int:
    """Return from where the records before a place can be read, not before `start`.

    They are in its file: the one before may have been ended early, and nothing is found in what is empty there.
    """
    return max(start, end - _BACK, (end - 1) // log.segment * log.segment)


def quiet(commits: Sequence[tuple[int, int]], before: int, after: int) -> bool:
    """Say if no commit was replayed between two places, nor may just be seen that begins at the second."""
    return not any(before <= at <= after + _HEADS for at, _xid in commits)
