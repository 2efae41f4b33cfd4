"""What a worker did and the catalog could not take down: the repository tells it as soon as there is room again."""

import asyncio
from pathlib import Path

import pytest

from dbguardd.states import JobState
from tests.daemon.conftest import SECONDS
from tests.daemon.life import Caller, Place, done, live, stored

STORED = "2026-09-12T07:00:00.000Z"


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.guard(retry="{ times = 0 }")
    return place


def room(service, pages: int) -> None:
    service._do.catalog._session.rows(f"PRAGMA max_page_count = {pages}")


def test_a_backup_that_the_full_catalog_did_not_take_is_found_when_there_is_room(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def test(service, worker) -> None:
        repository = Path(service._do.inforce.storage("local").path)
        repository.mkdir(parents=True)

        async def full(spec, on_message, cancel):
            (repository / "repo.json").touch()
            room(service, 1)  # no more than it has
            on_message({"type": "report", "event": "backup.stored", "facts": stored(1, STORED, note="n" * 100_000)})
            raise AssertionError("it had room")

        async def scan(spec, on_message, cancel):
            on_message({"type": "report", "event": "backup.stored", "facts": stored(1, STORED)})
            return {}

        worker.acts += [full, scan]
        job = await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
        assert (job.state, job.problem["code"]) == (JobState.FAILED, "DBG-3002")
        room(service, 1_000_000)
        async with asyncio.timeout(SECONDS):
            while not service.status().databases[0].backups:
                await asyncio.sleep(0.005)
        assert [spec["verb"] for spec in worker.specs] == ["backup", "scan"]

    live(place, test)
