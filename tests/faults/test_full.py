"""Full disks: under the storage, under staging, under the target of a restore. Real file systems of a few MB (tmpfs).

At every remaining size a backup is either made or refused with numbers; what was there stays good; once there is room
again the next run succeeds. Needs root to mount; else these tests are skipped.
"""

import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from dbguardd.engines import ENGINES
from dbguardd.errors import NoSpace
from tests.engines.engine_memory import MemorySink
from tests.engines.sqlite_world import shell, using
from tests.faults.hand import Hand, a_place
from tests.workload import consistent

MB = 1 << 20


@contextmanager
def a_disk(place: Path, options: str):
    """A file system of its own, mounted at `place`."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: full disks (only root can mount a file system)")
    place.mkdir(mode=0o711, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=711,{options}", "tmpfs", place]
    done = subprocess.run(mount, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: full disks ({done.stderr.decode().strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def room(place: Path) -> int:
    """Return the bytes that are free."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@contextmanager
def filled(place: Path, left: int):
    """Fill a disk until only so many bytes are left, also if some become free late; free it again."""
    filler, size = place / "filler", 0
    with filler.open("wb") as file:
        while (more := room(place) - left) > 0:
            os.posix_fallocate(file.fileno(), size, more)
            size += more
    try:
        yield
    finally:
        filler.unlink()


def change(path: Path, size: int = 30_000) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute("insert or replace into document values ('new', ?)", (os.urandom(size),))
    db.close()


def told(problem) -> None:
    """The problem says how much is missing, in bytes."""
    assert re.search(r"\d{3,} bytes", problem["detail"]), problem


SIZES = [0, 4096, 8192, 16384, 24576, 32768, 45056, 53248, 61440, 81920, 131072, 262144]


@pytest.mark.parametrize("left", SIZES)
def test_a_full_storage(press, left):
    with a_place() as place, a_disk(place / "store", "size=3m"):
        hand = Hand(place, press)
        hand.seed(bookings=300)
        first = hand.backup()
        change(hand.path)
        with filled(hand.store, left):
            ended = hand.run("backup", "shop")
            if ended.status:
                assert (ended.status, ended.problem["code"]) == (11, "DBG-3002"), ended.stderr
                told(ended.problem)
            hand.is_tidy()
            listed = hand.listed()
            assert set(hand.acknowledged) <= set(listed)
            hand.reads(listed)
            verdict = hand.run("verify", "shop", "--backup", first)
            assert verdict.problem.get("code") in (None, "DBG-3002"), verdict.stderr
        hand.restores(*listed, hand.backup())
        hand.is_clean()
        assert not [path for path in hand.store.rglob(".*")]


def test_a_storage_without_inodes(press):
    with a_place() as place, a_disk(place / "store", "size=20m,nr_inodes=60"):
        hand = Hand(place, press)
        hand.seed(bookings=300)
        made = [hand.backup()]
        while True:
            change(hand.path)
            ended = hand.run("backup", "shop")
            if ended.status:
                break
            made.append(ended.result["backup"]["id"])
        assert ended.problem["code"] == "DBG-3002", ended.stderr
        hand.is_tidy()
        hand.reads(hand.listed())
        assert set(made) <= set(hand.listed())


@pytest.mark.parametrize("limit", ['keep_free = "60%"', 'max_size = "100KB"'])
def test_what_gives_space_back_may_use_the_space_that_is_kept(press, limit):
    """Else a storage that has reached its limit could never free itself."""
    with a_place() as place, a_disk(place / "store", "size=3m"):
        hand = Hand(place, press, settings="keep = { last = 1 }\nmin_proven = 1", storage='grace = "0s"')
        hand.seed(bookings=300)
        for _ in range(3):
            change(hand.path)
            hand.backup("--full")
        policy = place / "policy.toml"
        policy.write_text(policy.read_text().replace('keep_free = "0B"', limit))
        with filled(hand.store, MB):
            told(hand.fails("DBG-3002", 11, "backup", "shop"))
            proof = hand.run("verify", "shop").result["proof"]
            assert proof["grade"] == "proven"
            hand.run("expire", "shop", "--confirm", "shop").result  # noqa: B018
            freed = hand.run("sweep", "local").result["freed_bytes"] + hand.run("sweep", "local").result["freed_bytes"]
            assert freed > 0
        hand.restores(*hand.listed())


def test_a_sweep_frees_a_disk_without_a_single_byte_left(press):
    with a_place() as place, a_disk(place / "store", "size=3m"):
        hand = Hand(place, press, settings="keep = { last = 1 }\nmin_proven = 1", storage='grace = "0s"')
        hand.seed(bookings=300)
        for _ in range(3):
            change(hand.path)
            hand.backup("--full")
        hand.run("expire", "shop", "--confirm", "shop").result  # noqa: B018
        hand.run("sweep", "local").result  # noqa: B018
        change(hand.path)
        with filled(hand.store, 0):
            assert room(hand.store) == 0
            hand.fails("DBG-3002", 11, "backup", "shop")
            assert hand.run("sweep", "local").result["freed_bytes"] > 0
            hand.restores(hand.backup())


