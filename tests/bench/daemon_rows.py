"""How fast `status` answers, what an idle daemon costs, and how 10,000 backups weigh on a listing and on a restart."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dbguardctl.client import Daemon
from dbguardd.errors import DaemonUnreachable
from dbguardd.keys import open_wrappers
from dbguardd.keys.machine import MachineKey
from dbguardd.repository import Repository
from dbguardd.storage import open_storage
from dbguardd.ulids import ulid
from tests.bench.measure import resident
from tests.bench.sampling import Seconds, sampled_call, sampled_command, told
from tests.process.house import Systemd
from tests.workload import seed

BIN = Path(sys.executable).parent
BACKUPS = 10_000
RESTARTS = 5
SAMPLED_SECONDS = 4


def rows(place: Path) -> list[dict[str, object]]:
    """Start a daemon with 20 databases; measure it and its client."""
    found = [_listing(place / "many"), _restart(place / "many")]
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
        start = _row("daemon start to socket, seconds", time.monotonic() - started, 1.0)
        found.append(start)
        seen = {**os.environ, "DBGUARD_SOCKET": str(socket)}
        bare = _median([sys.executable, "-c", "pass"], seen)
        for name, words, goal in (("status", [], 0.100), ("status --json", ["--json"], 0.080)):
            took = _median([str(BIN / "dbguardctl"), *words, "status"], seen)
            row = _row(f"{name}, seconds (bare python {bare:.3f})", took, goal)
            explain(row, lambda words=words: sampled_command([BIN / "dbguardctl", *words, "status"], seen, 10))
            found.append(row)
        time.sleep(5)
        before = _cpu(daemon.pid)
        time.sleep(10)
        found.append(_row("idle daemon, share of one core", (_cpu(daemon.pid) - before) / 10, 0.001))
        found.append(_row("idle daemon, resident bytes", resident(daemon.pid), 60 << 20))
    finally:
        daemon.terminate()
        daemon.wait()
    explain(start, lambda: sampled_command(argv, seen, SAMPLED_SECONDS))
    return found


def _listing(place: Path) -> dict[str, object]:
    """Make the repository of a daemon, with 10,000 backups in it; open and list them."""
    state = place / "state"
    state.mkdir(parents=True)
    key = MachineKey.create(state / "machine.key")
    storage = open_storage({"type": "directory", "path": str(state / "store")}, create=True)
    repository = Repository.create(storage, [key], datetime(2026, 1, 1, tzinfo=UTC))
    start, ledger = datetime(2026, 1, 1, tzinfo=UTC), repository._ledger
    with repository.saving("app", "sqlite", "pages", start) as saving:
        saving.seal({})
    first, domain = next(ledger.newest("app"))
    for number in range(1, BACKUPS):  # saving() lists what is there each time: half an hour for all of them
        now = start + timedelta(minutes=number)
        ledger.publish(replace(first, id=ulid(now, os.urandom), created_at=now, seq=number + 1), domain)

    def listed() -> int:
        again = Repository.open(storage, open_wrappers({"type": "machine", "path": str(state / "machine.key")}))
        return len(again.backups("app"))

    started = time.monotonic()
    count = listed()
    row = _row(f"open a repository and list {count} backups, seconds", time.monotonic() - started, 1.0)
    explain(row, lambda: sampled_call(listed))
    return row


def _restart(place: Path) -> dict[str, object]:
    """Have a daemon fill its catalog from that repository, then start it again and again, from exec to READY=1."""
    policy, socket = place / "policy.toml", place / "api.sock"
    seed(place / "app.db", accounts=10, bookings=10, documents=1)
    table = f'[database.app]\nengine = "sqlite"\npath = "{place / "app.db"}"\n'
    policy.write_text(f'version = 1\n{table}verify = "off"\nexpire = "off"\nmissed = "skip"\n')
    policy.chmod(0o600)
    systemd = Systemd(place / "notify")
    argv = [BIN / "dbguardd", "--policy", policy, "--state", place / "state", "--socket", socket]
    environment = {**os.environ, "NOTIFY_SOCKET": str(systemd.path)}
    times = []
    for life in range(RESTARTS + 1):
        after, started = systemd.mark(), time.monotonic()
        daemon = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            systemd.hears("READY", after)
            times.append(time.monotonic() - started)
            while life == 0 and _known(socket) != BACKUPS:
                time.sleep(0.1)
            assert _known(socket) == BACKUPS
        finally:
            daemon.terminate()
            daemon.wait()
    systemd.socket.close()
    row = _row(f"restart to READY with {BACKUPS} backups in the catalog, seconds", statistics.median(times[1:]), 1.0)
    explain(row, lambda: sampled_command(argv, os.environ, SAMPLED_SECONDS))
    return row


def _known(socket: Path) -> int:
    with suppress(DaemonUnreachable):
        (row,) = Daemon(str(socket)).get("status")["databases"]
        return int(row["backups"])
    return 0


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


def explain(row: dict[str, object], sample: Callable[[], Seconds]) -> None:
    """Say of a row that missed its goal what was busy, when the same is done once more."""
    if not row["met"]:
        row["busy"] = sample()
        print(f"  busy: {told(row['busy'])}", flush=True)


def _row(name: str, value: float, goal: float) -> dict[str, object]:
    row: dict[str, object] = {"row": name, "value": round(value, 4), "goal": goal, "met": value <= goal}
    print("daemon", json.dumps(row), flush=True)
    return row
