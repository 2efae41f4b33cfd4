"""Records at scale: ten thousand backups are listed in about a second, from a directory."""

from __future__ import annotations

import dataclasses
import time

import pytest

from dbguardd.repository.ledger import Ledger
from dbguardd.repository.model import backup_from, encode, manifest
from dbguardd.repository.opening import make_domain
from dbguardd.repository.records import Record
from dbguardd.ulids import ulid
from tests.repository.lifecycle_kit import World


def test_a_manifest_survives_the_round_trip_and_is_small():
    world = World()
    backup = world.save(world.create())
    assert backup_from(manifest(backup)) == backup
    [entry] = world.storage.list("records/backup/")
    assert entry.size < 2048
    assert encode(manifest(backup)) == encode(manifest(backup_from(manifest(backup))))


def test_ulids_sort_by_time_and_behind_what_they_follow():
    world = World()
    ids = [ulid(world.clock.host, world.dice.randbytes)]
    for _ in range(100):
        ids.append(ulid(world.clock.host, world.dice.randbytes, after=ids[-1]))
    assert ids == sorted(set(ids))
    assert all(len(one) == 26 for one in ids)


def many(world: World, repository, count: int) -> None:
    """Add manifests, of which the storage cannot tell that nothing was backed up."""
    sample = world.save(repository)
    domain = make_domain(world.storage, repository._records.keyring, "orders", world.clock.host, world.dice.randbytes)
    last = sample.id
    for number in range(count):
        last = ulid(world.clock.host, world.dice.randbytes, after=last)
        repository._ledger.publish(dataclasses.replace(sample, id=last, seq=number + 2), domain)


def test_the_newest_backup_is_found_without_reading_all_of_them():
    world = World()
    repository = world.create()
    many(world, repository, 200)
    reads = []

    class Counting:
        url = "counting"

        def __getattr__(self, verb):
            return getattr(world.storage, verb)

        def get(self, name, *rest):
            reads.append(name)
            return world.storage.get(name, *rest)

    counting = world.open(storage=Counting())
    reads.clear()
    ledger: Ledger = counting._ledger
    backup, _ = next(ledger.newest("orders"))
    assert backup.seq == 201
    assert len(reads) == 1


@pytest.mark.slow
def test_ten_thousand_backups(tmp_path, capsys):
    from dbguardd.storage.directory import Directory

    world = World()
    many(world, world.create(), 9_999)
    for name, (data, _) in world.storage._objects.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    repository = world.open(storage=Directory(tmp_path))
    began = time.perf_counter()
    assert len(repository.backups()) == 10_000
    took = time.perf_counter() - began
    again = time.perf_counter()
    assert isinstance(next(repository._records.readable("backup")), Record)
    with capsys.disabled():
        print(f" 10,000 backups: {took:.2f} s, the first one {time.perf_counter() - again:.3f} s ", end="")