@pytest.mark.parametrize("left", [0, 4096, 65536, 131072, 200_000, 262144, 2 * MB])
def test_full_staging(press, left):
    with a_place() as place, a_disk(place / "state", "size=4m"):
        hand = Hand(place, press)
        hand.seed()
        first = hand.backup()
        change(hand.path)
        with filled(hand.state, left):
            for words in (["backup", "shop"], ["verify", "shop"]):
                ended = hand.run(*words)
                if left > MB:
                    assert ended.status == 0, ended.stderr
                elif ended.status:
                    assert (ended.status, ended.problem["code"]) == (11, "DBG-3002"), ended.stderr
                    told(ended.problem)
                assert list((hand.state / "staging").iterdir()) == []
                assert not any(proof["grade"] != "proven" for proof in ended.said("backup.graded"))
        hand.is_tidy()
        hand.restores(first, hand.backup())


def test_a_test_restore_never_takes_the_last_room(press):
    """The live database may lie on the same disk."""
    with a_place() as place, a_disk(place / "state", "size=8m"):
        hand = Hand(place, press)
        hand.seed()
        hand.backup()
        size = hand.path.stat().st_size
        with filled(hand.state, size + 16 * 4096):  # it would fit
            refused = hand.run("verify", "shop")
            assert (refused.status, refused.problem["code"]) == (11, "DBG-3002"), refused.stderr
            assert "must stay" in refused.problem["detail"] and refused.said("backup.graded") == []
            told(refused.problem)
        assert hand.run("verify", "shop").result["proof"]["grade"] == "proven"


@pytest.mark.parametrize("method", ["pages", "dump"])
def test_a_full_target(press, method):
    with a_place() as place, a_disk(place / "target", "size=4m"):
        hand = Hand(place, press, settings=f'method = "{method}"')
        hand.seed()
        made, target = hand.backup(), place / "target"
        refused = 0
        for left in [0, 4096, 40_960, 131_072, 200_704, 262_144, 300_000, 303_104, 401_408, 2 * MB]:
            with filled(target, left):
                ended = hand.run("restore", "shop", "--backup", made, "--to", str(target / "shop.db"))
                if ended.status:
                    refused += 1
                    assert (ended.status, ended.problem["code"]) == (11, "DBG-3002"), ended.stderr
                    assert ended.problem["detail"]
                    assert [path.name for path in target.iterdir()] == ["filler"]
                else:
                    assert consistent(target / "shop.db")
                    for path in target.glob("shop.db*"):
                        path.unlink()
                    assert [path.name for path in target.iterdir()] == ["filler"]
        assert refused > 4
        assert ended.status == 0


def test_a_database_that_a_full_disk_emptied_never_counts_as_proven(press):
    """The application's disk is full, its file is truncated to nothing: no backup of that may ever look good."""
    with a_place() as place, a_disk(place / "live", "size=2m"):
        hand = Hand(place, press)
        hand.seed(bookings=300)
        good = hand.backup()
        hand.run("verify", "shop").result  # noqa: B018
        copy = place / "copy.db"
        shutil.copy(hand.path, copy)
        with filled(hand.live, 0):
            for side in hand.live.glob("shop.db*"):
                side.unlink()
            (hand.live / "more").write_bytes(bytes(room(hand.live)))
            with pytest.raises(OSError, match="No space"):
                shutil.copyfile(copy, hand.path)
            assert hand.path.stat().st_size == 0
            assert hand.run("backup", "shop").problem["code"] == "DBG-2002"
            graded = hand.run("verify", "shop").result["proof"]
            assert (graded["id"], graded["grade"]) == (good, "proven")
        hand.restores(good)


def test_a_copy_ends_before_the_wal_fills_the_disk_of_its_application(tmp_path):
    """The WAL cannot be reset while the copy is made; the application needs what is left."""
    with a_disk(tmp_path / "disk", "size=40m") as disk:
        path = disk / "app.db"
        make = "PRAGMA journal_mode = wal; CREATE TABLE document (body);"
        shell(path, make + f"INSERT INTO document VALUES (randomblob({MB}));" * 14)
        with using(path, "idle"):

            def write(step, done, total):
                if step == "snapshot" and done:
                    shell(path, f"UPDATE document SET body = randomblob({3 * MB}) WHERE rowid = 1")

            settings = {"path": str(path), "staging": str(tmp_path / "staging"), "beat_seconds": 0, "step_bytes": MB}
            engine = ENGINES["sqlite"](settings).snapshots
            with pytest.raises(NoSpace) as caught:
                engine.dump(MemorySink(), write)
            assert caught.value.facts["grown_bytes"] > caught.value.facts["free_bytes"] == room(disk) > 6 * MB
            assert not os.listdir(tmp_path / "staging")
            assert shell(path, "PRAGMA wal_checkpoint(TRUNCATE)") == "0|0|0\n"
