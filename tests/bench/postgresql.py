"""A PostgreSQL cluster by its pages, beside its peers: full, unchanged, 1 % changed, restore.

And ours alone: that restore over the cluster as it is after 1 % of change (delta), beside the restore to a new place.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import postgresql_busy, postgresql_following, postgresql_peers
from tests.bench.measure import Figures
from tests.bench.ours import Ours

PHASES = ("full", "unchanged", "changed", "restore", "delta")
NEW, OLD = postgresql_peers.NEW_PGBACKREST, "pgbackrest"
GOALS = {  # phase, peer, at most
    ("full", OLD): 0.45,
    ("full", NEW): 0.6,
    ("unchanged", OLD): 1.0,
    ("unchanged", NEW): 1.0,
    ("changed", OLD): 0.6,
    ("changed", NEW): 0.6,
    ("restore", OLD): 1.0,
    ("restore", NEW): 1.0,
}
CHANGED_BYTES_GOAL = 0.4
DELTA_GOAL = 0.4  # of a restore to a new place, each with its recovery and comparison
MEMORY_GOAL = 250 << 20
_PORT = "54399"
_DATABASES = ("bench", "two", "three")
_ROWS = 1150  # about 1 % of the pages of pgbench_accounts at scale 70
_DOCS = """
CREATE TABLE docs (id bigserial PRIMARY KEY, owner int, at timestamptz DEFAULT now(), meta jsonb, body text);
INSERT INTO docs (owner, meta, body) SELECT n % 1000, jsonb_build_object('n', n, 'session', md5(n::text)),
  (SELECT string_agg(md5((n * 7 + k)::text) || ' some words that are alike in all rows, and more ', ' ')
   FROM generate_series(1, 10) k) FROM generate_series(1, {rows}) n;
CREATE INDEX ON docs (owner);
"""


def rows(place: Path, size_mib: int, rounds: int) -> list[dict[str, object]]:
    """Measure every tool in turn, round by round, on one cluster of about twice `size_mib`."""
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    if programs is None or os.geteuid() == 0:
        print("postgresql: left out: " + ("root cannot run a server" if programs else "it is not installed"))
        return []
    figures: dict[str, dict[str, list[Figures]]] = {}
    against = postgresql_peers.peers()
    with Cluster(place / "pg", programs).running(size_mib) as live:
        for number in range(rounds):
            for name, tool in (("dbguard", _ours), *against):
                live.quiet(place / "work")
                with tool(live, place / "work") as act:
                    for phase in PHASES:
                        if phase == "changed":
                            live.change()
                        if (figure := act(phase)) is not None:
                            figures.setdefault(phase, {}).setdefault(name, []).append(figure)
                print(f"round {number + 1}: {name:22} " + ", ".join(
                    f"{phase} {figures[phase][name][-1].wall:.2f} s" for phase in PHASES if name in figures[phase]
                ), flush=True)  # fmt: skip
        live.quiet(place / "work")
        busy = postgresql_busy.rows(live, place / "busy", _source(live))
        following = postgresql_following.rows(live, place / "following", _source(live))
    return [*_report(figures), *busy, *following]


class Cluster:
    """A server with three databases, one of them large."""

    def __init__(self, place: Path, programs: Path) -> None:
        self.place, self.programs, self.data, self.port = place, programs, place / "data", _PORT
        told = {"PGHOST": str(place), "PGPORT": _PORT, "PGUSER": "postgres", "PGDATABASE": "bench"}
        self.environment = {**os.environ, **told}

    @contextmanager
    def running(self, size_mib: int) -> Iterator[Cluster]:
        self.place.mkdir(parents=True)
        self.do("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--data-checksums", "--no-sync")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"port = {_PORT}\nlisten_addresses = ''\nunix_socket_directories = '{self.place}'\n"
                "wal_level = replica\nshared_buffers = 512MB\nmax_wal_size = 1GB\nmax_wal_senders = 8\n"
                "archive_mode = on\narchive_command = '/bin/true'\ncheckpoint_timeout = 15min\n"
            )
        self.do("pg_ctl", "-D", self.data, "-w", "-l", self.place / "log", "start")
        try:
            for name in _DATABASES:
                self.do("createdb", name)
            self.do("pgbench", "-q", "-i", "-s", str(max(1, 70 * size_mib // 1024)))
            self.sql(_DOCS.format(rows=450 * size_mib))
            self.sql("VACUUM ANALYZE")
            (self.place / "update").write_text(
                "\\set aid random(1, 100000 * :scale)\nUPDATE pgbench_accounts SET abalance = abalance + 1 "
                "WHERE aid = :aid;\n"
            )
            yield self
        finally:
            self.do("pg_ctl", "-D", self.data, "-m", "fast", "stop")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the cluster to others for the length of a block."""
        self.do("pg_ctl", "-D", self.data, "-m", "fast", "stop")
        yield
        self.do("pg_ctl", "-D", self.data, "-w", "-l", self.place / "log", "start")

    def do(self, program: str, *words: object) -> None:
        argv = [str(self.programs / program), *map(str, words)]
        done = subprocess.run(
            argv, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"{argv}: {done.stderr.decode(errors='replace')[-1000:]}")

    def sql(self, text: str) -> None:
        self.do("psql", "-qXc", text)

    def asked(self, text: str) -> str:
        """Return the answer of a question."""
        argv = [str(self.programs / "psql"), "-qXAtc", text]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def quiet(self, work: Path) -> None:
        """Begin from nothing, with a cluster that has been idle: what was written is vacuumed, on disk, seconds old.

        Whoever first reads a changed row sets hints in its page, and dbguard reads all rows; and it takes no file for
        unchanged that was written in the two seconds before the backup. So the backup after it would find changes.
        """
        shutil.rmtree(work, ignore_errors=True)
        (work / "repo").mkdir(parents=True)
        for name in _DATABASES:
            self.do("psql", "-qXc", "VACUUM", name)
        self.sql("CHECKPOINT")
        os.sync()
        time.sleep(3)

    def change(self) -> None:
        """Update rows here and there."""
        self.do("pgbench", "-n", "-f", self.place / "update", "-c", "1", "-t", str(_ROWS))
        self.sql("CHECKPOINT")
        os.sync()


