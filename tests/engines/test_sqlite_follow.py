"""The log of a live database is followed, and no commit is lost, torn, misordered or invented, whatever happens."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from follow_user import Hooked
from follow_world import SECONDS, World, reading, sql, until, wait_a_while

from dbguardd.engines.sqlite import keep
from dbguardd.engines.sqlite.child import child, uri
from dbguardd.engines.sqlite.follow import Pace, follow
from dbguardd.errors import Unsupported
from dbguardd.repository.thin import Due, thin
from dbguardd.sums import as_text, file_sum
from tests.repository.data_path import NOW
from tests.repository.test_log import open_log
from tests.storage.memory import Memory

KEEP = Path(keep.__file__)

ALL = ["plain", "keyed", "plain", "keyed", "shrink", "schema", "slow", "plain"]

HISTORIES = {
    "plain": ({}, {"auto": 1000}, 1, True),
    "never checkpointed by itself": ({"turn_frames": 200}, {"auto": 0}, 1, False),
    "checkpointed at each commit": ({"turn_frames": 50}, {"auto": 1, "kinds": ALL}, 1, True),
    "small pages": (
        {"page_size": 512, "segment_bytes": 20_000, "turn_frames": 100},
        {"auto": 5, "kinds": ALL},
        1,
        True,
    ),
    "large pages": ({"page_size": 65536, "turn_frames": 40}, {"auto": 20, "kinds": ALL}, 1, True),
    "several segments a transaction": (
        {"segment_bytes": 100_000, "turn_frames": 300},
        {"auto": 100, "kinds": ["big", "plain", "plain"], "big": 600, "cache": 5},
        1,
        True,
    ),
    "vacuum": (
        {"vacuum": 2, "turn_frames": 200},
        {"auto": 50, "kinds": ALL, "between": ["vacuum", "incremental", "rollback"], "often": 12},
        1,
        True,
    ),
    "open and close": ({"turn_frames": 30}, {"auto": 50, "between": ["reopen", "rollback"], "often": 5}, 1, True),
    "several writers": ({"turn_frames": 100}, {"auto": 30, "kinds": [*ALL, "slow"], "pause": 0.005}, 3, True),
    "impatient writers": ({"turn_frames": 20}, {"auto": 10, "timeout": 0, "pause": 0.003}, 2, True),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_each_position_is_what_was_committed(tmp_path, name):
    pace, options, writers, foreign = HISTORIES[name]
    world = World(tmp_path, seed=len(name), **pace)
    with world.following(), ExitStack() as users:
        for who in range(writers):
            users.enter_context(world.writer(who, **options))
        if foreign:
            users.enter_context(world.checkpoints())
        for _ in range(2):
            wait_a_while(0.4)
            world.base()
            world.goes_on(6)
        users.close()
        world.caught_up()
        assert world.ends() == []
    world.prove(most=12, writers=writers, needed=10)
    world.prove_end()
    assert world.gaps == 0
    assert world.sums > 5


@pytest.mark.parametrize("name", ["vacuum", "several segments a transaction"])
def test_a_log_that_was_made_coarser_comes_to_what_the_database_was(tmp_path, name):
    pace, options, _, _ = HISTORIES[name]
    world = World(tmp_path, seed=3, **pace)
    with world.following(), world.writer(0, **options):
        wait_a_while(0.5)
        world.base()
        (base,) = world.bases
        world.goes_on(9)  # one transaction may take hundreds of segments
    (chain,), log = world.chains(), open_log(Memory())
    reached = chain.reaches(base)
    stored, ended = log.begin(chain.place, "new", NOW), 0
    for one in chain.segments:  # three transactions a minute, however many segments each has
        stored = log.append(stored, replace(one, at=NOW + timedelta(seconds=20 * ended)))
        ended += bool(one.body.size)
    every = [link.number for link in log.links(log.chains()[0], base.after + 1, stored.last) if link.size]
    thin(log, Due(log.chains()[0], 60, stored.last))
    work, compared = tmp_path / "work.db", 0
    work.write_bytes(base.data)
    with work.open("r+b") as file:
        for link in log.links(log.chains()[0], base.after + 1, stored.last):
            for page, image in link.pages():
                os.pwrite(file.fileno(), image, (page - 1) * link.page_size)
            if link.size:
                os.truncate(file.fileno(), link.size)
            if link.number > reached and link.sum:
                compared += 1
                assert as_text(file_sum(file.fileno(), link.size, link.page_size, lambda _: None)) == link.sum
    assert 0 < compared < len(every)


# ------------------------------------------------------------------------------------------ killed


@pytest.mark.parametrize("auto", [5, 1000])
def test_a_follower_that_is_killed_goes_on_or_says_that_there_is_a_gap(tmp_path, auto):
    world = World(tmp_path, seed=auto, turn_frames=40)
    world.start()
    with ExitStack() as users:
        users.enter_context(world.writer(auto=auto, kinds=ALL))
        if auto == 5:
            users.enter_context(world.checkpoints(pause=0.1))
        for _ in range(5):
            world.base()
            world.goes_on(2)
            wait_a_while(world.dice.random() * 0.2)
            world.kill()
            wait_a_while(world.dice.random() * 0.05)
            world.start()
        world.base()
        users.close()
        world.caught_up()
    world.stop()
    world.prove(most=8, needed=10)
    world.prove_end()
    assert world.ends() == []


@pytest.mark.parametrize("stays", [True, False])
def test_a_log_that_is_still_there_is_followed_from_the_same_frame(tmp_path, stays):
    """Also where nobody else has it open: the child that ends leaves the log, and so does one that is killed."""
    world = World(tmp_path, seed=22)
    with world.open_writer(3) if stays else nullcontext():
        world.start()
        with world.open_writer(3):
            world.base()
        for _ in range(3):
            world.caught_up()
            world.kill()
            if stays:
                world.commits(4)
            world.start()
        world.commits(2)
        world.caught_up()
        world.kill_keeper()
        world.start()
        world.commits(2)
        world.caught_up()
        world.stop()
    assert len(world.chains()) == 1
    world.prove()
    world.prove_end()


def test_a_child_that_is_killed_ends_the_following_before_anything_is_missed(tmp_path):
    world = World(tmp_path, seed=3, turn_frames=40)
    world.start()
    with world.writer(auto=5, kinds=ALL), world.checkpoints(pause=0.05):
        for _ in range(5):
            world.base()
            world.goes_on(2)
            wait_a_while(world.dice.random() * 0.2)
            world.kill_keeper()
            world.start()
        world.base()
        wait_a_while(0.2)
    world.caught_up()
    world.stop()
    world.prove(most=8, needed=10)
    world.prove_end()
    assert {kind for kind, _ in world.ends()} <= {"WorkerDied", "LogBroken"}
    assert len(world.ends()) == 5


@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_a_round_that_began_after_the_child_was_killed_is_not_believed(tmp_path, mode):
    """Its salt is one higher, as that of a round that continues. What was committed before it is not there any more."""
    world = World(tmp_path, seed=4)
    world.start()
    with world.open_writer(3):
        world.caught_up()
        world.base()
        world.pause()
        os.kill(world.keeper(), signal.SIGKILL)
        world.commits(5)
        sql(world.path, f"PRAGMA wal_checkpoint({mode})")
        world.commits(2)
        shipped = world.count("segment")
        world.go_on()
        until(lambda: world.ended, "the end of the follower")
        assert [kind for kind, _ in world.ends()] == ["WorkerDied"]
        assert world.count("segment") == shipped
        world.start()
        world.stop()
    assert len(world.chains()) == 2


def test_writers_are_killed_in_the_middle(tmp_path):
    world = World(tmp_path, seed=5, turn_frames=40)
    with world.following(), world.checkpoints():
        for _ in range(6):
            with world.writer(auto=20, kinds=["slow", "big", "plain"], big=300, cache=5, pause=0) as process:
                if world.bases:
                    world.goes_on(2)
                wait_a_while(world.dice.random() * 0.3)
                process.kill()
            world.base()
        world.caught_up()
        assert world.ends() == []
    world.prove(most=6, needed=10)
    world.prove_end()


# ------------------------------------------------------------------------------------------ replaced, or refused


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_file_that_is_replaced_is_noticed(tmp_path, suffix):
    world = World(tmp_path, seed=13)
    with world.open_writer(3):
        world.start()
        path = f"{world.path}{suffix}"
        Path(f"{path}.new").write_bytes(Path(path).read_bytes())
        os.replace(f"{path}.new", path)
        until(lambda: world.ended, "the end of the follower")
    ((kind, text),) = world.ends()
    assert kind == "SourceChanged"
    assert "copied" not in text and ("took its place" if not suffix else "replaced") in text


def test_a_database_without_a_log_is_refused_and_stays_as_it_is(tmp_path):
    world = World(tmp_path, seed=14)
    sql(world.path, "PRAGMA journal_mode=DELETE")
    before = world.path.read_bytes()
    with pytest.raises(Unsupported) as caught:
        follow(str(world.path), Pace(), Hooked(world), None)
    assert caught.value.code == "DBG-2008"
    assert world.path.read_bytes() == before
    assert os.listdir(world.path.parent) == ["app.db"]


def test_a_quiet_database_stays_quiet(tmp_path):
    """Also a long log that was turned: it is not turned again and again."""
    world = World(tmp_path, seed=15, turn_frames=20)
    with world.open_writer(50), world.following():
        world.caught_up()
        until(world.moved, "a log that is in the main file")
        world.caught_up()
        before, segments, turns = state(world), world.count("segment"), voluntary(world.keeper())
        for _ in range(10):
            world.caught_up()
        assert state(world) == before
        assert world.count("segment") == segments
        assert voluntary(world.keeper()) - turns < 5, "the child was asked for something while all was quiet"


def state(world):
    found = [os.stat(f"{world.path}{suffix}") for suffix in ("", "-wal")]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def voluntary(pid):
    """How often a process went to sleep."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches")))


