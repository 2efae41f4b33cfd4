"""The sweep, its writers and recalls as a small model: every interleaving is tried, and no backup ever lacks a pack.

The model follows tombs.py and sweep.py step by step. Time is whole ticks; GRACE = 2, MARGIN = 1. Nobody waits for
anybody, anyone may stop for ever between two steps (that is a crash), and time passes whenever it likes.

Checked in every state: no visible backup was deleted, and every acknowledged backup that is there, visible or expired,
has all its packs. Each rule of the protocol can be left out (RULES); without it, the search must find a loss.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest

GRACE, MARGIN = 2, 1
RULES = frozenset({"relist", "tombs", "exists", "recheck", "grace", "margin", "order", "recall", "keep expired"})
NEVER = -1


class Snap(NamedTuple):
    """One backup: what it needs, whether its writer has returned, since when it is expired."""

    id: int
    packs: frozenset[int]
    acked: bool
    expired: int


class State(NamedTuple):
    now: int
    packs: frozenset[int]
    snaps: frozenset[Snap]
    tombs: frozenset[tuple[int, int]]  # pack, time
    writers: tuple  # (step, packs, time of the check)
    recall: tuple  # (step, snap, time of the check)
    gc: tuple  # (step, due tombs, expired to delete, live packs, recallable packs)
    made: int  # packs made so far
    lost: bool = False  # a visible backup was deleted


def moves(s: State, rules: frozenset[str], most: int, end: int):
    if s.now < end:
        yield "tick", s._replace(now=s.now + 1)
    for snap in s.snaps:
        if snap.acked and snap.expired == NEVER:
            yield f"expire {set(snap.packs)}", s._replace(snaps=swap(s.snaps, snap, snap._replace(expired=s.now)))
    for number in range(len(s.writers)):
        yield from writer(s, number, rules, most)
    yield from recaller(s, rules)
    yield from sweeper(s, rules)


def swap(snaps: frozenset[Snap], old: Snap, new: Snap) -> frozenset[Snap]:
    return snaps - {old} | {new}


def reliable(s: State, packs: frozenset[int], rules: frozenset[str]) -> bool:
    """tombstones.check_packs_stay()"""
    margin = MARGIN if "margin" in rules else 0
    doomed = {pack for pack, at in s.tombs if s.now - at >= GRACE - margin}
    return not ("tombs" in rules and packs & doomed) and not ("exists" in rules and not packs <= s.packs)


def writer(s: State, number: int, rules: frozenset[str], most: int):
    """Repository.saving and _publish: inherit from a visible backup, add packs, check, publish, check again if late."""
    step, packs, checked = s.writers[number]

    def put(*new, **more):
        return s._replace(writers=(*s.writers[:number], new, *s.writers[number + 1 :]), **more)

    if step == 0:
        for snap in s.snaps:
            if snap.expired == NEVER:
                yield f"w{number} builds on {set(snap.packs)}", put(1, snap.packs, 0)
        if s.made < most:
            yield f"w{number} puts {s.made}", put(1, frozenset({s.made}), 0, packs=s.packs | {s.made}, made=s.made + 1)
    elif step == 1 and reliable(s, packs, rules):
        yield f"w{number} checks", put(2, packs, s.now)
    elif step == 2:
        late = s.now - checked > MARGIN and "recheck" in rules
        snap = Snap(number + 1, packs, not late, NEVER)
        yield f"w{number} publishes {set(packs)}", put(3 if late else 4, packs, 0, snaps=s.snaps | {snap})
    elif step == 3:
        snap = Snap(number + 1, packs, False, NEVER)
        if reliable(s, packs, rules):
            yield f"w{number} is late, but safe", put(4, packs, 0, snaps=swap(s.snaps, snap, snap._replace(acked=True)))
        else:
            yield f"w{number} withdraws", put(4, packs, 0, snaps=s.snaps - {snap})


def recaller(s: State, rules: frozenset[str]):
    """Repository.recall: check as a writer does, and the age of the backup's own tomb; then take the tomb away."""
    step, snap, checked = s.recall
    if step == 0:
        for found in s.snaps:
            young = s.now - found.expired < GRACE - MARGIN or "recall" not in rules
            if found.acked and found.expired != NEVER and young and reliable(s, found.packs, rules):
                yield f"recall of {set(found.packs)} checks", s._replace(recall=(1, found, s.now))
    elif step == 1 and snap in s.snaps and s.now - checked <= MARGIN:
        yield (
            f"recalls {set(snap.packs)}",
            s._replace(snaps=swap(s.snaps, snap, snap._replace(expired=NEVER)), recall=(2, None, 0)),
        )


