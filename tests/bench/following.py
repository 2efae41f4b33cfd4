"""What following a log costs the application and the machine, and how far it lags behind a busy writer."""

from __future__ import annotations

import array
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from dbguardd.engines.sqlite.follow import Pace
from tests.bench.measure import proportional, resident
from tests.bench.ours import NICE, Ours
from tests.bench.sampling import sampled, told
from tests.bench.writer import LOADS, RATE

SECONDS = 20.0
SAMPLED_SECONDS = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")
_HOUR_COMMITS = 3600
_STEADY = 5  # objects of Litestream after which it follows
_LTX_TIME = 32  # offset of the time in such an object, in milliseconds
_UNTIL = 3  # in the name of an object of a log: the moment that it reaches, in milliseconds


def rows(place: Path, base: Path) -> list[dict[str, object]]:
    """Measure two kinds of writers alone, then while their log is followed; then the follower beside a quiet one."""
    ours = [row for load in LOADS for row in _rows(place / f"following-{load}", base, load)]
    return [*ours, *(row for load in LOADS for row in _litestream(place / f"litestream-{load}", base, load))]


def _rows(work: Path, base: Path, load: str) -> list[dict[str, object]]:
    (work / "src").mkdir(parents=True)
    live = work / "src" / "db"
    shutil.copy(base, live)
    os.sync()  # or the kernel writes all that back while the writer is measured alone
    stop, log = work / "stop", work / "log"
    argv = [sys.executable, "-m", "tests.bench.writer", str(live), str(stop), str(log), load]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        pages = float(writer.stdout.readline().split()[1])
        alone = span(SECONDS)
        with Ours(work, "continuous = true") as ours:
            ours.backup()
            workers = _settled(ours, work, live.stat().st_size)
            seen = Objects(work / "state" / "store" / "log", "*-*", named)
            spent, began = cpu(workers), time.perf_counter()
            while time.perf_counter() < began + SECONDS:
                seen.look()
                time.sleep(0.02)
            followed, used = (began, time.perf_counter()), (cpu(workers) - spent) / SECONDS
            with sampled(ours.pid) as busy:
                time.sleep(SAMPLED_SECONDS)
            memory, shared_once = sum(map(resident, workers)), sum(map(proportional, workers))
            stop.touch()
            writer.wait()
            time.sleep(2)
            spent = cpu(workers)
            time.sleep(10)
            idle = (cpu(workers) - spent) / 10
            hour, newest = _restored(ours, work)
    finally:
        stop.touch()
        writer.wait()
        writer.stdout.close()
    lags = seen.lags()
    before, after = latencies(log, alone), latencies(log, followed)
    p99, what = int(len(lags) * 0.99), f"{load}, {pages:.0f} pages a commit"
    print(f"following: {what}, {pages * len(after) / SECONDS:,.0f} pages a second", flush=True)
    found = [
        ("lag from commit to durable, p99, seconds", lags[p99], 1.0),
        ("writer rate kept, lost share", 1 - (len(after) / SECONDS) / (len(before) / SECONDS), 0.03),
        ("writer p99, ratio to alone", after[int(len(after) * 0.99)] / before[int(len(before) * 0.99)], 1.2),
        ("writer p99.9, ratio to alone", after[int(len(after) * 0.999)] / before[int(len(before) * 0.999)], 3.0),
        (f"restore with the log of {_HOUR_COMMITS:,} commits, ratio to its backup alone", hour, 1.5),
        ("follower, share of one core", used, 0.05),
        ("follower beside an idle database, share of one core", idle, 0.005),
        ("follower, resident bytes of all its processes", memory, 60 << 20),
        ("follower, the same with what its processes share counted once", shared_once, 60 << 20),
    ]
    judged = [_row(f"{what}: {name}", value, goal) for name, value, goal in found]
    name = f"{what}: restore with the log of {commits(log):,} commits, ratio to its backup alone"
    print(f"following: {name}: {newest:,.3f}", flush=True)
    if not all(row["met"] for row in judged):
        print(f"  busy for {SAMPLED_SECONDS} s: {told(busy)}", flush=True)
    judged.append({"row": name, "value": newest, "goal": None, "met": None})
    return [*judged, {"row": f"{what}: busy", "value": busy, "goal": None, "met": None}]


def _restored(ours: Ours, work: Path) -> tuple[float, float]:
    """Return how many times longer than its backup alone it takes to restore a moment: after an hour, and the newest.

    The hour is one of an application that commits once a second: so many commits come here in some seconds.
    """
    base, took = max(ours.backups(), key=lambda backup: str(backup["id"])), list[float]()
    hour = datetime.fromisoformat(str(base["created_at"])) + timedelta(seconds=_HOUR_COMMITS / RATE)
    alone = ("--id", str(base["id"]))
    for name, which in (("cold", alone), ("alone", alone), ("hour", ("--at", hour.isoformat())), ("newest", ())):
        took.append(ours.restore(work / name, *which).wall)
        (work / name).unlink()
    return took[2] / took[1], took[3] / took[1]


