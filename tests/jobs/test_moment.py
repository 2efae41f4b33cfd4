"""Which moment a restore or a proof reaches: the newest there is, whatever the clock says, and nothing over a hole."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dbguardd.errors import GuardError, ProofFailed, Unreachable, Unsupported, Usage
from dbguardd.facts import Target
from dbguardd.flow import Images, Segment
from dbguardd.jobs.base import instant
from tests.jobs.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.spec["database"]["continuous"] = True
    made.backup(users=[1])
    return made


def place(position: int, round: str = "r") -> dict[str, Any]:
    return {"round": round, "position": position}


def follow(world: World, first: int, last: int, sum: str = "", round: str = "r") -> None:
    """Store these segments, a second apart."""

    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(first - 1, round), continued=first > 1, because="new")
        for number in range(first, last + 1):
            world.later(seconds=1)
            images = Images(512, 512, b"\0\0\0\1" + bytes(512), sum)
            one = Segment("main", place(number - 1, round), place(number, round), world.now, images)
            ship.ship(one)

    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")


def base(world: World, position: int) -> str:
    world.engine.rights = {"log_place": place(position)}
    return world.backup(users=[position])


def plan(world: World, **request: Any) -> dict[str, Any]:
    found: dict[str, Any] = world.do("restore", database="app", dry_run=True, **request)["plan"]
    return found


def lose(world: World, *numbers: int) -> None:
    """Take segments out of the storage."""
    for entry in [*world.storage.list("log/")]:
        if int(entry.name.split("-")[1]) in numbers:
            world.storage.delete(entry.name)


def test_the_newest_is_what_was_stored_last_although_the_clock_went_back(world: World) -> None:
    follow(world, 1, 3)
    id = base(world, 3)
    world.later(minutes=-30)
    follow(world, 4, 6)
    found = plan(world)
    assert (found["backup"], found["segments"]) == (id, 3)


def test_a_database_that_rested_is_as_it_was(world: World) -> None:
    """What came next was committed later. Only behind the end nobody knows."""
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    rested = world.now + timedelta(minutes=4)
    world.later(minutes=10)
    follow(world, 7, 8)
    found = plan(world, at=rested.isoformat())
    assert found["segments"] == 3
    (said,) = found["warnings"]
    assert said.startswith("this is 4 m before the requested moment: the log has no commit in between; the next one is")
    assert plan(world, at=said.rpartition(" ")[2])["segments"] == 4
    found = plan(world, at=(world.now + timedelta(minutes=4)).isoformat())
    assert (found["segments"], found["next_at"]) == (5, None)
    assert "4 m before the requested moment: later commits, if any" in found["warnings"][0]


def test_after_a_backup_without_later_log_neither_loss_nor_rest_is_claimed(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    found = plan(world, at=(world.now + timedelta(minutes=4)).isoformat())
    (said,) = found["warnings"]  # nor that nothing was committed: its follower may have been away
    assert said == "this is 4 m before the requested moment: later commits, if any, are not stored"


def test_what_goes_on_from_an_older_backup_is_not_newer_than_the_newest(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    world.spec["database"]["continuous"] = False
    world.engine.rights = {}
    newest = world.backup(users=[9])
    found = plan(world)
    assert (found["backup"], found["segments"]) == (newest, 0)


def test_a_restore_of_the_newest_says_what_the_log_lacks(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 9)
    lose(world, 6)
    found = plan(world)
    assert found["segments"] == 2
    assert "lacks its segments 6 to 6" in " ".join(found["warnings"])


def test_a_log_with_a_hole_is_not_tried_up_to_the_hole_only(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 9)
    second = base(world, 9)
    lose(world, 6)
    with pytest.raises(ProofFailed) as caught:
        world.do("verify", database="app", backup=second)
    assert [facts["outcome"] for facts in world.said("log.tried")] == ["failed"]
    assert "lacks its segment 6" in (caught.value.detail or "")


def test_a_log_of_which_the_beginning_was_forgotten_is_no_hole(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 9)
    second = base(world, 9)
    lose(world, *range(6))
    assert world.do("verify", database="app", backup=second)["log"] is None


def test_a_hole_before_the_backup_before_is_not_this_ones(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 9)
    base(world, 9)
    third = base(world, 9)
    lose(world, 6)
    assert world.do("verify", database="app", backup=third)["log"] is None


def test_a_proof_restores_a_moment_that_is_drawn_and_says_which(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    begin = world.now
    follow(world, 4, 103, sum="0" * 16)
    second = base(world, 104)  # some commits later: no segment ends there
    since, until = world.repository.log("app").chains()[0].begun_at, world.repository.log("app").chains()[0].until  # type: ignore[union-attr]
    for seconds in (10, 70):
        world.chances = [(begin + timedelta(seconds=seconds, milliseconds=300) - since) / (until - since)]
        log = world.do("verify", database="app", backup=second)["log"]
        assert log["outcome"] == "ok"
        assert f"{seconds} segments" in log["detail"]
        told = datetime.fromisoformat(world.said("log.tried")[-1]["moment_at"])
        assert timedelta() <= told - (begin + timedelta(seconds=seconds)) < timedelta(milliseconds=1)
    world.chances = [0.0]  # there is no backup that is as old
    assert "100 segments" in world.do("verify", database="app", backup=second)["log"]["detail"]
    world.later(days=2)
    assert "100 segments" in world.do("verify", database="app", backup=second)["log"]["detail"]  # at least that


def test_a_moment_with_a_sum_is_drawn_before_one_without(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 13)
    follow(world, 14, 23, sum="0" * 16)
    base(world, 24)
    world.chances = [0.95, 0.99]
    assert world.do("verify", database="app")["log"]["outcome"] == "ok"
    world.chances = [0.8]
    assert world.do("verify", database="app")["log"]["outcome"] == "inconclusive"


def test_a_moment_of_before_that_is_damaged_is_told_and_does_not_fail_the_newest_log(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 33, sum="0" * 16)
    base(world, 34)
    follow(world, 35, 40, sum="0" * 16)
    newest = base(world, 41)
    name = next(entry.name for entry in world.storage.list("log/"))  # the segments up to 31
    world.storage.delete(name)
    world.storage.put(name, b"damaged")
    world.chances = [0.55]
    log = world.do("verify", database="app", backup=newest)["log"]
    assert [told["outcome"] for told in world.said("log.tried")] == ["failed", "ok"]
    assert "6 segments" in log["detail"]


@pytest.mark.parametrize(("users", "outcome"), [([3], "ok"), ([3, 4], "failed")])
def test_a_moment_at_which_a_backup_was_made_has_the_content_of_that(
    world: World, users: list[int], outcome: str
) -> None:
    """The toy has no pages, so what is restored is what the backup before had."""
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 9, sum="0" * 16)
    world.engine.rights = {"log_place": place(9)}
    twin = world.backup(users=users)
    world.chances = [1.0]
    with nullcontext() if outcome == "ok" else pytest.raises(ProofFailed):
        world.do("verify", database="app", backup=twin)
    (told,) = world.said("log.tried")
    assert told["outcome"] == outcome
    assert told["moment_at"] == "2026-03-01T12:02:09.000Z"
    assert f"backup {twin}, made at the same moment" in told["detail"]


def bytes_follow(world: World, first: int, last: int) -> None:
    """Store these segments of one byte, a second apart."""

    def story(ship: Any, resume: Any) -> None:
        ship.begin(place(first - 1), continued=first > 1, because="new")
        for number in range(first, last + 1):
            world.later(seconds=1)
            ship.ship(Segment("main", place(number - 1), place(number), world.now, b"w"))

    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")


def test_any_moment_lies_within_a_log_of_bytes(world: World) -> None:
    bytes_follow(world, 1, 3)
    world.engine.rights = {"log_place": {**place(3), "end": 4}}
    id = world.backup(users=[1])
    made = world.now
    bytes_follow(world, 4, 9)
    for seconds, segments, told in ((0.5, 1, 0.5), (1, 2, 1), (2.7, 3, 2.7), (5.9, 6, 5.9), (6, 6, 6), (9, 6, 6)):
        found = plan(world, at=(made + timedelta(seconds=seconds)).isoformat())
        assert (found["backup"], found["segments"]) == (id, segments), seconds
        assert found["created_at"] == instant(made + timedelta(seconds=told)), seconds
    assert plan(world)["segments"] == 6
    wanted = (made + timedelta(seconds=9)).isoformat()
    world.do("restore", database="app", at=wanted, to=str(world.place / "copy"))
    assert Target.read(world.engine.restored["moment"]["target"]) == Target(
        at=wanted
    )  # nothing later that the last segment has


def test_a_log_of_bytes_is_proven_by_the_backup_after_it(world: World) -> None:
    """It comes to the very place of that, and so to what it is."""
    bytes_follow(world, 1, 3)
    world.engine.rights = {"log_place": {**place(3), "end": 4}}
    first = world.backup(users=[1])
    bytes_follow(world, 4, 6)
    world.engine.rights = {"log_place": {**place(6), "end": 8}}
    second = world.backup(users=[2])
    assert world.do("verify", database="app", backup=second)["log"] is None  # it does not reach that far yet
    bytes_follow(world, 7, 9)
    world.engine.restored = {}
    with pytest.raises(ProofFailed) as caught:  # the toy puts no log over anything
        world.do("verify", database="app", backup=second)
    assert f"content of backup {second}, made at the same moment" in (caught.value.detail or "")
    moment = world.engine.restored["moment"]
    assert moment["target"]["backup"]["log_place"] == {**place(6), "end": 8}
    assert (moment["since"]["position"], moment["until"]["position"]) == (3, 8)
    assert first != second and world.do("verify", database="app", backup=first)["log"] is None


def test_a_backup_that_nothing_was_committed_after_is_restored_alone(world: World) -> None:
    follow(world, 1, 3)
    id = base(world, 3)
    found = plan(world)
    assert (found["backup"], found["segments"]) == (id, 0)
    assert found["created_at"] == "2026-03-01T12:02:03.000Z"


def test_what_is_forgotten_is_told_although_the_storage_lets_go_of_some_only(world: World) -> None:
    """Else the catalog would go on claiming seconds that cannot be restored."""
    made = world.now
    follow(world, 1, 6)
    base(world, 6)
    world.spec["database"]["keep_log_seconds"] = 0.0
    world.later(days=1)
    delete, left = world.storage.delete, [2]

    def stubborn(name: str) -> None:
        if name.startswith("log/"):
            if not left[0]:
                raise Unreachable("the disk is away")
            left[0] -= 1
        delete(name)

    world.storage.delete = stubborn  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        world.do("expire", database="app")
    (told,) = world.said("log.forgotten")
    assert told["objects"] == 3
    (chain,) = world.said("log.known")[-1]["chains"]
    assert chain["since_at"] == instant(made + timedelta(seconds=3))  # segment 3 is there, and was stored then


def test_damage_of_a_log_that_ended_before_the_newest_backup_does_not_keep_it_from_a_restore(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    for entry in [*world.storage.list("log/")]:
        world.storage.delete(entry.name)
        world.storage.put(entry.name, b"damaged")
    world.engine.rights = {}
    world.later(minutes=1)
    world.spec["database"]["continuous"] = False
    newest = world.backup(users=[9])
    found = plan(world)
    assert (found["backup"], found["segments"]) == (newest, 0)


def test_an_older_log_of_a_clock_that_was_ahead_leads_to_nothing_newer(world: World) -> None:
    world.later(days=365)
    follow(world, 1, 3)
    base(world, 3)
    follow(world, 4, 6)
    world.later(days=-365)
    world.engine.rights = {}

    def story(ship: Any, resume: Any) -> None:
        ship.begin({"round": "s", "position": 0}, continued=False, because="broken")
        begin, end = ({"round": "s", "position": position} for position in (0, 1))
        ship.ship(Segment("main", begin, end, world.now, Images(512, 512, b"\0\0\0\1" + bytes(512), "")))

    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")
    world.engine.rights = {"log_place": {"round": "s", "position": 1}}
    newest = world.backup(users=[9])
    found = plan(world)
    assert (found["backup"], found["segments"]) == (newest, 0)


def test_a_newer_log_leads_to_the_newest_although_its_backup_is_not_proven_yet(world: World) -> None:
    """As after a restore in place, or a gap: the proven backup is of the log before."""
    follow(world, 1, 3)
    world.do("verify", database="app", backup=base(world, 3))
    follow(world, 4, 6)
    before = world.now.isoformat()
    follow(world, 1, 2, round="s")
    world.engine.rights = {"log_place": place(2, "s")}
    unproven = world.backup(users=[9])
    follow(world, 3, 5, round="s")
    assert (plan(world)["backup"], plan(world)["segments"]) == (unproven, 3)
    assert plan(world, at=before)["segments"] == 3


def test_a_log_that_became_coarser_says_so_when_a_moment_is_asked_for(world: World) -> None:
    follow(world, 1, 3)
    base(world, 3)
    begin = world.now
    follow(world, 4, 300)
    newest = base(world, 300)
    follow(world, 301, 303)
    world.spec["database"]["thin_log"] = [[60, 3600.0]]
    world.spec["database"]["keep"] = {"last": 9}
    assert plan(world, at=(begin + timedelta(seconds=200)).isoformat())["segments"] == 200
    world.later(days=1)
    world.do("expire", database="app")
    (told,) = world.said("log.thinned")
    assert (told["outcome"], told["grain_seconds"]) == ("ok", 60)
    found = plan(world, at=(begin + timedelta(seconds=200)).isoformat())
    assert 130 < found["segments"] < 200
    assert "one moment every 1 m" in found["warnings"][-1]
    found = plan(world)
    assert (found["backup"], found["segments"]) == (newest, 3)
    world.do("scan")
    (chain,) = world.said("log.known")[-1]["chains"]
    assert chain["thinned"] == {"60": told["until_at"]}
    world.do("expire", database="app")
    assert len(world.said("log.thinned")) == 1
    world.spec["database"]["keep_log_seconds"] = 2 * 86400.0
    world.later(hours=46)  # what was made coarser was an hour old by then
    world.do("expire", database="app")
    assert not world.said("log.forgotten")
    world.later(hours=1, minutes=1)
    world.do("expire", database="app")
    assert world.said("log.forgotten")


def set_forward_and_back(world: World) -> tuple[str, datetime]:
    """A clock that was an hour ahead for a while: return the backup before, and when that was."""
    bytes_follow(world, 1, 3)
    world.engine.rights = {"log_place": {**place(3), "end": 4}}
    id, made = world.backup(users=[1]), world.now
    bytes_follow(world, 4, 9)
    world.later(hours=1)
    bytes_follow(world, 10, 12)
    world.later(hours=-1)
    bytes_follow(world, 13, 60)
    return id, made


def test_a_moment_that_a_clock_showed_twice_is_said_to_be_the_first(world: World) -> None:
    id, made = set_forward_and_back(world)
    found = plan(world, at=(made + timedelta(seconds=30)).isoformat())
    assert (found["backup"], found["segments"]) == (id, 7)  # nothing that was committed later, by any clock
    assert "set back" in " ".join(found["warnings"])
    assert not plan(world, at=(made + timedelta(seconds=4)).isoformat())["warnings"]
    assert not plan(world)["warnings"]


def test_a_backup_that_was_made_after_the_clock_was_set_back_leads_to_any_moment_after_it(world: World) -> None:
    set_forward_and_back(world)
    world.engine.rights = {"log_place": {**place(60), "end": 61}}
    id, made = world.backup(users=[2]), world.now
    bytes_follow(world, 61, 160)
    for seconds in (2.5, 70.5, 100):
        found = plan(world, at=(made + timedelta(seconds=seconds)).isoformat())
        assert (found["backup"], found["segments"]) == (id, int(seconds + 0.9)), seconds
        assert found["created_at"] == instant(made + timedelta(seconds=seconds)), seconds
        assert not found["warnings"]


def test_the_end_of_a_log_stays_however_old_it_is(world: World) -> None:
    """Else the next follower begins anew, and a backup that is made meanwhile has nothing that goes on from it."""
    follow(world, 1, 40)
    base(world, 40)
    world.later(days=8)
    world.do("expire", database="app")
    assert world.said("log.forgotten")
    second = base(world, 40)
    resumed = list[Any]()

    def story(ship: Any, resume: Any) -> None:
        resumed.append(resume)
        ship.begin(place(40), continued=True, because="")
        ship.ship(Segment("main", place(40), place(41), world.now, Images(512, 512, b"\0\0\0\1" + bytes(512))))

    world.engine.follow = story  # type: ignore[attr-defined]
    with pytest.raises(GuardError):
        world.do("follow")
    assert resumed[0]["position"] == 40
    found = plan(world)
    assert (found["backup"], found["segments"]) == (second, 1)


def test_a_log_that_begins_anew_while_a_backup_is_made_goes_on_from_that_backup(world: World) -> None:
    """A cluster is read for hours. What is listed since then can be restored, too."""
    bytes_follow(world, 1, 3)
    dump = world.engine.dump

    def slowly(sink: Any, progress: Any, **how: Any) -> Any:
        log = world.repository.log("app")
        assert log is not None
        world.later(hours=1)
        chain = log.begin(place(7), "its slot was gone", world.now)
        world.later(hours=1)
        log.append(chain, Segment("main", place(7), place(9), world.now, b"ww"))
        world.engine.snapshot_at = world.now.isoformat()
        return dump(sink, progress, **how)

    world.engine.dump = slowly  # type: ignore[method-assign]
    world.engine.rights = {"log_place": {**place(9), "end": 10}}
    id = world.backup(users=[1])
    world.engine.dump = dump  # type: ignore[method-assign]
    bytes_follow(world, 10, 12)
    found = plan(world)
    assert (found["backup"], found["segments"]) == (id, 4)


def test_the_log_that_was_written_while_a_backup_was_made_stays_as_long_as_what_follows(world: World) -> None:
    bytes_follow(world, 1, 3)
    dump = world.engine.dump

    def slowly(sink: Any, progress: Any, **how: Any) -> Any:
        bytes_follow(world, 4, 40)
        world.later(hours=2)
        world.engine.snapshot_at = world.now.isoformat()
        return dump(sink, progress, **how)

    world.engine.dump = slowly  # type: ignore[method-assign]
    world.engine.rights = {"log_place": {**place(40), "end": 41}}
    first = world.backup(users=[1])
    made, world.engine.dump = world.now, dump  # type: ignore[method-assign]
    bytes_follow(world, 41, 43)
    wanted = (made + timedelta(seconds=1.5)).isoformat()
    world.later(days=6)
    world.backup(users=[2])
    world.later(hours=23)  # the beginning of the first is older than keep_log by now, and what it is of is not
    world.do("expire", database="app")
    assert first in world.ids() and plan(world, at=wanted)["segments"] == 39
    world.later(hours=3)
    world.do("expire", database="app")
    assert world.said("log.forgotten")


def test_a_place_in_a_log_is_for_a_server_and_one_way_to_say_what(world: World) -> None:
    world.backup(users=[1])
    for way in ({"lsn": "0/1"}, {"name": "before it"}):
        with pytest.raises(Unsupported, match="only the log of a PostgreSQL cluster"):
            world.do("restore", database="app", dry_run=True, **way)
        with pytest.raises(Usage, match="give only one of"):
            world.do("restore", database="app", at="2026-03-01T12:00:00Z", dry_run=True, **way)
