"""The moment that a backup names: everything committed before it is there, nothing that came later."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime

import pytest
from engine_memory import MemorySink, no_progress
from sqlite_world import make

from tests.workload import consistent, seed


@pytest.mark.parametrize("wal", [True, False])
def test_a_snapshot_beside_a_writer_is_of_the_moment_that_it_names(tmp_path, wal):
    live, staging = tmp_path / "shop.db", tmp_path / "staging"
    staging.mkdir()
    seed(live, accounts=20, bookings=3000, documents=5, wal=wal)
    writer = subprocess.Popen([sys.executable, "-m", "tests.workload", str(live), "60", "300"], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        before = time.time()
        engine, sink = make(live, staging, lock_timeout_seconds=60), MemorySink()
        facts = engine.dump(sink, no_progress)
        after = time.time()
        copy = tmp_path / "copy.db"
        copy.write_bytes(sink.streams["database"])
    finally:
        writer.terminate()
        writer.communicate()
    moment = datetime.fromisoformat(facts["snapshot_at"]).timestamp()
    assert before <= moment <= after
    assert consistent(copy)
    with closing(sqlite3.connect(copy)) as db:
        last_id, last_at = db.execute("select id, at from booking order by id desc").fetchone()
    assert last_at <= moment
    with closing(sqlite3.connect(live)) as db:
        following = db.execute("select at from booking where id > ? order by id", (last_id + 1,)).fetchone()
    # The transaction after the next one began when the next one was committed, so that one is not from before.
    assert following is None or following[0] > moment
