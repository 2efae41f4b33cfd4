"""`python -m tests.bench`: dbguard beside its peers on one realistic SQLite file, interleaved, as ratios.

Each figure is the median of the rounds; each ratio is the median of the ratios of the same round, so that a machine
that is slow for a while is slow for both. Results go to standard output and, as JSON, to --out.
"""

from __future__ import annotations

import argparse
import compileall
import filecmp
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import daemon_rows, following, postgresql, questions, writer
from tests.bench.data import change, make
from tests.bench.measure import Figures, run, size_of
from tests.bench.ours import Ours
from tests.bench.peers import Peer, environment, peers
from tests.bench.sampling import told

PHASES = ("full", "unchanged", "changed", "restore")
GOALS = {  # row, peer, at most: DESIGN's table
    ("full", "restic"): 0.40,
    ("full", "borg zstd-3"): 0.45,
    ("unchanged", "restic"): 0.35,
    ("changed", "restic"): 0.08,
    ("changed", "borg fixed 64K"): 0.35,
    ("restore", "restic"): 0.75,
    ("restore", "borg zstd-3"): 0.50,
}
STORED_GOAL = 1.05
CHANGED_BYTES_GOAL = 6_000_000  # for each GiB of the database
MEMORY_GOAL = 150 << 20


def main() -> None:
    """Make the data, run every tool in turn, print the table."""
    asked = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    asked.add_argument("--size-mib", type=int, default=1024, help="size of the database (1024)")
    asked.add_argument("--asked-mib", type=int, default=4096, help="size of the database that is asked (4096)")
    asked.add_argument("--rounds", type=int, default=3, help="rounds of every tool (3)")
    groups = "files,writer,following,questions,daemon,postgresql"
    asked.add_argument("--rows", default=groups, help="which groups of rows (all)")
    asked.add_argument("--peers", default="", help="only these peers, by comma")
    asked.add_argument("--dir", type=Path, help="where to work (a temporary directory)")
    asked.add_argument("--out", type=Path, default=Path(".bench/result.json"), help="where the JSON goes")
    options = asked.parse_args()
    for name in ("dbguardd", "dbguardctl"):  # packages ship compiled code
        compileall.compile_dir(Path(__file__).parents[2] / name, quiet=2)
    place = Path(tempfile.mkdtemp(prefix="dbguard-bench-", dir=options.dir))
    chosen = [peer for peer in peers() if not options.peers or peer.name in options.peers.split(",")]
    result: dict[str, object] = {"schema": "dbguard.bench/1", "size_mib": options.size_mib, "rounds": options.rounds}
    result["peers"] = {peer.name: peer.version for peer in chosen}
    try:
        base, changed = place / "base.db", place / "changed.db"
        if {"files", "writer", "following"} & set(options.rows.split(",")):
            print(f"making {options.size_mib} MiB of data", flush=True)
            make(base, options.size_mib << 20)
            shutil.copy(base, changed)
            change(changed, 0.01)
        if "files" in options.rows:
            result["files"] = files(place, base, changed, chosen, options.rounds, options.size_mib)
        if "writer" in options.rows:
            result["writer"] = writer.rows(place, base)
        if "following" in options.rows:
            result["following"] = following.rows(place, base)
        if "questions" in options.rows:
            result["questions"] = questions.rows(place, options.asked_mib)
        if "postgresql" in options.rows:
            result["postgresql"] = postgresql.rows(place, options.size_mib, options.rounds)
        if "daemon" in options.rows:
            result["daemon"] = daemon_rows.rows(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2))  # also what was measured before a group failed
    print(f"written to {options.out}")


def files(place: Path, base: Path, changed: Path, chosen: list[Peer], rounds: int, size_mib: int) -> dict[str, Any]:
    """Full, unchanged, 1 % changed, restore: every tool in turn, round by round."""
    figures: dict[str, dict[str, list[Figures]]] = {}
    for number in range(rounds):
        for name, phases in (
            ("dbguard", _our_round(place, base, changed)),
            *_their_rounds(place, base, changed, chosen),
        ):
            for phase, figure in phases.items():
                figures.setdefault(phase, {}).setdefault(name, []).append(figure)
            said = ", ".join(f"{phase} {figure.wall:.2f} s" for phase, figure in phases.items())
            print(f"round {number + 1}: {name:16} {said}", flush=True)
    report = _report(figures, size_mib)
    lost = {row["work"] for row in report["rows"] if row["met"] is False}
    if missed := [phase for phase in PHASES if phase in lost]:
        sampled = _our_round(place, base, changed, sampling=True)
        report["busy"] = {phase: sampled[phase].busy for phase in missed}
        for phase in missed:
            print(f"{phase!r} missed its goal. Until it is acknowledged, in seconds: {report['profile'][phase]}")
            print(f"  functions, in the whole job of a round that is sampled: {told(sampled[phase].busy)}", flush=True)
    return report


def _fresh(place: Path, source: Path) -> Path:
    """Return an empty directory with the source in it, in the page cache."""
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "src").mkdir(parents=True)
    shutil.copy(source, work / "src" / "db")  # a copy: a database with two names is refused
    os.sync()
    return work


def _swap(work: Path, source: Path) -> None:
    shutil.copy(source, work / "src" / "new")
    os.replace(work / "src" / "new", work / "src" / "db")
    os.sync()


