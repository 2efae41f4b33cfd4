"""Records what happens: stores each event in the catalog, logs it, and wakes the readers of events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from dbguardd.catalog import Catalog
from dbguardd.daemon.environment import Logger
from dbguardd.daemon.wakeup import Wakeup
from dbguardd.errors import GuardError
from dbguardd.events import LEVELS, level_of
from dbguardd.sentences import plain

Facts = Mapping[str, Any]

_NOT_LOGGED = frozenset(("event", "level", "message", "exc_info", "exception", "timestamp", "findings"))
_SERIOUS = LEVELS[2:]


class Events:
    """The events of one daemon. Use it from the thread of the event loop."""

    def __init__(self, catalog: Catalog, now: Callable[[], datetime], log: Logger) -> None:
        self._catalog = catalog
        self._now = now
        self._log = log
        self.wakeup = Wakeup()

    def tell(self, event: str, database: str | None, job: str | None, facts: Facts, more: Facts | None = None) -> None:
        """Store an event and its effect in the catalog, and log it. `more` is only logged.

        Raises Internal on bad facts, NoSpace, Degraded.
        """
        self._catalog.record(self._now(), event, database, job, facts)
        self.wakeup.wake()
        self.log(event, {**(more or {}), **facts, "database": database, "job": job})

    def note(self, event: str, database: str | None, facts: Facts) -> None:
        """Log an event that changes nothing in the catalog, and store it if possible. Raises nothing."""
        self.log(event, {**facts, "database": database})
        try:
            self._catalog.record(self._now(), event, database, None, facts)
        except GuardError as error:
            self.log("catalog.failed", {"problem": error.problem()})
        self.wakeup.wake()

    def log(self, event: str, facts: Facts, bug: BaseException | None = None) -> None:
        """Log an event, a bug with its trace, and a serious event together with the last proven backup."""
        told = plain({**facts, "event": event})
        level = level_of(told)
        if level in _SERIOUS and "database" in told:
            with suppress(GuardError):
                proven = self._catalog.backups.summary(str(told["database"])).proven
                told.setdefault("last_proven", "none" if proven is None else proven.id)
        known = {name: value for name, value in told.items() if name not in _NOT_LOGGED}
        getattr(self._log, level)(event, **known, **({} if bug is None else {"exc_info": bug}))
