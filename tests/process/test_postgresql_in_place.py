"""A cluster is restored in place, killed on the way, and put back, as an administrator does it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engines.postgres_world import Cluster, alive_processes, cluster, owner
from tests.process.house import FINAL, House, until
from tests.process.test_postgresql_log import followed

IN_PLACE = ("restore", "cluster", "--in-place", "--confirm", "cluster")


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster() as made:
        far = made.place / "far"
        far.mkdir()
        os.chown(far, owner(), -1)
        made.sql(f"CREATE TABLESPACE far LOCATION '{far}'")
        made.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        made.sql("SELECT pg_reload_conf()")
        made.sql("CREATE TABLE t TABLESPACE far AS SELECT generate_series(1, 20000) AS n")
        yield made


@pytest.fixture
def served(house: House, live: Cluster, request: pytest.FixtureRequest) -> House:
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    settings = [f'url = "{live.url}"', 'method = "pages"', "continuous = true", 'verify = "off"']
    house.protects("\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""]))
    house.start()
    house.does("backup", "cluster")
    followed(house)
    return house


def goes_on(house: House, live: Cluster) -> None:
    """What is there now is followed and backed up, whatever its timeline, and nobody has to say so."""
    live.start()
    followed(house)
    house.does("backup", "cluster")


def counted(live: Cluster) -> str:
    return live.sql("SELECT count(*) FROM t")


def test_in_place_and_back_and_killed_between(served: House, live: Cluster) -> None:
    house, first = served, served.backups("cluster")[0]["id"]
    live.sql("DELETE FROM t WHERE n <= 5000; CREATE TABLE later AS SELECT 1 AS n")
    house.idle()
    plan = house.does("restore", "cluster", "--in-place", "--dry-run")["plan"]
    assert (plan["to"], plan["in_place"]) == (str(live.data), True) and plan["free_bytes"] > plan["needs_bytes"]
    grows = plan["needs_bytes"] - (64 << 20)
    assert (
        -plan["undo_bytes"] < grows < plan["undo_bytes"] and plan["undo_free_bytes"] > plan["undo_bytes"] > 20_000_000
    )
    shown = house.ctl("restore", "cluster", "--in-place", "--dry-run").out
    assert "more than it takes up now" in shown and " for the current state, " in shown
    assert "a server runs there" in plan["warnings"][-1] and "-m fast stop" in plan["warnings"][-1]
    refused = house.fails("DBG-6003", 10, *IN_PLACE)
    assert f"-D {live.data} -m fast stop" in refused["hints"][0]
    live.stop(signal.SIGINT)
    rows = len(house.backups("cluster"))
    house.fails("DBG-6004", 10, "restore", "cluster", "--in-place")
    assert len(house.backups("cluster")) == rows  # nothing was kept for nothing

    done = house.does(*IN_PLACE, "--id", first)
    assert done["target"] == str(live.data)
    assert {row["outcome"] for row in done["findings"]} <= {"ok", "not configured"}, done
    safety = next(row for row in house.backups("cluster") if row["id"] == done["safety_copy"])
    assert safety["stored_bytes"] <= plan["undo_bytes"] and safety["source_bytes"] <= plan["undo_bytes"] * 11 // 10
    assert safety["holds"] == ["restore undo"] and safety["kind"] == "incremental"
    goes_on(house, live)
    assert counted(live) == "20000" and live.sql("SELECT to_regclass('later') IS NULL") == "t"
    house.idle()
    live.stop(signal.SIGQUIT)

    aside = Path(f"{live.data}.in-restore")
    job = house.submit("undo", "cluster", confirm="cluster")
    until(lambda: aside.exists() or house.job(job)["state"] in FINAL, lambda: house.job(job))
    with suppress(KeyError, ProcessLookupError):  # it was quicker
        os.kill(house.workers()["engine"], signal.SIGKILL)
    ended = house.ended(job)
    if ended["state"] == "failed":
        assert not live.data.exists() and "in-restore" in ended["problem"]["detail"]
    undo = ("restore", "undo", "cluster", "--confirm", "cluster")
    said = house.ctl(*undo)
    assert said.status == 0, said
    assert not aside.exists() and live.data.exists()
    if ended["state"] == "failed":  # that brought back what was there before the undo; now that itself
        live.start()
        assert counted(live) == "20000"
        live.stop(signal.SIGINT)
        assert house.ctl(*undo).status == 0
    goes_on(house, live)
    assert counted(live) == "15000" and live.sql("SELECT n FROM later") == "1"
    house.idle()
    house.is_sound()


def test_a_proof_in_place_whose_server_dies_says_where_the_cluster_is_and_the_way_back(
    served: House, live: Cluster
) -> None:
    house, first, rows = served, served.backups("cluster")[0]["id"], counted(live)
    endless = 'proof.queries = [{ sql = "SELECT count(pg_sleep(600))", min = 0, database = "postgres" }]'  # held by it
    house.policy.write_text(house.policy.read_text().replace('verify = "off"', f'verify = "off"\n{endless}'))
    house.does("reload")
    live.sql("INSERT INTO t VALUES (0)")
    live.stop(signal.SIGINT)
    aside = Path(f"{live.data}.in-restore")
    job = house.submit("restore", "cluster", backup=first, in_place=True, confirm="cluster")
    until(lambda: house.job(job)["step"] in ("read", "examine"), lambda: house.job(job))
    for pid in alive_processes("postgres", "-D", str(aside)):
        os.kill(pid, signal.SIGKILL)
    problem = house.ended(job)["problem"]
    assert "throw-away server" in problem["message"] and ".in-restore" in problem["detail"], problem
    undo = "dbguardctl restore undo cluster --confirm cluster"
    assert problem["hints"][-1] == undo and aside.exists() and not live.data.exists()
    house.does(*undo.split()[1:])
    goes_on(house, live)
    assert int(counted(live)) == int(rows) + 1
    house.idle()
