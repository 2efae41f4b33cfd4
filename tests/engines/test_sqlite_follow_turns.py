"""Who follows a log moves it into the main file and lets it begin anew, and keeps writers out as little as can be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from itertools import repeat
from pathlib import Path

import pytest
from follow_user import Hooked
from follow_world import World, reading, sql

from dbguardd.engines.sqlite import keep, locks
from dbguardd.engines.sqlite.child import child, uri
from dbguardd.engines.sqlite.follow import Follower
from dbguardd.engines.sqlite.frames import Frames, WalPosition
from dbguardd.engines.sqlite.live import open_live
from dbguardd.engines.sqlite.marks import Marks
from dbguardd.engines.sqlite.pace import Pace
from dbguardd.errors import LogBroken
from tests.faults.test_full import a_disk, room

KEEP = Path(keep.__file__)


class Enough(Exception):
    pass


class Told:
    """A child, with all that it is asked for; `slow` is what its checkpoints seem to take, in seconds.

    `before` is what somebody else does just before it is asked something, each time.
    """

    def __init__(self, keeper, lines, slow=(), before=None):
        self.pid, self._keeper, self._lines, self._slow = keeper.pid, keeper, lines, iter(slow)
        self._before = {what: iter(steps) for what, steps in (before or {}).items()}

    def ask(self, line):
        self._lines.append(line.split()[0])
        next(self._before.get(self._lines[-1], iter(())), lambda: None)()
        self._keeper.ask(line)

    def answer(self, alive):
        found = self._keeper.answer(alive)
        return {**found, "seconds": next(self._slow, found["seconds"])} if "seconds" in found else found

    def silent(self):
        return self._keeper.silent()


class Steps:
    """A LogSink that does the next step for each segment, and stops the follower after so many looks."""

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
    with child(["-S", str(KEEP), uri(str(world.path), ""), str(world.path), "1", "20"]) as keeper:
        assert "held" in keeper.answer(lambda: None)
        yield keeper


def followed(world, ship, lines, slow=(), before=None, **pace):
    """Follow until the ship has enough; return the index of the log then."""
    with kept(world) as keeper, open_live(str(world.path)) as live:
        files = [os.open(f"{world.path}{side}", os.O_RDONLY) for side in ("-wal", "-shm")]
        try:
            pace = Pace(look_seconds=0.01, max_block_seconds=20.0, **pace)
            with pytest.raises(Enough):
                Follower(live, pace, ship, Told(keeper, lines, slow, before), files).run(None)
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
    """A LogSink with a step for the beginning."""

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
        followed(world, Begun(ship, lambda: world.commits(commits)), lines, slow=repeat(11.0), turn_frames=10)
    assert "move" in lines
    assert ("turn" in lines) is turned


def test_one_quick_answer_of_a_disk_says_nothing_of_the_next(tmp_path):
    world = World(tmp_path, seed=59)
    with world.open_writer(3), kept(world) as keeper, open_live(str(world.path)) as live, ExitStack() as files:
        log, shm = (files.enter_context(open(f"{world.path}{side}", "rb")).fileno() for side in ("-wal", "-shm"))
        frames, told = Frames(live, log, shm, 1, lambda: None), Told(keeper, [], slow=[11.0, 0.0, 0.0, 0.0])
        marks, seen = Marks(live.path, told, frames, shm, lambda: None), []
        for _ in range(4):
            marks.renew(WalPosition(b"another round", 1, b"", 0), long=True)
            seen.append(marks.slowest_seconds)
    assert seen == [11.0, 11.0, 11.0, 0.0]


def test_writers_are_let_in_when_it_is_time_whatever_the_disk_is_doing(tmp_path):
    """And what it does not get done by then it does beside them."""
    world = World(tmp_path, seed=60, page_size=512)
    with world.open_writer(2, kinds=["big"]), kept(world) as keeper:
        keeper.ask("turn 0.0002\ngo")
        assert [keeper.answer(lambda: None) for _ in range(2)] == [{"still": True}, {"turned": False}]
        with open(f"{world.path}-shm", "rb") as shm:
            index = locks.read_index(shm.fileno())
        assert index.frames == index.moved > 5000
        world.commits(1)


def test_what_is_committed_while_a_long_log_is_moved_at_first_is_not_too_much_to_begin_with(tmp_path):
    """Who begins where the log ended before that would have to begin again and again, and all the while it grows."""
    world = World(tmp_path, seed=62)
    lines = []
    with world.open_writer(60):
        pace = {"behind_bytes": 100_000, "segment_bytes": 8 * 4096, "turn_frames": 100_000}
        followed(world, Steps(lines, looks=2), lines, before={"bring": [lambda: world.commits(60)]}, **pace)
    assert lines[:4] == ["bring", "renew"] * 2


def test_only_what_is_not_in_the_main_file_is_looked_back_at(tmp_path):
    world = World(tmp_path, seed=63)
    with world.open_writer(5), kept(world), open_live(str(world.path)) as live, ExitStack() as files:
        log, shm = (files.enter_context(open(f"{world.path}{side}", "rb")).fileno() for side in ("-wal", "-shm"))
        sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
        moved = locks.read_index(shm).moved
        world.commits(2)
        index = locks.read_index(shm)
        place, frames = (
            WalPosition(index.salts, index.frames, index.checksum, 0),
            Frames(live, log, shm, 1, lambda: None),
        )
        every, late = list(frames.up_to(place, 4096, 0)), list(frames.up_to(place, 4096, moved))
        assert 0 < moved < len(every) == index.frames
        assert late == every[moved - 1 :]
        middle = WalPosition(index.salts, moved - 1, b"", 0)  # of the last transaction that was moved
        assert list(frames.up_to(middle, 4096, moved))[1:] == written_since_a_commit(every[: moved - 1])


def written_since_a_commit(frames):
    last = max(n for n, (_, commit, _) in enumerate(frames) if commit)
    return frames[last + 1 :]


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

        ship, before = Steps(lines, looks=2, look=look), {"turn": [lambda: world.commits(1)]}
        followed(world, Begun(ship, begin), lines, before=before, turn_frames=10)
    assert lines[-1] == "renew"
    assert lines.count("move") == 1


def test_a_long_log_is_moved_before_writers_are_kept_out(tmp_path):
    """Whoever held it is gone, no commit comes, so no newer mark either; and it is no matter of milliseconds."""
    world = World(tmp_path, seed=57)
    lines, left = [], []

    def turn():
        with open(f"{world.path}-shm", "rb") as shm:
            index = locks.read_index(shm.fileno())
        left.append(index.frames - index.moved)

    with world.open_writer(1), ExitStack() as held:

        def begin():
            held.enter_context(reading(world.path))
            world.commits(50)

        ship, pace = Steps(lines, looks=60, look=held.close), {"turn_frames": 10, "segment_bytes": 50 * 4096}
        followed(world, Begun(ship, begin), lines, before={"turn": [turn]}, **pace)
    assert [line for line in lines if line != "ship"] == ["move", "bring", "bring", "turn", "go"]
    assert left == [0]


def test_writers_are_not_kept_out_for_a_long_log_that_somebody_reads(tmp_path):
    world = World(tmp_path, seed=58)
    lines = []
    with reading(world.path), world.open_writer(50):
        followed(world, Steps(lines, looks=1), lines, turn_frames=10, segment_bytes=8 * 4096)
    assert "turn" not in lines


def test_a_turn_does_not_checkpoint_a_round_that_nobody_read(tmp_path):
    """The writer that the barrier waits for begins the log anew under a mark of 0, with fewer frames than before."""
    world = World(tmp_path, seed=12)
    lines = []
    with world.open_writer(0), ExitStack() as held:

        def fill():
            """All that the mark allows goes into the main file; then somebody has the write lock."""
            sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
            held.enter_context(world.open_writer(0, hold=True))

        looks, more = iter(range(5)), iter([lambda: world.commits(1)])

        def look():
            next(more, lambda: None)()  # begins the log anew once more, if the round before is in the main file
            if next(looks, None) is None:
                raise Enough

        hooked = Hooked(
            world,
            begin=lambda: (world.base(), world.commits(9)),
            ship=lambda: held.close() if "go" in lines or "stay" in lines else world.commits(1),
            alive=lambda: held.close() if lines[-1] == "turn" else None,
            look=look,
        )
        followed(world, hooked, lines, before={"renew": [fill]}, turn_frames=12)
    assert "stay" in lines
    assert len(world.chains()) == 1
    world.prove()
    world.prove_end()


class Writing:
    """A process that makes so many commits whenever it is asked to, without being started each time."""

    def __init__(self, world):
        code = (
            "import sqlite3, sys\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "db.execute('PRAGMA synchronous=OFF'); db.execute('PRAGMA wal_autocheckpoint=0')\n"
            "for line in sys.stdin:\n"
            "    for _ in range(int(line)): db.execute('UPDATE data SET x = randomblob(500) WHERE id = 1')\n"
            "    print(flush=True)\n"
        )
        argv = [sys.executable, "-c", code, str(world.path)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def commits(self, count):
        self._process.stdin.write(b"%d\n" % count)
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"\n"

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(60) == 0
        self._process.stdout.close()


def outrunning(world, lines, steps, count, first=100, **pace):
    """Follow beside a writer that commits `count` times after each segment is stored, before a newer mark is taken."""
    with closing(Writing(world)) as writer:

        def outrun():
            if lines[-2:-1] == ["ship"]:
                writer.commits(count)

        ship, before = Begun(steps, lambda: writer.commits(first)), dict.fromkeys(("move", "renew"), repeat(outrun))
        return followed(world, ship, lines, before=before, turn_frames=10, segment_bytes=8 * 4096, **pace)


def test_a_log_begins_anew_although_more_is_committed_while_a_segment_is_stored_than_it_may_have(tmp_path):
    world = World(tmp_path, seed=59)
    lines = []
    outrunning(world, lines, Steps(lines, looks=40), count=6, first=1000)
    assert "go" in lines


def test_how_far_the_log_is_stored_is_told_after_each_look(tmp_path):
    world = World(tmp_path, seed=60)
    lines = []
    outrunning(world, lines, Steps(lines, looks=5, look=lambda: lines.append("reached")), count=40)
    looks = "".join({"ship": "s", "move": "m", "renew": "m", "reached": "r"}.get(line, "") for line in lines)
    assert not re.search("ms+ms+m", looks)


def test_a_log_whose_end_is_never_reached_is_let_go(tmp_path):
    world = World(tmp_path, seed=61)
    lines = []
    with pytest.raises(LogBroken) as caught:
        outrunning(world, lines, Steps(lines, looks=20), count=400, behind_bytes=1000 * 4096)
    assert "its end is not reached" in caught.value.detail


def test_a_log_is_let_go_before_it_fills_the_disk_of_its_application(tmp_path):
    lines = []
    with a_disk(tmp_path / "disk", "size=32m") as disk:
        world = World(disk, seed=64)
        with pytest.raises(LogBroken) as caught:
            outrunning(world, lines, Steps(lines, looks=60), count=100, least_room_bytes=1 << 20)
        assert "its end is not reached" in caught.value.detail
        assert room(disk) > 8 << 20


def test_a_writer_is_not_waited_for_as_long_as_writers_may_have_to_wait(tmp_path):
    """While the child waits to keep writers out, nobody reads what they commit."""
    world, patience = World(tmp_path, seed=65), iter(range(100))
    argv = ["-S", str(KEEP), uri(str(world.path), ""), str(world.path), "1", "3600"]
    with world.open_writer(1), child(argv) as keeper:
        assert "held" in keeper.answer(lambda: None)
        with world.open_writer(0, hold=True):
            keeper.ask("turn 3600.0")
            assert keeper.answer(lambda: next(patience)) == {"turned": False}
