"""How much of a log goes: never what a backup to rely on goes on from, never its end, and nothing from its middle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from dbguardd.rules.chains import Chain, Piece
from dbguardd.rules.keep_log import begin_of, outlived
from dbguardd.rules.moment import Base

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(hour: float) -> datetime:
    return NOW + timedelta(hours=hour)


def chain(id: str, first: int, last: int, begin: float = 0, grain: int = 0) -> Chain:
    """A chain of an object an hour, each with one segment."""
    hours = [begin + number - first for number in range(first, last + 1)]
    numbers = range(first, last + 1)
    return Chain(
        id, tuple(Piece(f"{id}{n}", id, n, n, at(h), 1, at(h), grain) for n, h in zip(numbers, hours, strict=True))
    )


def names(found: list[Piece]) -> list[str]:
    return [piece.name for piece in found]


def test_what_is_old_goes_from_its_beginning_up_to_what_the_newest_backup_goes_on_from():
    log = [chain("a", 0, 9), chain("b", 0, 9, 10)]
    assert names(outlived(log, [], at(3), {})) == ["a0", "a1", "a2"]
    assert names(outlived(log, [], at(99), {}))[-1] == "a9"  # nothing goes on from the newest chain yet
    assert names(outlived(log, [Base("N", at(20), "b", 9)], at(99), {}))[-1] == "b8"  # and the end stays
    newest = Base("N", at(14), "b", 3)
    assert names(outlived(log, [newest], at(99), {}))[-1] == "b3"
    assert names(outlived(log, [newest, Base("O", at(5), "a", 4)], at(99), {}))[-1] == "b3"  # an old one holds nothing
    assert names(outlived(log, [newest, Base("O", at(5), "a", 1)], at(4), {})) == ["a0", "a1"]


def test_time_in_which_the_clock_may_have_jumped_makes_nothing_old():
    day, year = timedelta(days=1), timedelta(days=365)
    daily = [NOW - number * day for number in range(30)]
    assert begin_of(7 * day, NOW, daily) == NOW - 7 * day
    assert begin_of(7 * day, NOW + 40 * day, daily) == NOW + 33 * day  # a rest
    assert begin_of(7 * day, NOW + year, daily) == NOW - 7 * day
    later = [*daily, *(NOW + year + number * day for number in range(3))]
    assert begin_of(7 * day, NOW + year + 2 * day, later) == NOW - 5 * day
    assert begin_of(7 * day, NOW + day, later) == NOW - 6 * day  # it was set right
    assert begin_of(60 * day, NOW, daily) == daily[-1] - 31 * day
    assert begin_of(day, NOW, []) == NOW - day


def test_what_was_made_coarser_was_old_already_when_it_was_stored():
    log = [chain("a", 0, 9, grain=60), chain("b", 0, 1, 10)]
    assert names(outlived(log, [], at(3), {60: timedelta(hours=-2)})) == ["a0"]
    assert names(outlived(log, [], at(3), {60: timedelta(hours=2)})) == ["a0", "a1", "a2", "a3", "a4"]


@given(st.lists(st.integers(1, 6), max_size=4), st.data())
def test_the_beginning_goes_and_what_is_needed_stays(lengths: list[int], data: st.DataObject):
    log = [chain("abcd"[place], 0, length, 10.0 * place) for place, length in enumerate(lengths)]
    points = st.builds(
        lambda chain, after, hour: Base("B", at(hour), chain, after),
        st.sampled_from("abcd"), st.integers(0, 6), st.integers(0, 40),
    )  # fmt: skip
    bases = sorted(data.draw(st.lists(points, max_size=3)), key=lambda base: base.created_at, reverse=True)
    start = at(data.draw(st.integers(-1, 60)))
    found = outlived(log, bases, start, {})
    every = [piece for one in log for piece in one.pieces]
    assert found == every[: len(found)]
    assert all(piece.stored_at < start for piece in found)
    assert not log or log[-1].pieces[-1] not in found
    for base in [*bases[:1], *(base for base in bases if base.created_at >= start)]:
        assert not [piece for piece in found if piece.chain == base.chain and piece.last > base.after]
