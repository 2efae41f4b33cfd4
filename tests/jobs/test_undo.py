"""The way back from a restore in place: it stays while anything may have been replaced, and says what it is."""

from dataclasses import replace

import pytest

from dbguardd.engines.base import BODY, REPLACED, WAL, Examination, Finding, LiveDisk, LiveState
from dbguardd.engines.fingerprint import NoFingerprint
from dbguardd.errors import Degraded, Internal, NoSpace, NotFound, ProofFailed, TargetInUse, Unsupported, WorkerDied
from dbguardd.flow import LOG
from dbguardd.humanize import OVERWRITING
from tests.jobs.world import ToyDeltaRestore, World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.backup(users=[1])
    world.write(users=[1, 2])
    return world


@pytest.mark.parametrize("replaced", [True, False])
def test_a_failure_after_the_live_database_was_replaced_leaves_the_way_back(world, replaced):
    put = world.engine.replace

    def replace(source, progress):
        if replaced:
            put(source, progress)
        raise ProofFailed("read back, it is something else", facts={REPLACED: True} if replaced else {})

    world.engine.replace = replace
    with pytest.raises(ProofFailed):
        world.do("restore", database="app", in_place=True, confirm="app")
    world.engine.replace = put
    assert len(world.said("restore.replacing")) == 1
    assert len(world.said("restore.kept")) == (not replaced)
    if not replaced:
        with pytest.raises(NotFound, match="no restore to undo"):
            world.do("undo", database="app", confirm="app")
        return
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1, 2]}


def test_a_database_that_was_damaged_before_it_was_replaced_is_not_called_a_wrong_copy(world, tmp_path):
    safety = world.do("restore", database="app", in_place=True, confirm="app")["safety_copy"]
    world.engine.examine = lambda target, queries, progress: Examination([Finding("opened", "failed", "torn")], None)
    with pytest.raises(ProofFailed, match="was already damaged") as caught:
        world.do("undo", database="app", confirm="app")
    assert "--to NEWPLACE" in caught.value.hints[-1]
    assert world.live() == {"users": [1]}
    with pytest.raises(ProofFailed, match="was already damaged") as caught:
        world.do("restore", database="app", backup=safety, to=str(tmp_path / "old"))
    assert "stays at" in caught.value.hints[-1]
    assert (tmp_path / "old").read_bytes()


def test_restoring_in_place_twice_does_not_put_the_bad_data_back(world, tmp_path):
    world.do("verify", database="app")
    for _ in range(2):
        world.do("restore", database="app", in_place=True, confirm="app")
        assert world.live() == {"users": [1]}
    plan = world.do("restore", database="app", at=world.now.isoformat(), to=str(tmp_path / "x"), dry_run=True)["plan"]
    assert plan["grade"] == "proven"
    assert "passed over, it is a safety copy" in plan["warnings"][0]
    (safety, *_) = world.ids()
    plan = world.do("restore", database="app", backup=safety, to=str(tmp_path / "x"), dry_run=True)["plan"]
    assert (plan["backup"], plan["warnings"]) == (
        safety,
        [f"backup {safety}: it is a safety copy of a restore in place"],
    )


def test_a_backup_that_failed_is_restored_by_its_id_only(world, tmp_path):
    world.do("verify", database="app")
    good, bad = world.ids()[0], world.backup(users=[1, 2, 3])
    world.engine.break_restore = b'{"users": [9]}'
    with pytest.raises(ProofFailed):
        world.do("verify", database="app", backup=bad)
    world.engine.break_restore = b""
    ask = {"database": "app", "to": str(tmp_path / "x"), "dry_run": True}
    plan = world.do("restore", **ask)["plan"]
    assert (plan["backup"], plan["failure"]) == (good, None)
    assert plan["warnings"][0].startswith(f"{bad} of ")
    plan = world.do("restore", **ask, backup=bad)["plan"]
    assert "table users" in plan["failure"]
    assert plan["warnings"]


def test_where_only_safety_copies_are_left_nothing_is_chosen(world):
    world.do("restore", database="app", in_place=True, confirm="app")
    world.repository.expire({world.ids()[-1]: ["old"]}, world.now)
    with pytest.raises(NotFound, match="no reliable backup") as caught:
        world.do("restore", database="app", dry_run=True)
    assert "safety copy" in caught.value.detail


