"""A server that sends nothing is given up only if it does nothing, whether its processes can be seen or not."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_memory import MemorySink, no_progress
from postgres_world import as_owner, cluster, free_port, until
from test_postgresql_dump import made, place, url

from dbguardd.engines.postgresql.connect import address_of, connected, rows
from dbguardd.engines.postgresql.signs import Signs

__all__ = ["place"]

BUSY = b"DO $$ BEGIN LOOP END LOOP; END $$"
WAITING = b"SELECT pg_sleep(1000)"


@pytest.fixture(scope="module")
def live():
    with cluster() as running:
        running.stop()
        running.port = free_port()
        with (running.data / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {running.port}\n")
        running.start()
        yield running


@contextmanager
def session(address, name, query):
    """A session that runs a query; it is ended with the block."""
    with connected({**address, "application_name": name}) as connection:
        ((pid,),) = rows(connection, b"SELECT pg_backend_pid()::int8")
        connection.pgconn.send_query(query)
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("host", ["socket", "tcp"])
def test_a_session_that_works_is_told_from_one_that_waits(live, host):
    def looks():
        address = address_of(live.url if host == "socket" else f"postgresql://postgres@127.0.0.1:{live.port}/")
        found = {}
        with session(address, "dbguard a", BUSY) as busy, session(address, "dbguard b", WAITING) as waiting:
            for name, watched in (("by name", "dbguard a"), ("by process", str(busy)), ("waits", str(waiting))):
                signs = Signs(address)
                with signs.of(watched), signs.of("dbguard b"):
                    found[name] = signs.at_work()
            signs = Signs(address)
            with signs.of("dbguard a"):
                os.kill(busy, signal.SIGSTOP)
                until(lambda: Path(f"/proc/{busy}/stat").read_text().split()[2] == "T", "it is stopped")
                found["stopped"] = signs.at_work()
            found["nobody"] = signs.at_work()
        return found

    # Who cannot see the process believes the server, for which it is on a processor: job_timeout remains.
    stopped = host == "tcp"
    assert as_owner(looks) == {"by name": True, "by process": True, "waits": False, "stopped": stopped, "nobody": False}


def test_a_program_that_works_is_told_from_one_that_waits(live):
    signs = Signs({"host": "/nonexistent"})
    with signs.of(os.getpid()):
        assert not signs.at_work()  # it was not looked at before
        sum(range(10_000_000))
        assert signs.at_work()
        assert not signs.at_work()


def test_a_dump_goes_on_while_the_server_works_and_sends_nothing(live, place):  # noqa: F811 - a fixture
    """It works for seconds on one row: it looks each function up whose number is in that."""
    live.sql("CREATE DATABASE slow")
    many = "SELECT array_agg('pg_catalog.int4pl(int4, int4)'::regprocedure) AS f FROM generate_series(1, 2000000)"
    live.sql(f"CREATE TABLE t AS {many}", "slow")

    def dump():
        engine = made(live, place, url=url(live, "slow"), stall_seconds=2)
        engine.dump(MemorySink(), no_progress)
        return engine.fingerprint(no_progress).tables["slow.public.t"].rows

    assert as_owner(dump) == 1
