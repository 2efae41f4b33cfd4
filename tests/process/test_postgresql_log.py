"""A cluster whose log is followed: any moment of it comes back, and what was missed is said to be."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.engines.postgres_world import Cluster, cluster, identity, owner
from tests.process.house import House, typed, until

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
def served(house: House, live: Cluster, request: pytest.FixtureRequest) -> House:
    """A house whose workers can become the owner of the server; of an earlier one it has nothing."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    live.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    return house


def table(live: Cluster) -> str:
    settings = [f'url = "{live.url}"', 'method = "pages"', "continuous = true", 'verify = "off"']
    return "\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""])


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
        later = [n for n, begun, _ in self.rows() if begun > moment]  # one may be in no book: its writer was killed
        assert not later or len(found) < min(later)


def numbers(live: Cluster, data: Path) -> list[int]:
    """Start the restored cluster, and return what is in its ledger."""
    return [int(line) for line in answered(live, data, "select id from ledger order by id").split()]


def answered(live: Cluster, data: Path, question: str) -> str:
    """Start the restored cluster, and ask it something."""
    options = f"-c unix_socket_directories={data.parent} -c port=6543 -c max_slot_wal_keep_size=-1"
    control = [live.programs / "pg_ctl", "-D", data, "-w", "-l", data.parent / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/", **identity())
    try:
        words = [live.programs / "psql", "-XqAt", "-h", data.parent, "-p", "6543", "-U", "postgres", "-c"]

        def asked(question: str) -> str:
            found = subprocess.run([*words, question], check=True, capture_output=True, text=True, cwd="/")
            return found.stdout.strip()

        until(lambda: asked("select not pg_is_in_recovery()") == "t", "the end of its recovery")
        return asked(question)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/", **identity())


def restored(house: House, at: str, name: str, *way: str) -> tuple[Path, Any]:
    """Restore a moment (or the newest, if empty; or what is said in another way) to a new place."""
    folder = house.place / f"back-{name}"
    folder.mkdir()
    os.chown(folder, owner(), -1)
    answer = house.does("restore", "cluster", *(("--at", at) if at else way), "--to", str(folder / "data"))
    return folder / "data", answer


def followed(house: House) -> None:
    """Wait until the log is stored from a backup on, up to now."""
    now = datetime.now(UTC)

    def reaches() -> bool:
        rows = house.coverage("cluster")
        return bool(rows) and datetime.fromisoformat(rows[-1]["until_at"]) > now and not house.jobs(state="running")

    until(reaches, lambda: (house.coverage("cluster"), house.log.read_text()[-3000:]))


def begun(house: House) -> list[dict[str, Any]]:
    return house.events("log.begun")


def slot(live: Cluster) -> str:
    return live.sql("SELECT slot_name FROM pg_replication_slots WHERE NOT temporary")


def test_any_second_comes_back_whatever_was_killed(served: House, live: Cluster) -> None:
    """And the log between two backups comes to the content of the later one."""
    house, books = served, Books(served.place, live)
    house.protects(table(live))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    with books.writing():
        books.more(200)
        os.kill(until(lambda: house.workers().get("engine"), "the follower"), signal.SIGKILL)
        books.more(200)
        moment = datetime.now(UTC)
        acknowledged = books.count()
        lsn = live.sql("SELECT pg_create_restore_point('before it')")
        begun_by_then = books.count() + 1  # which was committed and is in no book yet
        house.kill()
        books.more(200)
        house.start()
    followed(house)
    there = house.place / "for-look"
    there.mkdir()
    os.chown(there, owner(), -1)
    look = ("--to", str(there / "look"), "--dry-run")
    for way in (("--lsn", lsn), ("--name", "before it")):
        plan = house.does("restore", "cluster", *way, *look)["plan"]
        assert plan[way[0].strip("-")] == way[1] and plan["log_bytes"] > 0 and plan["needs_bytes"] > plan["log_bytes"]
        said = house.ctl("restore", "cluster", *way, *look).out
        assert f"restore cluster {shlex.join(way)}" in said and " of its log, " in said
    target, answer = restored(house, "", "point", "--name", "before it")
    assert {row["outcome"] for row in answer["findings"]} <= {"ok", "not configured"}, answer
    assert acknowledged <= len(numbers(live, target)) <= begun_by_then
    house.fails("DBG-0004", 8, "restore", "cluster", "--name", "before", *look)
    house.fails("DBG-0004", 8, "restore", "cluster", "--lsn", "FFFF/0", *look)
    house.fails("DBG-0001", 2, "restore", "cluster", "--lsn", "here", *look)
    house.fails("DBG-0001", 2, "restore", "cluster", "--lsn", lsn, "--at", moment.isoformat())
    assert [event["continued"] for event in begun(house)][1:] == [True] * (len(begun(house)) - 1)
    target, answer = restored(house, moment.isoformat(), "moment")
    assert {row["outcome"] for row in answer["findings"]} <= {"ok", "not configured"}, answer
    books.is_as_it_was(target, moment)
    house.fails("DBG-0001", 2, "restore", "cluster", "--latest", "--at", moment.isoformat())
    target, answer = restored(house, "", "newest", "--latest")
    assert str(len(numbers(live, target))) == live.sql("SELECT count(*) FROM ledger")
    checked = house.does("check", "cluster", "--data")
    outcomes = {row["name"]: row["outcome"] for row in checked["findings"]}
    assert outcomes["following its log"] == outcomes["every stored byte"] == "ok"
    proof = house.does("backup", "cluster", "--verify")
    tried = house.events("log.tried")[-1]
    assert proof["proof"]["grade"] == "proven" and tried["outcome"] == "ok", tried
    assert not [event for event in house.events("log.tried") if event["outcome"] != "ok"]
    house.idle()
    house.is_sound()


def test_what_was_missed_is_said_and_a_new_base_is_made(served: House, live: Cluster) -> None:
    house, books = served, Books(served.place, live)
    house.protects(table(live))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    with books.writing():
        books.more(50)
        followed(house)
        house.kill()
        lost = slot(live)
        until(lambda: live.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0", "its end")
        live.sql(f"SELECT pg_drop_replication_slot('{lost}')")
        for _ in range(3):
            books.more(20)
            live.sql("SELECT pg_switch_wal()")
            live.sql("CHECKPOINT")
        house.start()
        until(lambda: [event for event in begun(house) if "has removed" in event["because"]], house.log.read_text)
        until(lambda: [row["state"] for row in house.jobs() if row["verb"] == "backup"] == ["done"] * 3, house.jobs)
    assert begun(house)[-1]["level"] == "warning"
    house.idle()
    moment = datetime.now(UTC)
    with books.writing():
        books.more(50)
        followed(house)
    target, _ = restored(house, moment.isoformat(), "after")
    books.is_as_it_was(target, moment)
    house.protects(table(live).replace("continuous = true", "continuous = false"))
    house.does("reload")
    until(lambda: slot(live) == "", "the end of its slot")
    until(lambda: house.events("log.left"), house.log.read_text)
    house.idle()
    house.is_sound()


def test_a_slot_that_is_left_while_its_server_is_down_is_dropped_when_it_is_back(served: House, live: Cluster) -> None:
    """Unless the log is followed again by then: it continues without a gap. A restart of the daemon changes nothing."""
    house, off = served, table(live).replace("continuous = true", "continuous = false")
    house.protects(table(live))
    house.start()
    house.does("backup", "cluster")
    followed(house)

    def left() -> list[dict[str, Any]]:
        return [event for event in house.events("log.left") if event["level"] == "warning"]

    def attention() -> str:
        return " ".join(house.does("status")["attention"])

    for number, again in enumerate((True, False), 1):
        live.stop(signal.SIGINT)
        house.protects(off)
        house.does("reload")
        until(lambda number=number: len(left()) == number, house.log.read_text)  # type: ignore[misc]
        assert "may still retain WAL" in attention()
        assert house.ctl("undo", "cluster", "--confirm", "cluster").status == 8  # at once: it does not wait for that
        if again:
            house.protects(table(live))
            house.does("reload")
        else:
            house.stop()
            house.start()
            until(lambda: "may still retain WAL" in attention(), attention)
        live.start()
        if again:
            followed(house)
            assert [event["continued"] for event in begun(house)] == [False, True]
            assert slot(live) != "" and "may still retain WAL" not in attention()
    until(lambda: slot(live) == "", "the end of its slot")
    until(lambda: "may still retain WAL" not in attention(), attention)
    house.protects(table(live))
    house.does("reload")
    followed(house)
    house.idle()
    house.stop()
    house.protects(off)
    house.start()  # nobody told the daemon that followed it
    until(lambda: slot(live) == "", "the end of its slot")
    house.idle()
    house.is_sound()


def test_a_server_that_the_url_no_longer_names_keeps_its_slot_and_that_is_said(served: House, live: Cluster) -> None:
    """The url may be wrong: with the one before, the log continues without a gap."""
    house = served
    house.protects(table(live))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    kept = slot(live)
    with cluster() as other:
        house.protects(table(other))
        house.does("reload")
        until(lambda: house.events("log.interrupted"), house.log.read_text)
        (told,) = house.events("log.moved")
        assert told["before"] == live.url and told["level"] == "warning"
        assert "still retains WAL for it" in house.ctl("log", "cluster").out
        assert slot(live) == kept and slot(other) == ""
        house.protects(table(live))
        house.does("reload")
        followed(house)
    assert [event["continued"] for event in begun(house)] == [False, True]
    house.idle()
    house.is_sound()


def test_protect_asks_for_what_following_needs(served: House, live: Cluster) -> None:
    house = served
    house.protects()
    house.start()
    live.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
    live.sql("SELECT pg_reload_conf()")
    until(lambda: live.sql("SHOW max_slot_wal_keep_size") == "-1", "the setting")
    try:
        refused = house.fails("DBG-2008", 2, "protect", live.url, "--continuous", "--name", "books")
        assert refused["hints"][-1].endswith(" --name books  # without its log")
        mend = refused["hints"][0]
        assert "-c 'ALTER SYSTEM SET max_slot_wal_keep_size" in mend.replace('"', "'")
        typed(mend)
        said = house.ctl("protect", live.url, "--continuous")
        assert "continuous = true" in (house.place / "conf.d" / "postgresql.toml").read_text()
        assert "you could lose about a second" in said.out
        until(lambda: slot(live), "its slot")
        house.does("unprotect", "postgresql", "--confirm", "postgresql")
        until(lambda: house.events("log.left"), house.log.read_text)
        assert slot(live) == ""
    finally:
        live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        live.sql("SELECT pg_reload_conf()")
    house.idle()
    house.is_sound()
