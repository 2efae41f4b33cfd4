"""Whether a database may take a name that has backups: only a person knows if it is the one that they are of.

Else those of a lost database would expire one by one as the new one gets its own, and the empty server of a new machine
would be what a restore brings back. What can be seen of both is held against each other, and said before it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dbguardd.catalog import Catalog
from dbguardd.daemon.inforce import LOG, InForce
from dbguardd.errors import ConfirmMissing, PolicyShrinks, Usage
from dbguardd.humanize import count as counted
from dbguardd.kinds import KINDS
from dbguardd.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a live database when it was looked at closely; unknown is None."""

    path: str
    engine: str
    empty: bool | None = None  # no table has a row
    system: str | None = None  # which cluster it is
    position: int | None = None  # up to where its log is


@dataclass(frozen=True, slots=True)
class Ways:
    """What is typed instead: the command that asked, and a name that is free."""

    asked: str
    free: str


def check_left(name: str, seen: Seen, adopt: str, catalog: Catalog, ways: Ways) -> None:
    """Refuse to go on with the backups of a database that is not in the policy, unless this is said to be that one.

    Raises PolicyShrinks, and Usage for an adoption that cannot be.
    """
    engine, count = catalog.backups.databases().get(name, ""), catalog.backups.summary(name).count
    if adopt and engine != seen.engine:
        raise Usage(
            f"{adopt}: there are no backups of a {KINDS[seen.engine].title} database of that name to go on with",
            hints=["dbguardctl status", ways.asked],
        )
    if engine and not adopt:
        same = [f"{ways.asked} --adopt {name}  # it is that one, restored or moved"] if engine == seen.engine else []
        raise PolicyShrinks(
            f"{name}: there {'is' if count == 1 else 'are'} {counted(count, 'backup')} of a database of that name, "
            "which is not in the policy",
            detail=f"Nobody knows if {seen.path} is that one. If not, its backups would in time take their place.",
            hints=[*same, f"{ways.asked} --name {ways.free}  # it is another one"],
        )


def check_same(name: str, seen: Seen, catalog: Catalog, ways: Ways) -> None:
    """Raise ConfirmMissing if a database does not look like the one that it is said to be."""
    if doubts := [*_doubts(name, seen, catalog)]:
        raise ConfirmMissing(
            f"{name}: {seen.path} does not look like the database that was backed up",
            detail="\n".join([*doubts, "What is adopted is what a restore brings back from then on."]),
            hints=[
                f"dbguardctl restore {name} --to PLACE  # that one is lost: bring it back, then adopt what comes of it",
                f"{ways.asked} --name {ways.free}  # it is another one",
                f"{ways.asked} --adopt {name} --confirm {name}  # it is that one all the same",
            ],
        )


def is_another(name: str, seen: Seen, catalog: Catalog) -> bool:
    """Say if it is known to be another cluster than the one whose backups there are."""
    system, _ = _server(name, catalog)
    return None not in (system, seen.system) and system != seen.system


def _doubts(name: str, seen: Seen, catalog: Catalog) -> Iterator[str]:
    newest, rows = catalog.backups.summary(name).newest, int(catalog.settings.get(f"rows:{name}") or 0)
    of = f"the newest backup, of {newest.created_at}," if newest else "the newest backup"
    if seen.empty and rows:
        yield f"No table of it has a row; {of} has {counted(rows, 'row')}."
    system, position = _server(name, catalog)
    if is_another(name, seen, catalog):
        yield f"It is another cluster, {seen.system}; {of} is of {system}."
    elif seen.position is not None and position is not None and seen.position < position:
        yield f"Its log ends at {_lsn(seen.position)}; {of} is of {_lsn(position)}: it was set back to before that."


def _server(name: str, catalog: Catalog) -> tuple[str | None, int | None]:
    """Return which cluster the newest backup is of, and up to where in its log."""
    known: Mapping[str, Any] = json.loads(catalog.settings.get(f"server:{name}") or "{}")
    return known.get("system"), known.get("position")


def _lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def goes_with(name: str, settings: Mapping[str, Any], inforce: InForce) -> tuple[int, bool]:
    """Return how many backups would be deleted at once if a database came back into the policy like that, and if log.

    Nobody knows how long that was kept, by a policy that is lost.
    """
    new = Policy.model_validate({"version": 1, "database": {name: settings}}).database[name]
    going = inforce.going(inforce.policy.with_only(name, new), adopted=name).get(name, {})
    return len(going.keys() - {LOG}), LOG in going
