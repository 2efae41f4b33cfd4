"""What a kill can leave in the storage never stands in the way, and does not stay for ever."""

import os
import random
import time

import pytest

from tests.faults.hand import Hand, a_place, moment


@pytest.mark.parametrize("number", [0, *(pytest.param(more, marks=pytest.mark.soak) for more in (1, 2))])
def test_a_first_run_that_is_killed_does_not_stand_in_the_way_of_the_next(press, number):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice, seconds = random.Random(seed), 0.5
    for _ in range(5):
        with a_place() as place:
            hand = Hand(place, press)
            hand.seed(bookings=50)
            running = hand.start("backup", "shop")
            running.ended(moment(dice, seconds))
            running.kill(dice)
            hand.noted(running.wait())
            began = time.monotonic()
            made = hand.backup()
            seconds = time.monotonic() - began
            assert set(hand.acknowledged) <= set(hand.listed())
            hand.reads([made])


def test_a_repository_that_was_half_made_is_made(hand):
    """As a kill just before repo.json leaves it."""
    hand.backup()
    for kind in ("records", "packs", "domains"):
        for path in (hand.store / kind).rglob("*"):
            if path.is_file():
                path.unlink()
    (hand.store / "repo.json").unlink()
    assert list((hand.store / "keys").iterdir())
    made = hand.backup()
    hand.restores(made)
    hand.is_clean()


def test_a_directory_with_other_things_in_it_is_not_made_a_repository(hand):
    hand.store.mkdir()
    (hand.store / "holiday.jpg").write_bytes(b"beach")
    ended = hand.run("backup", "shop")
    assert (ended.status, ended.problem["code"]) == (11, "DBG-4002"), ended.stderr
    assert "holiday.jpg" in ended.problem["detail"]
    assert [path.name for path in hand.store.iterdir()] == ["holiday.jpg"]


def test_the_probe_of_a_killed_check_does_not_stay(hand):
    hand.backup()
    left, young = hand.store / "probe-00ff", hand.store / "probe-ff00"
    for path in (left, young):
        path.write_bytes(b"mine")
    os.utime(left, (time.time() - 100_000,) * 2)
    hand.is_clean()
    assert not left.exists()
    assert young.exists()
