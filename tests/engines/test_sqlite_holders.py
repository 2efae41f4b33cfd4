"""A log that grows because somebody keeps reading: it is said who that is, of nobody else, and when it is over."""

from __future__ import annotations

import copy
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from follow_world import World, until

from dbguardd.engines.sqlite.holders import named

READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT * FROM data").fetchone()
print("reads", flush=True)
sys.stdin.read()
"""


@contextmanager
def reading(world: World) -> Iterator[int]:
    """A process that stays in one transaction until the block ends."""
    argv = [sys.executable, "-c", READER, world.path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"reads\n"
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(60)


def held(world: World) -> list[Any]:
    return [told[1:] for told in world.told() if told[0] == "held"]


def test_who_stays_is_named_and_nobody_else(tmp_path: Path) -> None:
    world = World(tmp_path, seed=7, turn_frames=20)
    with world.following(), world.writer(pause=0.01, auto=10):
        world.caught_up()
        with reading(world) as pid:
            log_bytes, by = until(lambda: held(world), "the reader to be named")[-1]
            user = pwd.getpwuid(os.geteuid()).pw_name
            assert by == [f"process {pid} ({Path(sys.executable).name[:15]}, user {user})"]
            assert log_bytes > 4 * 20 * 4096
            assert log_bytes <= (tmp_path / "live/app.db-wal").stat().st_size
        until(lambda: held(world)[-1][1] == [], "nobody to be named any more")
    world.base()
    assert {name for _, names in held(world) for name in names} == set(by), "and of nobody else"
    assert world.ends() == []


def test_who_comes_and_goes_is_not_named_however_often(tmp_path: Path) -> None:
    world = World(tmp_path, seed=8, turn_frames=20)
    with world.following(), world.writer(pause=0.002, auto=10), world.writer(1, pause=0.0), reading(world) as pid:
        until(lambda: held(world), "the reader to be named")
        world.caught_up()
        assert all(by and f"process {pid} " in by[0] and len(by) == 1 for _, by in held(world)), held(world)
    with world.following(), world.writer(pause=0.005, auto=10):
        before, stays = len(held(world)), {}
        for _ in range(8):
            began = time.monotonic()
            with reading(world) as pid:
                pass
            stays[f"process {pid} "] = time.monotonic() - began
        world.caught_up()
        said = "".join(name for _, by in held(world)[before:] for name in by)
        least = 0.2  # between two attempts: who was kept from leaving for longer did stay
        assert [who for who, stay in stays.items() if who in said and stay < least] == []


def test_a_second_follower_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """Of two, one always lags behind the other: the log of a busy application could never begin anew."""
    world = World(tmp_path, seed=9, turn_frames=20)
    other = copy.copy(world)
    other.shelf, other._told = tmp_path / "other", []
    with world.following():
        other.start(lock_timeout_seconds=0.2)
        until(lambda: other.ended, "a refusal")
        assert other.ends() == [("SourceLocked", f"{world.path}: another dbguard follows its log")]
        with world.writer(pause=0.002, auto=10):
            world.caught_up()
        assert world.ends() == []
    with other.following():
        other.caught_up()
    assert len(other.ends()) == 1


def test_a_process_that_has_ended_or_hides_is_named_as_far_as_can_be() -> None:
    assert named(0) == "a process that cannot be named from here"
    assert named(1 << 22) == f"process {1 << 22}"
