"""What peers may ask, what they get, and what stands in the audit log afterwards."""

import asyncio
import inspect
import json
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from dbguardd.api.service import Service as Protocol
from dbguardd.catalog import to_text
from dbguardd.daemon import Service
from dbguardd.errors import (
    AuditBroken,
    Busy,
    KeyRefused,
    NotFound,
    PolicyInvalid,
    ProofFailed,
    SourceEncrypted,
    SourceMissing,
    Unsupported,
    Usage,
)
from dbguardd.policy.model import Access
from dbguardd.states import Health, JobState, Role
from dbguardd.wire import EventRange
from tests.daemon.conftest import SECONDS, START, FakeWorker, raising, started, until_cancelled
from tests.daemon.life import ALICE, Caller, Place, actions, done, live, reporting, stored


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.guard()
    return place


def test_it_has_every_method_of_the_protocol_with_the_same_arguments() -> None:
    for name, method in inspect.getmembers(Protocol, inspect.isfunction):
        if not name.startswith("_"):
            mine = getattr(Service, name)
            assert list(inspect.signature(mine).parameters) == list(inspect.signature(method).parameters), name
            assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(method), name


def test_requests_are_checked_before_anything_is_queued(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        for verb, fields, error in (
            ("backup", {"database": "nosuch"}, NotFound),
            ("backup", {}, Usage),
            ("backup", {"database": "app", "ful": True}, Usage),
            ("recovery-sheet", {}, NotFound),
            ("sweep", {"storage": "nosuch"}, NotFound),
        ):
            with pytest.raises(error):
                service.submit(verb, fields, ALICE, None)
        assert worker.specs == []
        assert service.jobs(None, None, 10) == []

    live(place, test)


def test_the_same_key_from_the_same_user_is_the_same_job(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        worker.acts = [until_cancelled]
        first = service.submit("backup", {"database": "app"}, ALICE, "k1")
        assert service.submit("backup", {"database": "app"}, ALICE, "k1").id == first.id
        with pytest.raises(Usage):
            service.submit("verify", {"database": "app"}, ALICE, "k1")
        with pytest.raises(Busy):
            service.submit("backup", {"database": "app"}, ALICE, "k2")
        service.cancel(first.id, ALICE)
        await done(service, first)
        assert service.submit("backup", {"database": "app"}, ALICE, "k1").state is JobState.CANCELLED

    live(place, test)


def test_people_are_named_in_the_audit_log(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        worker.acts = [until_cancelled]
        job = service.submit("backup", {"database": "app"}, ALICE, None)
        await started(worker)
        service.cancel(job.id, ALICE)
        service.pause("app", 60, ALICE)
        service.resume("app", ALICE)
        await service.reload(ALICE)
        assert actions(service) == [
            ("job.backup", "asked"),
            ("job.cancel", "done"),
            ("database.pause", "done"),
            ("database.resume", "done"),
            ("policy.reload", "intent"),
            ("policy.reload", "done"),
        ]
        entry = (await service.audit(0, 1))["entries"][-1]
        assert entry["actor"] == {"user": "alice", "uid": ALICE.uid, "pid": 77, "role": "admin"}
        checked = await service.audit_verify()
        assert (checked["ok"], checked["entries"]) == (True, 6)
        file = place.state / "audit.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b"alice", b"mallo", 1))
        with pytest.raises(AuditBroken):
            await service.audit_verify()
        file.write_bytes(whole)

    live(place, test)


def test_refusals_are_recorded_and_cannot_flood(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        mallory = Caller(uid=1234, user="mallory")
        for _ in range(100):
            service.denied(mallory, "POST /v1/reload")
        service.denied(mallory, "GET /v1/status")
        place.steady += 61
        service.denied(mallory, "POST /v1/reload")
        entries = (await service.audit(0, 100))["entries"]
        assert [(entry["action"], entry["facts"]) for entry in entries] == [
            ("POST /v1/reload", {}),
            ("GET /v1/status", {}),
            ("POST /v1/reload", {"repeated": 99}),
        ]

    live(place, test)


def test_a_peer_that_makes_up_paths_cannot_flood_the_audit_log(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        mallory, trudy = Caller(uid=1234, user="mallory"), Caller(uid=1235, user="trudy")
        for second in range(3 * 60):
            place.steady += 1
            for number in range(10):
                service.denied(mallory, f"GET /v1/jobs/{second}-{number}")
        service.denied(trudy, "POST /v1/reload")
        entries = (await service.audit(0, 1000))["entries"]
        assert 3 < len(entries) <= 3 * 21 + 1
        assert entries[-1]["action"] == "POST /v1/reload"
        written = sum(1 + entry["facts"].get("repeated", 0) for entry in entries)
        assert written > 1000  # what is left out is counted

    live(place, test)


def test_roles_come_from_user_and_groups_as_the_kernel_knows_them() -> None:
    from dbguardd.daemon.peers import role_of

    access = Access(read=("group:root",), operate=("olga",), admin=("anna", "group:nosuchgroup"))
    for caller, role in (
        (Caller(uid=0), Role.ADMIN),
        (Caller(), Role.ADMIN),
        (Caller(uid=4321, user="anna"), Role.ADMIN),
        (Caller(uid=4321, user="olga"), Role.OPERATE),
        (Caller(uid=4321, user="x", gid=0), Role.READ),
        (Caller(uid=4321, user="x", groups=frozenset((0,))), Role.READ),
        (Caller(uid=4321, user="x"), None),
    ):
        assert role_of(caller, access) is role


def test_status_says_what_could_be_restored_and_what_to_do(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        [row] = service.status().databases
        assert (row.state, row.backups, row.recoverable_to_at) == (Health.UNPROVEN, 0, None)
        made = to_text(place.wall - timedelta(minutes=1))
        worker.acts = [reporting(("backup.stored", stored(1, made))), *raising(KeyRefused("storage local: wrong key"))]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        [row] = service.status().databases
        assert (row.state, row.recoverable_to_at, row.restore_seconds, row.source_bytes) == (Health.SAFE, made, 1.5, 10)
        failed = await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        [row] = service.status().databases
        assert row.state is Health.FAILING
        assert row.problem == failed.problem
        assert any("wrong key" in line for line in row.attention)
        assert any(failed.id in hint for hint in row.hints)
        worker.acts = [until_cancelled]
        job = service.submit("backup", {"database": "app"}, ALICE, None)
        assert service.status().databases[0].running_job == job.id
        [key] = service.status().keys
        assert (key.name, key.kind, key.recovery) == ("main", "machine", [])
        [storage] = service.status().storages
        assert storage.stored_bytes == 5
        service.cancel(job.id, ALICE)

    live(place, test)


def test_an_older_proof_does_not_hide_that_the_newest_backup_failed_its_own(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        rows = [stored(number, f"2026-09-12T0{number}:00:00Z", "stored", proven_at=None) for number in (5, 6)]
        bad = {"id": rows[1]["id"], "grade": "checked", "failure": "table t: 1 row is missing"}
        good = {"id": rows[0]["id"], "grade": "proven", "restore_seconds": 1.0}

        async def failing(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
            on_message({"type": "report", "event": "backup.graded", "facts": bad})
            raise ProofFailed("app: a backup did not pass")

        worker.acts = [
            reporting(*(("backup.stored", row) for row in rows)),
            failing,
            reporting(("backup.graded", good)),
        ]
        for verb in ("backup", "verify", "verify"):
            await done(service, service.submit(verb, {"database": "app"}, ALICE, None))
        [app] = service.status().databases
        assert (app.state, app.proven_backup) == (Health.FAILING, rows[0]["id"])
        assert "table t: 1 row is missing" in app.attention[0]

    live(place, test)


def test_backups_in_a_storage_that_a_database_left_can_be_restored_and_proven(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        old, new = (stored(number, f"2026-09-12T0{number}:00:00Z") for number in (1, 5))
        worker.acts = [reporting(("backup.stored", old))]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        place.write(
            place.policy.read_text()
            + f'storage = ["far"]\n[storage.far]\ntype = "directory"\npath = "{place.path}/far"\n'
        )
        await service.reload(ALICE)

        async def where(verb: str, **more: Any) -> str:
            await done(service, service.submit(verb, {"database": "app", **more}, ALICE, None))
            return str(worker.specs[-1]["storage"]["name"])

        assert [await where("restore"), await where("verify")] == ["local", "local"]
        await service.reload(ALICE)
        worker.acts = [reporting(("backup.stored", new))]
        assert await where("backup") == "far"
        assert [await where("restore"), await where("verify"), await where("verify", backup=new["id"])] == ["far"] * 3
        assert await where("restore", at="2026-09-12T04:00:00Z") == "local"
        assert await where("verify", backup=old["id"][:26]) == "local"
        assert await where("restore", backup=old["id"], dry_run=True) == "local"
        with pytest.raises(Usage, match="not a moment"):
            await where("restore", at="nonsense")

    live(place, test)


def test_a_database_that_left_the_policy_is_an_orphan_that_can_be_restored(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        worker.acts = [reporting(("backup.stored", stored(1, to_text(place.wall))))]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        place.write(place.policy.read_text().partition("[database.app]")[0])
        await service.reload(ALICE)
        [row] = service.status().databases
        assert (row.name, row.state) == ("app", Health.ORPHANED)
        assert service.backups("app")[0].kept_because == ["not in the policy: nothing expires"]
        restored = await done(service, service.submit("restore", {"database": "app", "to": "/x"}, ALICE, None))
        assert restored.state is JobState.DONE
        assert worker.specs[-1]["database"]["engine"] == "sqlite"
        with pytest.raises(NotFound):
            service.submit("backup", {"database": "app"}, ALICE, None)

    live(place, test)


def test_what_keeps_a_backup_and_until_when(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        reports = [
            ("backup.stored", stored(number, f"2026-{month:02d}-11T01:00:00Z"))
            for number, month in enumerate(range(1, 10))
        ]
        worker.acts = [reporting(*reports)]
        await done(service, service.submit("backup", {"database": "app"}, ALICE, None))
        rows = service.backups("app")
        assert len(rows) == 9
        assert all(row.kept_because for row in rows)
        assert "newest" in rows[0].kept_because
        shown = service.show(rows[3].id)
        assert (shown["kind"], shown["backup"]["id"]) == ("backup", rows[3].id)
        assert service.show("app")["kind"] == "database"
        job = service.jobs("app", "done", 10)[0]
        assert service.show(job.id)["job"]["id"] == job.id
        assert [event["event"] for event in service.show(job.id)["events"]][-1] == "job.done"
        for missing in ("nosuch", "zzz"):
            with pytest.raises(NotFound):
                service.show(missing)
        with pytest.raises(NotFound):
            service.backups("nosuch")

    live(place, test)


def test_a_range_of_events_is_in_moments_with_a_zone(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        everything = service.events(EventRange(), 1000, False)
        at = START.astimezone(timezone(timedelta(hours=2))).isoformat()
        assert service.events(EventRange(since=at), 1000, False) == everything
        assert service.events(EventRange(until=at), 1000, False) == []
        for text in ("yesterday", "2026-09-12", "2026-09-12T07:00:00", ""):
            with pytest.raises(Usage):
                service.events(EventRange(since=text), 1000, False)

    live(place, test)


def test_events_are_followed_from_where_one_was(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        worker.acts = [until_cancelled]
        job = service.submit("backup", {"database": "app"}, ALICE, None)
        stream = service.follow(0, "app", None)
        first = await anext(stream)
        assert first is not None
        assert first.event == "job.queued"
        rest = asyncio.create_task(_until_end(service.follow(first.id, None, job.id)))
        await started(worker)
        service.cancel(job.id, ALICE)
        assert [event for event in await rest] == ["job.started", "job.cancelled"]
        await stream.aclose()  # type: ignore[attr-defined]
        quiet = service.follow(service.events(EventRange(), 1000, True)[-1].id, None, None)
        beat = asyncio.create_task(anext(quiet))
        await asyncio.sleep(0)
        place.steady += 16
        service._do.runner.wakeup.wake()
        assert await asyncio.wait_for(beat, SECONDS) is None
        await quiet.aclose()  # type: ignore[attr-defined]

    live(place, test)


async def _until_end(stream: Any) -> list[str]:
    seen = []
    async for event in stream:
        if event is not None:
            seen.append(event.event)
            if event.event == "job.cancelled":
                break
    await stream.aclose()
    return seen


def test_pause_rests_the_schedule_and_says_until_when(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        answer = service.pause("app", 7200, ALICE)
        assert answer["paused_until_at"] == to_text(place.wall + timedelta(hours=2))
        [row] = service.status().databases
        assert (row.state, row.paused_until_at) == (Health.UNPROVEN, answer["paused_until_at"])
        assert service.pause("app", None, ALICE)["paused_until_at"] is None
        assert {run["state"] for run in service.schedule(50)["runs"] if run["database"] == "app"} == {"paused"}
        assert service.resume("app", ALICE)["was_paused"]
        assert not service.resume("app", ALICE)["was_paused"]
        for change in (lambda: service.pause("nosuch", 1, ALICE), lambda: service.resume("nosuch", ALICE)):
            with pytest.raises(NotFound):
                change()

    live(place, test)


def test_the_schedule_is_told_in_order(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        answer = service.schedule(4)
        assert answer["timezone"] == "Europe/Berlin"
        assert [(run["database"], run["storage"], run["verb"]) for run in answer["runs"]] == [
            ("app", None, "backup"),
            (None, "local", "sweep"),
        ] * 2
        assert answer["runs"][0]["at"].startswith("2026-09-12T23:0")

    live(place, test)


def test_protect_writes_the_policy_and_proves_the_first_backup(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        file = place.database("My Shop!")
        plan = await service.protect({"path": str(file), "name": "", "dry_run": True}, ALICE)
        assert (plan["database"], plan["wrote"], plan["job"]) == ("my-shop", None, None)
        assert not (place.path / "conf.d").exists()
        made = await service.protect({"path": str(file), "name": "", "dry_run": False}, ALICE)
        drop_in = place.path / "conf.d" / "my-shop.toml"
        assert made["wrote"] == str(drop_in)
        assert drop_in.read_text() == made["text"]
        assert drop_in.stat().st_mode & 0o777 == 0o640
        assert (made["job"]["verb"], made["job"]["request"]["verify"]) == ("backup", True)
        await done(service, service.job(made["job"]["id"]))
        assert [row.name for row in service.status().databases] == ["app", "my-shop"]
        assert [path.name for path in drop_in.parent.iterdir()] == ["my-shop.toml"]
        with pytest.raises(Usage, match="already protected") as refused:
            await service.protect({"path": str(file)}, ALICE)
        assert refused.value.detail == ""
        with pytest.raises(Usage, match="already protected") as refused:  # what does it, then?
            await service.protect({"path": str(file), "continuous": True}, ALICE)
        assert f"{drop_in}, in its table [database.my-shop]: continuous = true" in refused.value.detail
        link = place.path / "link.db"
        link.symlink_to(file)
        with pytest.raises(Usage, match="already protected"):
            await service.protect({"path": str(link)}, ALICE)
        assert ("policy.protect", "done") in actions(service)

    live(place, test)


def test_protect_refuses_what_it_cannot_protect_and_leaves_nothing_behind(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        other = place.database("other")
        encrypted = place.path / "secret.db"
        encrypted.write_bytes(bytes(range(256)) * 16)
        log = place.path / "other.db-wal"
        log.write_bytes(b"x" * 100)
        with pytest.raises(Usage, match="is a part of a database") as side:
            await service.protect({"path": str(log)}, ALICE)
        assert side.value.hints == (f"dbguardctl protect {other}",)
        log.unlink()
        for fields, error in (
            ({"path": "relative.db"}, Usage),
            ({"path": "/nosuch/file.db"}, SourceMissing),
            ({"path": str(place.path)}, Unsupported),
            ({"path": str(encrypted)}, SourceEncrypted),
            ({"path": str(other), "name": "app"}, Usage),
            ({"path": str(other), "name": "Not A Name"}, Usage),
            ({"path": str(other), "name": "../up"}, Usage),
            ({"path": str(other) + "\n"}, Usage),
        ):
            with pytest.raises(error):
                await service.protect(fields, ALICE)
        good = place.policy.read_text()
        place.policy.write_text(good + "\nnonsense = 1\n")
        with pytest.raises(PolicyInvalid):
            await service.protect({"path": str(other)}, ALICE)
        assert list((place.path / "conf.d").iterdir()) == []
        place.write(good)
        taken = place.path / "x" / "app.db"
        taken.parent.mkdir()
        taken.write_bytes(other.read_bytes())
        second = await service.protect({"path": str(taken)}, ALICE)
        assert second["database"] == "app-2"

    live(place, test)


def test_the_policy_can_be_read_and_explained(place: Place) -> None:
    async def test(service: Service, worker: FakeWorker) -> None:
        shown = service.config(True)
        assert shown["policy"]["database"]["app"]["engine"] == "sqlite"
        assert shown["origins"]["database.app.path"].startswith(str(place.policy))
        assert "origins" not in service.config(False)
        assert service.config_diff() == {"changes": [], "deletes": []}
        explained = service.config_explain("database.app.keep.daily")
        assert explained["value"] == 7
        with pytest.raises(NotFound):
            service.config_explain("database.app.kep")
        json.dumps([shown, explained, service.config_schema(), service.keys()])

    live(place, test)


def test_a_recovery_sheet_is_shown_once_and_tested(place: Place) -> None:
    secret = "AGE-SECRET-KEY-1QQPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQQPZRY9X8GF2TVDW0S3JN5"  # noqa: S105

    async def test(service: Service, worker: FakeWorker) -> None:
        worker.acts = [
            reporting(
                ("recovery.added", {"recipient": "age1abc", "key": "main"}),
                result={"identity": secret, "recipient": "age1abc"},
            ),
            reporting(("recovery.tested", {"recipient": "age1abc", "key": "main"}), result={"recipient": "age1abc"}),
            *raising(KeyRefused("no")),
        ]
        sheet = await service.recovery_sheet("main", ALICE)
        assert sheet["identity"] == secret
        assert f"{secret[16:20]} {secret[20:24]}" in sheet["sheet_text"]
        assert sheet["qr_svg"].startswith("<svg")
        assert (await service.recovery_test("main", secret, ALICE))["ok"]
        [key] = service.keys()["keys"]
        assert key["recovery"] == ["age1abc"]
        assert key["recovery_tested_at"] == to_text(place.wall)
        with pytest.raises(KeyRefused):
            await service.recovery_test("main", secret, ALICE)
        with pytest.raises(NotFound):
            await service.recovery_sheet("nosuch", ALICE)

    live(place, test)
    kept = [path.read_bytes() for path in place.state.iterdir() if path.is_file()]
    assert not any(secret.encode() in data for data in kept)
    assert secret not in str(place.log.events)
