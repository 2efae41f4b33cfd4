"""A server that is reached by a port of this host and backed up over the network, and faults of that network."""

from __future__ import annotations

import os
import signal

import pytest
from engine_memory import MemorySink, no_progress
from postgres_pages_world import OURS, move_out, own_place, shop
from postgres_world import as_user, free_port, stranger

from dbguardctl.commands.grants import grants
from dbguardd.engines.postgresql import open_postgresql

BOUNDED = "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'"


@pytest.fixture(scope="module")
def live():
    """A server at a port where it asks for a password; the owner's socket admits everybody."""
    with shop() as made:
        move_out(made)
        made.stop(signal.SIGINT)
        made.port = free_port()
        with (made.config / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {made.port}\n")
        known = (made.config / "pg_hba.conf").read_text()
        known = known.replace("host    replication", "# host    replication")
        (made.config / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n" + known)
        made.start()
        made.sql(BOUNDED)
        made.sql("SELECT pg_reload_conf()")
        made.sql(grants(f"postgresql://127.0.0.1:{made.port}/"))
        made.sql("ALTER ROLE dbguard PASSWORD 'secret'")
        yield made


@pytest.fixture
def place():
    with own_place(stranger()) as made:
        yield made


def here(action, *arguments):
    """Run something as a user who cannot read the data directory."""
    return as_user(stranger(), action, *arguments)


def over(live, place, user="dbguard", port=0):
    """Return the server's address for a client on the network whose password is in a file."""
    (place / "pass").write_text(f"127.0.0.1:*:*:{user}:secret")
    (place / "pass").chmod(0o600)
    os.chown(place / "pass", stranger(), -1)
    return f"postgresql://{user}@127.0.0.1:{port or live.port}/?passfile={place}/pass"


def opened(live, place, url="", **settings):
    (place / "room").mkdir(exist_ok=True)
    room = {"staging": str(place / "room"), "method": "pages", **settings}
    return open_postgresql({"url": url or live.url, **room}).snapshots


def sent(live, place, url="", before=None, *, compared=True, progress=no_progress, **settings):
    engine, sink = opened(live, place, url, **settings), MemorySink(before)
    facts = engine.dump(sink, progress, compared=compared)
    assert not list((place / "room").iterdir())
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink.streams, facts, taken


def clean(live):
    """Return whether nothing of ours is left at the server: no slot, no session, no backup mode."""
    held = "SELECT count(*) FROM pg_replication_slots"
    senders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"
    return live.sql(held) == live.sql(senders) == live.sql(OURS) == "0"
