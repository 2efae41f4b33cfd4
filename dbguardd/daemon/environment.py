"""What surrounds the runner: how a worker is run, what the policy says, time, ids, and where events are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dbguardd.daemon.live import Order, Terms

OnMessage = Callable[[dict[str, Any]], None]


class RunWorker(Protocol):
    """Runs one job in a worker and returns its result; worker/start.py."""

    def __call__(
        self, spec: Mapping[str, Any], on_message: OnMessage, cancel: asyncio.Event, /, *, stall_timeout: float
    ) -> Awaitable[dict[str, Any]]: ...


class Look(Protocol):
    """Says what lies at a path or what a server has, as its owner sees it; worker/look.py."""

    def __call__(self, place: str, /) -> Awaitable[Mapping[str, Any]]: ...


class Sweep(Protocol):
    """Removes what workers that were killed have left in the state directory; worker/staging.py."""

    def __call__(self, state: Path, /) -> Awaitable[Sequence[str]]: ...


class Logger(Protocol):
    """Takes events as noun.verb with facts; structlog's loggers do."""

    def debug(self, event: str, **facts: Any) -> Any: ...

    def info(self, event: str, **facts: Any) -> Any: ...

    def warning(self, event: str, **facts: Any) -> Any: ...

    def error(self, event: str, **facts: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Environment:
    """What the runner needs from outside. `terms` raises NotFound and the like when the policy does not allow it."""

    run_worker: RunWorker
    terms: Callable[[Order], Terms]
    now: Callable[[], datetime]
    new_id: Callable[[datetime], str]
    random: Callable[[], float]
    log: Logger
    state: str
