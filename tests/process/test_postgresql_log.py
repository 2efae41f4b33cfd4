"""A cluster whose log is followed: any moment of it comes back, and what was missed is said to be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.engines.postgres_world import Cluster, cluster, identity, owner
from tests.process.house import House, until

WRITER = """
import datetime, sys, time
import psycopg
url, ledger = sys.argv[1:]
now = lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()
db = psycopg.connect(url, autocommit=True)
number = db.execute("select coalesce(max(id), 0) from ledger").fetchone()[0]
with open(ledger, "a") as file:
    while True:
        begun, number = now(), number + 1
        db.execute("insert into ledger values (%s, %s)", (number, "x" * (number % 700)))
        file.write(f"{number} {begun} {now()}\\n")
        file.flush()
        time.sleep(0.002)
"""


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster() as made:
        made.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        made.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        made.sql("SELECT pg_reload_conf()")
        yield made


@pytest.fixture
def served(house: House, request: pytest.FixtureRequest) -> House:
    """A house whose workers can become the owner of the server."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    return house


def table(live: Cluster, *lines: str) -> str:
    settings = [f'url = "{live.url}"', 'method = "pages"', "continuous = true"]
    return "\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, *lines, ""])


class Books:
    """An application that commits all the time, and what was acknowledged to it."""

    def __init__(self, place: Path, live: Cluster) -> None:
        self.path, self._live = place / "ledger", live
        self.path.touch()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let it commit until the block ends."""
        before = self.count()
        process = subprocess.Popen([sys.executable, "-c", WRITER, self._live.url, str(self.path)])
        try:
            until(lambda: self.count() > before, "commits")
            yield
        finally:
            process.kill()
            process.wait()

    def rows(self) -> list[tuple[int, datetime, datetime]]:
        """What was committed: number, when it was begun and when it was acknowledged."""
        rows = [line.split() for line in self.path.read_text().splitlines() if line.count(" ") == 2]
        return [(int(n), datetime.fromisoformat(begun), datetime.fromisoformat(done)) for n, begun, done in rows]

    def count(self) -> int:
        return len(self.path.read_text().splitlines())

    def more(self, commits: int) -> None:
        """Wait for so many further commits."""
        target = self.count() + commits
        until(lambda: self.count() > target, "commits")

    def is_as_it_was(self, restored: Path, moment: datetime) -> None:
        """Assert that a restored cluster has each commit that had returned before a moment, and none begun later."""
        found = numbers(self._live, restored)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= max([0, *(n for n, _, done in self.rows() if done < moment)])
        assert len(found) <= max([0, *(n for n, begun, _ in self.rows() if begun <= moment)])


def numbers(live: Cluster, data: Path) -> list[int]:
    """Start the restored cluster, and return what is in its ledger."""
    options = f"-c unix_socket_directories={data.parent} -c port=6543 -c max_slot_wal_keep_size=-1"
    control = [live.programs / "pg_ctl", "-D", data, "-w", "-l", data.parent / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/", **identity())
    try:
        words = [live.programs / "psql", "-XqAt", "-h", data.parent, "-p", "6543", "-U", "postgres"]
        asked = subprocess.run([*words, "-c", "select id from ledger order by id"], check=True, capture_output=True,
                               text=True, cwd="/")  # fmt: skip
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/", **identity())
    return [int(line) for line in asked.stdout.split()]


def restored(house: House, at: str, name: str) -> tuple[Path, Any]:
    """Restore a moment (or the newest, if empty) to a new place."""
    folder = house.place / f"back-{name}"
    folder.mkdir()
    os.chown(folder, owner(), -1)
    answer = house.does("restore", "cluster", *(("--at", at) if at else ()), "--to", str(folder / "data"))
    return folder / "data", answer


def followed(house: House) -> Any:
    """Wait until the log is followed from a backup on, up to now; return the status."""
    now = datetime.now(UTC)

    def reaches() -> Any:
        row = house.status("cluster")
        reached = datetime.fromisoformat(row["recoverable_to_at"] or "1970-01-01T00:00Z")
        return row if reached > now and not house.jobs(state="running") else None

    return until(reaches, lambda: (house.status("cluster"), house.log.read_text()[-3000:]))


def test_any_second_comes_back(served: House, live: Cluster) -> None:
    house, books = served, Books(served.place, live)
    house.protects(table(live))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    with books.writing():
        books.more(300)
        moment = datetime.now(UTC)
        books.more(300)
        followed(house)
    target, answer = restored(house, moment.isoformat(), "moment")
    assert {row["outcome"] for row in answer["findings"]} <= {"ok", "not configured"}, answer
    books.is_as_it_was(target, moment)
    followed(house)
    target, answer = restored(house, "", "newest")
    books.is_as_it_was(target, datetime.now(UTC) + timedelta(seconds=1))
    assert len(numbers(live, target)) == books.count()
    house.is_sound()
