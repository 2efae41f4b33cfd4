"""A standby on what could be another machine: with storage and key alone, killed at any time, and never torn."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.process.house import SECONDS, House, halves, until
from tests.process.test_continuous import begin, committed, followed, ledger, more, numbers, pieces, spoil, writing

READER = """
import select, sqlite3, sys
path, seen = sys.argv[1], 0
db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
while not select.select([0], [], [], 0)[0]:
    try:
        count, last = db.execute("select count(*), max(id) from note").fetchone()
        whole = db.execute("pragma quick_check").fetchall()
    except sqlite3.OperationalError:
        db.close()
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        continue  # a change that was cut short: who may not write waits until it is rolled back
    assert whole == [("ok",)], whole
    assert count == last >= seen, (count, last, seen)
    seen = count
print(seen)
"""


class Far:
    """A directory with a policy of its own, and no daemon, that has the storage and the key."""

    def __init__(self, house: House, name: str = "far") -> None:
        self.house, self.place = house, house.place / name
        self.place.mkdir()
        self.copy, self.said = self.place / "app_standby.db", self.place / "said"
        self.policy = self.place / "policy.toml"
        key = f'[key.main]\ntype = "machine"\npath = "{house.state}/machine.key"\n'
        storage = f'[storage.local]\ntype = "directory"\npath = "{house.store}"\nkeep_free = "0B"\n'
        self.policy.write_text("version = 1\n" + storage + key + house.table("app", path=self.place / "app.db"))
        self.policy.chmod(0o600)

    def argv(self, *words: str) -> list[Any]:
        where = ["--policy", self.policy, "--state", self.place / "state", "run", "--json"]
        return [self.house.python.with_name("dbguardd"), *where, *words]

    def run(self, *words: str) -> tuple[int, Any]:
        """Run a verb by hand; return its status, and its result or problem."""
        done = subprocess.run(self.argv(*words), capture_output=True, text=True, check=False, timeout=SECONDS)
        if done.returncode in (0, 3):
            return done.returncode, json.loads(done.stdout.splitlines()[-1])["result"]
        return done.returncode, json.loads(done.stderr.splitlines()[-1])

    @contextmanager
    def following(self) -> Iterator[subprocess.Popen[bytes]]:
        """Keep the copy until the block ends; then it must end well, or have been killed."""
        with self.said.open("ab") as out, subprocess.Popen(self.argv("standby", "app"), stdout=out) as process:
            try:
                yield process
            finally:
                process.terminate()
                assert process.wait(SECONDS) in (0, -signal.SIGKILL)

    def told(self, state: str) -> list[Any]:
        lines = [json.loads(line) for line in self.said.read_text().splitlines() if line.endswith("}")]
        facts = [line["facts"] for line in lines if line.get("event") == "standby"]
        return [found for found in facts if found["state"] == state]

    def reaches(self, commits: int) -> None:
        """Wait until the copy has so many."""

        def there() -> bool:
            with (
                suppress(sqlite3.OperationalError),  # what was killed in a change is rolled back by the next one only
                closing(sqlite3.connect(f"file:{self.copy}?mode=ro", uri=True, timeout=30)) as db,
            ):
                return int(db.execute("select count(*) from note").fetchone()[0]) >= commits
            return False

        until(lambda: self.copy.exists() and there(), lambda: (commits, self.said.read_text()[-2000:]))


@pytest.fixture
def far(house: House) -> Far:
    begin(house)
    return Far(house)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An application that reads a copy all the time, and finds it whole and never older, until the block ends."""
    argv = [sys.executable, "-c", READER, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield
        finally:
            out, _ = process.communicate(b"\n", timeout=SECONDS)
    assert process.returncode == 0
    assert int(out) > 0


def test_it_is_killed_again_and_again_and_loses_nothing(house: House, far: Far) -> None:
    with writing(house):
        more(house, 50)
        with far.following():
            far.reaches(60)
        with reading(far.copy):
            for number in range(6):
                with far.following() as process:
                    far.reaches(committed(house))
                    until(lambda: len(halves(process.pid)) == 2, "both halves")  # noqa: B023
                    who = [process.pid, *halves(process.pid).values()][number % 3]
                    more(house, 40 * number)
                    process.send_signal(signal.SIGSTOP)  # else it may end by itself, and say so as an error
                    os.kill(who, signal.SIGKILL)
                    process.kill()
                    until(lambda: not halves(process.pid), "the end of its workers")  # noqa: B023
            with far.following():
                far.reaches(committed(house))
    followed(house)
    status, made = far.run("promote", "app")
    assert status == 0, made
    assert made["warnings"] == []
    acknowledged = [number for number, _, _ in ledger(house)]
    assert numbers(far.copy) == numbers(house.place / "app.db")
    assert len(numbers(far.copy)) >= max(acknowledged)
    with closing(sqlite3.connect(far.copy)) as db:
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        db.execute("insert into note (text) values ('mine')")
        db.commit()
    assert sorted(path.name for path in far.place.iterdir()) == ["app_standby.db", "policy.toml", "said", "state"]
    assert far.copy.stat().st_mode == (house.place / "app.db").stat().st_mode
    status, problem = far.run("standby", "app")
    assert (status, problem["code"]) == (10, "DBG-6002")
    assert "was promoted" in problem["detail"]


def test_a_gap_is_told_and_gone_past(house: House, far: Far) -> None:
    with far.following():
        with writing(house, pause=0.0):
            far.reaches(committed(house))
            followed(house)
            house.kill()
            more(house, 3000)  # it begins its log anew while nobody follows it
        house.start()
        followed(house)
        with writing(house):
            more(house, 50)
            far.reaches(committed(house))
    assert len(house.events("log.begun")) > 1
    (gap,) = far.told("rebased")
    assert "its log has a gap" in gap["because"]
    assert gap["from_at"] < gap["until_at"]


@pytest.mark.soak
def test_it_goes_on_over_a_log_that_was_made_coarser(house: House) -> None:
    """One stands in the middle of what becomes one segment, one is kept meanwhile, and one is made over what is left.

    A segment ends where the database became shorter, so no minute has to pass.
    """
    path = house.database("app", rows=3, wal=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table ballast as select randomblob(2000000) as body")
    house.protects(house.table("app", "continuous = true", 'thin_log = { minute = "1min" }'))
    house.start()
    house.does("backup", "app", "--verify")
    followed(house)
    left, kept, made = (Far(house, name) for name in ("left", "kept", "made"))
    with kept.following():
        with writing(house):
            more(house, 100)
            with left.following():
                left.reaches(committed(house))
            more(house, 100)
        followed(house)
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
            db.execute("drop table ballast")
            db.execute("vacuum")
        followed(house)
        with writing(house):
            more(house, 100)
        followed(house)
        kept.reaches(committed(house))
        for piece in pieces(house):
            os.utime(piece, (piece.stat().st_mtime - 3600,) * 2)
        house.does("prune", "app")
        coarse = [piece.name.split("-") for piece in (house.store / "log").rglob("*-00060-*")]
        stands = int(left.told("reached")[-1]["segment"])
        assert any(int(first) <= stands < int(last) for _, first, last, *_ in coarse), (stands, coarse)
        with made.following(), writing(house):
            more(house, 50)
            made.reaches(committed(house))
            kept.reaches(committed(house))
            with left.following():
                left.reaches(committed(house))
    followed(house)
    for one in (left, kept, made):
        status, said = one.run("promote", "app")
        assert (status, said.get("warnings")) == (0, []), said
        assert numbers(one.copy) == numbers(path)
        assert not one.told("rebased")


def test_damage_ends_it_and_a_newer_backup_leads_past_it(house: House, far: Far) -> None:
    with writing(house):
        more(house, 100)
        with far.following():
            far.reaches(committed(house))
        had = len(numbers_ro(far.copy))
        followed(house)
        more(house, 300)
        followed(house)
        for piece in pieces(house)[-3:]:
            spoil(piece)
    backups = len(house.backups("app"))
    house.stop()
    status, problem = far.run("standby", "app")
    assert (status, problem["code"]) == (4, "DBG-4001"), problem
    assert len(numbers_ro(far.copy)) >= had
    house.start()  # it begins the log anew, and makes the backup that leads past the damage
    until(lambda: len(house.backups("app")) > backups, lambda: house.backups("app"))
    followed(house)
    with far.following():
        far.reaches(committed(house))
    assert far.told("rebased")


def numbers_ro(path: Path) -> list[int]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return [row[0] for row in db.execute("select id from note order by id")]


def test_a_promotion_takes_what_there_is_of_a_damaged_log_and_says_so(house: House, far: Far) -> None:
    with writing(house):
        more(house, 100)
        with far.following():
            far.reaches(committed(house))
        more(house, 300)
        followed(house)
    house.stop()
    spoil(pieces(house)[-1])
    status, made = far.run("promote", "app")
    assert status == 3, made
    assert "is not in the copy" in made["warnings"][0]
    found = numbers(far.copy)
    assert found == list(range(1, len(found) + 1))


def test_what_somebody_wrote_to_is_left_alone(far: Far) -> None:
    with far.following():
        far.reaches(3)
        with closing(sqlite3.connect(far.copy, timeout=30)) as db, db:
            db.execute("insert into note (text) values ('strange')")
    status, problem = far.run("standby", "app")
    assert (status, problem["code"]) == (10, "DBG-6006")
    assert f"rm -f {far.copy}" in problem["hints"][0]
    assert "strange" in str(sqlite3.connect(far.copy).execute("select text from note").fetchall())
    assert far.run("promote", "app")[1]["code"] == "DBG-6006"


def test_there_is_one_for_each_copy_and_only_of_a_followed_database(house: House, far: Far) -> None:
    with far.following():
        far.reaches(3)
        status, problem = far.run("standby", "app")
        assert (status, problem["code"]) == (10, "DBG-6003")
        assert far.run("promote", "app")[1]["code"] == "DBG-6003"
    assert far.run("promote", "app", "--to", str(far.place / "none.db"))[1]["code"] == "DBG-0004"
    assert far.run("standby", "app", "--to", str(far.place / "app.db"))[1]["code"] == "DBG-0001"
    house.protects(house.table("app"))
    house.does("reload")
    until(lambda: not house.workers(), "nobody follows")
    house.does("backup", "app")
    status, problem = far.run("standby", "app", "--to", str(far.place / "other.db"))
    assert (status, problem["code"]) == (2, "DBG-2008")
    assert "continuous = true" in problem["detail"]


def test_it_runs_beside_the_daemon_of_the_database(house: House, far: Far) -> None:
    target = house.place / "beside.db"
    argv = [far.argv()[0], "--policy", house.policy, "--state", house.state, "run", "standby", "app", "--to", target]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        until(target.exists, "the copy")
        house.does("backup", "app", "--verify")
        process.terminate()
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert f"made  {target} from backup" in out
    assert "run it again to continue" in out
