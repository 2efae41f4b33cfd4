"""Credentials: the daemon tells which it was given and which its policy names; the store is root's alone."""

import os
from pathlib import Path

import pytest

from dbguardctl.credstore import Credstore
from dbguardd.errors import ConfirmMissing, GuardError, NotFound, Usage
from tests.process.house import House

POLICY = """
[key.main]
type = "machine"
credential = "machine"
[key.hr]
type = "passphrase"
secret = { credential = "hr-words" }
"""


def given(house: House, **secrets: bytes) -> str:
    """Make what systemd makes for a service: a directory with a file for each credential."""
    place = house.place / "credentials"
    place.mkdir(mode=0o700, exist_ok=True)
    for name, secret in secrets.items():
        (place / name).write_bytes(secret)
        (place / name).chmod(0o400)
    return str(place)


def test_what_was_given_and_what_is_missing(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"), more=POLICY)
    house.start(CREDENTIALS_DIRECTORY=given(house, machine=bytes(range(32)), spare=b"x"))
    assert house.does("backup", "app")["proof"]["grade"] == "proven"
    rows = {row["name"]: row for row in house.api.get("credentials")["credentials"]}
    assert {name: row["used_by"] for name, row in rows.items()} == {
        "hr-words": ["key hr"],
        "machine": ["key main"],
        "spare": [],
    }
    assert [name for name, row in rows.items() if row["given_at"] is None] == ["hr-words"]
    shown = house.ctl("credential", "list").out.splitlines()
    assert shown[0].split() == ["CREDENTIAL", "SET", "USED", "BY", "DBGUARDD"]
    assert [line.split()[0] for line in shown[1:4]] == ["hr-words", "machine", "spare"]
    assert "does not have it" in shown[1] and "has it" in shown[2]
    if os.geteuid() == 0:
        assert house.fails("DBG-7001", 10, "credential", "rm", "machine")["detail"].startswith("key main")
        assert house.fails("DBG-0004", 8, "credential", "rm", "spare")
    house.is_sound()


def test_a_missing_credential_says_how_it_is_set(house: House) -> None:
    house.database("app")
    house.protects(house.table("app"), more=POLICY)
    house.start(CREDENTIALS_DIRECTORY=given(house))
    problem = house.fails("DBG-5002", 11, "backup", "app")
    assert "dbguardctl credential set machine --random" in problem["hints"]


def test_only_root_may_set_one(house: House, users: list[int]) -> None:
    house.start()
    problem = house.fails("DBG-0012", 5, "credential", "set", "words", uid=users[0])
    assert problem["hints"] == ["sudo dbguardctl credential set words"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a store")
def test_names_sizes_and_what_is_there(tmp_path: Path) -> None:
    store = Credstore(tmp_path)
    assert store.names() == {}
    for name in ("", ".", "../x", "a b", "a/b", "x" * 201, "ü", "a\n"):
        with pytest.raises(Usage):
            store.set(name, b"secret", replace=False)
    for secret in (b"", b"x" * 65537):
        with pytest.raises(Usage):
            store.set("words", secret, replace=False)
    with pytest.raises(NotFound):
        store.remove("words")
    place = tmp_path / "etc" / "credstore.encrypted"
    place.mkdir(parents=True)
    (place / "dbguard.words").write_bytes(b"sealed")
    (place / "of-others").write_bytes(b"sealed")
    assert list(store.names() or ()) == ["words"]
    with pytest.raises(ConfirmMissing):
        store.set("words", b"secret", replace=False)
    assert (place / "dbguard.words").read_bytes() == b"sealed"
    assert not (tmp_path / "etc" / "systemd").exists()
    (place / "dbguard.stuck").mkdir()
    with pytest.raises(GuardError, match="stuck: cannot be removed"):
        store.remove("stuck")
    (tmp_path / "other" / "etc").mkdir(parents=True)
    (tmp_path / "other" / "etc" / "credstore.encrypted").write_bytes(b"")
    with pytest.raises(Usage, match="words: cannot be written"):  # a disk that is not full is not said to be
        Credstore(tmp_path / "other").set("words", b"secret", replace=False)
