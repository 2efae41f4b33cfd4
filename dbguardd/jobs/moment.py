"""Which moment a restore reaches: a backup alone, or one with the log that was stored since put over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dbguardd.jobs.base import Run, instant
from dbguardd.jobs.choose import choose, dated, existing, to_moment
from dbguardd.repository import Backup, Chain, Link, Log, Until

_NEAR = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Moment:
    """What would be restored: `backup`, with the log up to `until`, as it was at `at`."""

    backup: Backup
    at: datetime
    until: Until | None
    warnings: list[str]

    def plan(self) -> dict[str, Any]:
        """Return what a plan says of it."""
        segments = 0 if self.until is None else self.until.last - self.until.after
        shown = self.at + timedelta(microseconds=999) if self.until else self.at  # in milliseconds, not before it
        return {"backup": self.backup.id, "created_at": instant(shown), "segments": segments}


def reach(run: Run, id: str = "", at: str = "") -> Moment:
    """Return the backup with that id; or the newest moment to rely on that is not younger than `at`.

    Raises what choose() raises. A moment that is earlier than the one asked for is said to be.
    """
    backup, warnings = choose(run, id, at)
    alone = Moment(backup, backup.created_at, None, warnings)
    if id:
        return alone
    wanted = to_moment(at) if at else None
    found = max(_moments(run, wanted), key=lambda moment: moment.at, default=alone)
    best = alone if found.at < alone.at else found
    if wanted is not None and best.until is not None and wanted - best.at > _NEAR:
        said = f"the log is stored up to {instant(best.at)}; whether anything was committed after that is not known"
        best.warnings.append(said)
    return best


def newest(run: Run, backup: Backup) -> Moment | None:
    """Return the newest moment of the log that a backup is in, from the backup before it where there is one.

    So what lies between two backups is tried, which is what a log is for.
    """
    chain = str((backup.facts.get("log") or {}).get("chain", "-"))
    found = next(_moments(run, None, chain, backup.id), None)
    return next(_moments(run, None, chain), None) if found is None else found


def _moments(run: Run, wanted: datetime | None, only: str = "", without: str = "") -> Iterator[Moment]:
    """Yield the newest moment of each chain that has a backup to begin with, the newest chain first."""
    log = run.repository.log(run.name)
    if log is None:
        return
    backups = existing(run)
    sound = {b.id for b in dated(run, backups) if not b.failed and not b.safety}
    bases = [b for b in backups if b.id in sound - {without} and (wanted is None or b.created_at <= wanted)]
    for chain in reversed([chain for chain in log.chains() if only in ("", chain.id)]):
        for backup in bases:
            said = backup.facts.get("log") or {}
            if said.get("chain") != chain.id or not chain.first <= said["after"] + 1 <= chain.last + 1:
                continue
            link = _last(log, chain, backup, wanted)
            if link is not None:
                yield Moment(backup, link.at, Until(chain, said["after"], link.number), [])
                return


def _last(log: Log, chain: Chain, backup: Backup, wanted: datetime | None) -> Link | None:
    """Return the last segment that ends a transaction, is not younger than `wanted`, and reaches past the backup."""
    after, place = backup.facts["log"]["after"], backup.facts.get("log_place") or {}
    reaching = next((link for link in _links(log, chain, after) if _holds(link, place)), None)
    if reaching is None:
        return None
    pieces = [piece for piece in chain.pieces if piece.last >= reaching.number]
    for position in range(len(pieces) - 1, -1, -1):
        if wanted is not None and position and pieces[position - 1].until > wanted:
            continue
        for link in reversed(log.open(pieces[position])):
            if link.number >= reaching.number and link.size and (wanted is None or link.at <= wanted):
                return link
    return None


def _links(log: Log, chain: Chain, first: int) -> Iterator[Link]:
    for piece in chain.pieces:
        if piece.last >= first:
            yield from (link for link in log.open(piece) if link.number >= first)


def _holds(link: Link, place: dict[str, Any]) -> bool:
    """Say if a segment reaches the place in the log that a backup is of; see flow.Segment."""
    until = link.until
    return bool(place) and until["round"] == place["round"] and until["position"] >= place["position"]


def tip(run: Run) -> dict[str, Any] | None:
    """Return where the stored log of the database ends now: a backup that is made from now on contains all of that."""
    log = run.repository.log(run.name)
    chains: Sequence[Chain] = log.chains() if log is not None else ()
    return {"chain": chains[-1].id, "after": chains[-1].last} if chains else None