def test_what_is_written_over_keeps_its_way_back_until_it_is_known_to_be_right(world):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = ToyDeltaRestore(world.engine), {"directory": str(world.path)}
    first = world.backup(users=[1])
    world.write(users=[2])
    request = {"database": "app", "backup": first, "in_place": True, "confirm": "app"}
    world.engine.refuse_examine = Degraded("no server could be started")
    with pytest.raises(Degraded):
        world.do("restore", **request)
    assert not world.path.exists() and not world.said("restore.kept")
    (safety,) = [id for id, holds in world.repository.holds().items() if holds]
    world.engine.refuse_examine = None
    done = world.do("restore", **request)  # it goes on, and nothing new is kept of what is half written
    assert world.live() == {"users": [1]} and done["safety_copy"] == safety
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [2]}
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [1]}


def test_what_fails_while_it_is_written_over_names_the_way_back_once(world):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = ToyDeltaRestore(world.engine), {"directory": str(world.path)}
    request = {"database": "app", "backup": world.backup(users=[1]), "in_place": True, "confirm": "app"}
    overwrite, undo = world.delta_restore.overwrite, "dbguardctl restore undo app --confirm app"

    def full(tree, live, progress):
        overwrite(tree, live, progress)
        raise NoSpace("the disk is full", facts={REPLACED: True}, hints=["df -h"])

    world.delta_restore.overwrite = full
    with pytest.raises(NoSpace) as caught:
        world.do("restore", **request)
    assert list(caught.value.hints) == ["df -h", undo]
    world.delta_restore.overwrite = overwrite
    world.engine.refuse_examine = ProofFailed("torn")
    with pytest.raises(ProofFailed) as caught:
        world.do("restore", **request)
    assert list(caught.value.hints) == [undo] and OVERWRITING in caught.value.detail
    world.engine.refuse_examine = WorkerDied("the other half of the worker ended early")
    with pytest.raises(WorkerDied) as caught:  # whoever started it says what that means
        world.do("restore", **request)
    assert (list(caught.value.hints), caught.value.detail) == ([], "")


@pytest.mark.parametrize("error", [Internal("KeyError"), WorkerDied("killed")])
def test_if_nobody_knows_how_far_a_restore_got_its_way_back_stays(world, error):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = ToyDeltaRestore(world.engine), {"directory": str(world.path)}
    first = world.backup(users=[1])
    world.write(users=[2])
    world.engine.refuse_restore = error
    with pytest.raises(type(error)):
        world.do("restore", database="app", backup=first, in_place=True, confirm="app")
    assert not world.path.exists() and not world.said("restore.kept") and world.repository.holds()
    world.engine.refuse_restore = None
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [2]}


def test_what_no_restore_can_pass_is_named_as_the_place_to_stop_at(world):
    world.backup(users=[1])
    world.engine.refuse_restore = Unsupported("a tablespace was made", hints=["earlier"], facts={LOG: "0/7000480"})
    to = str(world.path.parent / "new")
    with pytest.raises(Unsupported) as refused:
        world.do("restore", database="app", to=to, backup=world.ids()[0])
    assert refused.value.hints == (
        f"dbguardctl restore app --lsn 0/7000480 --to {to}  # up to right before it",
        "dbguardctl list app  # a moment or a backup after it",
    )


def test_the_plan_says_what_a_restore_over_the_live_one_needs_and_no_more_is_refused_than_that(world):
    """The state that it replaces may be larger than the storage has room for: most of it is stored already."""
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore = delta = ToyDeltaRestore(world.engine)
    world.engine.rights = {"directory": str(world.path)}
    first = world.backup(users=[1])
    world.spec["storage"] |= {"path": str(world.place), "max_bytes": 1}
    request = {"database": "app", "backup": first, "in_place": True}
    size = world.repository.backup(first).source_bytes
    disk = LiveDisk("/live", size - 1, 10, (BODY, WAL))
    delta.there = LiveState((disk,), spare_bytes=9, begun=False)
    plan = world.do("restore", **request, dry_run=True)["plan"]
    assert (plan["needs_bytes"], plan["free_bytes"]) == (10, 10)
    assert (plan["undo_bytes"], plan["undo_free_bytes"]) == (size - 1, 0) and "fit into" in plan["warnings"][0]
    world.spec["storage"]["max_bytes"] = 1 << 30
    plan = world.do("restore", **request, dry_run=True)["plan"]
    assert plan["undo_free_bytes"] > size and plan["warnings"] == []
    delta.there = replace(delta.there, disks=(replace(disk, free_bytes=9),))
    with pytest.raises(NoSpace, match="not enough space"):
        world.do("restore", **request, confirm="app")
    assert next(world.repository.newest("app")).id == first  # nothing was kept for nothing
    delta.there = replace(delta.there, disks=(replace(disk, bytes=size + 10, free_bytes=0),))  # as on a full disk
    world.spec["storage"]["max_bytes"] = 1
    assert world.do("restore", **request, confirm="app")["plan"]["needs_bytes"] == 0


