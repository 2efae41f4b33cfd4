"""One suite for every storage and every layer: what storage/base.py promises, nothing that only one of them does."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbguardd.errors import Conflict, Damaged, GuardError, ObjectMissing, TooLarge, Usage
from dbguardd.storage import (
    MAX_OBJECT,
    STORAGES,
    Buffer,
    Directory,
    Storage,
)
from tests.storage.layers import Recording
from tests.storage.memory import Memory

MAKERS: dict[str, Callable[[Path], Storage]] = {
    "directory": lambda path: Directory(path / "store", create=True),
    "directory with temporary names": lambda path: Directory(path / "store", create=True, nameless=False),
    "memory": lambda path: Memory(),
    "recording memory": lambda path: Recording(Memory()),
}


@pytest.fixture(params=MAKERS)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MAKERS[request.param](tmp_path)


def names(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.name for entry in storage.list(prefix)]


def test_every_kind_is_in_the_suite() -> None:
    assert set(STORAGES) <= set(MAKERS)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"bytes", b"bytes"),
        (b"", b""),
        (bytearray(b"array"), b"array"),
        (memoryview(b"a view")[2:], b"view"),
        ([b"several ", b"", bytearray(b"buffers")], b"several buffers"),
        ([], b""),
        ([b"x"] * 3000, b"x" * 3000),
        (memoryview(b"12345678").cast("I"), b"12345678"),
    ],
)
def test_what_was_put_is_got(storage: Storage, data: Buffer | list[Buffer], whole: bytes) -> None:
    storage.put("kind/name", data)
    assert storage.get("kind/name") == whole
    assert storage.stat("kind/name").size == len(whole)
    assert [entry.size for entry in storage.list("")] == [len(whole)]


def test_the_largest_object_and_one_byte_more(storage: Storage) -> None:
    data = bytes(MAX_OBJECT)
    with pytest.raises(TooLarge):
        storage.put("large", [data, b"x"])
    storage.put("large", [data[:-1], b"x"])
    assert storage.get("large", -3) == b"\0\0x"
    assert names(storage) == ["large"]


def test_the_same_again_is_no_error_and_other_bytes_are_a_conflict(storage: Storage) -> None:
    storage.put("a", b"first")
    before = storage.stat("a")
    storage.put("a", [b"fi", b"rst"])
    for other in (b"other", b"firs", b"first!", b""):
        with pytest.raises(Conflict):
            storage.put("a", other)
    assert storage.get("a") == b"first"
    assert storage.stat("a") == before


def test_ranges(storage: Storage) -> None:
    storage.put("a", b"0123456789")
    assert storage.get("a", 3) == b"3456789"
    assert storage.get("a", 3, 4) == b"3456"
    assert storage.get("a", -4) == b"6789"
    assert storage.get("a", -4, 2) == b"67"
    assert storage.get("a", 10) == b""
    assert storage.get("a", 10, 0) == b""
    assert storage.get("a", 0, 10) == b"0123456789"


@pytest.mark.parametrize(("start", "length"), [(0, 11), (10, 1), (11, None), (11, 0), (-11, None), (-2, 3), (2, -1)])
def test_a_range_that_is_not_there_is_damage(storage: Storage, start: int, length: int | None) -> None:
    storage.put("a", b"0123456789")
    with pytest.raises(Damaged):
        storage.get("a", start, length)


def test_missing_objects(storage: Storage) -> None:
    storage.put("a/b", b"")
    for name in ("a", "a/c", "b", "x/y/z", "a/b/c"):
        with pytest.raises((ObjectMissing, Damaged) if name == "a" else ObjectMissing):
            storage.get(name)
    for name in ("a/c", "x/y/z", "a/b/c"):
        with pytest.raises(ObjectMissing):
            storage.stat(name)
        storage.delete(name)
    assert names(storage, "x/") == []


def test_deleting(storage: Storage) -> None:
    storage.put("a/b", b"1")
    storage.put("a/c", b"2")
    storage.delete("a/b")
    storage.delete("a/b")
    assert names(storage) == ["a/c"]
    with pytest.raises(ObjectMissing):
        storage.get("a/b")
    storage.put("a/b", b"other bytes may come after a deletion")
    assert names(storage) == ["a/b", "a/c"]


def test_names_come_in_order_each_once(storage: Storage) -> None:
    wanted = ["A", "a-b", "a.b", "a/a", "a/b-", "a/b.c", "a/b/c", "a/b0", "a0", "aa/x", "b", "packs/0a/x", "packs/a0/y"]
    for name in reversed(wanted):
        storage.put(name, name.encode())
    assert names(storage) == sorted(wanted) == wanted
    for prefix in ("a", "a/", "a/b", "a/b/", "packs/", "packs/0", "packs/0a/", "packs/0a/x", "z", "z/"):
        assert names(storage, prefix) == [name for name in wanted if name.startswith(prefix)], prefix


@pytest.mark.parametrize(
    "name",
    ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a/.b", "a b", "a\0b", "ä", "a\n", "a" * 161, "a\\b", "~"],
)
def test_what_is_not_a_name_is_refused_by_every_verb(storage: Storage, name: str) -> None:
    for verb in (storage.get, storage.stat, storage.delete, lambda name: storage.put(name, b"x")):
        with pytest.raises(Usage):
            verb(name)
    assert names(storage) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a//", ".", "a/.", "a/../b", "/etc"])
def test_what_is_not_the_beginning_of_a_name_is_refused(storage: Storage, prefix: str) -> None:
    with pytest.raises(Usage):
        names(storage, prefix)


def test_entries_tell_the_time_of_the_storage_in_utc(storage: Storage) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    storage.put("a", b"")
    entry = storage.stat("a")
    assert entry.modified_at.tzinfo is UTC
    assert before < entry.modified_at < datetime.now(UTC) + timedelta(seconds=5)
    assert list(storage.list("")) == [entry]


def test_a_probe_does_it_and_leaves_nothing(storage: Storage) -> None:
    storage.put("a", b"")
    found = storage.probe()
    assert found.create_only
    assert found.read_after_write
    assert abs(found.clock_skew_seconds) < 60
    assert found.durable == storage.url.startswith("directory:")
    assert names(storage) == ["a"]


def test_one_name_has_one_winner(storage: Storage) -> None:
    start, lost, won = threading.Barrier(8), [], []

    def run(number: int) -> None:
        start.wait()
        try:
            storage.put("new/place/name", bytes([number]) * 10_000)
            won.append(number)
        except Conflict:
            lost.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    assert storage.get("new/place/name") == bytes(won) * 10_000


def test_only_our_errors_get_out(storage: Storage) -> None:
    storage.put("a", b"")
    for name in ("a/b", "a/b/c"):  # a is an object, so nothing can be below it
        try:
            storage.put(name, b"")
        except GuardError as error:
            assert error.message.startswith("a")
            assert error.detail
            assert not error.transient


_NAMES = st.lists(st.sampled_from(["a", "b", "a-", "a.b", "0"]), min_size=1, max_size=3).map(
    # one kind of name a depth, so that no object stands where another needs a directory
    lambda parts: "/".join([*(f"d{part}" for part in parts[:-1]), parts[-1]])
)
_STEPS = st.lists(st.tuples(st.sampled_from(["put", "get", "delete", "list"]), _NAMES, st.binary(max_size=4)))


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_any_history_is_that_of_a_dictionary(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, bytes]]
) -> None:
    storage, model = MAKERS[kind](tmp_path_factory.mktemp("history")), dict[str, bytes]()
    for verb, name, data in steps:
        if verb == "put":
            if model.setdefault(name, data) == data:
                storage.put(name, data)
            else:
                with pytest.raises(Conflict):
                    storage.put(name, data)
        elif verb == "delete":
            storage.delete(name)
            model.pop(name, None)
        elif verb == "list":
            prefix = name[: len(data)]
            assert names(storage, prefix) == sorted(each for each in model if each.startswith(prefix))
        elif name in model:
            assert storage.get(name) == model[name]
        else:
            with pytest.raises(ObjectMissing):
                storage.get(name)
    assert {entry.name: storage.get(entry.name) for entry in storage.list("")} == model
