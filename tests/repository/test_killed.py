"""Killed at every call of the storage: nothing acknowledged is lost, the next run succeeds, a deep check is clean."""

from __future__ import annotations

import itertools

import pytest

from dbguardd.errors import GuardError, NotARepository
from dbguardd.repository import Repository
from tests.repository.lifecycle_kit import GRACE, Killed, Mortal, World, clean, killed


def lives(scene):
    """Yield (world, mortal storage) for every call number, before and after it, until the scene survives."""
    for after in (False, True):
        for last in itertools.count():
            world = scene.copy()
            mortal = Mortal(world.storage, last, after=after)
            yield world, mortal
            if mortal.calls <= last:
                assert last > 0
                break


def tidy(world: World, repository: Repository) -> None:
    """Let time and two sweeps pass; nothing may be left over, and everything visible must restore."""
    for _ in range(3):
        world.clock.forward(hours=25)
        repository.sweep(world.clock.host, GRACE, confirmed=True)
    needed = set().union(*(repository._packs_of(b, d) for b, d in repository._ledger.newest()))
    assert {entry.name[9:] for entry in world.storage.list("packs/")} == needed
    assert list(world.storage.list("clock/")) == []
    world.intact(repository)
    clean(repository)


def test_creation():
    for world, mortal in lives(World()):
        with killed() as deaths:
            world.create(storage=mortal)
        try:
            repository = world.open()
        except NotARepository:
            assert deaths
            repository = world.create()
        world.save(repository)
        for found in world.open().check(True):
            assert found.severity != "damage"
            if found.severity == "warning":  # the root key of an attempt that never became a repository
                world.storage.delete(found.object)
        tidy(world, repository)


@pytest.mark.parametrize("before", [0, 2])
def test_backup(before):
    scene = World()
    repository = scene.create()
    for _ in range(before):
        scene.save(repository)
        scene.clock.forward(hours=1)
    for world, mortal in lives(scene):
        acknowledged = [backup.id for backup in world.open().backups()]
        mortal_repository = None
        with killed():
            mortal_repository = world.open(storage=mortal)
            acknowledged.append(world.save(mortal_repository).id)
        repository = world.open()
        there = [backup.id for backup in repository.backups()]
        assert set(acknowledged) <= set(there)
        if len(there) > len(acknowledged):  # published, and killed before anybody was told: whole all the same
            [extra] = set(there) - set(acknowledged)
            content = repository.backup(extra)
            with repository.tree(content) as tree, tree.read("main") as main:
                assert main.read() == world.content["orders"]
            repository.expire({extra: ["not acknowledged"]}, world.clock.host, confirmed=True)
        world.save(repository)
        tidy(world, repository)


def test_expire():
    scene = World()
    repository = scene.create()
    ids = [scene.save(repository).id for _ in range(3)]
    for world, mortal in lives(scene):
        with killed():
            world.open(storage=mortal).expire({id: ["x"] for id in ids[:2]}, world.clock.host)
        repository = world.open()
        assert ids[2] in [backup.id for backup in repository.backups()]
        repository.expire({id: ["x"] for id in ids[:2]}, world.clock.host)
        assert [backup.id for backup in repository.backups()] == [ids[2]]
        tidy(world, repository)


@pytest.mark.parametrize("hours", [0, 25])
def test_sweep(hours):
    scene = World()
    repository = scene.create()
    old = [scene.save(repository, full=full).id for full in (True, False, True)]
    kept = [scene.save(repository, full=full).id for full in (True, False)]
    repository.attest(old[0], {"tables": {}}, scene.clock.host)
    repository.expire({id: ["x"] for id in old}, scene.clock.host)
    if hours:
        repository.sweep(scene.clock.host, GRACE)
        scene.clock.forward(hours=hours)
    for world, mortal in lives(scene):
        with killed():
            world.open(storage=mortal).sweep(world.clock.host, GRACE, confirmed=True)
        repository = world.open()
        assert sorted(backup.id for backup in repository.backups()) == kept
        world.intact(repository)
        assert [found for found in repository.check(True) if found.severity == "damage"] == []
        kept_now = world.save(repository).id
        assert kept_now in [backup.id for backup in repository.backups()]
        tidy(world, repository)


