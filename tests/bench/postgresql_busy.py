"""What a busy application loses while its cluster is backed up: pgbench held to 1,500 transactions a second."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.ours import Ours
from tests.bench.postgresql_peers import pgbackrests

if TYPE_CHECKING:
    from tests.bench.postgresql import Cluster

RATE = 1500
ALONE_SECONDS = 10.0
RATE_GOAL = 0.99
Span = tuple[str, float, float]
"""What ran, from when to when (seconds since 1970)."""


def rows(live: Cluster, place: Path, ours: str) -> list[dict[str, object]]:
    """Measure it alone, during a full backup of ours (a policy's lines), and of each peer; return one row each."""
    place.mkdir()
    spans: list[Span] = []
    with writing(live, place, RATE):
        spans.append(span("alone", lambda: time.sleep(ALONE_SECONDS)))
        with Ours(place / "ours", source=ours) as daemon:
            spans.append(span("dbguard", lambda: daemon.backup("--full")))
        for number, (name, running) in enumerate(pgbackrests()):
            work = place / f"peer{number}"
            (work / "repo").mkdir(parents=True)
            with running(live, work) as act:
                spans.append(span(name, lambda act=act: act("full")))  # type: ignore[misc]
    found = _judge(spans, answers(place, spans))
    shutil.rmtree(place)
    return found


@contextmanager
def writing(live: Cluster, place: Path, rate: int) -> Iterator[None]:
    """Let eight clients transfer money so many times a second, for the length of a block."""
    words = ["-n", "-c", "8", "-j", "2", "-R", str(rate), "-T", "3600", "--log", f"--log-prefix={place}/said"]
    process = subprocess.Popen([live.programs / "pgbench", *words], env=live.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        time.sleep(3)  # until its rate is even
        yield
        if process.poll() is not None:
            raise SystemExit("pgbench did not go on")
    finally:
        process.terminate()
        process.wait()


def span(name: str, act: Callable[[], object]) -> Span:
    started = time.time()
    act()
    return name, started, time.time()


def answers(place: Path, spans: list[Span]) -> list[list[float]]:
    """Return, for each span, the milliseconds from when each transaction was due until it was committed, sorted.

    A line of pgbench's log: client, number, microseconds since it was due, script, seconds, microseconds ...
    """
    log = sorted(place.glob("said*"))  # the last line of each may have been cut short
    said = [line.split() for path in log for line in path.read_text().splitlines()[:-1]]
    ended = [(int(line[4]) + int(line[5]) / 1e6, int(line[2]) / 1e3) for line in said]
    return [sorted(took for at, took in ended if start <= at < end) for _, start, end in spans]


def _judge(spans: list[Span], took: list[list[float]]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for (name, start, end), times in zip(spans, took, strict=True):
        rate, p99 = len(times) / (end - start), times[int(len(times) * 0.99)]
        row: dict[str, object] = {"work": "busy", "tool": name, "rate": round(rate, 1), "p99_ms": round(p99, 1)}
        if found:
            kept = rate / float(str(found[0]["rate"]))
            row["rate_kept"] = round(kept, 3)
        if name == "dbguard":
            row["met"] = kept >= RATE_GOAL
        print("busy", json.dumps(row), flush=True)
        found.append(row)
    return found
