"""Dumps over TCP: what an owner has set for whoever connects holds up nobody, and a pooler may refuse our options."""

import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress

import psycopg
import pytest
from engine_memory import MemorySink
from postgres_world import as_owner, cluster, free_port

from dbguardd.engines.postgresql import open_postgresql
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
    assert facts["databases"] == ["shop"] and b"default_transaction_deferrable" in streams["0001.dump"]
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
