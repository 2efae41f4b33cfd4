"""Each verb on a world in memory: what it promises, what it refuses, what it records."""

import json
import os
import shutil
import subprocess
from datetime import datetime

import pytest

from dbguardd.engines.base import Examination, Finding
from dbguardd.engines.landing import ELSEWHERE, reachable
from dbguardd.errors import (
    Breaker,
    Cancelled,
    ClockDoubt,
    ConfirmMissing,
    Damaged,
    Internal,
    KeyMissing,
    NoSpace,
    NotFound,
    NotPermitted,
    PlaceDenied,
    ProofFailed,
    SourceDamaged,
    SourceMissing,
    TargetExists,
    TargetInUse,
    ToolMissing,
    Unsupported,
    Usage,
)
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_backup_is_acknowledged_before_its_fingerprint(world):
    id = world.backup()
    names = [name for name, _ in world.events]
    assert names.index("backup.stored") < names.index("snapshot.fingerprinted")
    assert world.said("backup.stored")[0]["id"] == id
    assert world.repository.fingerprint(id)["tables"]["users"]["rows"] == 3


@pytest.mark.parametrize(
    ("said", "counts"), [("2026-03-01T12:01:00+00:00", True), ("2031-01-01T00:00:00Z", False), ("", False)]
)
def test_a_backup_is_of_the_moment_of_its_snapshot_if_that_can_be(world, said, counts):
    world.engine.snapshot_at = said
    world.backup()
    (made,) = world.repository.backups("app")
    assert made.created_at == world.now
    assert (made.created_at == datetime.fromisoformat(said or "2000-01-01T00:00:00Z")) is counts


def test_a_backup_that_dies_before_its_fingerprint_is_kept_but_never_proven(world):
    world.engine.break_fingerprint = True
    with pytest.raises(Cancelled):
        world.backup()
    assert len(world.ids()) == 1
    proof = world.do("verify", database="app")["proof"]
    assert (proof["grade"], proof["failure"]) == ("restored", None)
    said = proof["findings"][-1]["detail"]
    assert said.endswith("dbguardctl log has the cause. Make another backup: dbguardctl backup app")


def test_verify_proves_and_measures(world):
    id = world.backup()
    proof = world.do("verify", database="app")["proof"]
    assert (proof["id"], proof["grade"], proof["failure"]) == (id, "proven", None)
    assert world.said("backup.graded")[0]["proven_at"]
    assert [finding["outcome"] for finding in proof["findings"]] == ["ok", "ok", "ok"]


@pytest.mark.parametrize(
    ("restored", "said"),
    [
        (b'{"users": [1, 2]}', "table users has 2 rows instead of 3"),
        (b'{"users": [1, 2, 4]}', "table users differs"),
        (b"{}", "table users is missing"),
        (b'{"users": [1, 2, 3], "more": []}', "table more was not there"),
    ],
)
def test_wrong_content_that_opens_is_never_proven(world, restored, said):
    id = world.backup()
    world.engine.break_restore = restored
    with pytest.raises(ProofFailed) as caught:
        world.do("verify", database="app")
    assert said in caught.value.detail
    graded = world.said("backup.graded")[0]
    assert (graded["id"], graded["proven_at"]) == (id, None)
    assert said in graded["failure"]


def test_a_proof_that_fails_proposes_what_helps(world):
    """A new full backup reads again what is stored wrongly, but of a damaged database it is one more damaged copy."""

    def proposed(**tables):
        id = world.backup(**tables)
        with pytest.raises(ProofFailed) as caught:
            world.do("verify", database="app")
        assert caught.value.hints[0] == f"dbguardctl show {id}"
        return list(caught.value.hints[1:]), caught.value.detail

    def found(name):
        finding, live = Finding(name, "failed", "torn"), {"try_live": "check the live one"}
        world.engine.examine = lambda target, queries, progress: Examination([finding], None, live)

    good = world.backup()
    world.do("verify", database="app")
    proven, full = "dbguardctl restore app --dry-run  # the newest proven backup", "dbguardctl backup app --full"
    world.engine.refuse_restore = Damaged("pack: not what was stored")
    assert proposed() == ([full], "restore: DBG-4001 pack: not what was stored.")
    world.engine.refuse_restore = None
    found("integrity_check")
    hints, said = proposed(users=[1, 2])
    assert hints == ["check the live one", proven] and "the live database is probably damaged" in said
    world.backup(users=[1, 2, 3])
    hints, _ = proposed()  # incremental
    assert hints[:2] == ["check the live one", proven] and hints[2].startswith(f"{full}  # if the live database is")
    found("query: select 1")
    hints, said = proposed(users=[1, 2, 3, 4, 5])
    assert proven in hints and "check the live one" not in hints and "has that content" in said
    assert world.do("restore", database="app", dry_run=True, to=str(world.place / "x"))["plan"]["backup"] == good


