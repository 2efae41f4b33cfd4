"""Nobody can hold more than a share, nobody can keep the server waiting, nobody leaves anything behind."""

import http.client
import os
import resource
import select
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from dbguardd.api import Limits
from dbguardd.states import Role
from tests.api.conftest import Connection

SHORT = Limits(request_seconds=60, body_seconds=0.3, answer_seconds=0.3, idle_seconds=0.4)
"""Of those who begin at once, however busy the host is."""
STATUS = b"GET /v1/status HTTP/1.1\r\nHost: d\r\n\r\n"
FILES = 4096
"""Open files that suffice for both ends of a thousand connections."""


def until(condition, what, seconds=60):
    """Wait for a condition; the limit only ends a test that has failed."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, what
        pause.wait(0.01)


def read_to_end(connection):
    """Everything until the server hangs up."""
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


@pytest.mark.parametrize("sent", [b"", b"GET /v1/st", STATUS[:-2], STATUS + STATUS[:-2]], ids=repr)
def test_who_sends_no_request_is_shown_out(start, sent):
    limits = SHORT if b"\r\n\r\n" in sent else replace(SHORT, request_seconds=0.2)
    with start(limits).raw() as connection:
        with suppress(BrokenPipeError):  # it was shown out already
            connection.sendall(sent)
        answers = read_to_end(connection)
        assert answers.count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")


def test_who_trickles_is_shown_out(start):
    with start(replace(SHORT, request_seconds=0.2)).raw() as connection:
        try:
            connection.sendall(b"GET /v1/status HTTP/1.1\r\n")
            while not select.select([connection], [], [], 0.05)[0]:
                connection.sendall(b"X: y\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        assert b"200 OK" not in read_to_end(connection)


def test_who_promises_a_body_and_sends_none_is_told_and_shown_out(start):
    api = start(SHORT)
    with api.raw() as connection:
        connection.sendall(b"POST /v1/reload HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\n{")
        assert b"DBG-0009" in read_to_end(connection)
    assert api.store.calls == []


def test_a_connection_is_kept_for_the_next_request(api):
    connection = Connection(api.path)
    for _ in range(3):
        connection.request("GET", "/v1/status")
        assert b"dbguard.status/1" in connection.getresponse().read()
    connection.close()


@pytest.fixture
def many_files():
    """As many open files as it takes: what an ordinary user may have at first is often 1024, and may be raised."""
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < FILES:
        pytest.skip(f"NOT TESTED: a thousand connections (this user may have {most} files open, it takes {FILES})")
    if usual == resource.RLIM_INFINITY or usual >= FILES:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))


def test_a_thousand_connections_are_bounded_and_those_inside_are_served(start, many_files):
    api = start(Limits(request_seconds=120))
    crowd = [api.raw() for _ in range(1000)]
    try:
        served, turned_away = 0, 0
        for connection in crowd:
            with suppress(BrokenPipeError):  # turned away already; the reason can still be read
                connection.sendall(STATUS)
            answer = connection.recv(65536)
            served += b"200 OK" in answer
            turned_away += b"DBG-0011" in answer
        assert (served, turned_away) == (api.limits.connections_per_uid, 1000 - api.limits.connections_per_uid)
    finally:
        for connection in crowd:
            connection.close()
    until(lambda: serves(api), "there is room again")


def serves(api):
    try:
        return api.ask("GET", "/v1/status").status == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_the_limit_of_all_stands_above_that_of_one(start):
    api = start(Limits(connections=3))
    crowd = [api.raw() for _ in range(4)]
    assert b"HTTP/1.1 503" in crowd[3].recv(65536)
    for connection in crowd:
        connection.close()


def test_strangers_do_not_take_the_places_of_those_with_a_role(start):
    api = start(Limits(connections_of_strangers=2, denied_seconds=0))
    api.store.role_now = None
    crowd = [api.raw() for _ in range(3)]
    assert b"HTTP/1.1 503" in crowd[2].recv(65536)
    crowd[0].sendall(STATUS)
    assert b"DBG-0003" in crowd[0].recv(65536)
    api.store.role_now = Role.READ
    assert serves(api)
    for connection in crowd:
        connection.close()


def test_a_bug_does_not_make_the_server_deaf(api, caplog):
    known, api.store.role = api.store.role, None
    with api.raw() as connection:
        assert connection.recv(1) == b""
    api.store.role = known
    assert serves(api)
    assert "api.accept_failed" in caplog.text


def test_who_does_not_read_an_answer_is_cut(start):
    api = start(SHORT)
    api.store.payload = "x" * (8 << 20)
    with api.raw() as connection:
        connection.sendall(b"GET /v1/audit HTTP/1.1\r\nHost: d\r\n\r\n")
        hung_up = select.poll()
        hung_up.register(connection, select.POLLHUP)
        assert hung_up.poll(60_000)
        assert len(read_to_end(connection)) < 8 << 20


def test_who_does_not_read_events_is_cut(start):
    api = start(SHORT)
    api.store.past = [type(event)(n, event.at, event.event, "app", None, {"text": "x" * 4096}) for n in range(1, 2000)
                      for event in api.store.past[:1]]  # fmt: skip
    with api.raw() as connection:
        connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: d\r\nAccept: text/event-stream\r\n\r\n")
        hung_up = select.poll()
        hung_up.register(connection, select.POLLHUP)
        assert hung_up.poll(60_000)
    until(lambda: api.store.following == 0, "nobody is followed any more")


def test_nobody_waits_on_for_a_peer_that_hung_up(api):
    with api.raw() as connection:
        body = b'{"database": "app"}'
        head = f"POST /v1/jobs/backup?wait=600 HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: api.store.waiting == 1, "it waits")
    until(lambda: api.store.waiting == 0, "it waits no more")


def test_what_changes_something_goes_on_when_the_peer_hangs_up(api):
    api.store.gate.clear()
    with api.raw() as connection:
        body = b'{"reason": "audit"}'
        head = f"POST /v1/backups/01J1/hold HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: api.store.calls, "the hold began")
    assert api.ask("GET", "/v1/status").status == 200
    api.store.gate.set()
    until(lambda: ("hold", "01J1", "audit") in api.store.calls, "the hold was made to its end")


def test_passed_descriptors_are_closed(api):
    reading, writing = os.pipe()
    with api.raw() as connection:
        socket.send_fds(connection, [STATUS], [writing])
        os.close(writing)
        assert b"200 OK" in connection.recv(65536)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b""  # the other end is closed everywhere, while the connection still stands


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: d\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: d\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: d\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"POST /v1/reload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"POST /v1/reload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT d:80 HTTP/1.1\r\nHost: d\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET http://d/v1/nix HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET //v1/status HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /../../v1/status HTTP/1.1\r\nHost: d\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:60]),
)
def test_malformed_http_is_refused_and_the_server_lives(start, sent, caplog):
    api = start(SHORT)
    with api.raw() as connection:
        connection.sendall(sent)
        answer = read_to_end(connection)
        assert answer.split(b" ")[1][:1] == b"4", answer[:200]
        assert b"Traceback" not in answer
    assert serves(api)
    assert api.store.calls == []
    assert caplog.records == []  # anybody may connect: the journal is not theirs to fill


@pytest.mark.parametrize(
    "sent",
    [
        STATUS,
        b"POST /v1/reload HTTP/1.1\r\nHost: d\r\nContent-Length: 9\r\n\r\n{",
        b"POST /v1/reload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"GET /v1/events HTTP/1.1\r\nHost: d\r\nAccept: text/event-stream\r\n\r\n",
    ],
    ids=["answer", "body", "chunk", "events"],
)
def test_who_hangs_up_leaves_no_trace(start, caplog, sent):
    api = start()
    for _ in range(20):
        with api.raw() as connection:
            connection.sendall(sent)
    assert api.ask("GET", "/v1/status").status == 200
    until(lambda: api.store.following == 0, "the followers end")
    assert [record.getMessage() for record in caplog.records] == []
