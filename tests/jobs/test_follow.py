"""Following as a job: what an engine half may have stored and told of its log."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dbguardd.errors import GuardError, Internal, NoSpace, WorkerDied
from dbguardd.flow import Images, Segment
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.spec["database"]["continuous"] = True
    made.backup(users=[1])
    return made


def place(position: int) -> dict[str, Any]:
    return {"round": "r", "position": position}


def follow(world: World, story: Any) -> GuardError:
    """Follow an engine that tells a story; return what ended it."""
    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError) as caught:
        world.do("follow")
    return caught.value


def segment(world: World, position: int, **more: Any) -> Segment:
    images = Images(512, 512, b"\0\0\0\1" + b"p" * 512, **more)
    return Segment("main", place(position - 1), place(position), world.now, images)


def test_a_log_is_begun_once(world: World) -> None:
    def story(ship: Any, resume: Any) -> None:
        for _ in range(1000):
            ship.begin(place(0), continued=False, because="again")

    assert isinstance(follow(world, story), WorkerDied)
    assert len(world.said("log.begun")) == 1
    assert len(list(world.storage.list("log/"))) == 1


def test_a_log_begins_anew_where_the_live_database_is_not_what_it_says_and_once(world: World) -> None:
    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        ship.ship(segment(world, 1, sum="0" * 16))
        ship.audited("")
        ship.audited("page 7")
        ship.begin(place(1), continued=False, because="page 7")
        ship.ship(segment(world, 2))
        ship.audited("page 8")

    assert isinstance(follow(world, story), WorkerDied)
    assert [facts["because"] for facts in world.said("log.begun")] == ["new", "page 7"]
    assert [(facts["outcome"], facts["detail"]) for facts in world.said("log.audited")] == [
        ("ok", ""),
        ("failed", "page 7"),
    ]
    log = world.repository.log("app")
    assert log is not None
    assert [chain.last for chain in log.chains()] == [1, 1]


def test_what_was_compared_and_is_right_begins_nothing(world: World) -> None:
    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        ship.audited("")
        ship.begin(place(0), continued=False, because="again")

    assert isinstance(follow(world, story), WorkerDied)
    assert len(world.said("log.begun")) == 1


def test_how_long_a_log_is_that_somebody_holds_is_told_again_as_it_grows(world: World) -> None:
    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        for size, by in ((64, ["a"]), (127, ["a"]), (128, ["a"]), (129, ["a", "b"]), (130, []), (500, [])):
            ship.held(size, by)

    follow(world, story)
    assert [facts["log_bytes"] for facts in world.said("log.held")] == [64, 128, 129, 130]


def test_what_is_gone_on_from_is_known_with_its_sum(world: World) -> None:
    def story(ship: Any, resume: Any) -> None:
        assert resume is None
        ship.begin(place(0), continued=False, because="new")
        ship.ship(segment(world, 1, sum="0123456789abcdef"))

    follow(world, story)
    found: list[Any] = []
    follow(world, lambda ship, resume: found.append(resume))
    assert found == [{**place(1), "sum": "0123456789abcdef", "at": world.now.isoformat()}]


def test_a_full_storage_is_told_when_it_is_waited_for_and_the_log_goes_on(world: World) -> None:
    put, tries = world.storage.put, list[str]()

    def full(name: str, data: Any) -> None:
        if name.startswith("log/") and len(tries) < 2:
            tries.append(name)
            raise NoSpace("/store: the file system of the storage is full")
        put(name, data)

    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        world.storage.put = full  # type: ignore[method-assign]
        ship.ship(segment(world, 1))

    follow(world, story)
    assert len(tries) == 2 and [facts["problem"]["code"] for facts in world.said("waits")] == [NoSpace.code]
    log = world.repository.log("app")
    assert log is not None and log.chains()[0].last == 1


def test_nothing_comes_before_it_is_begun(world: World) -> None:
    assert "before" in follow(world, lambda ship, resume: ship.ship(segment(world, 1))).message
    assert not list(world.storage.list("log/"))


def test_nothing_is_stored_of_a_time_to_come(world: World) -> None:
    """A clock that went back, or an engine half that lies: neither makes a moment restorable that has not been."""

    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        now = world.now
        world.now = now + timedelta(days=200_000)
        ahead = segment(world, 1)
        world.now = now
        ship.ship(ahead)
        ship.reached(now + timedelta(days=200_000))

    assert isinstance(follow(world, story), Internal)
    log = world.repository.log("app")
    assert log is not None
    (chain,) = log.chains()
    assert (chain.last, chain.until) == (1, world.now)
    assert [facts["until_at"] for facts in world.said("reached")] == ["2026-03-01T12:01:00.000Z"]


@pytest.mark.parametrize("said", ["nowhere", ["r"], {}, {"round": "r"}, {"round": "r", "position": "1"}])
def test_a_place_that_is_none_keeps_nobody_from_a_restore(world: World, said: Any, tmp_path: Path) -> None:
    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(0), continued=False, because="new")
        ship.ship(segment(world, 1))

    follow(world, story)
    world.engine.rights = {"log_place": said}
    id = world.backup(users=[2])
    follow(world, lambda ship, resume: [ship.begin(place(1), continued=True, because=""), ship.ship(segment(world, 2))])
    assert world.do("restore", database="app", to=str(tmp_path / "copy"))["plan"]["backup"] == id
