"""A cluster that archives its log by us: any second comes back, and nothing is taken over that is not stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.engines.postgres_world import Cluster, cluster
from tests.process.house import House, typed, until
from tests.process.test_postgresql_log import Books, restored, table


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster("--wal-segsize=1") as made:
        with (made.data / "postgresql.conf").open("a") as conf:
            conf.write("archive_mode = on\narchive_command = 'false'\n")
        made.stop()
        made.start()
        made.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        yield made


@pytest.fixture
def served(house: House, live: Cluster, request: pytest.FixtureRequest) -> House:
    """A house whose workers can become the owner of the server, and whose dbguardctl he can run."""
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    program = Path(house.python).with_name("dbguardctl")
    if not program.exists():
        program.write_text(f"#!{house.python}\nimport sys\nfrom dbguardctl.__main__ import main\nsys.exit(main())\n")
        program.chmod(0o755)
    house.protects(table(live).replace("continuous = true", 'continuous = "archive"'))
    house.start()
    return house


def finding(house: House) -> tuple[str, str]:
    rows = {row["name"]: row for row in house.does("check", "cluster")["findings"]}
    return str(rows["following its log"]["outcome"]), str(rows["following its log"]["detail"])


def stored(house: House, moment: datetime) -> bool:
    rows = house.coverage("cluster")
    return bool(rows) and datetime.fromisoformat(rows[-1]["until_at"]) > moment


def test_what_the_server_hands_over_comes_back_to_any_second(served: House, live: Cluster) -> None:
    house, books = served, Books(served.place, live)
    house.does("backup", "cluster")
    began = datetime.now(UTC)
    until(lambda: stored(house, began) and not house.jobs(state="running"), lambda: house.coverage("cluster"))
    outcome, detail = finding(house)
    assert outcome == "failed" and detail.startswith("archive_command is not ours. Fix: ")
    typed(detail.partition("Fix: ")[2])
    with books.writing():
        books.more(100)
        moment = datetime.now(UTC)
        books.more(100)
    live.sql("SELECT pg_switch_wal()")
    ended = datetime.now(UTC)
    until(lambda: stored(house, ended), lambda: (house.coverage("cluster"), house.log.read_text()[-2000:]))
    until(lambda: live.sql("SELECT failed_count >= 0 AND archived_count > 0 FROM pg_stat_archiver") == "t", "archiving")
    outcome, detail = finding(house)
    assert outcome == "inconclusive" and "archive_timeout" in detail
    typed(detail.partition("Fix: ")[2])
    until(lambda: finding(house)[0] == "ok", lambda: finding(house))
    target, _ = restored(house, moment.isoformat(), "moment")
    books.is_as_it_was(target, moment)

    house.kill()
    live.sql("INSERT INTO ledger VALUES (1000001, 'while nobody was there')")
    failed = int(live.sql("SELECT failed_count FROM pg_stat_archiver"))
    live.sql("SELECT pg_switch_wal()")
    until(lambda: int(live.sql("SELECT failed_count FROM pg_stat_archiver")) > failed, "a try")
    house.start()
    again = datetime.now(UTC)
    until(lambda: stored(house, again), lambda: (house.coverage("cluster"), house.log.read_text()[-2000:]))
    live.sql("INSERT INTO ledger VALUES (1000002, 'which wakes the archiver')")
    live.sql("SELECT pg_switch_wal()")
    until(lambda: live.sql("SELECT last_archived_time > last_failed_time FROM pg_stat_archiver") == "t", "archiving")
    assert [event["continued"] for event in house.events("log.begun")] == [False, True]
    backup = house.does("backup", "cluster")["backup"]["id"]
    made = datetime.now(UTC)
    until(lambda: stored(house, made), lambda: house.coverage("cluster"))
    proof = house.does("verify", backup)
    assert proof["proof"]["grade"] == "proven" and house.events("log.tried")[-1]["outcome"] == "ok"
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    house.idle()
    house.is_sound()
