"""The main function of a half of a worker.

The job arrives as JSON on standard input, so that the process list shows nothing of it.
"""

from __future__ import annotations

import gc
import json
import socket
import sys

from dbguardd.errors import Cancelled, WorkerDied
from dbguardd.worker.channel import Channel
from dbguardd.worker.child import prepare


def main(half: str, parent: str, seam: str) -> int:
    """Run one half to its end."""
    if half == "question":
        from dbguardd.worker.question_half import answer_as_nobody  # noqa: PLC0415 each half loads its own drivers

        _loaded()
        return answer_as_nobody(int(parent), int(seam), json.load(sys.stdin))
    cancelled = prepare(int(parent))
    spec = json.load(sys.stdin)
    with socket.socket(fileno=int(seam)) as end:
        channel = Channel(end, cancelled)
        if half == "engine":
            from dbguardd.worker.engine_half import run as serve  # noqa: PLC0415

            _loaded()
            try:
                serve(channel, spec)
            except (WorkerDied, Cancelled):
                return 0  # the repository half hung up: the normal end
            return 0
        from dbguardd.worker.repository_half import run  # noqa: PLC0415

        _loaded()
        return run(channel, spec, cancelled)


def _loaded() -> None:
    """Collect garbage from now on (see __main__.py), but never among what is loaded already."""
    gc.freeze()
    gc.enable()