def test_a_proof_query_that_does_not_hold_fails_the_proof(world):
    world.spec["database"]["queries"] = [{"sql": "rows", "min": 100, "max": None, "equals": None, "why": ""}]
    world.backup()
    with pytest.raises(ProofFailed, match="failed its test restore"):
        world.do("verify", database="app")


@pytest.mark.parametrize("trouble", [Internal, NotPermitted, TargetExists, Unsupported, Usage, NoSpace, KeyMissing])
def test_trouble_with_the_machine_is_no_verdict_on_a_backup(world, trouble):
    id = world.backup()
    world.do("verify", database="app")
    world.engine.refuse_restore = trouble("proof: could not be tried")
    with pytest.raises(trouble):
        world.do("verify", database="app")
    assert [proof.grade for proof in world.repository.proofs()] == ["proven"]
    world.engine.refuse_restore = Damaged("pack: not what was stored")
    with pytest.raises(ProofFailed):
        world.do("verify", database="app", backup=id)
    assert len(world.repository.proofs()) == 2


def test_the_backup_after_a_restore_that_met_damage_is_full(world):
    world.backup()
    world.backup()
    world.engine.refuse_restore = Damaged("pack: not what was stored")
    with pytest.raises(ProofFailed):
        world.do("verify", database="app")
    world.engine.refuse_restore = None
    world.backup()
    world.backup()
    assert [backup.kind for backup in world.repository.backups()] == ["incremental", "full", "incremental", "full"]
    assert world.do("verify", database="app")["proof"]["grade"] == "proven"


def test_an_outcome_that_nobody_knows_proves_nothing(world):
    world.backup()
    world.engine.examine = lambda target, queries, progress: Examination(
        [Finding("opened", "perhaps")], world.engine.fingerprint(progress)
    )
    world.engine.release = lambda: None
    world.engine.snapshot = world.path.read_bytes()
    assert world.do("verify", database="app")["proof"]["grade"] == "restored"


def test_restore_goes_to_a_new_place_and_never_overwrites(world, tmp_path):
    world.backup()
    target = tmp_path / "live" / "restored.json"
    plan = world.do("restore", database="app", to=str(target), dry_run=True)["plan"]
    assert (target.exists(), plan["to"], plan["in_place"], plan["grade"]) == (False, str(target), False, "stored")
    world.do("restore", database="app", to=str(target))
    assert json.loads(target.read_text()) == {"users": [1, 2, 3]}
    id = plan["backup"][:12]
    with pytest.raises(TargetExists) as caught:
        world.do("restore", database="app", to=str(target), backup=id, dry_run=True)
    assert caught.value.hints == (f"dbguardctl restore app --id {id} --to {target}.restored --dry-run",)
    with pytest.raises(TargetExists) as caught:
        world.do("restore", database="app", to="/dev/null")
    assert f"--to {world.path.parent}/" in caught.value.hints[0]
    target.with_name("other.json-wal").touch()
    with pytest.raises(TargetExists):
        world.do("restore", database="app", to=str(target.with_name("other.json")))
    with pytest.raises(Usage):
        world.do("restore", database="app", to="relative.json")


def test_a_copy_that_lacks_rights_of_the_original_says_so(world, tmp_path):
    world.backup()
    done = world.do("restore", database="app", to=str(tmp_path / "live" / "whole.json"))
    assert done["findings"][-1] == {"name": "owner and rights", "outcome": "ok", "detail": ""}
    world.engine.lost = ["owner app: not known on this host", "access list: Operation not supported"]
    done = world.do("restore", database="app", to=str(tmp_path / "live" / "bare.json"))
    assert done["findings"][-1]["outcome"] == "failed"
    assert done["findings"][-1]["detail"] == "; ".join(world.engine.lost)


