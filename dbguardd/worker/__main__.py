"""One half of a worker: `python -I -m dbguardd.worker repository|engine|question PARENT_PID SEAM_FD`.

The job, as JSON, comes on standard input, so that nothing of it shows in the process list.
"""

from __future__ import annotations

import json
import socket
import sys

from dbguardd.errors import Cancelled, WorkerDied
from dbguardd.worker.channel import Channel
from dbguardd.worker.child import settle


def main() -> int:
    """Run the half that the command line names, to its end."""
    half, parent, seam = sys.argv[1:]
    if half == "question":
        from dbguardd.worker.question_half import answer_as_nobody  # noqa: PLC0415 each half loads its own drivers

        return answer_as_nobody(int(parent), int(seam), json.load(sys.stdin))
    cancelled = settle(int(parent))
    spec = json.load(sys.stdin)
    with socket.socket(fileno=int(seam)) as end:
        channel = Channel(end, cancelled)
        if half == "engine":
            from dbguardd.worker.engine_half import run as serve  # noqa: PLC0415

            try:
                serve(channel, spec)
            except (WorkerDied, Cancelled):
                return 0  # the repository half hung up: the ordinary end
            return 0
        from dbguardd.worker.repository_half import run  # noqa: PLC0415

        return run(channel, spec, cancelled)


if __name__ == "__main__":
    sys.exit(main())
