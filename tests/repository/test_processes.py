"""Real processes on a real directory: writers that are killed with SIGKILL while somebody else sweeps."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dbguardd.repository import Repository
from dbguardd.storage.directory import Directory
from tests.repository.lifecycle_kit import Key

ROOT = Path(__file__).parents[2]
WRITER = """
import hashlib, os, sys, tempfile
from datetime import UTC, datetime
from pathlib import Path
from dbguardd.repository import Repository
from dbguardd.storage.directory import Directory
from tests.repository.lifecycle_kit import Key
repository = Repository.open(Directory(Path(sys.argv[1])), [Key()])
data = bytearray(os.urandom(300_000))
while True:
    at = int.from_bytes(os.urandom(2), "big")
    data[at : at + 100] = os.urandom(100)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with repository.saving(sys.argv[2], "sqlite", "copy", datetime.now(UTC)) as saving:
            saving.adopt("main", file.fileno(), 4096)
            made = saving.seal({})
    print(made.id, hashlib.sha256(data).hexdigest(), flush=True)
"""


def test_writers_are_killed_while_others_write_and_sweep(tmp_path):
    dice = random.Random(7)
    storage = Directory(tmp_path)
    repository = Repository.create(storage, [Key()], datetime.now(UTC))
    acknowledged: dict[str, str] = {}
    for _ in range(5):
        writers = [start(tmp_path, database) for database in ("orders", "users")]
        try:
            for writer in writers:
                for _ in range(dice.randrange(1, 4)):
                    id, digest = writer.stdout.readline().split()
                    acknowledged[id] = digest
            going = dice.sample(sorted(acknowledged), k=1)
            repository.expire({id: ["dice"] for id in going}, datetime.now(UTC), confirmed=True)
            acknowledged = {id: digest for id, digest in acknowledged.items() if id not in going}
            repository.sweep(datetime.now(UTC), timedelta(hours=24))
        finally:
            for writer in writers:
                writer.kill()
                for line in writer.communicate()[0].splitlines():
                    if len(line) == 26 + 1 + 64:  # acknowledged before it died
                        acknowledged[line[:26]] = line[27:]
    repository = Repository.open(storage, [Key()])
    there = {backup.id: backup for backup in repository.backups()}
    assert acknowledged.keys() <= there.keys()
    for id, digest in acknowledged.items():
        with repository.tree(there[id]) as tree, tree.read("main") as main:
            assert hashlib.sha256(main.read()).hexdigest() == digest
    assert [finding for finding in repository.check(True) if finding.severity != "unseen"] == []


def start(place: Path, database: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place), database],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
