"""Keys: what one wraps, only the same one opens, for the same repository; everything else has its own error."""

import base64
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbguardd.errors import (
    Damaged,
    KeyMissing,
    KeyRefused,
    KeyUnsafe,
    PolicyInvalid,
    SecretMissing,
    TargetExists,
    Unreachable,
)
from dbguardd.keys import (
    KEYS,
    AgeRecipient,
    Cost,
    KeyWrapper,
    MachineKey,
    Passphrase,
    Secret,
    new_identity,
    open_wrappers,
)
from dbguardd.keys.envelope import header_of, seal, unseal

CHEAP = Cost(memory_kib=64, iterations=1, lanes=1)
ROOT_KEY, REPOSITORY = bytes(range(32)), b"repository 16 by"


def machine() -> KeyWrapper:
    return MachineKey(Secret(os.urandom(32)), "test")


def passphrase() -> KeyWrapper:
    return Passphrase(Secret(os.urandom(12).hex().encode()), cost=CHEAP)


def age() -> KeyWrapper:
    return AgeRecipient.from_identity(new_identity()[0])


MAKERS: dict[str, Callable[[], KeyWrapper]] = {"machine": machine, "passphrase": passphrase, "age": age}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[], KeyWrapper]:
    return MAKERS[request.param]


def test_every_kind_is_in_the_suite() -> None:
    assert {*KEYS, "age"} == set(MAKERS)
    assert {kind: make().kind for kind, make in MAKERS.items()} == {kind: kind for kind in MAKERS}
    assert {kind: make().offline for kind, make in MAKERS.items()} == {
        "machine": False,
        "passphrase": True,
        "age": True,
    }


def test_its_own_wrap_is_opened_and_no_two_wraps_are_equal(make: Callable[[], KeyWrapper]) -> None:
    key = make()
    first, second = key.wrap(ROOT_KEY, REPOSITORY), key.wrap(ROOT_KEY, REPOSITORY)
    assert first != second
    assert key.unwrap(first, REPOSITORY) == key.unwrap(second, REPOSITORY) == ROOT_KEY
    assert ROOT_KEY not in first
    assert ROOT_KEY.hex().encode() not in first


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=30, deadline=None)
@given(secret=st.binary(max_size=200), context=st.binary(max_size=40))
def test_round_trips(kind: str, secret: bytes, context: bytes) -> None:
    key = MAKERS[kind]()
    assert key.unwrap(key.wrap(secret, context), context) == secret


def test_another_key_or_another_repository_is_refused(make: Callable[[], KeyWrapper]) -> None:
    key = make()
    wrapped = key.wrap(ROOT_KEY, REPOSITORY)
    with pytest.raises(KeyRefused):
        make().unwrap(wrapped, REPOSITORY)
    for context in (b"", b"another", REPOSITORY + b"\0", REPOSITORY[:-1]):
        with pytest.raises(KeyRefused):
            key.unwrap(wrapped, context)


@pytest.mark.parametrize("kind", ["machine", "passphrase"])
def test_every_flipped_bit_is_damage_and_not_a_wrong_key(kind: str) -> None:
    key = MAKERS[kind]()
    wrapped = key.wrap(ROOT_KEY, REPOSITORY)
    for bit in range(8 * len(wrapped)):
        damaged = bytearray(wrapped)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            key.unwrap(bytes(damaged), REPOSITORY)


def test_a_flipped_bit_in_an_age_file_never_opens() -> None:
    key = age()
    wrapped = key.wrap(ROOT_KEY, REPOSITORY)
    kinds = set()
    for bit in range(8 * len(wrapped)):
        damaged = bytearray(wrapped)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Damaged, KeyRefused)) as caught:  # its header does not tell which of the two it is
            key.unwrap(bytes(damaged), REPOSITORY)
        kinds.add(caught.type)
    assert kinds == {Damaged, KeyRefused}


