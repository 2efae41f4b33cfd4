"""Whether a server is the one whose backups there are."""

import pytest

from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.errors import SourceReplaced, TargetInUse
from dbguardd.jobs.verify import lost_content
from dbguardd.keys import MachineKey
from dbguardd.repository import Repository
from tests.jobs.world import World
from tests.storage.layers import Recording


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
        with pytest.raises(SourceReplaced, match="a different cluster") as caught:
            world.do("backup", database="app", full=full)
    assert not world.engine.sent  # it was known before
    world.engine.found = {"system": "7002"}
    (said,) = [row for row in world.do("check", database="app")["findings"] if row["name"] == "the server"]
    assert said["outcome"] == "failed" and "a different cluster" in said["detail"] and "--successor" in said["detail"]
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


def test_a_file_at_another_path_goes_on_with_the_backups_only_if_it_is_mostly_what_they_are_of(world):
    world.engine.paged = True
    pages = lambda first: [[page * 7919 + first] * 600 for page in range(40)]  # noqa: E731 - of more than a page each
    first = world.backup(orders=pages(0))
    moved = world.path.with_name("moved.json")
    world.spec["database"]["settings"]["path"] = str(moved)
    (said,) = [row for row in world.do("check", database="app")["findings"] if row["name"] == "the file"]
    assert said["outcome"] == "inconclusive" and str(world.path) in said["detail"] and str(moved) in said["detail"]
    second = world.backup(orders=[*pages(0), [8]])
    assert not [row for row in world.do("check", database="app")["findings"] if row["name"] == "the file"]
    world.spec["database"]["settings"]["path"] = str(world.path)
    for full in (False, True):  # with the same tables, and as full_every asks for it
        with pytest.raises(SourceReplaced, match="may be a different database") as caught:
            world.write(orders=pages(1))
            world.do("backup", database="app", full=full)
    assert caught.value.hints[0].partition("  #")[0] == "dbguardctl backup app --successor"
    assert str(moved) in caught.value.detail and world.ids() == [second, first]
    world.do("backup", database="app", successor=True)
    world.backup(orders=pages(2))  # at the same path it is what the application has made of it


def test_a_file_that_was_moved_is_compared_also_when_a_full_backup_is_due(world):
    """The policy asks for one each night until there is one: each would be refused."""
    world.engine.paged = True
    rows = [[page * 7919] * 600 for page in range(40)]
    world.backup(orders=rows)
    moved = world.path.with_name("moved.json")
    world.path.rename(moved)
    world.engine.path, world.spec["database"]["settings"]["path"] = moved, str(moved)
    for kind in ("incremental", "full"):
        world.later(minutes=1)
        assert world.do("backup", database="app", full=True)["backup"]["kind"] == kind


def test_a_backup_of_a_file_reads_no_more_of_the_books_the_more_there_are(world):
    for _ in range(20):
        world.backup()
    storage = Recording(world.storage)
    world.repository = Repository.open(storage, [MachineKey.from_file(world.place / "key")])
    world.backup(users=[9])
    assert sum(call.verb == "get" and call.name.startswith("records/backup/") for call in storage.calls) < 10


def test_what_a_restore_has_replaced_says_where_the_database_is_and_what_it_did_not_replace_says_nothing(world):
    world.engine.paged = True
    world.backup(users=[1])
    other = world.path.with_name("other.json")
    world.spec["database"]["settings"]["path"] = str(other)
    other.write_text("{}")
    world.write(orders=[[number] * 900 for number in range(40)])
    world.engine.used_at_last = True
    with pytest.raises(TargetInUse):
        world.do("restore", database="app", in_place=True, confirm="app")
    assert len(world.ids()) == 2
    with pytest.raises(SourceReplaced):
        world.do("backup", database="app")
    world.engine.used_at_last = world.engine.in_use = False
    world.do("restore", database="app", in_place=True, confirm="app")
    world.do("backup", database="app")


def test_a_database_whose_every_table_is_another_takes_the_place_of_no_proven_backup(world):
    proven = lambda: world.do("verify", database="app")["proof"]["grade"] == "proven"  # noqa: E731
    world.backup(users=[1, 2], orders=[], notes=[1])
    assert proven()
    world.backup(users=[], orders=[1])
    (said,) = world.do("verify", database="app")["proof"]["findings"][-1:]
    assert said["outcome"] == "inconclusive" and "none of the tables that had rows" in said["detail"]
    assert "(notes, users)" in said["detail"] and "has 3 rows" in said["detail"]
    world.backup(users=[2], orders=[1])
    assert proven()


def test_names_of_tables_are_not_held_against_those_of_another_way_or_of_many_in_one():
    def content(**tables: int | str) -> Fingerprint:
        each = {name: TablePrint(rows, f"{name}") for name, rows in tables.items()}
        return Fingerprint("", each)

    folded = Fingerprint("", {"a*": TablePrint(3, "2:aa")})
    assert lost_content(content(a=3), content(b=3), alike=True)
    assert not lost_content(content(a=3), content(b=3), alike=False)
    assert not lost_content(content(a=3), folded, alike=True) and not lost_content(folded, content(a=3), alike=True)
    assert not lost_content(content(a=0), content(b=3), alike=True) and not lost_content(
        content(), content(), alike=True
    )
    assert lost_content(folded, content(a=0), alike=False)