def test_a_machine_without_the_programs_that_read_a_copy_gets_it_all_the_same(world, tmp_path):
    world.backup()
    world.engine.refuse_examine = ToolMissing("postgres is not here", hints=["apt-get install postgresql-15"])
    done = world.do("restore", database="app", to=str(tmp_path / "live" / "copy.json"))
    assert (tmp_path / "live" / "copy.json").exists()
    found = {finding["name"]: finding for finding in done["findings"]}
    assert found["test restore"]["outcome"] == "inconclusive" and "apt-get" in found["test restore"]["detail"]
    assert found["content equals the snapshot"]["outcome"] == "inconclusive"


def test_who_owned_the_original_gets_the_place_and_the_copy(world, tmp_path):
    world.engine.rights = {"owner": "nobody", "group": "nogroup"}
    world.backup()
    gone = tmp_path / "gone" / "app.json"
    with pytest.raises(Usage) as missing:
        world.do("restore", database="app", to=str(gone))
    assert missing.value.hints == (f"install -d -o nobody -m 0700 {gone.parent}",)
    world.engine.refuse_restore = PlaceDenied("no", hints=["install -d there"])
    target = tmp_path / "live" / "copy.json"
    with pytest.raises(PlaceDenied) as denied:
        world.do("restore", database="app", to=str(target))
    assert (
        denied.value.hints[0].startswith("install -d -o nobody -m 0700 /") and "/restored  #" in denied.value.hints[0]
    )
    places = [reachable(target, user) for user in (os.geteuid(), 12345)]  # to whom the directories of a test are closed
    assert places == [target, ELSEWHERE]
    world.engine.refuse_restore = None
    world.engine.lost = ["owner nobody: Operation not permitted"]
    done = world.do("restore", database="app", to=str(target))
    assert done["findings"][-1]["hints"] == [f"chown nobody:nogroup {target}"]

    world.engine.rights = {"owner": "nosuchuser", "group": None}
    world.backup(users=[4])
    done = world.do("restore", database="app", to=str(target.with_name("other.json")))
    (hint,) = done["findings"][-1]["hints"]
    assert hint.startswith("chown nosuchuser: ") and "when this host has a user nosuchuser" in hint


def test_where_no_user_can_write_nothing_is_promised(world, tmp_path):
    """A disk that is mounted read-only: the real restore meets the same, and no directory can be made there."""
    world.engine.rights = {"owner": "nobody", "group": "nogroup"}
    world.backup()
    (place := tmp_path / "closed").mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "dbguard-test", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.decode().strip()}")
    try:
        with pytest.raises(PlaceDenied) as denied:
            world.do("restore", database="app", to=str(place / "app.json"), dry_run=True)
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert "no user can write there" in denied.value.detail and not denied.value.hints


def test_a_lost_directory_is_made_for_the_owner_of_the_database(world):
    world.engine.rights = {"owner": "nobody", "group": "nogroup"}
    world.backup(users=[1])
    shutil.rmtree(world.path.parent)
    with pytest.raises(Usage) as missing:
        world.do("restore", database="app", in_place=True, confirm="app")
    assert missing.value.hints == (f"install -d -o nobody -m 0700 {world.path.parent}",)


def test_restore_at_takes_the_newest_backup_not_after(world, tmp_path):
    first = world.backup(users=[1])
    moment = world.now
    world.backup(users=[1, 2])
    plan = world.do("restore", database="app", at=moment.isoformat(), dry_run=True)["plan"]
    assert plan["backup"] == first
    with pytest.raises(NotFound):
        world.do("restore", database="app", at="2020-01-01T00:00:00Z", dry_run=True)
    with pytest.raises(Usage):
        world.do("restore", database="app", at="2020-01-01T00:00:00", dry_run=True)


def test_in_place_needs_the_name_takes_a_safety_copy_and_can_be_undone_twice(world):
    world.backup(users=[1])
    world.write(users=[1, 2])
    with pytest.raises(ConfirmMissing):
        world.do("restore", database="app", in_place=True)
    with pytest.raises(ConfirmMissing):
        world.do("restore", database="app", in_place=True, confirm="other")
    world.later(minutes=1)
    done = world.do("restore", database="app", in_place=True, confirm="app")
    assert world.live() == {"users": [1]}
    assert done["safety_copy"] == world.ids()[0]
    world.later(minutes=1)
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1, 2]}
    world.later(minutes=1)
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1]}


