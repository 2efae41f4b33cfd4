"""Whose log is followed, when, by whom: one follower at a time, and none that nobody knows of."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dbguardd.catalog import servers, to_text
from dbguardd.daemon.following import Base
from dbguardd.errors import Cancelled, NoSpace, ServerUnreachable
from tests.daemon.conftest import SECONDS
from tests.daemon.life import Caller, Place, live, stored

ALICE = Caller()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.guard(continuous="true")
    return place


class Workers:
    """Plays every follower: it lives until it is told to end, and then until it may."""

    def __init__(self) -> None:
        self.following: list[Any] = []
        self.most = 0
        self.begun: list[dict[str, Any]] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, spec: Any, on_message: Any, cancel: asyncio.Event, *, stall_timeout: float) -> Any:
        if spec["verb"] == "restore":  # somebody looks whether the database is used
            return {"plan": {"in_use": False}}
        self.following.append(on_message)
        self.most = max(self.most, len(self.following))
        for facts in self.begun[-1:]:
            on_message({"type": "report", "event": "log.begun", "facts": facts})
        await cancel.wait()
        await self.may_end.wait()
        self.following.remove(on_message)
        raise Cancelled("cancelled")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def guarding(place: Place, test: Any, **backup: Any) -> None:
    """Run a test in a daemon that knows a backup of the database, and so follows its log."""

    async def main(service: Any, worker: Any) -> None:
        workers = Workers()
        service._do.following._environment = _with(service, workers)
        facts = {**stored(1, to_text(place.wall)), "storage": "local", **backup}
        service._do.tell("backup.stored", "app", facts)
        try:
            await test(service, workers)
        finally:
            workers.may_end.set()

    live(place, main)


def _with(service: Any, workers: Workers) -> Any:
    return replace(service._do.following._environment, run_worker=workers)


def rest(service: Any) -> None:
    """Let nobody follow, as while the database is replaced."""
    service._do.following._quiet.add("app")
    service._do.following.reconsider()


def resume(service: Any) -> None:
    """Let somebody follow again."""
    service._do.following._quiet.discard("app")
    service._do.following.reconsider()


def test_who_comes_next_waits_for_the_end_of_who_followed_before(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        service._do.following.reconsider()
        await until(lambda: workers.following)
        workers.may_end.clear()
        for _ in range(3):
            rest(service)
            resume(service)
        for _ in range(50):  # whoever is ready to begin begins
            await asyncio.sleep(0)
        assert workers.most == 1
        first = workers.following[0]
        workers.may_end.set()
        await until(lambda: workers.following and workers.following[0] is not first)
        assert workers.most == 1

    guarding(place, test)


def test_nobody_begins_to_follow_while_a_database_is_replaced(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        await until(lambda: not workers.following)
        replaced = asyncio.Event()
        spec = {"verb": "restore", "request": {"in_place": True}, "database": {"name": "app"}}

        async def replace_it() -> None:
            async with service._do.following.undisturbed(spec):
                await replaced.wait()

        job = asyncio.create_task(replace_it())
        await asyncio.sleep(0)
        service._do.following.reconsider()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not workers.following
        replaced.set()
        await job
        await until(lambda: workers.following)

    guarding(place, test)


def test_a_replacement_waits_for_who_was_told_to_leave_before(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        service._do.following.reconsider()
        await until(lambda: workers.following)
        workers.may_end.clear()
        service._do.following._end("app")
        spec = {"verb": "undo", "request": {}, "database": {"name": "app"}}

        async def replace_it() -> int:
            async with service._do.following.undisturbed(spec):
                return len(workers.following)

        job = asyncio.create_task(replace_it())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not job.done()
        workers.may_end.set()
        assert await job == 0

    guarding(place, test)


@pytest.mark.parametrize(("minutes", "asked"), [(-1, False), (1, True)])
def test_a_log_without_a_backup_to_begin_with_gets_one_whoever_began_it(
    place: Place, minutes: int, asked: bool
) -> None:
    """The daemon may have ended between the beginning of a log and the backup that it asks for."""

    async def test(service: Any, workers: Workers) -> None:
        begun = to_text(place.wall + timedelta(minutes=minutes))
        facts = {"database": "app", "chain": "0" * 26, "at": to_text(place.wall), "begun_at": begun, "because": ""}
        workers.begun.append({**facts, "continued": True, "stored_until_at": None})
        service._do.following.reconsider()
        await until(lambda: workers.following)
        until_at = to_text(place.wall + timedelta(minutes=2))
        told = {"chain": "0" * 26, "segment": 0, "until_at": until_at}
        workers.following[0]({"type": "report", "event": "reached", "facts": told})
        for _ in range(50):
            await asyncio.sleep(0)
        assert [row.verb for row in service.jobs("app", None, 9)] == (["backup"] if asked else [])

    guarding(place, test)


def test_a_catalog_that_cannot_be_written_keeps_no_log_from_being_followed(place: Place) -> None:
    class Full:
        def __init__(self, catalog: Any) -> None:
            self.backups = catalog.backups

        def record(self, *_: object) -> None:
            raise NoSpace("the catalog cannot be written")

    async def test(service: Any, workers: Workers) -> None:
        events, at = service._do.runner.events, to_text(place.wall)
        facts = {"database": "app", "chain": "0" * 26, "at": at, "begun_at": at, "because": "", "continued": True}
        workers.begun.append({**facts, "stored_until_at": None})
        catalog, events._catalog = events._catalog, Full(events._catalog)
        service._do.following.reconsider()
        await until(lambda: workers.following)
        for _ in range(50):
            await asyncio.sleep(0)
        assert workers.following
        assert service._do.following.problem("app") is None
        assert "catalog.failed" in [event for _, event, _ in place.log.events]
        events._catalog = catalog

    guarding(place, test)


async def _begun(place: Place, service: Any, workers: Workers) -> tuple[Any, str]:
    """Let a follower begin chain B now; return what follows, and that moment."""
    at = to_text(place.wall)
    facts = {"database": "app", "chain": "B", "at": at, "begun_at": at, "because": "new", "continued": False}
    workers.begun.append({**facts, "stored_until_at": None})
    service._do.following.reconsider()
    await until(lambda: workers.following)
    return service._do.following, at


def test_a_scan_that_looked_before_a_log_was_begun_does_not_take_it_away(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        following, at = await _begun(place, service, workers)
        later = to_text(place.wall + timedelta(minutes=2))
        known = {"database": "app", "chains": [{"chain": "A", "since_at": "2026-01-01T00:00:00.000Z", "until_at": at}]}
        service._do.tell("log.known", "app", known)
        told = {"chain": "B", "segment": 1, "until_at": later}
        workers.following[0]({"type": "report", "event": "reached", "facts": told})
        assert [(row.chain, row.since_at, row.until_at) for row in following.covered("app")][1:] == [("B", at, later)]
        rest(service)
        await until(lambda: not workers.following)
        await until(lambda: not following._alive)
        assert [row.chain for row in following.covered("app")] == ["A", "B"]

    guarding(place, test)


def test_what_lies_before_a_hole_is_not_said_to_reach_over_it(place: Place) -> None:
    """A chain that lacks something is several rows: neither a scan nor a follower makes the first of them longer."""

    async def test(service: Any, workers: Workers) -> None:
        following, at = service._do.following, to_text(place.wall)
        hole, behind, later = (to_text(place.wall + timedelta(minutes=minutes)) for minutes in (5, 6, 60))
        facts = {"database": "app", "chain": "B", "at": at, "begun_at": at, "because": "new", "continued": False}
        workers.begun.append({**facts, "stored_until_at": None})
        following.reconsider()
        await until(lambda: workers.following)
        reached = {"type": "report", "event": "reached", "facts": {"chain": "B", "segment": 9, "until_at": later}}
        workers.following[0](reached)
        rest(service)
        await until(lambda: not following._alive)  # it was written down
        rows = [
            {"chain": "B", "since_at": at, "until_at": hole},
            {"chain": "B", "since_at": behind, "until_at": behind},
        ]
        service._do.tell("log.known", "app", {"database": "app", "chains": rows})
        wanted = [("B", at, hole), ("B", behind, later)]
        assert [(row.chain, row.since_at, row.until_at) for row in following.covered("app")] == wanted
        workers.begun = [{**facts, "continued": True}]
        resume(service)
        await until(lambda: workers.following)
        workers.following[0](reached)
        assert [(row.chain, row.since_at, row.until_at) for row in following.covered("app")] == wanted

    guarding(place, test)


def test_after_a_clock_that_was_ahead_nothing_is_claimed_of_a_time_to_come(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        following, at = service._do.following, to_text(place.wall)
        facts = {"database": "app", "chain": "B", "at": at, "begun_at": at, "because": "new", "continued": False}
        workers.begun.append({**facts, "stored_until_at": None})
        following.reconsider()
        await until(lambda: workers.following)
        ahead, right = (to_text(place.wall + timedelta(minutes=minutes)) for minutes in (9000, 1))
        for segment, moment in enumerate((ahead, right)):
            told = {"chain": "B", "segment": segment + 1, "until_at": moment}
            workers.following[0]({"type": "report", "event": "reached", "facts": told})
        assert [row.until_at for row in following.covered("app")] == [right]
        rest(service)
        await until(lambda: not following._alive)
        assert [row.until_at for row in following.covered("app")] == [right]

    guarding(place, test)


def test_nothing_is_claimed_of_a_storage_at_another_path_before_it_was_read(place: Place) -> None:
    """There may be an older copy; and the last word of who followed into the old one does not count."""

    async def test(service: Any, workers: Workers) -> None:
        following, at = await _begun(place, service, workers)
        later = to_text(place.wall + timedelta(minutes=5))
        told = {"chain": "B", "segment": 1, "until_at": later}
        workers.following[0]({"type": "report", "event": "reached", "facts": told})
        assert [row.until_at for row in following.covered("app")] == [later]
        service._do.catalog.settings.put("repository:local", "r")  # it was read once
        (place.path / "copy").mkdir()
        (place.path / "copy" / "repo.json").write_text("{}")
        place.write(f'{place.policy.read_text()}\n[storage.local]\ntype = "directory"\npath = "{place.path}/copy"\n')
        await service.reload(ALICE)
        await until(lambda: not workers.following and not following._alive)  # no backup was found there
        assert following.covered("app") == []
        assert "scan" in {row.verb for row in service.jobs(None, None, 9)}

    guarding(place, test)


def test_a_log_that_keeps_breaking_asks_for_its_backup_less_and_less_often() -> None:
    base = Base()
    assert [now for now in range(1000) if base.ask(now)] == [0, 5, 15, 35, 75, 155, 315, 635]
    assert not base.ask(635 + 599)
    assert base.ask(635 + 600) and base.ask(635 + 605)  # it has held for long


def test_a_log_that_is_written_faster_than_it_is_stored_is_late(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        following, at = service._do.following, to_text(place.wall)
        facts = {"database": "app", "chain": "B", "at": at, "begun_at": at, "because": "new", "continued": False}
        workers.begun.append({**facts, "stored_until_at": None})
        following.reconsider()
        await until(lambda: workers.following)

        def problem() -> str:
            return service._do.views.database("app", place.wall).log_problem or ""

        assert not problem()
        following._followers["app"].heard -= 80
        assert problem().startswith("its log is 1 min 20 s behind: ")
        told = {"chain": "B", "segment": 1, "until_at": to_text(place.wall)}
        workers.following[0]({"type": "report", "event": "reached", "facts": told})
        assert not problem()

    guarding(place, test)


def test_a_log_that_waits_for_a_full_storage_says_so_until_it_is_stored(place: Place) -> None:
    async def test(service: Any, workers: Workers) -> None:
        await _begun(place, service, workers)

        def shown() -> tuple[str, str]:
            row = service._do.views.database("app", place.wall)
            return row.log_problem or "", " ".join(row.hints)

        full = NoSpace("/store: the file system of the storage is full", hints=["df -h /store"])
        workers.following[0]({"type": "report", "event": "waits", "facts": {"problem": full.problem()}})
        problem, hints = shown()
        assert problem.endswith("now: /store: the file system of the storage is full") and "df -h /store" in hints
        told = {"chain": "B", "segment": 1, "until_at": to_text(place.wall)}
        workers.following[0]({"type": "report", "event": "reached", "facts": told})
        assert shown()[0] == "" and "df" not in shown()[1]

    guarding(place, test)


def test_a_server_that_stays_away_is_told_for_a_week_that_its_log_is_not_followed(place: Place) -> None:
    """Whoever followed it; then only its own limit ends what it keeps for us."""

    async def away(spec: Any, on_message: Any, cancel: Any, *, stall_timeout: float) -> Any:
        assert spec["request"]["end"], spec
        raise ServerUnreachable("no answer")

    async def main(service: Any, worker: Any) -> None:
        following, settings = service._do.following, service._do.catalog.settings
        following._environment = _with(service, away)  # type: ignore[arg-type]
        for name, days in (("since-days", 6), ("since-weeks", 8)):
            servers.remember(settings, name, servers.Kept({"name": name}, to_text(place.wall - timedelta(days=days))))
        following.reconsider()
        await until(following.left_behind)
        await until(lambda: list(servers.read(settings)) == ["since-days"])
        assert [line.split(":")[0] for line in following.left_behind()] == ["since-days"]

    live(place, main)
