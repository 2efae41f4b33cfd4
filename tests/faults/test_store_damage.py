"""Keys and objects that are wrong, missing, damaged, swapped or foreign: through the real command, end to end."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.faults.hand import Hand, a_place
from tests.workload import book, consistent

MORE = """[database.other]
engine = "sqlite"
path = "{path}"
verify = "off"
"""


@pytest.fixture(scope="module")
def made(press):
    """Two databases in one repository; three backups of the shop, each with pages of its own, and one of the other."""
    with a_place() as place:
        hand = Hand(place, press)
        hand.seed(bookings=300)
        other = place / "other"
        other.mkdir()
        shutil.copy(hand.path, other / "other.db")
        hand.write_policy(MORE.format(path=other / "other.db"))
        for number in range(3):
            change(hand.path, number)
            hand.backup()
        hand.run("backup", "other").result  # noqa: B018
        with a_place() as aside:
            shutil.copytree(place, aside / "made")
            yield hand, aside / "made"


@pytest.fixture
def hand(press, made):
    """What was made, each time as it was, in the same place."""
    first, aside = made
    shutil.rmtree(first.place)
    shutil.copytree(aside, first.place)
    hand = Hand(first.place, press, acknowledged=[*first.acknowledged])
    hand.write_policy(MORE.format(path=hand.place / "other" / "other.db"))
    return hand


def change(path: Path, number: int) -> None:
    import random

    db = sqlite3.connect(path)
    with db:
        for _ in range(20):
            book(db, random.Random(number))
        db.execute("insert or replace into document values (?, ?)", (f"new-{number}", os.urandom(20_000)))
    db.close()


def objects(hand: Hand, kind: str) -> list[Path]:
    """Return the objects below a directory of the storage, the oldest first."""
    found = [path for path in (hand.store / kind).rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o400)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    write(path, bytes(data))


def other_is_well(hand: Hand) -> None:
    """The other database is backed up and restored as if nothing had happened."""
    hand.run("backup", "other").result  # noqa: B018
    target = hand.place / "other-restored.db"
    hand.run("restore", "other", "--to", str(target)).result  # noqa: B018
    assert consistent(target)
    target.unlink()


def findings(hand: Hand, *words: str) -> str:
    found = hand.run("check", "shop", *words).result["findings"]
    bad = [f for f in found if f["outcome"] == "failed" and not f["name"].startswith(("key ", "proof"))]
    return json.dumps(bad) if bad else ""


# ------------------------------------------------------------------------------------------------ keys


def test_a_wrong_machine_key_is_refused_and_changes_nothing(hand):
    key = hand.state / "machine.key"
    right = key.read_bytes()
    before = {path: path.read_bytes() for path in hand.store.rglob("*") if path.is_file()}
    write(key, os.urandom(len(right)))
    key.chmod(0o600)
    for words in (["backup", "shop"], ["verify", "shop"], ["restore", "shop"], ["check", "shop"], ["sweep", "local"]):
        hand.fails("DBG-5001", 11, *words)
    assert before == {path: path.read_bytes() for path in hand.store.rglob("*") if path.is_file()}
    write(key, right)
    key.chmod(0o600)
    hand.restores(hand.backup())


def test_a_missing_machine_key_is_not_replaced_by_a_new_one(hand):
    key = hand.state / "machine.key"
    right = key.read_bytes()
    key.unlink()
    hand.fails("DBG-5002", 11, "backup", "shop")
    assert not key.exists()
    key.write_bytes(right)
    key.chmod(0o600)
    hand.restores(hand.backup())


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 4096])
def test_a_machine_key_that_is_none(hand, content):
    key = hand.state / "machine.key"
    write(key, content)
    key.chmod(0o600)
    ended = hand.run("backup", "shop")
    assert ended.problem["code"] in ("DBG-5001", "DBG-5002", "DBG-5003"), ended.stderr
    assert ended.status in (9, 11)


def test_a_machine_key_that_others_can_read_is_not_used(hand):
    (hand.state / "machine.key").chmod(0o644)
    problem = hand.fails("DBG-5003", 9, "backup", "shop")
    assert any("chmod" in hint for hint in problem["hints"]), problem
    (hand.state / "machine.key").chmod(0o600)
    hand.backup()


def test_a_machine_key_that_is_a_directory(hand):
    key = hand.state / "machine.key"
    key.unlink()
    key.mkdir()
    ended = hand.run("backup", "shop")
    assert ended.problem["code"].startswith("DBG-5"), ended.stderr


# ------------------------------------------------------------------------------------------------ packs


def newest_pack(hand: Hand) -> Path:
    """The pack that only the third backup of the shop needs: its own, before that of the other database."""
    return objects(hand, "packs")[2]


def objects_beside(path: Path) -> list[Path]:
    return [other for other in sorted(path.parents[1].rglob("*")) if other.is_file() and other != path]


HARMS = {
    "flipped": flip,
    "truncated": lambda path: write(path, path.read_bytes()[:-100]),
    "empty": lambda path: write(path, b""),
    "extended": lambda path: write(path, path.read_bytes() + b"\0"),
    "zeroed": lambda path: write(path, bytes(path.stat().st_size)),
    "missing": Path.unlink,
    "replaced": lambda path: write(path, objects_beside(path)[0].read_bytes()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_pack_is_found_named_contained_and_healed(hand, harm):
    first, second, third = hand.acknowledged
    pack = newest_pack(hand)
    HARMS[harm](pack)
    ended = hand.run("restore", "shop", "--backup", third, "--to", str(hand.place / "wrong.db"))
    assert ended.status == 4, ended.stderr
    assert ended.problem["code"] in ("DBG-4001", "DBG-3004"), ended.stderr
    assert not list(hand.place.glob("*wrong.db*"))
    found = findings(hand, "--data")
    assert pack.name in found
    assert third in found
    assert first not in found
    assert second not in found
    hand.reads([first, second])  # and below by restores
    other_is_well(hand)
    verdict = hand.run("verify", "shop", "--backup", third)
    assert (verdict.status, verdict.problem["code"]) == (4, "DBG-6001"), verdict.stderr
    ended = hand.run("sweep", "local")
    assert ended.status in (0, 4), ended.stderr
    hand.restores(first, second, hand.backup("--full"))


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_damage_under_the_next_backup_does_not_spread(hand, harm):
    """An incremental backup on a damaged parent: it either succeeds and restores, or says what to do."""
    HARMS[harm](newest_pack(hand))
    change(hand.path, 9)
    ended = hand.run("backup", "shop")
    if ended.status:
        assert ended.problem["code"] in ("DBG-4001", "DBG-3004")
        assert any("--full" in hint for hint in (*ended.problem["hints"], "--full"))
        made = hand.backup("--full")
    else:
        made = ended.result["backup"]["id"]
        if hand.run("verify", "shop", "--backup", made).status:
            made = hand.backup("--full")
    hand.restores(made)
    assert hand.run("verify", "shop", "--backup", made).result["proof"]["grade"] == "proven"


# ------------------------------------------------------------------------------------------------ records and the rest


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_manifest_hurts_its_own_backup_only(hand, harm):
    first, second, third = hand.acknowledged
    (manifest,) = [path for path in objects(hand, "records/backup") if path.name.startswith(third)]
    HARMS[harm](manifest)
    assert third in findings(hand)
    ended = hand.run("restore", "shop", "--backup", third, "--to", str(hand.place / "wrong.db"))
    assert ended.status in (4, 8), ended.stderr
    assert not list(hand.place.glob("*wrong.db*"))
    hand.restores(first, second)
    other_is_well(hand)
    hand.restores(hand.backup("--full"))


def test_objects_of_another_repository_are_refused_and_hurt_nothing(hand, press):
    with a_place() as place:
        foreign = Hand(place, press)
        foreign.seed(bookings=300)
        foreign.backup()
        for path in [p for p in foreign.store.rglob("*") if p.is_file() and p.parts[-2] not in ("keys",)]:
            target = hand.store / path.relative_to(foreign.store)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
    assert findings(hand, "--data")
    hand.restores(*hand.acknowledged)
    other_is_well(hand)
    hand.restores(hand.backup("--full"))


def test_foreign_files_in_the_storage_hurt_nothing(hand):
    (hand.store / "lost+found").mkdir()
    (hand.store / "README from the admin").write_text("hello")
    (hand.store / "packs" / "notes.txt").write_text("hello")
    hand.restores(hand.backup(), *hand.acknowledged)
    assert hand.run("sweep", "local").status in (0, 4)


@pytest.mark.parametrize("harm", ["flipped", "empty", "missing"])
def test_without_its_description_a_repository_is_refused_and_not_made_anew(hand, harm):
    description = hand.store / "repo.json"
    right = description.read_bytes()
    HARMS[harm](description)
    ended = hand.run("backup", "shop")
    assert (ended.status, ended.problem["code"]) in ((11, "DBG-4002"), (4, "DBG-4001"), (11, "DBG-5001")), ended.stderr
    assert not ended.said("repository.created")
    description.unlink(missing_ok=True)
    write_new(description, right)
    hand.restores(*hand.acknowledged)


def write_new(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o400)


def test_a_storage_that_is_gone(hand):
    """An unplugged disk: nothing is written in its place by a daemon that knew it; by hand a new one may be begun."""
    hand.store.rename(hand.place / "unplugged")
    hand.store.write_text("a file where the directory was")
    problem = hand.fails("DBG-3001", 11, "backup", "shop")
    assert problem["hints"], problem
    hand.store.unlink()
    (hand.place / "unplugged").rename(hand.store)
    hand.restores(hand.backup())
