"""What has changed in the files of relations since the parent backup, as the server's summaries of its WAL say.

PostgreSQL 17 and later record which blocks of each relation a part of the log mentions (`summarize_wal`). If the log
does not mention a block between the starts of two backups, the first of them has it as good as it is on disk now: it
was not changed, or only in hints, which a crash may lose at any time. If the log mentions it later, the log of the
second backup repairs it. This holds only for the main fork: changes of the other two need not be in the log. See
decision 0095.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field

import psycopg

from dbguardd.engines.postgresql.child import Alive
from dbguardd.engines.postgresql.connect import Connection, rows, text
from dbguardd.engines.postgresql.physical.cluster import Cluster, waited
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.segments import format_lsn, parse_lsn
from dbguardd.engines.postgresql.typed import statements
from dbguardd.errors import Cancelled, GuardError, SourceInvalid
from dbguardd.flow import BLOCK_BYTES, Facts
from dbguardd.frozen import frozen

OLDEST = 17
"""The first version that summarizes its log."""

_WAIT_SECONDS, _BEAT_SECONDS = 10.0, 0.1  # the server summarizes the log up to a checkpoint as soon as that is done
_WORD, _ONES = 64, (1 << 64) - 1
_MOST_BYTES = 64 << 30  # of a file: what is said of it has to fit into one message of the seam
_DEFAULT, _GLOBAL = 1663, 1664
_MAIN = re.compile(
    r"(?:global|base/(?P<base>\d+)|pg_tblspc/(?P<space>\d+)/PG_\d+_\d+/(?P<database>\d+))"
    r"/(?P<node>\d+)(?:\.(?P<segment>\d+))?"
)
_ON = b"SELECT current_setting('summarize_wal')"
_SETTINGS = b"SELECT current_setting('summarize_wal'), setting::int8 FROM pg_settings WHERE name = 'segment_size'"
_AVAILABLE = b"SELECT start_lsn::text, end_lsn::text FROM pg_available_wal_summaries() WHERE tli = %s"
_CONTENTS = b"""
SELECT reltablespace::int8, reldatabase::int8, relfilenode::int8,
  min(relblocknumber) FILTER (WHERE is_limit_block), relblocknumber / (%s * %s),
  bit_or(1::int8 << (relblocknumber / %s %% %s)::int) FILTER (WHERE NOT is_limit_block)
