"""Not every backup reads every row."""

from datetime import timedelta

import pytest

from tests.jobs.world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_rows_are_read_only_as_often_as_the_policy_says(world):
    world.spec["database"]["fingerprint_every_seconds"] = 86400.0
    first = world.backup()
    world.now += timedelta(hours=23)
    between = world.backup()
    world.now += timedelta(hours=1)
    due = world.backup()
    assert [id for id in (first, between, due) if world.repository.fingerprint(id)] == [first, due]
    world.now -= timedelta(days=9)  # the clock was set back: what was made later than now says nothing
    assert world.repository.fingerprint(world.backup())
    proof = world.do("verify", database="app", backup=between)["proof"]
    assert (proof["grade"], proof["failure"]) == ("restored", None)
    assert proof["findings"][-1]["detail"].endswith(f"fingerprint_every asks for none yet, backup {first} has one")
