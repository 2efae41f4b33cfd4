"""What happens to a backup that a server sends when the server, the network or our disk fails, or lies."""

import os
import signal
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_memory import MemorySink, no_progress
from postgres_between_world import between
from postgres_pages_world import OURS, made
from postgres_sent_world import clean, here, live, over, place, sent
from postgres_world import as_owner, cluster, free_port, until
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.mode import BackupMode, Watch, watched
from dbguardd.errors import Cancelled, GuardError, LogBroken, NoSpace, ServerUnreachable, SourceChanged, SourceInvalid

__all__ = ["live", "place"]


@pytest.fixture(scope="module")
def reached(live):  # noqa: F811 - a fixture
    """The server, for a superuser who comes over the network."""
    live.sql("ALTER ROLE dbguard SUPERUSER")
    with (live.config / "pg_hba.conf").open("a") as hba:
        hba.write("host replication dbguard 127.0.0.1/32 scram-sha-256\n")
    live.sql("SELECT pg_reload_conf()")
    return live


def its_processes(server):
    """The pids of a server: the first, and its children."""
    first = server.process.pid
    return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]


@pytest.mark.parametrize("way", ["sent", "read"])
def test_a_server_that_is_stopped_and_keeps_its_connections_is_not_waited_for_for_ever(reached, place, way):  # noqa: F811
    url, now, done = over(reached, place), place / "now", place / "done"
    stopped = []
    place.chmod(0o777)

    def stop():
        until(now.exists, "the first file")
        for pid in its_processes(reached):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        done.touch()

    def before(name):
        now.touch()
        until(done.exists, "the stop")

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        with pytest.raises(ServerUnreachable, match="answers nothing") as caught:
            if way == "sent":
                here(lambda: sent(reached, place, url, before, patience_seconds=5))
            else:
                as_owner(lambda: made(reached, patience_seconds=5).dump(MemorySink(before), no_progress))
    finally:
        stopping.join()
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert caught.value.transient and "stopped" in caught.value.detail
    assert way == "read" or not list((place / "room").iterdir())
    until(lambda: clean(reached), "the end of it")


@contextmanager
def asked(server, each, kind=Watch):
    """Two sessions, of which the first has a slot, and who looks at it over the second."""
    with connected(address_of(server.url)) as keeper, connected(address_of(server.url)) as session:
        slot = BackupMode(keeper, None).hold()
        yield keeper, session, kind(session, slot, None, "it", each * 10)


def test_who_cancels_waits_for_no_answer(reached):  # noqa: F811
    with asked(reached, 6.0) as (keeper, session, watch):
        pid, began = session.info.backend_pid, time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Cancelled), watched([keeper, session], watch):
                until(lambda: session.info.transaction_status == TransactionStatus.ACTIVE, "that it looks")
                raise Cancelled("enough")
            assert time.monotonic() - began < 50
        finally:
            os.kill(pid, signal.SIGCONT)
        assert keeper.execute("SELECT 1").fetchone() == (1,)  # and nothing else is ended


class Wrong(Watch):
    """Who looks, and has a bug."""

    def look(self):
        raise ArithmeticError("a bug")


def test_a_bug_of_who_looks_ends_the_backup_as_well(reached):  # noqa: F811
    with (
        asked(reached, 1.0, Wrong) as (keeper, session, watch),
        pytest.raises(ArithmeticError),
        watched([keeper, session], watch) as check,
    ):
        until(check, "that it is told")
    until(lambda: clean(reached), "the end of it")


def test_the_server_forgets_us_as_soon_as_we_forget_it(reached, place):  # noqa: F811
    """Where nothing ends a connection: a host that lost its power, a network that is gone.

    But by no tcp_user_timeout of the server: that would end what waits for a storage that stalls.
    """

    address = address_of(over(reached, place))

    def told():
        with connected(address, about="it") as connection:
            asked = connection.execute("SELECT current_setting('tcp_keepalives_idle'), "
                                       "current_setting('tcp_user_timeout')").fetchone()  # fmt: skip
            return [bytes(one) for one in asked], conninfo_to_dict(connection.info.dsn)["tcp_user_timeout"]

    assert here(told) == ([b"60", b"0"], "120000")


