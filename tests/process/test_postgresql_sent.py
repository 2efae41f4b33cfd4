"""A PostgreSQL server whose files are not read here, and a real daemon: it sends them, and a table comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.engines.postgres_world import Cluster, cluster, free_port, stranger
from tests.process.house import House

MANY = """
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO customer SELECT n, repeat('customer ' || n, 20) FROM generate_series(1, 20000) n; CHECKPOINT;
"""


@pytest.fixture(scope="module")
def live() -> Iterator[Cluster]:
    with cluster("--data-checksums") as made:
        made.stop(signal.SIGINT)
        made.port = free_port()
        with (made.config / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {made.port}\n")
        made.start()
        made.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        made.sql("ALTER SYSTEM SET autovacuum = off")  # it would write to every page between two backups
        made.sql("SELECT pg_reload_conf()")
        made.sql(MANY)
        yield made


def test_it_is_proven_comes_back_to_a_new_place_and_never_in_place(
    house: House, live: Cluster, request: pytest.FixtureRequest
) -> None:
    """All of it comes again with each backup, and what has changed is stored."""
    stranger()
    request.getfixturevalue("users")
    settings = [f'url = "postgresql://postgres@127.0.0.1:{live.port}/"', 'method = "pages"', 'run_as = "daemon"']
    house.protects("\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""]))
    house.start()
    again = ["protect", f"postgresql://postgres@127.0.0.1:{live.port}/", "--name", "net", "--continuous"]
    refused = house.fails("DBG-2008", 2, *again)  # root cannot start the server of its proof
    assert "conf.d" in refused["detail"] and refused["hints"] == [" ".join(["dbguardctl", *again])]
    first = house.does("backup", "cluster")
    live.sql("UPDATE customer SET name = 'new' WHERE id = 10000; CHECKPOINT")
    second = house.does("backup", "cluster")
    assert first["proof"]["grade"] == second["proof"]["grade"] == "proven"
    assert (first["backup"]["kind"], second["backup"]["kind"]) == ("full", "incremental")
    assert second["backup"]["stored_bytes"] * 3 < first["backup"]["stored_bytes"]
    assert second["facts"]["read_by"] == "replication"
    named = {row["name"]: row["detail"] for row in house.does("check", "cluster")["findings"]}
    assert "the server sends the files" in named["backups by pages"]

    assert house.does("query", "cluster", "SELECT count(*) FROM customer")["rows"] == [[20000]]
    live.sql("DROP TABLE customer")
    refused = house.fails("DBG-2008", 2, "restore", "cluster", "--in-place")
    assert "in place on this host" in refused["message"] and refused["hints"] == ["dbguardctl restore cluster"]
    folder = house.place / "back"
    folder.mkdir()
    os.chown(folder, stranger(), -1)
    shown = house.ctl("restore", "cluster", "--to", str(folder / "here"), "--dry-run")
    assert shown.status == 0 and "do it" in shown.out and "--in-place" not in shown.out, shown
    done = house.does("restore", "cluster", "--to", str(folder / "here"))
    assert {row["outcome"] for row in done["findings"]} <= {"ok", "not configured"}
    assert (folder / "here").stat().st_uid == stranger()
    house.idle()
    house.is_sound()
