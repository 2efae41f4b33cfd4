"""Restores that are killed: the target is whole or not there, the live database is the old one or the new one."""

import os
import random
import sqlite3
import time
from contextlib import closing

import pytest

from tests.faults.hand import SIDES, Hand, a_place, moment
from tests.live import until
from tests.workload import consistent


@pytest.fixture
def hand(press):
    """A shop of some megabytes with a backup."""
    with a_place() as place:
        hand = Hand(place, press)
        hand.seed(bookings=2000, documents=1500)
        hand.backup()
        yield hand


def test_what_a_killed_restore_left_beside_the_database_goes_with_the_next_one(hand):
    """A restore without --to goes beside the live database."""
    (id,) = hand.acknowledged
    for _ in range(200):
        running = hand.start("restore", "shop", "--to", str(hand.live / "copy.db"))
        while not list(hand.live.glob(".*.dbguard")) and not running.ended(0.0005):
            pass
        running.kill_all()
        running.wait()
        if list(hand.live.glob(".*.dbguard")):
            break
        (hand.live / "copy.db").unlink(missing_ok=True)  # it was quicker than the kill
    (left,) = hand.live.glob(".*.dbguard")
    (hand.live / "copy.db").unlink(missing_ok=True)
    strangers = [hand.live / ".notes.dbguard", hand.live / ".a.b.c.dbguard", hand.live / "shop.abcd1234.dbguard"]
    for path in strangers:
        path.touch()
    until(lambda: time.time() - left.stat().st_ctime > 1.1, "old enough not to be of someone who has just begun")
    hand.run("restore", "shop", "--to", str(hand.live / "copy.db")).result  # noqa: B018
    assert consistent(hand.live / "copy.db")
    assert not left.exists()
    assert all(path.exists() for path in strangers)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_restore_in_place_that_is_killed_leaves_the_old_state_or_the_new_one(hand, number):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice, seconds, kills, states = random.Random(seed), 1.0, 0, set()
    mark(hand, "old")
    old = hand.backup()
    states.add("old")
    while kills < 12:
        name = f"new-{kills}"
        mark(hand, name)
        running = hand.start("restore", "shop", "--backup", old, "--in-place", "--confirm", "shop")
        if dice.random() < 0.7:
            running.heard("restore.written")
            running.ended(moment(dice, seconds / 3))
        else:
            running.ended(moment(dice, seconds))
        kills += bool(running.kill(dice))
        hand.noted(running.wait())
        nobody_pours(hand)
        assert marked(hand) in ("old", name), f"seed {seed}"
    began = time.monotonic()
    done = hand.run("restore", "shop", "--backup", old, "--in-place", "--confirm", "shop").result
    seconds = time.monotonic() - began
    assert marked(hand) == "old"
    assert done["safety_copy"]
    hand.is_tidy()
    hand.is_clean()
    assert set(hand.acknowledged) <= set(hand.listed())


def mark(hand: Hand, name: str) -> None:
    """Write into the live database which state it is."""
    with closing(sqlite3.connect(hand.path)) as db, db:
        db.execute("insert or replace into document values ('mark', ?)", (name,))
        db.executemany(
            "insert or replace into document values (?, ?)", [(f"doc-{n:05}", os.urandom(3000)) for n in range(300)]
        )


def marked(hand: Hand) -> str:
    """Open the live database as the application would, which recovers it, and say which state it is in."""
    with closing(sqlite3.connect(hand.path)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        (name,) = db.execute("select body from document where name = 'mark'").fetchone()
    assert consistent(hand.path)
    for side in SIDES[1:]:
        assert not hand.path.with_name(f"shop.db{side}").exists() or side != "-journal"
    return name


def nobody_pours(hand: Hand) -> None:
    """Wait until no process of ours writes the live database any more."""
    path = os.fsencode(hand.path)

    def writes(pid: str) -> bool:
        return pid.isdigit() and int(pid) != os.getpid() and path in command(pid)

    until(lambda: not any(map(writes, os.listdir("/proc"))), "nobody writes the live database any more")


def command(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
