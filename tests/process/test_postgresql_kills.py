"""kill -9 of every part of dbguard and of the guarded server in every kind of work: nothing is lost, nothing is left.

`make test` has a few kills, so that each kind of work and each part is struck; `make soak` goes through the matrix in
random order until SOAK_SECONDS are over. There alone the server hands over its log: after a failure it waits for a
minute before it tries that again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engines.postgres_world import cluster
from tests.process.house import House, a_place
from tests.process.kills_parts import MATRIX, MATRIX_PUSHED
from tests.process.kills_world import Yard

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
ROUND = 12  # after so many kills everything is looked at
FEW = [
    ("full", "session"),
    ("incremental", "engine"),
    ("dump", "program"),
    ("proof", "scratch"),
    ("proof of a dump", "repository"),
    ("restore", "daemon"),
    ("question", "client"),
    ("prune", "repository"),
    ("in place", "engine"),
    ("undo", "daemon"),
    ("follow", "postmaster"),
    ("turn", "repository"),
]


@contextmanager
def a_yard(request: pytest.FixtureRequest, log: str = "true") -> Iterator[Yard]:
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}")
    with a_place() as place, cluster("--wal-segsize=1") as live:
        house = House(place)
        if os.geteuid() == 0:
            house.python = request.getfixturevalue("python")
        if log != "true":
            with (live.data / "postgresql.conf").open("a") as conf:
                conf.write("archive_mode = on\narchive_command = 'false'\n")
            live.stop()
            live.start()
        yard = Yard(house, live, seed, log)
        try:
            yard.begin()
            yield yard
        finally:
            yard.books.stop()
            house.close()


@pytest.fixture(scope="module")
def yard(request: pytest.FixtureRequest) -> Iterator[Yard]:
    with a_yard(request) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), FEW)
def test_whatever_is_killed_nothing_is_lost_and_nothing_is_left(yard: Yard, kind: str, part: str) -> None:
    yard.strike(kind, part)


@pytest.mark.slow
def test_after_all_that_everything_succeeds(yard: Yard) -> None:
    yard.all_is_well()
    yard.end()
    print(yard.told())


@pytest.mark.soak
@pytest.mark.parametrize(("log", "matrix"), [("true", MATRIX), ('"archive"', MATRIX_PUSHED)])
def test_every_part_in_every_kind_of_work_until_the_time_is_over(
    request: pytest.FixtureRequest, log: str, matrix: list[tuple[str, str]]
) -> None:
    began = time.monotonic()
    seconds = SECONDS if matrix is MATRIX else SECONDS / 4
    with a_yard(request, log) as yard:
        try:
            while time.monotonic() - began < seconds:
                for kind, part in yard.dice.sample(matrix, min(ROUND, len(matrix))):
                    print(f"{time.monotonic() - began:6.0f} s: {kind}: {part}", flush=True)
                    yard.strike(kind, part)
                yard.all_is_well()
            yard.end()
        except BaseException:
            print(yard.story())
            raise
        finally:
            print(yard.told())
