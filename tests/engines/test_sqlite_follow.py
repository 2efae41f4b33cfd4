"""The log of a live database is followed, and no commit is lost, torn, misordered or invented, whatever happens."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from follow_world import World, wait_a_while

ALL = ["plain", "keyed", "plain", "keyed", "shrink", "schema", "slow", "plain"]

HISTORIES = {
    "plain": ({}, {"auto": 1000}, 1, True),
    "never checkpointed by itself": ({"turn_frames": 200}, {"auto": 0}, 1, False),
    "checkpointed at each commit": ({"turn_frames": 50}, {"auto": 1, "kinds": ALL}, 1, True),
    "small pages": (
        {"page_size": 512, "segment_bytes": 20_000, "turn_frames": 100},
        {"auto": 5, "kinds": ALL},
        1,
        True,
    ),
    "large pages": ({"page_size": 65536, "turn_frames": 40}, {"auto": 20, "kinds": ALL}, 1, True),
    "several segments a transaction": (
        {"segment_bytes": 100_000, "turn_frames": 300},
        {"auto": 100, "kinds": ["big", "plain", "plain"], "big": 600, "cache": 5},
        1,
        True,
    ),
    "vacuum": (
        {"vacuum": 2, "turn_frames": 200},
        {"auto": 50, "kinds": ALL, "between": ["vacuum", "incremental", "rollback"], "often": 12},
        1,
        True,
    ),
    "open and close": ({"turn_frames": 30}, {"auto": 50, "between": ["reopen", "rollback"], "often": 5}, 1, True),
    "several writers": ({"turn_frames": 100}, {"auto": 30, "kinds": [*ALL, "slow"], "pause": 0.005}, 3, True),
    "impatient writers": ({"turn_frames": 20}, {"auto": 10, "timeout": 0, "pause": 0.003}, 2, True),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_each_position_is_what_was_committed(tmp_path, name):
    pace, options, writers, foreign = HISTORIES[name]
    world = World(tmp_path, seed=len(name), **pace)
    with world.following(), ExitStack() as users:
        for who in range(writers):
            users.enter_context(world.writer(who, **options))
        if foreign:
            users.enter_context(world.checkpoints())
        for _ in range(3):
            wait_a_while(0.6)
            world.base()
        wait_a_while(0.6)
        users.close()
        world.caught_up()
        assert world.ends() == []
    world.prove(most=12, writers=writers, needed=10)
    world.prove_end()
    assert world.gaps == 0