def sweeper(s: State, rules: frozenset[str]):
    """Sweeping.run: what is due, what is needed, manifests, packs and tombs, new tombs."""
    step, due, over, live, recallable = s.gc
    grace = GRACE if "grace" in rules else 0

    def look():
        gone = {snap for snap in s.snaps if snap.expired != NEVER and s.now - snap.expired >= grace}
        visible = frozenset(p for snap in s.snaps if snap.expired == NEVER for p in snap.packs)
        kept = s.snaps - gone if "keep expired" in rules else {snap for snap in s.snaps if snap.expired == NEVER}
        return frozenset(gone), visible, frozenset(p for snap in kept for p in snap.packs)

    if step == 0:
        ripe = frozenset((pack, at) for pack, at in s.tombs if s.now - at >= grace)
        yield "gc reads tombs", s._replace(gc=(1, ripe, *[frozenset()] * 3))
    elif step == 1:
        yield "gc reads backups", s._replace(gc=(2 if "order" in rules else 3, due, *look()))
    elif step == 2:
        ids = {snap.id for snap in over}
        gone = frozenset(snap for snap in s.snaps if snap.id in ids)
        lost = any(snap.expired == NEVER for snap in gone)
        after = (3 if "order" in rules else 4, due, over, live, recallable)
        yield "gc deletes manifests", s._replace(snaps=s.snaps - gone, gc=after, lost=s.lost or lost)
    elif step == 3:
        doomed = {pack for pack, _ in due} - (recallable if "relist" in rules else frozenset())
        after = (4 if "order" in rules else 2, due, over, live, recallable)
        yield f"gc deletes {doomed or 'no packs'}", s._replace(packs=s.packs - doomed, gc=after)
    elif step == 4:
        yield "gc deletes tombs", s._replace(tombs=s.tombs - due, gc=(5, due, over, live, recallable))
    else:
        fresh = s.packs - live - {pack for pack, _ in s.tombs | due}
        yield (
            f"gc marks {set(fresh)}",
            s._replace(tombs=s.tombs | {(pack, s.now) for pack in fresh}, gc=(0, *[frozenset()] * 4)),
        )


def broken(s: State) -> bool:
    return s.lost or any(snap.acked and not snap.packs <= s.packs for snap in s.snaps)


def explore(rules: frozenset[str] = RULES, *, writers: int = 1, most: int = 2, end: int = 5) -> tuple[int, list[str]]:
    """Return the number of states and, if a loss was found, the shortest way to it."""
    nothing = frozenset()
    first = State(
        0, frozenset({0}), frozenset({Snap(0, frozenset({0}), True, NEVER)}), nothing, ((0, nothing, 0),) * writers,
        (0, None, 0), (0, nothing, nothing, nothing, nothing), 1,
    )  # fmt: skip
    came = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        if broken(state):
            way = []
            while came[state] is not None:
                state, move = came[state]
                way.append(move)
            return len(came), way[::-1]
        for move, after in moves(state, rules, most, end):
            if after not in came:
                came[after] = (state, move)
                queue.append(after)
    return len(came), []


def test_no_interleaving_loses_a_backup():
    states, way = explore()
    assert way == []
    assert states > 10_000


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_is_needed(rule):
    assert explore(RULES - {rule})[1], f"nothing is lost without {rule}: is the rule needed, or the model too small?"


if __name__ == "__main__":
    import time

    for left_out in (set(), *({rule} for rule in sorted(RULES))):
        began = time.monotonic()
        count, trace = explore(RULES - left_out)
        print(f"{', '.join(left_out) or 'all rules':14} {count:8} {time.monotonic() - began:5.1f} s", " | ".join(trace))
