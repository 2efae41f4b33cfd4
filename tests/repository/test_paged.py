"""Paged streams: any history of changes gives back every backup, whichever others are deleted."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import Cancelled, Damaged, ObjectMissing, SourceChanged, SourceInvalid, Unsupported, Usage
from dbguardd.repository.frames import LEAVES
from dbguardd.repository.model import Backup
from dbguardd.repository.packs import object_name
from dbguardd.repository.reading import PackReader
from dbguardd.repository.saving import scattered
from dbguardd.repository.tree import Tree, open_pages, packs_of
from tests.repository.data_path import DOMAIN, Drawer, Published, load, save, saving, threads

SIZES = (0, 1, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 262144, 262145, 300_001, 4 << 20, (4 << 20) + 1)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int) -> None:
    storage = Drawer()
    data = noise(size)
    first = save(storage, {"main": (data, 4096)})
    assert first.kind == "full"
    assert first.source_bytes == size
    assert load(storage, first) == {"main": data}
    assert first.packs == len(packs_of(storage, DOMAIN, first))
    changed = b"x" + data[1:] if size else b"y"
    second = save(storage, {"main": (changed, 4096)}, first)
    assert load(storage, second) == {"main": changed}


@pytest.mark.parametrize("page_size", [1 << bits for bits in range(9, 17)])
def test_page_sizes(page_size: int) -> None:
    storage = Drawer()
    data = bytearray(noise(600_000))
    first = save(storage, {"main": (bytes(data), page_size)})
    assert load(storage, first)["main"] == data
    data[150_000] ^= 1
    second = save(storage, {"main": (bytes(data), page_size)}, first)
    assert second.kind == "incremental"
    assert second.parent == first.id
    assert second.stored_bytes < 3 * max(page_size, 4096)
    assert load(storage, second)["main"] == data
    third = save(storage, {"main": (bytes(data), 1024 if page_size != 1024 else 2048)}, second)
    assert third.kind == "full"
    assert load(storage, third)["main"] == data


def test_unchanged_stores_nothing() -> None:
    storage = Drawer()
    data = noise(5 << 20)
    first = save(storage, {"main": (data, 4096)})
    objects = dict(storage.objects)
    second = save(storage, {"main": (data, 4096)}, first)
    assert (second.stored_bytes, second.kind, second.streams) == (0, "incremental", first.streams)
    assert storage.objects == objects
    assert load(storage, second)["main"] == data


def test_an_unchanged_stream_also_needs_the_pack_in_which_its_root_lies_alone() -> None:
    storage, published = Drawer(), Published()
    data = noise(16 << 20)  # fills two packs and one frame of leaves to the last byte: the root comes after them
    first = save(storage, {"main": (data, 4096)}, published=published)
    second = save(storage, {"main": (data, 4096)}, first, published=published)
    assert [needs for _, needs in published.backups] == [packs_of(storage, DOMAIN, first)] * 2
    assert (first.packs, second.packs) == (3, 3)


@pytest.mark.parametrize("size", [2_000_000, 2_700_001])
def test_over_another_state_only_what_differs_is_fetched_and_written(tmp_path: Path, size: int) -> None:
    storage, target = Drawer(), tmp_path / "out"
    data = noise(2_000_000) + bytes(200_000) + noise(300_000, 2)
    backup = save(storage, {"main": (data, 8192)})
    other = bytearray((data + noise(300_000, 3))[:size])
    other[100_000], other[1_500_000], other[1_999_999] = (byte ^ 1 for byte in b"abc")
    other[2_100_000:2_100_005] = b"other"[: max(0, size - 2_100_000)]

    def written() -> int:
        return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

    with open(target, "w+b", buffering=0) as file, Tree(storage, DOMAIN, backup) as tree:
        file.write(other)
        before, fetched = written(), storage.fetched
        assert tree.deliver("main", file.fileno(), delta=True) == len(data)
        lacking = max(0, len(data) - max(size, 2_200_000))
        assert written() - before <= 4 * 8192 + lacking + 8192
        assert storage.fetched - fetched < 4 * 262_144 + 1.2 * lacking + 20_000
    assert target.read_bytes() == data


@pytest.mark.parametrize("of_use", ["", "the file has another size", "what was kept is damaged", "or is gone"])
def test_what_was_kept_of_another_state_just_now_is_not_read_again(tmp_path: Path, of_use: str) -> None:
    storage, target = Drawer(), tmp_path / "out"
    data = noise(3_000_000)
    other = bytearray(data + noise(300_000, 3))
    other[100_000], other[1_500_000], other[2_999_999] = (byte ^ 1 for byte in b"abc")
    backup, kept = save(storage, {"main": (data, 8192)}), save(storage, {"main": (bytes(other), 8192)})

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    target.write_bytes(other[:-8192] if "size" in of_use else other)
    for name in map(object_name, set(packs_of(storage, DOMAIN, kept)) - set(packs_of(storage, DOMAIN, backup))):
        if "damaged" in of_use:
            storage.objects[name] = bytes(byte ^ 1 for byte in storage.objects[name])
        elif "gone" in of_use:
            del storage.objects[name]
    with (
        open(target, "r+b", buffering=0) as file,
        Tree(storage, DOMAIN, kept) as there,
        Tree(storage, DOMAIN, backup, there=there) as tree,
    ):
        before = read()
        assert tree.deliver("main", file.fileno(), delta=True) == len(data)
        assert (read() - before < 5 * 65536) is (not of_use)
        kinds = {"what was kept is damaged": [Damaged], "or is gone": [ObjectMissing]}
        assert [type(doubt) for doubt in there.doubts] == kinds.get(of_use, [])
    assert target.read_bytes() == data


@pytest.mark.parametrize("known", [False, True])
def test_what_is_there_already_keeps_its_times_and_is_not_even_read_where_that_is_known(
    tmp_path: Path, known: bool
) -> None:
    storage, target = Drawer(), tmp_path / "out"
    data = noise(3_000_000)
    backup = save(storage, {"main": (data, 8192)})
    target.write_bytes(data)
    os.utime(target, ns=(1, 1))
    before = target.stat()
    with (
        open(target, "r+b", buffering=0) as file,
        Tree(storage, DOMAIN, backup) as there,
        Tree(storage, DOMAIN, backup, there=there if known else None) as tree,
    ):
        fetched = storage.fetched
        assert tree.deliver("main", file.fileno(), delta=True) == len(data)
        assert storage.fetched - fetched < len(data) // 10
        if known:
            os.pwrite(file.fileno(), b"not read", 0)
            assert tree.deliver("main", file.fileno(), delta=True) == len(data)
            assert os.pread(file.fileno(), 8, 0) == b"not read"
        else:
            after = os.fstat(file.fileno())
            assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_over_another_state_nothing_wrong_is_written_from_a_damaged_pack(tmp_path: Path) -> None:
    storage, target = Drawer(), tmp_path / "out"
    backup = save(storage, {"main": (noise(300_000), 8192)})
    target.write_bytes(noise(300_000, 2))
    for name in [name for name in storage.objects if name.startswith("pack")]:
        data = bytearray(storage.objects[name])
        data[len(data) // 2] ^= 1
        storage.objects[name] = bytes(data)
    with open(target, "r+b") as file, Tree(storage, DOMAIN, backup) as tree, pytest.raises(Damaged):
        tree.deliver("main", file.fileno(), delta=True)
    assert target.read_bytes() == noise(300_000, 2)


def test_zeros_cost_nothing_and_stay_holes(tmp_path: Any) -> None:
    storage = Drawer()
    data = noise(70_000) + bytes(40 << 20) + noise(70_000, 2)
    backup = save(storage, {"main": (data, 4096)})
    assert backup.stored_bytes < 260_000
    target = tmp_path / "out"
    with open(target, "w+b") as file, Tree(storage, DOMAIN, backup) as tree:
        file.write(b"old" * 100_000)
        assert tree.deliver("main", file.fileno()) == len(data)
    assert target.read_bytes() == data
    assert target.stat().st_blocks * 512 < 1 << 20
    filled = save(storage, {"main": (noise(len(data), 3), 4096)}, backup)
    assert load(storage, filled)["main"] == noise(len(data), 3)
    empty = save(storage, {"main": (bytes(len(data)), 4096)}, filled)
    assert load(storage, empty)["main"] == bytes(len(data))
    assert len(packs_of(storage, DOMAIN, empty)) == 1


def test_a_few_pages_cost_a_few_pages() -> None:
    storage = Drawer()
    data = bytearray(noise(16 << 20))
    first = save(storage, {"main": (bytes(data), 4096)})
    for page in random.Random(5).sample(range(4096), 40):
        data[page * 4096 + 17] ^= 255
    second = save(storage, {"main": (bytes(data), 4096)}, first)
    assert second.stored_bytes < 40 * 4096 + 40 * 250 + 6000
    assert load(storage, second)["main"] == data


PAGE = 4096
STEP = st.tuples(
    st.sampled_from(("write", "write", "grow", "shrink", "zero", "full", "same", "expire")),
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=12), st.sampled_from((512, 4096, 16384, 65536)), st.integers(0, 400_000))
def test_histories(steps: list[tuple[str, int, int]], page_size: int, size: int) -> None:
    storage = Drawer()
    data = bytearray(noise(size))
    history: list[tuple[Backup, bytes]] = []
    gone = 0
    for what, seed, count in steps:
        rng = random.Random(seed)
        mutate(data, what, rng, count)
        if what == "expire" and history:
            history.pop(rng.randrange(len(history)))
            sweep(storage, [backup for backup, _ in history])
            gone += 1
        parent = history[-1][0] if history and what != "full" else None
        history.append((save(storage, {"main": (bytes(data), page_size)}, parent), bytes(data)))
        if parent is not None and len(history) > 1 and history[-2][1] == data:
            assert history[-1][0].stored_bytes == 0
    for backup, content in history:
        assert load(storage, backup)["main"] == content
    for backup, content in history:  # every backup stands on its own
        alone = Drawer(
            {object_name(pack): storage.objects[object_name(pack)] for pack in packs_of(storage, DOMAIN, backup)}
        )
        assert load(alone, backup)["main"] == content
        check_uses(storage, backup)


def mutate(data: bytearray, what: str, rng: random.Random, count: int) -> None:
    if what in ("write", "zero"):
        for _ in range(count if data else 0):
            at = rng.randrange(len(data))
            length = min(rng.choice((1, 100, 5000, 70_000)), len(data) - at)
            data[at : at + length] = rng.randbytes(length) if what == "write" else bytes(length)
    elif what == "grow":
        data += rng.randbytes(count * rng.choice((1, 4096, 10_000)))
    elif what == "shrink":
        del data[rng.randrange(len(data) + 1) :]


def sweep(storage: Drawer, backups: list[Backup]) -> None:
    needed = {object_name(pack) for backup in backups for pack in packs_of(storage, DOMAIN, backup)}
    for name in set(storage.objects) - needed:
        storage.delete(name)


def check_uses(storage: Drawer, backup: Backup) -> None:
    """What the root says about the use of packs is what the leaves say."""
    pages = open_pages(PackReader(storage, DOMAIN), backup.streams[0])
    count: dict[int, int] = dict.fromkeys(pages.root.packs, 0)
    for extent in range(len(pages.root.leaf_of)):
        leaves, place = pages.locate(extent)
        for pack in leaves.packs[pages.units * place : pages.units * (place + 1)]:
            if pack != 0xFFFFFFFF:
                count[pack] += 1
    assert count == {number: use.live for number, use in pages.root.packs.items()}


def test_a_long_line_becomes_full_again() -> None:
    storage = Drawer()
    data = bytearray(noise(2_000_000))
    backup, kinds = None, []
    for step in range(160):
        data[step * 12_000] ^= 1
        backup = save(storage, {"main": (bytes(data), 4096)}, backup)
        kinds.append(backup.kind)
        assert backup.packs <= 132
    assert 1 < kinds.count("full") < 4
    assert load(storage, backup)["main"] == data  # type: ignore[arg-type]


def test_what_is_too_scattered() -> None:
    assert not scattered(100, 100, 800 << 20, 800 << 20)
    assert scattered(229, 100, 800 << 20, 800 << 20)
    assert not scattered(228, 100, 1600 << 20, 800 << 20)
    assert scattered(228, 100, (1616 << 20) + 1, 800 << 20)
    assert not scattered(1, 0, 0, 0)


def test_source_that_shrinks_or_grows(tmp_path: Any) -> None:
    published = Published()
    for change in (-1, 5):
        storage = Drawer()
        path = tmp_path / f"source{change}"
        path.write_bytes(noise(60 << 20))
        size = path.stat().st_size
        with open(path, "r+b") as file, saving(storage, published=published) as sink:
            seen: list[int] = []

            def meddle(
                path: Any = path, sink: Any = sink, seen: Any = seen, size: int = size, change: int = change
            ) -> bool:
                if sink.written_bytes > 4 << 20 and not seen:
                    seen.append(1)
                    os.truncate(path, size + change * (1 << 20))
                return False

            sink._writer._cancelled = meddle
            with pytest.raises(SourceChanged):
                sink.adopt("main", file.fileno(), 4096)
        assert seen
    assert not published.backups
    assert not threads()


@pytest.mark.parametrize("change", [-19_000_001, 3 << 20])
def test_a_file_that_changes_by_right_is_as_long_as_it_was_and_zero_where_it_ended_early(
    tmp_path: Any, change: int
) -> None:
    """Others write it and a log makes it whole: neither its growing nor its end keeps it from being stored."""
    storage, path, data = Drawer(), tmp_path / "alive", noise(24 << 20)
    path.write_bytes(data)
    with open(path, "r+b") as file, saving(storage) as sink:
        seen: list[int] = []

        def meddle() -> bool:
            if sink.written_bytes > 2 << 20 and not seen:
                seen.append(1)
                os.truncate(path, len(data) + change)
            return False

        sink._writer._cancelled = meddle
        sink.adopt("relation", file.fileno(), 8192, changing=True)
        backup = sink.seal({})
    assert seen
    (kept,) = load(storage, backup).values()
    ahead = 16 << 20  # more than is read before the first of it is stored
    there = min(len(data), len(data) + change)
    assert len(kept) == len(data)
    assert kept[:there] == data[:there]
    assert kept[ahead:] == data[ahead:there].ljust(len(data) - ahead, b"\0")


def test_a_file_that_is_still_being_written_is_read_no_further_than_it_is_there(tmp_path: Any) -> None:
    storage, data = Drawer(), noise(9_000_001)
    with open(tmp_path / "growing", "w+b", buffering=0) as file, saving(storage) as sink:
        file.write(bytes(len(data)))

        def writer() -> Iterator[int]:
            for at in range(0, len(data), 700_001):
                os.pwrite(file.fileno(), data[at : at + 700_001], at)
                yield min(at + 700_001, len(data))

        sink.adopt("main", file.fileno(), 4096, filled=writer())
        made = sink.seal({})
    assert load(storage, made) == {"main": data}


def test_who_is_asked_hears_of_the_end_when_all_was_read(tmp_path: Any) -> None:
    """What becomes of the file then is not in the backup; and a step is asked for when its bytes are wanted."""
    storage, data, ahead = Drawer(), noise(40_000_000), 16 << 20
    with open(tmp_path / "live", "w+b", buffering=0) as file, saving(storage) as sink:
        file.write(data)

        def watched() -> Iterator[int]:
            for at in range(0, len(data), 4_000_000):
                assert sink.written_bytes >= at - ahead
                yield at
            yield len(data)
            assert sink.written_bytes == len(data)
            os.pwrite(file.fileno(), bytes(len(data)), 0)

        sink.adopt("main", file.fileno(), 4096, filled=watched(), on_demand=True)
        made = sink.seal({})
    assert load(storage, made) == {"main": data}


@pytest.mark.parametrize("after", [0, 3_000_000, 9_000_000])
def test_a_writer_that_fails_leaves_no_stream_and_may_begin_again(tmp_path: Any, after: int) -> None:
    storage, data = Drawer(), noise(9_000_000)

    def writer() -> Iterator[int]:
        yield after
        raise SourceChanged("it moved")

    with open(tmp_path / "growing", "w+b", buffering=0) as file, saving(storage) as sink:
        file.write(noise(9_000_000, 2))
        with pytest.raises(SourceChanged, match="it moved"):
            sink.adopt("main", file.fileno(), 4096, filled=writer())
        assert sink.written_bytes == 0
        os.pwrite(file.fileno(), data, 0)
        sink.adopt("main", file.fileno(), 4096)
        made = sink.seal({})
    assert made.source_bytes == len(data)
    assert load(storage, made) == {"main": data}


def test_cancelled_midway() -> None:
    storage, published = Drawer(), Published()
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 8

    with pytest.raises(Cancelled):
        save(storage, {"main": (noise(80 << 20), 4096)}, cancelled=cancelled, published=published)
    assert not published.backups
    assert not threads()


def test_wrong_page_size_and_same_name() -> None:
    with tempfile.TemporaryFile() as file, saving(Drawer()) as sink:
        for wrong in (0, 256, 1000, 131072, -4096):
            with pytest.raises(Usage):
                sink.adopt("main", file.fileno(), wrong)
        sink.adopt("main", file.fileno(), 4096)
        with pytest.raises(Usage):
            sink.adopt("main", file.fileno(), 4096)


def test_only_a_regular_file_of_a_possible_size_is_adopted(tmp_path: Any) -> None:
    ends = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    with saving(Drawer()) as sink, open(tmp_path / "sparse", "wb+") as sparse:
        for file in (*ends, folder):
            with pytest.raises(SourceInvalid):
                sink.adopt("main", file, 4096)
            os.close(file)
        sparse.truncate((4 << 40) + 1)
        with pytest.raises(Unsupported):
            sink.adopt("main", sparse.fileno(), 4096)


def test_a_parent_that_is_damaged_or_gone_means_full_again() -> None:
    data = noise(3_000_000)
    base = Drawer()
    first = save(base, {"main": (data, 4096), "dump": data})
    zeroed = {name: bytes(len(found)) for name, found in base.objects.items()}
    for objects in (zeroed, {}):
        storage = Drawer(objects)
        backup = save(storage, {"main": (data, 4096), "dump": data}, first)
        assert backup.kind == "full"
        assert load(storage, backup) == {"main": data, "dump": data}


@pytest.mark.parametrize("leaf", [0, 1])  # the other is of what is behind the end now, and looked at last
def test_a_parent_with_one_damaged_leaf_means_full_again(leaf: int) -> None:
    storage, data = Drawer(), noise(17 << 20)
    first = save(storage, {"main": (data, 4096)})
    reader = PackReader(storage, DOMAIN)
    found = [(pack, record) for pack in packs_of(storage, DOMAIN, first) for record in reader.pack(pack).records]
    leaves = sorted([(-record.length, pack, record) for pack, record in found if record.kind == LEAVES])
    _, pack, record = leaves[leaf]
    broken = bytearray(storage.objects[object_name(pack)])
    broken[record.start] ^= 1
    storage = Drawer({**storage.objects, object_name(pack): bytes(broken)})
    data = data[: 16 << 20]
    with saving(storage, first) as sink, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()

        def owner() -> Iterator[int]:
            yield len(data)
            os.pwrite(file.fileno(), b"later", 1_000_000)  # nobody reads any more

        sink.adopt("main", file.fileno(), 4096, filled=owner(), on_demand=True)
        backup = sink.seal({})
        assert [type(doubt) for doubt in sink.doubts] == [Damaged]
        assert sink.written_bytes == len(data)
    assert backup.kind == "full"
    assert load(storage, backup) == {"main": data}
    assert not threads()


@pytest.mark.slow
def test_a_restore_reads_every_frame_once_or_twice() -> None:
    storage = Drawer()
    data = bytearray(noise(24 << 20))
    rng = random.Random(9)
    backup = save(storage, {"main": (bytes(data), 4096)})
    for _ in range(100):
        for page in rng.sample(range(6144), 61):
            data[page * 4096 + 5] ^= 255
        backup = save(storage, {"main": (bytes(data), 4096)}, backup)
    assert backup.packs > 90
    needed = sum([len(storage.objects[object_name(pack)]) for pack in packs_of(storage, DOMAIN, backup)])
    storage.fetched = 0
    with tempfile.TemporaryFile() as file, Tree(storage, DOMAIN, backup) as tree:
        tree.deliver("main", file.fileno())
        assert storage.fetched < 2 * needed  # two threads: what each finds in the cache is their luck
        file.seek(0)
        assert file.read() == data
