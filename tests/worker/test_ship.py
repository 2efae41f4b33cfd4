"""What follows a log is shipped by the database's owner: a hostile one gets nothing into memory, books or claims."""

from __future__ import annotations

import resource
import socket
import struct
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from dbguardd.errors import GuardError, WorkerDied
from dbguardd.worker.channel import Channel
from dbguardd.worker.remote import RemoteEngine

PLACE = {"round": "r", "position": 1}
SEGMENT = {
    "ship": "segment",
    "at": "2026-03-01T12:00:00+00:00",
    "stream": "database",
    "since": PLACE,
    "until": PLACE,
    "page_size": 512,
    "size": 1024,
    "count": 2,
}
BEGIN = {"ship": "begin", "at": None, "place": PLACE, "continued": False, "because": "new"}


def content(*numbers: int) -> bytes:
    """The numbers of pages, and pages."""
    return struct.pack(f">{len(numbers)}I", *numbers) + b"p" * 512 * len(numbers)


class Shelf:
    """A LogSink that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def begin(self, place: Any, *, continued: bool, because: str) -> None:
        self.got.append((dict(place), continued, because))

    def ship(self, segment: Any) -> None:
        self.got.append(segment)

    def audited(self, wrong: str) -> None:
        self.got.append(wrong)

    def held(self, log_bytes: int, by: Any) -> None:
        self.got.append((log_bytes, by))

    def reached(self, at: datetime | None) -> None:
        self.got.append(at)


def said(*messages: dict[str, Any] | bytes) -> tuple[list[Any], GuardError]:
    """Follow an engine half that says this and hangs up; return what was taken from it, and how that ended."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shelf, hostile = Shelf(), Channel(there, lambda: False)

    def speak() -> None:
        try:
            hostile.receive_object()
            for message in messages:
                hostile.send_data(message) if isinstance(message, bytes) else hostile.send(message)
        except WorkerDied:
            pass  # it was hung up on
        finally:
            there.close()

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        with pytest.raises(GuardError) as caught:
            RemoteEngine(Channel(here, lambda: False)).follow(shelf, None)
    finally:
        here.close()
        thread.join()
    return shelf.got, caught.value


def test_what_was_compared_crosses_and_no_more_of_it_than_a_person_reads():
    got, _ = said({"ship": "audited", "at": None, "wrong": "w" * 5000})
    assert got == ["w" * 300]


def test_who_holds_a_log_crosses_and_no_more_of_it_than_a_person_reads():
    got, _ = said({"ship": "held", "at": None, "log_bytes": 7, "by": ["w" * 5000] * 50})
    assert got == [(7, ["w" * 300] * 20)]


def test_a_segment_crosses():
    (segment,), _ = said({**SEGMENT, "sum": "0123456789abcdef"}, content(1, 2))
    assert segment.body.sum == "0123456789abcdef"
    (segment,), _ = said(SEGMENT, content(1, 2))
    assert segment.body.sum == ""
    images = segment.body
    assert (images.numbers, images.pages, images.size, segment.until) == ((1, 2), b"p" * 1024, 1024, PLACE)
    (segment,), _ = said({**SEGMENT, "count": 0})
    assert (segment.body.numbers, segment.body.pages) == ((), b"")


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_size": 0},
        {"page_size": -512},
        {"page_size": 1000},
        {"page_size": 1 << 40},
        {"size": -1024},
        {"size": 1000},
        {"size": 1 << 60},
        {"count": -1},
        {"count": 1 << 40},
        {"until": {"round": "r"}},
        {"until": {"round": 7, "position": 1}},
        {"since": {**PLACE, "more": "x" * 5000}},
        {"stream": "x" * 5000},
        {"sum": "x" * 16},
        {"sum": "0" * 17},
    ],
)
def test_what_is_no_segment_is_not_taken(wrong):
    got, error = said({**SEGMENT, **wrong}, content(1, 2))
    assert not got
    assert isinstance(error, WorkerDied)
    assert "invalid" in error.message


@pytest.mark.parametrize("numbers", [(0, 1), (2, 1), (1, 1)])
def test_pages_that_are_not_in_order_are_not_taken(numbers):
    got, error = said(SEGMENT, content(*numbers))
    assert not got
    assert isinstance(error, WorkerDied)
    assert "invalid" in error.message


BYTES = {
    **{name: SEGMENT[name] for name in ("ship", "at", "stream", "since")},
    "until": {"round": "r", "position": 1001},
    "bytes": 1000,
}


AT = "2026-03-01T12:00:00+00:00"
NO_TURNS = (
    7,
    [7],
    [["r", 1, 1]],
    [["r", 1, 1, "then"]],
    [["r", 1, 1, "2026-03-01T12:00:00"]],
    [["q", 1, 1, AT]],  # from a round that it was not in
    [["r", 2, 1, AT]],  # left behind what was stored
    [["r", 1, 2, AT]],
    [["q", 1, 1, AT], ["r", 1, 1, AT]],  # two at once
    [["r", 0, 1, AT]],  # and so many bytes too few
)


def test_bytes_of_a_log_that_turns_cross_with_the_turn():
    turns = [["q", 3, 5, AT], ["r", 7, 9, AT]]
    since, until = {"round": "r", "position": 9, "turns": turns[:1]}, {"round": "s", "position": 1007, "turns": turns}
    (segment,), _ = said({**BYTES, "since": since, "until": until}, b"w" * 1000)
    assert (segment.until, segment.body) == (until, b"w" * 1000)


def test_bytes_of_a_log_cross():
    (segment,), _ = said(BYTES, b"w" * 1000)
    assert (segment.body, segment.until["position"]) == (b"w" * 1000, 1001)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bytes": 0, "until": PLACE},
        {"until": {**BYTES["until"], "round": "s"}},
        {"until": {**BYTES["until"], "turns": [["r", 1, 1, AT]]}, "since": {**PLACE, "turns": [["q", 1, 1, AT]]}},
        *({"until": {"round": "s", "position": 1001, "turns": turns}} for turns in NO_TURNS),
        {"bytes": -1, "until": {"round": "r", "position": 0}},
        {"bytes": 999},
        {"until": {"round": "other", "position": 1001}},
        {"bytes": 1 << 40, "until": {"round": "r", "position": (1 << 40) + 1}},
    ],
)
def test_bytes_that_are_no_stretch_of_a_log_are_not_taken(wrong):
    got, error = said({**BYTES, **wrong}, b"w" * 1000)
    assert not got
    assert "invalid" in error.message


def test_a_segment_is_refused_before_its_pages_take_up_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pieces = [b"p" * (4 << 20)] * 50
    got, error = said({**SEGMENT, "page_size": 65536, "count": 5000}, *pieces)
    assert not got
    assert "invalid" in error.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_reason_is_no_longer_than_a_person_reads_and_a_moment_has_its_zone():
    long, _ = said({**BEGIN, "because": "x" * 100_000})
    assert len(long[0][2]) <= 300
    reached, _ = said({"ship": "reached", "at": "2026-03-01T12:00:00"})
    assert [moment.utcoffset() for moment in reached] == [timedelta(0)]
