"""The log in the repository: whatever is appended, folded, killed, flipped or missing, it is whole or says so."""

from __future__ import annotations

import dataclasses
import random
import struct
import tempfile
import tracemalloc
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import Damaged, GuardError, ObjectMissing
from dbguardd.flow import Images, Segment
from dbguardd.repository import LogRange, recover
from dbguardd.repository import log as logs
from dbguardd.repository.check import Checking
from dbguardd.repository.log import FOLD, StoredLog
from dbguardd.repository.moment import MomentTree
from dbguardd.repository.records import Records
from dbguardd.repository.seal import Domain, Keyring
from dbguardd.repository.tree import Tree
from tests.repository.data_path import DOMAIN, NOW, save
from tests.repository.lifecycle_kit import Killed, Mortal
from tests.storage.memory import Memory

ROOT = Domain(DOMAIN.repo_id, bytes(16), "", bytes(32))
OTHER = Domain(DOMAIN.repo_id, b"o" * 16, "bank", bytes(range(1, 33)))
PAGE = 512
_U32 = struct.Struct(">I")
PLACE = {"round": "r", "position": 0, "check": ""}


def open_log(storage, domain=DOMAIN, seed=1) -> StoredLog:
    keyring = Keyring(ROOT, {DOMAIN.id: DOMAIN, OTHER.id: OTHER})
    dice = random.Random(seed)
    return StoredLog(storage, Records(storage, keyring, dice.randbytes), domain, dice.randbytes)


def segment(number: int, pages: dict[int, bytes] | None = None, size: int = 8 * PAGE, at: datetime | None = None):
    """The segment that follows number - 1 others."""
    pages = {1 + number % 8: bytes([number % 256]) * PAGE} if pages is None else pages
    return Segment(
        stream="main",
        since={**PLACE, "position": number - 1},
        until={**PLACE, "position": number},
        at=at or NOW + timedelta(milliseconds=500 * number),
        body=Images(PAGE, size, b"".join([*map(_U32.pack, sorted(pages)), *(pages[page] for page in sorted(pages))])),
    )


def filled(log: StoredLog, count: int):
    chain = log.begin(PLACE, "the log was not followed before", NOW)
    for number in range(1, count + 1):
        chain = log.append(chain, segment(number))
    return chain


def content(link) -> tuple:
    pages = {number: bytes(page) for number, page in link.pages()}
    return link.number, link.at, link.since, link.until, link.size, pages


def wanted(number: int) -> tuple:
    one = segment(number)
    pages = {page: one.body.pages[at * PAGE : (at + 1) * PAGE] for at, page in enumerate(one.body.numbers)}
    return number, one.at, one.since, one.until, one.body.size, pages


def whole(log: StoredLog, count: int) -> None:
    """Assert that the log has one chain with the segments 0 to `count`, each once."""
    (chain,) = log.chains()
    assert (chain.first, chain.last) == (0, count)
    zero, *links = log.links(chain, 0, count)
    assert (zero.number, zero.count, zero.since, zero.until) == (0, 0, PLACE, PLACE)
    assert [content(link) for link in links] == [wanted(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 1, FOLD - 2, FOLD - 1, FOLD, 3 * FOLD, FOLD * FOLD + 3])
def test_what_is_appended_is_there_in_order_and_folded(count):
    storage = Memory()
    filled(open_log(storage), count)
    whole(open_log(storage), count)
    assert len(list(storage.list("log/"))) <= 2 * FOLD + 2


SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=3 * FOLD)


