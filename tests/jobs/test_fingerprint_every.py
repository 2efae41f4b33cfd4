"""Not every backup reads every row."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dbguardd.errors import Cancelled
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


def test_rows_of_pages_that_are_equal_are_not_read_again(world, monkeypatch):
    world.engine.paged = True
    first, same = world.backup(), world.backup()
    assert world.engine.read == 1
    assert world.repository.fingerprint(same) == world.repository.fingerprint(first) is not None
    assert [said["same_as"] for said in world.said("snapshot.fingerprinted")] == [None, first]
    assert world.do("verify", database="app", backup=same)["proof"]["grade"] == "proven"
    other = world.backup(users=[1, 2, 4])
    assert world.engine.read == 2
    assert world.repository.fingerprint(other) != world.repository.fingerprint(first)
    monkeypatch.setattr("dbguardd.repository.__version__", "0.0.9")  # it may have read them in another way
    world.backup()
    assert world.engine.read == 3


def test_rows_are_read_where_nobody_has_read_the_same_before(world):
    world.engine.paged = world.engine.break_fingerprint = True
    with pytest.raises(Cancelled):
        world.backup()
    world.engine.break_fingerprint = False
    assert world.repository.fingerprint(world.backup())
    world.engine.paged = False  # equal text of other rows: what is left out of a text is in no digest
    world.backup()
    world.backup()
    assert world.engine.read == 3


def test_a_damaged_fingerprint_of_another_backup_is_no_verdict_on_one_without_rows(world):
    before = world.backup(users=[1])
    world.do("verify", database="app")
    (entry,) = world.storage.list(f"records/print/{before}-")
    world.storage.delete(entry.name)
    world.storage.put(entry.name, b"x")
    world.backup(users=[])
    proof = world.do("verify", database="app")["proof"]
    assert proof["grade"] == "restored"
    assert (proof["findings"][-1]["name"], proof["findings"][-1]["outcome"]) == ("content is not lost", "inconclusive")
