"""What a busy application loses while it is backed up: a writer at 1,000 transactions a second, in WAL mode."""

from __future__ import annotations

import array
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench import data
from tests.bench.ours import Ours

RATE = 1000
ALONE_SECONDS = 8.0
P999_GOAL = 3.0
RATE_GOAL = 0.99
_TRIED = 200


def rows(place: Path, base: Path) -> list[dict[str, object]]:
    """Measure the writer alone, then during a full and an incremental backup."""
    work = place / "writer"
    (work / "src").mkdir(parents=True)
    live = work / "src" / "db"
    shutil.copy(base, live)
    stop, log = work / "stop", work / "log"
    argv = [sys.executable, "-m", "tests.bench.writer", str(live), str(stop), str(log), "wide"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    marks, profiles = [], dict[str, dict[str, float]]()
    try:
        with Ours(work) as ours:
            started = time.perf_counter()
            time.sleep(ALONE_SECONDS)
            marks.append(("alone", started, time.perf_counter(), _wal_bytes(live)))
            for name, options in (("full", ("--full",)), ("incremental", ())):
                started = time.perf_counter()
                figures = ours.backup(*options)
                marks.append((name, started, started + figures.wall + 1.0, _wal_bytes(live)))
                profiles[name] = figures.profile
                time.sleep(2)
    finally:
        stop.touch()
        process.wait()
        process.stdout.close()
    found = _judge(marks, log)
    for row in found:
        if row.get("met") is False:
            row["profile"] = profiles[str(row["work"])]
            print(f"  the backup until it is acknowledged, in seconds: {row['profile']}", flush=True)
    return found


def _wal_bytes(live: Path) -> int:
    wal = live.with_name(live.name + "-wal")
    return wal.stat().st_size if wal.exists() else 0


def _judge(marks: list[tuple[str, float, float, int]], log: Path) -> list[dict[str, object]]:
    data = array.array("d")
    data.frombytes(log.read_bytes())
    found: list[dict[str, object]] = []
    alone: dict[str, float] = {}
    for name, start, end, wal in marks:
        done = sorted(data[i + 1] for i in range(0, len(data), 2) if start <= data[i] < end)
        times = done or [end - start]  # a writer so late that none of these was done: it took at least as long
        row: dict[str, object] = {
            "work": name,
            "rate": round(len(done) / (end - start), 1),
            "p50_ms": round(1e3 * times[len(times) // 2], 3),
            "p99_ms": round(1e3 * times[int(len(times) * 0.99)], 2),
            "p999_ms": round(1e3 * times[int(len(times) * 0.999)], 2),
            "max_ms": round(1e3 * times[-1], 1),
            "wal_bytes": wal,
        }
        if name == "alone":
            alone = {"rate": float(row["rate"]), "p999_ms": float(row["p999_ms"])}  # type: ignore[arg-type]
        else:
            kept, slower = row["rate"] / alone["rate"], row["p999_ms"] / alone["p999_ms"]  # type: ignore[operator]
            row |= {"rate_kept": round(kept, 3), "p999_ratio": round(slower, 2)}
            row["met"] = kept >= RATE_GOAL and slower <= P999_GOAL
        print("writer", json.dumps(row), flush=True)
        found.append(row)
    return found


def write(path: str, stop: Path, log: Path, load: str) -> None:
    """Run transactions at RATE until `stop` exists; latency counts from when each one was due."""
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    db.execute("pragma synchronous = normal")
    last = {table: db.execute(f"select max(id) from {table}").fetchone()[0] for table in data.UPDATES}
    dice, out, transact = random.Random(1), array.array("d"), LOADS[load]
    print(f"writing {_pages_a_commit(db, lambda: transact(db, dice, last)):.1f}", flush=True)
    due = time.perf_counter()
    while not (len(out) % 400 == 0 and stop.exists()):
        due += 1 / RATE
        if (wait := due - time.perf_counter()) > 0:
            time.sleep(wait)
        transact(db, dice, last)
        out.extend((due, time.perf_counter() - due))
    log.write_bytes(out.tobytes())


def _pages_a_commit(db: sqlite3.Connection, transact: Callable[[], None]) -> float:
    """Return how many pages a transaction writes into the log, on average."""
    db.execute("pragma wal_autocheckpoint = 0")
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
    for _ in range(_TRIED):
        transact()
    _, frames, _ = db.execute("pragma wal_checkpoint(passive)").fetchone()
    db.execute("pragma wal_autocheckpoint = 1000")
    return float(frames) / _TRIED


def _wide(db: sqlite3.Connection, dice: random.Random, last: Mapping[str, int]) -> None:
    """Change rows that are anywhere: about 12 pages, nearly all of them others than before."""
    db.execute("begin immediate")
    for _ in range(3):
        db.execute("update events set seen = seen + 1 where id = ?", (dice.randint(1, last["events"]),))
    db.execute("update orders set counter = counter + 1 where id = ?", (dice.randint(1, last["orders"]),))
    db.execute("update documents set rev = rev + 1 where id = ?", (dice.randint(1, last["documents"]),))
    db.execute("insert into events values (null, 1, 1, 'click', '{\"ok\": true}', 0)")
    db.execute("commit")


def _narrow(db: sqlite3.Connection, dice: random.Random, last: Mapping[str, int]) -> None:
    """Change one of the newest orders and note that: about 3 pages, of which some come again and again."""
    db.execute("begin immediate")
    order, user = last["orders"] - dice.randint(0, 2000), dice.randint(1, last["users"])
    db.execute("update orders set counter = counter + 1, status = 'paid' where id = ?", (order,))
    db.execute("insert into events values (null, ?, 1, 'purchase', '{\"ok\": true}', 0)", (user,))
    db.execute("commit")


LOADS = {"wide": _wide, "narrow": _narrow}


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
