"""Which moment of a log is reached: what names tell and a few looks find is what reading all of it would."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dbguardd.facts import LogPosition
from dbguardd.rules.chains import BYTES, Chain, LogView, Piece
from dbguardd.rules.moment import Base, bases_of, before, continues, missing_segments, newest, reaching, up_to

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID = "01KJN2X5Q0000000000000000" + "0"


@dataclass(frozen=True)
class Segment:
    number: int
    at: datetime
    since: dict[str, Any]
    until: dict[str, Any]
    size: int = 512
    form: str = ""
    sum: str = ""


def at(second: float) -> datetime:
    return NOW + timedelta(seconds=second)


@dataclass
class Kept:
    """A log in memory, which knows what of it was looked into."""

    pieces: dict[Piece, list[Segment]] = field(default_factory=dict)
    opened: list[Piece] = field(default_factory=list)

    def put(self, *segments: Segment) -> None:
        first, last = segments[0].number, segments[-1].number
        reached = max([one.at for one in segments] + [piece.until for piece in self.pieces])
        self.pieces[Piece(f"log/{first}", ID, first, last, reached, 1, reached)] = list(segments)

    @property
    def stored(self) -> LogView:
        def look(piece: Piece) -> list[Segment]:
            self.opened.append(piece)
            return self.pieces[piece]

        rows = [[next(iter(self.pieces))]]
        for earlier, piece in pairwise(self.pieces):
            rows += [[]] if piece.first > earlier.last + 1 else []
            rows[-1].append(piece)
        return LogView([Chain(ID, tuple(row)) for row in rows], look)


def place(position: int) -> dict[str, Any]:
    return {"round": "r", "position": position}


@st.composite
def logs(draw: Any) -> tuple[Kept, list[Segment]]:
    """A log whose clock goes on or back, of transactions of several segments, in objects of several segments."""
    made, moment = [Segment(0, NOW, place(0), place(0), 0)], NOW
    form = draw(st.sampled_from(["", BYTES]))
    for number in range(1, draw(st.integers(2, 24))):
        moment += timedelta(seconds=draw(st.sampled_from([0, 1, 1, 5, 60, -30])))
        size = 512 if form else draw(st.sampled_from([512, 512, 0]))
        made.append(Segment(number, moment, place(number - 1), place(number), size, form))
    kept, rest = Kept(), made
    while rest:
        count = draw(st.integers(1, 5))
        kept.put(*rest[:count])
        rest = rest[count:]
    return kept, made


def naive(segments: list[Segment], base: Base, wanted: datetime | None) -> int | None:
    """The number of the segment that a restore ends with, if one reads all of the log, in order."""
    assert base.place is not None
    reaching = [s.number for s in segments if s.number >= base.after and s.until["position"] >= base.place.position]
    found = None
    for one in segments:
        if not reaching or one.number < max(reaching[0], base.after + 1) or not one.size:
            continue
        if wanted is not None and one.at > wanted:
            return one.number if one.form == BYTES else found
        found = one.number
    return found


@given(logs(), st.data())
def test_what_is_chosen_is_what_reading_all_of_the_log_would_choose(made: tuple[Kept, list[Segment]], data: Any):
    kept, segments = made
    straight = all(one.at <= two.at for one, two in pairwise(segments))
    after = data.draw(st.integers(0, len(segments) - 1))
    position = data.draw(st.integers(after, len(segments) - 1))
    base = Base("B", segments[position].at, ID, after, LogPosition("r", position))
    moments = st.sampled_from([one.at + timedelta(seconds=more) for one in segments for more in (0, 0.5)])
    wanted = data.draw(st.none() | moments) if straight else None
    if wanted is not None and base.created_at > wanted:
        wanted = base.created_at
    ending = newest(kept.stored, [base], base, wanted)
    assert (None if ending is None else ending.link.number) == naive(segments, base, wanted)
    assert ending is None or wanted is None or ending.at <= wanted


def line(last: int, lost: range = range(0)) -> Kept:
    kept = Kept()
    for number in range(last + 1):
        if number not in lost:
            kept.put(Segment(number, at(number), place(max(0, number - 1)), place(number), 512 if number else 0))
    return kept


def test_of_a_long_log_only_what_its_names_do_not_settle_is_looked_into():
    kept, base = line(300), Base("A", at(9), ID, 9, LogPosition("r", 9))
    for wanted, number in ((at(200.5), 200), (None, 300)):
        kept.opened.clear()
        ending = newest(kept.stored, [base], base, wanted)
        assert ending is not None and ending.link.number == number
        assert len(set(kept.opened)) <= 3


def test_what_goes_on_from_the_backup_itself_counts_whatever_the_clock_says():
    kept = line(4)
    alone = Base("B", at(90), ID, 2, LogPosition("r", 2))
    ending = newest(kept.stored, [alone], alone, None)
    assert ending is not None and (ending.base, ending.link.number) == (alone, 4)
    elsewhere = Base("C", at(90))
    assert newest(kept.stored, [elsewhere, Base("A", at(1), ID, 1, LogPosition("r", 1))], elsewhere, None) is None


def test_a_hole_ends_what_is_reached_and_is_told_where_more_was_wanted():
    log = line(9, range(5, 7)).stored
    base = Base("A", at(1), ID, 1, LogPosition("r", 1))
    ending = newest(log, [base], base, None)
    assert ending is not None and ending.link.number == 4
    assert missing_segments(log, ending.chain, None) == missing_segments(log, ending.chain, at(8)) == (5, 6)
    assert missing_segments(log, ending.chain, at(3)) is None
    assert list(bases_of(log.chains[1], [base])) == []
    later = Base("D", at(4.5), ID, 4, LogPosition("r", 3, end=4))
    found = up_to(log, log.chains[0], [base], later)
    assert found is not None and (found.link.number, found.at) == (4, later.created_at)
    assert up_to(log, log.chains[0], [base], Base("D", at(6), ID, 4, LogPosition("r", 3, end=5))) is None


def test_what_was_stored_of_a_round_behind_the_place_where_it_was_left_leads_nowhere():
    turned = {"round": "s", "position": 9, "turns": [["r", 4, 7, at(8).isoformat()]]}
    kept = line(7)
    kept.put(Segment(8, at(9), place(7), turned))
    log = kept.stored
    base = Base("A", at(1), ID, 1, LogPosition("r", 1))
    for position, number in ((3, 3), (4, 4), (5, 8), (9, 8)):
        link = reaching(log, log.chains[0], base, position)
        assert link is not None and link.number == number
    end = LogPosition.read(turned)
    assert end is not None
    assert [continues(LogPosition("r", position), end) for position in (4, 5)] == [True, False]
    assert continues(None, end) and continues(LogPosition("s", 99), end) and not continues(LogPosition("q", 1), end)
    late = Base("L", at(6), ID, 6, LogPosition("r", 6))
    ending = newest(log, [late, base], late, None)
    assert ending is not None and ending.base == base


def test_what_lies_before_a_backup_was_made_before_it_and_is_of_no_place_behind_it() -> None:
    """A clock that was ahead says nothing of that; a standby that lags is behind what was made before it."""
    ahead = Base("01", datetime(2099, 1, 1, tzinfo=UTC), place=LogPosition("r", 5))
    assert before(ahead, Base("02", datetime(2026, 1, 1, tzinfo=UTC), place=LogPosition("r", 5)))
    assert not before(ahead, Base("02", datetime(2100, 1, 1, tzinfo=UTC), place=LogPosition("r", 4)))
    assert before(ahead, Base("02", datetime(2026, 1, 1, tzinfo=UTC), place=LogPosition("s", 4)))
    assert not before(Base("03", datetime(2026, 1, 1, tzinfo=UTC)), ahead)