def test_a_slot_that_is_lost_ends_the_copy_at_once(reached, place):  # noqa: F811
    begun = []

    def before(name):
        begun.append(name)
        reached.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        until(lambda: reached.sql(f"{OURS} AND backend_type = 'client backend'") == "0", "that it is seen")

    def ended():
        with pytest.raises(LogBroken, match="removed WAL") as caught:
            sent(reached, place, "", before, patience_seconds=10)
        return caught.value, begun

    error, begun = here(ended)
    assert len(begun) == 1 and "max_slot_wal_keep_size" in error.hints[0]
    until(lambda: clean(reached), "the end of it")


def test_no_backup_is_of_two_servers(reached, place):  # noqa: F811
    """The session that looks, the one that asks for the configuration, those of the snapshots: each is the same's."""
    with cluster() as other:
        other.stop(signal.SIGINT)
        other.port = free_port()
        with (other.data / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {other.port}\n")
        other.start()
        other.sql("CREATE ROLE dbguard SUPERUSER LOGIN")
        for well in (1, 3, 5):
            ports = [*[reached.port] * well, *[other.port] * 20]
            with between(*ports) as way, pytest.raises(SourceInvalid, match="reached two servers") as caught:
                here(sent, reached, place, over(reached, place, port=way.port))
            assert way.came == well + 1 and "name the server" in caught.value.hints[0]


def changed(old, new, only=0):
    """Alter the answers of one connection, or of all."""
    assert len(old) == len(new)
    return lambda number: lambda data: data.replace(old, new) if only in (0, number) else data


def test_a_control_file_that_came_torn_is_sent_again_by_the_next_try(reached, place):  # noqa: F811
    system = struct.pack("=Q", int(reached.sql("SELECT system_identifier FROM pg_control_system()")))
    with (
        between(reached.port, alter=changed(system, system[::-1], 3)) as way,
        pytest.raises(SourceChanged, match="global/pg_control came with a wrong checksum") as caught,
    ):
        here(sent, reached, place, over(reached, place, port=way.port))
    assert caught.value.transient and "back up again" in caught.value.hints


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\0\0\0\x048192", b"\0\0\0\x048x92"),  # no number
        (b"\0\0\0\x048192", b"\0\0\0\x048191"),
        (b"\0\0\0\x0816777216", b"\0\0\0\x0800000000"),
        (b"\0\0\0\x17\0\x04\xff\xff\xff\xff", b"\0\0\0\x19\0\x04\xff\xff\xff\xff"),  # all numbers are text
        (b"\0\0\0\x19\xff\xff\xff\xff\xff\xff", b"\0\0\0\x10\xff\xff\xff\xff\xff\xff"),  # all text is true or false
        (b"\0\0\x04\xa0\0\x08\xff\xff\xff\xff", b"\0\0\0\x19\0\x08\xff\xff\xff\xff"),  # a time is text
        (b"dbguard_", b"../../x\xff"),
    ],
)
def test_what_no_server_answers_is_refused(reached, place, old, new):  # noqa: F811
    with between(reached.port, alter=changed(old, new)) as way, pytest.raises(GuardError) as caught:
        here(sent, reached, place, over(reached, place, port=way.port))
    assert isinstance(caught.value, SourceInvalid) and "an unexpected answer" in caught.value.message, caught.value


def test_the_log_of_a_backup_fills_no_disk_of_ours(reached, place):  # noqa: F811
    room = place / "room"
    room.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0777,size=64m", "tmpfs", room],
                          check=False, capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        pytest.skip(f"NOT TESTED: no file system can be mounted here: {done.stderr.strip()}")

    def before(name):
        if name == "files.tar":
            reached.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)) FROM generate_series(1, 70)")

    try:
        with pytest.raises(NoSpace, match="no room for the log") as caught:
            here(sent, reached, place, "", before)
        assert not list(room.iterdir())
    finally:
        subprocess.run(["umount", room], check=True)
    assert caught.value.facts["needed_bytes"] > caught.value.facts["free_bytes"] > 0
