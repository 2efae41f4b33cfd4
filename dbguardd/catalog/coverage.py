"""Which stretches of time the stored log of a database covers, as the catalog knows it: a row for each chain."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dbguardd.catalog.state import Settings
from dbguardd.catalog.times import to_moment
from dbguardd.rules.coverage import Logged
from dbguardd.wire import LogProof

_MOST = 200  # chains that are remembered of a database


@dataclass(frozen=True, slots=True)
class Covered:
    """A log without a gap: what was committed from `since_at` to `until_at` is stored, in this chain.

    Up to the moments in `thinned` one moment in so many seconds is left, which are their names.
    """

    chain: str
    since_at: str
    until_at: str
    thinned: Mapping[str, str] = field(default_factory=dict)

    def logged(self) -> Logged:
        """Return it as the rules take it."""
        thinned = {int(grain): to_moment(until_at) for grain, until_at in self.thinned.items()}
        return Logged(to_moment(self.since_at), to_moment(self.until_at), thinned)


def read(settings: Settings, database: str) -> list[Covered]:
    """Return the stretches of a database, oldest first; nothing of what cannot be read."""
    try:
        return [Covered(**row) for row in json.loads(settings.get(f"log:{database}") or "[]")]
    except (TypeError, ValueError):
        return []


def write(settings: Settings, database: str, rows: Sequence[Covered]) -> None:
    """Replace the stretches of a database."""
    settings.put(f"log:{database}", json.dumps([asdict(row) for row in rows[-_MOST:]]))


def begin(settings: Settings, database: str, row: Covered) -> None:
    """Add a chain, or go on with it."""
    rows = read(settings, database)
    if any(known.chain == row.chain for known in rows):
        return
    write(settings, database, [*rows, row])


def learn(settings: Settings, database: str, rows: Sequence[Covered]) -> None:
    """Take over what lies in a storage; a chain reaches further than that if nothing was committed at its end."""
    known = {row.chain: row.until_at for row in read(settings, database)}
    ends = last_rows(rows)
    found = [replace(row, until_at=max(row.until_at, known.get(row.chain, ""))) if row in ends else row for row in rows]
    write(settings, database, found)


def last_rows(rows: Sequence[Covered]) -> Collection[Covered]:
    """Return the last row of each chain: one with a hole has several, and only the last can still grow."""
    return {row.chain: row for row in rows}.values()


def forget(settings: Settings, database: str, until_at: str) -> None:
    """Note that what reached up to a moment was deleted. The newest chain may have come further than is known here."""
    rows = read(settings, database)
    left = [row for row in rows[:-1] if row.until_at > until_at] + rows[-1:]
    since = [max(row.since_at, until_at) for row in left]
    write(
        settings,
        database,
        [replace(row, since_at=at, until_at=max(row.until_at, at)) for row, at in zip(left, since, strict=True)],
    )


def thin(settings: Settings, database: str, chain: str, grain: str, until_at: str) -> None:
    """Note up to when a chain was made coarser."""
    rows = read(settings, database)
    made = [replace(row, thinned={**row.thinned, grain: until_at}) if row.chain == chain else row for row in rows]
    write(settings, database, made)


def tried(settings: Settings, database: str, facts: Mapping[str, Any], at: str) -> None:
    """Note how a test restore of the log of a database ended: it grades no backup, so it is kept here only."""
    moment, known = facts["moment_at"], proof(settings, database) or LogProof()
    match facts["outcome"]:
        case "ok":
            known = replace(known, proven_at=at, moment_at=str(moment))
        case "failed":
            said = f"as it was at {moment}: {facts['detail']}" if moment else str(facts["detail"])
            known = replace(known, failed_at=at, failure=said)
    settings.put(f"log_proof:{database}", json.dumps(asdict(known)))


def proof(settings: Settings, database: str) -> LogProof | None:
    """Return what the test restores of the log of a database have shown, None if there was none."""
    known = settings.get(f"log_proof:{database}")
    return None if known is None else LogProof(**json.loads(known))