def test_whatever_else_lies_there_is_no_wrapped_key(make: Callable[[], KeyWrapper]) -> None:
    key = make()
    wrapped = key.wrap(ROOT_KEY, REPOSITORY)
    for data in (
        b"",
        b"\0" * 200,
        wrapped[:-1],
        wrapped[:40],
        wrapped + b"\0",
        b"dbgwrap1" + b"\xff" * 300,
        bytes(70_000),
    ):
        with pytest.raises((Damaged, KeyRefused)):
            key.unwrap(data, REPOSITORY)


def test_a_wrap_of_another_kind_is_refused() -> None:
    key = Secret(os.urandom(32))
    foreign = seal(key.reveal(), b"something else", ROOT_KEY, REPOSITORY)
    with pytest.raises(KeyRefused):
        MachineKey(key, "test").unwrap(foreign, REPOSITORY)
    with pytest.raises(KeyRefused):
        passphrase().unwrap(machine().wrap(ROOT_KEY, REPOSITORY), REPOSITORY)


def test_a_changed_ciphertext_with_a_new_checksum_is_still_damage() -> None:
    import hashlib

    key = os.urandom(32)
    body = bytearray(seal(key, b"header", ROOT_KEY, REPOSITORY)[:-32])
    body[-1] ^= 1
    forged = bytes(body) + hashlib.sha256(body).digest()
    assert header_of(forged, "test") == b"header"
    with pytest.raises(Damaged):
        unseal(key, forged, REPOSITORY, "test")
    body[10] ^= 1  # the header takes part in the key
    with pytest.raises(KeyRefused):
        unseal(key, bytes(body) + hashlib.sha256(body).digest(), REPOSITORY, "test")


# ------------------------------------------------------------------------------------------------- machine


