"""Who follows a log moves it into the main file and lets it begin anew, and keeps writers out as little as can be."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from follow_world import World, reading, sql

from dbguardd.engines.sqlite import keep, locks
from dbguardd.engines.sqlite.child import child, uri
from dbguardd.engines.sqlite.follow import Follower, Pace
from dbguardd.engines.sqlite.live import open_live

KEEP = Path(keep.__file__)


class Enough(Exception):
    pass


class Told:
    """A child, with all that it is asked for; `slow` is what a checkpoint seems to take, in seconds.

    `turn` is what somebody else does just before writers are kept out.
    """

    def __init__(self, keeper, lines, slow=None, turn=lambda: None):
        self.pid, self._keeper, self._lines, self._slow, self._turn = keeper.pid, keeper, lines, slow, turn

    def ask(self, line):
        self._lines.append(line)
        if line == "turn":
            self._turn()
        self._keeper.ask(line)

    def answer(self, alive):
        found = self._keeper.answer(alive)
        return {**found, "seconds": self._slow} if self._slow and "seconds" in found else found

    def silent(self):
        return self._keeper.silent()


class Steps:
    """A Ship that does the next step for each segment, and stops the follower after so many looks."""

    def __init__(self, lines, *steps, looks=3, look=lambda: None):
        self._lines, self._steps, self._looks, self._look = lines, iter(steps), looks, look

    def ship(self, segment):
        self._lines.append("ship")
        next(self._steps, lambda: None)()

    def reached(self, at):
        if at is None:  # only that the follower lives
            return
        self._looks -= 1
        if not self._looks:
            raise Enough
        self._look()

    def __getattr__(self, name):
        return lambda *_, **__: None


@contextmanager
def kept(world):
    with child(["-S", str(KEEP), uri(str(world.path), ""), "1", "20"]) as keeper:
        assert "held" in keeper.answer(lambda: None)
        yield keeper


def followed(world, ship, lines, slow=None, turn=lambda: None, **pace):
    """Follow until the ship has enough; return the index of the log then."""
    with kept(world) as keeper, open_live(str(world.path)) as live:
        files = [os.open(f"{world.path}{side}", os.O_RDONLY) for side in ("-wal", "-shm")]
        try:
            pace = Pace(look_seconds=0.01, max_block_seconds=20.0, **pace)
            with pytest.raises(Enough):
                Follower(live, pace, ship, Told(keeper, lines, slow, turn), files).run(None)
            return locks.read_index(files[1])
        finally:
            for file in files:
                os.close(file)


def test_what_a_newer_mark_allows_is_moved_before_the_application_commits_again(tmp_path):
    world = World(tmp_path, seed=51)
    with world.open_writer(5, auto=1), kept(world) as keeper:
        world.commits(20)
        keeper.ask("move")
        answer = keeper.answer(lambda: None)
        assert answer["renewed"]
        assert 0 < answer["seconds"] < 60
        index = locks.log_index(str(world.path))
        shm = os.open(f"{world.path}-shm", os.O_RDONLY)
        moved = locks.read_index(shm).moved
        os.close(shm)
        assert moved * 2 > index.end // (4096 + 24) > 0


def test_nothing_is_moved_under_a_mark_that_may_be_0(tmp_path):
    """What was committed between the look and the newer mark is in the main file by then, and no frame is behind it."""
    world = World(tmp_path, seed=52)
    lines = []
    with world.open_writer(3):
        ship = Steps(lines, lambda: world.commits(1), looks=2)
        followed(world, Begun(ship, lambda: world.commits(5)), lines, turn_frames=10)
    assert lines[:3] == ["ship", "move", "renew"]


class Begun:
    """A Ship with a step for the beginning."""

    def __init__(self, ship, step):
        self._ship, self._step = ship, step

    def begin(self, place, *, continued, because):
        self._step()

    def __getattr__(self, name):
        return getattr(self._ship, name)


def test_what_is_read_at_the_end_of_a_log_is_stored_when_writers_are_let_in_again(tmp_path):
    world = World(tmp_path, seed=53)
    lines = []
    with world.open_writer(3):
        ship = Steps(lines, lambda: world.commits(2), looks=1)
        followed(world, Begun(ship, lambda: world.commits(5)), lines, turn_frames=10)
    assert "turn" in lines
    assert lines.index("turn") < lines.index("go") < len(lines) - 1 == lines.index("ship", 1)


def test_a_log_that_is_in_the_main_file_begins_anew_without_keeping_anybody_out(tmp_path):
    world = World(tmp_path, seed=54)
    lines = []
    with world.open_writer(3):
        before = followed(world, Begun(Steps(lines), lambda: world.commits(5)), lines, turn_frames=10)
        assert lines == ["ship", "move", "renew"]
        sql(world.path, "CREATE TABLE one_more(a)")
        assert locks.log_index(str(world.path)).place["round"] != before.salts.hex()


@pytest.mark.parametrize(("commits", "turned"), [(5, False), (200, True)])
def test_no_writer_waits_for_a_slow_disk_as_long_as_the_log_can_wait(tmp_path, commits, turned):
    world = World(tmp_path, seed=55)
    lines = []
    with world.open_writer(3):
        ship = Steps(lines, lambda: world.commits(1), looks=1)
        followed(world, Begun(ship, lambda: world.commits(commits)), lines, slow=11.0, turn_frames=10)
    assert "move" in lines
    assert ("turn" in lines) is turned


def test_nothing_is_moved_under_a_mark_of_0_either_that_a_turn_has_left(tmp_path):
    """A reader kept the turn from its end; then he goes, and somebody else moves all that is left."""
    world = World(tmp_path, seed=56)
    lines = []
    with world.open_writer(3), ExitStack() as held:

        def begin():
            held.enter_context(reading(world.path))
            world.commits(5)

        def look():
            held.close()
            sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")

        ship, turn = Steps(lines, looks=2, look=look), lambda: world.commits(1)
        followed(world, Begun(ship, begin), lines, turn=turn, turn_frames=10)
    assert lines[-1] == "renew"
    assert lines.count("move") == 1


def test_a_long_log_is_moved_before_writers_are_kept_out(tmp_path):
    """No commit comes, so no newer mark either; and what lies there is no matter of milliseconds."""
    world = World(tmp_path, seed=57)
    lines, left = [], []

    def turn():
        with open(f"{world.path}-shm", "rb") as shm:
            index = locks.read_index(shm.fileno())
        left.append(index.frames - index.moved)

    with world.open_writer(50):
        followed(world, Steps(lines, looks=1), lines, turn=turn, turn_frames=10, segment_bytes=8 * 4096)
    assert lines == ["bring", "turn", "go"]
    assert left == [0]


def test_writers_are_not_kept_out_for_a_long_log_that_somebody_reads(tmp_path):
    world = World(tmp_path, seed=58)
    lines = []
    with reading(world.path), world.open_writer(50):
        followed(world, Steps(lines, looks=1), lines, turn_frames=10, segment_bytes=8 * 4096)
    assert "turn" not in lines
