"""The second reader: recover.py restores what dbguard stored, knows damage, and shares no code with it."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dbguardd.keys import AgeRecipient, new_identity, recovery_sheet
from dbguardd.repository import Repository, recover
from tests.repository.lifecycle_kit import World
from tests.storage.memory import Memory

READER = Path(recover.__file__)


def spill(storage: Memory, place: Path) -> Path:
    """Write a storage in memory into a directory."""
    for entry in storage.list(""):
        (place / entry.name).parent.mkdir(parents=True, exist_ok=True)
        (place / entry.name).write_bytes(storage.get(entry.name))
    return place


def root_key(repository: Repository, place: Path) -> Path:
    place.write_bytes(repository._records.keyring.root.key)
    return place


def test_it_imports_nothing_of_dbguard():
    tree = ast.parse(READER.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"cryptography", "zstandard", "blake3", "pyrage"}


def test_both_readers_agree_on_a_history(tmp_path, capsys):
    world = World()
    repository = world.create()
    for number in range(12):
        world.save(repository, "users" if number % 4 == 1 else "orders", full=number == 6)
    ids = [backup.id for backup in repository.backups()]
    place = spill(world.storage, tmp_path / "storage")
    key = root_key(repository, tmp_path / "root.key")
    assert recover.main(["--root-key", str(key), str(place), "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ids[::-1]
    for id in ids:
        target = tmp_path / "restored" / id
        assert recover.main(["--root-key", str(key), str(place), "restore", id, str(target)]) == 0
        assert hashlib.sha256((target / "main").read_bytes()).hexdigest() == world.prints[id]
        with repository.tree(repository.backup(id)) as tree, tree.read("notes") as notes:
            assert (target / "notes").read_bytes() == notes.read()


def test_the_copy_in_the_storage_runs_on_its_own(tmp_path):
    world = World()
    repository = world.create()
    backup = world.save(repository)
    place = spill(world.storage, tmp_path / "storage")
    key = root_key(repository, tmp_path / "root.key")
    copy = place / "recover/recover.py"
    assert copy.read_bytes() == READER.read_bytes()
    assert b"python3 recover.py KEY STORAGE restore" in (place / "recover/RECOVER.txt").read_bytes()
    command = [sys.executable, "-I", str(copy), "--root-key", str(key), str(place), "restore", backup.id]
    clean = {"PATH": os.environ["PATH"]}
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, env=clean, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert hashlib.sha256((tmp_path / "out/main").read_bytes()).hexdigest() == world.prints[backup.id]


def test_it_hands_out_no_wrong_byte_and_scrub_finds_all(tmp_path, capsys):
    world = World()
    repository = world.create()
    backup = world.save(repository)
    place = spill(world.storage, tmp_path / "storage")
    key = root_key(repository, tmp_path / "root.key")
    restore = ["--root-key", str(key), str(place), "restore", backup.id]
    pack = next((place / "packs").rglob("*/*"))
    whole = pack.read_bytes()
    for number, at in enumerate(
        (3, 30, 50, 80, 200, len(whole) // 2, len(whole) - 40, len(whole) - 11, len(whole) - 2)
    ):
        pack.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        target = tmp_path / str(number)
        assert recover.main([*restore, str(target)]) == 1
        assert recover.main([str(place), "scrub"]) == 1
        shutil.rmtree(target, ignore_errors=True)
    pack.write_bytes(whole)
    assert recover.main([str(place), "scrub"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("ok: ") and " none damaged" in said[-1]
    assert any(line.startswith("DAMAGED: ") for line in said)


@pytest.mark.parametrize("root_too", [True, False])
def test_with_a_key_scrub_sees_what_a_copy_made_meanwhile_lacks(tmp_path, capsys, root_too):
    world = World()
    repository = world.create()
    old = world.save(repository)
    before = {entry.name for entry in world.storage.list("packs/")}
    new = world.save(repository, full=root_too)
    place, key = spill(world.storage, tmp_path / "storage"), root_key(repository, tmp_path / "root.key")
    scrub = [str(place), "scrub"]
    assert recover.main(["--root-key", str(key), *scrub]) == 0
    assert capsys.readouterr().out.endswith(" none damaged\n")
    for entry in world.storage.list("packs/"):
        if (entry.name not in before) is root_too:
            (place / entry.name).unlink()
    assert recover.main(["--root-key", str(key), *scrub]) == 1
    said = capsys.readouterr().out
    assert f"incomplete: {new.id} of {new.database} lacks " in said and "copied while a backup ran?" in said
    assert (old.id not in said) is root_too
    assert "DAMAGED" in said and said.endswith(f"backups that cannot be restored: {1 if root_too else 2}\n")
    assert recover.main(scrub) == 0
    assert capsys.readouterr().out.endswith("; missing packs were not looked for: that needs a key\n")


def test_a_copy_that_takes_the_records_first_lacks_nothing(tmp_path):
    """As dbguard-recovery(7) says, whatever is backed up meanwhile."""
    world = World()
    repository = world.create()
    world.save(repository)
    key, place = root_key(repository, tmp_path / "root.key"), tmp_path / "storage"
    (place / "records").mkdir(parents=True)
    shutil.copytree(spill(world.storage, tmp_path / "live") / "records", place / "records", dirs_exist_ok=True)
    world.save(repository)
    shutil.copytree(
        spill(world.storage, tmp_path / "live"),
        place,
        ignore=lambda at, _: ["records"] * (at == str(tmp_path / "live")),
        dirs_exist_ok=True,
    )
    assert recover.main(["--root-key", str(key), str(place), "scrub"]) == 0
    assert len(list((place / "records/backup").iterdir())) == 1


def test_help_and_scrub_need_no_package(tmp_path):
    """Neither does what a person reads first fail on a machine that has nothing yet."""
    world = World()
    world.save(world.create())
    place = spill(world.storage, tmp_path / "storage")

    def bare(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-I", "-S", READER, *words], capture_output=True, text=True, check=False)

    shown = bare("--help")
    assert (shown.returncode, shown.stderr) == (0, "") and "Needs Python 3.11" in shown.stdout
    scrubbed = bare(str(place), "scrub")
    assert scrubbed.returncode == 0 and scrubbed.stdout.startswith("ok: "), scrubbed
    listed = bare(str(place), "list")
    assert listed.returncode == 1 and "pip install blake3 cryptography pyrage zstandard" in listed.stderr


def test_another_key_and_a_newer_format_are_refused(tmp_path, capsys):
    world = World()
    world.save(world.create())
    place = spill(world.storage, tmp_path / "storage")
    (tmp_path / "key").write_bytes(b"?" * 32)
    assert recover.main(["--root-key", str(tmp_path / "key"), str(place), "list"]) == 1
    assert "the key of another repository" in capsys.readouterr().err
    assert recover.main([str(place), "list"]) == 1
    text = (place / "repo.json").read_text()
    (place / "repo.json").write_text(text.replace('"min_reader":1', '"min_reader":2'))
    assert recover.main(["--root-key", str(tmp_path / "key"), str(place), "list"]) == 1
    assert "this program reads format 1; the repository needs " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "."])
def test_no_stream_is_restored_outside_of_the_target(tmp_path, name):
    with pytest.raises(recover.Unusable):
        recover.safe(tmp_path, name)


def with_an_id_of_zeros(count: int) -> bytes:
    return bytes(count) if count == 16 else os.urandom(count)


def test_a_repository_that_somebody_else_made_for_the_identity_has_another_mark(tmp_path, capsys):
    """The recipient and the id stand in clear in the storage: all that is needed to put other backups there."""
    identity, recipient = new_identity()
    (tmp_path / "identity.txt").write_bytes(identity.reveal())
    shown = []
    for name in ("mine", "forged"):
        world = World()
        made = Repository.create(
            world.storage,
            [AgeRecipient(recipient)],
            datetime.now(UTC),
            randomness=lambda n: bytes(n) if n == 16 else os.urandom(n),
        )
        place = spill(world.storage, tmp_path / name)
        assert recover.main(["--identity", str(tmp_path / "identity.txt"), str(place), "list"]) == 0
        shown.append(capsys.readouterr().err.split()[1].rstrip(":"))
        mark, reader = made.marks()
        assert (shown[-1], len(mark)) == (mark, 24)
        assert reader == hashlib.sha256(READER.read_bytes()).hexdigest()
        assert made.id == "00" * 16
    assert shown[0] != shown[1]


def test_what_was_private_stays_private_from_its_first_byte(tmp_path):
    world = World()
    repository = world.create()
    with repository.saving("app", "sqlite", "dump", world.clock.host) as saving:
        with saving.write("main") as stream:
            stream.write(b"secret" * 1000)
        saving.seal({"mode": 0o640})
    place, key = spill(world.storage, tmp_path / "storage"), root_key(repository, tmp_path / "root.key")
    id, target = repository.backups()[0].id, tmp_path / "restored"
    before = os.umask(0)
    try:
        assert recover.main(["--root-key", str(key), str(place), "restore", id, str(target)]) == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (target, *target.iterdir())}
    assert modes == {"restored": 0o700, "main": 0o640, "facts.dbguard.json": 0o600}


def test_the_whole_sheet_is_an_identity(tmp_path, capsys):
    identity, recipient = new_identity()
    world = World()
    repository = world.create(AgeRecipient(recipient))
    world.save(repository, "orders")
    place = spill(world.storage, tmp_path / "storage")
    sheet = recovery_sheet(identity, recipient, host="db1", made_at=datetime.now(UTC), repositories={"/srv": "ab" * 16})
    (tmp_path / "sheet.txt").write_text(sheet)
    assert recover.main(["--identity", str(tmp_path / "sheet.txt"), str(place), "list"]) == 0
    (tmp_path / "sheet.txt").write_text(identity.reveal().decode()[:-3])
    assert recover.main(["--identity", str(tmp_path / "sheet.txt"), str(place), "list"]) == 1
    assert "55 of 58 characters follow" in capsys.readouterr().err


def test_a_damaged_wrapped_key_does_not_hide_one_that_is_whole(tmp_path, capsys):
    identity, recipient = new_identity()
    (tmp_path / "identity.txt").write_bytes(identity.reveal())
    world = World()
    repository = world.create()
    backup = world.save(repository)
    repository.add_recipient(AgeRecipient(recipient))
    place = spill(world.storage, tmp_path / "storage")
    for content in (b"[]", b"[" * 60_000):  # under their own names, and one that is torn
        (place / "keys" / hashlib.sha256(content).hexdigest()).write_bytes(content)
    (place / "keys" / ("0" * 64)).write_bytes(b"torn")
    assert recover.main(["--identity", str(tmp_path / "identity.txt"), str(place), "list"]) == 0
    assert backup.id in capsys.readouterr().out
    for key in (place / "keys").iterdir():
        key.write_bytes(b"torn")
    assert recover.main(["--identity", str(tmp_path / "identity.txt"), str(place), "list"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_errors_of_the_system_are_told_in_words(tmp_path, capsys):
    assert recover.main(["--identity", "x", str(tmp_path), "list"]) == 1
    assert "contains no repo.json" in capsys.readouterr().err
    world = World()
    repository = world.create()
    world.save(repository, "orders")
    place, key = spill(world.storage, tmp_path / "storage"), root_key(repository, tmp_path / "root.key")
    id = repository.backups()[0].id
    assert recover.main(["--root-key", str(key), str(place), "restore", id, str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"recover: {tmp_path}: File exists\n"
