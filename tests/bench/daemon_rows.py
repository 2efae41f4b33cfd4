"""How fast `status` answers, what an idle daemon costs, and how long 10,000 backups take to list."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dbguardd.keys import open_wrappers
from dbguardd.keys.machine import MachineKey
from dbguardd.repository import Repository
from dbguardd.storage import open_storage
from tests.bench.measure import resident
from tests.workload import seed

BIN = Path(sys.executable).parent


def rows(place: Path) -> list[dict[str, object]]:
    """Start a daemon with 20 databases; measure it and its client."""
    found = [_listing(place / "many")]
    work = place / "daemon"
    (work / "etc").mkdir(parents=True)
    tables = []
    for number in range(20):
        path = work / f"app{number}.db"
        seed(path, accounts=10, bookings=10, documents=1)
        tables.append(f'[database.app{number}]\nengine = "sqlite"\npath = "{path}"\nbackup = "daily 03:00"\n')
    policy = work / "etc" / "policy.toml"
    policy.write_text("version = 1\n" + "\n".join(tables))
    policy.chmod(0o600)
    socket = work / "api.sock"
    started = time.monotonic()
    argv = [BIN / "dbguardd", "--policy", policy, "--state", work / "state", "--socket", socket]
    daemon = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.005)
        found.append(_row("daemon start to socket, seconds", time.monotonic() - started, 1.0))
        seen = {**os.environ, "DBGUARD_SOCKET": str(socket)}
        bare = _median([sys.executable, "-c", "pass"], seen)
        for name, words, goal in (("status", [], 0.100), ("status --json", ["--json"], 0.080)):
            took = _median([str(BIN / "dbguardctl"), *words, "status"], seen)
            found.append(_row(f"{name}, seconds (bare python {bare:.3f})", took, goal))
        time.sleep(5)
        before = _cpu(daemon.pid)
        time.sleep(10)
        found.append(_row("idle daemon, share of one core", (_cpu(daemon.pid) - before) / 10, 0.001))
        found.append(_row("idle daemon, resident bytes", resident(daemon.pid), 60 << 20))
    finally:
        daemon.terminate()
        daemon.wait()
    return found


def _listing(place: Path) -> dict[str, object]:
    """Open a repository with 10,000 backups and list them."""
    place.mkdir()
    key = MachineKey.create(place / "key")
    storage = open_storage({"type": "directory", "path": str(place / "store")}, create=True)
    repository = Repository.create(storage, [key], datetime(2026, 1, 1, tzinfo=UTC))
    for number in range(10_000):
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        with repository.saving("app", "sqlite", "pages", now) as saving:
            saving.seal({"number": number})
    started = time.monotonic()
    again = Repository.open(storage, open_wrappers({"type": "machine", "path": str(place / "key")}))
    count = len(again.backups("app"))
    took = time.monotonic() - started
    return _row(f"open a repository and list {count} backups, seconds", took, 1.0)


def _median(argv: list[str], seen: dict[str, str]) -> float:
    times = []
    for _ in range(15):
        started = time.monotonic()
        subprocess.run(argv, env=seen, capture_output=True, check=False)
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _row(name: str, value: float, goal: float) -> dict[str, object]:
    row: dict[str, object] = {"row": name, "value": round(value, 4), "goal": goal, "met": value <= goal}
    print("daemon", json.dumps(row), flush=True)
    return row
