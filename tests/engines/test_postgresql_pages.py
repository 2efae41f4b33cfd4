"""Physical backups of a real cluster: taken beside its users, recovered by its own server, and equal."""

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import fastcdc.fastcdc_cy  # noqa: F401 - the owner of the server may not read where it lies: it is loaded before
import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_world import alive_processes, as_owner, cluster, identity, owner, until

from dbguardd.engines.base import Fingerprint, Query
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.repository.tree import Tree
from tests.repository.data_path import DOMAIN, Drawer, saving

MADE = """
CREATE TABLE big (n int PRIMARY KEY, t text);
INSERT INTO big SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 12000) n;
CREATE UNLOGGED TABLE passing (n int PRIMARY KEY); INSERT INTO passing SELECT generate_series(1, 1000);
CREATE TABLE "odd.\n""name" ("c, 1" text, mood numeric, raw bytea);
INSERT INTO "odd.\n""name" SELECT 'r' || n, n / 3.0, decode(md5(n::text), 'hex') FROM generate_series(1, 300) n;
CREATE TABLE part (n int) PARTITION BY RANGE (n); CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
INSERT INTO part SELECT generate_series(0, 99);
CREATE TABLE gone AS SELECT n FROM generate_series(1, 50) n; DELETE FROM gone WHERE n > 40;
CREATE TABLE afar (n int PRIMARY KEY) TABLESPACE far; INSERT INTO afar SELECT generate_series(1, 500);
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM big;
SELECT lo_from_bytea(0, 'a large object');
VACUUM ANALYZE;
"""


@pytest.fixture(scope="module")
def live():
    with cluster("--data-checksums") as made:
        far = made.place / "far"
        far.mkdir()
        os.chown(far, owner(), -1)
        made.sql(f"CREATE TABLESPACE far LOCATION '{far}'; CREATE DATABASE shop")
        made.sql(MADE, "shop")
        subprocess.run(bench(made, "-i", "-q", "-s", "1"), check=True, capture_output=True, cwd="/")
        yield made


@pytest.fixture
def place():
    """A directory of the owner's, where a job restores; nothing is left running in it."""
    base = Path(tempfile.mkdtemp(prefix="dbg-"))
    os.chown(base, owner(), -1)
    yield base
    assert alive_processes(str(base)) == []
    shutil.rmtree(base)


def bench(live, *words):
    return [live.programs / "pgbench", "-h", live.socket, "-p", str(live.port), "-U", "postgres", *words, "shop"]


@contextmanager
def writers(live):
    """Eight clients who transfer money, for the length of a block."""
    before = live.sql("SELECT count(*) FROM pgbench_history", "shop")
    words = bench(live, "-n", "-c", "8", "-R", "800", "-T", "120")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")
    try:
        until(lambda: live.sql("SELECT count(*) FROM pgbench_history", "shop") != before, "the first transfers")
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()


def made(live, **settings):
    return open_postgresql({"url": live.url, "method": "pages", **settings}).snapshots


def backed_up(live, before=None, after=None):
    """Back up and read the content of the snapshot. `before` is called with each stream, `after` before the reading."""
    engine, sink = made(live), MemorySink(before)
    facts = engine.dump(sink, no_progress)
    if after is not None:
        after()
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink, facts, taken


def proven(live, sink, facts, target, queries=()):
    engine = made(live)
    engine.restore(MemoryTree(sink, facts), target, no_progress)
    return engine.examine(target, queries, no_progress)


def round_trip(live, target, queries=(), before=None, after=None):
    sink, facts, taken = backed_up(live, before, after)
    return sink.streams, facts, taken, proven(live, sink, facts, target, queries)


def failed(found):
    return {finding.name: finding.detail for finding in found.findings if finding.outcome != "ok"}


# ----------------------------------------------------------------------------------------------- it is what it was


