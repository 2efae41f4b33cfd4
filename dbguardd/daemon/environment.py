"""The environment of the runner: how it runs a worker, what the policy says, time, ids, and the log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dbguardd.daemon.live import JobTerms, Order
from dbguardd.frozen import frozen

OnMessage = Callable[[dict[str, Any]], None]


class RunWorker(Protocol):
    """Runs one job in a worker and returns its result; worker/start.py."""

    def __call__(
        self, spec: Mapping[str, Any], on_message: OnMessage, cancel: asyncio.Event, /, *, stall_timeout: float
    ) -> Awaitable[dict[str, Any]]: ...


class Look(Protocol):
    """Finds out what is at a path or on a server, as its owner sees it; worker/look.py."""

    def __call__(self, place: str, /) -> Awaitable[Mapping[str, Any]]: ...


class Sweep(Protocol):
    """Removes what killed workers have left in the state directory; worker/staging.py."""

    def __call__(self, state: Path, /) -> Awaitable[Sequence[str]]: ...


class Logger(Protocol):
    """Takes events as noun.verb with facts, as structlog's loggers do."""

    def debug(self, event: str, **facts: Any) -> Any: ...

    def info(self, event: str, **facts: Any) -> Any: ...

    def warning(self, event: str, **facts: Any) -> Any: ...

    def error(self, event: str, **facts: Any) -> Any: ...


@frozen
class Environment:
    """What the runner needs from outside. `terms` raises an error, such as NotFound, if the policy forbids the job."""

    run_worker: RunWorker
    terms: Callable[[Order], JobTerms]
    now: Callable[[], datetime]
    new_id: Callable[[datetime], str]
    random: Callable[[], float]
    log: Logger
    state: str
