"""A mistaken request is refused at once, unless only the storage can show that it is mistaken."""

from pathlib import Path

import pytest

from dbguardd.daemon import Service
from dbguardd.daemon.live import Order
from dbguardd.daemon.operations import SCHEDULE
from dbguardd.errors import NotFound, Unsupported, Usage
from dbguardd.states import JobState
from tests.daemon.conftest import FakeWorker, until_cancelled
from tests.daemon.life import ALICE, Place, done, live, reporting, stored


def test_what_the_catalog_shows_to_be_mistaken_does_not_become_a_job(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.guard()

    async def test(service: Service, worker: FakeWorker) -> None:
        mine, others = stored(1, "2026-09-12T05:00:00Z"), stored(2, "2026-09-12T06:00:00Z", database="crm")
        worker.acts = [reporting(("backup.stored", mine), ("backup.stored", others))]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        ran = len(worker.specs)
        for verb, fields, what in (
            ("restore", {"backup": "01KNOWN"}, "app has no backup 01KNOWN"),
            ("restore", {"backup": others["id"]}, f"app: backup {others['id']} is one of crm"),
            ("query", {"sql": "SELECT 1", "backup": others["id"]}, "is one of crm"),
            ("restore", {"at": "2026-09-12T04:59:59Z"}, "app has no backup as old as"),
            ("diff", {"older": "2026-09-12T04:59:59Z"}, "app has no backup as old as"),
            ("restore", {"to": "/proc/x"}, "nothing can be restored to /proc/x"),
            ("restore", {"lsn": "0/100"}, "only the log of a PostgreSQL cluster has positions"),
            ("restore", {"name": "before", "dry_run": True}, "only the log of a PostgreSQL cluster has positions"),
            ("restore", {"at": "2026-09-12T05:30:00Z", "backup": mine["id"]}, "give only one of"),
        ):
            with pytest.raises((NotFound, Usage, Unsupported), match=what):
                service.submit(verb, {"database": "app", **fields}, ALICE, None)
        with pytest.raises(NotFound, match="no such database") as unknown:
            service.submit("restore", {"database": "nobody"}, ALICE, None)
        assert unknown.value.detail == "Databases: app, crm."  # each once, though policy and catalog both have app
        assert (len(worker.specs), len(service.jobs(None, None, 10))) == (ran, 1)
        worker.acts = [until_cancelled]
        scan = service._do.runner.submit(Order("scan", {}, SCHEDULE, storage="local"))
        unsure = service.submit("restore", {"database": "app", "backup": "01KNOWN"}, ALICE, None)  # it may find one
        service.cancel(scan.id, ALICE)
        assert (await done(service, unsure)).state is JobState.DONE

    live(place, test)
