"""A job that looks busy for ever has an end: whoever owns a database can make its test restore look so."""

import asyncio
from typing import Any

import pytest

from dbguardd.states import JobState
from tests.daemon.conftest import World, ended, order


@pytest.mark.parametrize("limit", [0.05, 3600.0])
def test_a_job_that_makes_progress_for_ever_is_stopped_and_the_next_one_runs(world: World, limit: float) -> None:
    world.terms = {"limit_seconds": limit}
    stopped: list[str] = []

    async def busy(spec: Any, on_message: Any, cancel: asyncio.Event) -> dict[str, Any]:
        try:
            for number in range(1_000_000):
                on_message({"type": "progress", "step": "examine", "done_bytes": number, "total_bytes": None})
                await asyncio.sleep(0.001)
                if limit > 1 and number == 100:
                    return {}
        finally:
            stopped.append(spec["verb"])
        raise AssertionError("it was not stopped")

    async def main() -> None:
        async with world.runner() as (runner, worker):
            worker.acts = [busy]
            row = await ended(runner, runner.submit(order("verify")))
            assert stopped == ["verify"]
            if limit > 1:
                assert row.state is JobState.DONE
                return
            assert (row.state, row.problem["code"]) == (JobState.FAILED, "DBG-8002")
            assert "job_timeout" in row.problem["message"]
            world.terms = {"limit_seconds": 3600.0}
            assert (await ended(runner, runner.submit(order("backup")))).state is JobState.DONE

    asyncio.run(main())
