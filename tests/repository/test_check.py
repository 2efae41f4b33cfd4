"""Damage and confusion in the storage: a check finds all of it and names the backups, and nobody gets a wrong byte."""

from __future__ import annotations

import hashlib

import pytest

from dbguardd.errors import GuardError, NotARepository
from dbguardd.repository import Proof
from tests.repository.lifecycle_kit import GRACE, World, clean, damage


def scene() -> World:
    """A small repository with one object of every kind."""
    world = World()
    repository = world.create()
    first = world.save(repository)
    second = world.save(repository)
    world.save(repository, "users")
    gone = world.save(repository, "users", full=True)
    repository.attest(second.id, {"tables": {"t": 3}}, world.clock.host)
    repository.add_proof(Proof(second.id, world.clock.host, "proven", 0.5, (), "0.1"))
    repository.hold(first.id, "why", "who", world.clock.host)
    repository.hold(second.id, "why", "who", world.clock.host)
    repository.release(second.id, "who", world.clock.host)
    repository.expire({gone.id: ["x"]}, world.clock.host)
    repository.sweep(world.clock.host, GRACE)
    return world


def objects(world: World) -> list[str]:
    return [entry.name for entry in world.storage.list("")]


def put(world: World, name: str, data: bytes) -> None:
    world.storage._objects[name] = (data, world.clock.storage)


def test_a_healthy_repository_is_clean_and_the_check_says_what_it_did_not_see():
    world = scene()
    repository = world.open()
    clean(repository)
    kinds = {name.split("/")[1] for name in objects(world) if name.startswith("records/")}
    assert kinds == {"backup", "print", "proof", "hold", "release", "tomb"}
    quick = [finding.message for finding in repository.check(False)]
    assert any("only both ends of each were read" in message for message in quick)
    assert not any("only both ends" in finding.message for finding in repository.check(True))
    assert "verify proves" in quick[-1]


def test_a_flipped_bit_in_any_byte_of_any_object_is_found():
    world = scene()
    total = 0
    for name in objects(world):
        data = world.storage.get(name)
        plain = name.startswith("recover/")
        for at in range(0, len(data), 1009 if plain else 7 if name == "repo.json" else 31):
            bad = bytearray(data)
            bad[at] ^= 1 << (at * 5 + 3) % 8
            put(world, name, bytes(bad))
            try:
                found = [finding.object for finding in damage(world.open())]
            except GuardError:
                found = [name]  # repo.json or a key: it does not even open
            assert found, f"{name}: byte {at} of {len(data)}"
            total += 1
        put(world, name, data)
    clean(world.open())
    assert total > 200


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.soak)])
def test_a_flipped_bit_in_every_byte_without_exception(step):
    """In all objects of a kind at once, of which each has to be named: by themselves they are flipped above."""
    world = scene()
    kinds = {name if name.startswith(("keys/", "repo.json")) else name.split("/")[0] for name in objects(world)}
    for kind in sorted(kinds):
        whole = {name: world.storage.get(name) for name in objects(world) if name.startswith(kind)}
        for at in range(0, max(map(len, whole.values())), 29 * step if kind == "recover" else step):
            flipped = {name: data for name, data in whole.items() if at < len(data)}
            for name, data in flipped.items():
                bad = bytearray(data)
                bad[at] ^= 1 << (at * 5 + 3) % 8
                put(world, name, bytes(bad))
            try:
                assert flipped.keys() <= {finding.object for finding in damage(world.open())}, f"{kind}: byte {at}"
            except GuardError:
                assert kind == "repo.json" or kind.startswith("keys/")
            for name in flipped:
                put(world, name, whole[name])
    clean(world.open())


@pytest.mark.parametrize("action", ["delete", "truncate", "extend", "zero", "empty"])
def test_each_object_deleted_cut_extended_or_zeroed_is_found(action):
    world = scene()
    known = needed(world)
    for name in objects(world):
        data = world.storage.get(name)
        if action == "delete":
            world.storage.delete(name)
        else:
            other = {"truncate": data[:-1], "extend": data + b"\0", "zero": bytes(len(data)), "empty": b""}[action]
            put(world, name, other)
        try:
            found = damage(world.open())
        except GuardError:
            found = [name]
        lone = action == "delete" and name.split("/")[0] in ("records", "keys")
        idle = action == "delete" and name.startswith("packs/") and name.rpartition("/")[2] not in known
        assert found or lone or idle, name
        put(world, name, data)