def test_what_is_committed_while_the_copy_is_staged_is_in_the_safety_copy(world):
    world.backup(users=[1])
    examine = world.engine.examine

    def busy(target, queries, progress):
        world.write(users=[1, 2, 3, 4])
        return examine(target, queries, progress)

    world.engine.examine = busy
    world.later(minutes=1)
    world.do("restore", database="app", in_place=True, confirm="app")
    assert world.live() == {"users": [1]}
    world.engine.examine = examine
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1, 2, 3, 4]}


def test_a_live_database_that_cannot_be_kept_is_named_as_what_is_in_the_way(world):
    world.backup(users=[1])
    world.engine.refuse_dump = SourceDamaged("app: malformed")
    with pytest.raises(SourceDamaged) as caught:
        world.do("restore", database="app", in_place=True, confirm="app")
    assert "by hand" in caught.value.hints[0]


def test_in_place_changes_nothing_if_the_copy_is_wrong_or_the_live_one_in_use(world):
    world.backup(users=[1])
    world.write(users=[9])
    world.engine.break_restore = b'{"users": []}'
    with pytest.raises(ProofFailed):
        world.do("restore", database="app", in_place=True, confirm="app")
    assert world.live() == {"users": [9]}
    world.engine.break_restore = b""
    world.engine.in_use = True
    before = world.ids()
    with pytest.raises(TargetInUse):
        world.do("restore", database="app", in_place=True, confirm="app")
    assert (world.live(), world.ids()) == ({"users": [9]}, before)  # nothing was copied for nothing
    plan = world.do("restore", database="app", in_place=True, dry_run=True)["plan"]
    assert "is in use: the restore is refused" in plan["warnings"][-1] and plan["undo_days"] == 7
    elsewhere = world.do("restore", database="app", dry_run=True)["plan"]
    assert (elsewhere["warnings"], elsewhere["undo_days"]) == ([], None)


def test_a_lost_database_comes_back_in_place_without_a_safety_copy(world):
    world.backup(users=[1])
    world.path.unlink()
    with pytest.raises(SourceMissing):
        world.backup()
    world.path.with_name(f"{world.path.name}-wal").touch()
    with pytest.raises(TargetExists) as refused:
        world.do("restore", database="app", to=str(world.path), at="2999-01-01T00:00:00Z")
    asked = "dbguardctl restore app --at 2999-01-01T00:00:00Z --in-place --confirm app"
    assert refused.value.hints == (asked,)
    done = world.do("restore", database="app", in_place=True, confirm="app")
    assert f"{world.path.name}-wal is left" in done["plan"]["warnings"][0]
    assert (world.live(), done["safety_copy"], done["undo"]) == ({"users": [1]}, None, None)


def test_expire_keeps_what_the_policy_asks_for_with_reasons_and_a_dry_run_deletes_nothing(world):
    ids = [world.backup(users=[n]) for n in range(5)]
    plan = world.do("expire", database="app", dry_run=True)["plan"]
    assert [entry["id"] for entry in plan["keep"]] == [ids[4], ids[3]]
    assert all(entry["because"] for entry in plan["keep"] + plan["drop"])
    assert len(world.ids()) == 5
    world.do("expire", database="app")
    assert world.ids() == [ids[4], ids[3]]


def test_expire_never_takes_the_newest_proven_one_nor_a_held_one(world):
    proven, held, *_ = [world.backup(users=[n]) for n in range(5)]
    world.do("verify", database="app", backup=proven)
    world.do("hold", backup=held, reason="audit")
    world.do("expire", database="app")
    assert {proven, held} <= set(world.ids())
    world.do("release", backup=held)
    world.do("expire", database="app")
    assert held not in world.ids()
    assert proven in world.ids()
    with pytest.raises(NotFound):
        world.do("release", backup=proven)


def _replaced(world):
    world.later(minutes=1)
    return world.do("restore", database="app", in_place=True, confirm="app")["safety_copy"]


def test_the_end_of_an_undo_ends_no_other_hold_and_only_by_a_clock_that_is_trusted(world):
    world.backup(users=[1])
    both, one = [_replaced(world), _replaced(world)]
    world.do("hold", backup=both, reason="court order")
    world.later(days=30)
    for number in range(3):
        world.backup(users=[number])
    world.later(days=-20)
    with pytest.raises(ClockDoubt):
        world.do("expire", database="app")
    world.later(days=20)
    planned = world.do("expire", database="app", dry_run=True)["plan"]
    assert world.said("backup.released") == []
    assert world.do("expire", database="app")["plan"] == planned
    assert {facts["id"] for facts in world.said("backup.released")} == {both, one}
    assert [hold.reason for hold in world.repository.holds()[both]] == ["court order"]
    assert both in world.ids()
    assert one not in world.ids()