def test_half_of_a_restore_is_undone_once(world):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = ToyDeltaRestore(world.engine), {"directory": str(world.path)}
    first = world.backup(users=[1])
    world.write(users=[2])
    world.engine.refuse_examine = Degraded("no server could be started")
    with pytest.raises(Degraded):
        world.do("restore", database="app", backup=first, in_place=True, confirm="app")
    world.engine.refuse_examine = None
    undone = world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [2]} and undone["undo"] is None
    assert world.said("restore.done")[-1]["safety_copy"] is None  # the half that was there is kept nowhere
    with pytest.raises(NotFound, match="no restore to undo"):
        world.do("undo", database="app", confirm="app")


def test_who_goes_on_with_half_of_a_restore_and_is_refused_leaves_the_way_back(world):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = ToyDeltaRestore(world.engine), {"directory": str(world.path)}
    request = {"database": "app", "backup": world.backup(users=[1]), "in_place": True, "confirm": "app"}
    world.write(users=[2])
    world.engine.refuse_examine = Degraded("no server could be started")
    with pytest.raises(Degraded):
        world.do("restore", **request)
    overwrite, world.engine.refuse_examine = world.delta_restore.overwrite, None

    def refuse(tree, live, progress):
        raise TargetInUse("somebody looks at it")

    world.delta_restore.overwrite = refuse
    for verb, asked in (("restore", request), ("undo", {"database": "app", "confirm": "app"})):
        with pytest.raises(TargetInUse):
            world.do(verb, **asked)
    assert not world.path.exists() and not world.said("restore.kept")
    world.delta_restore.overwrite = overwrite
    world.do("undo", database="app", confirm="app")
    assert world.live() == {"users": [2]}


def test_a_cluster_that_has_moved_to_another_host_is_not_restored_over_what_it_left_here(world):
    world.spec["database"]["settings"] = {"url": "postgresql:///", "method": "pages"}
    world.delta_restore, world.engine.rights = (
        ToyDeltaRestore(world.engine),
        {"directory": str(world.path), "read_by": "files"},
    )
    before = world.backup(users=[1])
    world.engine.rights = {"directory": None, "read_by": "replication"}
    for id in (world.backup(users=[2]), before):
        with pytest.raises(Unsupported, match="in place on this host"):
            world.do("restore", database="app", backup=id, in_place=True, confirm="app")
    assert world.live() == {"users": [2]}
    world.engine.rights = {"directory": str(world.path), "read_by": "files"}  # it came back
    world.backup(users=[3])
    world.do("restore", database="app", backup=before, in_place=True, confirm="app")
    assert world.live() == {"users": [1]}


class PagedDeltaRestore(ToyDeltaRestore):
    """Keeps and restores the toy as pages, as a real engine does; what is stored between the two may be lost."""

    def __init__(self, world: World) -> None:
        super().__init__(world.engine)
        self.world = world
        self.lose: set[str] = set()

    def save(self, live, facts, sink, progress):
        before = {entry.name for entry in self.world.storage.list("packs/")}
        with live.open("rb") as file:
            sink.adopt("pages", file.fileno(), 512)
        self.lose = before
        return {"directory": str(live), "resting": True}

    def overwrite(self, tree, live, progress):
        for entry in [*self.world.storage.list("packs/")]:
            if entry.name not in self.lose:
                self.world.storage.delete(entry.name)
        live.rename(self.aside)
        with self.aside.open("r+b") as file:
            tree.deliver("pages", file.fileno(), delta=True)
        self.engine.restored = dict(tree.facts)
        return self.aside


def test_a_safety_copy_that_cannot_be_read_back_is_told_and_keeps_nobody_from_the_restore(world):
    world.spec["database"]["settings"] = {"url": "toy:", "method": "pages"}
    world.delta_restore = over = PagedDeltaRestore(world)
    world.engine.dump = lambda sink, progress, *, compared=True: over.save(world.path, {}, sink, progress)
    world.engine.fingerprint = lambda progress, stored: NoFingerprint("a toy of pages")
    wanted = world.backup(users=[7])
    world.write(users=[8])
    safety = world.do("restore", database="app", backup=wanted, in_place=True, confirm="app")["safety_copy"]
    assert world.live() == {"users": [7]}
    (told,) = world.said("safety.unreadable")
    assert told["backup"] == safety and "packs/" in told["problem"]
