"""Refuses requests that the catalog shows to be mistaken, before they become jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dbguardd.daemon.inforce import states_of
from dbguardd.daemon.operations import Operations
from dbguardd.kinds import KINDS
from dbguardd.rules import requested
from dbguardd.rules.requested import Other

_BY_BACKUP = frozenset(("restore", "verify", "query", "get", "undelete"))


def check(do: Operations, verb: str, request: Mapping[str, Any]) -> None:
    """Raise NotFound, Usage or Unsupported if a request names a backup, a moment or a place that cannot be meant.

    If the catalog may lack a backup because a storage has not been read yet, only the job can find out. A target is not
    looked for: on a file system that hangs, that would stop the daemon.
    """
    name = str(request.get("database") or "")
    if verb == "restore":
        requested.check_way(name, request, is_server=_is_server(do, name))
        if request["to"]:
            requested.check_place(name, request["to"])
    rows = do.catalog.backups.of(name) if verb in _BY_BACKUP or verb == "diff" else []
    if not rows or not _is_complete(do):
        return

    def others() -> Iterator[Other]:
        yield from (Other(gone.backup.id, name) for gone in do.catalog.backups.expired(name))
        for database in do.catalog.backups.databases():
            if database != name:
                yield from (Other(row.id, database) for row in do.catalog.backups.of(database))

    for id, at in _named(verb, request):
        if id:
            requested.by_id(name, id, [row.id for row in rows], others, request)
        elif at:
            requested.at_or_before(name, states_of(rows), at)


def _named(verb: str, request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the ids and moments in a request. Where it says both, the job reports that."""
    if verb == "diff":
        for said in filter(None, (request["older"], request["newer"])):
            yield ("", said) if ":" in said else (said, "")
    elif not (request["backup"] and request.get("at")):
        yield request["backup"], request.get("at") or ""


def _is_server(do: Operations, name: str) -> bool:
    """Return whether a database is behind a server, by the policy or else by its backups; True if nobody knows it."""
    policy = do.inforce.policy
    if name in policy.names():
        return policy.guarded(name).url is not None
    return not any(KINDS[row.engine].where == "path" for row in do.catalog.backups.of(name))


def _is_complete(do: Operations) -> bool:
    """Return whether the catalog knows every backup: no storage is unread, or waits to be read again."""
    storages = do.inforce.storages()
    return not any(do.views.storages.is_unread(one) or do.runner.active(f"storage:{one}") for one in storages)
