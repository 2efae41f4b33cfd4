"""How long the first row of a question to a backup takes, of a storage that nobody has read just now."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from tests.bench.data import make
from tests.bench.ours import BIN, Ours
from tests.bench.sampling import Seconds, sampled, told

ROUNDS = 9
GOAL_SECONDS = 0.300
MEMORY_GOAL = 150 << 20  # at any size: `files` measures a smaller database
_QUESTION = "select body from documents where id = {}"


def rows(place: Path, size_mib: int) -> list[dict[str, object]]:
    """Back up a database, then ask for one row after the other, each in a process of its own."""
    work = place / "questions"
    (work / "src").mkdir(parents=True)
    print(f"making {size_mib} MiB of data", flush=True)
    make(work / "src" / "db", size_mib << 20)
    with Ours(work) as ours:
        peak = ours.backup().peak
        (work / "src" / "db").unlink()  # nobody needs it to answer
        times = []
        for number in range(ROUNDS):
            _forget(work / "state" / "store")
            argv = [BIN / "dbguardctl", "--socket", ours.socket, "query", "bench", "--json"]
            started = time.monotonic()
            done = subprocess.run([*argv, _QUESTION.format(100 + 400 * number)], capture_output=True, check=True)
            times.append(time.monotonic() - started)
            assert json.loads(done.stdout)["row_count"] == 1
        busy: Seconds = {}
        if statistics.median(times) > GOAL_SECONDS:
            with sampled(ours.pid) as busy:
                subprocess.run([*argv, _QUESTION.format(100)], capture_output=True, check=True)
    took = statistics.median(times)
    name = f"first row of a point query, storage of {size_mib} MiB not in memory, seconds"
    met = took <= GOAL_SECONDS
    print(f"questions: {name}: {took:.3f}, goal {GOAL_SECONDS:.3f} {'met' if met else 'MISSED'}", flush=True)
    if not met:
        print(f"  busy, without the client: {told(busy)}", flush=True)
    large = f"peak memory of both halves, {size_mib} MiB backed up, bytes"
    fits = peak <= MEMORY_GOAL
    print(f"questions: {large}: {peak:,}, goal {MEMORY_GOAL:,} {'met' if fits else 'MISSED'}", flush=True)
    return [
        {"row": name, "value": round(took, 3), "goal": GOAL_SECONDS, "met": met, "busy": busy},
        {"row": large, "value": peak, "goal": MEMORY_GOAL, "met": fits},
    ]


def _forget(store: Path) -> None:
    """Have the kernel drop what it keeps of the files of a storage; the programs stay in memory, as of a service."""
    for path in store.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
