"""Questions to backups as the repository half sees them: asked over the seam, and given the pages that they need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dbguardd.engines.base import Answer, Bounds
from dbguardd.errors import Damaged, GuardError, KeyRefused, ObjectMissing, WorkerDied, from_problem
from dbguardd.flow import Facts, Pages
from dbguardd.wire import to_json
from dbguardd.worker.channel import Channel, Object, problem_of

_SLACK_BYTES = 1 << 20


class RemotePast:
    """The Past protocol over a Channel. The other half is not believed: neither damage, nor how much it answers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._failed: GuardError | None = None

    def query(self, pages: Pages, sql: str, bounds: Bounds, answer: Answer) -> Facts:
        """Answer one SELECT."""
        return self._ask("query", {"sql": sql}, (pages,), bounds, answer)

    def table(self, pages: Pages, name: str, form: str, bounds: Bounds, answer: Answer) -> Facts:
        """Write one table."""
        return self._ask("table", {"name": name, "form": form}, (pages,), bounds, answer)

    def difference(self, older: Pages, newer: Pages, table: str, bounds: Bounds, answer: Answer) -> Facts:
        """Compare two backups."""
        return self._ask("difference", {"table": table}, (older, newer), bounds, answer)

    def _ask(self, name: str, args: Mapping[str, Any], pages: Sequence[Pages], bounds: Bounds, answer: Answer) -> Facts:
        sizes = [[each.size, each.page_size] for each in pages]
        self._failed = None
        self._channel.send({"call": name, "args": {**args, "pages": sizes, "bounds": to_json(bounds)}})
        left = bounds.bytes + _SLACK_BYTES
        while True:
            message, file = self._channel.receive()
            if file is not None:
                os.close(file)
                raise WorkerDied("the question half sent a file")
            if isinstance(message, bytes):
                left -= len(message)
                if left < 0:
                    raise WorkerDied("the question half answered more than it was asked")
                answer.write(message)
            elif "return" in message:
                return self._returned(message)
            elif "block" in message:
                self._give(message, pages)
            elif "progress" in message:
                answer.beat()
            else:
                raise WorkerDied("the question half asked out of turn")

    def _give(self, message: Object, pages: Sequence[Pages]) -> None:
        which, number = (int(part) for part in message["block"])
        if not 0 <= which < len(pages):
            raise WorkerDied("the question half asked for another backup")
        try:
            data = pages[which].block(number)
        except GuardError as error:
            self._failed = error
            self._channel.send({"problem": problem_of(error)})
        else:
            self._channel.send_data(data)

    def _returned(self, message: Object) -> Facts:
        """Return the facts. What happened on our side is raised as it was here; damage elsewhere is not believed."""
        if self._failed is not None:
            raise self._failed
        if "problem" in message:
            error = from_problem(message["problem"])
            if isinstance(error, Damaged | ObjectMissing | KeyRefused):
                raise WorkerDied("the question half told of damage that there is not", detail=error.message)
            raise error
        facts: Facts = message["return"]
        return facts
