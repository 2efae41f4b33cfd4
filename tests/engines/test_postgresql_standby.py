"""Backups of a standby: whole and proven as those of a primary, of the moment that it had replayed."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from engine_memory import MemorySink, MemoryTree
from postgres_follow_world import Follower, asked, base, moment, opened, proven, restored
from postgres_pages_world import failed, own_place
from postgres_pair_world import pair, promote, replayed
from postgres_world import as_owner, until

from dbguardd.engines.postgresql.connect import address_of
from dbguardd.engines.postgresql.physical.local import judged, lagging
from dbguardd.errors import GuardError, SourceChanged, Unsupported

WRITER = """
import sys, psycopg
db = psycopg.connect(sys.argv[1], autocommit=True)
while True:
    db.execute("INSERT INTO ledger SELECT max(id) + 1, 'w' FROM ledger")
"""
TOLERATED = {"page checksums", "the server was kept to its directory"}


class At:
    """Servers by a url that asks for a role."""

    def __init__(self, url):
        self.url = url


@pytest.fixture(scope="module")
def both():
    with pair() as made:
        one, two = made.servers
        one.sql("INSERT INTO ledger SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 3000) n; CHECKPOINT")
        replayed(one, two)
        yield made


@pytest.fixture
def writing(both):
    """An application that commits all the time."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, both.servers[0].url])
    before = both.servers[1].sql("SELECT count(*) FROM ledger")
    until(lambda: both.servers[1].sql("SELECT count(*) FROM ledger") != before, "commits")
    yield
    process.kill()
    process.wait()


def tree(streams, facts):
    sink = MemorySink()
    sink.streams = streams
    return MemoryTree(sink, facts)


def test_a_backup_of_a_standby_beside_a_writer_is_proven_and_the_log_of_the_primary_goes_on_from_it(
    both, writing, tmp_path
):
    one, two = both.servers
    follower = Follower(At(both.as_role("prefer-standby")), tmp_path)
    follower.start()
    try:
        follower.catches_up()
        streams, facts, content = taken = as_owner(base, At(both.as_role("prefer-standby")))
        assert facts["standby"] and facts["no_fingerprint"] is None, facts["no_fingerprint"]
        assert datetime.fromisoformat(facts["snapshot_at"]) < datetime.now(UTC)
        follower.catches_up()
        assert "dbguard" in one.sql("SELECT slot_name FROM pg_replication_slots WHERE NOT temporary")
    finally:
        follower.kill()
    with own_place() as place:
        found = as_owner(proven, two, tree(streams, facts), place / "alone")
        assert failed(found).keys() <= TOLERATED and found.fingerprint == content
        as_owner(restored, two, moment(taken, *follower.body()), place / "later")
        count, ids = asked(two, place / "later", "SELECT count(*) FROM ledger", "SELECT max(id) FROM ledger")
        assert count == ids and int(count) > sum(one.rows for one in content.tables.values())


def test_a_standby_is_taken_only_where_the_url_says_so(both):
    _, two = both.servers
    with pytest.raises(Unsupported, match="is a standby"):
        as_owner(base, two)
    probe = as_owner(opened(At(two.url + "&target_session_attrs=standby")).snapshots.probe)
    outcomes = {one.name: one.outcome for one in probe.findings}
    assert outcomes["backups by pages"] == outcomes["the standby"] == "ok"
    probe = as_owner(opened(At(both.as_role("prefer-standby")), continuous=True).snapshots.probe)
    outcomes = {one.name: one.outcome for one in probe.findings}
    assert outcomes["following its log"] == outcomes["servers of the url"] == "ok"
    probe = as_owner(opened(At(two.url + "&target_session_attrs=standby"), continuous=True).snapshots.probe)
    assert "followed at the primary" in next(one.detail for one in probe.findings if one.outcome == "failed")
    assert as_owner(lagging, address_of(two.url)).name == "the standby"
    assert judged(60.0).outcome == "ok" and judged(86_400.0).outcome == "inconclusive"
    assert as_owner(lagging, address_of(both.servers[0].url)) is None


def test_a_standby_that_is_promoted_meanwhile_makes_no_backup(both):
    """Last in this file."""
    _, two = both.servers

    def act():
        engine, done = opened(At(two.url + "&target_session_attrs=standby")).snapshots, []

        def progress(step, size, total):
            if step == "copy" and not done:
                done.append(promote(two))

        with pytest.raises(GuardError) as caught:
            engine.dump(MemorySink(), progress)
        return caught.value

    refused = as_owner(act)
    assert isinstance(refused, SourceChanged) and "promoted" in refused.detail
