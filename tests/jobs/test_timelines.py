"""A log that goes on along another history: each moment is of that which counted then."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dbguardd.engines.base import LiveDisk, LiveState
from dbguardd.errors import GuardError, NoSpace, SourceReplaced, TargetExists, Usage
from dbguardd.flow import Segment
from dbguardd.jobs.base import instant
from dbguardd.jobs.moment import Moment
from dbguardd.jobs.room import disks_over, parts_of
from tests.jobs.world import ToyDeltaRestore, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.spec["database"] |= {"continuous": True}
    made.spec["database"]["settings"] = {"url": "toy:", "method": "pages"}
    made.engine.rights = {"system": "7", "timeline": 1}
    made.backup(users=[1])
    return made


def place(position: int, turns: list[Any] | None = None) -> dict[str, Any]:
    return {"round": "7/2", "position": position, "turns": turns} if turns else {"round": "7/1", "position": position}


def follow(world: World, *places: dict[str, Any]) -> None:
    """Store a segment between each two places, a second apart."""

    def story(ship: Any, resume: Any) -> None:
        ship.begin(places[0], continued=resume is not None, because="new")
        for since, until in zip(places, places[1:], strict=False):
            world.later(seconds=1)
            begin = since["position"] if since["round"] == until["round"] else until["turns"][-1][1]
            ship.ship(Segment("log", since, until, world.now, b"w" * (until["position"] - begin)))

    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")


def base(world: World, position: int, timeline: int = 1) -> str:
    at = {"round": f"7/{timeline}", "position": position, "end": position + 1}
    world.engine.rights = {"log_place": at, "system": "7", "timeline": timeline}
    return world.backup(users=[position])


def plan(world: World, at: datetime) -> tuple[str, int]:
    to = str(world.place / "copy")
    found = world.do("restore", database="app", dry_run=True, at=at.isoformat(), to=to)["plan"]
    return found["backup"], found["segments"]


def test_what_was_lost_is_in_the_moments_before_and_in_none_after(world: World) -> None:
    follow(world, *map(place, (0, 1, 2, 3)))
    sound = base(world, 3)
    follow(world, *map(place, (3, 4, 5, 6)))
    lost = base(world, 6)
    follow(world, *map(place, (6, 7, 8)))
    before = world.now
    world.later(seconds=10)
    turns = [["7/1", 4, 8, instant(world.now)]]
    follow(world, place(8), place(6, turns), place(7, turns))
    (told,) = world.said("log.turned")
    assert told["lost_bytes"] == 4
    assert plan(world, before + timedelta(seconds=5)) == (lost, 2)
    assert plan(world, before + timedelta(seconds=10.5)) == (sound, 6)
    assert plan(world, world.now) == (sound, 7)
    new = base(world, 7, timeline=2)
    follow(world, place(7, turns), place(9, turns))
    assert plan(world, world.now)[0] == new


def test_a_server_that_was_left_behind_makes_no_backup_unless_somebody_says_so(world: World) -> None:
    follow(world, *map(place, (0, 1, 2, 3)))
    base(world, 3)
    world.engine.rights["log_place"] = {**place(2), "end": 2}  # a snapshot of its disk was put back
    with pytest.raises(SourceReplaced, match="set back"):
        world.backup()
    turns = [["7/1", 3, 3, instant(world.now)]]
    follow(world, place(3), place(5, turns))
    world.engine.found = {"system": "7", "timeline": 1, "log_place": place(3)}  # it has written nothing since
    (said,) = [row for row in world.do("check", database="app")["findings"] if row["name"] == "the server"]
    assert said["outcome"] == "failed" and "left behind" in said["detail"]
    for position in (4, 9):
        with pytest.raises(SourceReplaced, match="left behind") as caught:
            base(world, position)
        assert caught.value.hints == ("dbguardctl backup app --successor",)
    base(world, 5, timeline=2)
    with pytest.raises(SourceReplaced, match="left behind"):
        base(world, 2)
    told: list[Any] = []
    world.engine.follow = lambda ship, resume: told.append(resume)  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(GuardError):
            world.do("follow")
        world.engine.rights = {"system": "7", "timeline": 1, "log_place": {**place(9), "end": 9}}
        world.do("backup", database="app", successor=True)
    assert told[0]["round"] == "7/2" and told[1] is None


@pytest.mark.parametrize("refused", [True, False])
def test_a_log_ends_where_something_is_put_over_its_database_and_not_where_that_was_refused(
    world: World, refused: bool
) -> None:
    world.delta_restore = ToyDeltaRestore(world.engine)
    world.engine.rights = {"log_place": {**place(3), "end": 3}, "system": "7", "timeline": 1}
    follow(world, *map(place, (0, 1, 2, 3)))
    world.engine.rights["directory"] = str(world.path)
    world.backup(users=[3])
    if refused:
        world.delta_restore.overwrite = refusing  # type: ignore[method-assign]
        with pytest.raises(NoSpace):
            world.do("restore", database="app", in_place=True, confirm="app")
    else:
        world.do("restore", database="app", in_place=True, confirm="app")
    resumed: list[Any] = []
    world.engine.follow = lambda ship, resume: resumed.append(resume)  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")
    assert (resumed[0] is not None) is refused
    world.engine.rights |= {"timeline": 0}  # of a server that was left behind, or of what was put back
    if refused:
        with pytest.raises(SourceReplaced, match="left behind"):
            world.backup()
    else:
        world.backup()


def refusing(tree: Any, live: Path, progress: Any) -> Path:
    raise NoSpace("the disk is full")


def test_a_backup_of_a_standby_is_of_its_moment_and_the_log_goes_on_from_what_it_has(world: World) -> None:
    follow(world, *map(place, (0, 1, 2, 3, 4)))
    lagging = world.now - timedelta(minutes=5)
    at = {"round": "7/1", "position": 2, "end": 2}
    standby = {"standby": True, "snapshot_at": lagging.isoformat()}
    world.engine.rights = {"log_place": at, "system": "7", "timeline": 1, **standby}
    id = world.backup(users=[1])
    (made,) = [one for one in world.repository.backups("app") if one.id == id]
    assert made.created_at == lagging and made.raw_facts["log"]["after"] == 2
    assert plan(world, world.now) == (id, 2)


def test_a_named_successor_is_backed_up_from_then_on_also_if_no_log_is_followed(world: World) -> None:
    follow(world, *map(place, (0, 1, 2, 3)))
    base(world, 3)
    turns = [["7/1", 3, 3, instant(world.now)]]
    follow(world, place(3), place(5, turns))
    world.spec["database"]["continuous"] = False
    world.engine.found = {"system": "7", "timeline": 1, "log_place": place(10)}
    world.engine.rights = {"system": "7", "timeline": 1, "log_place": {**place(9), "end": 9}}
    with pytest.raises(SourceReplaced, match="left behind"):
        world.backup()
    world.later(minutes=1)
    world.do("backup", database="app", successor=True)
    base(world, 10)
    (said,) = [row for row in world.do("check", database="app")["findings"] if row["name"] == "the server"]
    assert said["outcome"] == "ok"


def test_each_tablespace_gets_a_new_directory_of_its_own_or_nothing_is_promised(world: World) -> None:
    spaces = {"5": ["far", "/mnt/far"], "6": ["near", "/mnt/near"]}
    world.engine.rights |= {"tablespaces": spaces, "directory": "/var/lib/pg", "method": "pages"}
    world.backup(users=[1])
    to, free = world.place / "data", world.place / "free"

    def plan_of(told: str, to: Path) -> Any:
        told = told.replace("@", str(free))
        return world.do("restore", database="app", dry_run=True, to=str(to), tablespace=told)["plan"]

    def planned(told: str, to: Path = to) -> dict[str, str]:
        return {one["name"]: one["to"] for one in plan_of(told, to)["tablespaces"]}

    assert planned("far=@/a,/mnt/near=@/b") == {"far": f"{free}/a", "near": f"{free}/b"}
    assert planned("far=@/a") == {"far": f"{free}/a", "near": f"{to}/tablespaces/6"}
    wrong = (
        "far=@/a,near=@/a",
        "far=@/a,near=@/./a",
        "far=@/a,near=@/a/b",
        f"far={to}",
        f"far={to}/x",
        f"near={to.parent}",
    )
    for told in wrong:
        with pytest.raises(Usage, match="cannot take a tablespace"):
            planned(told)
    for told in ("far=@/a,far=@/b", "far=@/a,/mnt/far=@/b"):
        with pytest.raises(Usage, match="says twice where far goes"):
            planned(told)
    with pytest.raises(TargetExists):
        planned(f"far={world.path.parent}")
    with pytest.raises(Usage, match="lies below /var/lib/pg"):
        planned("far=/var/lib/pg/x")
    with pytest.raises(Usage, match="lies below /var/lib/pg"):
        planned("", Path("/var/lib/pg/back"))
    with pytest.raises(Usage, match="lies below /mnt/near, which belongs to the cluster that was backed up"):
        planned("far=/mnt/near/far")


def test_who_names_the_live_directory_is_not_led_into_it(world: World) -> None:
    live = world.place / "pg"
    live.mkdir()
    world.engine.rights |= {"directory": str(live), "method": "pages"}
    world.backup(users=[1])
    with pytest.raises(TargetExists) as refused:
        world.do("restore", database="app", to=str(live))
    assert refused.value.detail == "A restore never overwrites."
    assert refused.value.hints == (f"dbguardctl restore app --to {live}.restored",)


def test_nothing_is_put_into_the_directory_of_another_cluster(world: World) -> None:
    world.backup(users=[1])
    copy = world.place / "copy"
    copy.mkdir()
    for marker, place in ((False, copy / "app"), (True, world.place / "copy.restored")):
        if marker:
            (copy / "PG_VERSION").write_text("15\n")
        with pytest.raises(TargetExists) as refused:
            world.do("restore", database="app", to=str(copy))
        assert refused.value.hints == (f"dbguardctl restore app --to {place}",)


def test_each_disk_must_have_room_for_what_goes_there(world: World) -> None:
    """Room on another disk is of no use: the sum of all would promise what fails after hours."""
    world.engine.rights |= {"tablespaces": {"5": ["far", "/mnt/far"], "6": ["near", "/mnt/near"]}, "method": "pages"}
    world.engine.beside = {"pg_tblspc/5/PG/1": b"x" * 1000, "pg_tblspc/5/PG/2": b"x" * 24, "pg_tblspc/6/PG/1": b"xyz"}
    backup = world.repository.backup(world.backup(users=[1]))
    parts = parts_of(Moment(backup, backup.created_at, None, []))
    assert parts == {"": backup.source_bytes - 1027, "log": 0, "5": 1024, "6": 3}
    full = "/dev/pts"  # a disk without room
    asked = {"database": "app", "to": str(world.place / "data"), "tablespace": f"/mnt/far={full}/far"}
    plan = world.do("restore", **asked, dry_run=True)["plan"]
    body, far = plan["disks"]
    assert (body["path"], body["needs_bytes"]) == (str(world.place), backup.source_bytes - 1024)
    assert far == {"path": full, "needs_bytes": 1024, "free_bytes": 0} and body["free_bytes"] > body["needs_bytes"]
    assert (plan["needs_bytes"], plan["free_bytes"]) == (1024, 0)
    assert "not enough space, so the restore is refused: /dev/pts needs 1 KiB, and has 0 B" in plan["warnings"][-1]
    with pytest.raises(NoSpace, match="not enough space") as refused:
        world.do("restore", **asked)
    assert "/dev/pts: 1024 bytes are needed, 0 bytes are free" in refused.value.detail
    assert refused.value.hints[0].startswith("df -h /dev/pts ") and not (world.place / "data").exists()
    there = LiveState((LiveDisk("/a", 100, 9, ("", "log")), LiveDisk("/b", 1000, 99, ("5", "6"))), 10, begun=False)
    assert [(one["path"], one["needs_bytes"]) for one in disks_over(parts, there)] == [
        ("/a", max(0, parts[""] + 10 - 100)),
        ("/b", 1027 + 10 - 1000),
    ]


def test_a_plan_has_the_very_moment_that_was_asked_for(world: World) -> None:
    """Its command asks for the time that it shows: a commit may lie between that and the next millisecond."""
    follow(world, *map(place, (0, 1, 2, 3)))
    base(world, 3)
    follow(world, *map(place, (3, 4, 5, 6)))
    at = world.now - timedelta(seconds=1.000123)
    for asked in (at, at.replace(microsecond=5000)):
        found = world.do("restore", database="app", dry_run=True, at=asked.isoformat(), to=str(world.place / "copy"))
        assert datetime.fromisoformat(found["plan"]["created_at"]) == asked


def test_a_position_is_written_as_postgresql_does_and_told_as_such(world: World) -> None:
    follow(world, *map(place, (0, 1, 2, 3)))
    base(world, 3)
    follow(world, *map(place, (3, 4, 5, 6)))
    for told in ("0/", "5", "0/+5", "0/1_0", "0x0/5", "0/100000000", "-1/5"):
        with pytest.raises(Usage, match="not a log position"):
            world.do("restore", database="app", dry_run=True, lsn=told)
    world.do("restore", database="app", lsn="0/5", to=str(world.place / "copy"))
    assert world.said("restore.done")[-1].keys() == {"backup", "lsn", "target", "seconds"}