@settings(max_examples=40)
@given(sizes=SIZES, limit=st.integers(2_000, 60_000), seed=st.integers(0, 1000))
def test_segments_of_any_size_are_there_in_order_however_they_were_folded(sizes, limit, seed):
    storage, dice = Memory(), random.Random(seed)
    made = [segment(n, {p: dice.randbytes(PAGE) for p in range(1, 1 + pages)}) for n, pages in enumerate(sizes, 1)]
    before, logs.FOLDED_BYTES = logs.FOLDED_BYTES, limit
    try:
        log = open_log(storage, seed=seed)
        chain = log.begin(PLACE, "new", NOW)
        for number, one in enumerate(made, 1):
            chain = log.append(chain, one)
            if dice.random() < 0.1:  # another process goes on
                log = open_log(storage, seed=seed + number)
                (chain,) = log.chains()
    finally:
        logs.FOLDED_BYTES = before
    (chain,) = log.chains()
    assert (chain.first, chain.last) == (0, len(sizes))
    assert [piece.size for piece in chain.pieces] == [storage.stat(piece.name).size for piece in chain.pieces]
    assert all(piece.size <= max(limit * 2, 40_000) for piece in chain.pieces)
    first, last = sorted((dice.randint(1, len(sizes)), dice.randint(1, len(sizes))))
    links = list(log.links(chain, first, last))
    assert [link.number for link in links] == list(range(first, last + 1))
    for link in links:
        one = made[link.number - 1]
        assert (link.since, link.until, link.at, link.size) == (one.since, one.until, one.at, one.body.size)
        assert b"".join(bytes(page) for _, page in link.pages()) == one.body.pages
        assert tuple(number for number, _ in link.pages()) == one.body.numbers


def test_a_clock_that_goes_back_does_not_undo_what_was_reached():
    log = open_log(Memory())
    chain = log.begin(PLACE, "new", NOW)
    chain = log.append(chain, segment(1, at=NOW + timedelta(hours=2)))
    chain = log.append(chain, segment(2, at=NOW + timedelta(hours=1)))
    assert chain.until == NOW + timedelta(hours=2)
    assert log.chains()[0].until == NOW + timedelta(hours=2)
    later = log.begin(PLACE, "again", NOW - timedelta(days=1))
    assert [chain.id for chain in log.chains()] == [chain.id, later.id]


def test_what_is_folded_while_it_is_listed_is_no_hole():
    """A directory is not read at one instant: what came meanwhile may be left out, and what went is."""
    storage = Memory()
    filled(open_log(storage), 2 * FOLD + 3)
    listing, late = storage.list, [logs.piece_of(entry) for entry in storage.list("log/")][1]
    assert (late.first, late.last) == (FOLD, 2 * FOLD - 1)
    missed = [late.name]

    def looked(prefix):
        name = missed.pop() if missed else ""
        return (entry for entry in listing(prefix) if entry.name != name)

    storage.list = looked
    assert len(open_log(storage).chains()) == 1 and not missed


# ------------------------------------------------------------------------------------------ killed


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_of_an_append_that_folds_leaves_each_segment_once(after):
    """Also between the folded object and the end of those that it replaces; and the next process goes on."""
    number = FOLD - 1  # with the segment 0 there are as many as are folded
    before = Memory()
    filled(open_log(before), number - 1)
    for last in range(1000):
        storage = Memory()
        storage._objects.update(before._objects)
        (chain,) = open_log(storage).chains()
        mortal = Mortal(storage, last, after=after)
        try:
            open_log(mortal, seed=2).append(chain, segment(number))
        except Killed:
            (chain,) = open_log(storage).chains()
            acknowledged = chain.last
            assert acknowledged in (number - 1, number)
            if acknowledged < number:
                open_log(storage, seed=3).append(chain, segment(number))
            if last % 7 == 0:
                whole(open_log(storage), number)
            open_log(storage, seed=4).append(open_log(storage).chains()[0], segment(number + 1))
            assert open_log(storage).chains()[0].last == number + 1
        else:
            break
    else:
        pytest.fail("it never ended")
    assert last > 2 * FOLD + 3
    whole(open_log(storage), number)


