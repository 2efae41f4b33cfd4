"""An engine that knows what has changed spares the reading of all else: what the parent has there is taken."""

from __future__ import annotations

import os
import random
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import SourceDenied
from dbguardd.flow import BLOCK_BYTES
from dbguardd.repository.model import Backup
from dbguardd.repository.packs import object_name
from tests.repository.data_path import Drawer, load, save, saving


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def marks(blocks: set[int], count: int) -> bytes:
    made = bytearray(-(-count // 8))
    for block in blocks:
        made[block // 8] |= 1 << block % 8
    return bytes(made)


def adopted(
    storage: Any, content: bytes, parent: Backup | None, changed: bytes | None, page_size: int = 8192
) -> Backup:
    with saving(storage, parent) as sink, tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        sink.adopt("main", file.fileno(), page_size, changed=changed, changing=True)
        return sink.seal({})


def expected(old: bytes, new: bytes, blocks: set[int], known: int) -> bytes:
    """What is stored: the parent's block, unless it has changed, is not known, or has another length."""
    made = b""
    for block in range(-(-len(new) // BLOCK_BYTES)):
        at = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
        kept = block not in blocks and block < known and len(old[at]) == len(new[at])
        made += old[at] if kept else new[at]
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 90), st.integers(0, 90), st.booleans(), st.integers(0, 12))
def test_what_is_not_marked_is_the_parents_and_all_else_is_read(
    seed: int, before: int, after: int, ragged: bool, most: int
) -> None:
    """The two files have nothing in common, so each block tells from which of them it is."""
    rng = random.Random(seed)
    old = noise(before * BLOCK_BYTES + ragged * 8192, seed)
    new = noise(after * BLOCK_BYTES + ragged * 8192, seed + 1)
    count = -(-len(new) // BLOCK_BYTES)
    blocks = set(rng.sample(range(count), min(count, most)))
    told = marks(blocks, count)[: rng.choice((len(new), len(new), 3))]  # what is not told is not known
    storage = Drawer()
    parent = save(storage, {"main": (old, 8192)})
    backup = adopted(storage, new, parent, told)
    assert load(storage, backup)["main"] == expected(old, new, blocks, len(told) * 8)
    again = adopted(storage, new, backup, marks(set(range(count)), count))  # the map that it has left is whole
    assert load(storage, again)["main"] == new


def test_a_stream_in_which_nothing_has_changed_is_not_opened_and_gets_its_new_stamp() -> None:
    storage, data = Drawer(), noise(3 << 20)
    parent = save(storage, {"main": (data, 8192)})
    with saving(storage, parent) as sink, tempfile.TemporaryFile() as file:
        file.write(noise(len(data), 2))
        file.flush()
        sink.adopt("main", file.fileno(), 8192, stamp="later", changing=True, changed=bytes(6))
        assert sink.written_bytes == len(data)
        backup = sink.seal({})
    assert (backup.kind, backup.stored_bytes) == ("incremental", 0)
    assert load(storage, backup)["main"] == data
    with saving(storage, backup) as sink:
        assert sink.reuse("main", "later")


@pytest.mark.parametrize("loses", ["its root", "all of it"])
def test_without_a_readable_parent_all_is_read(loses: str) -> None:
    storage, data, new = Drawer(), noise(3 << 20), noise(3 << 20, 2)
    parent = save(storage, {"main": (data, 8192)})
    for name in [object_name(parent.streams[0].root.pack)] if loses == "its root" else list(storage.objects):
        storage.delete(name)
    for changed in (bytes(6), marks({3}, 48)):
        backup = adopted(storage, new, parent, changed)
        assert load(storage, backup)["main"] == new and backup.kind == "full"
    assert load(storage, adopted(storage, new, None, bytes(6)))["main"] == new


def test_only_marked_blocks_are_read() -> None:
    """A file that cannot be read at all: what is not marked needs no reading."""
    storage, data = Drawer(), noise(3 << 20)
    parent = save(storage, {"main": (data, 8192)})
    with tempfile.NamedTemporaryFile() as made:
        os.truncate(made.name, len(data))
        unreadable = os.open(made.name, os.O_WRONLY)
        try:
            with saving(storage, parent) as sink:
                sink.adopt("main", unreadable, 8192, changed=bytes(6))
                backup = sink.seal({})
            with saving(storage, parent) as sink, pytest.raises(SourceDenied):
                sink.adopt("main", unreadable, 8192, changed=marks({40}, 48))
        finally:
            os.close(unreadable)
    assert load(storage, backup)["main"] == data
