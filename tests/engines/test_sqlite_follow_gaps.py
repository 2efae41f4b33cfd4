"""What is not proven to follow what was read is a gap, and is said to be one."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from follow_user import Hooked
from follow_world import World, sql, until

from dbguardd.engines.sqlite import locks
from dbguardd.engines.sqlite.follow import Follower
from dbguardd.engines.sqlite.frames import Frames, WalPosition
from dbguardd.engines.sqlite.live import open_live
from dbguardd.engines.sqlite.pace import Pace
from dbguardd.errors import LogBroken, SourceDamaged


def begin_anew_once(world):
    sql(world.path, "PRAGMA wal_checkpoint(RESTART)")
    world.commits(1)


def begin_anew_twice(world):
    begin_anew_once(world)
    begin_anew_once(world)


def truncate(world):
    world.commits(1)
    sql(world.path, "PRAGMA wal_checkpoint(TRUNCATE)")


def truncate_and_grow(world):
    truncate(world)
    world.commits(40)


@pytest.mark.parametrize("what", [begin_anew_once, begin_anew_twice, truncate, truncate_and_grow])
def test_a_log_that_began_anew_while_nobody_followed_is_a_gap(tmp_path, what):
    world = World(tmp_path, seed=6)
    with world.open_writer(0):
        world.start()
        world.commits(20)
        world.caught_up()
        world.kill()
        what(world)
        world.start()
        world.base()
        world.commits(3)
        world.caught_up()
        world.stop()
    assert len(world.chains()) == 2
    world.prove()


@pytest.mark.parametrize("count", [0, 20])
def test_a_log_that_was_deleted_and_made_anew_is_a_gap(tmp_path, count):
    """Also where both were empty when somebody looked: an empty log has no salts at all."""
    world = World(tmp_path, seed=7)
    world.start()
    world.commits(count)
    world.caught_up()
    world.kill()
    world.commits(3)
    assert not os.path.exists(f"{world.path}-wal")
    with world.open_writer(0):
        world.start()
        world.stop()
    assert len(world.chains()) == 2


def test_a_salt_that_wraps_around_is_followed(tmp_path):
    """The first salt counts rounds in 32 bits, from a random number on."""
    world = World(tmp_path, seed=8)
    with world.open_writer(3):
        for suffix in ("", "-wal"):
            (tmp_path / f"copy{suffix}").write_bytes((world.path.parent / f"app.db{suffix}").read_bytes())
    for suffix in ("", "-wal"):
        (world.path.parent / f"app.db{suffix}").write_bytes((tmp_path / f"copy{suffix}").read_bytes())
    resalt(f"{world.path}-wal", 0xFFFFFFFF)
    with world.open_writer(0):
        world.start(turn_frames=5)
        world.base()
        assert world.chains()[-1].place["round"].startswith("ffffffff")

        def wrapped():
            """Commit, and return whether the log has begun anew since the salt was the last one."""
            world.commits(8)
            world.caught_up()
            return any(segment.until["round"].startswith("0000000") for segment in world.chains()[-1].segments)

        until(wrapped, "the first salt after the last one")
        world.stop()
    assert len(world.chains()) == 1
    world.prove()
    world.prove_end()


def resalt(log, salt):
    """Give a log another first salt, and the checksums that go with it (sqlite.org/fileformat2.html, 4.2)."""
    with open(log, "r+b") as file:
        raw = bytearray(file.read())
        order = ">" if raw[3] & 1 else "<"

        def sums(data, a, b):
            for x, y in struct.iter_unpack(f"{order}II", data):
                a = (a + x + b) & 0xFFFFFFFF
                b = (b + y + a) & 0xFFFFFFFF
            return a, b

        raw[16:20] = salt.to_bytes(4, "big")
        a, b = sums(raw[:24], 0, 0)
        raw[24:32] = struct.pack(">II", a, b)
        size = 24 + int.from_bytes(raw[8:12], "big")
        for at in range(32, len(raw), size):
            raw[at + 8 : at + 16] = raw[16:24]
            a, b = sums(raw[at + 24 : at + size], *sums(raw[at : at + 8], a, b))
            raw[at + 16 : at + 24] = struct.pack(">II", a, b)
        file.seek(0)
        file.write(raw)


def test_another_file_beside_the_same_log_is_a_gap(tmp_path):
    """A restore by hand that forgets the -wal: its salts and frames are those that were followed."""
    world = World(tmp_path, seed=9)
    world.start()
    with world.open_writer(10) as _:
        world.caught_up()
        world.kill()
        copy = world.path.with_name("other.db")
        copy.write_bytes(world.path.read_bytes())
        os.replace(copy, world.path)
        world.start()
    assert len(world.chains()) == 2
    world.stop()
    assert [told[3] for told in world.told() if told[0] == "begin"][1] == "another file took the place of the database"


@pytest.mark.parametrize("gone", [Path.unlink, lambda path: path.rename(path.with_name("elsewhere.db"))])
def test_what_was_committed_before_the_main_file_went_away_is_stored(tmp_path, gone):
    world = World(tmp_path, seed=61)
    with world.open_writer(3):
        world.start()
        world.base()
        world.caught_up()
        world.pause()
        world.commits(4)
        shipped = world.count("segment")
        gone(world.path)
        world.go_on()
        until(lambda: world.ended, "the end of the follower")
    ((kind, text),) = world.ends()
    assert kind == "SourceChanged"
    assert "removed" in text
    assert world.count("segment") == shipped + 1
    world.prove()


def test_nothing_is_read_of_a_log_that_is_written_beside_another_main_file(tmp_path):
    """Who opens that goes on with the log that lies there: its frames are not of the database that was followed."""
    world = World(tmp_path, seed=64)
    with world.open_writer(3):
        world.start()
        world.caught_up()
        world.pause()
        copy = world.path.with_name("other.db")
        copy.write_bytes(world.path.read_bytes())
        os.replace(copy, world.path)
        world.commits(4)
        shipped = world.count("segment")
        world.go_on()
        until(lambda: world.ended, "the end of the follower")
    assert [kind for kind, _ in world.ends()] == ["SourceChanged"]
    assert world.count("segment") == shipped


def test_a_resume_beside_a_log_that_begins_anew_is_a_gap(tmp_path):
    """All is in the main file, so the mark is 0 and keeps nobody from beginning anew before the rest was read."""
    world = World(tmp_path, seed=10)
    with world.open_writer(5):
        world.start()
        world.commits(2)
        world.caught_up()
        world.kill()
        world.commits(5)
        sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
        hooked = Hooked(world, begin=lambda: world.commits(1))
        with pytest.raises(LogBroken):
            hooked.follow(resume=world.chains()[-1].until)
        world.start()
        world.stop()
    assert len(world.chains()) == 2


def test_a_log_of_more_than_4_gib_is_read_where_its_frames_are(tmp_path):
    """As Litestream 1442. The frames are real, and lie behind a hole instead of 4.6 GB of others."""
    world, before = World(tmp_path, seed=65, page_size=65536), 70_000
    with world.open_writer(3), ExitStack() as files:
        real, index = (os.open(f"{world.path}{side}", os.O_RDONLY) for side in ("-wal", "-shm"))
        long = os.open(tmp_path / "long-wal", os.O_RDWR | os.O_CREAT)
        for file in (real, index, long):
            files.callback(os.close, file)
        here = locks.read_index(index)
        start = 32 + before * (24 + here.page_size)
        os.pwrite(long, os.pread(real, here.frames * (24 + here.page_size), 32), start)
        live = files.enter_context(open_live(str(world.path)))
        frames = Frames(live, long, index, 1.0, lambda: None)
        since = WalPosition(here.salts, before, b"", live.found.st_ino)
        found = frames.part(since, replace(here, frames=before + here.frames), 1 << 30)
        short = Frames(live, real, index, 1.0, lambda: None).part(replace(since, frames=0), here, 1 << 30)
    assert start > 1 << 32
    assert (found.images, found.sizes, found.last) == (short.images, short.sizes, True)
    assert found.until.frames == before + short.until.frames and found.until.checksum == here.checksum


def test_frames_that_were_overwritten_while_they_were_read_are_not_shipped(tmp_path):
    world = World(tmp_path, seed=11)
    with world.open_writer(5):
        world.start()
        world.commits(2)
        world.caught_up()
        world.kill()
        world.commits(5)
        sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
        hooked = Hooked(world, begin=lambda: None, segment_bytes=5000, ship=lambda: world.commits(20))
        with pytest.raises(LogBroken):
            hooked.follow(resume=world.chains()[-1].until)
        world.start()
        world.stop()
    assert len(world.chains()) == 2
    assert len(world.chains()[0].segments) <= 3


def test_pages_that_were_overwritten_behind_the_headers_of_their_frames_are_not_shipped(tmp_path):
    """What a read brings that meets a new round in the middle: a header as it was, and a page as it is now."""
    world = World(tmp_path, seed=21)
    with world.open_writer(5):
        world.start()
        world.commits(2)
        world.caught_up()
        world.kill()
        world.commits(5)
        sql(world.path, "PRAGMA wal_checkpoint(PASSIVE)")
        old = Path(f"{world.path}-wal").read_bytes()

        def tear():
            world.commits(20)
            with open(f"{world.path}-wal", "r+b") as log:
                for at in range(32, len(old), 24 + 4096):
                    os.pwrite(log.fileno(), old[at : at + 24], at)

        hooked = Hooked(world, begin=lambda: None, segment_bytes=5000, ship=tear)
        shipped = world.count("segment")
        with pytest.raises(LogBroken):
            hooked.follow(resume=world.chains()[-1].until)
        assert world.count("segment") == shipped + 1
        sql(world.path, "SELECT 1")  # nobody reads what is torn now
        Path(f"{world.path}-wal").write_bytes(old)


def test_a_log_that_has_more_than_may_wait_is_begun_anew_instead_of_refused_again_and_again(tmp_path):
    """Nobody else may ever let it begin anew: an application that never checkpoints, or is idle from now on."""
    world = World(tmp_path, seed=24)
    with world.open_writer(5):
        world.start()
        world.caught_up()
        world.kill()
        world.commits(60)
        world.start(behind_bytes=100_000)
        world.base()
        world.commits(3)
        world.caught_up()
        assert not world.ended
        world.stop()
    assert len(world.chains()) == 2
    world.prove()
    world.prove_end()


class Refusing:
    """A keeper that takes no newer mark."""

    def ask(self, line):
        self.asked = line

    def answer(self, alive):
        return {"error": "disk I/O error", "code": 10} if self.asked == "renew" else {"here": True, "all": False}

    def silent(self):
        return True


class Unmoved:
    """Takes whatever is shipped."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def test_a_mark_that_cannot_be_renewed_ends_the_following(tmp_path):
    """Or the log of the application would grow for ever, and nobody would know why."""
    world = World(tmp_path, seed=41)
    with world.open_writer(1), open_live(str(world.path)) as live:
        files = [os.open(f"{world.path}{side}", os.O_RDONLY) for side in ("-wal", "-shm")]
        try:
            follower = Follower(live, Pace(look_seconds=0.01), Unmoved(), Refusing(), files)
            with world.writer(), pytest.raises(SourceDamaged) as refused:
                follower.run(None)
            assert "disk I/O error" in refused.value.detail
        finally:
            for file in files:
                os.close(file)
