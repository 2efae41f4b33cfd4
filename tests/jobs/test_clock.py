"""A clock that was ahead, and was set right: what was made last counts, and nothing that bears a later time."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from dbguardd.errors import GuardError, ProofFailed
from tests.jobs.test_moment import base, follow
from tests.jobs.world import World

YEAR = 365


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def proven(world: World, **tables: list[int]) -> str:
    id = world.backup(**tables)
    world.do("verify", database="app")
    return id


def two_clocks(world: World) -> tuple[str, str, str]:
    """Return three proven backups, of which one was made while the clock was a year ahead."""
    before = proven(world, users=[1])
    world.later(days=YEAR)
    ahead = proven(world, users=[1, 2])
    world.later(days=-YEAR)
    return before, ahead, proven(world, users=[1, 2, 3])


def test_what_was_made_last_is_restored_and_what_bears_a_later_time_is_named(world: World, tmp_path: Path) -> None:
    before, ahead, last = two_clocks(world)
    done = world.do("restore", database="app", to=str(tmp_path / "back.json"))
    assert done["plan"]["backup"] == last
    (warning,) = done["plan"]["warnings"]
    assert ahead in warning and "clock that was ahead" in warning and f"--id {ahead}" in warning
    early = world.repository.backup(before).created_at.isoformat()
    found = world.do("restore", database="app", at=early, dry_run=True)["plan"]
    assert (found["backup"], found["warnings"]) == (before, [])
    assert world.do("restore", database="app", dry_run=True, backup=ahead)["plan"]["backup"] == ahead
    assert any(last in finding["detail"] for finding in world.do("check", database="app")["findings"])


def test_expiry_goes_on_after_the_clock_was_set_right(world: World) -> None:
    two_clocks(world)
    proven(world, users=[7])
    proven(world, users=[8])
    world.later(days=1)
    done = world.do("expire", database="app")
    assert len(done["expired"]) == 3 and len(world.ids()) == 2
    world.later(days=-YEAR)
    assert world.backup(users=[9]) == world.ids()[0]
    world.later(days=-1)
    with pytest.raises(GuardError, match="behind the newest backup"):
        world.do("expire", database="app")


def test_the_link_points_to_the_copy_of_what_was_made_last(world: World, tmp_path: Path) -> None:
    world.spec["database"]["keep_plain"] = {"count": 1, "path": str(tmp_path / "plain")}
    two_clocks(world)
    assert json.loads((tmp_path / "plain" / "app_latest.sql").read_text()) == {"users": [1, 2, 3]}
    assert len([*(tmp_path / "plain").glob("app_2*.sql")]) == 1


def test_a_verdict_is_not_overruled_by_one_of_a_clock_that_was_ahead(world: World) -> None:
    older, id = proven(world, users=[1]), world.backup(users=[2])
    world.later(days=YEAR)
    world.do("verify", database="app", backup=id)
    world.later(days=-YEAR)
    world.engine.break_restore = b"{}"
    with pytest.raises(ProofFailed):
        world.do("verify", database="app", backup=id)
    assert world.do("restore", database="app", dry_run=True)["plan"]["backup"] == older
    world.events.clear()
    world.do("scan")
    graded = [facts for facts in world.said("backup.graded") if facts["id"] == id]
    assert [facts["failure"] is None for facts in graded] == [True, False]
    assert datetime.fromisoformat(graded[0]["verified_at"]) > datetime.fromisoformat(graded[1]["verified_at"])


@pytest.mark.parametrize("thin", [[], [[60, 3600.0]]])
def test_a_year_that_the_clock_jumped_ahead_makes_no_log_old(world: World, thin: list[list[float]]) -> None:
    world.spec["database"] |= {"continuous": True, "keep": {"daily": 30}, "thin_log": thin}
    follow(world, 1, 100)
    base(world, 100)
    world.later(minutes=10)
    world.do("expire", database="app")
    world.later(days=YEAR)
    base(world, 100)
    follow(world, 101, 103)
    base(world, 103)
    world.do("expire", database="app")
    assert not world.said("log.forgotten") and not world.said("log.thinned")
    world.later(days=8)
    base(world, 103)
    world.do("expire", database="app")
    assert world.said("log.forgotten")
