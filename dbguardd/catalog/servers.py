"""Which servers may keep a log for us: remembered from when one is followed until it was told to keep it no longer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dbguardd.catalog.state import Settings
from dbguardd.errors import GuardError
from dbguardd.frozen import frozen

_KEY = "followed"


@frozen
class Kept:
    """A server that may keep a log: the database as in the spec of a job, and since when that is of no use to us."""

    database: Mapping[str, Any]
    left_at: str | None = None


def read(settings: Settings) -> dict[str, Kept]:
    """Return the servers by the name of their database; none if they cannot be read."""
    with suppress(TypeError, ValueError, GuardError):
        return {name: Kept(**row) for name, row in json.loads(settings.get(_KEY) or "{}").items()}
    return {}


def url_before(settings: Settings, name: str, database: Mapping[str, Any]) -> str:
    """Return the url of the remembered server if it is not that of `database`: perhaps another server; else ""."""
    kept = read(settings).get(name)
    url = None if kept is None else kept.database["settings"].get("url")
    return "" if url in (None, database["settings"].get("url")) else str(url)


def remember(settings: Settings, name: str, kept: Kept | None) -> None:
    """Remember a server; None: it keeps nothing any more. `check` names what is left at a server that is forgotten."""
    before = read(settings)
    rows = {other: row for other, row in before.items() if other != name} | ({} if kept is None else {name: kept})
    if rows != before:
        told = {name: {"database": dict(row.database), "left_at": row.left_at} for name, row in rows.items()}
        with suppress(GuardError):  # the catalog cannot be written
            settings.put(_KEY, json.dumps(told))
