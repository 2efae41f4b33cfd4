"""Physical backups that the server sends: of a cluster whose files are not read here, equal to those of one that is."""

import os
import re
import resource
import signal
import socket
import struct
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_follow_world import Follower
from postgres_pages_world import OURS, failed, own_place, proven, shop, tree, writers
from postgres_world import as_user, stranger, until

from dbguardctl.commands.grants import grants
from dbguardd.engines.base import Fingerprint, Untold
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.physical.sent import Sent
from dbguardd.errors import GuardError, NoSpace, ServerUnreachable, SourceInvalid, Unsupported
from tests.repository.data_path import Drawer, saving

BOUNDED = "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'"


@pytest.fixture(scope="module")
def live():
    """A server at a port, where it wants a password; its owner's socket lets everybody in, as ever."""
    with shop() as made:
        made.stop(signal.SIGINT)
        with socket.create_server(("127.0.0.1", 0)) as free:
            made.port = free.getsockname()[1]
        with (made.data / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {made.port}\n")
        known = (made.data / "pg_hba.conf").read_text()
        asked = "host all all 127.0.0.1/32 scram-sha-256\nhost replication dbguard 127.0.0.1/32 scram-sha-256\n"
        (made.data / "pg_hba.conf").write_text(asked + known)
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
    """Do it as somebody who reads nothing of the data directory."""
    return as_user(stranger(), action, *arguments)


def over(live, user):
    """Where the server is for who comes over the network; their passwords lie in a file, as everybody's."""
    return f"postgresql://{user}@127.0.0.1:{live.port}/?passfile={live.place}/pass-{stranger()}"


def opened(live, place, url=""):
    (place / "room").mkdir(exist_ok=True)
    return open_postgresql({"url": url or live.url, "staging": str(place / "room"), "method": "pages"}).snapshots


def sent(live, place, url="", before=None, *, compared=True, progress=no_progress):
    engine, sink = opened(live, place, url), MemorySink(before)
    facts = engine.dump(sink, progress, compared=compared)
    assert not list((place / "room").iterdir())
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink.streams, facts, taken


def test_what_the_server_sends_comes_back_equal_while_it_is_written(live, place):
    with writers(live):
        streams, facts, taken = here(sent, live, place)
    found = here(proven, live, streams, facts, place / "restored")
    assert failed(found) == {} and isinstance(taken, Fingerprint) and found.fingerprint == taken
    assert (facts["read_by"], facts["directory"], facts["reused_files"]) == ("replication", None, 0)
    assert "cannot be read" in facts["not_read_here"]
    assert any(name.startswith("pg_tblspc/") or name.startswith("base/") for name in streams)
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0" and live.sql(OURS) == "0"
