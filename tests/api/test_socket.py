"""The socket is made safely, replaced when dead, respected when alive, and taken over from systemd."""

import asyncio
import errno
import grp
import os
import socket
import stat
import struct
import subprocess
import sys

import pytest

from dbguardd.api import serve
from dbguardd.api.listen import listen
from dbguardd.api.peer import identify
from dbguardd.errors import PolicyInvalid, PolicyUnsafe, SecondInstance, Usage
from tests.api.conftest import Store


def make(path, group=None):
    return listen(path, group, 0o660, {}, os.getpid())


def test_the_socket_is_for_owner_and_group(tmp_path):
    path = tmp_path / "run" / "api.sock"
    listener = make(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["api.sock", "api.sock.lock"]
    listener.close()
    assert not path.exists()


def test_the_group_is_that_of_the_policy(tmp_path):
    name = grp.getgrgid(os.getegid()).gr_name
    listener = make(tmp_path / "api.sock", name)
    assert (tmp_path / "api.sock").lstat().st_gid == os.getegid()
    listener.close()
    with pytest.raises(PolicyInvalid, match="no-such-group"):
        make(tmp_path / "api.sock", "no-such-group")
    assert [entry.name for entry in tmp_path.iterdir()] == ["api.sock.lock"]


def test_a_dead_socket_is_replaced(tmp_path):
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    draft = tmp_path / "~pi.sock"  # left by a start that was killed
    with socket.socket(socket.AF_UNIX) as half:
        half.bind(str(draft))
    listener = make(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert not draft.exists()
    listener.close()


def test_a_living_one_is_respected(tmp_path):
    path = tmp_path / "api.sock"
    first = make(path)
    with pytest.raises(SecondInstance):
        make(path)
    assert path.exists()
    first.close()
    make(path).close()


def test_a_foreign_listener_is_respected_even_with_a_full_queue(tmp_path):
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen(0)
        with pytest.raises(SecondInstance):
            make(path)
        with pytest.raises(SecondInstance):  # the first attempt filled the queue
            make(path)
    make(path).close()


def test_what_is_no_socket_is_not_removed(tmp_path):
    path = tmp_path / "api.sock"
    path.write_text("precious")
    with pytest.raises(PolicyUnsafe, match="is not a socket"):
        make(path)
    assert path.read_text() == "precious"


def test_a_directory_where_others_may_write_is_refused(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PolicyUnsafe, match="others may replace"):
        make(shared / "api.sock")
    with pytest.raises(Usage, match="cannot be made"):
        make(tmp_path / "missing" / "deeper" / "api.sock")


def test_a_path_that_the_kernel_cannot_take_is_named(tmp_path):
    with pytest.raises(Usage, match="107 bytes"):
        make(tmp_path / ("a" * 108))


def test_closing_leaves_the_socket_of_another_alone(tmp_path):
    path = tmp_path / "api.sock"
    listener = make(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.exists()


def test_a_socket_from_the_service_manager_is_used_and_left(tmp_path):
    path = tmp_path / "given.sock"
    script = """
import asyncio, os, sys
from pathlib import Path
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
from dbguardd.api import serve
from tests.api.conftest import Store
async def main():
    running = await serve(Store(), Path("/nonexistent/api.sock"))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await running.close()
asyncio.run(main())
"""
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        command = [sys.executable, "-c", script, str(given.fileno())]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(given.fileno(),), text=True
        )
        with child:
            try:
                assert child.stdout.readline() == "ready\n"
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: d\r\n\r\n")
                    assert b"200 OK" in client.recv(65536)
                child.stdin.close()
                assert child.wait(60) == 0
            finally:
                child.kill()
    assert path.exists()


def test_what_is_passed_must_be_one_listening_socket(tmp_path):
    mine = {"LISTEN_PID": str(os.getpid())}
    with pytest.raises(Usage, match="one socket"):
        listen(tmp_path / "api.sock", None, 0o660, {**mine, "LISTEN_FDS": "2"}, os.getpid())
    for environ in ({**mine, "LISTEN_FDS": "0"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}):
        listen(tmp_path / "api.sock", None, 0o660, environ, os.getpid()).close()


class Peer:
    """A socket as getsockopt shows it."""

    def __init__(self, uid, gid, groups):
        self.answers = {socket.SO_PEERCRED: struct.pack("3i", 42, uid, gid), 59: groups}

    def getsockopt(self, level, option, size):
        answer = self.answers[option]
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_identity_is_what_the_kernel_says():
    one, other = socket.socketpair()
    with one, other:
        actor = identify(one)
    assert (actor.uid, actor.gid, actor.pid) == (os.geteuid(), os.getegid(), os.getpid())
    assert actor.groups == {os.getegid(), *os.getgroups()}


def test_more_groups_than_fit_are_asked_of_the_user_database():
    actor = identify(Peer(0, 0, OSError(errno.ERANGE, "too many")))
    assert actor.groups == {0, *(group.gr_gid for group in grp.getgrall() if "root" in group.gr_mem)}
    nobody = identify(Peer(4_000_000, 4_000_001, OSError(errno.ERANGE, "too many")))
    assert (nobody.user, nobody.groups) == ("uid 4000000", {4_000_001})
    assert identify(Peer(0, 0, struct.pack("2I", 4, 24))).groups == {0, 4, 24}


def test_closing_ends_streams_and_waits(tmp_path):
    async def scene():
        before, store = asyncio.all_tasks(), Store()
        running = await serve(store, tmp_path / "api.sock")
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "api.sock"))
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: d\r\nAccept: text/event-stream\r\n\r\n")
        await reader.readuntil(b"id: 5\n")
        await running.close()
        await reader.read()
        assert store.following == 0
        writer.close()
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert [entry.name for entry in tmp_path.iterdir()] == ["api.sock.lock"]


def test_closing_lets_what_changes_something_come_to_its_end(tmp_path):
    async def scene():
        store = Store()
        store.gate.clear()
        running = await serve(store, tmp_path / "api.sock")
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "api.sock"))
        body = b'{"reason": "audit"}'
        head = f"POST /v1/backups/01J1/hold HTTP/1.1\r\nHost: d\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while not store.calls:
            await asyncio.sleep(0)
        closing = asyncio.create_task(running.close())
        while (tmp_path / "api.sock").exists():
            await asyncio.sleep(0)
        store.gate.set()
        await closing
        assert store.calls[-1] == ("hold", "01J1", "audit")
        assert b"200 OK" in await reader.read()
        writer.close()

    asyncio.run(asyncio.wait_for(scene(), 60))
