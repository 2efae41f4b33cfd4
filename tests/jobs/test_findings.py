"""Findings are kept as a person may read them, and what is left out is not green."""

import pytest

from dbguardd.engines.base import Examination, Finding
from dbguardd.errors import Damaged, NoSpace, ProofFailed, SourceDenied
from dbguardd.jobs.base import shortened
from dbguardd.repository.packs import HEADER
from tests.jobs.world import World


def test_long_texts_are_cut_and_say_so():
    (cut,) = shortened([Finding("n" * 5000, "ok", "d" * 2001)])
    assert cut.name == "n" * 2000 + "… (5000 characters)"
    assert cut.detail == "d" * 2000 + "… (2001 characters)"
    whole = [Finding("n" * 2000, "failed", "d"), Finding("", "ok")]
    assert shortened(whole) == whole


def test_of_too_many_those_that_failed_are_kept_and_the_rest_is_not_green():
    found = shortened([*[Finding(str(n), "ok") for n in range(600)], Finding("last", "failed")])
    assert (found[0].name, len(found)) == ("last", 501)
    assert found[-1] == Finding("further findings", "inconclusive", "101 were left out")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_proof_is_as_long_as_a_person_reads_whatever_names_the_owner_chose(world):
    name = "t" * 1_000_000
    world.backup(**{name: [1, 2]})
    world.engine.break_restore = b"{}"
    with pytest.raises(ProofFailed):
        world.do("verify", database="app")
    assert sum(len(finding["detail"]) for finding in world.repository.proofs()[0].findings) < 3000


def test_a_check_names_backups_of_another_version_whose_programs_may_go(world):
    for version in ("15.17", "15.18", "1.2"):  # the toy server is of version 1
        world.engine.rights = {"server_version": version}
        world.backup(users=[1])
    details = [found["detail"] for found in world.do("check", database="app")["findings"]]
    (said,) = [detail for detail in details if "keep its programs" in detail]
    assert said.startswith("note: 2 backups of toy 15: ")


def test_a_check_of_what_many_backups_need_names_some_of_them(world):
    ids = [world.backup() for _ in range(30)]
    for entry in list(world.storage.list("packs/")):
        data = bytearray(world.storage.get(entry.name))
        data[HEADER] ^= 1  # of the first frame, which is none of the map
        world.storage.delete(entry.name)
        world.storage.put(entry.name, data)
    result = world.do("check", database="app", data=True)
    (damage,) = [finding for finding in result["findings"] if finding["name"].startswith("packs/")]
    assert damage["detail"].endswith(" and 10 more.")
    assert sum(id in damage["detail"] for id in ids) == 20
    assert result["damaged"] == 1


@pytest.mark.parametrize(("outcome", "grade"), [("inconclusive", "restored"), ("failed", None)])
def test_content_that_could_not_be_read_is_a_failure_only_if_something_failed(world, outcome, grade):
    world.backup()
    found = Finding("content", outcome, "disk I/O error")
    world.engine.examine = lambda target, queries, progress: Examination([found], None)
    if grade:
        proof = world.do("verify", database="app")["proof"]
        assert (proof["grade"], proof["failure"]) == (grade, None)
        return
    with pytest.raises(ProofFailed):
        world.do("verify", database="app")


def spoil(world, before):
    """Change one byte of each pack that came since `before`."""
    for name in {entry.name for entry in world.storage.list("packs/")} - before:
        data = bytearray(world.storage.get(name))
        data[HEADER + 8] ^= 1
        world.storage.delete(name)
        world.storage.put(name, bytes(data))


def test_what_a_check_finds_damaged_is_no_longer_proven_until_a_proof_acquits_it(world, tmp_path):
    good = world.backup(users=[1])
    world.do("verify", database="app")
    before = {entry.name for entry in world.storage.list("packs/")}
    bad = world.backup(users=[1, 2])
    world.do("verify", database="app")
    intact = {entry.name: world.storage.get(entry.name) for entry in world.storage.list("packs/")}
    spoil(world, before)
    world.later(minutes=1)
    world.events.clear()
    done = world.do("check", database="app", data=True)
    assert done["damaged"]
    (said,) = world.said("backup.graded")
    assert (said["id"], said["grade"], said["database"]) == (bad, "stored", "app")
    assert "packs/" in said["failure"]
    assert next(row for row in done["findings"] if row["name"] == "proof")["detail"].startswith(f"backup {good} ")
    plan = world.do("restore", database="app", to=str(tmp_path / "x"), dry_run=True)["plan"]
    assert plan["backup"] == good
    assert plan["warnings"]
    world.do("check", database="app", data=True)
    assert len(world.said("backup.graded")) == 1  # nothing new
    for name, data in intact.items():
        world.storage.delete(name)
        world.storage.put(name, data)
    world.later(minutes=1)
    world.do("verify", database="app", backup=bad)
    assert world.do("restore", database="app", to=str(tmp_path / "x"), dry_run=True)["plan"]["backup"] == bad