def test_recall():
    scene = World()
    repository = scene.create()
    first = scene.save(repository).id
    scene.save(repository, full=True)
    repository.expire({first: ["x"]}, scene.clock.host)
    repository.sweep(scene.clock.host, GRACE)
    for world, mortal in lives(scene):
        with killed():
            world.open(storage=mortal).recall([first], world.clock.host, GRACE)
        repository = world.open()
        if first not in [backup.id for backup in repository.backups()]:
            repository.recall([first], world.clock.host, GRACE)
        assert first in [backup.id for backup in repository.backups()]
        tidy(world, repository)
        world.intact(repository, [first])


class Interleaved:
    """A storage that lets something else happen before call `when`."""

    def __init__(self, storage, when, act) -> None:
        self.inner, self.when, self.act, self.calls, self.url = storage, when, act, 0, storage.url

    def __getattr__(self, verb):
        call = getattr(self.inner, verb)

        def step(*arguments):
            number, self.calls = self.calls, self.calls + 1
            if number == self.when:
                self.act()
            found = call(*arguments)
            return iter(list(found)) if verb == "list" else found

        return step


@pytest.mark.parametrize("doomed_parent", [False, True])
def test_a_whole_sweep_in_the_middle_of_a_backup(doomed_parent):
    """At each call of a backup a sweep runs that is due; with a parent that expired long ago, and one that did not."""
    scene = World()
    repository = scene.create()
    first = scene.save(repository).id
    scene.save(repository)
    repository.expire({first: ["x"]}, scene.clock.host)
    repository.sweep(scene.clock.host, GRACE)
    scene.clock.forward(hours=25)
    for when in itertools.count():
        world = scene.copy()

        def interrupt(world=world):
            sweeper = world.open()
            if doomed_parent:
                going = {backup.id: ["x"] for backup in sweeper.backups()}
                sweeper.expire(going, world.clock.host, confirmed=True)
                sweeper.sweep(world.clock.host, GRACE, confirmed=True)
                world.clock.forward(hours=25)
            sweeper.sweep(world.clock.host, GRACE, confirmed=True)

        mixed = Interleaved(world.storage, when, interrupt)
        made = None
        try:
            made = world.save(world.open(storage=mixed))
        except GuardError:
            assert doomed_parent  # refused: what it built on was about to go
        if made is not None:
            world.intact(world.open(), [made.id])
        world.intact(world.open())
        assert [found for found in world.open().check(True) if found.severity == "damage"] == []
        if mixed.calls <= when:
            break
        again = world.save(world.open())
        world.intact(world.open(), [again.id])


def test_a_whole_backup_in_the_middle_of_a_sweep():
    scene = World()
    repository = scene.create()
    first = scene.save(repository).id
    scene.save(repository)
    scene.save(repository, full=True)
    repository.expire({first: ["x"]}, scene.clock.host)
    repository.sweep(scene.clock.host, GRACE)
    scene.clock.forward(hours=25)
    for when in itertools.count():
        world = scene.copy()
        made = []
        mixed = Interleaved(world.storage, when, lambda world=world, made=made: made.append(world.save(world.open())))
        world.open(storage=mixed).sweep(world.clock.host, GRACE, confirmed=True)
        world.intact(world.open())
        clean(world.open())
        if mixed.calls <= when:
            break
        assert made


def test_a_slow_publication_looks_again_and_withdraws():
    """The manifest is written only when the sweep has long decided: it must not stand."""
    world = World()
    repository = world.create()
    first = world.save(repository)
    fresh = world.open()

    class Slow:
        url = "slow"

        def __getattr__(self, verb):
            return getattr(world.storage, verb)

        def put(self, name, data):
            if name.startswith("records/backup/"):
                fresh.expire({first.id: ["x"]}, world.clock.host, confirmed=True)
                fresh.sweep(world.clock.host, GRACE)
                world.clock.forward(hours=25)
                fresh.sweep(world.clock.host, GRACE)
                assert [entry.name for entry in world.storage.list("packs/")] != before
            world.storage.put(name, data)

    before = [entry.name for entry in world.storage.list("packs/")]
    slow = Repository.open(Slow(), repository._wrappers, randomness=world.dice.randbytes, pulses=world.clock.pulse)
    with pytest.raises(GuardError):
        world.save(slow)
    repository = world.open()
    assert repository.backups() == []
    world.save(repository)
    tidy(world, repository)


def test_the_mortal_storage_kills():
    world = World()
    with pytest.raises(Killed):
        world.create(storage=Mortal(world.storage, 3))
