"""Takes a snapshot of every database whose place in the log is known exactly, so that a recovery can end there.

A transaction commits twice: when its record is written to the log, and a moment later, when others can see it. A
snapshot depends on the second, a recovery on the first. If the records of all transactions that a snapshot sees lie
before those of all it does not see, then at the place between them a recovery has exactly what the snapshot sees. This
is so at most instants: transactions become visible after a flush of the log, in groups. So snapshots are taken, the log
around them is read, and if there is no such place they are taken again.

Only a limited part of the log is read. A commit that has waited longer (for a standby, say) is found by the proof,
which asks the recovered server about the transactions that were running in the snapshot: see prove.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime

from dbguardd.engines.postgresql.connect import Connection, row, text
from dbguardd.engines.postgresql.physical.cluster import clock
from dbguardd.engines.postgresql.physical.records import Record, Records
from dbguardd.engines.postgresql.physical.replayed import near, quiet, replayed, replayed_at
from dbguardd.engines.postgresql.physical.segments import WalTimeline, parse_lsn
from dbguardd.engines.postgresql.refusals import no_answer
from dbguardd.frozen import frozen

TRIES, _EACH = 40, 25
_BACK = 1 << 20
_SNAPSHOT = b"SELECT pg_current_snapshot()::text"
_SAID = re.compile(rb"\d{1,20}:\d{1,20}:[\d,]*")
_MARK = (
    b"BEGIN; SET LOCAL synchronous_commit = 'local'; SELECT pg_logical_emit_message(true, 'dbguard', 'snapshot'); "
    b"COMMIT"
)
_XIDS = 1 << 32


@frozen
class Snapshot:
    """What a snapshot sees: transactions before `top` that are not in `running`."""

    top: int
    running: frozenset[int]

    @classmethod
    def parse(cls, said: str) -> Snapshot:
        """Parse PostgreSQL's text form, "bottom:top:running,running"."""
        _bottom, top, running = said.split(":")
        return cls(int(top), frozenset(int(xid) for xid in running.split(",") if xid))

    def sees(self, xid: int) -> bool:
        """Return whether a committed transaction is visible. The log only has the lower half of its number."""
        top = self.top
        full = top - (top - xid) % _XIDS if (top - xid) % _XIDS < _XIDS // 2 else top + (xid - top) % _XIDS
        return full < top and full not in self.running


@frozen
class HeldSnapshots:
    """Open snapshots, by database, and the one place for all of them; the log is needed up to `end`.

    `moment` is a time before the first was taken: everything committed by then is in all of them.
    """

    snapshots: Mapping[bytes, str]
    at: int
    end: int
    moment: datetime
    tries: int
    connections: Mapping[bytes, Connection] = field(repr=False)

    def close(self) -> None:
        """Release the snapshots."""
        for connection in self.connections.values():
            connection.close()


def find(
    connections: Mapping[bytes, Connection],
    keeper: Connection,
    least: int,
    segment: int,
    records: Records,
) -> HeldSnapshots | None:
    """Take a snapshot on each connection until all of them share one place in the log, not before `least`.

    Only the last WAL file (of `segment` bytes) is read: a file before may have been ended early, as at the end of
    backup mode, and reading stops there. None if no attempt had such a place.
    """
    for attempt in range(1, TRIES + 1):
        moment = clock(keeper)
        _begin(connections)
        before = _inserted(keeper)
        snapshots = _taken(connections)
        after = _inserted(keeper)
        end = mark(keeper)
        found = between(
            commits(records, max(least, before - _BACK, before // segment * segment), end),
            [Snapshot.parse(said) for said in snapshots.values()],
            after,
        )
        if found is not None and found >= least and (found == after or _is_commit(records.at(found, end))):
            return HeldSnapshots(snapshots, found, end, moment, attempt, connections)
        _let_go(connections)
    return None


def _is_commit(record: Record | None) -> bool:
    return record is not None and record.committed is not None


def find_replayed(
    connections: Mapping[bytes, Connection],
    keeper: Connection,
    log: WalTimeline,
    known: tuple[int, int],
    records: Records,
) -> HeldSnapshots | None:
    """Take a snapshot of each database of a standby, as find() does; see replayed.

    `known` is where the log of the backup begins, and the least place of the snapshot.
    """
    for attempt in range(1, TRIES * _EACH + 1):
        moment = replayed_at(keeper)
        _begin(connections)
        before, _ = replayed(keeper)
        snapshots = _taken(connections)
        after, there = replayed(keeper)
        worth = before == after or attempt % _EACH == 0  # otherwise success is unlikely, and reading takes long
        if worth and before >= known[1]:
            told = commits(records, near(log, known[0], before), there)
            if quiet(told, before, after):
                return HeldSnapshots(snapshots, before, before, moment, attempt, connections)
        _let_go(connections)
    return None


def _begin(connections: Mapping[bytes, Connection]) -> None:
    for connection in connections.values():
        connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", prepare=False)


def _let_go(connections: Mapping[bytes, Connection]) -> None:
    for connection in connections.values():
        connection.execute(b"ROLLBACK", prepare=False)


def _taken(connections: Mapping[bytes, Connection]) -> dict[bytes, str]:
    """Take a snapshot in each transaction, one query each, as quickly as possible."""
    snapshots = dict[bytes, str]()
    for name, connection in connections.items():
        (said,) = row(connection, (bytes,), _SNAPSHOT)
        if not _SAID.fullmatch(said):
            raise no_answer(said)
        snapshots[name] = text(said)
    return snapshots


def mark(keeper: Connection) -> int:
    """Commit a transaction that changes nothing, which flushes the log. Return where the log ends."""
    for statement in _MARK.split(b"; "):
        keeper.execute(statement, prepare=False)
    (at,) = row(keeper, (bytes,), b"SELECT pg_current_wal_flush_lsn()::text")
    return parse_lsn(text(at))


def commits(records: Records, start: int, end: int) -> list[tuple[int, int]]:
    """Return place and transaction number of each commit between two places, in order."""
    told = ((record.at, record.committed) for record in records.between(start, end, "Transaction"))
    return [(at, xid) for at, xid in told if xid is not None]


def between(commits: Sequence[tuple[int, int]], snapshots: Sequence[Snapshot], after: int) -> int | None:
    """Return the place between what all snapshots see and what none of them sees; None if there is none.

    `after` is a place written after the snapshots were taken: it is the result if nothing unseen lies before it.
    """
    found: int | None = None
    for at, xid in commits:
        seen = {snapshot.sees(xid) for snapshot in snapshots}
        if len(seen) > 1 or (found is not None and seen == {True}):
            return None
        if seen == {False}:
            found = min(at, after, after if found is None else found)
    return after if found is None else found


def _inserted(keeper: Connection) -> int:
    (at,) = row(keeper, (bytes,), b"SELECT pg_current_wal_insert_lsn()::text")
    return parse_lsn(text(at))