def test_one_run_does_not_delete_nearly_everything_unasked(world):
    ids = [world.backup(users=[n]) for n in range(12)]
    with pytest.raises(Breaker):
        world.do("expire", database="app")
    assert len(world.ids()) == 12
    world.do("expire", database="app", confirm="app")
    assert world.ids() == [ids[11], ids[10]]


def test_check_finds_what_is_missing(world):
    world.backup()
    found = {finding["name"]: finding for finding in world.do("check", database="app", data=True)["findings"]}
    assert found["key main"]["outcome"] == "failed"
    assert found["proof"]["outcome"] == "failed"
    assert found["every stored byte"]["outcome"] == "ok"
    assert world.do("recovery-sheet")["identity"].startswith("AGE-SECRET-KEY-1")
    world.do("verify", database="app")
    found = {finding["name"]: finding for finding in world.do("check", database="app")["findings"]}
    assert (found["key main"]["outcome"], found["proof"]["outcome"]) == ("ok", "ok")


def test_the_recovery_identity_alone_opens_the_repository(world):
    id = world.backup()
    identity = world.do("recovery-sheet")["identity"]
    assert world.do("recovery-test", identity=identity)["backups"] == 1
    other = World(world.place / "live")
    with pytest.raises(Exception, match="recipient|opens|key"):
        other.do("recovery-test", identity=identity)
    assert id


def test_scan_tells_everything_that_a_lost_catalog_knew(world):
    ids = [world.backup(users=[n]) for n in range(3)]
    world.do("verify", database="app", backup=ids[1])
    world.do("hold", backup=ids[0], reason="audit")
    world.events.clear()
    assert world.do("scan") == {"backups": 3}
    assert {facts["id"] for facts in world.said("backup.stored")} == set(ids)
    assert [facts["grade"] for facts in world.said("backup.graded")] == ["proven"]
    assert [facts["reason"] for facts in world.said("backup.held")] == ["audit"]


def test_an_expired_backup_comes_back_until_its_grace_is_over_and_goes_again_unless_held(world):
    first, second, *_ = [world.backup(users=[n]) for n in range(4)]
    world.do("expire", database="app")
    assert first not in world.ids()
    [until] = {facts["grace_until_at"] for facts in world.said("backup.expired")}
    assert until == "2026-03-02T11:59:00.000Z"  # the last five minutes of the grace are the sweep's
    for id in (first, second):
        assert world.do("recall", backup=id) == {"backup": id}
    assert world.said("backup.recalled") == [{"id": first}, {"id": second}]
    assert {first, second} <= set(world.ids())
    world.do("hold", backup=first, reason="needed again")
    assert world.do("expire", database="app")["expired"] == [second]
    assert world.do("restore", database="app", backup=first, to=str(world.place / "back"))["target"]
    with pytest.raises(NotFound, match="not an expired backup"):
        world.do("recall", backup=first)
    world.later(days=1)
    with pytest.raises(NotFound, match="grace is over"):
        world.do("recall", backup=second)


def test_scan_tells_what_can_be_recalled(world):
    first, *_ = [world.backup(users=[n]) for n in range(3)]
    world.do("expire", database="app")
    [told] = world.said("backup.expired")
    world.events.clear()
    assert world.do("scan") == {"backups": 2}
    assert first in {facts["id"] for facts in world.said("backup.stored")}
    [again] = world.said("backup.expired")
    assert (again["id"], again["reasons"], again["grace_until_at"]) == (first, told["reasons"], told["grace_until_at"])


def test_a_cancelled_backup_leaves_nothing(world):
    world.cancelled = True
    with pytest.raises(Cancelled):
        world.backup()
    assert world.ids() == []


def test_an_id_that_fits_several_backups_lists_some_and_says_that_there_are_more(world):
    for _ in range(5):
        world.backup()
        world.later(minutes=1)
    with pytest.raises(Usage) as caught:
        world.do("verify", database="app", backup="0")
    assert sorted(caught.value.detail.split(", ")) == sorted(world.ids())
    world.backup()
    with pytest.raises(Usage) as caught:
        world.do("verify", database="app", backup="0")
    assert caught.value.message == "app: 0 matches 6 backups"
    assert caught.value.detail.split(", ")[5:] == ["…"]
