"""A pack gives back exactly what was sealed, or says that it cannot."""

from __future__ import annotations

import dataclasses
import os
import struct

import pytest
import zstandard

from dbguardd.errors import Damaged, GuardError, KeyRefused, ObjectMissing
from dbguardd.repository.frames import CHUNK, PAGES, Digests, Frame, compress, decompress
from dbguardd.repository.packs import END, HEADER, Pack, object_name, pack_name, prove, seal_pack
from dbguardd.repository.reading import PackReader
from tests.repository.data_path import DOMAIN, Drawer

DIGESTS = Digests(DOMAIN)
UNPACKER = zstandard.ZstdDecompressor()
CONTENT = (b"", b"a", b"page " * 60, os.urandom(300), bytes(2000))


def frame(data: bytes, kind: int = PAGES) -> Frame:
    return compress(kind, data, DIGESTS, zstandard.ZstdCompressor(level=1))


def sealed(contents: tuple[bytes, ...] = CONTENT) -> tuple[Drawer, str]:
    data = bytes(seal_pack(DOMAIN, [frame(content) for content in contents]))
    name = pack_name(data)
    return Drawer({object_name(name): data}), name


def read(storage: Drawer, name: str, count: int = len(CONTENT), domain: object = DOMAIN) -> tuple[bytes, ...]:
    reader = PackReader(storage, domain)  # type: ignore[arg-type]
    return tuple(reader.frame(name, number, PAGES)[0] for number in range(count))


def test_roundtrip() -> None:
    storage, name = sealed()
    assert read(storage, name) == CONTENT


def test_a_pack_is_proven_to_hold_what_was_compressed() -> None:
    frames = [frame(content) for content in CONTENT]
    checks = [made.check for made in frames]
    pack = seal_pack(DOMAIN, frames)
    prove(DOMAIN, pack, pack_name(pack), checks)
    for others in (checks[:-1], [*checks, checks[0]], [checks[1], checks[0], *checks[2:]]):
        with pytest.raises(Damaged):
            prove(DOMAIN, pack, pack_name(pack), others)
    pack[HEADER + 3] ^= 1
    with pytest.raises(Damaged):
        prove(DOMAIN, pack, pack_name(pack), checks)


@pytest.mark.parametrize("change", [{"body": frame(b"b").body}, {"digest": frame(b"b").digest}])
def test_what_became_another_frame_before_it_was_sealed_is_found(change: dict[str, bytes]) -> None:
    made = frame(b"a")
    pack = seal_pack(DOMAIN, [dataclasses.replace(made, **change)])
    with pytest.raises(Damaged):
        prove(DOMAIN, pack, pack_name(pack), [made.check])


def test_what_does_not_come_out_as_it_went_in_becomes_no_frame() -> None:
    class Faulty:
        def compress(self, data: bytes) -> bytes:
            return zstandard.ZstdCompressor().compress(bytes(data[:-1]) + b"!")

    with pytest.raises(Damaged):
        compress(PAGES, b"page " * 60, DIGESTS, Faulty())  # type: ignore[arg-type]


def test_every_flipped_bit_is_damage() -> None:
    storage, name = sealed((b"", b"abc" * 30, os.urandom(50)))
    key = object_name(name)
    whole = storage.objects[key]
    for bit in range(len(whole) * 8):
        broken = bytearray(whole)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(Damaged):
            read(Drawer({key: bytes(broken)}), name, 3)


def test_every_truncation_and_extension_is_damage() -> None:
    storage, name = sealed()
    key = object_name(name)
    whole = storage.objects[key]
    for length in range(len(whole)):
        with pytest.raises(Damaged):
            read(Drawer({key: whole[:length]}), name)
    for more in (b"\0", END, whole[-12:], whole):
        with pytest.raises(Damaged):
            read(Drawer({key: whole + more}), name)
    with pytest.raises(Damaged):  # slack between the frames and the trailer
        read(Drawer({key: whole[:HEADER] + bytes(8) + whole[HEADER:]}), name)
    with pytest.raises(ObjectMissing):
        read(Drawer(), name)


def test_another_pack_under_this_name_is_damage() -> None:
    storage, name = sealed((b"one" * 100,))
    other, other_name = sealed((b"two" * 100,))
    reader = PackReader(Drawer({object_name(name): other.objects[object_name(other_name)]}), DOMAIN)
    # the reader finds a valid pack of this domain; whoever asks compares digests, which is what extents and chunks do
    data, parts = reader.frame(name, 0, PAGES)
    assert DIGESTS.parts(data) == parts != DIGESTS.parts(b"one" * 100)
    assert pack_name(other.objects[object_name(other_name)]) != name


