"""While the clock is in doubt the daemon deletes nothing of its own accord, whatever starts a deletion."""

import asyncio
from datetime import timedelta

import pytest

from tests.daemon.conftest import SECONDS
from tests.daemon.life import POLICY, Caller, Place, done, live


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.write(POLICY.replace('expire = "off"', 'expire = "after-backup"'))
    place.guard()
    return place


def test_nothing_expires_after_a_backup_while_the_clock_is_in_doubt(place: Place) -> None:
    async def test(service, worker) -> None:
        async def verbs() -> list[str]:
            worker.specs.clear()
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            async with asyncio.timeout(SECONDS):
                while not service._do.runner.idle():
                    await asyncio.sleep(0.005)
            return [spec["verb"] for spec in worker.specs]

        assert await verbs() == ["backup", "expire"]
        place.wall += timedelta(days=26_000)
        assert "expire" not in await verbs()
        refused = [facts for _, event, facts in place.log.events if event == "job.refused"]
        assert {(facts["action"], facts["code"]) for facts in refused} == {("expire", "DBG-7003")}
        assert "set forward" in refused[0]["problem"]
        await done(service, service.submit("expire", {"database": "app"}, Caller(), None))  # who asks is a person
        place.wall, place.steady = place.wall + timedelta(days=2), place.steady + 2 * 86_400
        assert "expire" in await verbs()

    live(place, test)


def test_a_clock_far_ahead_of_the_last_life_is_in_doubt(place: Place) -> None:
    async def test(service, worker) -> None:
        service._do.catalog.probe(service._do.now())

    async def later(service, worker) -> None:
        assert "may have jumped" in service._do.scheduler.doubt()

    live(place, test)
    place.wall, place.steady = place.wall + timedelta(days=26_000), 10.0
    live(place, later)
