"""The question half: a process of nobody that gets blocks and nothing else, and that is not believed."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dbguardd.engines.base import Bounds
from dbguardd.errors import Cancelled, Damaged, TooCostly, Unsupported, Usage, WorkerDied
from dbguardd.flow import BLOCK_BYTES
from dbguardd.worker.channel import Channel
from dbguardd.worker.remote import RemoteEngine
from dbguardd.worker.remote_questions import RemoteQuestions

BOUNDS = Bounds("app", 30.0, 100_000, 8 << 20)


class FilePages:
    """A file as Pages; asked for block `broken`, it says that this is damaged."""

    def __init__(self, path: Path, broken: int = -1) -> None:
        self.data = path.read_bytes()
        self.size, self.page_size = len(self.data), 4096
        self.damage = Damaged("pack: not what was stored")
        self.broken = broken

    def block(self, number: int) -> bytes:
        if number == self.broken:
            raise self.damage
        return self.data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


class Told:
    """An Answer; it is `patient` for so many signs of life."""

    def __init__(self, patient: int = 1 << 60) -> None:
        self.data = b""
        self.patient = patient

    def write(self, data: bytes, /) -> None:
        self.data += data

    def beat(self) -> None:
        self.patient -= 1
        if self.patient < 0:
            raise Cancelled("the job was cancelled")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "db")) as db, db:
        db.execute("create table t (id integer primary key, body blob)")
        db.executemany("insert into t values (?, randomblob(1000))", [(n,) for n in range(2000)])
    return tmp_path / "db"


def asker(end):
    """The Past at this end of the seam."""
    channel = Channel(end, lambda: False)
    return RemoteQuestions(channel, RemoteEngine(channel))


@contextmanager
def half(engine="sqlite", path="/nonexistent"):
    """A real question half, and the Past at the other end of its seam."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-I", "-m", "dbguardd.worker", "question", str(os.getpid()), str(there.fileno())]
    with (
        here,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[there.fileno()]) as process,
    ):
        there.close()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"engine": engine, "path": path, "staging": path}).encode())
        process.stdin.close()
        try:
            yield asker(here), process
        finally:
            here.close()
            process.wait(120)


def test_questions_are_answered_across_the_seam(path):
    with half() as (past, _):
        for sql in ("select count(*) from t", "select id, hex(body) from t", "select body from t where id = 77"):
            told = Told()
            facts = past.query(FilePages(path), sql, BOUNDS, told)
            assert facts["more"] is None
            with closing(sqlite3.connect(path)) as db:
                rows = db.execute(sql).fetchall()
            assert len(rows) == facts["rows"] == len(told.data.splitlines()) - 1
        told = Told()
        assert past.table(FilePages(path), "t", "csv", BOUNDS, told)["rows"] == 2000
        assert len(told.data) > 4_000_000
        assert past.difference(FilePages(path), FilePages(path), "", BOUNDS, Told())["differing"] == 0
        with pytest.raises(Usage, match="no such table: u"):
            past.query(FilePages(path), "select * from u", BOUNDS, Told())
        assert past.query(FilePages(path), "select 1", BOUNDS, Told())["rows"] == 1  # and it goes on


def test_damage_is_raised_as_it_was_met(path):
    with half() as (past, _):
        pages = FilePages(path, broken=5)
        with pytest.raises(Damaged) as caught:
            past.query(pages, "select sum(length(body)) from t", BOUNDS, Told())
        assert caught.value is pages.damage


def test_what_is_cancelled_on_our_side_ends_the_question(path):
    endless = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"
    with half() as (past, process), pytest.raises(Cancelled):
        past.query(FilePages(path), endless, BOUNDS, Told(patient=2))
    assert process.returncode == 0


def test_bounds_are_kept_by_the_half_itself(path):
    with half() as (past, _):
        with pytest.raises(TooCostly):
            past.query(FilePages(path), "select hex(zeroblob(90000000))", BOUNDS, Told())
        told = Told()
        assert past.query(FilePages(path), "select body from t", Bounds("app", 9, 5, 1 << 20), told)["more"] == "rows"


@pytest.mark.slow
def test_one_instruction_that_never_ends_is_ended_by_the_kernel(path):
    """SQLite asks nobody while a function of its own runs."""
    endless = "select instr(zeroblob(60000000), zeroblob(30000000) || x'01')"
    with half() as (past, process):
        with pytest.raises(WorkerDied):
            past.query(FilePages(path), endless, Bounds("app", 1.0, 10, 1 << 20), Told())
        assert process.wait(120) in (-signal.SIGXCPU, -signal.SIGKILL)


def test_a_half_that_dies_is_an_error(path):
    with half() as (past, process):
        past.query(FilePages(path), "select 1", BOUNDS, Told())
        process.send_signal(signal.SIGKILL)
        process.wait(120)
        with pytest.raises(WorkerDied):
            past.query(FilePages(path), "select 1", BOUNDS, Told())


def test_an_engine_without_a_past_says_so(path):
    with half(engine="none") as (past, _), pytest.raises(Unsupported, match="cannot be asked"):
        past.query(FilePages(path), "select 1", BOUNDS, Told())


def test_the_half_may_nothing(path):
    with half() as (past, process):
        past.query(FilePages(path), "select 1", BOUNDS, Told())
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    about = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    nobody = pwd.getpwnam("nobody")
    if os.geteuid() == 0:
        assert set(about["Uid"].split()) == {str(nobody.pw_uid)}
        assert set(about["Gid"].split()) == {str(nobody.pw_gid)}
        assert about["Groups"].split() == []
    assert {about[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert about["NoNewPrivs"] == "1"
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max file size"] == ["0", "0"]
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max cpu time"] == ["35", "35"]


# ------------------------------------------------------------------------------------------------ a hostile half

LIES = {
    "damage that there is not": [{"return": None, "problem": Damaged("pack: broken").problem()}],
    "data without an end": [b"x" * (128 << 10)] * 400,
    "another backup": [{"block": [1, 0]}],
    "a backup before the first": [{"block": [-1, 0]}],
    "a question out of turn": [{"tree": "names"}],
    "nonsense": [{"return": None, "problem": 7}],
    "no number": [{"block": ["x", {}]}],
    "no pair": [{"block": 7}],
    "rows in its facts": [{"return": {"rows": [["a row"]], "more": None}}],
    "no facts": [{"return": None}],
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_a_half_that_lies_ends_the_question(path, said):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def lie() -> None:
        other = Channel(there, lambda: False)
        other.receive_object()
        try:
            for what in said:
                other.send(what) if isinstance(what, dict) else other.send_data(what)
        except WorkerDied:
            pass  # it hung up

    with here, there:
        liar = threading.Thread(target=lie)
        liar.start()
        told = Told()
        with pytest.raises(WorkerDied):
            asker(here).query(FilePages(path), "select 1", BOUNDS, told)
        here.close()
        liar.join()
    assert len(told.data) <= BOUNDS.bytes + (16 << 20)


def test_blocks_that_there_are_not_are_refused_and_the_question_ends(path):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Strict(FilePages):
        """As those of the repository."""

        def block(self, number: int) -> bytes:
            raise Usage(f"has no block {number}")

    def greedy() -> None:
        other = Channel(there, lambda: False)
        other.receive_object()
        other.send({"block": [0, 1 << 70]})
        other.receive_object()
        other.send({"return": {"rows": 1, "more": None}})

    with here, there:
        thread = threading.Thread(target=greedy)
        thread.start()
        with pytest.raises(Usage, match="has no block"):
            asker(here).query(Strict(path), "select 1", BOUNDS, Told())
        thread.join()