def test_a_reader_that_comes_too_late_for_the_pieces_finds_what_they_were_folded_into():
    """A restore lists the log, then writes the backup for minutes, and only then reads the log."""
    storage = Memory()
    log = open_log(storage)
    chain = filled(log, FOLD - 2)
    (listed,) = open_log(storage).chains()
    for number in range(FOLD - 1, FOLD * FOLD + 5):
        chain = log.append(chain, segment(number))
    assert storage_names(storage).isdisjoint({piece.name for piece in listed.pieces})
    reader = open_log(storage)
    links = list(reader.links(listed, 1, FOLD - 2))
    assert [content(link) for link in links] == [wanted(number) for number in range(1, FOLD - 1)]
    assert [link.number for piece in listed.pieces for link in reader.open(piece)] == list(range(FOLD - 1))


def storage_names(storage) -> set[str]:
    return {entry.name for entry in storage.list("log/")}


def test_a_piece_that_is_damaged_or_forgotten_does_not_keep_the_log_from_going_on():
    for harm in ("damage", "delete"):
        storage = Memory()
        log = open_log(storage)
        chain = filled(log, FOLD - 3)
        name = chain.pieces[3].name
        data, at = storage._objects.pop(name)
        if harm == "damage":
            storage._objects[name] = (data[:-1] + bytes([data[-1] ^ 1]), at)
        for number in range(FOLD - 2, 3 * FOLD):
            chain = log.append(chain, segment(number))
        assert chain.last == 3 * FOLD - 1
        found = open_log(storage).chains()
        assert sum(chain.last - chain.first + 1 for chain in found) == 3 * FOLD - (harm == "delete")
        with pytest.raises((Damaged, ObjectMissing)):
            list(open_log(storage).links(found[0], 0, 3 * FOLD - 1))
        assert len(list(open_log(storage).links(found[-1], 4, 3 * FOLD - 1))) == 3 * FOLD - 4


# ------------------------------------------------------------------------------------------ damage


def test_each_flipped_byte_of_an_object_is_found():
    storage = Memory()
    filled(open_log(storage), 2)
    (chain,) = open_log(storage).chains()
    log, name = open_log(storage), chain.pieces[1].name
    data, at = storage._objects[name]
    for place in range(len(data)):
        storage._objects[name] = (data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1 :], at)
        with pytest.raises(Damaged):
            log.open(chain.pieces[1])
    for length in (*range(0, len(data), 13), len(data) - 1):
        storage._objects[name] = (data[:length], at)
        with pytest.raises(Damaged):
            log.open(chain.pieces[1])
    storage._objects[name] = (data, at)
    assert content(log.open(chain.pieces[1])[0]) == wanted(1)


def test_an_object_under_another_name_does_not_open():
    storage = Memory()
    log = open_log(storage)
    first, second = filled(log, 3), log.begin(PLACE, "again", NOW)
    names = sorted(storage_names(storage))
    piece = next(piece for piece in first.pieces if piece.first == 2)
    data, at = storage._objects[piece.name]
    digest = piece.name[-64:]
    slots = [
        piece.slot.replace(first.id, second.id),
        piece.slot.replace("-0000000002-0000000002-", "-0000000004-0000000004-"),
        piece.slot.replace("-0000000002-0000000002-", "-0000000002-0000000003-"),
        piece.slot[:-1] + ("1" if piece.slot[-1] != "1" else "2"),
    ]
    for slot in slots:
        name = f"log/{DOMAIN.id.hex()}/{slot}-{digest}"
        assert name not in names
        storage._objects[name] = (data, at)
        moved = next(piece for piece in log._pieces() if piece.name == name)
        with pytest.raises(GuardError) as caught:
            log.open(moved)
        assert isinstance(caught.value, Damaged)
        del storage._objects[name]


def test_an_object_of_another_database_does_not_open():
    """It is sealed for that very slot, with a key that this repository has: but not with the key of this database."""
    storage = Memory()
    filled(open_log(storage, OTHER), 2)
    for name in storage_names(storage):
        storage._objects[name.replace(OTHER.id.hex(), DOMAIN.id.hex())] = storage._objects.pop(name)
    log = open_log(storage)
    (chain,) = log.chains()
    for piece in chain.pieces:
        with pytest.raises(Damaged):
            log.open(piece)


