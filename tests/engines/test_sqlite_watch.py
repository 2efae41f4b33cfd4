"""The live file is compared with its log: what was changed past it is found, and nothing else is ever said to be."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from follow_world import World, until

from dbguardd.engines.sqlite.live import open_live
from dbguardd.engines.sqlite.watch import Watch
from dbguardd.sums import as_text, file_sum

PAGE = 4096
ALL = ["plain", "keyed", "schema", "shrink", "big"]
FLIP = """
import os, sys
file, at = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
byte = os.pread(file, 1, at)
os.pwrite(file, bytes([byte[0] ^ 255]), at)
"""


def flip(path: Path, page: int, page_size: int = PAGE) -> None:
    """Change a byte of a page past SQLite."""
    at = str((page - 1) * page_size + page_size // 2)
    subprocess.run([sys.executable, "-c", FLIP, str(path), at], check=True)


def audits(world: World) -> list[str]:
    return [told[1] for told in world.told() if told[0] == "audited"]


def sums(world: World) -> list[str]:
    return [segment.body.sum for chain in world.chains() for segment in chain.segments if segment.body.size]


@pytest.mark.parametrize(
    ("pace", "options"),
    [
        ({"turn_frames": 100}, {"auto": 50, "kinds": ALL, "between": ["vacuum", "rollback"], "often": 10}),
        ({"turn_frames": 30, "page_size": 1024, "vacuum": 1}, {"auto": 1, "kinds": ALL, "big": 400, "cache": 5}),
        (
            {"segment_bytes": 8 * 4096, "vacuum": 2},
            {"kinds": ALL, "big": 60, "between": ["incremental", "reopen"], "often": 7},
        ),
    ],
)
def test_nothing_that_sqlite_does_is_found_wrong(tmp_path: Path, pace: Any, options: Any) -> None:
    world = World(tmp_path, seed=len(pace), audit_seconds=0.0, scan_bytes=1 << 20, **pace)
    with world.following(), ExitStack() as users:
        users.enter_context(world.writer(pause=0.02, **options))
        users.enter_context(world.checkpoints(pause=0.1))
        until(lambda: audits(world), "a first comparison")
        world.base()
        until(lambda: len(audits(world)) > 8, "comparisons")
        world.goes_on(6)
        users.close()
        world.caught_up()
        assert world.ends() == []
    assert set(audits(world)) == {""}
    world.prove(most=30, needed=5)
    assert world.sums > 5
    assert world.gaps == 0


def test_what_was_changed_past_the_log_is_found_and_the_log_begins_anew(tmp_path: Path) -> None:
    world = World(tmp_path, seed=3, audit_seconds=0.0)
    world.commits(4, kinds=["big"], auto=1)
    with world.following(), world.open_writer(1):
        until(lambda: "" in audits(world), "a comparison that is well")
        flip(world.path, 20)
        until(lambda: any(audits(world)), "a comparison that is not")
        (wrong,) = filter(None, audits(world))
        assert wrong.startswith("pages of it were changed past its log: 20 (1 of ")
        until(lambda: len(world.chains()) == 2, "another log")
        flip(world.path, 20)  # it is what it was, and what the new log goes on from is not
        until(lambda: len([*filter(None, audits(world))]) == 2, "another one")
    begins = [told for told in world.told() if told[0] == "begin"]
    assert [told[2] for told in begins] == [False] * 3
    assert begins[1][3] == wrong


def test_a_file_that_is_written_past_its_log_is_not_believed_until_the_day_is_over(tmp_path: Path) -> None:
    world = World(tmp_path, seed=3, audit_seconds=86_400.0)
    world.commits(4, kinds=["big"], auto=1)
    with world.following(), world.open_writer(1):
        until(lambda: world.commits(1) or any(sums(world)), "a commit after the sum of all pages was known")
        flip(world.path, 20)
        until(lambda: any(audits(world)), "a comparison that found it")
        assert "changed past its log: 20 (1 of " in audits(world)[0]
        until(lambda: len(world.chains()) == 2, "a new chain")


def test_what_checkpoints_write_is_nothing_to_look_at(rests: Path) -> None:
    with open_live(str(rests)) as live:
        watch, times = Watch(live, "", 86_400.0, 1 << 20), iter(range(1000))
        watch.begin(PAGE, 3)
        while not watch._known:
            watch.step()
            watch.looked("")
        due = watch._due
        for moved in range(3):
            os.utime(rests, ns=(0, next(times)))
            watch.glance(moved)
            assert watch._due == due
        os.utime(rests, ns=(0, next(times)))
        watch.glance(2)
        assert watch._due == due  # it may just be synced
        until(lambda: watch.glance(2) or watch._due < due, "what no checkpoint has written")


@pytest.mark.parametrize("first", [True, False])
def test_what_is_written_behind_a_comparison_that_goes_on_is_looked_at_again(rests: Path, first: bool) -> None:
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 86_400.0, 1)  # a page at each step
        watch.begin(PAGE, 3)
        watch.glance(0)
        if not first:
            while not watch._known:
                watch.step()
                watch.looked("")
            watch._due = 0.0
        watch.step()
        os.utime(rests, ns=(0, 1))
        until(lambda: watch.glance(0) or watch._mark == live.mark(), "that it was seen to be written")
        while watch._next:
            watch.step()
        watch.looked("")  # ends it
        watch.step()
        assert watch._moving is not None


@pytest.mark.parametrize("changed", [True, False])
def test_what_was_changed_while_nobody_followed_is_found(tmp_path: Path, changed: bool) -> None:
    world = World(tmp_path, seed=4)
    world.commits(4, kinds=["big"], auto=1)
    with ExitStack() as users:
        with world.following():
            users.enter_context(world.open_writer(5))
            world.caught_up()
            with world.open_writer(5):
                world.caught_up()
            until(lambda: any(sums(world)), "a sum")
        if changed:
            flip(world.path, 20)
        looks = world.count("reached")
        with world.following():
            until(lambda: world.count("reached") > looks + 20, "looks")
            assert world.ends() == []
        assert [bool(found) for found in audits(world)] == [True] * changed
        assert len(world.chains()) == 1 + changed
        if changed:
            assert "when its log was followed last" in audits(world)[0]


def test_a_database_that_rests_is_not_written_to_by_a_comparison(tmp_path: Path) -> None:
    world = World(tmp_path, seed=5, audit_seconds=0.0)
    with world.following(), world.open_writer(3):
        world.caught_up()
        until(lambda: len(audits(world)) > 1, "a comparison")
        files = [world.path, *world.path.parent.glob("app.db-*")]
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}
        count = len(audits(world))
        until(lambda: len(audits(world)) > count + 3, "comparisons")
        assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files} == before


# ------------------------------------------------------------------------------------------ by itself


@pytest.fixture
def rests(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t(x)")
        db.executemany("INSERT INTO t VALUES(randomblob(3000))", [()] * 50)
    return path


def total(path: Path) -> str:
    with path.open("rb") as file:
        return as_text(file_sum(file.fileno(), path.stat().st_size, PAGE, lambda _: None))


def test_the_sum_is_that_of_the_whole_file_whichever_way_it_is_come_to(rests: Path) -> None:
    pages = rests.stat().st_size // PAGE
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 1e9, 4 * PAGE)
        watch.begin(PAGE, pages)
        new = os.urandom(PAGE)
        watch.took({3: memoryview(new)}, [pages])  # while the file is still looked at
        for _ in range(pages):
            assert watch.looked("") == ""
            watch.step()
        assert watch.sum
        with rests.open("r+b") as file:
            os.pwrite(file.fileno(), new, 2 * PAGE)
            assert watch.sum == total(rests)
            images = {number: os.urandom(PAGE) for number in (2, pages + 1, pages + 3)}
            watch.took({number: memoryview(image) for number, image in images.items()}, [pages + 4])
            for number, image in images.items():
                os.pwrite(file.fileno(), image, (number - 1) * PAGE)
            os.ftruncate(file.fileno(), (pages + 4) * PAGE)
            assert watch.sum == total(rests)
            watch.took({1: memoryview(new)}, [10])
            os.pwrite(file.fileno(), new, 0)
            os.ftruncate(file.fileno(), 10 * PAGE)
            assert watch.sum == total(rests)


def test_the_sum_may_become_known_in_the_middle_of_a_transaction(rests: Path) -> None:
    pages = rests.stat().st_size // PAGE
    images = {number: os.urandom(PAGE) for number in (2, pages + 1, pages + 2)}
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 1e9, 1 << 30)
        watch.begin(PAGE, pages)
        watch.saw({pages + 9: memoryview(images[2])})  # of the time before it shrank
        watch.begin(PAGE, pages)
        watch.took({number: memoryview(images[number]) for number in (2, pages + 1)}, [])
        for _ in range(2):
            watch.looked("")
            watch.step()
        watch.took({pages + 2: memoryview(images[pages + 2])}, [pages + 2])
        with rests.open("r+b") as file:
            for number, image in images.items():
                os.pwrite(file.fileno(), image, (number - 1) * PAGE)
        assert watch.sum == total(rests)


def test_pages_that_a_transaction_gets_and_gives_back_are_in_no_sum(rests: Path) -> None:
    pages = rests.stat().st_size // PAGE
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 1e9, 1 << 30)
        watch.begin(PAGE, pages)
        for _ in range(2):
            watch.looked("")
            watch.step()
        image = os.urandom(PAGE)
        watch.took({number: memoryview(image) for number in (3, pages + 1, pages + 30)}, [])
        watch.took({1: memoryview(image)}, [pages - 5])
        with rests.open("r+b") as file:
            for number in (1, 3):
                os.pwrite(file.fileno(), image, (number - 1) * PAGE)
            os.ftruncate(file.fileno(), (pages - 5) * PAGE)
        assert watch.sum == total(rests)


@pytest.mark.slow
def test_the_page_of_locks_gets_no_frame_and_needs_none(rests: Path) -> None:
    """A database of more than 1 GiB that gets shorter and longer again, before a checkpoint cuts its file."""
    size, locks, pages = 65536, (1 << 30) // 65536 + 1, (1 << 30) // 65536 + 4
    os.truncate(rests, pages * size)  # all zeros behind its content
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 1e9, 2 << 30)
        watch.begin(size, pages)
        for _ in range(2):
            watch.looked("")
            watch.step()
        image = os.urandom(size)
        watch.took({1: memoryview(image)}, [locks - 2])
        assert watch.sum
        again = {number: memoryview(image) for number in range(locks - 1, pages + 1) if number != locks}
        watch.took(again, [pages])
        with rests.open("r+b") as file:
            for number in (1, *again):
                os.pwrite(file.fileno(), image, (number - 1) * size)
            assert watch.sum == as_text(file_sum(file.fileno(), pages * size, size, lambda done: None))


def test_a_commit_that_was_read_past_is_found(rests: Path) -> None:
    """As Litestream 1323: pages that never came into the log, with all else well."""
    pages = rests.stat().st_size // PAGE
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 0.0, 1 << 30)
        watch.begin(PAGE, pages)
        for _ in range(3):
            assert watch.looked("") == ""
            watch.step()
        with rests.open("r+b") as file:
            for number in (7, pages + 1):
                os.pwrite(file.fileno(), os.urandom(PAGE), (number - 1) * PAGE)
        watch.took({9: memoryview(os.urandom(PAGE))}, [pages + 1])
        found = [watch.looked("")]
        for _ in range(3):
            watch.step()
            found.append(watch.looked(""))
        (wrong,) = filter(None, found)
        assert f": 7, {pages + 1} (2 of {pages + 1})" in wrong


def test_pages_that_came_back_without_a_frame_take_the_sum_away_until_they_have_one(rests: Path) -> None:
    pages = rests.stat().st_size // PAGE
    with open_live(str(rests)) as live:
        watch = Watch(live, "", 1e9, 1 << 30)
        watch.begin(PAGE, pages)
        for _ in range(2):
            watch.looked("")
            watch.step()
        image = memoryview(os.urandom(PAGE))
        watch.took({1: image}, [10])
        assert watch.sum
        watch.took({number: image for number in range(11, pages + 1) if number != 20}, [pages])
        assert watch.sum == ""
        watch.took({20: image}, [pages])
        assert watch.sum


def test_a_full_disk_beside_it_does_not_end_the_following(rests: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limit[1]))
        with open_live(str(rests)) as live:
            watch = Watch(live, "", 1e9, 1 << 30)
            watch.begin(PAGE, rests.stat().st_size // PAGE)
            for _ in range(2):
                watch.looked("")
                watch.step()
            image = memoryview(os.urandom(PAGE))
            watch.took({number: image for number in range(1, 20_001)}, [20_000])
            watch.took({1: image}, [20_000])
            assert watch.sum
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
