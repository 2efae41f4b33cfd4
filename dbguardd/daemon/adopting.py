"""Decides whether a database may take a name that has backups: only the user knows whether they are of this database.

Otherwise the backups of a lost database would expire one by one as the new one gets its own, and a restore would bring
back the empty server of a new machine. So what is known of both is compared, and the user is told before anything is
done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dbguardd.catalog import Catalog
from dbguardd.daemon.inforce import LOG, PolicyInForce
from dbguardd.errors import ConfirmMissing, PolicyShrinks, Usage
from dbguardd.frozen import frozen
from dbguardd.humanize import count as counted
from dbguardd.kinds import KINDS
from dbguardd.policy.policy import Policy


@frozen
class Seen:
    """What a close look at a live database has found; None where unknown."""

    path: str
    engine: str
    empty: bool | None = None  # no table has a row
    system: str | None = None  # the system identifier of the cluster
    position: int | None = None  # the end of its log


@frozen
class Ways:
    """What the hints of a refusal are made of: the command that the user typed, and a free name."""

    asked: str
    free: str


def check_left(name: str, seen: Seen, adopt: str, catalog: Catalog, ways: Ways) -> None:
    """Refuse a name with backups that is not in the policy, unless the user adopts it for this database.

    Raises PolicyShrinks, and Usage for an adoption that is impossible.
    """
    engine, count = catalog.backups.databases().get(name, ""), catalog.backups.summary(name).count
    if adopt and engine != seen.engine:
        raise Usage(
            f"{adopt}: there are no backups of a {KINDS[seen.engine].title} database of that name to continue",
            hints=["dbguardctl status", ways.asked],
        )
    if engine and not adopt:
        same = [f"{ways.asked} --adopt {name}  # the same one, restored or moved"] if engine == seen.engine else []
        raise PolicyShrinks(
            f"{name}: there {'is' if count == 1 else 'are'} {counted(count, 'backup')} of a database of that name, "
            "which is not in the policy",
            detail=f"Whether {seen.path} is that one is not known. If not, its backups would in time replace them.",
            hints=[*same, f"{ways.asked} --name {ways.free}  # it is a different one"],
        )


def check_same(name: str, seen: Seen, catalog: Catalog, ways: Ways) -> None:
    """Raise ConfirmMissing if a database does not look like the one that the user says it is."""
    if doubts := [*_doubts(name, seen, catalog)]:
        raise ConfirmMissing(
            f"{name}: {seen.path} does not look like the database that was backed up",
            detail="\n".join([*doubts, "After an adoption, a restore brings back this database."]),
            hints=[
                f"dbguardctl restore {name} --to PLACE  # the old one is lost: restore it, then adopt the result",
                f"{ways.asked} --name {ways.free}  # it is a different one",
                f"{ways.asked} --adopt {name} --confirm {name}  # it is the same one nevertheless",
            ],
        )


def is_another(name: str, seen: Seen, catalog: Catalog) -> bool:
    """Return whether the database is known to be another cluster than the one that was backed up."""
    system, _ = _server(name, catalog)
    return None not in (system, seen.system) and system != seen.system


def _doubts(name: str, seen: Seen, catalog: Catalog) -> Iterator[str]:
    newest, rows = catalog.backups.summary(name).newest, int(catalog.settings.get(f"rows:{name}") or 0)
    of = f"the newest backup, of {newest.created_at}," if newest else "the newest backup"
    if seen.empty and rows:
        yield f"None of its tables has a row; {of} has {counted(rows, 'row')}."
    system, position = _server(name, catalog)
    if is_another(name, seen, catalog):
        yield f"It is a different cluster, {seen.system}; {of} is of {system}."
    elif seen.position is not None and position is not None and seen.position < position:
        yield f"Its log ends at {_lsn(seen.position)}, before {_lsn(position)}, where {of} is: it was set back."


def _server(name: str, catalog: Catalog) -> tuple[str | None, int | None]:
    """Return the system identifier and the log position of the newest backup; None where unknown."""
    known: Mapping[str, Any] = json.loads(catalog.settings.get(f"server:{name}") or "{}")
    return known.get("system"), known.get("position")


def _lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def goes_with(name: str, settings: Mapping[str, Any], inforce: PolicyInForce) -> tuple[int, bool]:
    """Return how many backups would expire at once if a database came back into the policy with these settings.

    And whether some of its log would be deleted. The policy under which they were kept may be lost.
    """
    new = Policy.model_validate({"version": 1, "database": {name: settings}}).database[name]
    going = inforce.going(inforce.policy.with_only(name, new), adopted=name).get(name, {})
    return len(going.keys() - {LOG}), LOG in going
