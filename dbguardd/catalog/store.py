"""The catalog: what the daemon knows, in one SQLite file that can be rebuilt from the repositories.

Only the daemon's thread writes it. The effect of a method is durable on return, or when the enclosing transaction ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from dbguardd.catalog import effects
from dbguardd.catalog.backups import Backups
from dbguardd.catalog.events import Events
from dbguardd.catalog.jobs import Jobs
from dbguardd.catalog.marks import Holds, Proofs
from dbguardd.catalog.schema import STEPS
from dbguardd.catalog.session import Session
from dbguardd.catalog.state import Pauses, Requests, Runs, Settings
from dbguardd.catalog.times import to_text
from dbguardd.errors import FormatTooNew
from dbguardd.wire import Event

EVENTS_KEPT = 50_000


class Catalog:
    """One attribute for each table; what spans tables is here."""

    def __init__(self, session: Session, events_kept: int) -> None:
        self._session = session
        self.jobs = Jobs(session)
        self.events = Events(session, events_kept)
        self.backups = Backups(session)
        self.proofs = Proofs(session)
        self.holds = Holds(session)
        self._index = effects.Index(self.backups, self.proofs, self.holds)
        self.runs = Runs(session)
        self.pauses = Pauses(session)
        self.settings = Settings(session)
        self.requests = Requests(session)

    @classmethod
    def open(cls, path: Path, *, events_kept: int = EVENTS_KEPT) -> Catalog:
        """Open, create or upgrade. Raises CatalogDamaged, SecondInstance, FormatTooNew, NoSpace, Degraded."""
        session = Session.open(path)
        try:
            _upgrade(session, path)
            return cls(session, events_kept)
        except BaseException:
            session.close()
            raise

    def transaction(self) -> AbstractContextManager[None]:
        """Return a context that commits its block as a whole or not at all. Never await inside it."""
        return self._session.transaction()

    def record(
        self, now: datetime, event: str, database: str | None, job: str | None, facts: Mapping[str, Any]
    ) -> Event:
        """Store an event together with its effect, both or neither. Raises Internal on bad facts."""
        at = to_text(now)
        with self.transaction():
            effects.apply(self._index, event, facts, at)
            effects.remember(self.settings, event, facts, at)
            return self.events.add(at, event, database, job, facts)

    def replay(self, storage: str, reports: Iterable[tuple[str, Mapping[str, Any]]], now: datetime) -> int:
        """Replace all that is known of a storage's backups with the effects of `reports`; return their number."""
        count = 0
        with self.transaction():
            self.backups.clear(storage)
            for count, (event, facts) in enumerate(reports, start=1):  # noqa: B007 - the last count is the result
                effects.apply(self._index, event, facts, to_text(now))
                effects.remember(self.settings, event, facts, to_text(now))
            self.settings.put(f"indexed:{storage}", to_text(now))
        return count

    def probe(self, now: datetime) -> None:
        """Prove with a durable write that the catalog works. Raises the error if it does not."""
        self.settings.put("alive_at", to_text(now))

    def close(self) -> None:
        """Close the file; every change is durable already."""
        self._session.close()


def _upgrade(session: Session, path: Path) -> None:
    row = session.row("PRAGMA user_version")
    version = int(row[0]) if row else 0
    if version > len(STEPS):
        raise FormatTooNew(
            f"{path}: the catalog was written by a newer dbguard",
            detail=f"it has version {version}, this dbguard knows {len(STEPS)}",
        )
    with session.transaction():
        for number, step in enumerate(STEPS[version:], start=version + 1):
            for statement in filter(None, (part.strip() for part in step.split(";"))):
                session.change(statement)
            session.change(f"PRAGMA user_version={number:d}")
