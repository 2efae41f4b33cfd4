"""A restore that ends earlier than requested says whether anything is missing, and what can be restored after that."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dbguardd.jobs.base import instant
from tests.jobs.test_moment import base, follow, lose, plan
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.spec["database"]["continuous"] = True
    made.backup(users=[1])
    return made


def test_when_the_follower_says_that_nothing_was_committed_nothing_seems_to_be_missing(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    alone = world.now + timedelta(minutes=4)
    (chain,) = {entry.name.rpartition("/")[2].partition("-")[0] for entry in world.storage.list("log/")}
    world.spec["log_stored"] = {chain: alone.isoformat()}
    nothing = ["this is 4 m before the requested moment: nothing was committed in between"]
    assert plan(world, at=alone.isoformat())["warnings"] == nothing
    follow(world, 4, 6)
    at = world.now + timedelta(minutes=4)
    world.spec["log_stored"] = {chain: (at - timedelta(minutes=1)).isoformat()}
    (said,) = plan(world, at=at.isoformat())["warnings"]
    until = instant(at - timedelta(minutes=1))
    assert said.endswith(f"nothing was committed up to {until}; later commits, if any, are not stored")
    world.spec["log_stored"] = {chain: at.isoformat()}
    assert plan(world, at=at.isoformat())["warnings"] == nothing
    world.later(minutes=5)
    follow(world, 7, 7)
    lose(world, 6)
    world.spec["log_stored"] = {chain: (world.now + timedelta(minutes=4)).isoformat()}
    (said,) = plan(world, at=world.now.isoformat())["warnings"][-1:]
    assert "nothing was committed" not in said


def test_after_a_gap_both_neighbours_are_named(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    lost = world.now + timedelta(minutes=2)
    world.later(minutes=3)
    follow(world, 1, 2)  # another chain
    after = base(world, 2)
    found = plan(world, at=lost.isoformat())
    made = instant(world.repository.backup(after).created_at)
    assert (found["segments"], found["next_at"], found["next_backup"]) == (3, made, after)
    (said,) = found["warnings"]
    assert said == (
        "this is 2 m before the requested moment: later commits, if any, are not stored; "
        f"the next moment that can be restored is {made}"
    )


def test_a_gap_is_told_however_short_and_a_pause_between_commits_is_not(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    end = world.now
    follow(world, 1, 2)  # another chain
    after = base(world, 2)
    found = plan(world, at=(end + timedelta(seconds=0.5)).isoformat())
    assert (found["segments"], found["next_backup"]) == (3, after)
    assert found["warnings"][0].startswith("this is 0.5 s before the requested moment: later commits, if any, are not")
    rounded = end + timedelta(milliseconds=1)  # as it is shown
    for at in (end - timedelta(seconds=0.5), end, rounded):
        assert plan(world, at=at.isoformat())["warnings"] == []
    world.later(seconds=1)
    assert plan(world, at=world.now.isoformat())["warnings"] == []  # the follower may store it in a moment


def test_without_a_log_the_backup_before_and_the_one_after_are_named(world: World) -> None:
    world.later(hours=10)
    between = world.now
    world.later(hours=10)
    after = world.backup(users=[2])
    found = plan(world, at=between.isoformat())
    assert found["next_backup"] == after
    assert found["warnings"][0].startswith(
        "this is 10 h before the requested moment: no reliable backup was made in between; the next moment that can be"
    )
    assert plan(world, at=(world.now + timedelta(hours=1)).isoformat())["warnings"] == [
        "this is 1 h before the requested moment: no reliable backup was made in between"
    ]


def test_a_newer_backup_that_no_log_leads_to_is_named(world: World) -> None:
    """It is passed over because it is not proven, and the log of the proven one ended before it was made."""
    follow(world, 1, 3)
    world.do("verify", database="app", backup=base(world, 3))
    follow(world, 4, 6)
    world.spec["database"]["continuous"] = False
    world.engine.rights = {}
    world.later(minutes=1)
    newer = world.backup(users=[9])
    found = plan(world)
    assert found["segments"] == 3
    (said,) = found["warnings"]
    assert said.endswith(f"passed over, it is not proven; take it with --id {newer}")