@contextmanager
def _ours(live: Cluster, work: Path):
    with Ours(work, source=_source(live)) as ours:

        def act(phase: str) -> Figures:
            if phase == "delta":
                with live.stopped():
                    return ours.restore_over()
            return ours.restore(work / "out") if phase == "restore" else ours.backup()

        yield act


def _source(live: Cluster) -> str:
    url = f"postgresql:///?host={live.place}&port={_PORT}&user=postgres"
    return f'engine = "postgresql"\nurl = "{url}"\nmethod = "pages"'


def _report(figures: dict[str, dict[str, list[Figures]]]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    print(f"\n{'cluster':10} {'tool':22} {'wall s':>7} {'cpu s':>6} {'MiB peak':>8} {'MB stored':>9}  dbguard / it")
    for phase in PHASES:
        ours = figures[phase]["dbguard"]
        for name, theirs in figures[phase].items():
            ratio = statistics.median(a.wall / b.wall for a, b in zip(ours, theirs, strict=True))
            goal = GOALS.get((phase, name))
            row: dict[str, object] = {
                "work": phase,
                "tool": name,
                "wall_seconds": round(statistics.median(figure.wall for figure in theirs), 3),
                "cpu_seconds": round(statistics.median(figure.cpu for figure in theirs), 3),
                "peak_bytes": max(figure.peak for figure in theirs),
                "stored_bytes": int(statistics.median(figure.stored for figure in theirs)),
                "ratio": round(ratio, 3),
                "goal": goal,
                "met": None if goal is None else ratio <= goal,
            }
            found.append(row)
            verdict = "" if goal is None else f"  goal {goal:.2f} {'met' if ratio <= goal else 'MISSED'}"
            peak = max(figure.peak for figure in theirs) >> 20
            print(
                f"{phase:10} {name:22} {row['wall_seconds']:7.2f} {row['cpu_seconds']:6.2f} {peak:8} "
                f"{theirs[0].stored / 1e6:9.1f}  {ratio:.2f}{verdict}"
            )
    peak = max(figure.peak for phase in PHASES for figure in figures[phase]["dbguard"])
    kept = "met" if peak <= MEMORY_GOAL else "MISSED"
    print(f"peak memory of both halves: {peak >> 20} MiB, goal {MEMORY_GOAL >> 20} {kept}")
    print(f"a full backup with its fingerprint: {figures['full']['dbguard'][0].whole:.2f} s")
    print(f"a restore with recovery and comparison: {figures['restore']['dbguard'][0].whole:.2f} s")
    found.append(_delta(figures))
    for name in (NEW, OLD):
        if theirs := figures["changed"].get(name):
            share = figures["changed"]["dbguard"][0].stored / theirs[0].stored
            met = share <= CHANGED_BYTES_GOAL
            verdict = "met" if met else "MISSED"
            print(f"1 % changed, bytes stored / {name}: {share:.2f}, goal {CHANGED_BYTES_GOAL} {verdict}")
            found.append({"row": f"changed bytes / {name}", "value": share, "goal": CHANGED_BYTES_GOAL, "met": met})
    return found


def _delta(figures: dict[str, dict[str, list[Figures]]]) -> dict[str, object]:
    pairs = list(zip(figures["delta"]["dbguard"], figures["restore"]["dbguard"], strict=True))
    whole, cpu, wall = (
        statistics.median(getattr(one, name) / getattr(other, name) for one, other in pairs)
        for name in ("whole", "cpu", "wall")
    )
    verdict = "met" if whole <= DELTA_GOAL else "MISSED"
    print(
        f"delta restore after 1 % / restore to a new place: {whole:.2f}, goal {DELTA_GOAL} {verdict} "
        f"(processor seconds {cpu:.2f}, until it was written {wall:.2f})"
    )
    return {"row": "delta restore / restore", "value": whole, "goal": DELTA_GOAL, "met": whole <= DELTA_GOAL}
