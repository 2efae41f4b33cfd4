"""A cluster whose disk was set back to before its newest backup is refused before anything of it is copied."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests.engines.postgres_world import cluster, owner
from tests.process.house import House


def stored_bytes(house: House) -> int:
    return sum(path.stat().st_size for path in house.store.rglob("*") if path.is_file())


def test_a_server_of_the_past_is_refused_before_its_copy(house: House, request: pytest.FixtureRequest) -> None:
    if os.geteuid() == 0:
        request.getfixturevalue("users")
    with cluster() as live:
        live.sql("ALTER SYSTEM SET autovacuum = off")  # its log would count as that of the past
        live.sql("SELECT pg_reload_conf()")
        live.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS sum FROM generate_series(1, 40000) AS n")
        settings = [f'url = "{live.url}"', 'method = "pages"', 'verify = "off"']
        house.protects("\n".join(["\n[database.cluster]", 'engine = "postgresql"', *settings, ""]))
        house.start()
        live.stop(signal.SIGINT)
        shutil.copytree(live.data, past := live.place / "past")
        live.start()
        live.sql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 90000) AS n")
        house.does("backup", "cluster")
        live.stop(signal.SIGINT)
        shutil.rmtree(live.data)
        past.rename(live.data)
        for path in (live.data, *live.data.rglob("*")):
            os.chown(path, owner(), -1)
        live.start()
        live.sql("UPDATE t SET sum = 'other'; CHECKPOINT")  # so there is something to store, and less log than was
        before = stored_bytes(house)
        problem = house.fails("DBG-2013", 1, "backup", "cluster")
        assert "set back to a state before its newest backup" in problem["message"]
        assert stored_bytes(house) - before < 10_000
        assert house.does("backup", "cluster", "--successor")["backup"]["kind"]
        house.idle()
