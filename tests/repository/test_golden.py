"""Repositories that earlier versions wrote: every later version reads them, with both readers, for ever.

golden/format1 was written by this file run as a program (python -m tests.repository.test_golden DIRECTORY).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest

from dbguardd.keys import AgeRecipient, Cost, MachineKey, Passphrase, Secret
from dbguardd.repository import Proof, Repository, recover
from dbguardd.storage.directory import Directory
from tests.repository.lifecycle_kit import START
from tests.repository.test_recover import spill
from tests.storage.layers import ReadOnly
from tests.storage.memory import Memory

GOLDEN = Path(__file__).with_name("golden")
FORMATS = ["format1"]


def keys(place: Path) -> dict:
    return {
        "machine": lambda: MachineKey(Secret((place / "machine.key").read_bytes()), "machine.key"),
        "passphrase": lambda: Passphrase(Secret((place / "passphrase.txt").read_bytes().strip())),
        "age": lambda: AgeRecipient.from_identity(Secret((place / "identity.txt").read_bytes())),
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["machine", "passphrase", "age"])
def test_dbguard_reads_it(form, kind):
    place = GOLDEN / form
    expected = json.loads((place / "expected.json").read_text())
    repository = Repository.open(ReadOnly(Directory(place / "storage")), [keys(place)[kind]()])
    assert [backup.id for backup in repository.backups()] == [row["id"] for row in expected["backups"]]
    for row in expected["backups"]:
        backup = repository.backup(row["id"])
        assert (backup.database, backup.kind, backup.seq, backup.raw_facts) == (
            *(row["database"], row["kind"], row["seq"], row["facts"]),
        )
        with repository.tree(backup) as tree:
            found = {}
            for name in tree.names():
                with tree.read(name) as stream:
                    found[name] = hashlib.sha256(stream.read()).hexdigest()
        assert found == row["streams"]
    assert {id: repository.fingerprint(id) for id in expected["prints"]} == expected["prints"]
    assert [(proof.backup, proof.grade) for proof in repository.proofs()] == [tuple(p) for p in expected["proofs"]]
    assert {id: [hold.reason for hold in holds] for id, holds in repository.holds().items()} == expected["holds"]
    assert [gone.backup for gone in repository.expired()] == expected["expired"]
    assert [finding for finding in repository.check(True) if finding.severity != "unseen"] == []


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "option", ["--machine-key=machine.key", "--identity=identity.txt", "--passphrase-file=passphrase.txt"]
)
@pytest.mark.parametrize("reader", ["of today", "of its time"])
def test_recover_reads_it(form, option, reader, tmp_path):
    place = GOLDEN / form
    expected = json.loads((place / "expected.json").read_text())
    name, _, file = option.partition("=")
    program = Path(recover.__file__) if reader == "of today" else place / "storage/recover/recover.py"
    scope: dict = {"__name__": "recover"}
    exec(compile(program.read_text(), str(program), "exec"), scope)
    for row in expected["backups"]:
        target = tmp_path / row["id"]
        assert scope["main"]([name, str(place / file), str(place / "storage"), "restore", row["id"], str(target)]) == 0
        found = {name: hashlib.sha256((target / name).read_bytes()).hexdigest() for name in row["streams"]}
        assert found == row["streams"]


def make(place: Path) -> None:
    """Write a golden repository of today's format: every kind of object, small."""
    dice, storage = random.Random(20260301), Memory(lambda: START)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "machine.key").write_bytes(os.urandom(32))
    (place / "passphrase.txt").write_text("größer als zwölf Zeichen\n")
    (place / "identity.txt").write_text(_identity())
    cheap = Passphrase(Secret((place / "passphrase.txt").read_bytes().strip()), cost=Cost(64, 1, 1))
    wrappers = [keys(place)["machine"](), cheap, keys(place)["age"]()]
    repository = Repository.create(storage, wrappers, START)
    main, notes, rows = bytearray(70_000), b"line\n" * 300, []
    main[:3000], main[66_000:67_000] = dice.randbytes(3000), dice.randbytes(1000)

    for number, (database, full) in enumerate(
        (("orders", False), ("orders", False), ("orders", True), ("users", False))
    ):
        main[5000 * number + 17] ^= 255
        with tempfile.TemporaryFile() as file:
            file.write(main)
            file.flush()
            moment = START + timedelta(minutes=number)
            with repository.saving(database, "sqlite", "copy", moment, full=full, note="golden") as saving:
                saving.adopt("main", file.fileno(), 4096)
                with saving.write("notes.txt", stamp="v1") as stream:
                    stream.write(notes)
                backup = saving.seal({"number": number})
        streams = {"main": hashlib.sha256(main).hexdigest(), "notes.txt": hashlib.sha256(notes).hexdigest()}
        rows.insert(0, {"id": backup.id, "database": database, "kind": backup.kind, "seq": backup.seq,
                        "facts": dict(backup.raw_facts), "streams": streams})  # fmt: skip
    first, second, third = (row["id"] for row in rows[:0:-1])
    repository.attest(second, {"tables": {"t": {"rows": 3}}}, START)
    repository.add_proof(Proof(second, START, "proven", 0.25, ({"name": "opens", "outcome": "ok"},), "0.1.0"))
    repository.hold(second, "kept for ever", "uid 0", START)
    repository.hold(third, "for a while", "uid 0", START)
    repository.release(third, "uid 0", START)
    repository.expire({first: ["keep.last"]}, START)
    repository.sweep(START, timedelta(hours=24))
    expected = {
        "backups": [row for row in rows if row["id"] != first],
        "prints": {second: {"tables": {"t": {"rows": 3}}}, third: None},
        "proofs": [[second, "proven"]],
        "holds": {second: ["kept for ever"]},
        "expired": [first],
    }
    (place / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    spill(storage, place / "storage")


def _identity() -> str:
    from dbguardd.keys import new_identity

    return new_identity()[0].reveal().decode() + "\n"


if __name__ == "__main__":
    make(Path(sys.argv[1]))
