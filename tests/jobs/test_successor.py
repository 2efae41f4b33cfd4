"""Whether a server is the one whose backups there are."""

import pytest

from dbguardd.errors import SourceReplaced
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_another_cluster_does_not_go_on_with_the_backups_of_a_lost_one(world):
    world.spec["database"]["settings"] = {"url": "toy:", "method": "pages"}
    world.engine.rights = {"system": "7001"}
    first = world.backup()
    world.engine.rights = {"system": "7002"}
    world.engine.sent = False
    for full in (False, True):  # as full_every asks for it, and many a hint
        with pytest.raises(SourceReplaced, match="another cluster") as caught:
            world.do("backup", database="app", full=full)
    assert not world.engine.sent  # it was known before
    world.engine.found = {"system": "7002"}
    (said,) = [row for row in world.do("check", database="app")["findings"] if row["name"] == "the server"]
    assert said["outcome"] == "failed" and "is another cluster" in said["detail"] and "--successor" in said["detail"]
    ways = [hint.partition("  #")[0] for hint in caught.value.hints]
    assert ways == ["dbguardctl restore app", "dbguardctl unprotect app", "dbguardctl protect toy: --name app-2",
                    "dbguardctl backup app --successor"]  # fmt: skip
    assert [made.id for made in world.repository.backups("app")] == [first]
    world.do("backup", database="app", successor=True)
    world.do("backup", database="app")


def test_a_database_that_was_emptied_is_proven_again_when_a_person_has_said_that_it_is_right_so(world):
    proven = lambda: world.do("verify", database="app")["proof"]["grade"] == "proven"  # noqa: E731
    world.backup(users=[1, 2])
    assert proven()
    emptied = world.backup(users=[])
    assert not proven()
    assert "dbguardctl backup app --successor" in world.repository.proofs(emptied)[-1].findings[-1]["detail"]
    world.do("backup", database="app", successor=True)
    assert proven()
    world.backup(users=[])
    assert proven()
    world.backup(users=[3])
    assert proven()
    world.backup(users=[])  # another time: nobody has said anything of that
    assert not proven()