def test_a_machine_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "machine.key"
    old = os.umask(0)
    try:
        key = MachineKey.create(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert os.listdir(tmp_path) == ["machine.key"]
    before = path.read_bytes()
    with pytest.raises(TargetExists):
        MachineKey.create(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["machine.key"]
    assert MachineKey.from_file(path).unwrap(key.wrap(ROOT_KEY, REPOSITORY), REPOSITORY) == ROOT_KEY
    assert before.hex() not in repr(vars(key)) + repr(key)
    with pytest.raises(Unreachable):
        MachineKey.create(tmp_path / "missing" / "machine.key")


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_key_that_others_can_get_at_is_not_used(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "machine.key"
    MachineKey.create(path)
    path.chmod(mode)
    with pytest.raises(KeyUnsafe) as caught:
        MachineKey.from_file(path)
    assert f"{mode:04o}" in caught.value.detail


def test_a_key_of_someone_else_is_not_used(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    path = tmp_path / "machine.key"
    MachineKey.create(path)
    os.chown(path, 12345, -1)
    with pytest.raises(KeyUnsafe):
        MachineKey.from_file(path)


def test_what_is_no_key_file(tmp_path: Path) -> None:
    path = tmp_path / "machine.key"
    with pytest.raises(KeyMissing):
        MachineKey.from_file(path)
    for content in (b"", b"short", bytes(33), bytes(100_000)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyUnsafe):
            MachineKey.from_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises((KeyUnsafe, KeyMissing)):
        MachineKey.from_file(path)
    real = tmp_path / "real"
    MachineKey.create(real)
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(KeyMissing):
        MachineKey.from_file(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(KeyUnsafe):
        MachineKey.from_file(tmp_path / "pipe")


def test_a_credential(tmp_path: Path) -> None:
    MachineKey.create(tmp_path / "dbguard-key")
    (tmp_path / "dbguard-key").chmod(0o440)  # so systemd shows a file that its access list gives to one more user
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    wrapped = MachineKey.from_credential("dbguard-key", environ).wrap(ROOT_KEY, REPOSITORY)
    [key] = open_wrappers({"type": "machine", "credential": "dbguard-key"}, environ)
    assert key.unwrap(wrapped, REPOSITORY) == ROOT_KEY
    (tmp_path / "dbguard-key").chmod(0o444)
    with pytest.raises(KeyUnsafe):
        MachineKey.from_credential("dbguard-key", environ)
    for name, where in (("other", environ), ("dbguard-key", {}), ("../dbguard-key", environ), ("", environ)):
        with pytest.raises(KeyMissing):
            MachineKey.from_credential(name, where)


# ------------------------------------------------------------------------------------------------- passphrase


def test_the_cost_is_stored_with_the_wrap() -> None:
    words = Secret(b"correct horse battery")
    wrapped = Passphrase(words, cost=CHEAP).wrap(ROOT_KEY, REPOSITORY)
    assert Passphrase(words).unwrap(wrapped, REPOSITORY) == ROOT_KEY
    default = Passphrase(words).wrap(ROOT_KEY, REPOSITORY)
    assert Cost.decode(header_of(default, "")[-28:-16], "") == Cost(64 << 10, 3, 4)
    assert Passphrase(words, cost=CHEAP).unwrap(default, REPOSITORY) == ROOT_KEY


@pytest.mark.parametrize(
    "cost",
    [Cost(1 << 21, 1, 1), Cost(64, 17, 1), Cost(1024, 1, 17), Cost(64, 0, 1), Cost(64, 1, 0), Cost(15, 1, 2)],
)
def test_a_wrap_that_asks_for_too_much_is_damage_before_it_costs_anything(cost: Cost) -> None:
    header = b"passphrase1" + cost.encode() + bytes(16)
    with pytest.raises(Damaged):
        Passphrase(Secret(b"correct horse battery")).unwrap(seal(bytes(32), header, b"x", b""), b"")


def test_short_passphrases_do_not_wrap() -> None:
    with pytest.raises(KeyUnsafe) as caught:
        Passphrase(Secret(b"eleven char"), cost=CHEAP).wrap(ROOT_KEY, REPOSITORY)
    assert "eleven" not in caught.value.message + caught.value.detail


def test_the_same_words_from_another_keyboard() -> None:
    composed, decomposed = "gr\u00fcne Wiese 12".encode(), "gru\u0308ne Wiese 12".encode()
    wrapped = Passphrase(Secret(composed), cost=CHEAP).wrap(ROOT_KEY, REPOSITORY)
    assert Passphrase(Secret(decomposed), cost=CHEAP).unwrap(wrapped, REPOSITORY) == ROOT_KEY
    raw = Secret(b"\xff\xfe not any text at all")
    assert Passphrase(raw).unwrap(Passphrase(raw, cost=CHEAP).wrap(ROOT_KEY, REPOSITORY), REPOSITORY) == ROOT_KEY


# ------------------------------------------------------------------------------------------------- age


def test_a_recipient_wraps_and_cannot_open() -> None:
    identity, recipient = new_identity()
    wrapped = AgeRecipient(recipient).wrap(ROOT_KEY, REPOSITORY)
    with pytest.raises(KeyMissing):
        AgeRecipient(recipient).unwrap(wrapped, REPOSITORY)
    assert AgeRecipient.from_identity(identity).unwrap(wrapped, REPOSITORY) == ROOT_KEY
    assert AgeRecipient.from_identity(identity).label == recipient


@pytest.mark.parametrize(
    "text", ["", "age1", "age1qqqqqqqqqqqqqqqqqqqq", "AGE-SECRET-KEY-1", "ssh-ed25519 AAAA", "age1\n"]
)
def test_what_is_no_recipient(text: str) -> None:
    with pytest.raises(KeyUnsafe):
        AgeRecipient(text).check()
    with pytest.raises(KeyUnsafe):
        AgeRecipient(text).wrap(ROOT_KEY, REPOSITORY)
    AgeRecipient(new_identity()[1]).check()


def test_an_identity_as_people_have_it() -> None:
    identity, recipient = new_identity()
    plain = identity.reveal().decode()
    spaced = " ".join(plain[place : place + 4] for place in range(0, len(plain), 4)).replace(" ", "\n", 3)
    keygen = f"# created: 2026-01-01T00:00:00Z\n# public key: {recipient}\n{plain}\n"
    for text in (plain, plain.lower(), spaced, f"\n {spaced} \r\n", keygen):
        assert AgeRecipient.from_identity(Secret(text.encode())).label == recipient
    swapped = plain[:-2] + plain[-1] + ("Q" if plain[-2] != "Q" else "P")
    for wrong in ("", plain[:-1], swapped, recipient, "\u00e4" * 74, plain + plain):
        with pytest.raises(KeyUnsafe) as caught:
            AgeRecipient.from_identity(Secret(wrong.encode()))
        assert wrong[20:] == "" or wrong[20:] not in caught.value.message + caught.value.detail


def test_what_is_inside_is_plain_for_stock_age(tmp_path: Path) -> None:
    identity, recipient = new_identity()
    wrapped = AgeRecipient(recipient).wrap(ROOT_KEY, REPOSITORY)
    assert wrapped.startswith(b"age-encryption.org/v1\n-> X25519 ")
    if shutil.which("age"):
        (tmp_path / "identity.txt").write_bytes(identity.reveal())
        command = ["age", "--decrypt", "-i", tmp_path / "identity.txt"]
        plain = subprocess.run(command, input=wrapped, capture_output=True, check=True).stdout
    else:
        import pyrage

        plain = pyrage.decrypt(wrapped, [pyrage.x25519.Identity.from_str(identity.reveal().decode())])
    assert json.loads(plain) == {"context": REPOSITORY.hex(), "secret": ROOT_KEY.hex()}


def test_something_else_that_was_encrypted_for_us_is_damage() -> None:
    import pyrage

    identity, recipient = new_identity()
    to = [pyrage.x25519.Recipient.from_str(recipient)]
    odd = (b'{"context": 1, "secret": 2}', b'{"context": "zz", "secret": ""}', b"[" * 50_000)
    for content in (b"", b"hello", b"[]", b"{}", *odd):
        with pytest.raises(Damaged):
            AgeRecipient.from_identity(identity).unwrap(pyrage.encrypt(content, to), REPOSITORY)


# ------------------------------------------------------------------------------------------------- the table


def test_the_key_of_a_job(tmp_path: Path) -> None:
    MachineKey.create(tmp_path / "machine.key")
    (tmp_path / "words").write_text("correct horse battery\n")
    (tmp_path / "words").chmod(0o600)
    recipient = new_identity()[1]
    machine_key = {"name": "main", "type": "machine", "path": str(tmp_path / "machine.key"), "recovery": [recipient]}
    words = {"name": "p", "type": "passphrase", "secret": {"file": str(tmp_path / "words")}, "recovery": []}
    assert [(key.kind, key.label) for key in open_wrappers(machine_key)] == [
        ("machine", str(tmp_path / "machine.key")),
        ("age", recipient),
    ]
    assert [(key.kind, key.label) for key in open_wrappers(words)] == [("passphrase", "passphrase")]
    for wrong, error in (
        ({**words, "secret": {}}, PolicyInvalid),
        ({**words, "secret": {"file": str(tmp_path / "none")}}, SecretMissing),
        ({"type": "tpm"}, PolicyInvalid),
        ({"type": "machine", "path": str(tmp_path / "none")}, KeyMissing),
    ):
        with pytest.raises(error):
            open_wrappers(wrong)


def test_the_wrap_survives_base64() -> None:
    key = machine()
    text = base64.b64encode(key.wrap(ROOT_KEY, REPOSITORY)).decode()
    assert key.unwrap(base64.b64decode(text), REPOSITORY) == ROOT_KEY


def test_what_is_wrong_with_a_typed_identity_is_said_without_quoting_it() -> None:
    identity = new_identity()[0].reveal().decode()
    swapped = next(
        identity[:n] + identity[n + 1] + identity[n] + identity[n + 2 :]
        for n in range(20, 70)
        if identity[n] != identity[n + 1]
    )
    cases = {
        identity[:-3]: "71 characters, should be 74",
        identity[:20] + "O" + identity[21:]: "Character 5 after AGE-SECRET-KEY-1 is 'O', which no recovery key has.",
        swapped: "their checksum is wrong",
    }
    for typed, said in cases.items():
        with pytest.raises(KeyUnsafe) as caught:
            AgeRecipient.from_identity(Secret(typed.encode()))
        assert said in caught.value.detail and typed[16:30] not in caught.value.detail