def needed(world: World) -> set[str]:
    repository = world.open()
    return {pack for backup, domain in repository._ledger.newest() for pack in repository._packs_of(backup, domain)}


@pytest.mark.parametrize("data", [False, True])
def test_a_check_names_the_backups_that_are_affected(data):
    world = scene()
    repository = world.open()
    newest = repository.backups("orders")[0]
    oldest = repository.backups("orders")[1]
    shared = oldest.streams[0].root.pack
    world.storage.delete(f"packs/{shared[:2]}/{shared}")
    found = damage(world.open(), data=data)
    affected = {backup for finding in found for backup in finding.backups}
    assert affected == {newest.id, oldest.id}


def test_swapped_renamed_and_foreign_objects_do_not_open():
    """Bytes are untouched, so are their hashes: only the place is another."""
    world = scene()
    repository = world.open()
    other = World(seed=2)
    stranger = other.save(other.create())
    first, second = (backup.id for backup in reversed(repository.backups("orders")))
    [name] = [entry.name for entry in world.storage.list(f"records/backup/{first}")]
    data = world.storage.get(name)
    digest = hashlib.sha256(data).hexdigest()
    [foreign] = [entry.name for entry in other.storage.list("records/backup/")]
    wrong = {
        f"records/backup/{second[:-1]}Z-{digest}": data,  # another slot
        f"records/print/{first}-{digest}": data,  # another kind
        f"records/tomb/{first}-{digest}": data,  # a manifest cannot expire a backup
        foreign: other.storage.get(foreign),  # another repository
        f"domains/{digest}": data,
    }
    for place, content in wrong.items():
        put(world, place, content)
        found = damage(world.open())
        assert [finding.object for finding in found] == [place]
        assert stranger.id not in [backup.id for backup in world.open().backups()]
        assert {first, second} <= {backup.id for backup in world.open().backups()}
        world.storage.delete(place)
    pack = next(iter(other.storage.list("packs/")))
    put(world, pack.name, other.storage.get(pack.name))
    assert [finding.object for finding in damage(world.open(), data=False)] == [pack.name]
    put(world, "notes.txt", b"hello")
    assert "notes.txt" in [f.object for f in world.open().check(False) if f.severity == "warning"]


def test_two_manifests_with_swapped_bytes_are_damage_and_not_each_other():
    world = scene()
    one, two = [entry.name for entry in world.storage.list("records/backup/")][:2]
    a, b = world.storage.get(one), world.storage.get(two)
    put(world, one, b)
    put(world, two, a)
    assert {finding.object for finding in damage(world.open())} == {one, two}
    assert not {one[15:41], two[15:41]} & {backup.id for backup in world.open().backups()}


def test_a_lost_domain_is_named_and_hides_no_other_database():
    world = scene()
    repository = world.open()
    orders = [domain for domain in repository._records.keyring.domains.values() if domain.name == "orders"]
    for entry in world.storage.list("domains/"):
        data = world.storage.get(entry.name)
        world.storage.delete(entry.name)
        left = {backup.database for backup in world.open().backups()}
        assert len(left) == 1
        found = damage(world.open())
        assert any("key of its database is gone" in finding.message for finding in found)
        put(world, entry.name, data)
    assert len(orders) == 1


def test_a_shredded_database_can_no_longer_be_read():
    world = scene()
    for entry in world.storage.list("domains/"):
        world.storage.delete(entry.name)
    assert world.open().backups() == []


def test_the_probe_of_another_check_is_no_stranger():
    world = scene()
    put(world, "probe-0123456789abcdef", b"dbguard")
    put(world, "holiday.jpg", b"dbguard")
    found = [finding.object for finding in world.open().check(data=False) if finding.severity != "unseen"]
    assert found == ["holiday.jpg"]


def test_json_that_is_nested_too_deeply_is_damage_and_no_bug():
    world = World()
    world.create()
    nested = b"[" * 60_000
    put(world, f"keys/{hashlib.sha256(nested).hexdigest()}", nested)
    assert any("not a wrapped key" in finding.message for finding in world.open().check(False))
    put(world, "repo.json", nested)
    with pytest.raises(NotARepository):
        world.open()
