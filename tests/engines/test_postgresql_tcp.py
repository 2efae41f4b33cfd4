"""Who is between us and a server, or beside us: owners, poolers, and the sessions of applications."""

import os
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from engine_memory import MemorySink
from postgres_world import as_owner, cluster, free_port, owner

from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.connect import connected, give_way
from dbguardd.errors import Cancelled

REFUSED = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"


@pytest.fixture(scope="module")
def live():
    with cluster() as made:
        made.stop()
        made.port = free_port()
        with (made.data / "postgresql.conf").open("a") as conf:
            conf.write(f"listen_addresses = '127.0.0.1'\nport = {made.port}\n")
        made.start()
        made.sql("CREATE DATABASE shop")
        made.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS n", "shop")
        yield made


def dumped(live, port):
    ends = time.monotonic() + 120

    def progress(*_):
        if time.monotonic() > ends:
            raise Cancelled("it waits for ever")

    url = f"postgresql://postgres@127.0.0.1:{port}/shop"
    sink = MemorySink()
    facts = open_postgresql({"url": url, "staging": str(live.place), "method": "dump"}).snapshots.dump(sink, progress)
    return facts, sink.streams


def test_what_an_owner_has_set_does_not_hold_up_a_dump(live):
    """A transaction that reads only waits, if it is deferrable, for the end of all others that are serializable."""
    for setting in ("isolation = serializable", "deferrable = on", "read_only = on"):
        live.sql(f"ALTER DATABASE shop SET default_transaction_{setting}")
    live.sql("ALTER DATABASE shop SET statement_timeout = '1ms'; ALTER DATABASE shop SET idle_session_timeout = '1ms'")
    with psycopg.connect(
        f"host={live.socket} port={live.port} user=postgres dbname=postgres", autocommit=True
    ) as other:
        other.execute("BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE")
        other.execute("CREATE TABLE mine ()")
        facts, streams = as_owner(dumped, live, live.port)
    assert facts["databases"] == ["shop"] and b"default_transaction_deferrable" in streams[live.stream("shop")]
    for setting in ("isolation", "deferrable", "read_only"):
        live.sql(f"ALTER DATABASE shop RESET default_transaction_{setting}")
    live.sql("ALTER DATABASE shop RESET statement_timeout; ALTER DATABASE shop RESET idle_session_timeout")


def test_a_pooler_that_takes_no_options_is_connected_to_without(live):
    with pooler(live) as (port, refused):
        facts, _ = as_owner(dumped, live, port)
    assert facts["databases"] == ["shop"] and refused


@contextmanager
def pooler(live):
    """What stands before a server, and refuses options as pgbouncer does."""
    refused, over = [], threading.Event()

    def passed(one, other):
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def serve(client):
        with client, socket.create_connection(("127.0.0.1", live.port)) as server, suppress(OSError):
            while True:
                head = client.recv(4, socket.MSG_WAITALL)
                body = client.recv(struct.unpack(">I", head)[0] - 4, socket.MSG_WAITALL) if head else b""
                if len(body) != 4:
                    break
                client.sendall(b"N")  # no TLS, no GSS
            if b"options\0" in body:
                refused.append(body)
                client.sendall(b"E" + struct.pack(">I", len(REFUSED) + 4) + REFUSED)
                return
            server.sendall(head + body)
            back = threading.Thread(target=passed, args=(server, client))
            back.start()
            passed(client, server)
            back.join()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)

        def accept():
            while not over.is_set():
                with suppress(TimeoutError):
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listening.getsockname()[1], refused
        over.set()
        accepting.join()


def session_niceness(pid):
    """None where the kernel compares processes only."""
    path = Path(f"/proc/{pid}/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else None


def niceness(host, port):
    """Give way to others by 5, in a thread that ends then; return by how much the server's process and session do."""

    def act():
        os.nice(5)
        with connected({"host": str(host), "port": str(port), "user": "postgres"}) as connection:
            pid = connection.info.backend_pid
            give_way(connection, pid, reads_much=True)
            return os.getpriority(os.PRIO_PROCESS, pid), session_niceness(pid)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()


def niceness_behind_a_pooler(live, place):
    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(1) as pool:
        door.bind(f"{place}/.s.PGSQL.{live.port}")
        door.listen()
        pool.submit(hand_on, door, f"{live.socket}/.s.PGSQL.{live.port}")
        return niceness(place, live.port)


def hand_on(door, to):
    caller, _ = door.accept()
    with caller, socket.socket(socket.AF_UNIX) as server:
        server.connect(to)
        other = {caller: server, server: caller}
        while True:
            for line in select.select(list(other), [], [])[0]:
                data = line.recv(65536)
                if not data:
                    return
                other[line].sendall(data)


def test_a_servers_process_gives_way_as_we_do_unless_a_pooler_may_give_it_to_others(live):
    usual, place = os.getpriority(os.PRIO_PROCESS, 0), tempfile.mkdtemp(prefix="dbg-")
    os.chown(place, owner(), -1)
    assert as_owner(niceness, live.socket, live.port) in ((usual + 5, usual + 5), (usual + 5, None))
    assert as_owner(niceness_behind_a_pooler, live, place) in ((usual, 0), (usual, None))
    shutil.rmtree(place)