# ------------------------------------------------------------------------------------------ who else uses the database


def test_the_log_is_bounded_and_is_again_when_a_long_reader_has_gone(tmp_path):
    world = World(tmp_path, seed=16, turn_frames=100)
    log = Path(f"{world.path}-wal")

    def shipped():
        return sum(len(segment.body.pages) for segment in world.chains()[-1].segments)

    with world.following(), world.writer(auto=0, pause=0.001):
        until(lambda: shipped() > 2 * log.stat().st_size, "a log that is written over and over")
        with reading(world.path):
            size = log.stat().st_size
            until(lambda: log.stat().st_size > size + (2 << 20), "a log that grows under a reader")
        rounds = {segment.until["round"] for segment in world.chains()[-1].segments}
        until(
            lambda: len({s.until["round"] for s in world.chains()[-1].segments} - rounds) > 1,
            "a log that begins anew when its reader has gone",
        )
        assert world.ends() == []


@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_that_waits_with_the_write_lock_is_let_through(tmp_path, mode):
    """It waits for an end of all marks, and every writer waits for it."""
    world = World(tmp_path, seed=17)
    with world.open_writer(10), world.following():
        world.commits(3)
        world.caught_up()
        code = """if True:
            import sqlite3, sys
            db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
            print(db.execute(f"PRAGMA wal_checkpoint({sys.argv[2]})").fetchone()[0])
        """
        argv = [sys.executable, "-c", code, str(world.path), mode]
        done = subprocess.run(argv, check=True, capture_output=True, timeout=2 * SECONDS)
        assert done.stdout == b"0\n", "it was busy"
        assert world.ends() == []


