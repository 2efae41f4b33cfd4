"""The kinds of databases, and what everybody else than its engine knows of each: one row a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of database. `where` is the setting that says where it is; the first method is the usual one."""

    title: str
    where: str
    methods: tuple[str, ...]
    engine: tuple[str, ...]  # its own settings that the engine is told
    other: tuple[str, ...] = ()  # its own settings that others are told
    addresses: tuple[str, ...] = ()  # how those of its servers begin; none: it is a file
    account: str = ""  # whom its servers usually run as
    followed: tuple[str, ...] = ()  # the methods whose backups a log goes on from
    archived: bool = False  # its server can hand over that log file by file
    thinned: bool = False  # that log has images of pages, so it can be made coarser
    asked_in_server: bool = (
        False  # its backups are restored to be asked: the worker of a question has an engine half, too
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
        engine=("url", "exclude"),
        addresses=("postgresql:", "postgres:", "service="),
        account="postgres",
        followed=("pages",),
        archived=True,
        asked_in_server=True,
    ),
}


def engine_of(place: str) -> str | None:
    """Return the engine that a place means if it is the address of a server; None for a path."""
    return next((engine for engine, kind in KINDS.items() if place.startswith(kind.addresses)), None)