def test_a_missing_piece_is_a_hole_that_nothing_is_read_over():
    storage = Memory()
    chain = filled(open_log(storage), FOLD + 10)
    storage.delete(next(piece.name for piece in chain.pieces if piece.first == FOLD + 5))
    log = open_log(storage)
    before, behind = log.chains()
    assert before.id == behind.id
    assert (before.first, before.last, behind.first, behind.last) == (0, FOLD + 4, FOLD + 6, FOLD + 10)
    for one in (before, behind):
        with pytest.raises(ObjectMissing):
            list(log.links(one, FOLD, FOLD + 8))
    assert [link.number for link in log.links(before, 1, FOLD + 4)] == list(range(1, FOLD + 5))
    assert [link.number for link in log.links(behind, FOLD + 6, FOLD + 10)] == list(range(FOLD + 6, FOLD + 11))


def test_a_segment_that_does_not_follow_the_one_before_is_found():
    storage = Memory()
    log = open_log(storage)
    chain = log.append(log.begin(PLACE, "new", NOW), segment(1))
    chain = log.append(chain, dataclasses.replace(segment(2), since={**PLACE, "position": 7}))
    with pytest.raises(Damaged):
        list(log.links(chain, 1, 2))


def checked(storage, during=lambda: None) -> list[str]:
    """What a check of all data finds in the log; `during` is called before its first object is read."""
    records = open_log(storage)._records
    steps = []

    def progress(step, done, total):
        steps.append(done)
        if len(steps) == 2:
            during()

    return [found.message for found in Checking(storage, records, lambda *_: frozenset(), progress)._logs(data=True)]


def test_a_check_finds_what_does_not_follow_and_no_damage_in_what_is_just_forgotten():
    storage = Memory()
    log = open_log(storage)
    chain = filled(log, 9)
    assert not checked(storage)
    assert not checked(storage, lambda: log.forget(chain.pieces[:4]))
    (left,) = log.chains()
    assert left.first == 4
    assert len(checked(storage, lambda: log.forget(left.pieces[2:3]))) == 1
    log.append(chain, dataclasses.replace(segment(10), since={**PLACE, "position": 7}))
    assert any("segment 10 does not follow 9" in what for what in checked(storage))


def test_recover_py_reads_nothing_that_does_not_follow_either(tmp_path):
    storage = Memory()
    log = open_log(storage)
    chain = log.append(log.begin(PLACE, "new", NOW), segment(1))
    log.append(chain, dataclasses.replace(segment(2), since={**PLACE, "position": 7}))
    for entry in storage.list("log/"):
        (tmp_path / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry.name).write_bytes(storage.get(entry.name))
    found = recover.segments(tmp_path, recover.Key(DOMAIN.repo_id, DOMAIN.id, DOMAIN.key), chain.id, 0)
    assert [next(found)[0]["number"], next(found)[0]["number"]] == [0, 1]
    with pytest.raises(recover.Unusable, match="segment 2 does not follow 1"):
        next(found)


def test_what_is_forgotten_is_its_beginning():
    storage = Memory()
    log = open_log(storage)
    chain = filled(log, 3 * FOLD)
    log.forget(chain.pieces[:2])
    (left,) = open_log(storage).chains()
    assert (left.first, left.last) == (2 * FOLD, 3 * FOLD)
    with pytest.raises(ObjectMissing):
        list(log.links(left, 1, 3 * FOLD))


# ------------------------------------------------------------------------------------------ a moment


