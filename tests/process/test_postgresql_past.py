"""Questions to backups of a server, asked of a real daemon: a table or some rows come back, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.engines.postgres_world import Cluster, alive_processes, cluster, ended
from tests.process.house import House, typed, until

SHOP = """
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
CREATE TABLE purchase (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int REFERENCES customer, total numeric);
INSERT INTO customer SELECT n, 'customer ' || n FROM generate_series(1, 100) n;
INSERT INTO purchase (customer, total) SELECT 1 + n % 100, n FROM generate_series(1, 1000) n;
"""
NEEDLE = "customer 77"
ENDLESS = "SELECT count(*) FROM generate_series(1, 100000000000)"


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster() as made:
        made.sql("CREATE DATABASE shop; CREATE DATABASE other")
        made.sql(SHOP, "shop")
        made.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        made.sql("SELECT pg_reload_conf()")
        yield made


@pytest.fixture
def guarded(house: House, live: Cluster, request: pytest.FixtureRequest) -> House:
    """A daemon that guards the server by its pages; its workers can become the owner of that."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    lines = [
        "\n[database.cluster]",
        'engine = "postgresql"',
        f'url = "{live.url}"',
        'method = "pages"',
        'verify = "off"',
    ]
    house.protects("\n".join([*lines, *getattr(request, "param", ()), ""]))
    house.start()
    return house


def staged(house: House) -> list[Path]:
    return [path for path in (house.state / "staging").rglob("*") if path.is_file()]


def test_a_lost_table_and_lost_rows_come_back_without_a_restore(guarded: House, live: Cluster) -> None:
    first = str(guarded.does("backup", "cluster")["backup"]["id"])
    named = ["--database", "shop"]
    problem = guarded.fails("DBG-0001", 2, "query", "cluster", "SELECT 1")
    assert "other, postgres, shop" in problem["detail"] and "--database" in problem["hints"][0]
    live.sql("DELETE FROM purchase WHERE id IN (7, 8); UPDATE purchase SET total = 0 WHERE id = 9", "shop")
    second = str(guarded.does("backup", "cluster")["backup"]["id"])
    live.sql("DROP TABLE purchase", "shop")

    found = guarded.does("query", "cluster", "--id", first, *named, "SELECT id, total FROM purchase WHERE id IN (7, 9)")
    assert (found["backup"], found["columns"], found["rows"]) == (first, ["id", "total"], [[7, "7"], [9, "9"]])
    differing = guarded.does("diff", "cluster", "--from", first, "--table", "purchase", *named)
    assert [(row["change"], row["key"]) for row in differing["changes"]] == [
        ("removed", {"id": 7}), ("removed", {"id": 8}), ("changed", {"id": 9}),
    ]  # fmt: skip
    table, rows = guarded.place / "purchase.sql", guarded.place / "rows.sql"
    taken = guarded.does("get", "cluster", "--table", "purchase", *named, "--to", str(table))
    assert (taken["backup"], taken["rows"], taken["in_database"]) == (second, 998, "shop")
    lost = ["undelete", "cluster", "--id", first, "--table", "purchase", "--where", "id < 100", *named]
    shown = guarded.ctl(*lost)
    assert "2 rows of purchase missing" in shown.out + shown.err
    assert guarded.does(*lost, "--to", str(rows))["missing"] == 2
    for text in (table, rows):  # as it says itself
        typed(text.read_text().splitlines()[1].partition("run it: ")[2].removesuffix(" <THIS"), text.read_text())
    assert live.sql("SELECT count(*), sum(total) FROM purchase", "shop") == "1000|500491"
    back = guarded.place / "back.sql"
    changed = ["undelete", "cluster", "--id", first, "--table", "purchase", "--changed", *named]
    assert [row["key"] for row in guarded.does(*changed)["changes"]] == [{"id": 9}]
    guarded.does(*changed, "--to", str(back))
    text = back.read_text()
    typed(text.splitlines()[1].partition("run it: ")[2].removesuffix(" <THIS"), text)
    assert live.sql("SELECT count(*), sum(total) FROM purchase", "shop") == "1000|500500"
    live.sql("CREATE TABLE note AS SELECT * FROM customer; DROP TABLE purchase", "shop")
    third = str(guarded.does("backup", "cluster")["backup"]["id"])
    for name, since in (("purchase", first), ("note", third)):  # one is gone, one has no key: all of it comes back
        if name == "note":
            guarded.does("backup", "cluster")
        refused = guarded.fails("DBG-2008", 2, "undelete", "cluster", "--id", since, "--table", name, *named)
        assert refused["hints"] == [
            f"dbguardctl get cluster --table public.{name} --database shop --id {since} --to table.sql"
        ]
        guarded.does(*refused["hints"][0].split()[1:-1], str(guarded.place / f"{name}-whole.sql"))
    asked = guarded.events("question.restoring")
    assert asked[0]["backup"] == first and asked[0]["needs_bytes"] > 1 << 20
    guarded.idle()
    guarded.is_sound()
    for path in [guarded.log, *(path for path in guarded.state.rglob("*") if path.is_file())]:
        assert NEEDLE.encode() not in path.read_bytes(), path