def test_a_cluster_comes_back_equal_to_its_snapshot_while_it_is_written(live, place):
    target = place / "restored"
    sums = [
        Query(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)", equals=1
        ),
        Query(
            "SELECT (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)", min=1
        ),
        Query("SELECT count(*) FROM passing", equals=0, database="shop"),
        Query("SELECT 1", equals=1, database="absent"),
    ]
    with writers(live):
        streams, facts, taken, found = as_owner(round_trip, live, target, sums)
        _, _, later, other = as_owner(round_trip, live, place / "later")
    assert list(failed(found)) == ["query: SELECT 1"]
    assert isinstance(taken, Fingerprint) and found.fingerprint == taken
    assert found.fingerprint != other.fingerprint == later
    assert {name.partition(".")[0] for name in taken.tables} == {"shop", "postgres", "template1"}
    assert taken.tables["shop.public.big"].rows == 12000 and "shop.public.passing" not in taken.tables
    assert facts["snapshot_tries"] >= 1 and facts["left_out"] == []
    assert any(name.startswith("base/") for name in streams) and {"files.tar", "log.tar"} < set(streams)
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    assert target.stat().st_mode & 0o777 == 0o700


def test_the_restored_directory_starts_with_the_servers_own_tools_and_touches_nothing_of_the_original(live, place):
    as_owner(round_trip, live, place / "restored")
    target = place / "restored"
    space = next((target / "pg_tblspc").iterdir())
    assert space.resolve().is_relative_to(target)
    assert not (target / "recovery.signal").exists() and not list(target.glob("*.dbguard*"))
    assert "recovery_target" not in (target / "postgresql.auto.conf").read_text()
    assert f"port = {live.port}" in (target / "postgresql.conf").read_text()
    options = f"-c unix_socket_directories={place} -c port=6543"
    words = [live.programs / "pg_ctl", "-D", target, "-w", "-l", place / "log", "-o", options]
    subprocess.run([*words, "start"], check=True, cwd="/", capture_output=True, **identity())
    try:
        asked = [live.programs / "psql", "-XqAt", "-h", place, "-p", "6543", "-U", "postgres", "-d", "shop"]
        told = subprocess.run([*asked, "-c", "INSERT INTO afar VALUES (501); SELECT count(*) FROM afar"],
                              check=True, capture_output=True, text=True, cwd="/")  # fmt: skip
    finally:
        subprocess.run([*words, "-m", "fast", "stop"], check=True, cwd="/", capture_output=True, **identity())
    assert told.stdout.strip() == "501"
    assert live.sql("SELECT count(*) FROM afar", "shop") == "500"


def test_what_is_unchanged_is_not_read_again_and_what_is_changed_is_stored_page_by_page(live, place):
    def twice(storage):
        parent, found = None, []
        for turn in range(4):
            engine = made(live)
            if turn == 3:
                live.sql("UPDATE big SET t = 'new' WHERE n = 6000; CHECKPOINT", "shop")
            with saving(storage, parent) as sink:
                facts = engine.dump(sink, no_progress)
                parent = sink.seal(facts)
            found.append((parent, facts, engine.fingerprint(no_progress)))
            engine.release()
        return found, proven_from(storage, parent)

    def proven_from(storage, backup):
        engine = made(live)
        with Tree(storage, DOMAIN, backup) as tree:
            engine.restore(tree, place / "restored", no_progress)
        return engine.examine(place / "restored", (), no_progress)

    live.sql("CHECKPOINT", "shop")
    for path in (*live.data.glob("base/*/*"), *live.data.glob("base/*")):  # as if nothing was written for a while
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    changed = max(int(path.stat().st_ctime_ns) for path in live.data.glob("base/*/*"))
    until(lambda: time.time_ns() > changed + 2_100_000_000, "times that are old enough")
    found, examined = as_owner(twice, Drawer())
    (first, facts1, _), (second, facts2, _), (third, facts3, _), (fourth, facts4, taken) = found
    assert first.kind == "full" and second.kind == third.kind == "incremental"
    assert facts1["reused_files"] == 0 and facts2["reused_files"] >= 2 and facts3["reused_files"] >= 2
    assert facts4["reused_files"] == facts3["reused_files"] - 1  # the table; the key of an updated row stays
    assert second.stored_bytes < first.stored_bytes / 5
    assert fourth.stored_bytes < first.stored_bytes / 4
    assert failed(examined) == {} and examined.fingerprint == taken
