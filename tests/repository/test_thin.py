"""A log that was made coarser: what is left comes back as it was, whatever was in between and whoever was killed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import ObjectMissing
from dbguardd.repository import recover, thin
from dbguardd.repository.log import FOLD, Link, StoredLog
from dbguardd.repository.thin import Due, Grain
from dbguardd.rules.chains import Chain
from tests.repository.data_path import DOMAIN, NOW
from tests.repository.lifecycle_kit import Killed, Mortal
from tests.repository.test_log import PAGE, PLACE, checked, filled, open_log, segment
from tests.storage.memory import Memory

MINUTE, HOUR = 60, 3600
LATER = datetime.now(UTC) + timedelta(days=30)  # by the clock of the storage
State = bytes


def put_over(state: State, link: Link) -> State:
    """What a restore makes of a file and a segment."""
    file = bytearray(state)
    for number, page in link.pages():
        file.extend(bytes(max(0, number * PAGE - len(file))))
        file[(number - 1) * PAGE : number * PAGE] = page
    if link.size:
        file = file[: link.size] + bytes(max(0, link.size - len(file)))
    return bytes(file)


def lived(log: StoredLog, dice: random.Random, count: int) -> tuple[Chain, dict[int, State], list[datetime]]:
    """A database that grows, shrinks and has long transactions: its log, and what it was at each moment."""
    chain, at, pages = log.begin(PLACE, "new", NOW), NOW, 8
    states, moments = {0: dice.randbytes(8 * PAGE)}, [NOW]
    state = states[0]
    for number in range(1, count + 1):
        at += timedelta(seconds=dice.choice((1, 7, 20, 90)))
        whole = dice.random() < 0.8
        pages = max(2, pages + dice.choice((-3, 0, 0, 0, 2))) if whole else pages
        changed = {dice.randint(1, pages): dice.randbytes(PAGE) for _ in range(dice.randint(0, 4))}
        one = segment(number, changed, size=pages * PAGE if whole else 0, at=at)
        chain = log.append(chain, one)
        (link,) = log.links(chain, number, number)
        state = put_over(state, link)
        if whole:
            states[number] = state
        moments.append(at)
    return log.chains()[0], states, moments


def all_of(chain: Chain, grain: int) -> Due:
    return Due(chain, grain, chain.last)


def is_as_it_was(log: StoredLog, states: dict[int, State], dice: random.Random) -> list[int]:
    """Assert that each moment that is left comes back, from any state before it; return their numbers."""
    (chain,) = log.chains()
    left = [link.number for link in log.links(chain, 0, chain.last) if link.size]
    for number in left:
        for base in {0, *dice.choices([n for n in states if n < number], k=2)}:
            state = states[base]
            for link in log.links(chain, base + 1, number):
                state = put_over(state, link)
            assert state == states[number]
    return left


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 90))
def test_what_is_left_comes_back_as_it_was_and_is_one_moment_a_minute(seed: int, count: int) -> None:
    storage, dice = Memory(), random.Random(seed)
    log = open_log(storage, seed=seed)
    chain, states, moments = lived(log, dice, count)
    thin.thin(log, all_of(chain, MINUTE))
    left = is_as_it_was(open_log(storage, seed=seed + 1), states, dice)
    last = {at.timestamp() // MINUTE: number for number, at in enumerate(moments)}  # of each minute
    for number in list(last.values())[:-1]:
        later = next((n for n in states if n >= number), None)  # where it is in the middle of a transaction
        assert number in (0, *left) or later in left or later is None or moments[later] >= moments[max(left)]
    assert not checked(storage)
    (chain,) = log.chains()
    thin.thin(log, all_of(chain, HOUR))
    hourly = is_as_it_was(open_log(storage, seed=seed + 2), states, dice)
    assert set(hourly) <= set(left)
    assert not checked(storage)
    assert not list(thin.make_coarser(log, [Grain(HOUR, timedelta(days=1))], LATER))
    assert [link.number for link in log.links(log.chains()[0], 0, chain.last) if link.size] == hourly


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_loses_nothing_and_the_next_try_ends_it(after: bool) -> None:
    before, dice = Memory(), random.Random(7)
    _, states, _ = lived(open_log(before), dice, 2 * FOLD + 9)
    limit, thin.FOLDED_BYTES = thin.FOLDED_BYTES, 3000  # several objects
    wanted = list[int]()
    try:
        for last in range(1000):
            storage = Memory()
            storage._objects.update(before._objects)
            (chain,) = open_log(storage).chains()
            try:
                thin.thin(open_log(Mortal(storage, last, after=after), seed=2), all_of(chain, MINUTE))
            except Killed:
                is_as_it_was(open_log(storage), states, dice)
                (chain,) = open_log(storage).chains()
                list(thin.make_coarser(open_log(storage, seed=3), [Grain(MINUTE, timedelta(days=1))], LATER))
            else:
                wanted = is_as_it_was(open_log(storage), states, dice)
                break
            assert not checked(storage)
            (chain,) = open_log(storage).chains()
            assert len(open_log(storage).objects(chain)) <= len(chain.pieces)  # nothing of before is left over
    finally:
        thin.FOLDED_BYTES = limit
    assert 10 < last < 1000
    assert 3 < len(wanted) < len(states)


def test_what_is_of_age_goes_to_its_grain_once_and_the_rest_stays() -> None:
    now = [NOW]
    storage = Memory(lambda: now[0])
    log = open_log(storage)
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 201):
        now[0] = NOW + timedelta(minutes=number)
        chain = log.append(chain, segment(number, at=now[0]))
    grains = [Grain(MINUTE, timedelta(hours=1)), Grain(HOUR, timedelta(hours=2))]
    end = now[0]

    def passed(later: timedelta) -> list[int]:
        now[0] = end + later
        list(thin.make_coarser(log, grains, now[0]))
        (chain,) = log.chains()
        return [piece.grain for piece in chain.pieces]

    first = passed(timedelta())
    assert set(first) == {HOUR, MINUTE, 0}
    assert first == sorted(first, reverse=True)
    assert passed(timedelta()) == first
    numbers = [link.number for link in log.links(log.chains()[0], 0, 200)]
    assert len(numbers) < 150
    passed(timedelta(minutes=90))
    assert len([link.number for link in log.links(log.chains()[0], 0, 200)]) < len(numbers)
    last = passed(timedelta(days=2))
    assert last[:3] == [HOUR] * 3
    assert len(last) < 7  # the hour that is not over stays as it was
    assert passed(timedelta(days=3)) == last
    assert not checked(storage)


def test_a_segment_ends_where_it_has_much_and_where_the_database_got_shorter() -> None:
    log = open_log(Memory())
    chain, limit = log.begin(PLACE, "new", NOW), thin.MERGED_BYTES
    for number in range(1, 41):
        pages = {page: bytes([number]) * PAGE for page in range(number, number + 3)}
        pages, size = ({1: b"x" * PAGE}, 4) if number == 20 else (pages, 50)
        chain = log.append(chain, segment(number, pages, size=size * PAGE, at=NOW))
    chain = log.append(chain, segment(41, at=NOW + timedelta(days=1)))
    try:
        thin.MERGED_BYTES = 8 * PAGE
        ends = [link.number for link in thin.merged(log.links(chain, 0, 41), MINUTE, 0)]
    finally:
        thin.MERGED_BYTES = limit
    assert ends[:3] == [0, 1, 7]
    assert 20 in ends
    assert all(later - one <= 7 for one, later in zip(ends, ends[1:], strict=False))


def test_a_follower_that_folds_and_a_reader_that_comes_late_meet_what_is_coarser() -> None:
    """The follower knows objects that are gone by then: it leaves them, and goes on."""
    storage = Memory()
    log = open_log(storage)
    chain = filled(log, FOLD + 5)
    (listed,) = open_log(storage).chains()
    thin.thin(open_log(storage, seed=2), all_of(listed, MINUTE))
    for number in range(FOLD + 6, 4 * FOLD):
        at = NOW + timedelta(minutes=5, seconds=number)
        chain = log.append(chain, segment(number, at=at))
    thin.thin(open_log(storage, seed=3), all_of(log.chains()[0], MINUTE))
    for number in range(4 * FOLD, 8 * FOLD):
        at = NOW + timedelta(minutes=9, seconds=number)
        chain = log.append(chain, segment(number, at=at))
    (whole,) = open_log(storage).chains()
    assert (whole.first, whole.last) == (0, 8 * FOLD - 1)
    assert whole.pieces[0].grain == MINUTE
    assert len(whole.pieces) < 2 * FOLD + 3
    with pytest.raises(ObjectMissing, match="only merged into 37"):
        list(open_log(storage).links(listed, 1, 3))
    assert not checked(storage)


def test_a_reader_of_a_log_that_is_made_coarser_meanwhile_goes_on_in_what_is_new() -> None:
    storage, dice, limit = Memory(), random.Random(11), thin.FOLDED_BYTES
    log = open_log(storage)
    chain, states, _ = lived(log, dice, 90)
    reading = open_log(storage).links(chain, 0, chain.last)
    assert next(reading).number == 0
    thin.FOLDED_BYTES = 2000
    try:
        thin.thin(open_log(storage, seed=2), all_of(chain, MINUTE))
    finally:
        thin.FOLDED_BYTES = limit
    state, numbers = states[0], list[int]()
    for link in reading:
        state = put_over(state, link)
        numbers.append(link.number)
        assert not link.size or state == states[link.number]
    assert numbers[:31] == list(range(1, 32))  # of the object that was read already
    assert len(numbers) < 75
    assert numbers[-1] == chain.last


def test_what_lies_before_a_hole_stays_when_what_lies_behind_it_is_made_coarser() -> None:
    """The last minute before the hole is not over: it is fine still, and there is nothing coarser that has it."""
    log = open_log(Memory())
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 401):
        chain = log.append(chain, segment(number, at=NOW + timedelta(seconds=number)))
    lost = next(piece for piece in log.chains()[0].pieces if piece.first > 100)
    log.forget([lost])
    list(thin.make_coarser(log, [Grain(MINUTE, timedelta(days=1))], LATER))
    before, behind = log.chains()
    assert (before.last, behind.first) == (lost.first - 1, lost.last + 1)
    assert (before.pieces[0].grain, before.pieces[-1].grain, behind.pieces[0].grain) == (MINUTE, 0, MINUTE)


def test_recover_py_reads_it_too(tmp_path) -> None:
    storage, dice = Memory(), random.Random(5)
    log = open_log(storage)
    chain, _, _ = lived(log, dice, 60)
    thin.thin(log, all_of(chain, MINUTE))
    for entry in storage.list("log/"):
        (tmp_path / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry.name).write_bytes(storage.get(entry.name))
    key = recover.Key(DOMAIN.repo_id, DOMAIN.id, DOMAIN.key)
    (chain,) = log.chains()
    for first in (0, 1, 17):
        found = [head["number"] for head, _ in recover.segments(tmp_path, key, chain.id, first)]
        assert found == [link.number for link in log.links(chain, first, chain.last)]