def _our_round(place: Path, base: Path, changed: Path, *, sampling: bool = False) -> dict[str, Figures]:
    work = _fresh(place, base)
    with Ours(work, sampling=sampling) as ours:
        found = {"full": ours.backup()}
        os.utime(work / "src" / "db")
        found["unchanged"] = ours.backup()
        _swap(work, changed)
        found["changed"] = ours.backup()
        found["restore"] = ours.restore(work / "out")
    _same(work / "out", changed)
    return found


def _their_rounds(place: Path, base: Path, changed: Path, chosen: list[Peer]):
    for peer in chosen:
        work = _fresh(place, base)
        seen = environment(peer, work)
        for command in peer.init(work):
            run([command], work, seen)
        phases: dict[str, Figures] = {}
        for number, phase in enumerate(PHASES):
            before = size_of(work / "repo")
            if phase == "unchanged":
                os.utime(work / "src" / "db")
            if phase == "changed":
                _swap(work, changed)
            if phase == "restore":
                (work / "out").mkdir()
                out = work / "out" / "db"
                durable = ["sync", str(out)]  # as ours is when it is acknowledged
                commands = [*peer.restore(work, number - 1, out.parent), durable]
                phases[phase] = run(commands, work / "src", seen)
                if peer.exact:
                    _same(out, changed)
            elif peer.incremental or phase == "full" or phase == "changed":
                phases[phase] = run(peer.backup(work, number), work / "src", seen)
                phases[phase].stored = size_of(work / "repo") - before
        yield peer.name, phases


def _same(one: Path, other: Path) -> None:
    """Every tool must give back what it was given; a fast wrong restore does not count."""
    if not filecmp.cmp(one, other, shallow=False):
        raise SystemExit(f"{one} differs from what was backed up")


def _report(figures: dict[str, dict[str, list[Figures]]], size_mib: int) -> dict[str, Any]:
    rows = []
    print(f"\n{'work':10} {'tool':16} {'wall s':>7} {'cpu s':>6} {'MiB peak':>8} {'MB stored':>9}  dbguard / it")
    for phase in PHASES:
        ours = figures[phase]["dbguard"]
        for name, theirs in figures[phase].items():
            ratio = statistics.median(a.wall / b.wall for a, b in zip(ours, theirs, strict=True))
            goal = GOALS.get((phase, name))
            row = {
                "work": phase,
                "tool": name,
                "wall_seconds": round(statistics.median(f.wall for f in theirs), 3),
                "cpu_seconds": round(statistics.median(f.cpu for f in theirs), 3),
                "peak_bytes": max(f.peak for f in theirs),
                "stored_bytes": int(statistics.median(f.stored for f in theirs)),
                "ratio": round(ratio, 3),
                "goal": goal,
                "met": None if goal is None else ratio <= goal,
            }
            rows.append(row)
            verdict = "" if goal is None else f"  goal {goal:.2f} {'met' if ratio <= goal else 'MISSED'}"
            print(
                f"{phase:10} {name:16} {row['wall_seconds']:7.2f} {row['cpu_seconds']:6.2f} "
                f"{row['peak_bytes'] >> 20:8} "
                f"{row['stored_bytes'] / 1e6:9.1f}  {ratio:.2f}{verdict}"
            )
    profile = {phase: _profile(figures[phase]["dbguard"]) for phase in PHASES}
    return {"rows": rows, "more": _sizes(figures, size_mib), "profile": profile}


def _profile(ours: list[Figures]) -> dict[str, float]:
    """The median of each part over the rounds."""
    return {part: statistics.median(figure.profile[part] for figure in ours) for part in ours[0].profile}


def _sizes(figures: dict[str, dict[str, list[Figures]]], size_mib: int) -> list[dict[str, object]]:
    """What is not a time: stored bytes and memory."""
    found: list[dict[str, object]] = []
    ours, restic = figures["full"]["dbguard"][0], figures["full"].get("restic")
    if restic:
        found.append(_judge("full, stored bytes / restic", ours.stored / restic[0].stored, STORED_GOAL))
    grown = figures["changed"]["dbguard"][0].stored
    found.append(_judge("1 % changed, stored bytes per GiB", grown * 1024 / size_mib, CHANGED_BYTES_GOAL))
    peak = max(figure.peak for phase in PHASES for figure in figures[phase]["dbguard"])
    found.append(_judge("peak memory of both halves, bytes", peak, MEMORY_GOAL))
    for phase, rounds in ((phase, figures[phase]["dbguard"]) for phase in PHASES):
        whole, acked = (statistics.median([getattr(figure, name) for figure in rounds]) for name in ("whole", "wall"))
        found.append({"row": f"{phase}, the whole job, seconds", "value": round(whole, 3), "goal": None, "met": None})
        print(f"{phase}, the whole job with its fingerprint or proof: {whole:.2f} s (acknowledged after {acked:.2f} s)")
    return found


def _judge(name: str, value: float, goal: float) -> dict[str, object]:
    met = value <= goal
    print(f"{name}: {value:,.2f}, goal {goal:,.2f} {'met' if met else 'MISSED'}")
    return {"row": name, "value": value, "goal": goal, "met": met}


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)
