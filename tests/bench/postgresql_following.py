"""What following a cluster's log costs, how far it lags behind 1,000 commits a second, and how fast it is replayed."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.daemon_rows import explain
from tests.bench.following import SAMPLED_SECONDS, SECONDS, Objects, cpu, named
from tests.bench.measure import descendants, resident
from tests.bench.ours import Ours
from tests.bench.postgresql_busy import Span, answers, span, writing
from tests.bench.sampling import Seconds, sampled

if TYPE_CHECKING:
    from tests.bench.postgresql import Cluster

RATE = 1000
LAG_GOAL = 1.0
MEMORY_GOAL = 250 << 20
_REPLAYED_BYTES = 512_000_000
_BURST_SECONDS = "5"
_WAIT_SECONDS = 600.0


def rows(live: Cluster, place: Path, source: str) -> list[dict[str, object]]:
    """Measure pgbench alone, then while its cluster's log is followed; then how long the log takes to be replayed.

    It leaves the slot of the log on the server.
    """
    place.mkdir()
    live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'")  # without a bound no log is followed
    live.sql("SELECT pg_reload_conf()")
    with Ours(place / "ours", "continuous = true", source=source) as ours:
        with writing(live, place, RATE):
            alone = span("alone", lambda: time.sleep(SECONDS))
            found = _followed(live, ours, place, alone)
        return [*found, *_replayed(live, ours)]


def _followed(live: Cluster, ours: Ours, place: Path, alone: Span) -> list[dict[str, object]]:
    ours.backup()
    workers = _settled(ours)
    seen = Objects(ours.place / "state" / "store" / "log", "*-*", named)
    spent, before = cpu(workers), _position(live)
    followed = span("followed", lambda: _look(seen))
    used, written = (cpu(workers) - spent) / SECONDS, _position(live) - before
    memory, lags, (quiet, busy) = sum(map(resident, workers)), seen.lags(), answers(place, [alone, followed])
    judged = [
        _row("lag from commit to durable, p99, seconds", lags[int(len(lags) * 0.99)], LAG_GOAL),
        _row("lag from commit to durable, median, seconds", statistics.median(lags)),
        _row(f"commits a second, asked for {RATE:,}", len(busy) / SECONDS),
        _row("MB of WAL a second", written / SECONDS / 1e6),
        _row("pgbench rate kept, lost share", 1 - len(busy) / len(quiet)),
        _row("pgbench p99, ratio to alone", busy[int(len(busy) * 0.99)] / quiet[int(len(quiet) * 0.99)]),
        _row("follower, share of one core", used),
        _row("follower, resident bytes of all its processes", memory, MEMORY_GOAL),
    ]
    explain(judged[0], lambda: _busy(ours))
    return judged


def _settled(ours: Ours) -> list[int]:
    """Wait until the backup that the log begins with is made, and only those are left that follow; return them."""
    prints = ours.place / "state" / "store" / "records" / "print"
    _wait(lambda: sum(1 for _ in prints.glob("*")) >= 2, "the backup that the log begins with")
    time.sleep(5)  # it ends, and what it took of the processors and the disk is over
    return descendants(ours.pid)


def _look(seen: Objects) -> None:
    began = time.perf_counter()
    while time.perf_counter() < began + SECONDS:
        seen.look()
        time.sleep(0.02)


def _busy(ours: Ours) -> Seconds:
    with sampled(ours.pid) as found:
        time.sleep(SAMPLED_SECONDS)
    return found


def _replayed(live: Cluster, ours: Ours) -> list[dict[str, object]]:
    """Restore the newest moment after some hundred MB of WAL of pgbench, with whole pages after each checkpoint."""
    until = _position(live) + _REPLAYED_BYTES
    while _position(live) < until:
        live.sql("CHECKPOINT")
        live.do("pgbench", "-n", "-c", "4", "-j", "2", "-T", _BURST_SECONDS)
    end = _position(live)
    stored = f"SELECT 1 FROM pg_stat_replication WHERE flush_lsn - '0/0' >= {end} - 1"  # as the follower confirms
    _wait(lambda: bool(live.asked(stored)), "all WAL in the repository")
    replayed = ours.plan("--latest")["log_bytes"]
    assert isinstance(replayed, int)
    target = ours.place / "out"
    with _Recovery(target) as recovery:
        figures = ours.restore(target, "--latest")
    name = (
        f"seconds of recovery for each GB of WAL, {replayed / 1e6:,.0f} MB, start and stop of the server included; "
        "all WAL is restored before it starts: no fetch during recovery"
    )
    return [
        _row(name, recovery.seconds / (replayed / 1e9)),
        _row("the same restore until all is written, seconds", figures.wall),
        _row("the same restore with recovery and all that is read afterwards, seconds", figures.whole),
    ]


class _Recovery:
    """Times the first server that runs on a restored cluster, which only recovers it. The second one reads it."""

    def __init__(self, target: Path) -> None:
        self._lock, self._over = target / "postmaster.pid", threading.Event()
        self._seen, self._server = list[float](), ""
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Recovery:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self._seen[1] - self._seen[0]

    def _watch(self) -> None:
        while len(self._seen) < 2 and not self._over.wait(0.01):
            try:
                server = self._lock.read_text().partition("\n")[0]
            except OSError:
                server = ""
            if server != self._server:  # or the second one was so fast that nobody saw none
                self._server = server
                self._seen.append(time.perf_counter())


def _wait(there: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not there():
        if time.monotonic() > end:
            raise SystemExit(f"postgresql following: waited {_WAIT_SECONDS:.0f} s in vain for {what}")
        time.sleep(0.1)


def _position(live: Cluster) -> int:
    return int(live.asked("SELECT pg_current_wal_insert_lsn() - '0/0'"))


def _row(name: str, value: float, goal: float | None = None) -> dict[str, object]:
    met = None if goal is None else value <= goal
    verdict = "" if goal is None else f", goal {goal:,.3f} {'met' if met else 'MISSED'}"
    print(f"postgresql following: {name}: {value:,.3f}{verdict}", flush=True)
    return {"row": f"following: {name}", "value": value, "goal": goal, "met": met}
