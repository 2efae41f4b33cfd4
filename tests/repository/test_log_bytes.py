"""A log whose segments have bytes of it: whole and in order behind a backup, or refused."""

from __future__ import annotations

import hashlib
import random
import tempfile

import pytest

from dbguardd.errors import Damaged, ObjectMissing
from dbguardd.facts import Target
from dbguardd.flow import LOG, Segment
from dbguardd.repository import LogRange
from dbguardd.repository.moment import LogTree
from dbguardd.repository.tree import Tree
from dbguardd.rules.chains import BYTES
from tests.repository.data_path import DOMAIN, NOW, save
from tests.repository.test_log import PLACE, checked, open_log, segment
from tests.storage.memory import Memory


def piece(number: int, data: bytes) -> Segment:
    """A segment that follows number - 1 others of as many bytes."""
    ends = [{**PLACE, "position": len(data) * at} for at in (number - 1, number)]
    return Segment("wal", *ends, NOW, data)


def test_bytes_are_there_in_order_and_folded_and_are_read_behind_a_backup():
    storage, data = Memory(), random.Random(1).randbytes(70_000)
    log = open_log(storage)
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 71):
        chain = log.append(chain, piece(number, data[1000 * (number - 1) : 1000 * number]))
    (chain,) = open_log(storage).chains()
    assert chain.last == 70 and len(chain.pieces) < 12
    assert b"".join(link.content() for link in log.links(chain, 1, 70)) == data
    assert not checked(storage)
    backup = save(storage, {"main": b"m" * 5000})
    with Tree(storage, DOMAIN, backup) as base, tempfile.TemporaryFile() as file:
        tree = LogTree(base, log, LogRange(chain, 10, 60, BYTES, Target(at="then")))
        assert list(tree.names()) == ["main", "wal"]
        with tree.read("main") as main, tree.read("wal") as wal:
            assert (main.read(), wal.read()) == (b"m" * 5000, data[10_000:60_000])
        assert tree.deliver("wal", file.fileno()) == 50_000
        file.seek(0)
        assert file.read() == data[10_000:60_000]
        moment = tree.facts["moment"]
        assert (moment["stream"], Target.read(moment["target"]), tree.facts["n"]) == ("wal", Target(at="then"), 1)
        assert (moment["since"]["position"], moment["until"]["position"]) == (10_000, 60_000)


def test_what_has_a_hole_or_something_else_in_it_is_refused_and_says_nothing_of_the_backup():
    storage = Memory()
    log = open_log(storage)
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 10):
        chain = log.append(chain, piece(number, b"w") if number != 5 else segment(5))
    with Tree(storage, DOMAIN, save(storage, {"main": b"m"})) as base:
        with LogTree(base, log, LogRange(chain, 0, 9, BYTES)).read("wal") as source, pytest.raises(Damaged) as mixed:
            source.read()
        log.forget([each for each in log.chains()[0].pieces if each.first == 3])
        whole, _ = log.chains()
        with pytest.raises(ObjectMissing) as missing:
            LogTree(base, log, LogRange(whole, 0, 9, BYTES))
    assert LOG in mixed.value.facts and LOG in missing.value.facts


def test_a_check_reads_every_byte_of_it():
    storage = Memory()
    log = open_log(storage)
    chain = log.append(log.begin(PLACE, "new", NOW), piece(1, b"w" * 100))
    name = chain.pieces[-1].name
    data = storage.get(name)
    storage.delete(name)
    storage.put(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert len(checked(storage)) == 1


@pytest.mark.parametrize("wrong", ["missing", "truncated", "duplicate", "foreign", "reordered"])
def test_a_segment_that_is_not_the_one_of_its_place_is_refused(wrong):
    """Whatever stands there under a name that is right: it is sealed for its place, and nothing else opens there."""
    storage, others = Memory(), Memory()
    for seed, place in enumerate((storage, others)):
        log = open_log(place, seed=seed)
        chain = log.begin(PLACE, "new", NOW)
        for number in range(1, 6):
            chain = log.append(chain, piece(number, b"%d" % number * 1000))
    mine, theirs = ({one.first: one for one in open_log(place).chains()[0].pieces} for place in (storage, others))
    data = {number: storage.get(one.name) for number, one in mine.items()}

    def put(number: int, content: bytes) -> None:
        storage.delete(mine[number].name)
        storage.put(f"log/{DOMAIN.id.hex()}/{mine[number].slot}-{hashlib.sha256(content).hexdigest()}", content)

    match wrong:
        case "missing":
            storage.delete(mine[3].name)
        case "truncated":
            put(3, data[3][:-1])
        case "duplicate":
            put(3, data[2])
        case "foreign":
            put(3, others.get(theirs[3].name))
        case "reordered":
            put(3, data[4])
            put(4, data[3])
    log = open_log(storage)
    with (
        Tree(storage, DOMAIN, save(storage, {"main": b"m"})) as base,
        pytest.raises(ObjectMissing if wrong == "missing" else Damaged) as refused,
        LogTree(base, log, LogRange(log.chains()[0], 0, 5, BYTES)).read("wal") as source,
    ):
        source.read()
    assert LOG in refused.value.facts