def test_an_index_that_a_stopped_writer_left_half_changed_is_waited_for(tmp_path):
    world = World(tmp_path, seed=18)
    with world.open_writer(3), world.following():
        world.caught_up()
        with open(f"{world.path}-shm", "r+b") as shm:
            good = os.pread(shm.fileno(), 48, 0)
            os.pwrite(shm.fileno(), bytes(byte ^ 1 for byte in good[:16]), 0)
            reached = world.count("reached")
            until(lambda: any(told[1] is None for told in world.told()[reached:] if told[0] == "reached"), "a wait")
            os.pwrite(shm.fileno(), good, 0)
        world.commits(2)
        world.caught_up()
        assert world.ends() == []


def test_lines_for_the_child_that_arrive_together_are_answered_one_by_one(tmp_path):
    world = World(tmp_path, seed=19)
    with (
        world.open_writer(3),
        child(["-S", str(KEEP), uri(str(world.path), ""), str(world.path), "1", "0.05"]) as keeper,
    ):
        assert "held" in keeper.answer(lambda: None)
        keeper.ask("turn 0.05")
        assert keeper.answer(lambda: None) == {"still": True}
        assert keeper.answer(lambda: None) == {"turned": False}, "nobody said go in time"
        keeper.ask("go\nrenew\nping")
        assert keeper.answer(lambda: None) == {"renewed": True}
        assert keeper.answer(lambda: None) == {"here": True}
        began = time.monotonic()
        world.commits(1)  # writers were let in
        assert time.monotonic() - began < SECONDS


def test_a_file_that_is_locked_for_a_moment_is_waited_for(tmp_path):
    """Who closes a database as the last one keeps everybody out, and so does who leaves WAL mode."""
    world = World(tmp_path, seed=20)
    with open(world.path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 510, 0x4000_0002)
        with child(["-S", str(KEEP), uri(str(world.path), ""), str(world.path), "60", "0.05"]) as keeper:
            files = Path(f"/proc/{keeper.pid}/fd")
            until(lambda: str(world.path) in map(os.path.realpath, files.iterdir()), "a child that opens it")
            wait_a_while(0.3)
            assert keeper.silent(), keeper.answer(lambda: None)
            fcntl.lockf(file, fcntl.LOCK_UN, 510, 0x4000_0002)
            assert "held" in keeper.answer(lambda: None)


def test_a_backup_beside_a_log_that_begins_anew_meanwhile_tells_a_place_to_go_on_from(tmp_path):
    """Its copy of the log is dropped then; whatever place the log had after the mark was taken is late enough."""
    world = World(tmp_path, seed=31)
    with world.open_writer(20):
        world.start()
        world.caught_up()
        sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
        world.caught_up()
        begun = []

        def begin_anew(step, done, total):
            if done and not begun:  # in the middle of the copy of the log
                world.commits(1)
                begun.append(done)

        facts = world.base(begin_anew)
        assert begun
        assert facts["log_bytes"] == 0
        world.commits(3)
        world.caught_up()
        world.stop()
    assert len(world.bases) == 1
    world.prove()
    world.prove_end()
