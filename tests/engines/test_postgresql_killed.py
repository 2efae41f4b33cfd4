"""A server that falls, or is stopped, while its cluster is backed up: what is said is what has happened."""

import os
import signal

import pytest
from postgres_pages_world import stored
from postgres_world import alive_processes, as_owner, cluster, ended, until

from dbguardd.errors import ServerUnreachable


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_server_that_goes_has_not_taken_a_slot_away(number):
    """Where it bounds what a slot holds it takes slots away by the same words by which it ends all sessions."""
    with cluster() as live:
        live.sql("CREATE TABLE t AS SELECT n, repeat('x', 900) FROM generate_series(1, 3000) n")
        live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; SELECT pg_reload_conf()")
        first = live.process.pid

        def stop(name):
            if name.startswith("base/") and not ended(first):
                os.kill(first, number)
                until(lambda: ended(first), "the end of the server")

        with pytest.raises(ServerUnreachable, match="was stopped meanwhile|cannot be reached|was lost") as caught:
            as_owner(stored, live, stop)
        assert "max_slot_wal_keep_size" not in f"{caught.value.detail} {caught.value.hints}"
        until(lambda: not alive_processes(str(live.data)), "the end of the server")
        live.stop()
        (live.data / "postmaster.pid").unlink(missing_ok=True)
        live.start()
        assert as_owner(stored, live)[2].rows
        assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"
