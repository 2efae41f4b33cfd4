"""What is killed in which kind of work, who writes meanwhile, and how processes are found."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from tests.engines.postgres_world import Cluster
from tests.process.house import until

PARTS = ("client", "daemon", "repository", "engine", "program", "scratch", "session", "postmaster", "archiver", "push")
"""Of each worker both halves; a program that it runs; a throw-away server; what serves us in the guarded server.

Where the server hands over its log: its archiver, and our archive_command.
"""

JOBS = ("full", "incremental", "dump", "proof", "proof of a dump", "restore", "restore of a dump", "question", "prune")
STOPPED = ("in place", "undo")
FOLLOWING = ("follow", "turn")
PUSHED = "push"
KINDS = (*JOBS, *STOPPED, *FOLLOWING, PUSHED)

WRITER = """
import datetime, sys, time
import psycopg
url, ledger = sys.argv[1:]
now = lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()
with open(ledger, "a") as file:
    while True:
        try:
            with psycopg.connect(url, autocommit=True) as db:
                number = db.execute("select coalesce(max(id), 0) from ledger").fetchone()[0]
                while True:
                    begun, number = now(), number + 1
                    db.execute("insert into ledger values (%s, %s)", (number, "x" * (number % 700)))
                    file.write(f"{number} {begun} {now()}\\n")
                    file.flush()
                    time.sleep(0.01)
        except psycopg.Error:
            time.sleep(0.05)
"""
SUMS = "SELECT count(*), coalesce(max(id), 0), coalesce(sum(length(note)), 0) FROM ledger"


def has(kind: str, part: str) -> bool:
    """Return whether that part exists in that kind of work."""
    if kind == PUSHED:
        return part in ("daemon", "repository", "engine", "postmaster", "archiver", "push")
    if part in ("archiver", "push"):
        return False
    if kind == "prune":
        return part in ("client", "daemon", "repository")
    if kind in STOPPED:
        return part not in ("session", "postmaster") and not (kind == "undo" and part in ("program", "scratch"))
    if kind in FOLLOWING:
        return part in ("daemon", "repository", "engine", "session", "postmaster")
    if part == "program":
        return kind in ("dump", "proof", "proof of a dump", "question")
    if part == "scratch":
        return kind in ("proof", "proof of a dump", "restore", "question")
    return True


MATRIX = [(kind, part) for kind in KINDS for part in PARTS if has(kind, part) and kind != PUSHED]
MATRIX_PUSHED = [(PUSHED, part) for part in PARTS if has(PUSHED, part)]


class Application:
    """Commits all the time, to whatever server is there, and knows what was acknowledged to it."""

    def __init__(self, place: Path, live: Cluster) -> None:
        self._path, self._live = place / "ledger", live
        self._path.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Let it commit until stop()."""
        before = len(self.rows())
        self._process = subprocess.Popen([sys.executable, "-c", WRITER, self._live.url, str(self._path)])
        until(lambda: len(self.rows()) > before, "commits")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def rows(self) -> list[tuple[int, datetime, datetime]]:
        """Return what was acknowledged: number, when it was begun and when it was done."""
        rows = [line.split() for line in self._path.read_text().splitlines() if line.count(" ") == 2]
        return [(int(n), datetime.fromisoformat(begun), datetime.fromisoformat(done)) for n, begun, done in rows]

    def went_back(self, count: int) -> None:
        """Forget what a restore in place has taken back."""
        kept = [line for line in self._path.read_text().splitlines() if line and int(line.split()[0]) <= count]
        self._path.write_text("".join(f"{line}\n" for line in kept))

    def agrees(self, sums: str, moment: datetime) -> bool:
        """Return whether that is a state of the ledger, and has what was acknowledged before a moment."""
        count, last, total = (int(part) for part in sums.split("|"))
        acknowledged = max([0, *(n for n, _, done in self.rows() if done < moment)])
        return count == last >= acknowledged and total == sum(n % 700 for n in range(1, count + 1))


def children(pid: int) -> list[int]:
    found = list[int]()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(one for child in children(pid) for one in tree(child))]


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def half_of(pid: int) -> str:
    words = command(pid).decode(errors="replace").split("\0")
    return words[words.index("dbguardd.worker") + 1] if "dbguardd.worker" in words else ""