def _litestream(work: Path, base: Path, load: str) -> list[dict[str, object]]:
    """Measure the same of Litestream, if it is installed, with its own settings and a directory as its replica.

    It does not encrypt, and has no sum of all pages: what it does is less.
    """
    if (program := shutil.which("litestream")) is None:
        return []
    (work / "src").mkdir(parents=True)
    live, replica = work / "src" / "db", work / "replica"
    shutil.copy(base, live)
    os.sync()
    stop, log = work / "stop", work / "log"
    argv = [sys.executable, "-m", "tests.bench.writer", str(live), str(stop), str(log), load]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    their: subprocess.Popen[bytes] | None = None
    try:
        pages = float(writer.stdout.readline().split()[1])
        alone = span(SECONDS)
        argv = [*NICE, program, "replicate", str(live), f"file://{replica}"]
        their = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = Objects(replica, "*.ltx", _written)
        while seen.count() < _STEADY:  # the first one is the whole database
            if their.poll() is not None:
                raise SystemExit(f"litestream ended: {their.returncode}")
            seen.look()
            time.sleep(0.1)
        seen = Objects(replica, "*.ltx", _written)
        spent, began = cpu([their.pid]), time.perf_counter()
        while time.perf_counter() < began + SECONDS:
            seen.look()
            time.sleep(0.02)
        followed, used = (began, time.perf_counter()), (cpu([their.pid]) - spent) / SECONDS
        memory = resident(their.pid)
        stop.touch()
        writer.wait()
    finally:
        stop.touch()
        writer.wait()
        writer.stdout.close()
        if their is not None:
            their.terminate()
            their.wait()
    lags, before, after = seen.lags(), latencies(log, alone), latencies(log, followed)
    lost = 1 - len(after) / len(before)
    after = after or [SECONDS]  # a writer so late that none of these was done: it took at least as long
    what = f"litestream, {load}, {pages:.0f} pages a commit"
    found = [
        ("lag from commit to durable, p99, seconds", lags[int(len(lags) * 0.99)] if lags else math.nan),
        ("writer rate kept, lost share", lost),
        ("writer p99, ratio to alone", after[int(len(after) * 0.99)] / before[int(len(before) * 0.99)]),
        ("writer p99.9, ratio to alone", after[int(len(after) * 0.999)] / before[int(len(before) * 0.999)]),
        ("share of one core", used),
        ("resident bytes", memory),
    ]
    for name, value in found:
        print(f"following: {what}: {name}: {value:,.3f}", flush=True)
    return [{"row": f"{what}: {name}", "value": value, "goal": None, "met": None} for name, value in found]


def _written(path: Path) -> float:
    """Return the time in the header of a file of Litestream's log (LTX)."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(_LTX_TIME + 8)[_LTX_TIME:], "big") / 1000


def span(seconds: float) -> tuple[float, float]:
    began = time.perf_counter()
    time.sleep(seconds)
    return began, time.perf_counter()


def _settled(ours: Ours, work: Path, size: int) -> list[int]:
    """Wait until the backup that the log begins with is made, and each page was looked at once; return who follows.

    That look (0.9 s of processor time a GiB) comes once and says nothing of what following costs from then on.
    """
    while sum(1 for _ in (work / "state" / "store" / "records" / "print").glob("*")) < 2:
        time.sleep(0.1)
    time.sleep(2 + 1.2 * size / Pace().scan_bytes * Pace().look_seconds)
    halves = children(ours.pid)
    return halves + [grandchild for pid in halves for grandchild in children(pid)]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu(pids: list[int]) -> float:
    spent = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += int(fields[11]) + int(fields[12])
    return spent / _TICKS


def named(path: Path) -> float:
    return int(path.name.split("-")[_UNTIL]) / 1000


class Objects:
    """The objects of a log, as they appear; `moment` returns the time that one reaches."""

    def __init__(self, place: Path, pattern: str, moment: Callable[[Path], float]) -> None:
        self._place, self._pattern, self._moment = place, pattern, moment
        self._found: dict[str, tuple[float, float]] = {}
        self.look()
        self._before = set(self._found)  # nobody saw when they came

    def count(self) -> int:
        """Return how many there are."""
        return len(self._found)

    def look(self) -> None:
        """Note the new ones: the moment that each reaches, and when it was there."""
        for path in self._place.rglob(self._pattern):
            if path.name not in self._found:
                self._found[path.name] = self._moment(path), time.time()

    def lags(self) -> list[float]:
        """Return how long commits that came at even distances waited to be durable, sorted, in seconds."""
        single: dict[float, float] = {}
        seen = (found for name, found in self._found.items() if name not in self._before)
        for until, there in seen:  # several objects reach one moment: the last of them counts
            single[until] = max(there, single.get(until, 0.0))
        order, found = sorted(single), list[float]()
        for before, until in zip(order, order[1:], strict=False):
            found += [single[until] - before - share / 20 * (until - before) for share in range(20)]
        return sorted(found)


def commits(log: Path) -> int:
    return log.stat().st_size // 16


def latencies(log: Path, span: tuple[float, float]) -> list[float]:
    data = array.array("d")
    data.frombytes(log.read_bytes())
    return sorted(data[i + 1] for i in range(0, len(data), 2) if span[0] <= data[i] < span[1])


def _row(name: str, value: float, goal: float) -> dict[str, object]:
    met = value <= goal
    print(f"following: {name}: {value:,.3f}, goal {goal:,.3f} {'met' if met else 'MISSED'}", flush=True)
    return {"row": name, "value": value, "goal": goal, "met": met}