def test_a_question_is_in_nobodys_way_and_leaves_nothing_cancelled_or_killed(guarded: House, live: Cluster) -> None:
    first = str(guarded.does("backup", "cluster")["backup"]["id"])
    staging = str(guarded.state / "staging")

    def asking() -> str:
        job = guarded.submit("query", "cluster", sql=ENDLESS, seconds=600, in_database="shop")
        until(lambda: guarded.job(job)["step"] == "answer", lambda: guarded.job(job))
        return job

    job = asking()
    assert guarded.does("backup", "cluster")["backup"]["kind"] == "incremental"  # it goes on beside
    assert staged(guarded) != []
    guarded.does("job", "cancel", job)
    assert guarded.ended(job)["state"] == "cancelled"
    until(lambda: not guarded.workers() and alive_processes(staging) == [], lambda: alive_processes(staging))
    assert list((guarded.state / "staging").iterdir()) == []

    asking()
    before = alive_processes(staging)
    for number in guarded.workers().values():
        with suppress(ProcessLookupError):  # a half ends with the other one
            os.kill(number, signal.SIGKILL)
    until(lambda: all(ended(number) for number in before) and not guarded.workers(), lambda: alive_processes(staging))
    until(lambda: list((guarded.state / "staging").iterdir()) == [], "what was brought back is deleted")
    guarded.does("verify", first)
    guarded.is_sound()


@pytest.mark.parametrize("guarded", [["continuous = true"]], indirect=True)
def test_a_moment_between_two_backups_is_asked_like_a_backup(guarded: House, live: Cluster) -> None:
    guarded.does("backup", "cluster")

    def stored_after(text: str) -> str:
        """Run some SQL; return a moment that is stored and of which it had been committed."""
        live.sql(text, "shop")
        now = datetime.now(UTC)

        def reached() -> str | None:
            until_at = [str(row["until_at"]) for row in guarded.coverage("cluster")][-1:]
            return until_at[0] if until_at and datetime.fromisoformat(until_at[0]) > now else None

        return str(until(reached, lambda: guarded.coverage("cluster")))

    there = stored_after("INSERT INTO customer VALUES (1001, 'late')")
    stored_after("DELETE FROM customer WHERE id = 1001")
    words = ["--database", "shop", "SELECT name FROM customer WHERE id > 1000"]
    found = guarded.does("query", "cluster", "--at", there, *words)
    assert found["rows"] == [["late"]] and found["segments"] > 0
    assert guarded.does("query", "cluster", *words)["rows"] == []
    gone = ["undelete", "cluster", "--at", there, "--table", "customer", "--database", "shop"]
    assert guarded.does(*gone)["rows"] == [[1001, "late"]]
    base = guarded.backups("cluster")[0]["id"]
    assert guarded.events("question.restoring")[-1]["backup"] == base  # two moments of one backup


def test_a_disk_that_has_no_room_for_what_is_asked_is_said_before(guarded: House, live: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a full disk (only root can mount a file system)")
    guarded.does("backup", "cluster")
    guarded.idle()
    staging = guarded.state / "staging"
    mount = ["mount", "-t", "tmpfs", "-o", "mode=1733,size=20m", "tmpfs", staging]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: a full disk (no file system can be mounted)")
    try:
        problem = guarded.fails("DBG-3002", 11, "query", "cluster", "--database", "shop", "SELECT 1")
        assert "not enough space for a question to backup" in problem["message"]
        assert problem["needed_bytes"] > problem["free_bytes"]
    finally:
        subprocess.run(["umount", staging], check=True)


def test_a_database_of_one_file_has_none_in_it_to_name(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"))
    house.start()
    house.does("backup", "app")
    assert "--database" in house.fails("DBG-0001", 2, "query", "app", "--database", "x", "select 1")["message"]
