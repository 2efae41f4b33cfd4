"""Physical backups that the server sends: of a cluster whose files nobody here reads, equal to those of one that is read."""

import pytest
from engine_memory import MemorySink, no_progress
from postgres_pages_world import failed, own_place, proven, shop
from postgres_world import as_user, stranger

from dbguardd.engines.postgresql import open_postgresql


@pytest.fixture(scope="module")
def live():
    with shop() as made:
        made.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
        made.sql("SELECT pg_reload_conf()")
        yield made


@pytest.fixture
def place():
    with own_place(stranger()) as made:
        yield made


def here(action, *arguments):
    """Do it as somebody who reads nothing of the data directory."""
    return as_user(stranger(), action, *arguments)


def sent(live, place, before=None, compared=True):
    room = place / "room"
    room.mkdir()
    engine = open_postgresql({"url": live.url, "staging": str(room), "method": "pages"}).snapshots
    sink = MemorySink(before)
    facts = engine.dump(sink, no_progress, compared=compared)
    assert not list(room.iterdir())
    taken = engine.fingerprint(no_progress)
    engine.release()
    room.rmdir()
    return sink.streams, facts, taken


def test_what_the_server_sends_comes_back_equal(live, place):
    streams, facts, taken = here(sent, live, place)
    print(facts, sorted(streams), taken if not hasattr(taken, "tables") else "")
    found = here(proven, live, streams, facts, place / "restored")
    assert failed(found) == {} and found.fingerprint == taken
    assert facts["read_by"] == "replication" and facts["directory"] is None