def test_swapped_frames_do_not_open() -> None:
    one, two = os.urandom(100), os.urandom(100)
    storage, name = sealed((one, two))
    key = object_name(name)
    data = storage.objects[key]
    swapped = data[:HEADER] + data[HEADER + 116 : HEADER + 232] + data[HEADER : HEADER + 116] + data[HEADER + 232 :]
    with pytest.raises(Damaged):
        read(Drawer({key: swapped}), name, 2)


def test_another_key_is_refused_and_another_owner_is_damage() -> None:
    storage, name = sealed()
    with pytest.raises(KeyRefused):
        read(storage, name, domain=dataclasses.replace(DOMAIN, key=bytes(32)))
    for foreign in ({"id": bytes(16)}, {"repo_id": bytes(16)}):
        with pytest.raises(Damaged):
            read(storage, name, domain=dataclasses.replace(DOMAIN, **foreign))  # type: ignore[arg-type]


def test_another_kind_or_a_number_too_high_is_damage() -> None:
    storage, name = sealed()
    reader = PackReader(storage, DOMAIN)
    for number, kind in ((0, CHUNK), (len(CONTENT), PAGES)):
        with pytest.raises(Damaged):
            reader.frame(name, number, kind)


def test_a_key_is_never_used_for_two_contents() -> None:
    def same(count: int) -> bytes:  # a cloned machine
        return bytes(count)

    salts = {}
    for content in (b"a", b"b", b"ab", b""):
        pack = bytes(seal_pack(DOMAIN, [frame(content)], same))
        assert bytes(seal_pack(DOMAIN, [frame(content)], same)) == pack
        salts[content] = pack[40:72]
    assert len(set(salts.values())) == len(salts)
    data = b"".join(b"row %d, %d; " % (n, n * n) for n in range(3000))
    levels = [compress(PAGES, data, DIGESTS, zstandard.ZstdCompressor(level=level)) for level in (1, 19)]
    assert levels[0].digest == levels[1].digest
    assert levels[0].body != levels[1].body
    one, other = [bytes(seal_pack(DOMAIN, [made], same)) for made in levels]
    assert one[40:72] != other[40:72]
    fresh = {bytes(seal_pack(DOMAIN, [frame(b"a")])[40:72]) for _ in range(100)}
    assert len(fresh) == 100


def test_nothing_can_be_told_from_outside() -> None:
    secret = b"a very well known text " * 50
    data = bytes(seal_pack(DOMAIN, [frame(secret)]))
    assert secret[:20] not in data
    assert DIGESTS.parts(secret) not in data
    assert Digests(dataclasses.replace(DOMAIN, id=bytes(16))).parts(secret) != DIGESTS.parts(secret)


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    with pytest.raises(Damaged):
        decompress(bomb, 1 << 20, "pack x", UNPACKER)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000))
    with pytest.raises(Damaged):
        decompress(silent, 5000, "pack x", UNPACKER)
    two = zstandard.ZstdCompressor().compress(b"a" * 5000)
    with pytest.raises(Damaged):
        decompress(two + two, 5000, "pack x", UNPACKER)
    assert decompress(two, 5000, "pack x", UNPACKER) == b"a" * 5000


def test_a_length_that_lies_is_damage() -> None:
    data = bytearray(seal_pack(DOMAIN, [frame(b"x" * 500)]))
    for length in (0, 15, len(data), 0xFFFFFFFF):
        tail = struct.pack(">I8s", length, END)
        with pytest.raises(GuardError):
            Pack(DOMAIN, "ab", len(data), bytes(data[:HEADER]), bytes(data[HEADER:-12]) + tail)


def test_neighbours_are_fetched_at_once_and_kept() -> None:
    contents = tuple(os.urandom(1000) for _ in range(20))
    storage, name = sealed(contents)
    reader = PackReader(storage, DOMAIN)
    reader.pack(name)
    before = storage.fetched
    found = reader.frames(name, range(20), PAGES)
    assert [found[number][0] for number in range(20)] == list(contents)
    assert storage.fetched - before == 20 * 1016
    reader.frames(name, range(20), PAGES)
    assert storage.fetched - before == 20 * 1016
    small = PackReader(storage, DOMAIN, cache=3000)
    for _ in range(2):
        assert [small.frame(name, number, PAGES)[0] for number in range(20)] == list(contents)
