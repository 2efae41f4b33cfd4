"""Whose log is followed, when, by whom: one follower at a time, and none that nobody knows of."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dbguardd.catalog import to_text
from dbguardd.errors import Cancelled
from tests.daemon.life import Caller, Place, live, stored

ALICE = Caller()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.guard(continuous="true")
    return place


class Workers:
    """Plays every worker: followers live until they are told to end, and then until they may; jobs end at once."""

    def __init__(self) -> None:
        self.following: list[Any] = []
        self.most = 0
        self.begun: list[dict[str, Any]] = []
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.held = asyncio.Event()
        self.held.set()
        self.jobs: list[str] = []

    async def __call__(self, spec: Any, on_message: Any, cancel: asyncio.Event, *, stall_timeout: float) -> Any:
        if spec["verb"] != "follow":
            self.jobs.append(spec["verb"])
            await self.held.wait()
            return {}
        self.following.append(on_message)
        self.most = max(self.most, len(self.following))
        for facts in self.begun[-1:]:
            on_message({"type": "report", "event": "log.begun", "facts": facts})
        await cancel.wait()
        await self.may_end.wait()
        self.following.remove(on_message)
        raise Cancelled("cancelled")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def guarding(place: Place, test: Any, **backup: Any) -> None:
    """Run a test in a daemon that knows a backup of the database, and so follows its log."""

    async def main(service: Any, worker: Any) -> None:
        workers = Workers()
        service._do.following._around = _with(service, workers)
        facts = {**stored(1, to_text(place.wall)), "storage": "local", **backup}
        service._do.tell("backup.stored", "app", facts)
        try:
            await test(service, workers)
        finally:
            workers.may_end.set()
            workers.held.set()

    live(place, main)


def _with(service: Any, workers: Workers) -> Any:
    return replace(service._do.following._around, run_worker=workers)


def test_a_pause_that_ends_by_itself_ends_for_the_log_too(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        service._do.following.reconsider()
        await until(lambda: workers.following)
        service.pause("app", 60.0, ALICE)
        await until(lambda: not workers.following)
        place.wall, place.steady = place.wall + timedelta(seconds=61), place.steady + 61
        service._do.nudge.ring()  # as the tick does when its time has come, within a minute
        await until(lambda: workers.following)

    guarding(place, test)


def test_who_comes_next_waits_for_the_end_of_who_followed_before(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        service._do.following.reconsider()
        await until(lambda: workers.following)
        workers.may_end.clear()
        for _ in range(3):
            service.pause("app", None, ALICE)
            service.resume("app", ALICE)
        for _ in range(50):  # whoever is ready to begin begins
            await asyncio.sleep(0)
        assert workers.most == 1
        first = workers.following[0]
        workers.may_end.set()
        await until(lambda: workers.following and workers.following[0] is not first)
        assert workers.most == 1

    guarding(place, test)
