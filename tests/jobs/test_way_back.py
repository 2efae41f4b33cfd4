"""The way back from a restore in place: it stays while anything may have been replaced, and says what it is."""

import pytest

from dbguardd.engines.base import REPLACED, Examination, Finding
from dbguardd.errors import NotFound, ProofFailed
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.backup(users=[1])
    world.write(users=[1, 2])
    return world


@pytest.mark.parametrize("replaced", [True, False])
def test_a_failure_after_the_live_database_was_replaced_leaves_the_way_back(world, replaced):
    put = world.engine.replace

    def replace(source, progress):
        if replaced:
            put(source, progress)
        raise ProofFailed("read back, it is something else", facts={REPLACED: True} if replaced else {})

    world.engine.replace = replace
    with pytest.raises(ProofFailed):
        world.do("restore", database="app", in_place=True, confirm="app")
    world.engine.replace = put
    if not replaced:
        with pytest.raises(NotFound, match="no restore to undo"):
            world.do("undo", database="app", confirm="app")
        return
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1, 2]}


def test_a_database_that_was_damaged_before_it_was_replaced_is_not_called_a_wrong_copy(world, tmp_path):
    world.do("restore", database="app", in_place=True, confirm="app")
    world.engine.examine = lambda target, queries, progress: Examination([Finding("opened", "failed", "torn")], None)
    with pytest.raises(ProofFailed, match="was damaged already then") as caught:
        world.do("undo", database="app", confirm="app")
    assert "--to NEWPLACE" in caught.value.hints[-1]
    assert world.live() == {"users": [1]}
    with pytest.raises(ProofFailed, match="was damaged already then") as caught:
        world.do("restore", database="app", to=str(tmp_path / "old"))
    assert "left at" in caught.value.hints[-1]
    assert (tmp_path / "old").read_bytes()
