"""Every job that was accepted comes to one recorded end, and no two of them get in each other's way."""

import asyncio
from typing import Any

import pytest

from dbguardd.catalog import to_text
from dbguardd.errors import (
    Busy,
    Cancelled,
    GuardError,
    Interrupted,
    KeyRefused,
    NoSpace,
    NotFound,
    ProofFailed,
    Stalled,
    Unreachable,
    WorkerDied,
)
from dbguardd.events import level_of
from dbguardd.states import JobState
from dbguardd.wire import EventRange
from tests.daemon.conftest import ALICE, START, World, ended, order, raising, started, until_cancelled

ROW = {
    **{"id": "01JB0000000000000000000001", "database": "app", "engine": "sqlite", "created_at": to_text(START)},
    **{"kind": "full", "method": "pages", "grade": "stored", "source_bytes": 10, "stored_bytes": 5, "note": ""},
}


async def storing(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
    on_message({"type": "progress", "step": "snapshot", "done_bytes": 7, "total_bytes": 10})
    on_message({"type": "report", "event": "backup.stored", "facts": dict(ROW)})
    return {"backup": dict(ROW)}


def run(main: Any) -> None:
    asyncio.run(main)


def test_a_job_runs_and_its_end_is_kept(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [storing]
            row = await ended(runner, runner.submit(order("backup", note="n")))
            assert (row.state, row.result, row.problem) == (JobState.DONE, {"backup": ROW}, None)
            assert (row.step, row.done_bytes, row.total_bytes) == ("snapshot", 7, 10)
            assert runner.idle()
            spec = worker.specs[0]
            assert spec["request"] == {"database": "app", "note": "n"}
            assert (spec["job"], spec["verb"], spec["actor"]) == (row.id, "backup", "alice")
        assert world.events() == ["job.queued", "job.started", "backup.stored", "job.done"]
        [backup] = world.catalog.backups.of("app")
        assert (backup.id, backup.storage) == (ROW["id"], "local")
        memory = world.catalog.runs.get("app", "backup")
        assert memory is not None
        assert (memory.started_at, memory.failures) == (to_text(START), 0)
        assert memory.succeeded_at is not None
        assert world.catalog.jobs.get(row.id) == row

    run(main())


def test_unknown_databases_are_refused_before_anything_is_queued(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, _):
            with pytest.raises(NotFound):
                runner.submit(order("backup", "nosuch"))
        assert world.events() == []

    run(main())


def test_one_job_at_a_time_for_each_database_and_no_more_than_allowed_in_all(world: World) -> None:
    async def main() -> None:
        async with world.runner(max_jobs=2) as (runner, worker):
            gate = asyncio.Event()

            async def hold(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
                await gate.wait()
                return {}

            worker.acts = [hold, hold, hold, hold]
            jobs = [runner.submit(order(*what)) for what in (("backup",), ("verify",), ("backup", "shop"))]
            jobs.append(runner.submit(order("backup", "crm")))
            await started(worker, 2)
            assert [runner.job(job.id).state for job in jobs] == ["running", "queued", "running", "queued"]
            assert runner.active("app") == runner.job(jobs[0].id)
            gate.set()
            rows = [await ended(runner, job) for job in jobs]
            assert {row.state for row in rows} == {JobState.DONE}
            assert worker.most == 2

    run(main())


def test_a_sweep_has_its_storage_for_itself_and_is_not_starved(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            gates = [asyncio.Event() for _ in range(4)]

            async def hold(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
                await gates[len(worker.specs) - 1].wait()
                return {}

            worker.acts = [hold] * 4
            first = runner.submit(order("backup", "app"))
            sweep = runner.submit(order("sweep", None, storage="local"))
            other = runner.submit(order("sweep", None, storage="elsewhere"))
            behind = runner.submit(order("backup", "shop"))
            await started(worker, 2)
            assert runner.job(other.id).state == "running"
            assert [runner.job(job.id).state for job in (first, sweep, behind)] == ["running", "queued", "queued"]
            gates[0].set()
            gates[1].set()
            await started(worker)
            assert [runner.job(job.id).state for job in (sweep, behind)] == ["running", "queued"]
            gates[2].set()
            gates[3].set()
            await ended(runner, behind)

    run(main())


def test_the_same_again_is_busy_and_names_the_job(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            first = runner.submit(order("backup"))
            with pytest.raises(Busy) as busy:
                runner.submit(order("backup"))
            assert busy.value.facts["job"] == first.id
            runner.submit(order("backup", "shop"))
            runner.submit(order("expire", dry_run=True))
            runner.submit(order("expire"))

    run(main())


def test_what_may_pass_is_tried_again_with_growing_waits(world: World) -> None:
    world.terms = {"retries": 3, "wait_seconds": 0.001, "backoff": 2.0}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [*raising(Unreachable("a"), WorkerDied("b"), NoSpace("c")), storing]
            row = await ended(runner, runner.submit(order("backup")))
            assert (row.state, row.attempt, row.problem) == (JobState.DONE, 4, None)
        waits = [e.facts["wait_seconds"] for e in world.catalog.events.find(EventRange(), 100) if "retry" in e.event]
        assert waits == [0.001, 0.002, 0.004]

    run(main())


@pytest.mark.parametrize(
    ("verb", "error", "attempts"),
    [
        ("backup", Unreachable("storage local does not answer"), 3),
        ("backup", Stalled("no progress for 600 s"), 3),
        ("backup", KeyRefused("no"), 1),
        ("verify", ProofFailed("no"), 1),
        ("restore", Unreachable("no"), 1),
        ("undo", WorkerDied("no"), 1),
    ],
)
def test_failures_end_with_their_problem(world: World, verb: str, error: GuardError, attempts: int) -> None:
    world.terms = {"retries": 2, "wait_seconds": 0.001}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(*[error] * 5)
            row = await ended(runner, runner.submit(order(verb)))
            assert (row.state, row.attempt, row.problem) == (JobState.FAILED, attempts, error.problem())
            assert len(worker.specs) == attempts
            memory = world.catalog.runs.get("app", verb)
            assert memory is not None
            assert (memory.failures, memory.problem) == (1, error.problem())
            worker.acts = [until_cancelled]
            job = runner.submit(order(verb))
            runner.cancel(job.id, "bob")
            await ended(runner, job)
            assert world.catalog.runs.get("app", verb).problem == error.problem()  # type: ignore[union-attr]
            worker.acts = []
            await ended(runner, runner.submit(order(verb)))
            again = world.catalog.runs.get("app", verb)
            assert again is not None
            assert (again.failures, again.failing_since_at, again.problem) == (0, None, None)
            worker.acts = raising(*[Unreachable("no")] * 5)  # who wants a plan sits there and waits for it
            assert (await ended(runner, runner.submit(order("expire", dry_run=True)))).attempt == 1

    run(main())


def test_no_try_outside_the_window(world: World) -> None:
    world.terms = {"retries": 9, "wait_seconds": 60.0, "window_seconds": 30.0}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(Unreachable("x"))
            row = await ended(runner, runner.submit(order("backup")))
            assert (row.state, row.attempt) == (JobState.FAILED, 1)

    run(main())


def test_a_retry_that_waits_lets_others_pass_and_can_be_cancelled(world: World) -> None:
    world.terms = {"retries": 1, "wait_seconds": 1000.0}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(Unreachable("x"))
            first = runner.submit(order("backup"))
            await started(worker)
            restored = await ended(runner, runner.submit(order("restore")))
            assert restored.state is JobState.DONE
            waiting = runner.job(first.id)
            assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 2)
            assert waiting.problem is not None
            assert runner.cancel(first.id, "bob").state is JobState.CANCELLED

    run(main())


def test_what_waits_for_its_next_try_is_tried_when_a_person_asks_for_it(world: World) -> None:
    """Of a storage too, which belongs to no database."""
    world.terms = {"retries": 1, "wait_seconds": 1000.0}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            for asked in (order("backup"), order("sweep", None, storage="local")):
                worker.acts = raising(Unreachable("x"))
                first = runner.submit(asked)
                await started(worker)
                while runner.job(first.id).problem is None:
                    await asyncio.sleep(0)
                assert runner.submit(asked).id == first.id
                assert (await ended(runner, first)).state is JobState.DONE

    run(main())


def test_cancel_stops_what_runs_what_waits_and_nothing_that_ended(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            one, two = runner.submit(order("backup")), runner.submit(order("verify"))
            await started(worker)
            assert runner.cancel(two.id, "bob").state is JobState.CANCELLED
            assert runner.cancel(one.id[:-1] + "1", "bob").state is JobState.RUNNING
            row = await ended(runner, one)
            assert row.state is JobState.CANCELLED
            assert row.problem is not None
            assert row.problem["code"] == Cancelled.code
            with pytest.raises(Busy):
                runner.cancel(one.id, "bob")
            with pytest.raises(NotFound):
                runner.cancel("nosuch", "bob")
            memory = world.catalog.runs.get("app", "backup")
            assert memory is not None
            assert memory.failures == 0

    run(main())


def test_stopping_interrupts_everything_and_the_schedule_forgets_nothing(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            one, two = runner.submit(order("backup")), runner.submit(order("verify"))
            await started(worker)
            await runner.stop(5)
            assert [world.catalog.jobs.get(job.id).state for job in (one, two)] == ["interrupted"] * 2
            assert world.catalog.runs.get("app", "backup") is None
            with pytest.raises(Interrupted):
                runner.submit(order("backup"))

    run(main())


def test_a_worker_that_does_not_stop_is_killed_with_the_daemon(world: World) -> None:
    async def deaf(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [deaf]
            job = runner.submit(order("backup"))
            await started(worker)
            await runner.stop(0.01)
            assert world.catalog.jobs.get(job.id).state is JobState.INTERRUPTED

    run(main())


def test_leftovers_of_an_earlier_daemon_are_interrupted_at_start(world: World) -> None:
    async def first() -> None:
        worker_is_there = asyncio.Event()
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            runner.submit(order("backup"))
            runner.submit(order("verify"))
            await started(worker)
            world.snapshot = (world.path / "catalog.db-wal").read_bytes()  # type: ignore[attr-defined]
            world.base = (world.path / "catalog.db").read_bytes()  # type: ignore[attr-defined]
            worker_is_there.set()

    run(first())
    world.close()
    (world.path / "catalog.db").write_bytes(world.base)  # type: ignore[attr-defined]
    (world.path / "catalog.db-wal").write_bytes(world.snapshot)  # type: ignore[attr-defined]
    world.open()

    async def second() -> None:
        async with world.runner() as (runner, _):
            assert runner.close_leftovers() == 2
            assert runner.close_leftovers() == 0
            rows = runner.jobs(None, None, 10)
            assert {row.state for row in rows} == {JobState.INTERRUPTED}
            assert all(row.problem and row.problem["code"] == Interrupted.code for row in rows)
            assert world.catalog.runs.get("app", "backup") is None

    run(second())


def test_a_backup_is_proved_after_it_was_made_when_the_policy_or_the_request_says_so(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [storing]
            plain = await ended(runner, runner.submit(order("backup")))
            assert plain.result is not None
            assert "verify_job" not in plain.result
            for how in ("request", "policy"):
                if how == "policy":
                    world.terms = {"verify_after": True}
                worker.acts = [storing]
                row = await ended(runner, runner.submit(order("backup", verify=how == "request")))
                assert row.result is not None
                proof = await ended(runner, runner.job(row.result["verify_job"]))
                assert (proof.verb, proof.request) == ("verify", {"database": "app", "backup": ROW["id"]})
                assert (proof.state, proof.actor) == (JobState.DONE, "alice")

    run(main())


def test_a_failed_backup_is_not_proved(world: World) -> None:
    world.terms = {"verify_after": True}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(KeyRefused("x"))
            await ended(runner, runner.submit(order("backup")))
            assert [spec["verb"] for spec in worker.specs] == ["backup"]

    run(main())


def test_what_destroys_is_announced_in_the_audit_log_before_it_starts(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):

            async def look(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
                [intent] = world.audit.show(0, 10)
                assert (intent.action, intent.outcome, intent.actor) == ("job.expire", "intent", ALICE)
                assert intent.facts["job"] == spec["job"]
                return {}

            worker.acts = [look, until_cancelled]
            row = await ended(runner, runner.submit(order("expire")))
            assert row.state is JobState.DONE
            await started(worker)
            runner.cancel(runner.submit(order("undo")).id, "alice")
            await ended(runner, runner.jobs("app", None, 1)[0])
            await ended(runner, runner.submit(order("expire", dry_run=True)))
            await ended(runner, runner.submit(order("check")))
        outcomes = [(entry.action, entry.outcome) for entry in world.audit.show(0, 100)]
        assert outcomes[:2] == [("job.expire", "intent"), ("job.expire", "done")]
        assert all(action in ("job.expire", "job.undo") for action, _ in outcomes)
        world.audit.verify()

    run(main())


def test_secrets_reach_the_worker_and_the_one_who_asked_and_nothing_else(world: World) -> None:
    from dataclasses import replace

    secret = "AGE-SECRET-KEY-1XYZ"

    async def sheet(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        return {"identity": secret}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [sheet]
            result = await runner.perform(order("recovery-sheet", None))
            assert result == {"identity": secret}
            test = replace(order("recovery-test", None), hidden={"identity": secret})
            await runner.perform(test)
            assert worker.specs[1]["request"] == {"identity": secret}
            worker.acts = raising(KeyRefused("no"))
            with pytest.raises(KeyRefused):
                await runner.perform(test)
        kept = [(world.path / name).read_bytes() for name in ("catalog.db", "catalog.db-wal", "audit.jsonl")]
        assert not any(secret.encode() in data for data in kept)
        assert secret not in str(world.log.events)

    run(main())


def test_a_scan_replaces_the_index_of_its_storage_in_one_step(world: World) -> None:
    async def scan(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        for number in range(3):
            facts = {**ROW, "id": f"01JB{number:022d}"}
            on_message({"type": "report", "event": "backup.stored", "facts": facts})
            assert world.catalog.backups.of("app") in ([], before)
        on_message({"type": "report", "event": "repository.opened", "facts": {"storage": "local", "id": "r1"}})
        return {"backups": 3}

    before: list[Any] = []

    async def main() -> None:
        async with world.runner() as (runner, worker):
            for _ in range(2):
                worker.acts = [scan]
                row = await ended(runner, runner.submit(order("scan", None, storage="local")))
                assert row.state is JobState.DONE
                before[:] = world.catalog.backups.of("app")
                assert len(before) == 3
            assert world.events().count("backup.stored") == 0
            assert worker.specs[1]["storage"]["repository_id"] == "r1"

    run(main())


def test_a_bug_fails_the_job_and_not_the_daemon(world: World) -> None:
    async def bad_facts(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        on_message({"type": "report", "event": "backup.stored", "facts": {"id": "x"}})
        return {}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [*raising(ZeroDivisionError("boom")), bad_facts]
            for _ in range(2):
                row = await ended(runner, runner.submit(order("check")))
                assert row.state is JobState.FAILED
                assert row.problem is not None
                assert row.problem["code"] == "DBG-0008"
            assert (await ended(runner, runner.submit(order("backup")))).state is JobState.DONE

    run(main())


def test_waiting_ends_with_its_time_and_followers_hear_of_every_end(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            job = runner.submit(order("backup"))
            assert (await runner.wait(job.id, 0.01)).state in (JobState.RUNNING, JobState.QUEUED)
            heard = asyncio.create_task(runner.wakeup.wait(10))
            await started(worker)
            runner.cancel(job.id, "bob")
            assert await heard
            assert not await runner.wakeup.wait(0.001)

    run(main())


def test_old_backups_go_after_the_new_one_is_proved_and_not_when_that_fails(world: World) -> None:
    world.terms = {"verify_after": True, "expire_after": True}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            for outcome, verbs in (
                ([], ["backup", "verify", "expire"]),
                (raising(ProofFailed("x")), ["backup", "verify"]),
            ):
                worker.specs.clear()
                worker.acts = [storing, *outcome]
                await ended(runner, runner.submit(order("backup")))
                while not runner.idle():
                    assert await runner.wakeup.wait(10)
                assert [spec["verb"] for spec in worker.specs] == verbs
            worker.specs.clear()
            await ended(runner, runner.submit(order("verify")))
            assert runner.idle()
            assert [spec["verb"] for spec in worker.specs] == ["verify"]

    run(main())


def test_a_dry_run_that_fails_is_no_failure_of_what_it_would_do(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(KeyRefused("no"))
            await ended(runner, runner.submit(order("expire", dry_run=True)))

    run(main())
    (failed,) = (e for e in world.catalog.events.find(EventRange(), 100) if e.event == "job.failed")
    assert failed.facts["dry_run"] and level_of({**failed.facts, "event": failed.event}) == "debug"
