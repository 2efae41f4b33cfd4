"""Plain copies: which are written, which stay, and what the link points to."""

import json
from pathlib import Path

import pytest

from dbguardd.errors import ProofFailed
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_plain_copies_are_verified_rotated_and_linked(world, tmp_path):
    world.spec["database"]["keep_plain"] = {"count": 2, "path": str(tmp_path / "plain")}
    for number in range(4):
        world.backup(users=[number])
        copy = world.do("verify", database="app")["plain_copy"]
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert len([name for name in names if name.endswith(".sql")]) == 3  # two copies and the link
    assert len([name for name in names if name.endswith(".sha256")]) == 2
    link = tmp_path / "plain" / "app_latest.sql"
    assert str(link.resolve()) == copy
    assert json.loads(link.read_text()) == {"users": [3]}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_link_points_to_the_newest_copy_also_when_an_older_backup_is_verified(world, tmp_path, count):
    world.spec["database"]["keep_plain"] = {"count": count, "path": str(tmp_path / "plain")}
    first, _, newest = [world.backup(users=[number]) for number in range(3)]
    copies = [world.do("verify", database="app", backup=id)["plain_copy"] for id in world.ids()]
    assert copies[0]
    assert [copy for copy in copies if copy] == copies[:count]
    world.do("verify", database="app", backup=first)
    assert json.loads((tmp_path / "plain" / "app_latest.sql").read_text()) == {"users": [2]}
    assert newest


def test_a_plain_copy_that_was_changed_is_written_again_and_another_database_is_let_be(world, tmp_path):
    world.spec["database"]["keep_plain"] = {"count": 2, "path": str(tmp_path / "plain")}
    (tmp_path / "plain").mkdir()
    theirs = tmp_path / "plain" / ".tmp-app_users_20260301T120000Z.sql"
    theirs.write_text("another worker is writing this")
    (tmp_path / "plain" / ".tmp-app_20260301T120000Z.sql").write_text("left by a killed one")
    world.backup(users=[1])
    copy = Path(world.do("verify", database="app")["plain_copy"])
    copy.write_text("{}")
    world.do("verify", database="app")
    assert json.loads(copy.read_text()) == {"users": [1]}
    assert [path.name for path in (tmp_path / "plain").iterdir() if path.name.startswith(".")] == [theirs.name]


def test_an_unproven_backup_never_becomes_the_latest_plain_copy(world, tmp_path):
    world.spec["database"]["keep_plain"] = {"count": 2, "path": str(tmp_path / "plain")}
    world.backup(users=[1])
    world.engine.break_restore = b'{"users": []}'
    with pytest.raises(ProofFailed):
        world.do("verify", database="app")
    assert not (tmp_path / "plain").exists()


def test_backups_of_one_second_have_a_copy_each(world, tmp_path):
    world.spec["database"]["keep_plain"] = {"count": 2, "path": str(tmp_path / "plain")}
    ids, copies = [], []
    for number in range(3):
        world.write(users=[number])
        ids.append(world.do("backup", database="app")["backup"]["id"])
        copies.append(Path(world.do("verify", database="app")["plain_copy"]))
    assert [copy.name for copy in copies] == [
        "app_20260301T120000Z.sql",
        f"app_20260301T120000Z_{ids[1]}.sql",
        f"app_20260301T120000Z_{ids[2]}.sql",
    ]
    assert not copies[0].exists()  # count = 2
    assert [json.loads(copy.read_text()) for copy in copies[1:]] == [{"users": [1]}, {"users": [2]}]
    assert (tmp_path / "plain" / "app_latest.sql").resolve() == copies[2]


def test_a_copy_does_not_take_over_the_name_of_an_expired_backup_of_its_second(world, tmp_path):
    world.spec["database"]["keep_plain"] = {"count": 3, "path": str(tmp_path / "plain")}
    first = world.do("backup", database="app")["backup"]["id"]
    world.do("verify", database="app")
    world.write(users=[2])
    second = world.do("backup", database="app")["backup"]["id"]
    world.repository.expire({first: ["keep"]}, world.now)
    copy = Path(world.do("verify", database="app")["plain_copy"])
    assert json.loads(copy.read_text()) == {"users": [2]}
    [swept] = world.storage.list(f"records/backup/{first}")
    world.storage.delete(swept.name)
    assert world.do("verify", database="app", backup=second)["plain_copy"] == str(copy)
