"""Whatever happens to stored bytes or to the disk while they are written: never a wrong byte, never a half backup."""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from dbguardd.errors import Damaged, GuardError, KeyRefused, NoSpace, ObjectMissing, Unreachable
from dbguardd.repository.model import Backup, Root
from dbguardd.repository.packs import object_name
from dbguardd.repository.tree import Tree, packs_of
from tests.repository.data_path import DOMAIN, Drawer, Published, load, save, saving, threads


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


CONTENT: dict[str, bytes | tuple[bytes, int]] = {
    "main": (b"page" * 2048 + noise(300), 4096),
    "dump": b"insert into t values (1);\n" * 40,
}


def test_every_flipped_bit_of_a_backup_is_damage() -> None:
    storage = Drawer()
    backup = save(storage, CONTENT)
    ((key, whole),) = storage.objects.items()
    for bit in range(len(whole) * 8):
        broken = bytearray(whole)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(Damaged):
            load(Drawer({key: bytes(broken)}), backup)


def test_every_truncation_of_a_backup_is_damage() -> None:
    storage = Drawer()
    backup = save(storage, CONTENT)
    ((key, whole),) = storage.objects.items()
    for length in range(len(whole)):
        with pytest.raises(Damaged):
            load(Drawer({key: whole[:length]}), backup)


ACTIONS: dict[str, Callable[[dict[str, bytes], str, str], object]] = {
    "swap": lambda objects, one, two: objects.update({one: objects[two], two: objects[one]}),
    "replace": lambda objects, one, two: objects.update({one: objects[two]}),
    "delete": lambda objects, one, two: objects.pop(one),
    "empty": lambda objects, one, two: objects.update({one: b""}),
    "zero": lambda objects, one, two: objects.update({one: bytes(len(objects[one]))}),
    "extend": lambda objects, one, two: objects.update({one: objects[one] + b"\0"}),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_whole_objects(action: str) -> None:
    storage = Drawer()
    data = bytearray(noise(400_000))
    history: list[tuple[Backup, bytes]] = []
    for step in range(4):
        data[step * 90_000 : step * 90_000 + 5000] = noise(5000, step + 10)
        history.append((save(storage, {"main": (bytes(data), 4096)}, history[-1][0] if history else None), bytes(data)))
    names = sorted(storage.objects)
    for one in names:
        for two in names:
            if one == two:
                continue
            objects = dict(storage.objects)
            ACTIONS[action](objects, one, two)
            for backup, content in history:
                needed = {object_name(pack) for pack in packs_of(storage, DOMAIN, backup)}
                if one in needed:
                    with pytest.raises((Damaged, ObjectMissing)):
                        load(Drawer(objects), backup)
                elif two not in needed:
                    assert load(Drawer(objects), backup)["main"] == content


def test_bytes_before_the_damage_are_right() -> None:
    storage = Drawer()
    data = noise(20 << 20)
    backup = save(storage, {"main": (data, 4096)})
    for key, whole in list(storage.objects.items()):
        storage.objects[key] = whole[: len(whole) // 2] + bytes(100) + whole[len(whole) // 2 + 100 :]
        got = b""
        with Tree(storage, DOMAIN, backup) as tree, tree.read("main") as stream, pytest.raises(Damaged):
            while piece := stream.read(50_000):
                got += piece
        assert data.startswith(got)
        assert len(got) < len(data)
        with tempfile.TemporaryFile() as file, Tree(storage, DOMAIN, backup) as tree, pytest.raises(Damaged):
            tree.deliver("main", file.fileno())
        storage.objects[key] = whole
    assert not threads()


def test_a_manifest_that_points_elsewhere() -> None:
    storage = Drawer()
    data = noise(100_000)
    one = save(storage, {"main": (data, 4096), "dump": data})
    two = save(storage, {"main": (data[::-1], 4096)})
    main, dump = one.streams
    for wrong in (
        dataclasses.replace(main, root=two.streams[0].root),
        dataclasses.replace(main, root=dump.root),
        dataclasses.replace(dump, root=main.root),
        dataclasses.replace(main, root=Root(main.root.pack, 0)),
        dataclasses.replace(main, root=Root(main.root.pack, 99)),
        dataclasses.replace(main, size=5),
        dataclasses.replace(main, digest=dump.digest),
    ):
        with pytest.raises(Damaged):
            load(storage, dataclasses.replace(one, streams=(wrong,)))


def test_wrong_key() -> None:
    storage = Drawer()
    backup = save(storage, CONTENT)
    with pytest.raises(KeyRefused):
        load(storage, backup, domain=dataclasses.replace(DOMAIN, key=bytes(32)))


BIG: dict[str, bytes | tuple[bytes, int]] = {"main": (noise(26 << 20), 4096), "dump": noise(9 << 20, 2)}


def test_disk_full_at_any_put() -> None:
    first, published = Drawer(), Published()
    small = save(first, CONTENT)
    for room in range(100):
        storage = Drawer(first.objects, room)
        try:
            backup = save(storage, BIG, published=published)
        except NoSpace:
            assert not published.backups
            assert not threads()
            assert load(storage, small)["dump"] == CONTENT["dump"]
            continue
        break
    assert room == backup.packs == 5
    assert load(storage, backup) == {"main": noise(26 << 20), "dump": noise(9 << 20, 2)}
    assert not threads()


class Lying(Drawer):
    """A storage that fails or lies at the n-th call of one verb."""

    def __init__(self, verb: str, at: int) -> None:
        super().__init__()
        self._verb, self._at = verb, at

    def put(self, name: str, data: Any) -> None:
        if self._verb == "put" and self._countdown():
            raise Unreachable(f"{name}: input/output error")
        if self._verb == "keep" and self._countdown():
            data = bytes(data[:1000]) + bytes([data[1000] ^ 1]) + bytes(data[1001:])
        super().put(name, data)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        found = super().get(name, start, length)
        if self._verb == "get" and self._countdown():
            raise Unreachable(f"{name}: input/output error")
        if self._verb == "short" and self._countdown():
            return found[:-1]
        return found

    def _countdown(self) -> bool:
        self._at -= 1
        return self._at == -1


@pytest.mark.parametrize("verb", ("put", "get", "short", "keep"))
@pytest.mark.parametrize("at", (0, 1, 4))
def test_a_storage_that_fails_or_lies(verb: str, at: int) -> None:
    published = Published()
    with pytest.raises(GuardError) as caught:
        save(Lying(verb, at), BIG, published=published)
    assert isinstance(caught.value, Damaged if verb in ("short", "keep") else Unreachable)
    assert not published.backups
    assert not threads()


def test_after_a_failure_nothing_can_be_sealed() -> None:
    published = Published()
    with saving(Drawer(room=0), published=published) as sink:
        with pytest.raises(NoSpace), sink.write("dump") as stream:
            stream.write(noise(40 << 20))
        for _ in range(2):
            with pytest.raises(NoSpace):
                sink.seal({})
    assert not published.backups


def test_a_target_that_cannot_be_written() -> None:
    storage = Drawer()
    backup = save(storage, {"main": (noise(100_000), 4096)})
    with tempfile.TemporaryFile() as file, open(f"/proc/self/fd/{file.fileno()}", "rb") as read_only:
        for target in (read_only.fileno(), os.open("/dev/full", os.O_RDWR)):
            with pytest.raises((NoSpace, Unreachable)), Tree(storage, DOMAIN, backup) as tree:
                tree.deliver("main", target)
        os.close(target)
    assert not threads()
