"""500 kills: whatever is killed at whatever moment, nothing that was acknowledged is lost, and the next run succeeds.

Every run is a real `dbguardd run` with the real halves. The moment is drawn over the measured duration of such a run:
half of the kills from its beginning, half from the moment the job itself begins, so that start-up does not get them
all. A kill that comes too late to strike anything is not counted. `make soak` has ten rounds of 50 kills, `make test` a
short round of each kind of database and owner.
"""

import os
import random
import time
from collections import Counter

import pytest

from tests.faults.hand import Ended, Hand, a_place, moment, other_user, writing

ROUNDS = 10
KILLS, FEW = 50, 20
OFTEN = (0, 1, 3, 4)  # as root and as another user, a dump, and a database without WAL
REST = 10  # after so many kills a run is left alone, and must succeed
LAST = 3

WORDS = {
    "backup": ["backup", "shop"],
    "verify": ["verify", "shop"],
    "expire": ["expire", "shop", "--confirm", "shop"],
    "sweep": ["sweep", "local", "--confirm", "local"],  # so many kills leave more to sweep than the breaker lets pass
}


class Round:
    """One repository through many kills."""

    def __init__(self, hand: Hand, number: int) -> None:
        self.hand = hand
        self.seed = random.SystemRandom().randrange(10**6)
        print(f"round {number}: seed {self.seed}")
        self.dice = random.Random(self.seed)
        self.seconds: dict[str, tuple[float, float]] = {}  # verb: start-up and job, as measured
        self.kills = 0
        self.struck: Counter[str] = Counter()

    def undisturbed(self, *words: str) -> Ended:
        """A run that is left alone must succeed, however many were killed before it."""
        began = time.monotonic()
        running = self.hand.start(*words)
        running.heard("repository.opened")
        job = time.monotonic()
        ended = self.hand.noted(running.wait())
        self.seconds[words[0]] = (job - began, time.monotonic() - job)
        assert ended.status == 0, f"seed {self.seed}: {words}: {ended.stderr}"
        if words[0] in ("backup", "verify"):
            self.hand.is_tidy()
        return ended

    def kill(self, *words: str) -> None:
        """Start a run and kill something of it at a random moment."""
        startup, job = self.seconds.get(words[0], (0.5, 0.5))
        running = self.hand.start(*words)
        if self.dice.random() < 0.5:
            running.heard("repository.opened")
            running.ended(moment(self.dice, job))
        else:
            running.ended(moment(self.dice, startup + job))
        victim = running.kill(self.dice)
        ended = self.hand.noted(running.wait())
        assert ended.status in (0, 1, -9), f"seed {self.seed}: {ended.stderr}"
        if ended.status == 1:
            assert ended.problem["code"] == "DBG-8001", f"seed {self.seed}: {ended.stderr}"
        if victim:
            self.kills += 1
            self.struck[f"{words[0]}: {victim}"] += 1
        self.nothing_is_lost()

    def nothing_is_lost(self) -> None:
        """What was acknowledged is there, except what made room for newer ones."""
        listed = self.hand.listed()
        for lost in set(self.hand.acknowledged) - set(listed):
            newer = sum(id > lost for id in listed)
            assert newer >= LAST, f"seed {self.seed}: {lost} was acknowledged and is lost"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kills"),
    [
        *((number, FEW) for number in OFTEN),
        *(pytest.param(number, KILLS, marks=pytest.mark.soak) for number in range(ROUNDS)),
    ],
)
def test_a_kill_at_any_moment_loses_nothing(press, number, kills):
    method = "dump" if number % 5 == 3 else "pages"
    settings = f"keep = {{ last = {LAST} }}\nmin_proven = 1\nlock_timeout = '60s'\nmethod = '{method}'"
    owner = other_user() if number % 2 else os.geteuid()
    with a_place() as place:
        hand = Hand(place, press, owner=owner, wal=number % 5 != 4, settings=settings, storage='grace = "0s"')
        hand.seed(bookings=500)
        with writing(hand.path, owner):
            one = Round(hand, number)
            for words in WORDS.values():
                one.undisturbed(*words)
            while one.kills < kills:
                for _ in range(REST):
                    verb = one.dice.choice(["backup", "backup", "backup", "verify", "expire", "sweep"])
                    one.kill(*WORDS[verb])
                for verb in ("backup", one.dice.choice(["verify", "expire", "sweep"])):
                    one.undisturbed(*WORDS[verb])
                    one.nothing_is_lost()
        hand.is_clean()
        listed = hand.listed()
        if method == "pages":
            hand.reads(listed)
        hand.restores(*listed[:2], *listed[-2:])
        print(f"{one.kills} kills {dict(one.struck)}, {len(hand.acknowledged)} acknowledged, {hand.runs} runs")
