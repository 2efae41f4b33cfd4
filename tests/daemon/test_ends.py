"""Whatever fails while a job ends: it has an end, that is told, and nobody waits behind it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from dbguardd.daemon.operations import SCHEDULE
from dbguardd.errors import NoSpace, NotFound, SourceMissing, TargetExists, Unreachable, Usage, WorkerDied
from dbguardd.events import level_of
from dbguardd.states import JobState
from dbguardd.wire import EventRange, JobRow
from tests.daemon.conftest import World, ended, order, raising, started, until_cancelled
from tests.daemon.life import reporting


def run(main: Any) -> None:
    asyncio.run(main)


def test_a_bug_in_what_follows_leaves_no_job_without_an_end_and_nobody_waiting(world: World) -> None:
    world.terms = {"verify_after": True}

    async def nothing_made(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        return {"backup": None}

    async def main() -> None:
        async with world.runner(max_jobs=1) as (runner, worker):
            worker.acts = [nothing_made]
            one, two = runner.submit(order("backup")), runner.submit(order("restore", "shop"))
            assert (await ended(runner, one)).state is JobState.FAILED
            assert (await ended(runner, two)).state is JobState.DONE

    run(main())


def test_nobody_waits_because_somebody_could_not_be_told_of_an_end(world: World) -> None:
    async def main() -> None:
        async with world.runner(max_jobs=1) as (runner, _):

            def fail(row: JobRow) -> None:
                raise NoSpace("no room to read the catalog")

            runner.on_end = fail
            jobs = [runner.submit(order("restore", name)) for name in ("app", "shop")]
            assert [(await ended(runner, job)).state for job in jobs] == [JobState.DONE] * 2

    run(main())


def test_a_job_that_the_policy_refuses_when_its_turn_comes_is_remembered_as_failed(world: World) -> None:
    async def main() -> None:
        async with world.runner(max_jobs=1) as (runner, worker):
            worker.acts = [until_cancelled]
            first, second = runner.submit(order("backup", "shop")), runner.submit(order("backup"))
            await started(worker)
            world.known.remove("app")
            runner.cancel(first.id, "bob")
            assert (await ended(runner, second)).state is JobState.FAILED
        memory = world.catalog.runs.get("app", "backup")
        assert memory is not None
        assert (memory.failures, (memory.problem or {})["code"]) == (1, NotFound.code)

    run(main())


def test_an_end_that_the_catalog_could_not_keep_is_told_and_kept_later(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled, until_cancelled]
            jobs = [runner.submit(order("restore", name)) for name in ("app", "shop")]
            await started(worker, 2)
            world.catalog._session.rows("PRAGMA query_only=1")
            runner.cancel(jobs[0].id, "bob")
            assert (await ended(runner, jobs[0])).state is JobState.CANCELLED
            assert runner.trouble is not None
            assert runner.job(jobs[0].id).state is JobState.CANCELLED
            assert {row.state for row in runner.jobs("app", None, 9)} == {JobState.CANCELLED}
            assert world.catalog.jobs.get(jobs[0].id).state is JobState.RUNNING
            world.catalog._session.rows("PRAGMA query_only=0")
            runner.cancel(jobs[1].id, "bob")
            await ended(runner, jobs[1])
            assert runner.trouble is None
            assert {world.catalog.jobs.get(job.id).state for job in jobs} == {JobState.CANCELLED}
        assert world.events().count("job.cancelled") == 2

    run(main())


def test_an_audit_log_that_cannot_be_written_hides_no_end(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [until_cancelled]
            job = runner.submit(order("restore"))
            await started(worker)
            file, world.audit._file = world.audit._file, -1
            runner.cancel(job.id, "bob")
            assert (await ended(runner, job)).state is JobState.CANCELLED
            assert world.catalog.jobs.get(job.id).state is JobState.CANCELLED
            assert "audit" in (runner.trouble.message if runner.trouble else "")
            world.audit._file = file

    run(main())


class Creeping(asyncio.SelectorEventLoop):
    """A loop whose clock goes on by most of what a job waits for, whenever somebody looks at it."""

    looks = 0

    def time(self) -> float:
        self.looks += 1
        return super().time() + self.looks * 0.02


def test_no_try_is_forgotten_when_its_time_comes_while_the_queue_is_looked_at(world: World) -> None:
    world.terms = {"retries": 5, "wait_seconds": 0.03, "backoff": 1.0}

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(*(Unreachable("a") for _ in range(5)))
            assert (await ended(runner, runner.submit(order("backup")))).state is JobState.DONE

    with asyncio.Runner(loop_factory=Creeping) as runner:
        runner.run(main())


@pytest.mark.parametrize("replacing", [True, False])
def test_a_restore_in_place_that_is_cut_short_says_what_the_live_database_is(world: World, replacing: bool) -> None:
    async def dies(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
        if replacing:
            facts = {"database": "app", "target": "/srv/app.db"}
            on_message({"type": "report", "event": "restore.replacing", "facts": facts})
        raise WorkerDied("the worker was killed", detail="signal 9")

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [dies]
            problem = (await ended(runner, runner.submit(order("restore", in_place=True, confirm="app")))).problem
            assert problem is not None
            assert ("was just being replaced" in problem["detail"]) is replacing
            assert ("was not touched" in problem["detail"]) is not replacing
            assert problem["hints"] == ["dbguardctl restore undo app --confirm app"] * replacing
            assert bool(world.catalog.settings.get("replacing:app")) is replacing

            worker.acts = [reporting(("restore.done", {"database": "app", "backup": "01J", "target": "/srv/app.db"}))]
            await ended(runner, runner.submit(order("undo", confirm="app")))
            assert not world.catalog.settings.get("replacing:app")

    run(main())


def test_what_a_dead_daemon_left_half_replaced_is_told_at_the_next_start(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            facts = {"database": "app", "target": "/srv/app.db"}

            async def dies_with_the_daemon(spec: Any, on_message: Any, cancel: Any) -> dict[str, Any]:
                on_message({"type": "report", "event": "restore.replacing", "facts": facts})
                return await until_cancelled(spec, on_message, cancel)

            worker.acts = [dies_with_the_daemon]
            job = runner.submit(order("restore", in_place=True, confirm="app"))
            await started(worker)
            await asyncio.sleep(0)
            world.catalog.jobs.put(runner.job(job.id), "local")
            async with world.runner() as (next_one, _):
                assert next_one.close_leftovers() == 1
            problem = world.catalog.jobs.get(job.id).problem
            assert problem is not None
            assert "was just being replaced" in problem["detail"]

    run(main())


def test_what_a_person_has_mistyped_says_nothing_of_the_database(world: World) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(NotFound("app: backup 01 has expired"), Usage("app: 01 fits two"), NotFound("no"))
            for _ in range(2):
                row = await ended(runner, runner.submit(order("verify", backup="01")))
                assert row.state is JobState.FAILED
                assert world.catalog.runs.get("app", "verify") is None
            await ended(runner, runner.submit(replace(order("verify", backup="01"), who=SCHEDULE)))
            memory = world.catalog.runs.get("app", "verify")
            assert memory is not None
            assert memory.failures == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "more", "level"),
    [
        (TargetExists("/srv/app.db: exists"), {}, "info"),
        (Usage("01 matches 3 backups"), {}, "info"),
        (Usage("01 matches 3 backups"), {"who": SCHEDULE}, "error"),
        (Usage("a bug"), {"after_backup": True}, "error"),
        (NotFound("backup 01: listed, and not in the storage"), {}, "error"),
        (SourceMissing("/srv/app.db: is gone"), {}, "error"),
    ],
)
def test_a_user_who_mistypes_sets_off_no_alarm(world: World, error: Any, more: Any, level: str) -> None:
    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = raising(error)
            await ended(runner, runner.submit(replace(order("restore"), **more)))

    run(main())
    (failed,) = (event for event in world.catalog.events.find(EventRange(), 100) if event.event == "job.failed")
    assert level_of({**failed.facts, "event": failed.event}) == level
