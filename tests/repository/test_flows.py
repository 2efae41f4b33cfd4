"""Flow streams, several streams in a backup, and reuse."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import NotFound, Usage
from dbguardd.repository.model import Backup
from dbguardd.repository.reading import PackReader
from dbguardd.repository.tree import Tree, open_flow, packs_of
from tests.repository.data_path import DOMAIN, Drawer, Published, load, save, saving, threads


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", (0, 1, 65535, 65536, 1 << 20, (4 << 20) - 1, 4 << 20, (9 << 20) + 7))
def test_sizes(size: int) -> None:
    storage = Drawer()
    data = noise(size)
    backup = save(storage, {"dump": data})
    assert load(storage, backup) == {"dump": data}
    assert backup.streams[0].size == size
    again = save(storage, {"dump": data}, backup)
    assert (again.stored_bytes, again.streams) == (0, backup.streams)


def test_an_unchanged_stream_also_needs_the_pack_in_which_its_list_lies_alone() -> None:
    storage, published = Drawer(), Published()
    lengths = open_flow(PackReader(storage, DOMAIN), save(storage, {"dump": noise(9 << 20)}).streams[0]).root.lengths
    size = next(total for total in itertools.accumulate(lengths) if total >= 8 << 20)  # the last chunk fills the pack
    data = noise(9 << 20)[:size]
    first = save(storage, {"dump": data}, published=published)
    save(storage, {"dump": data}, first, published=published)
    assert [needs for _, needs in published.backups] == [packs_of(storage, DOMAIN, first)] * 2
    assert first.packs == 2


def test_pieces_of_any_size_make_the_same_stream() -> None:
    data = noise(9 << 20)
    streams = []
    for piece in (len(data), 1 << 20, 99_991):
        storage = Drawer()
        with saving(storage) as sink:
            with sink.write("dump") as stream:
                for at in range(0, len(data), piece):
                    assert stream.write(data[at : at + piece]) == len(data[at : at + piece])
            backup = sink.seal({})
            assert sink.written_bytes == len(data)
        streams.append(backup.streams[0].digest)
        assert load(storage, backup) == {"dump": data}
    assert len(set(streams)) == 1


def test_insertion_costs_a_chunk_or_two() -> None:
    storage = Drawer()
    data = noise(12 << 20)
    first = save(storage, {"dump": data})
    moved = data[: 5 << 20] + b"one more row" + data[5 << 20 :]
    second = save(storage, {"dump": moved}, first)
    assert second.kind == "incremental"
    assert second.stored_bytes < 2_200_000
    assert load(storage, second) == {"dump": moved}
    alone = Drawer(
        {f"packs/{p[:2]}/{p}": storage.objects[f"packs/{p[:2]}/{p}"] for p in packs_of(storage, DOMAIN, second)}
    )
    assert load(alone, second) == {"dump": moved}


def test_repetition_is_stored_once() -> None:
    storage = Drawer()
    block = noise(3 << 20)
    backup = save(storage, {"dump": block * 4})
    assert backup.stored_bytes < 7 << 20
    assert load(storage, backup) == {"dump": block * 4}


EDIT = st.tuples(st.sampled_from(("insert", "delete", "append", "replace", "same")), st.integers(0, 2**32 - 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(EDIT, min_size=1, max_size=6), st.integers(0, 1_500_000))
def test_histories(edits: list[tuple[str, int]], size: int) -> None:
    storage = Drawer()
    data = noise(size)
    history: list[tuple[Backup, bytes]] = []
    for what, seed in edits:
        rng = random.Random(seed)
        at, some = rng.randrange(len(data) + 1), rng.randbytes(rng.choice((1, 1000, 200_000)))
        data = {
            "insert": data[:at] + some + data[at:],
            "delete": data[:at] + data[at + len(some) :],
            "append": data + some,
            "replace": some,
            "same": data,
        }[what]
        history.append((save(storage, {"dump": data}, history[-1][0] if history else None), data))
    for backup, content in history:
        alone = Drawer(
            {n: d for n, d in storage.objects.items() if n.split("/")[-1] in packs_of(storage, DOMAIN, backup)}
        )
        assert load(alone, backup) == {"dump": content}


def test_many_streams_and_their_order() -> None:
    storage = Drawer()
    content = {f"file {number:03}": noise(number * 37, number) for number in range(60)}
    content["pages"] = b""
    backup = save(storage, {**content, "main": (noise(300_000), 4096)})
    with Tree(storage, DOMAIN, backup) as tree:
        assert list(tree.names()) == [*content, "main"]
        assert tree.facts == {"n": 1}
        with pytest.raises(NotFound), tree.read("nothing"):
            pass
    assert load(storage, backup) == {**content, "main": noise(300_000)}
    assert backup.packs == 1
    changed = {**content, "file 007": b"new"}
    second = save(storage, {**changed, "main": (noise(300_000), 4096)}, backup)
    assert load(storage, second) == {**changed, "main": noise(300_000)}


def test_what_an_engine_says_of_its_backup_is_bounded() -> None:
    published = Published()
    with saving(Drawer(), published=published) as sink:
        with pytest.raises(Usage), sink.write("n" * 1025):
            pass
        with pytest.raises(Usage):
            sink.seal({"log": "x" * (64 << 10)})
        assert not published.backups
        sink.seal({"log": "x" * (63 << 10)})
    assert len(published.backups) == 1


def test_reuse() -> None:
    storage = Drawer()
    with saving(storage) as sink:
        for name in "ab":
            with sink.write(name, stamp=f"{name}1") as stream:
                stream.write(noise(100_000))
        first = sink.seal({})
    published = Published()
    with saving(storage, first, published) as sink:
        assert sink.reuse("a", "a1")
        assert not sink.reuse("b", "b2")
        assert not sink.reuse("c", "")
        with pytest.raises(Usage):
            sink.reuse("a", "a1")
        second = sink.seal({})
    assert [stream.name for stream in second.streams] == ["a"]
    assert (second.kind, second.stored_bytes, second.source_bytes) == ("incremental", 0, 100_000)
    assert published.backups[0][1] == packs_of(storage, DOMAIN, second)
    assert load(storage, second) == {"a": noise(100_000)}


def test_a_block_that_raises_leaves_no_stream() -> None:
    storage, published = Drawer(), Published()
    with saving(storage, published=published) as sink:
        with pytest.raises(RuntimeError), sink.write("broken") as stream:
            stream.write(noise(10_000))
            raise RuntimeError
        with sink.write("whole") as stream:
            stream.write(b"1")
        backup = sink.seal({})
    assert [stream.name for stream in backup.streams] == ["whole"]


def test_leaving_without_seal_publishes_nothing() -> None:
    published = Published()
    with saving(Drawer(), published=published) as sink, sink.write("dump") as stream:
        stream.write(noise(20 << 20))
    assert not published.backups
    assert not threads()


def test_reading_only_a_part_stops_the_threads() -> None:
    storage = Drawer()
    backup = save(storage, {"dump": noise(30 << 20)})
    with Tree(storage, DOMAIN, backup) as tree, tree.read("dump") as stream:
        assert stream.read(10) == noise(30 << 20)[:10]
    assert not threads()
