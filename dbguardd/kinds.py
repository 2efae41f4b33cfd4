"""The kinds of databases, and what the rest of dbguard knows of each: one row a kind."""

from __future__ import annotations

from collections.abc import Mapping

from dbguardd.frozen import frozen


@frozen
class Kind:
    """One kind of database. `where` is the setting that locates it; the first of `methods` is the default."""

    title: str
    where: str
    methods: tuple[str, ...]
    engine: tuple[str, ...]  # its own settings that are passed to the engine
    other: tuple[str, ...] = ()  # its own settings that are not
    addresses: tuple[str, ...] = ()  # the prefixes of its servers' addresses; empty: it is a file
    account: str = ""  # the user that its servers usually run as
    marker: str = ""  # the file that each data directory of its servers has
    followed: tuple[str, ...] = ()  # the methods whose backups a log can continue from
    archived: bool = False  # its server can hand over the log file by file (archive_command)
    thinned: bool = False  # its log consists of page images, so it can be made coarser
    asked_in_server: bool = (
        False  # to question a backup, it is restored first: the worker of a question has an engine half
    )

    @property
    def own(self) -> frozenset[str]:
        """The settings of [database.NAME] that not every kind has."""
        return frozenset((*self.engine, *self.other))


KINDS: Mapping[str, Kind] = {
    "sqlite": Kind(
        title="SQLite",
        where="path",
        methods=("pages", "dump"),
        engine=("path", "max_block"),
        other=("keep_plain",),
        followed=("pages",),
        thinned=True,
    ),
    "postgresql": Kind(
        title="PostgreSQL",
        where="url",
        methods=("dump", "pages"),
        engine=("url", "exclude", "checkpoint"),
        addresses=("postgresql:", "postgres:", "service="),
        account="postgres",
        marker="PG_VERSION",
        followed=("pages",),
        archived=True,
        asked_in_server=True,
    ),
}


def engine_of(place: str) -> str | None:
    """Return the engine to which the address of a server belongs; None for a path."""
    return next((engine for engine, kind in KINDS.items() if place.startswith(kind.addresses)), None)
