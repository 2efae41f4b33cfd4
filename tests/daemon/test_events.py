"""What is told is kept, logged at the level of the table, and wakes who follows."""

import asyncio
from typing import Any

import pytest

from dbguardd.catalog import Catalog
from dbguardd.daemon.events import Events
from dbguardd.errors import Internal, NoSpace
from dbguardd.wire import EventRange
from tests.daemon.conftest import START, World
from tests.surface.happened import HAPPENED

PROBLEM = NoSpace("app: no room", detail="3 of 4").problem()
STORED = {"engine": "sqlite", "kind": "full", "method": "pages", "source_bytes": 9, "stored_bytes": 4}


@pytest.fixture
def events(world: World) -> Events:
    return Events(world.catalog, lambda: START, world.log)


def stored(events: Events, id: str) -> None:
    events.tell("backup.stored", "app", "01", {"id": id, "database": "app", "storage": "local", **STORED})


def last(world: World) -> tuple[str, str, dict[str, Any]]:
    return world.log.events[-1]


def test_an_event_is_kept_and_logged(events: Events, world: World) -> None:
    events.tell("job.failed", "app", "01J", {"verb": "backup", "problem": PROBLEM}, {"actor": "alice"})
    (kept,) = world.catalog.events.find(EventRange(), 10)
    assert (kept.event, kept.database, kept.job) == ("job.failed", "app", "01J")
    assert kept.facts == {"verb": "backup", "problem": PROBLEM}
    level, event, facts = last(world)
    assert (level, event, facts["job"], facts["action"], facts["actor"]) == (
        "error",
        kept.event,
        "01J",
        "backup",
        "alice",
    )
    assert (facts["code"], facts["problem"], facts["detail"]) == (NoSpace.code, "app: no room", "3 of 4")


def test_what_is_serious_names_the_backup_that_was_proven_last(events: Events, world: World) -> None:
    events.tell("job.failed", "app", "01", {"verb": "backup", "problem": PROBLEM})
    assert last(world)[2]["last_proven"] == "none"
    stored(events, "01A")
    events.tell("backup.graded", "app", "01", {"id": "01A", "grade": "proven", "failure": None})
    assert (last(world)[0], "last_proven" in last(world)[2]) == ("info", False)
    stored(events, "01B")
    events.tell("backup.graded", "app", "01", {"id": "01B", "grade": "restored", "failure": "rows differ"})
    assert (last(world)[0], last(world)[2]["last_proven"]) == ("error", "01A")


def test_bad_facts_are_neither_kept_nor_logged(events: Events, world: World) -> None:
    with pytest.raises(Internal):
        events.tell("backup.graded", "app", "01", {"id": "01A"})
    assert (world.catalog.events.last_id(), world.log.events) == (0, [])


class Full:
    """A catalog on a full disk."""

    def __init__(self, catalog: Catalog) -> None:
        self.backups = catalog.backups

    def record(self, *_: object) -> None:
        raise NoSpace("catalog: no room")


def test_news_of_the_daemon_is_logged_also_when_it_cannot_be_kept(world: World) -> None:
    events = Events(Full(world.catalog), lambda: START, world.log)  # type: ignore[arg-type]
    events.note("run.skipped", "app", {"verb": "backup", "reason": "late"})
    assert [(level, event) for level, event, _ in world.log.events] == [
        ("warning", "run.skipped"),
        ("error", "catalog.failed"),
    ]


def test_who_follows_is_woken(events: Events) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(events.wakeup.wait(10))
        await asyncio.sleep(0)
        events.note("daemon.ready", None, {"databases": 1})
        assert await waiting

    asyncio.run(main())


def test_every_event_can_be_logged(events: Events, world: World) -> None:
    """No fact has a name that a logger has another use for."""
    for happened in HAPPENED:
        facts = {name: value for name, value in happened.items() if name not in ("event", "database")}
        events.log(happened["event"], {**facts, "database": happened["database"], "level": "x", "exc_info": True})
    assert [event for _, event, _ in world.log.events] == [happened["event"] for happened in HAPPENED]


def test_a_bug_comes_with_its_trace(world: World) -> None:
    bug = KeyError("x")
    Events(world.catalog, lambda: START, world.log).log("job.crashed", {"job": "01"}, bug)
    assert last(world) == ("error", "job.crashed", {"job": "01", "exc_info": bug})
