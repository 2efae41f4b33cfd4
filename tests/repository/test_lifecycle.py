"""A repository over its life: opening, books, expiry, recall, sweep, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dbguardd.errors import (
    Breaker,
    ClockDoubt,
    Conflict,
    Damaged,
    FormatTooNew,
    Held,
    KeyMissing,
    KeyRefused,
    NotARepository,
    NotFound,
    ObjectMissing,
    Usage,
)
from dbguardd.repository import Proof, opening
from dbguardd.repository.seal import ROOT_ID, Domain
from tests.repository.lifecycle_kit import GRACE, Key, World, clean, damage


@pytest.fixture
def world():
    return World()


def names(world: World, prefix: str = "") -> list[str]:
    return [entry.name for entry in world.storage.list(prefix)]


# ------------------------------------------------------------------------------------------------ opening


def test_a_new_repository_opens_with_any_of_its_keys_and_no_other(world):
    made = world.create(Key(), Key("words", kind="passphrase", offline=True))
    assert len(made.id) == 32
    for key in (Key(), Key("words", kind="passphrase")):
        assert world.open(key).id == made.id
    with pytest.raises(KeyRefused):
        world.open(Key("stranger"))
    with pytest.raises(KeyMissing):
        world.open(Key("age1", kind="age"))
    with pytest.raises(KeyRefused):
        world.open(Key(only_wrap=True))
    assert sorted(made.recipients()) == [("machine", "machine", False), ("passphrase", "words", True)]


def test_nothing_is_no_repository_and_two_do_not_fit_in_one_storage(world):
    with pytest.raises(NotARepository):
        world.open()
    world.create()
    with pytest.raises(Conflict):
        world.create()


def test_a_lost_repo_json_is_not_replaced(world):
    repository = world.create()
    world.save(repository)
    world.storage.delete("repo.json")
    with pytest.raises(NotARepository):
        world.open()
    with pytest.raises(Conflict, match=r"without repo\.json"):
        world.create()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b'"min_reader":1', b'"min_reader":2', FormatTooNew),
        (b'"required":[]', b'"required":["tiers"]', FormatTooNew),
        (b'"optional":[]', b'"optional":["x"]', Damaged),
        (b'{"created', b'["created', NotARepository),
        (b'"}\n', b'"} \n', Damaged),
    ],
)
def test_the_description_is_authenticated(world, old, new, error):
    world.create()
    data, at = world.storage._objects["repo.json"]
    assert old in data
    world.storage._objects["repo.json"] = (data.replace(old, new), at)
    with pytest.raises(error):
        world.open()


def test_a_key_that_somebody_else_wrapped_for_a_recipient_is_passed_over(world):
    made = world.create(Key(), Key("paper", kind="age"))
    for byte in range(8):  # some of them are listed before the true one
        forged = Domain(bytes.fromhex(made.id), ROOT_ID, "", bytes([byte]) * 32)
        opening.add(world.storage, forged, Key("paper", kind="age"))
    assert len(made.recipients()) == 10
    assert world.open(Key("paper", kind="age")).id == made.id


def test_a_recipient_is_added_once_and_the_last_key_cannot_be_dropped(world):
    repository = world.create()
    repository.add_recipient(Key("paper", kind="age", offline=True, only_wrap=True))
    repository.add_recipient(Key("paper", kind="age", offline=True, only_wrap=True))
    assert len(repository.recipients()) == 2
    with pytest.raises(Held):
        repository.drop_recipient("machine")  # nobody was seen to open with the paper
    repository.add_recipient(Key("new machine"))
    repository.drop_recipient("machine")
    with pytest.raises(KeyRefused):
        world.open(Key())
    assert world.open(Key("new machine")).id == repository.id
    with pytest.raises(NotFound):
        repository.drop_recipient("machine")


# ------------------------------------------------------------------------------------------------ books


def test_backups_are_listed_newest_first_and_restore(world):
    repository = world.create()
    made = []
    for _ in range(3):
        for database in ("orders", "users"):
            made.append(world.save(repository, database))
            world.clock.forward(minutes=1)
    assert [backup.id for backup in repository.backups()] == [backup.id for backup in reversed(made)]
    assert [b.seq for b in repository.backups("orders")] == [3, 2, 1]
    assert repository.backups("orders")[0].parent == made[2].id
    assert repository.backup(made[0].id[:24].lower()) == made[0] if made[0].id[:24] != made[1].id[:24] else True
    world.intact(world.open())
    clean(repository)
    with pytest.raises(NotFound):
        repository.backup("01ZZZ")
    for wrong in ("../x", "", "é", "0 1"):
        with pytest.raises(NotFound):
            repository.backup(wrong)
    with pytest.raises(Usage):
        repository.backup("0")


def test_ids_rise_even_when_the_clock_stands_still_or_goes_back(world):
    repository = world.create()
    ids = []
    for hours in (0, 0, -5):
        world.clock.forward(hours=hours)
        ids.append(world.save(repository).id)
    assert ids == sorted(ids)
    assert [backup.id for backup in repository.backups()] == ids[::-1]


def test_prints_proofs_and_holds(world):
    repository = world.create()
    backup = world.save(repository)
    assert repository.fingerprint(backup.id) is None
    repository.attest(backup.id, {"tables": {"t": 5}}, world.clock.host)
    assert world.open().fingerprint(backup.id) == {"tables": {"t": 5}}
    proof = Proof(backup.id, world.clock.host, "proven", 1.5, ({"name": "opens", "outcome": "ok"},), "0.1")
    repository.add_proof(proof)
    world.clock.forward(days=-9)
    later = replace(proof, at=world.clock.host, grade="stored")
    repository.add_proof(later)
    assert world.open().proofs() == [replace(proof, number=1), replace(later, number=2)]  # whatever the clock says
    with pytest.raises(NotFound):
        repository.release(backup.id, "uid 0", world.clock.host)
    repository.hold(backup.id, "court", "uid 0", world.clock.host)
    [hold] = world.open().holds()[backup.id]
    assert (hold.reason, hold.actor, hold.at) == ("court", "uid 0", world.clock.host)
    with pytest.raises(Held):
        repository.expire({backup.id: ["old"]}, world.clock.host, confirmed=True)
    repository.release(backup.id, "uid 0", world.clock.host)
    assert repository.holds() == {}
    clean(repository)


def test_a_backup_that_is_not_sealed_is_none(world):
    repository = world.create()
    with (
        pytest.raises(RuntimeError, match="engine"),
        repository.saving("orders", "files", "copy", world.clock.host) as saving,
    ):
        with saving.write("a") as file:
            file.write(b"x" * 100_000)
        raise RuntimeError("engine failed")
    assert repository.backups() == []
    assert damage(repository) == []


# ------------------------------------------------------------------------------------------------ letting go


def test_expire_grace_sweep(world):
    repository = world.create()
    first = world.save(repository)
    second = world.save(repository, full=True)
    repository.expire({first.id: ["keep.last"]}, world.clock.host)
    assert [backup.id for backup in repository.backups()] == [second.id]
    assert [(gone.backup, gone.reasons) for gone in repository.expired()] == [(first.id, ("keep.last",))]
    with pytest.raises(NotFound, match="expired"):
        repository.backup(first.id)

    planned = repository.sweep(world.clock.host, GRACE, dry_run=True)
    assert (planned.marked, planned.dry_run) == (1, True)
    assert len(names(world, "records/tomb")) == 1
    marked = repository.sweep(world.clock.host, GRACE)
    assert (marked.backups, marked.objects, marked.marked, marked.waiting) == ((), 0, 1, 0)
    world.clock.forward(hours=23)
    waiting = repository.sweep(world.clock.host, GRACE)
    assert (waiting.backups, waiting.marked, waiting.waiting) == ((), 0, 1)
    assert waiting.next_at == marked.next_at or waiting.next_at is not None
    world.clock.forward(hours=1)
    swept = repository.sweep(world.clock.host, GRACE)
    assert swept.backups == (first.id,)
    assert (swept.objects, swept.bytes > 0) == (4, True)  # manifest, its tomb, one pack, its tomb
    assert len(names(world, "packs/")) == 1
    assert names(world, "records/tomb") == []
    world.intact(repository)
    clean(repository)
    again = repository.sweep(world.clock.host, GRACE)
    assert (again.objects, again.marked) == (0, 0)


def test_any_parent_may_go_first(world):
    repository = world.create()
    backups = [world.save(repository) for _ in range(4)]
    assert [backup.kind for backup in backups] == ["full", *["incremental"] * 3]
    repository.expire({backup.id: ["x"] for backup in backups[:3]}, world.clock.host)
    for _ in range(3):
        repository.sweep(world.clock.host, GRACE)
        world.clock.forward(hours=25)
    assert [backup.id for backup in repository.backups()] == [backups[3].id]
    world.intact(repository)
    clean(repository)


def test_recall_while_the_grace_lasts(world):
    repository = world.create()
    first = world.save(repository)
    world.save(repository, full=True)
    repository.expire({first.id: ["oops"]}, world.clock.host)
    repository.sweep(world.clock.host, GRACE)
    world.clock.forward(hours=23)
    repository.recall([first.id], world.clock.host, GRACE)
    assert first.id in [backup.id for backup in repository.backups()]
    world.clock.forward(hours=30)
    swept = repository.sweep(world.clock.host, GRACE)
    assert (swept.backups, swept.kept) == ((), 1)
    world.intact(repository)
    clean(repository)
    repository.expire({first.id: ["now"]}, world.clock.host)
    world.clock.forward(hours=23, minutes=56)
    with pytest.raises(NotFound, match="grace is over"):
        repository.recall([first.id], world.clock.host, GRACE)
    with pytest.raises(NotFound):
        repository.recall(["01ARZ3NDEKTSV4RRFFQ69G5FAV"], world.clock.host, GRACE)


def test_a_hold_placed_in_the_last_moment_counts(world):
    repository = world.create()
    first = world.save(repository)
    world.save(repository, full=True)
    hold = world.copy()  # another process places a hold; neither sees the other's record
    hold.open().hold(first.id, "court", "uid 0", world.clock.host)
    repository.expire({first.id: ["x"]}, world.clock.host)
    [name] = names(hold, "records/hold")
    world.storage.put(name, hold.storage.get(name))
    repository.sweep(world.clock.host, GRACE)
    world.clock.forward(hours=30)
    swept = repository.sweep(world.clock.host, GRACE)
    assert (swept.backups, swept.kept) == ((), 1)
    assert len(names(world, "packs/")) == 2


def test_a_hold_that_does_not_open_is_a_hold(world):
    repository = world.create()
    first = world.save(repository)
    world.save(repository)
    repository.hold(first.id, "court", "uid 0", world.clock.host)
    [name] = names(world, "records/hold")
    data, at = world.storage._objects[name]
    world.storage._objects[name] = (data[:-1] + b"\0", at)
    with pytest.raises(Held, match="held"):
        repository.expire({first.id: ["x"]}, world.clock.host)
    repository.release(first.id, "uid 0", world.clock.host)
    repository.expire({first.id: ["x"]}, world.clock.host)


def test_leftovers_of_a_failed_backup_are_swept_but_not_young_ones(world):
    repository = world.create()
    world.save(repository)
    with pytest.raises(RuntimeError), repository.saving("orders", "files", "copy", world.clock.host) as saving:
        with saving.write("a") as file:
            file.write(world.dice.randbytes(100_000))
        saving._writer.finish()
        raise RuntimeError
    assert len(names(world, "packs/")) == 2
    assert repository.sweep(world.clock.host, GRACE).marked == 0
    for _ in range(2):
        world.clock.forward(hours=25)
        repository.sweep(world.clock.host, GRACE)
    assert len(names(world, "packs/")) == 1
    clean(repository)


def test_the_last_backup_goes_only_on_demand(world):
    repository = world.create()
    only = world.save(repository)
    with pytest.raises(Breaker):
        repository.expire({only.id: ["x"]}, world.clock.host)
    assert repository.backups() == [only]
    with pytest.raises(NotFound):
        repository.expire({"01ARZ3NDEKTSV4RRFFQ69G5FAV": ["x"]}, world.clock.host)
    repository.expire({only.id: ["x"]}, world.clock.host, confirmed=True)
    assert repository.backups() == []


def test_a_run_that_would_delete_most_bytes_stops(world):
    repository = world.create()
    backups = [world.save(repository, full=True) for _ in range(12)]
    repository.expire({backup.id: ["x"] for backup in backups[:-1]}, world.clock.host)
    repository.sweep(world.clock.host, GRACE)
    world.clock.forward(hours=25)
    before = names(world)
    with pytest.raises(Breaker):
        repository.sweep(world.clock.host, GRACE)
    assert names(world) == before
    assert repository.sweep(world.clock.host, GRACE, confirmed=True).objects == 11 * 3 + 1
    world.intact(repository)


@pytest.mark.parametrize("place", ["packs/", "records/backup", "records/tomb", "records/hold", "domains/"])
def test_nothing_is_swept_beside_damage(world, place):
    repository = world.create()
    first = world.save(repository)
    kept = world.save(repository, full=True)
    repository.hold(kept.id, "r", "a", world.clock.host)
    repository.expire({first.id: ["x"]}, world.clock.host)
    repository.sweep(world.clock.host, GRACE)
    needed = {"packs/": [s.root.pack for s in kept.streams], "records/backup": [kept.id]}.get(place, [""])
    victim = next(name for name in names(world, place) if any(part in name for part in needed))
    if place in ("packs/", "domains/"):
        world.storage.delete(victim)
    else:
        data, at = world.storage._objects[victim]
        world.storage._objects[victim] = (data[:-1] + b"\0", at)
    world.clock.forward(hours=25)
    before = names(world)
    with pytest.raises((Damaged, ObjectMissing)):
        world.open().sweep(world.clock.host, GRACE)
    assert names(world) == before


@pytest.mark.parametrize("about", ["print", "proof", "hold"])
def test_a_manifest_that_vanished_takes_nothing_with_it_until_that_is_confirmed(world, about):
    repository = world.create()
    lost, kept = world.save(repository), world.save(repository, full=True)
    match about:
        case "print":
            repository.attest(lost.id, {"tables": {}}, world.clock.host)
        case "proof":
            repository.add_proof(Proof(lost.id, world.clock.host, "proven", 1.0, (), "0"))
        case "hold":
            repository.hold(lost.id, "r", "a", world.clock.host)
    [manifest] = names(world, f"records/backup/{lost.id}")
    data, at = world.storage._objects[manifest]
    world.storage.delete(manifest)
    assert [finding.backups for finding in damage(repository)] == [(lost.id,)]
    for _ in range(3):
        world.clock.forward(hours=25)
        with pytest.raises(ObjectMissing, match=lost.id):
            repository.sweep(world.clock.host, GRACE)
    world.storage._objects[manifest] = (data, at)
    world.intact(repository)
    assert len(repository.backups()) == 2
    world.storage.delete(manifest)
    assert repository.sweep(world.clock.host, GRACE, confirmed=True).backups == (lost.id,)
    world.clock.forward(hours=25)
    repository.sweep(world.clock.host, GRACE)
    clean(repository)
    assert repository.backups() == [kept]


def test_a_broken_backup_that_expired_does_not_stop_the_sweep_for_ever(world):
    repository = world.create()
    first = world.save(repository)
    world.save(repository, full=True)
    [victim] = names(world, f"records/backup/{first.id}")
    data, at = world.storage._objects[victim]
    world.storage._objects[victim] = (data[:-1] + b"\0", at)
    repository = world.open()
    assert first.id not in [backup.id for backup in repository.backups()]
    repository.expire({first.id: ["damaged"]}, world.clock.host)
    world.clock.forward(hours=25)
    assert repository.sweep(world.clock.host, GRACE).backups == (first.id,)
    world.clock.forward(hours=25)
    repository.sweep(world.clock.host, GRACE)
    world.intact(repository)
    clean(repository)


def test_a_damaged_parent_is_not_built_on(world):
    repository = world.create()
    world.save(repository)
    world.storage.delete(names(world, "packs/")[0])
    healed = world.save(world.open())
    assert healed.kind == "full"
    world.intact(world.open(), [healed.id])


# ------------------------------------------------------------------------------------------------ clocks


def ready(world):
    repository = world.create()
    first = world.save(repository)
    world.save(repository, full=True)
    repository.expire({first.id: ["x"]}, world.clock.host)
    repository.sweep(world.clock.host, GRACE)
    return repository


def doubts(world, repository):
    before = [name for name in names(world) if not name.startswith("clock/")]
    with pytest.raises(ClockDoubt) as caught:
        repository.sweep(world.clock.host, GRACE)
    assert [name for name in names(world) if not name.startswith("clock/")] == before
    return caught.value


def test_skew_freezes_deletions(world):
    repository = ready(world)
    world.clock.forward(hours=25)
    world.clock.host += timedelta(minutes=6)
    doubts(world, repository)
    world.clock.host -= timedelta(minutes=2)
    assert repository.sweep(world.clock.host, GRACE).objects


def test_a_clock_that_went_back_freezes_deletions(world):
    repository = ready(world)
    world.clock.forward(days=30)
    world.save(repository)
    world.clock.forward(days=-5)
    assert "gone back" in doubts(world, repository).message


def test_a_leap_within_one_boot_is_seen_by_the_uptime(world):
    repository = ready(world)
    world.clock.storage += timedelta(days=3)
    world.clock.host += timedelta(days=3)
    assert "uptime" in doubts(world, repository).message
    world.clock.uptime += 24 * 3600
    assert repository.sweep(world.clock.host, GRACE).objects


def test_a_leap_after_a_reboot_is_seen_by_the_silence(world):
    repository = ready(world)
    world.clock.boot, world.clock.uptime = "boot-2", 60
    world.clock.storage += timedelta(days=4000)
    world.clock.host += timedelta(days=4000)
    assert "jumped" in doubts(world, repository).message
    world.clock.forward(hours=1)
    doubts(world, repository)
    world.clock.forward(hours=24)
    assert repository.sweep(world.clock.host, GRACE).objects
    assert names(world, "clock/") == []


def test_a_backup_ends_the_silence(world):
    repository = ready(world)
    world.clock.forward(days=100)
    doubts(world, repository)
    world.save(repository)
    assert repository.sweep(world.clock.host, GRACE).objects
    assert len(names(world, "clock/")) == 1  # it may be another process's probe: left for a while
    world.clock.forward(hours=2)
    repository.sweep(world.clock.host, GRACE)
    assert names(world, "clock/") == []
