"""The daemon starts once, tells systemd the truth, reloads as a whole or not at all, and stops without losing a job."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dbguardd.catalog import Catalog, to_text
from dbguardd.daemon import Clock, Setup, run
from dbguardd.daemon.paths import Level
from dbguardd.daemon.protect import Found, Wanted, plan
from dbguardd.daemon.service import Service
from dbguardd.errors import PolicyInvalid, PolicyShrinks, SecondInstance
from dbguardd.humanize import humanized
from dbguardd.states import Health, JobState
from dbguardd.worker.look import look
from dbguardd.worker.staging import sweep
from tests.daemon.conftest import SECONDS, FakeWorker, started, until_cancelled
from tests.daemon.life import POLICY, Caller, Place, Systemd, done, reporting, stored


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def measured(service: Service) -> None:
    """Wait until all was looked at from now on: who asks for the status waits for a fifth of a second only."""
    storages = service._do.views.storages
    for _ in range(2):  # the first may be a look that has begun before
        await storages.paths.measure(storages.places())


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
    yield systemd
    systemd.socket.close()


def test_systemd_hears_ready_alive_reloading_and_stopping(
    place: Place, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def main() -> list[str]:
        async with place.daemon():
            place.hangup()
            await place.until("policy.loaded", 2)
            heard: list[str] = []
            async with asyncio.timeout(SECONDS):
                while sum(message == "WATCHDOG=1" for message in heard) < 3:
                    heard += systemd.heard()
                    await asyncio.sleep(0.005)
        return heard + systemd.heard()

    place.guard()
    heard = asyncio.run(main())
    assert heard[0] == "READY=1\nSTATUS=Guarding 1 database"
    reloading = next(
        number for number, message in enumerate(heard) if message.startswith("RELOADING=1\nMONOTONIC_USEC=")
    )
    assert int(heard[reloading].rpartition("=")[2]) > 0
    assert any(message.startswith("READY=1") for message in heard[reloading:])
    said = [message for message in heard if message != "WATCHDOG=1"]  # which goes on until it has stopped
    assert said[-1].startswith("STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000")


def test_the_watchdog_starves_when_the_catalog_cannot_be_written(
    place: Place, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")

    async def main() -> None:
        async with place.daemon() as (service, _):
            service._do.catalog._session.rows("PRAGMA query_only=ON")
            await place.until("catalog.failed")
            systemd.heard()
            await place.until("catalog.failed", 4)
            assert "WATCHDOG=1" not in systemd.heard()
            service._do.catalog._session.rows("PRAGMA query_only=OFF")

    asyncio.run(main())


def test_a_second_daemon_is_refused_and_the_first_is_not_disturbed(place: Place) -> None:
    async def main() -> None:
        async with place.daemon() as (service, _):
            with pytest.raises(SecondInstance, match="another dbguardd"):
                async with place.daemon():
                    pass
            assert service.status().host == "db1"

    asyncio.run(main())


def test_a_policy_with_mistakes_is_fatal_at_start(place: Place) -> None:
    place.write("version = 1\nscheduel = 3\n")

    async def main() -> None:
        async with place.daemon():
            pass

    with pytest.raises(PolicyInvalid):
        asyncio.run(main())
    place.write(POLICY)
    asyncio.run(main())


def test_a_bad_reload_keeps_the_old_policy_and_shows_why(place: Place) -> None:
    async def main() -> None:
        async with place.daemon() as (service, _):
            place.policy.write_text("version = 1\n[database.app]\nengine = 'oracle'\n")
            place.hangup()
            await place.until("policy.refused")
            status = service.status()
            assert [database.name for database in status.databases] == ["app"]
            assert status.policy_problem is not None
            assert status.policy_problem["code"] == PolicyInvalid.code
            with pytest.raises(PolicyInvalid):
                await service.reload(Caller())
            checked = service.config_check()
            assert not checked["ok"]
            assert checked["errors"]
            place.write(good)
            await service.reload(Caller())
            assert service.status().policy_problem is None
            assert service.config_check()["ok"]

    place.guard()
    good = place.policy.read_text()
    asyncio.run(main())


def keeping(place: Place, last: int) -> None:
    place.write(POLICY)
    place.guard(keep=f"{{ last = {last} }}", min_proven="1")


def reports() -> list[tuple[str, dict[str, Any]]]:
    return [("backup.stored", stored(number, f"2026-09-{number:02d}T01:00:00Z")) for number in range(1, 9)]


def test_a_policy_that_deletes_is_refused_until_it_is_accepted(place: Place) -> None:
    keeping(place, 8)

    async def main() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            keeping(place, 2)
            diff = service.config_diff()
            assert [row["id"] for row in diff["deletes"]] == [stored(n, "")["id"] for n in (6, 5, 4, 3, 2, 1)]
            assert "database.app.keep" in {change["key"] for change in diff["changes"]}
            with pytest.raises(PolicyShrinks):
                await service.reload(Caller())
            assert service.status().policy_problem is not None
            assert "last" in service.backups("app")[-1].kept_because[0]
            accepted = await service.config_accept(Caller())
            assert len(accepted["deletes"]) == 6
            assert service.status().policy_problem is None
            assert service.backups("app")[-1].kept_because == []
            await service.reload(Caller())

    asyncio.run(main())


def test_a_policy_that_deletes_log_is_refused_until_it_is_accepted(place: Place) -> None:
    """It has no grace: what `keep_log` no longer asks for is gone with the next expiry."""
    place.guard(keep_log='"90d"', expire='"every 1d"', keep='{ within = "400d" }')

    async def main() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            row = {"chain": "B", "since_at": "2026-07-01T00:00:00.000Z", "until_at": "2026-09-12T00:00:00.000Z"}
            service._do.tell("log.known", "app", {"database": "app", "chains": [row]})
            place.write(place.policy.read_text().replace('"90d"', '"9d"'))
            (going,) = service.config_diff()["deletes"]
            assert (going["id"], going["created_at"]) == ("log", row["since_at"])
            with pytest.raises(PolicyShrinks, match="log of app"):
                await service.reload(Caller())
            await service.config_accept(Caller())
            await service.reload(Caller())
            place.write(POLICY)
            await service.reload(Caller())
            views, found = service._do.views, Found(str(place.path / "app.db"), "SQLite database", wal=True)
            planned = plan(found, Wanted(adopt="app"), views.inforce, views.catalog, place.wall)
            assert 'keep_log = "36500d"' in planned.text  # nobody knows how long it was kept

    asyncio.run(main())


def test_a_database_that_left_the_policy_is_guarded_when_it_comes_back(place: Place) -> None:
    keeping(place, 8)

    async def main() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            place.write(POLICY)
            await service.reload(Caller())
            keeping(place, 2)
            assert len(service.config_diff()["deletes"]) == 6
            with pytest.raises(PolicyShrinks):
                await service.reload(Caller())
            assert len((await service.config_accept(Caller()))["deletes"]) == 6

    asyncio.run(main())


def test_expiry_that_begins_is_guarded_although_keep_stays_the_same(place: Place) -> None:
    keeping(place, 2)

    async def main() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            place.write(place.policy.read_text().replace('expire = "off"', 'expire = "after-backup"'))
            with pytest.raises(PolicyShrinks):
                await service.reload(Caller())
            assert len((await service.config_accept(Caller()))["deletes"]) == 6
            await service.reload(Caller())

    asyncio.run(main())


@pytest.mark.parametrize("left", [None, "{", '{"databases": []}'])
def test_what_nobody_is_known_to_have_accepted_deletes_nothing(place: Place, left: str | None) -> None:
    keeping(place, 2)

    async def first() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))

    asyncio.run(first())
    file = place.state / "accepted.json"
    file.unlink()
    if left is not None:
        file.write_text(left)

    async def second() -> None:
        async with place.daemon() as (service, _):
            with pytest.raises(PolicyShrinks):
                service.submit("expire", {"database": "app"}, Caller(), None)

    asyncio.run(second())


def test_a_proof_that_the_end_of_the_daemon_prevented_is_made_at_the_next_start(place: Place) -> None:
    place.guard(verify='"after-backup"')
    row = stored(1, "2026-09-12T05:00:00Z", "stored", proven_at=None)

    async def first() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(("backup.stored", row), result={"backup": row}), until_cancelled]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            await started(worker, 2)

    asyncio.run(first())
    graded = {"id": row["id"], "grade": "proven", "restore_seconds": 1.0}

    async def second() -> None:
        async with place.daemon(reporting(("backup.graded", graded))) as (service, worker):
            await started(worker)
            assert [(spec["verb"], spec["request"]["backup"]) for spec in worker.specs] == [("verify", row["id"])]
            await place.until("job.done", 2)

    asyncio.run(second())

    async def third() -> None:
        async with place.daemon() as (_, worker):
            assert worker.specs == []

    asyncio.run(third())


def test_a_policy_that_deletes_met_at_start_freezes_expiry(place: Place) -> None:
    keeping(place, 8)

    async def first() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))

    asyncio.run(first())
    keeping(place, 2)

    async def second() -> None:
        async with place.daemon() as (service, worker):
            assert service.status().policy_problem is not None
            with pytest.raises(PolicyShrinks):
                service.submit("expire", {"database": "app"}, Caller(), None)
            await done(service, service.submit("expire", {"database": "app", "dry_run": True}, Caller(), None))
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            await service.config_accept(Caller())
            await done(service, service.submit("expire", {"database": "app"}, Caller(), None))

    asyncio.run(second())


def test_sigterm_lets_a_job_stop_at_its_safe_point_and_closes_the_api(place: Place) -> None:
    place.guard()

    async def main() -> str:
        async with place.daemon() as (service, worker):
            worker.acts = [until_cancelled]
            job = service.submit("backup", {"database": "app"}, Caller(), None)
            await started(worker)
        return job.id

    job = asyncio.run(main())
    assert place.closed
    catalog = Catalog.open(place.state / "catalog.db")
    assert catalog.jobs.get(job).state is JobState.INTERRUPTED
    catalog.close()


def test_a_damaged_catalog_is_set_aside_and_rebuilt_from_the_repository(place: Place) -> None:
    place.guard()

    async def first() -> None:
        async with place.daemon() as (service, worker):
            worker.acts = [reporting(*reports())]
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))

    asyncio.run(first())
    (place.state / "catalog.db").write_bytes(b"no catalog at all" * 1000)
    (place.state / "store").mkdir(exist_ok=True)
    (place.state / "store" / "repo.json").write_text("{}")

    async def second() -> None:
        scan = reporting(*reports(), ("repository.opened", {"storage": "local", "id": "r"}))
        async with place.daemon(scan) as (service, _):
            job = service.jobs(None, None, 1)[0]
            assert job.verb == "scan"
            await done(service, job)
            assert len(service.backups("app")) == 8
            assert any("was damaged" in line for line in service.status().attention)
            assert [entry["action"] for entry in (await service.audit(0, 10))["entries"]].count("catalog.replaced") == 1

    asyncio.run(second())
    assert len(list(place.state.glob("catalog.db.damaged-*"))) == 1


def test_what_is_due_starts_by_itself_and_its_chain_follows(place: Place) -> None:
    place.write(POLICY.replace('verify = "off"\nexpire = "off"\n', ""))
    place.guard(backup='"every 1h"', jitter='"0s"')

    async def main() -> None:
        async with place.daemon() as (service, worker):
            row = service.status().databases[0]
            assert row.state is Health.UNPROVEN
            assert row.next_verb == "backup"
            assert row.next_run_at is not None
            worker.acts = [reporting(reports()[7], result={"backup": {"id": stored(8, "")["id"]}})]
            place.wall += timedelta(hours=1)
            place.steady += 3600
            service._do.nudge.wake()
            await started(worker, 3)
            assert [spec["verb"] for spec in worker.specs] == ["backup", "verify", "expire"]
            assert {spec["actor"] for spec in worker.specs} == {"schedule"}
            await place.until("job.done", 3)
            assert service.status().databases[0].proven_backup == stored(8, "")["id"]

    asyncio.run(main())


def test_the_state_directory_is_private_but_can_be_passed_through(place: Place) -> None:
    async def main() -> None:
        async with place.daemon():
            assert place.state.stat().st_mode & 0o7777 == 0o711
            assert (place.state / "staging").stat().st_mode & 0o7777 == 0o1733
            assert (place.state / "accepted.json").stat().st_mode & 0o777 == 0o600

    asyncio.run(main())


def test_a_daemon_that_cannot_listen_leaves_no_job_behind(place: Place) -> None:
    place.guard(verify='"after-backup"')
    row = stored(1, "2026-09-12T05:00:00Z", "stored", proven_at=None)
    jobs: list[str] = []

    async def first() -> None:
        async with place.daemon(reporting(("backup.stored", row), result={}), until_cancelled) as (service, worker):
            await done(service, service.submit("backup", {"database": "app"}, Caller(), None))
            await started(worker, 2)

    async def second() -> None:
        worker = FakeWorker(acts=[until_cancelled])

        async def serve(service: Any) -> Any:
            await started(worker)
            jobs.extend(job.id for job in service.jobs("app", "running", 5))
            raise SecondInstance("another process listens there")

        clock = Clock(lambda: place.wall, lambda: place.steady)
        with pytest.raises(SecondInstance):
            await run(Setup(place.policy, place.state, worker, serve, place.log, "db1", "0123", clock, look, sweep))

    asyncio.run(first())
    asyncio.run(second())
    catalog = Catalog.open(place.state / "catalog.db")
    assert [catalog.jobs.get(job).state for job in jobs] == [JobState.INTERRUPTED]
    catalog.close()


def test_a_full_state_directory_is_something_to_look_at(place: Place) -> None:
    async def main() -> None:
        async with place.daemon() as (service, _):
            await service.look()
            assert not service.status().attention
            service._do.views.storages.paths._look = lambda path: Level(1 << 20, 1 << 30, "")
            await measured(service)
            (said,) = service.status().attention
            assert said.startswith(f"the state directory {place.state} has only 1 MiB free")

    asyncio.run(main())


def test_a_daemon_that_starts_writes_nothing_again_that_is_there(place: Place) -> None:
    async def main() -> int:
        async with place.daemon():
            return (place.state / "accepted.json").stat().st_ino

    assert asyncio.run(main()) == asyncio.run(main())  # its disk may be full


def test_a_full_storage_is_told_in_sizes(place: Place) -> None:
    place.guard()

    async def main() -> None:
        async with place.daemon() as (service, _):
            service._do.views.storages.paths._look = lambda path: Level(1 << 20, 1 << 30, "")
            await measured(service)
            (row,) = service.status().storages
            assert row.problem is not None
            assert humanized(row.problem["detail"]) == "1 MiB are free, the policy keeps 102 MiB free."

    asyncio.run(main())


def test_what_takes_the_files_of_a_server_takes_a_storage_beside_them(place: Place) -> None:
    """Not where its socket is: the last backup knew where its files are."""
    place.policy.write_text(POLICY + '[database.pg]\nengine = "postgresql"\nurl = "postgresql:///"\nbackup = "daily"\n')

    async def main() -> None:
        async with place.daemon() as (service, _):
            facts = {**stored(1, to_text(place.wall)), "database": "pg", "engine": "postgresql", "storage": "local"}
            service._do.tell("backup.stored", "pg", {**facts, "directory": "/data/main"})
            on_socket = Level(1 << 40, 1 << 40, device=1)
            disk = Level(1 << 40, 1 << 40, device=2)
            service._do.views.storages.paths._look = lambda path: on_socket if "postgresql" in path else disk
            await measured(service)
            (row,) = service.status().storages
            assert row.beside == ["pg"]

    asyncio.run(main())


def test_half_a_restore_in_place_is_something_to_look_at_for_as_long_as_it_can_be_undone(place: Place) -> None:
    place.guard()

    async def main() -> None:
        async with place.daemon() as (service, _):
            service._do.tell("restore.replacing", "app", {"database": "app", "target": "/srv/app.db"})
            (row,) = service.status().databases
            assert "a restore in place was interrupted" in row.attention[-1]
            assert "dbguardctl restore undo app" in row.hints
            place.wall += timedelta(days=8)
            assert not any("restore in place" in line for line in service.status().databases[0].attention)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("leads_to", "how"), [("store", "are the same directory"), ("store/in", "are inside one another")]
)
def test_two_storages_that_are_one_by_a_link_are_told(place: Place, tmp_path: Path, leads_to: str, how: str) -> None:
    (tmp_path / "store" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / leads_to)
    (tmp_path / "other").mkdir()
    table = '[storage.{0}]\ntype = "directory"\npath = "{1}/{0}"\n'
    place.policy.write_text(POLICY + "".join(table.format(name, tmp_path) for name in ("store", "link", "other")))

    async def main() -> None:
        async with place.daemon() as (service, _):
            await measured(service)
            said = {row.name: (row.ok, (row.problem or {}).get("message", "")) for row in service.status().storages}
            assert said["other"] == (True, "")
            assert said["link"] == (False, f"storages link and store {how}, through a link or a mount")
            assert said["store"] == (False, f"storages store and link {how}, through a link or a mount")

    asyncio.run(main())
