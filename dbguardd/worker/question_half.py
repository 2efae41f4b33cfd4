"""The question half: reads backups page by page for a question. It has no key, repository or database.

What it reads may be hostile, so it runs as nobody where the daemon can arrange that, and its resources are limited.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from dbguardd.engines import ENGINES
from dbguardd.engines.base import Bounds, Questions
from dbguardd.errors import Cancelled, GuardError, Unsupported, Usage, WorkerDied, from_problem
from dbguardd.flow import Facts, Pages
from dbguardd.worker.channel import DATA_BYTES, Channel
from dbguardd.worker.child import prepare
from dbguardd.worker.rights import become_nobody

_BEAT_SECONDS = 0.2
_ADDRESS_BYTES = 2 << 30
_FILES = 64
_SPARE_SECONDS = 5
Asked = TypeVar("Asked")


class SeamPages:
    """Pages whose other end is the repository half. `number` selects one of the question's backups."""

    def __init__(self, channel: Channel, number: int, size: int, page_size: int) -> None:
        self._channel, self._number = channel, number
        self.size, self.page_size = size, page_size

    def block(self, number: int) -> bytes:
        """Ask for one block."""
        self._channel.send({"block": [self._number, number]})
        message, _ = self._channel.receive()
        if isinstance(message, bytes):
            return message
        raise from_problem(message["problem"])


class SeamAnswer:
    """An answer whose other end is the repository half; small pieces are sent together."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting = bytearray()
        self._told = 0.0
        self._written = 0

    def write(self, data: bytes, /) -> None:
        """Take the next bytes."""
        self._waiting += data
        self._written += len(data)
        if len(self._waiting) >= DATA_BYTES:
            self.flush()
        self.beat()

    def flush(self) -> None:
        """Send what is buffered."""
        self._channel.send_data(bytes(self._waiting))
        self._waiting.clear()

    def beat(self) -> None:
        """Report progress, a few times a second."""
        now = time.monotonic()
        if now - self._told >= _BEAT_SECONDS:
            self._told = now
            self._channel.offer({"progress": ["answer", self._written, None]})


class QuestionHalf:
    """Serves the questions of the repository half until the channel closes."""

    def __init__(self, channel: Channel, past: Questions[Pages] | GuardError) -> None:
        self._channel, self._past = channel, past

    def serve(self) -> None:
        """Answer until the repository half hangs up."""
        self._channel.serve(self._call)

    def _call(self, name: str, args: Mapping[str, Any]) -> Any:
        if isinstance(self._past, GuardError):
            raise self._past
        pages = [SeamPages(self._channel, number, *sizes) for number, sizes in enumerate(args["asked"])]
        _confine(args["bounds"]["seconds"])
        return answered(self._past, name, pages, args, self._channel)


def answered(
    past: Questions[Asked], name: str, asked: Sequence[Asked], args: Mapping[str, Any], channel: Channel
) -> Facts:
    """Answer the question `name` of the repository half over the channel; return its facts."""
    answer, bounds = SeamAnswer(channel), Bounds(**args["bounds"])
    match name:
        case "query":
            facts = past.query(asked[0], args["sql"], bounds, answer)
        case "table":
            facts = past.table(asked[0], args["name"], args["form"], bounds, answer)
        case "difference":
            facts = past.difference(asked[0], asked[1], args["table"], bounds, answer)
        case "missing":
            search = str(args["table"]), str(args["where"])
            facts = past.missing((asked[0], asked[1]), search, args["form"], bounds, answer)
        case _:
            raise Usage(f"there is no question {name}")
    answer.flush()
    return facts


def answer_as_nobody(parent: int, seam: int, settings: Mapping[str, Any]) -> int:
    """Answer questions about backups of the engine in `settings` until the repository half hangs up.

    Everything needed is loaded before this process becomes nobody, and no part of a backup is read before.
    """
    past = _load(settings)
    cancelled = prepare(parent, become_nobody)
    with socket.socket(fileno=seam) as end, suppress(WorkerDied, Cancelled):
        QuestionHalf(Channel(end, cancelled), past).serve()
    return 0


def _load(settings: Mapping[str, Any]) -> Questions[Pages] | GuardError:
    """Return what answers questions, or the error that the other half gets when it asks."""
    kind = settings["engine"]
    opened = ENGINES[kind](settings).questions if kind in ENGINES else None
    if opened is None:
        return Unsupported(f"{kind}: backups of it cannot be asked anything")
    try:
        return opened()
    except ImportError as error:
        return Unsupported(f"{kind}: backups of it cannot be asked anything here", detail=str(error))


def _confine(seconds: float) -> None:
    """Let the kernel enforce what the bounds of the question cannot: an endless instruction, a bug in SQLite."""
    most = int(seconds) + _SPARE_SECONDS
    for kind, limit in (
        (resource.RLIMIT_CPU, most),
        (resource.RLIMIT_AS, _ADDRESS_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        resource.setrlimit(kind, (limit, limit))
