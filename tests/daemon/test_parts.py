"""Small parts: ids, waking who waits, what is at paths, the choice of names."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dbguardd.daemon.clock import new_id, system_clock
from dbguardd.daemon.paths import Level, Paths
from dbguardd.daemon.protect import choose_name
from dbguardd.daemon.wakeup import Wakeup
from dbguardd.policy.policy import Policy

MOMENT = datetime(2026, 9, 12, 7, 0, tzinfo=UTC)


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_id(MOMENT + timedelta(milliseconds=number)) for number in range(100)]
    assert ids == sorted(ids)
    assert {len(id) for id in ids} == {26}
    assert len({new_id(MOMENT)[10:] for _ in range(100)}) == 100


def test_the_steady_clock_only_goes_on() -> None:
    clock = system_clock()
    first = clock.steady()
    assert clock.steady() >= first
    assert clock.now().utcoffset() == timedelta(0)


def test_the_bell_wakes_all_who_wait_and_nobody_later() -> None:
    async def main() -> None:
        wakeup = Wakeup()
        waiting = [asyncio.create_task(wakeup.wait(10)) for _ in range(3)]
        await asyncio.sleep(0)
        wakeup.wake()
        assert await asyncio.gather(*waiting) == [True] * 3
        assert not await wakeup.wait(0)

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(4))
def test_who_is_cancelled_when_the_bell_rings_ends(steps: int) -> None:
    async def main() -> None:
        wakeup = Wakeup()

        async def for_ever() -> None:
            while True:
                await wakeup.wait(60)

        task = asyncio.create_task(for_ever())
        await asyncio.sleep(0)
        wakeup.wake()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=60)
        assert done == {task}

    asyncio.run(main())


def test_who_is_cancelled_when_a_measurement_is_there_ends() -> None:
    gate = threading.Event()

    def look(path: str) -> Level:
        gate.wait()
        return Level(free_bytes=1)

    async def main() -> None:
        task = asyncio.create_task(Paths(look).measure(["/srv"]))
        await asyncio.sleep(0)
        gate.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "paths"]:
            thread.join()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_storage_that_hangs_is_said_to_and_keeps_no_daemon_from_ending() -> None:
    looks: list[str] = []
    never = threading.Event()

    def look(path: str) -> Level:
        looks.append(path)
        never.wait()
        return Level(free_bytes=1)

    async def main() -> None:
        paths = Paths(look, 0.01)
        for _ in range(3):
            await paths.measure(["/mnt/nfs"])
        assert "does not answer" in paths.level("/mnt/nfs").error

    asyncio.run(main())  # it ends, although the thread does not
    assert looks == ["/mnt/nfs"]
    never.set()


def test_a_look_that_fails_is_no_storage_that_hangs() -> None:
    def look(path: str) -> Level:
        raise RecursionError(path)

    async def main() -> None:
        paths = Paths(look)
        await paths.measure(["/srv"])
        assert paths.level("/srv").error == "/srv: RecursionError('/srv')"

    asyncio.run(main())


def test_the_gauge_knows_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        paths = Paths()
        assert paths.level(str(tmp_path)).free_bytes is None
        await paths.measure([str(tmp_path), str(tmp_path / "gone")])
        level = paths.level(str(tmp_path))
        assert level.total_bytes is not None
        assert level.free_bytes is not None
        assert 0 < level.free_bytes <= level.total_bytes
        assert "No such file" in paths.level(str(tmp_path / "gone")).error
        assert level.repository == ""
        (tmp_path / "repo.json").write_bytes(b"[" * 60_000)  # nested too deeply for a parser
        await paths.measure([str(tmp_path)])
        assert paths.level(str(tmp_path)).repository == ""
        assert not paths.level(str(tmp_path)).error

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/App Data.sqlite3", "app-data"),
        ("/srv/ünï.db", "ueni"),
        ("/srv/---.db", "database"),
        ("/srv/" + "x" * 200 + ".db", "x" * 63),
        ("/srv/taken.db", "taken-2"),
    ],
)
def test_names_are_made_from_the_file(path: str, name: str) -> None:
    database = {"taken": {"engine": "sqlite", "path": "/other/taken.db"}}
    policy = Policy.model_validate({"version": 1, "database": database})
    chosen = choose_name("", path, policy)
    assert chosen == name
    Policy.model_validate({"version": 1, "database": {chosen: {"engine": "sqlite", "path": path}}})