def test_what_a_restore_finds_damaged_is_not_handed_out_again(world, tmp_path):
    good = world.backup(users=[1])
    world.do("verify", database="app")
    before = {entry.name for entry in world.storage.list("packs/")}
    bad = world.backup(users=[1, 2])
    world.do("verify", database="app")
    spoil(world, before)
    world.later(minutes=1)
    with pytest.raises(Damaged) as caught:
        world.do("restore", database="app", to=str(tmp_path / "x"))
    assert "dbguardctl restore app --dry-run" in caught.value.hints
    assert world.said("backup.graded")[-1]["id"] == bad
    (tmp_path / "x").unlink(missing_ok=True)
    assert world.do("restore", database="app", to=str(tmp_path / "x"))["plan"]["backup"] == good
    world.later(days=6)
    assert bad in world.ids()
    world.do("expire", database="app")
    assert bad in world.ids()  # evidence, from when it was found
    world.later(days=2)
    world.backup(users=[1, 2, 3])
    world.do("expire", database="app")
    assert bad not in world.ids()


def test_a_copy_made_while_a_backup_ran_is_not_proven_after_a_scan(world, tmp_path):
    """Its manifest is there and its proof, its packs are not: they were written after `packs/` had been copied."""
    good = world.backup(users=[1])
    world.do("verify", database="app")
    before = {entry.name for entry in world.storage.list("packs/")}
    cut = world.backup(users=[1, 2])
    world.do("verify", database="app")
    whole = {entry.name: world.storage.get(entry.name) for entry in world.storage.list("packs/")}
    for name in whole.keys() - before:
        world.storage.delete(name)
    world.later(minutes=1)
    world.events.clear()
    assert world.do("scan") == {"backups": 2}
    last = {facts["id"]: facts for facts in world.said("backup.graded")}
    assert (last[good]["grade"], last[cut]["grade"]) == ("proven", "stored")
    assert "is missing: was this storage copied while a backup ran?" in last[cut]["failure"]
    assert world.do("restore", database="app", to=str(tmp_path / "x"), dry_run=True)["plan"]["backup"] == good
    (said,) = [row for row in world.do("check", database="app")["findings"] if "copied while" in row["detail"]]
    assert said["outcome"] == "failed"

    for name in whole.keys() - before:  # copied once more
        world.storage.put(name, whole[name])
    world.later(minutes=1)
    world.do("verify", database="app", backup=cut)
    world.do("scan")
    assert world.said("backup.graded")[-1]["grade"] == "proven"


def test_a_full_storage_keeps_nobody_from_hearing_what_lacks_packs(world):
    ids = [world.backup(users=[n] * (n + 1)) for n in range(2)]
    for entry in list(world.storage.list("packs/")):
        world.storage.delete(entry.name)

    def full(proof):
        raise NoSpace("no room")

    world.repository.add_proof = full
    world.events.clear()
    assert world.do("scan") == {"backups": 2}
    assert {facts["id"] for facts in world.said("backup.graded") if facts["failure"]} == set(ids)


def test_a_check_says_what_mends_an_error_and_continues_nothing_where_there_is_no_backup(world):
    world.engine.found, world.spec["database"]["settings"] = {"system": "7"}, {"url": "toy:", "method": "pages"}
    world.write(users=[1])
    assert "the server" not in {row["name"] for row in world.do("check", database="app")["findings"]}
    world.engine.probe = refuses
    found = {row["name"]: row["detail"] for row in world.do("check", database="app")["findings"]}
    assert found["database"] == "DBG-2007 no. why. Fix: chmod 0600 /x"


def refuses():
    raise SourceDenied("no", detail="why.", hints=["chmod 0600 /x", "or that"])
