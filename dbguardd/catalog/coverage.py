"""The time ranges that the stored log of a database covers, as the catalog knows them: a row for each chain."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, field, replace
from typing import Any

from dbguardd.catalog.state import Settings
from dbguardd.catalog.times import to_moment
from dbguardd.frozen import frozen
from dbguardd.rules.coverage import Logged
from dbguardd.wire import LogProof

_MOST = 200  # chains to remember for each database


@frozen
class Covered:
    """A part of the log without a gap: what was committed from `since_at` to `until_at` is stored in this chain.

    `thinned` maps a grain in seconds to a moment: up to that moment, only one moment in so many seconds is left.
    """

    chain: str
    since_at: str
    until_at: str
    thinned: Mapping[str, str] = field(default_factory=dict)

    def logged(self) -> Logged:
        """Return it in the form that the rules take."""
        thinned = {int(grain): to_moment(until_at) for grain, until_at in self.thinned.items()}
        return Logged(to_moment(self.since_at), to_moment(self.until_at), thinned)


def read(settings: Settings, database: str) -> list[Covered]:
    """Return the ranges of a database, oldest first; none if they cannot be read."""
    try:
        return [Covered(**row) for row in json.loads(settings.get(f"log:{database}") or "[]")]
    except (TypeError, ValueError):
        return []


def write(settings: Settings, database: str, rows: Sequence[Covered]) -> None:
    """Replace the ranges of a database."""
    settings.put(f"log:{database}", json.dumps([asdict(row) for row in rows[-_MOST:]]))


def begin(settings: Settings, database: str, row: Covered) -> None:
    """Add a chain, unless it is known."""
    rows = read(settings, database)
    if any(known.chain == row.chain for known in rows):
        return
    write(settings, database, [*rows, row])


def learn(settings: Settings, database: str, rows: Sequence[Covered]) -> None:
    """Take over what is in a storage; the end of a chain stays later than that if nothing was committed since."""
    known = {row.chain: row.until_at for row in read(settings, database)}
    ends = _last_rows(rows)
    found = [replace(row, until_at=max(row.until_at, known.get(row.chain, ""))) if row in ends else row for row in rows]
    write(settings, database, found)


def reached(rows: Sequence[Covered], row: Covered) -> list[Covered]:
    """Return the ranges with what a follower has reported of its chain; `since_at` is empty if it did not begin it.

    Its last report counts even if it is earlier than the one before: then a clock that was ahead was corrected. A chain
    that it has begun is added if it is missing: an earlier scan may have removed it.
    """
    if row.since_at and all(known.chain != row.chain for known in rows):
        return [*rows, row]
    mine = [known for known in _last_rows(rows) if known.chain == row.chain]
    return [replace(known, until_at=row.until_at) if known in mine else known for known in rows]


def _last_rows(rows: Sequence[Covered]) -> Collection[Covered]:
    """Return the last row of each chain: a chain with a gap has several, and only the last can still grow."""
    return {row.chain: row for row in rows}.values()


def tried(settings: Settings, database: str, facts: Mapping[str, Any], at: str) -> None:
    """Record the result of a test restore of a database's log: it grades no backup, so it is kept only here."""
    moment, known = facts["moment_at"], proof(settings, database) or LogProof()
    match facts["outcome"]:
        case "ok":
            known = replace(known, proven_at=at, moment_at=str(moment))
        case "failed":
            said = f"as it was at {moment}: {facts['detail']}" if moment else str(facts["detail"])
            known = replace(known, failed_at=at, failure=said)
    settings.put(f"log_proof:{database}", json.dumps(asdict(known)))


def proof(settings: Settings, database: str) -> LogProof | None:
    """Return what the test restores of a database's log have shown; None if there was none."""
    known = settings.get(f"log_proof:{database}")
    return None if known is None else LogProof(**json.loads(known))
