"""A restore over a cluster that ends early, killed or on a full disk, wherever: the undo brings every byte back."""

import os
import shutil
import signal
import subprocess
import tempfile
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import fastcdc.fastcdc_cy  # noqa: F401 - the owner of the server may not read where it lies: it is loaded before
import pytest
from engine_memory import no_progress
from postgres_world import Cluster, as_owner, bin_directory, owner

from dbguardd.engines.base import REPLACED
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.errors import NoSpace
from dbguardd.keys import MachineKey
from dbguardd.repository import Repository
from dbguardd.storage import open_storage

_CALLS = 500  # of progress, from one place where it ends to the next: there is one for each file


@pytest.fixture(scope="module")
def disk():
    """A small file system, and the cluster on it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if bin_directory() is None:
        pytest.skip("PostgreSQL is not installed: NOTHING of its engine is tested (apt-get install postgresql)")
    place = Path(tempfile.mkdtemp(prefix="dbg-pg-"))
    words = ["mount", "-t", "tmpfs", "-o", f"mode=0755,uid={owner()},size=500m", "tmpfs", place]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        place.rmdir()
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    live = Cluster(place, bin_directory())
    try:
        live.make("--data-checksums")
        live.start()
        yield live
    finally:
        live.stop()
        subprocess.run(["umount", place], check=True)
        place.rmdir()


class Kept:
    """A repository beside, with a backup of the cluster and one of what was there when it was stopped."""

    def __init__(self, live):
        self.live, self.place = live, Path(tempfile.mkdtemp(prefix="dbg-"))
        os.chown(self.place, owner(), -1)
        as_owner(self.create)

    def create(self):
        Repository.create(self._storage(), [MachineKey.create(self.place / "key")], datetime.now(UTC))

    def _storage(self):
        return open_storage({"path": str(self.place / "store")}, create=True)

    def _opened(self):
        engine = open_postgresql({"url": self.live.url, "staging": "/nonexistent", "method": "pages"})
        return engine, Repository.open(self._storage(), [MachineKey.from_file(self.place / "key")])

    def store(self, facts=None):
        engine, repository = self._opened()
        with repository.saving("shop", "postgresql", "pages", datetime.now(UTC)) as sink:
            if facts is None:
                made = engine.snapshots.dump(sink, no_progress, compared=False)
            else:
                made = engine.delta_restore.save(self.live.data, facts, sink, no_progress)
            return sink.seal(made)

    def overwrite(self, backup, there, progress=no_progress):
        engine, repository = self._opened()
        if there is None:
            with repository.tree(backup) as tree:
                engine.delta_restore.overwrite(tree, self.live.data, progress)
        else:
            with repository.tree(there) as known, repository.tree(backup, there=known) as tree:
                engine.delta_restore.overwrite(tree, self.live.data, progress)
        engine.delta_restore.publish(self.live.data)


def state(live):
    """All files, but those of the log: used ones that wait to be written anew do not count."""
    names = (path for path in live.data.rglob("*") if path.is_file() and path.parent.name != "pg_wal")
    return {str(path): path.read_bytes() for path in names if path.name not in ("postmaster.opts", "RESTORE.txt")}


def ending(live, how, at):
    """Progress that ends the process at its call number `at`, or fills the disk."""
    calls = count(1)

    def progress(step, done, total):
        if next(calls) != at:
            return
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        free = os.statvfs(live.place)
        with (live.place / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)

    return progress


@pytest.mark.parametrize("how", ["killed", "full"])
def test_wherever_it_ends_the_undo_brings_back_what_was_there(disk, how):
    live = disk
    if live.process is None:
        live.start()
    live.sql("DROP TABLE IF EXISTS newer, lost, changed")
    for name in ("lost", "changed"):
        live.sql(f"CREATE TABLE {name} AS SELECT n, md5(n::text) FROM generate_series(1, 99999) n")
    kept = Kept(live)
    try:
        full = as_owner(kept.store)
        live.sql("DROP TABLE lost; CREATE TABLE newer AS SELECT 1 AS n; DELETE FROM changed WHERE n % 999 = 0")
        live.stop(signal.SIGINT)
        before = state(live)
        safe = as_owner(kept.store, full.raw_facts)
        ended = 0
        for at in range(1, 1 << 20, _CALLS):
            try:
                as_owner(kept.overwrite, full, safe, ending(live, how, at))
            except pytest.fail.Exception as error:
                assert how == "killed" and "-9" in str(error)
            except NoSpace as error:
                assert how == "full" and error.facts[REPLACED] and "in-restore" in error.detail
                (live.place / "ballast").unlink()
            else:
                break  # it was over before
            ended += 1
            assert not live.data.exists() and live.data.with_name("data.in-restore").exists()
            as_owner(kept.overwrite, safe, None)
            assert state(live) == before
        assert ended >= 2
        (live.place / "ballast").unlink(missing_ok=True)
        as_owner(kept.overwrite, safe, None)
        assert state(live) == before
        live.start()
        assert live.sql("SELECT n, (SELECT count(*) FROM changed) FROM newer") == "1|99899"
    finally:
        shutil.rmtree(kept.place)
