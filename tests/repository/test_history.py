"""Long random histories: whatever happened before, what is visible restores, and a deep check is clean."""

from __future__ import annotations

import random

import pytest

from dbguardd.errors import Busy, Held, NotFound
from tests.repository.lifecycle_kit import GRACE, World, clean


@pytest.mark.parametrize("seed", range(6))
def test_random_histories(seed):
    dice, world = random.Random(seed), World(seed)
    repository = world.create()
    visible: list[str] = []
    expired: list[str] = []
    held: set[str] = set()

    def save():
        database = dice.choice(("orders", "orders", "users"))
        visible.append(world.save(repository, database, full=dice.random() < 0.15).id)

    def expire():
        going = dice.sample(visible, k=min(len(visible), dice.randrange(1, 4)))
        try:
            repository.expire({id: ["dice"] for id in going}, world.clock.host, confirmed=True)
        except Held:
            assert held & set(going)
        else:
            assert not held & set(going)
            visible[:] = [id for id in visible if id not in going]
            expired.extend(going)

    def recall():
        if not expired:
            return
        id = dice.choice(expired)
        try:
            repository.recall([id], world.clock.host, GRACE)
        except (Busy, NotFound):
            return
        expired.remove(id)
        visible.append(id)

    def hold():
        if visible:
            held.add(id := dice.choice(visible))
            repository.hold(id, "dice", "test", world.clock.host)

    def release():
        if held:
            id = held.pop()
            repository.release(id, "test", world.clock.host)

    def sweep():
        swept = repository.sweep(world.clock.host, GRACE, confirmed=True)
        assert not set(swept.backups) & (set(visible) | held)
        expired[:] = [id for id in expired if id not in swept.backups]

    def wait():
        world.clock.forward(minutes=dice.choice((1, 30, 400, 1440)))

    def reopen():
        nonlocal repository
        repository = world.open()

    verbs = (save, save, save, expire, recall, hold, release, sweep, sweep, wait, wait, reopen)
    for number in range(160):
        dice.choice(verbs)()
        if number % 20 == 0:
            world.intact(repository)
    assert sorted(backup.id for backup in repository.backups()) == sorted(visible)
    assert {gone.backup for gone in repository.expired()} == set(expired)
    assert repository.holds().keys() == held
    world.intact(repository)
    for _ in range(3):
        world.clock.forward(hours=25)
        repository.sweep(world.clock.host, GRACE, confirmed=True)
    assert repository.expired() == []
    needed = {pack for b, d in repository._ledger.newest() for pack in repository._packs_of(b, d)}
    assert {entry.name[9:] for entry in world.storage.list("packs/")} == needed
    world.intact(repository)
    clean(repository)
