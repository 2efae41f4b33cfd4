"""The sealed envelope: it opens in its own place with its own key, and nowhere else; wrong key is not damage."""

from __future__ import annotations

import dataclasses
import os

import pytest

from dbguardd.errors import Damaged, KeyRefused, ObjectMissing
from dbguardd.repository.seal import HEADER, ROOT_ID, Domain, Keyring, seal, unseal

REPO = bytes(range(16))
ROOT = Domain(REPO, ROOT_ID, "", b"R" * 32)
ORDERS = Domain(REPO, b"o" * 16, "orders", b"O" * 32)
USERS = Domain(REPO, b"u" * 16, "users", b"U" * 32)
RING = Keyring(ROOT, {ORDERS.id: ORDERS, USERS.id: USERS})
TEXT = b'{"secret":"content"}'


def test_what_was_sealed_opens_in_its_place():
    for domain in (ROOT, ORDERS, USERS):
        data = seal(domain, "backup", "01J", TEXT)
        assert unseal(RING, "backup", "01J", data, "x") == (domain, TEXT)
        assert len(data) == HEADER + len(TEXT) + 16
        assert TEXT not in data


def test_every_flipped_bit_and_every_truncation_is_seen():
    data = seal(ORDERS, "backup", "01J", TEXT)
    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises((Damaged, KeyRefused, ObjectMissing)):
            unseal(RING, "backup", "01J", bytes(bad), "x")
    for length in range(len(data)):
        with pytest.raises(Damaged):
            unseal(RING, "backup", "01J", data[:length], "x")
    with pytest.raises(Damaged):
        unseal(RING, "backup", "01J", data + b"\0", "x")


@pytest.mark.parametrize(("kind", "slot"), [("print", "01J"), ("backup", "01K"), ("backup", ""), ("backu", "p\x0001J")])
def test_an_object_does_not_open_in_another_place(kind, slot):
    with pytest.raises(Damaged, match="does not open"):
        unseal(RING, kind, slot, seal(ORDERS, "backup", "01J", TEXT), "x")


def test_an_object_of_one_database_cannot_pass_for_one_of_another():
    data = seal(ORDERS, "backup", "01J", TEXT)
    forged = data[:24] + USERS.id + data[40:]
    with pytest.raises(KeyRefused):
        unseal(RING, "backup", "01J", forged, "x")
    as_root = data[:24] + ROOT_ID + data[40:]
    with pytest.raises(KeyRefused):
        unseal(RING, "backup", "01J", as_root, "x")


def test_an_object_of_another_repository_is_foreign_even_with_the_same_keys():
    other = dataclasses.replace(ORDERS, repo_id=b"?" * 16)
    with pytest.raises(Damaged, match="another repository"):
        unseal(RING, "backup", "01J", seal(other, "backup", "01J", TEXT), "x")
    data = seal(other, "backup", "01J", TEXT)
    with pytest.raises(KeyRefused):
        unseal(RING, "backup", "01J", data[:8] + REPO + data[24:], "x")


def test_a_wrong_key_is_not_damage_and_a_lost_domain_neither():
    data = seal(ORDERS, "backup", "01J", TEXT)
    wrong = Keyring(ROOT, {ORDERS.id: dataclasses.replace(ORDERS, key=b"?" * 32)})
    with pytest.raises(KeyRefused):
        unseal(wrong, "backup", "01J", data, "x")
    with pytest.raises(ObjectMissing, match="key of its database is gone"):
        unseal(Keyring(ROOT, {}), "backup", "01J", data, "x")


def test_a_generator_that_repeats_itself_never_puts_two_texts_under_one_key():
    stuck = bytes

    def salt(text):
        return seal(ORDERS, "backup", "01J", text, stuck)[40:72]

    assert salt(b"a") != salt(b"b")
    assert salt(b"a") == salt(b"a")
    assert len({seal(ORDERS, "backup", "01J", TEXT, os.urandom)[40:72] for _ in range(100)}) == 100


def test_derived_keys_differ_by_use_repository_and_domain():
    keys = {domain.derive(label) for domain in (ROOT, ORDERS, USERS) for label in (b"salt", b"object", b"pack")}
    keys.add(dataclasses.replace(ORDERS, repo_id=b"?" * 16).derive(b"salt"))
    keys.add(dataclasses.replace(ORDERS, id=b"?" * 16).derive(b"salt"))
    assert len(keys) == 11


def test_no_key_shows_in_a_representation():
    assert "O" * 8 not in repr(ORDERS)
    assert "4f4f" not in repr(RING)
