"""What a server has sent is a backup like any other: a moment of it, its rows, its damage, and what it lacks."""

import os
import socket

import pytest
from engine_memory import no_progress
from past_world import Told
from postgres_follow_world import Follower, moment
from postgres_pages_world import failed, proven, stored, tree
from postgres_sent_world import clean, here, live, opened, over, place, sent
from postgres_world import as_owner, stranger, until

from dbguardd.engines.base import Bounds, ProofQuery
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.errors import NoSpace, Unsupported
from dbguardd.storage import open_storage
from tests.repository.data_path import saving

__all__ = ["live", "place"]
BOUNDS = Bounds("cluster, backup B1", 600.0, 1000, 64 << 20)


def test_a_moment_of_what_was_sent_by_one_of_several_servers_and_its_rows_come_back(live, place):  # noqa: F811
    live.sql("ALTER ROLE dbguard SUPERUSER; CREATE TABLE ledger (id int PRIMARY KEY, note text)")
    live.sql("CREATE TABLE rows (n int PRIMARY KEY); INSERT INTO rows SELECT generate_series(1, 20)", "shop")
    with (live.config / "pg_hba.conf").open("a") as hba:
        hba.write("host replication dbguard 127.0.0.1/32 scram-sha-256\n")
    live.sql("SELECT pg_reload_conf()")
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        closed = refusing.getsockname()[1]
    url = over(live, place).replace(f"127.0.0.1:{live.port}", f"127.0.0.1:{closed},127.0.0.1:{live.port}")
    follower = Follower(live, place, stranger())
    os.chown(follower.path, stranger(), -1)
    follower.start()
    try:
        follower.catches_up()
        first = here(sent, live, place, url)
        live.sql("INSERT INTO ledger VALUES (1, 'then')")
        follower.catches_up()
    finally:
        follower.kill()
    until(lambda: live.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0", "the end of it")
    live.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    live.sql("DELETE FROM rows WHERE n IN (7, 9)", "shop")
    second = here(lambda: sent(live, place, url, compared=False))
    then = moment(first, *follower.body())

    def came_back():
        engine = opened(live, place)
        engine.restore(then, place / "then", no_progress)
        query = ProofQuery("SELECT count(*) FROM ledger WHERE note = 'then'", equals=1, database="postgres")
        return failed(engine.examine(place / "then", (query,), no_progress))

    assert here(came_back) == {}

    def missing():
        past, told = open_postgresql({"url": url, "staging": "/nonexistent"}).server_questions, Told()
        both = [past.scratch_restore(tree(*one[:2]), place / f"past{number}", "shop", no_progress)
                for number, one in enumerate((first, second))]  # fmt: skip
        return past.missing(both, ("rows", ""), "rows", BOUNDS, told)["rows"], told.lines[1:]

    assert here(missing) == (2, [[7], [9]])
    assert first[1]["read_by"] == second[1]["read_by"] == "replication"


def test_a_page_that_is_damaged_at_the_server_is_sent_and_fails_the_proof(live, place):  # noqa: F811
    live.sql("CREATE TABLE hurt AS SELECT n, repeat('x', 900) FROM generate_series(1, 3000) n; CHECKPOINT", "shop")
    path = live.data / live.sql("SELECT pg_relation_filepath('hurt')", "shop")
    with path.open("r+b") as file:
        file.seek(100 * 8192 + 4000)
        file.write(b"not what was written")
    streams, facts, _ = here(lambda: sent(live, place, compared=False))
    live.sql("DROP TABLE hurt", "shop")
    found = failed(here(proven, live, streams, facts, place / "restored"))
    assert "page checksums" in found, found


def test_a_repository_that_has_no_room_ends_what_is_sent(live, place):  # noqa: F811
    def kept():
        storage = open_storage({"name": "small", "path": str(place / "store"), "max_bytes": 100_000}, create=True)
        engine = open_postgresql({"url": live.url, "staging": str(place), "method": "pages"}).snapshots
        with saving(storage) as sink:
            engine.dump(sink, no_progress)

    noise = "decode(md5(n::text) || md5((-n)::text), 'hex')"
    live.sql(f"CREATE TABLE noise AS SELECT {noise} FROM generate_series(1, 400000) n", "shop")
    with pytest.raises(NoSpace, match="reached its limit"):
        here(kept)
    live.sql("DROP TABLE noise", "shop")
    until(lambda: clean(live), "the end of it")


def test_a_tablespace_that_no_server_sends_is_not_left_out(live, place):  # noqa: F811
    live.sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE inside LOCATION ''")
    try:
        with pytest.raises(Unsupported, match="inside lies within the data directory"):
            here(sent, live, place)
        with pytest.raises(Unsupported, match="inside lies within the data directory"):
            as_owner(stored, live)
    finally:
        live.sql("DROP TABLESPACE inside")