@pytest.fixture
def moments():
    """A backup of 8 pages and a log; apply(until) gives what is restored."""
    base = random.Random(5).randbytes(8 * PAGE)
    storage = Memory()
    backup = save(storage, {"main": (base, PAGE), "notes": (b"n" * 3 * PAGE, PAGE)})
    log = open_log(storage)

    def apply(chain, after, last, name="main") -> bytes:
        with Tree(storage, DOMAIN, backup) as tree, tempfile.TemporaryFile() as file:
            moment = MomentTree(tree, log, LogRange(chain, after, last))
            assert list(moment.names()) == ["main", "notes"]
            size = moment.deliver(name, file.fileno())
            file.seek(0)
            data = file.read()
            assert size == len(data)
            with moment.read(name) as again:
                assert again.read() == data
        return data

    return base, log, apply


HISTORY = st.lists(
    st.tuples(st.integers(1, 24), st.sets(st.integers(1, 24), max_size=10), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=60)
@given(history=HISTORY, cut=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_a_moment_is_the_segments_put_over_the_backup_by_hand(history, cut):
    base = random.Random(5).randbytes(8 * PAGE)
    storage = Memory()
    backup = save(storage, {"main": (base, PAGE)})
    log = open_log(storage)
    chain = log.begin(PLACE, "new", NOW)
    dice = random.Random(len(history))
    for number, (size, pages, ends) in enumerate(history, 1):
        drawn = {page: dice.randbytes(PAGE) for page in pages if not ends or page <= size}
        chain = log.append(chain, segment(number, drawn, size * PAGE * ends))
    after, last = sorted(min(place, len(history)) for place in cut)
    expected = bytearray(base)
    for link in log.links(chain, after + 1, last):
        for number, page in link.pages():
            expected.extend(bytes(max(0, number * PAGE - len(expected))))
            expected[(number - 1) * PAGE : number * PAGE] = page
        if link.size:
            del expected[link.size :]
            expected.extend(bytes(link.size - len(expected)))
    with Tree(storage, DOMAIN, backup) as tree, tempfile.TemporaryFile() as file:
        moment = MomentTree(tree, log, LogRange(chain, after, last))
        if last > after and not history[last - 1][2]:
            with pytest.raises(Damaged):
                moment.deliver("main", file.fileno())
            return
        assert moment.deliver("main", file.fileno()) == len(expected)
        file.seek(0)
        assert file.read() == expected


def test_a_log_that_ends_in_the_middle_of_a_transaction_is_damage(moments):
    base, log, apply = moments
    chain = log.append(log.begin(PLACE, "new", NOW), segment(1))
    chain = log.append(chain, segment(2, size=0))
    with pytest.raises(Damaged):
        apply(chain, 0, 2)
    chain = log.append(chain, segment(3))
    assert apply(chain, 0, 3) != base


def test_a_moment_touches_the_stream_that_was_followed_and_no_other(moments):
    base, log, apply = moments
    chain = log.append(log.begin(PLACE, "new", NOW), segment(1))
    assert apply(chain, 0, 1, "notes") == b"n" * 3 * PAGE
    assert apply(chain, 0, 1) == base[:PAGE] + b"\1" * PAGE + base[2 * PAGE :]
    assert apply(chain, 1, 1) == base
    assert apply(chain, -1, 0) == base, "the beginning of a chain has no pages"


# ------------------------------------------------------------------------------------------ memory


def test_a_writer_that_goes_on_for_ever_does_not_grow():
    storage, before = Memory(), logs.FOLDED_BYTES
    logs.FOLDED_BYTES = 0  # nothing is folded: as where each segment is large
    try:
        log = open_log(storage)
        chain = filled(log, 1000)
        assert len(chain.pieces) < 400
        assert open_log(storage).chains()[0].last == 1000
    finally:
        logs.FOLDED_BYTES = before


def test_reading_a_log_holds_one_object_at_a_time():
    storage, dice = Memory(), random.Random(9)
    log = open_log(storage)
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 65):
        chain = log.append(chain, segment(number, {page: dice.randbytes(PAGE) for page in range(1, 1025)}))
    stored = sum(entry.size for entry in storage.list("log/"))
    assert stored > 32 << 20
    tracemalloc.start()
    try:
        for link in log.links(chain, 1, 64):
            for _ in link.pages():
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20, f"{peak} bytes"
