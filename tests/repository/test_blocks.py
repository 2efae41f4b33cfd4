"""Reading a paged stream anywhere: each block is right by itself, and only what is needed is fetched."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dbguardd.engines.base import Bounds
from dbguardd.engines.sqlite import open_past
from dbguardd.errors import Damaged, ObjectMissing, Unsupported, Usage
from dbguardd.flow import BLOCK_BYTES
from dbguardd.repository.extents import PagesReader
from dbguardd.repository.packs import object_name
from dbguardd.repository.reading import PackReader
from dbguardd.repository.tree import Tree, open_pages, packs_of
from tests.repository.data_path import DOMAIN, Drawer, save


def blocks(storage, backup, name="main"):
    with Tree(storage, DOMAIN, backup) as tree:
        pages = tree.pages(name)
        return pages, [pages.block(number) for number in range(-(-pages.size // BLOCK_BYTES))]


@pytest.mark.parametrize("size", [0, 1, 4095, 65535, 65536, 65537, 300_001, 3 << 20])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_blocks_together_are_the_stream(size, page_size):
    storage, rng = Drawer(), random.Random(size)
    data = bytearray(rng.randbytes(size))
    backup = save(storage, {"main": (bytes(data), page_size)})
    for _ in range(3):
        pages, found = blocks(storage, backup)
        assert (pages.size, pages.page_size) == (len(data), page_size)
        assert b"".join(found) == data
        for _ in range(9 if size else 0):
            at = rng.randrange(size)
            data[at : at + 1000] = (bytes if at % 2 else rng.randbytes)(len(data[at : at + 1000]))
        data[200_000:270_000] = bytes(len(data[200_000:270_000]))  # a hole, perhaps
        backup = save(storage, {"main": (bytes(data), page_size)}, backup)


def test_what_is_not_there_is_an_error():
    storage = Drawer()
    backup = save(storage, {"main": (bytes(70_000), 4096), "text": b"a text"})
    with Tree(storage, DOMAIN, backup) as tree:
        for number in (-1, 2, 1 << 40):
            with pytest.raises(Usage, match="has no block"):
                tree.pages("main").block(number)
        with pytest.raises(Unsupported, match="has no pages"):
            tree.pages("text")


def test_no_wrong_byte_comes_out_of_a_damaged_pack():
    storage, data = Drawer(), random.Random(1).randbytes(1 << 20)
    backup = save(storage, {"main": (data, 4096)})
    (pack,) = packs_of(storage, DOMAIN, backup)
    whole = storage.objects[object_name(pack)]
    for at in range(0, len(whole), 9973):
        storage.objects[object_name(pack)] = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(Damaged):
            blocks(storage, backup)
    del storage.objects[object_name(pack)]
    with pytest.raises(ObjectMissing):
        blocks(storage, backup)


def test_an_older_pack_of_ours_under_the_name_of_a_newer_one_is_found():
    """Its leaf is authentic and in the right place; it only speaks of an older stream, whose pages are there too."""
    storage, rng = Drawer(), random.Random(2)
    data = bytearray(rng.randbytes(1 << 20))
    made = [save(storage, {"main": (bytes(data), 4096)})]
    for at in (500_000, 500_001, 100_000):  # so the last one has the leaf of the second change from the one before
        data[at] ^= 1
        made.append(save(storage, {"main": (bytes(data), 4096)}, made[-1]))
    packs = [packs_of(storage, DOMAIN, backup) for backup in made]
    (old,), (new,) = packs[1] - packs[0], packs[2] - packs[1]
    good = storage.objects[object_name(new)]
    storage.objects[object_name(new)] = storage.objects[object_name(old)]
    with Tree(storage, DOMAIN, made[3]) as tree:
        pages = tree.pages("main")
        assert pages.block(0) == data[:BLOCK_BYTES]  # what does not lie there can be read
        with pytest.raises(Damaged, match="its leaves are not those that the page map names"):
            pages.block(500_000 // BLOCK_BYTES)
    storage.objects[object_name(new)] = good
    assert b"".join(blocks(storage, made[3])[1]) == data


def test_a_pack_of_another_kind_of_stream_under_this_name_is_damage():
    storage = Drawer()
    pages, text = (save(storage, {"main": what}) for what in ((b"", 512), b""))
    (one,), (other,) = (packs_of(storage, DOMAIN, backup) for backup in (pages, text))
    storage.objects[object_name(one)] = storage.objects[object_name(other)]
    with pytest.raises(Damaged):
        blocks(storage, pages)


# ------------------------------------------------------------------------------------------------ how much is fetched


class Nobody:
    """An Answer that nobody listens to."""

    def write(self, data, /):
        self.data = data

    def beat(self):
        """It goes on."""


def test_a_point_lookup_in_a_hundred_megabytes_fetches_a_few_frames(tmp_path: Path):
    path = tmp_path / "db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma synchronous = off")
        db.execute("create table t (id integer primary key, who text, body blob)")
        db.execute("with r(n) as (select 1 union all select n + 1 from r where n < 110000)"
                   " insert into t select n, 'who ' || n, randomblob(900) from r")  # fmt: skip
        db.execute("create index w on t (who)")
    storage, data = Drawer(), path.read_bytes()
    assert len(data) > 100 << 20
    backup = save(storage, {"main": (data, 4096)})
    past, bounds = open_past(), Bounds("app", 60, 1000, 1 << 20)
    for sql in ("select * from t where id = 54321", "select * from t where who = 'who 99999'"):
        fetched = list[int]()

        class Watched(PackReader):
            """Counts the frames that come from the storage."""

            def _fetch(self, pack, first, last, counts=fetched):
                counts.append(last - first + 1)
                return super()._fetch(pack, first, last)

        reader = Watched(storage, DOMAIN)
        pages = PagesReader(open_pages(reader, backup.streams[0]), "main")
        storage.fetched = 0
        assert past.query(pages, sql, bounds, Nobody())["rows"] == 1
        assert sum(fetched) <= 14  # a frame for each page on the way down, and one of leaves for each
        assert storage.fetched < 14 * (1 << 20) // 4  # frames, of at most 256 KiB, and no pack as a whole


def test_two_backups_side_by_side_fetch_what_they_share_once():
    storage, data = Drawer(), bytearray(random.Random(3).randbytes(4 << 20))
    first = save(storage, {"main": (bytes(data), 4096)})
    data[1_000_000] ^= 1
    second = save(storage, {"main": (bytes(data), 4096)}, first)
    with Tree(storage, DOMAIN, first) as older, Tree(storage, DOMAIN, second, beside=older) as newer:
        pages = older.pages("main"), newer.pages("main")
        one = [pages[0].block(number) for number in range(64)]
        storage.fetched = 0
        other = [pages[1].block(number) for number in range(64)]
        assert storage.fetched < 1 << 20  # not the 4 MiB that both have
    assert b"".join(other) == data
    assert [number for number in range(64) if one[number] != other[number]] == [1_000_000 // BLOCK_BYTES]
