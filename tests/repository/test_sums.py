"""The sum of all pages: what is put over the wrong backup, or lacks a page, is never handed out as a moment."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dbguardd.errors import Damaged
from dbguardd.flow import LOG, Segment
from dbguardd.repository import LogRange, recover
from dbguardd.repository import log as logs
from dbguardd.repository.moment import MomentTree
from dbguardd.repository.tree import Tree
from dbguardd.sums import as_text, file_sum
from tests.repository.data_path import DOMAIN, NOW, save
from tests.repository.test_log import PAGE, PLACE, open_log, segment
from tests.storage.memory import Memory

PAGES = {2: b"2" * PAGE, 5: b"5" * PAGE}


def summed(data: bytes) -> str:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return as_text(file_sum(file.fileno(), len(data), PAGE, lambda _: None))


def with_sum(one: Any, total: str) -> Segment:
    return dataclasses.replace(one, body=dataclasses.replace(one.body, sum=total))


@pytest.fixture
def base() -> bytes:
    return random.Random(5).randbytes(8 * PAGE)


@pytest.fixture
def after(base: bytes) -> bytes:
    data = bytearray(base)
    for number, page in PAGES.items():
        data[(number - 1) * PAGE : number * PAGE] = page
    return bytes(data)


def delivered(base: bytes, total: str, pages: dict[int, bytes]) -> bytes:
    """What is restored of a backup with one segment over it, which says that sum."""
    storage = Memory()
    backup = save(storage, {"main": (base, PAGE)})
    log = open_log(storage)
    chain = log.append(log.begin(PLACE, "new", NOW), with_sum(segment(1, pages), total))
    beats: list[int] = []
    with Tree(storage, DOMAIN, backup) as tree, tempfile.TemporaryFile() as file:
        MomentTree(tree, log, LogRange(chain, 0, 1), beats.append).deliver("main", file.fileno())
        assert beats or not total, "a long comparison shows life"
        file.seek(0)
        return file.read()


def test_what_sums_up_is_handed_out(base: bytes, after: bytes) -> None:
    assert delivered(base, summed(after), PAGES) == delivered(base, "", PAGES) == after


@pytest.mark.parametrize("wrong", ["base", "lost page"])
def test_what_does_not_is_damage_of_the_log(base: bytes, after: bytes, wrong: str) -> None:
    pages = {2: PAGES[2]} if wrong == "lost page" else PAGES
    data = base if wrong == "lost page" else base[:-1] + b"?"
    assert delivered(data, "", pages) != after, "nobody else would have noticed"
    with pytest.raises(Damaged, match="differs from what the database was") as caught:
        delivered(data, summed(after), pages)
    assert caught.value.facts[LOG]


def test_the_sum_is_of_where_pages_lie_too(base: bytes) -> None:
    assert summed(base) != summed(base[PAGE : 2 * PAGE] + base[:PAGE] + base[2 * PAGE :])
    assert summed(bytes(PAGE)) != summed(bytes(2 * PAGE))
    assert summed(b"a" * PAGE) == "9d799fa42d4f1018", "as dbguard-repository(5) says"


def test_it_outlives_folding_and_tells_a_standby(after: bytes) -> None:
    log = open_log(Memory())
    chain = log.begin(PLACE, "new", NOW)
    for number in range(1, 2 * logs.FOLD):
        chain = log.append(chain, with_sum(segment(number), summed(after)))
    (found,) = log.chains()
    assert len(found.pieces) < logs.FOLD
    links = list(log.links(found, 1, found.last))
    assert {link.sum for link in links} == {summed(after)}
    assert log.changes(LogRange(found, 0, 5), links[4]).facts["sum"] == summed(after)


def test_a_log_of_before_is_read(base: bytes, after: bytes) -> None:
    """The first logs said no sum."""
    storage = Memory()
    log = open_log(storage)
    chain = log.append(log.begin(PLACE, "new", NOW), segment(1, PAGES))
    (link,) = log.links(chain, 1, 1)
    head: dict[str, Any] = logs._head(link)
    assert head.pop("sum") == ""
    old = log._put(chain.id, (2, 2), NOW, logs._join({**head, "number": 2, "since": dict(link.until)}, link.body))
    (read,) = log.open(old)
    assert (read.sum, [number for number, _ in read.pages()]) == ("", [2, 5])


@pytest.mark.parametrize("right", [True, False])
def test_recover_py_compares_it_too(tmp_path: Path, base: bytes, after: bytes, right: bool) -> None:
    storage, target = Memory(), tmp_path / "target"
    log = open_log(storage)
    one = with_sum(segment(1, PAGES), summed(after if right else base))
    chain = log.append(log.begin(PLACE, "new", NOW), one)
    for entry in storage.list("log/"):
        (tmp_path / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry.name).write_bytes(storage.get(entry.name))
    target.mkdir()
    (target / "main").write_bytes(base)
    facts = {"log": {"chain": chain.id, "after": 0}, "log_place": {"round": "r", "position": 1}}
    backup = {"facts": facts, "created_at": NOW.isoformat()}
    key = recover.Key(DOMAIN.repo_id, DOMAIN.id, DOMAIN.key)
    if right:
        recover.replay(tmp_path, key, backup, one.at, target)
        assert (target / "main").read_bytes() == after
    else:
        with pytest.raises(recover.Unusable, match="differs from what the database was"):
            recover.replay(tmp_path, key, backup, one.at, target)
