"""Holds and recalls: they go through a worker to the repository, and stand in the audit log."""

from pathlib import Path

import pytest

from dbguardd.catalog import to_text
from dbguardd.daemon import Service
from dbguardd.errors import NotFound
from tests.daemon.conftest import FakeWorker
from tests.daemon.life import ALICE, Place, actions, done, live, reporting, stored


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.guard()
    return place


def test_holds_go_through_a_worker_to_the_repository(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        row = stored(1, to_text(place.wall))
        worker.acts = [
            reporting(("backup.stored", row)),
            reporting(("backup.held", {"id": row["id"], "reason": "court"})),
            reporting(("backup.released", {"id": row["id"]})),
        ]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        held = await service.hold(row["id"][:24], "court", ALICE)
        assert (held["backup"], held["holds"]) == (row["id"], ["court"])
        [listed] = service.backups("app")
        assert (listed.holds, listed.expires_at) == (["court"], None)
        released = await service.release(row["id"], ALICE)
        assert released["holds"] == []
        assert [spec["request"] for spec in worker.specs[1:]] == [
            {"backup": row["id"], "reason": "court"},
            {"backup": row["id"]},
        ]
        with pytest.raises(NotFound):
            await service.hold("nosuch", "x", ALICE)
        assert ("job.hold", "intent") in actions(service)

    live(place, test)


def test_what_expired_is_listed_and_can_be_recalled(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        rows = [stored(number, to_text(place.wall)) for number in range(2)]
        id = rows[0]["id"]
        gone = {"id": id, "reasons": ["beyond last 1"], "grace_until_at": "2026-09-14T07:00:00Z"}
        worker.acts = [
            reporting(*(("backup.stored", row) for row in rows), ("backup.expired", gone)),
            reporting(("backup.recalled", {"id": id})),
        ]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        [expired] = service.expired("app")
        assert (expired.backup.id, expired.recall_until_at) == (id, "2026-09-14T07:00:00.000Z")
        assert service.show(id)["expired"]["recall_until_at"] == expired.recall_until_at
        recalled = await service.recall(id, ALICE)
        assert (recalled["backup"], recalled["database"]) == (id, "app")
        assert service.expired("app") == []
        [kept] = [row.kept_because for row in service.backups("app") if row.id == id]
        assert recalled["kept_because"] == kept
        assert worker.specs[-1]["verb"] == "recall"
        assert worker.specs[-1]["request"] == {"backup": id}
        assert ("job.recall", "intent") in actions(service)
        with pytest.raises(NotFound, match="has not expired"):
            await service.recall(id, ALICE)

    live(place, test)