FROM unnest(%s::pg_lsn[], %s::pg_lsn[]) AS part (start, stop), pg_wal_summary_contents(%s, part.start, part.stop)
WHERE relforknumber = 0 GROUP BY 1, 2, 3, 5, is_limit_block
"""
_NEXT = b"FETCH 10000 FROM changes"

Relation = tuple[int, int, int]
"""Tablespace, database, and the number in the names of its files; number 0 means every relation there."""

RelationFile = tuple[int, int, int, int]
"""A relation, and which of its files: each but the last has the same size."""


@frozen
class Changes:
    """What has changed since the parent backup; if that is `unknown`, the reason. With neither, nobody has asked."""

    unknown: str = ""
    segment_blocks: int = 0  # the blocks of one file; 0 if nothing is known
    page: int = 0
    marks: Mapping[RelationFile, bytearray] = field(default_factory=dict)
    """By file: a bit for each part that has changed, as in flow.Sink.adopt; the last ones may be missing."""
    limits: Mapping[Relation, int] = field(default_factory=dict)
    """By relation: the number of blocks to which it was truncated; 0 if it was made or dropped."""

    def within(self, path: str, size: int) -> bytes | None:
        """Return which parts of a file may have changed; None if all of them may have."""
        found = _MAIN.fullmatch(path)
        if not self.segment_blocks or found is None or size % self.page or size > _MOST_BYTES:
            return None
        space = int(found["space"] or (_DEFAULT if found["base"] else _GLOBAL))
        database, segment = int(found["base"] or found["database"] or 0), int(found["segment"] or 0)
        relation, end = (space, database, int(found["node"])), (segment + 1) * self.segment_blocks
        if (space, database, 0) in self.limits or self.limits.get(relation, end) < end:
            return None
        length = -(-size // (BLOCK_BYTES * 8))
        return bytes(self.marks.get((*relation, segment), b"")[:length]).ljust(length, b"\0")


def look_up(
    session: Callable[[ExitStack], Connection], cluster: Cluster, parent: Callable[[], Facts], start: int, alive: Alive
) -> Changes:
    """Ask the server what has changed between the starts of the parent backup and of this one, whose log is at `start`.

    Where that is not known for certain, all is read, as without summaries.
    """
    if cluster.major < OLDEST or cluster.standby or not (facts := parent()):
        return Changes()
    try:
        since = _since(facts, cluster, start)
        with ExitStack() as stack:
            return _changes(session(stack), cluster, since, start, alive)
    except _Unknown as reason:
        return Changes(str(reason))
    except (Cancelled, SourceInvalid):
        raise
    except GuardError as error:
        return Changes(f"{error.message}. {error.detail}")
    except psycopg.Error as error:
        return Changes(f"the server could not say: {str(error).strip()}")


def unsummarized(connection: Connection, cluster: Cluster) -> str:
    """Return that the server could say what has changed, and does not, with the command for that; "" otherwise."""
    if cluster.major < OLDEST or cluster.standby or rows(connection, _ON) == [(b"on",)]:
        return ""
    mend = statements(connection, "ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()")
    return f". Of a file that was written, all is read again, because summarize_wal is off. Fix: {mend}"


class _Unknown(Exception):  # noqa: N818
    """Why it is not known what has changed."""


def _since(parent: Facts, cluster: Cluster, start: int) -> int:
    """Return where the log of the parent backup begins. Raises _Unknown unless this log continues that one.

    Another copy of the cluster, or this one after its disk was set back, would have gone on from an earlier place with
    the same numbers. The server would have been started for that.
    """
    try:
        before = ClusterFacts.read(parent)
    except GuardError as error:
        raise _Unknown(f"of the backup before: {error.message}") from error
    if (before.system, before.timeline) != (cluster.log.system, cluster.log.timeline) or before.stop_lsn > start:
        raise _Unknown("the log has turned since the backup before")
    if not before.started:
        raise _Unknown("the backup before does not say when its server had started")
    if before.started != text(cluster.started):
        raise _Unknown("the server was started since the backup before")
    return before.start_lsn


def _changes(connection: Connection, cluster: Cluster, since: int, start: int, alive: Alive) -> Changes:
    ((on, blocks),) = rows(connection, _SETTINGS)
    if text(on) != "on":
        raise _Unknown("summarize_wal is off")
    per_part = BLOCK_BYTES // cluster.page
    if blocks % (per_part * _WORD):
        raise _Unknown(f"the files of a relation have {blocks} blocks")
    parts = _summarized(connection, cluster.log.timeline, since, start, alive)
    per_file = blocks // (per_part * _WORD)
    marks: dict[RelationFile, bytearray] = {}
    limits: dict[Relation, int] = {}
    asked = ([first for first, _ in parts], [end for _, end in parts], cluster.log.timeline)
    with connection.transaction(), connection.cursor("changes") as cursor:
        cursor.execute(_CONTENTS, (per_part, _WORD, per_part, _WORD, *asked))
        while found := waited(connection, alive, _NEXT):
            for space, database, node, limit, word, bits in found:
                if limit is not None:
                    limits[space, database, node] = min(limit, limits.get((space, database, node), limit))
                    continue
                segment, at = divmod(word, per_file)
                _mark(marks.setdefault((space, database, node, segment), bytearray()), at, bits)
    return Changes("", blocks, cluster.page, marks, limits)


def _mark(marks: bytearray, word: int, bits: int) -> None:
    start, size = word * _WORD // 8, _WORD // 8
    marks.extend(bytes(max(0, start + size - len(marks))))
    marks[start : start + size] = (bits & _ONES).to_bytes(size, "little")


def _summarized(
    connection: Connection, timeline: int, since: int, start: int, alive: Alive
) -> Sequence[tuple[str, str]]:
    """Return the parts of the log from `since` to `start` that are summarized. Raises _Unknown if one is missing."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        found = sorted(
            (parse_lsn(text(first)), parse_lsn(text(end))) for first, end in rows(connection, _AVAILABLE, timeline)
        )
        parts = [(first, end) for first, end in found if end > since and first < start]
        reached = since
        for first, end in parts:
            if first <= reached:
                reached = max(reached, end)
        if reached >= start:
            return [(format_lsn(first), format_lsn(end)) for first, end in parts]
        if any(first > reached for first, _ in parts) or time.monotonic() > deadline:
            raise _Unknown(f"the log from {format_lsn(reached)} on has no summary")
        alive()
        time.sleep(_BEAT_SECONDS)
