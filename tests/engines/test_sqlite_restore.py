"""Restoring, examining and replacing: all or nothing, and never what was not asked for."""

import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import balance, directory, ledger, make, shell, using

from dbguardd.engines.base import REPLACED, ProofQuery
from dbguardd.engines.sqlite.pour import Pouring, pour
from dbguardd.engines.sqlite.publish import hold
from dbguardd.errors import Cancelled, Damaged, ProofFailed, SourceMissing, TargetExists, TargetInUse
from tests.live import until


def backup(live, staging, **settings):
    engine, sink = make(live, staging, **settings), MemorySink()
    facts = engine.dump(sink, no_progress)
    engine.release()
    return engine, MemoryTree(sink, facts)


class TornTree(MemoryTree):
    """Fails after half of the bytes, as a damaged repository does."""

    def deliver(self, name, file, *, delta=False):
        os.pwrite(file, self._streams[name][: len(self._streams[name]) // 2], 0)
        raise Damaged("pack: damaged")


@pytest.mark.parametrize("method", ["pages", "dump"])
def test_the_restored_file_has_the_rights_of_the_live_one(live, staging, tmp_path, method):
    ledger(live)
    live.chmod(0o640)
    engine, tree = backup(live, staging, method=method)
    engine.restore(tree, tmp_path / "new.db", no_progress)
    assert (tmp_path / "new.db").stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "new.db").stat().st_nlink == 1
    assert shell(tmp_path / "new.db", "PRAGMA journal_mode") == "wal\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live", "new.db", "staging"]


@pytest.mark.parametrize("side", ["", "-wal", "-shm", "-journal"])
def test_nothing_is_overwritten_and_no_stale_side_file_is_adopted(live, staging, tmp_path, side):
    ledger(live)
    engine, tree = backup(live, staging)
    target = tmp_path / "target" / "new.db"
    target.parent.mkdir()
    there = Path(f"{target}{side}")
    there.write_text("precious")
    with pytest.raises(TargetExists):
        engine.restore(tree, target, no_progress)
    assert there.read_text() == "precious"
    assert len(list(target.parent.iterdir())) == 1


def test_a_dangling_link_at_the_target_is_not_followed(live, staging, tmp_path):
    ledger(live)
    engine, tree = backup(live, staging)
    (tmp_path / "new.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(TargetExists):
        engine.restore(tree, tmp_path / "new.db", no_progress)
    assert not (tmp_path / "elsewhere.db").exists()


def test_damage_leaves_nothing_at_the_target(live, staging, tmp_path):
    ledger(live)
    engine, tree = backup(live, staging)
    torn = TornTree(MemorySink(), tree.facts)
    torn._streams = tree._streams
    (tmp_path / "target").mkdir()
    with pytest.raises(Damaged):
        engine.restore(torn, tmp_path / "target" / "new.db", no_progress)
    assert directory(tmp_path / "target") == {}


def test_text_that_does_not_replay_leaves_nothing_at_the_target(live, staging, tmp_path):
    ledger(live)
    engine, tree = backup(live, staging, method="dump")
    tree._streams["dump.sql"] += b"INSERT INTO nowhere VALUES(1);\n"
    (tmp_path / "target").mkdir()
    with pytest.raises(ProofFailed):
        engine.restore(tree, tmp_path / "target" / "new.db", no_progress)
    assert directory(tmp_path / "target") == {}


def test_a_restore_can_be_cancelled(live, staging, tmp_path):
    ledger(live)
    engine, tree = backup(live, staging, method="dump")
    (tmp_path / "target").mkdir()

    def cancel(step, done, total):
        if done:
            raise Cancelled("job: cancelled")

    with pytest.raises(Cancelled):
        engine.restore(tree, tmp_path / "target" / "new.db", cancel)
    assert directory(tmp_path / "target") == {}


# ------------------------------------------------------------------------------------------------ examine

QUERIES = [
    (ProofQuery("SELECT count(*) FROM a", min=50, max=50), "ok"),
    (ProofQuery("SELECT count(*) FROM a", min=51), "failed"),
    (ProofQuery("SELECT count(*) FROM a", max=49), "failed"),
    (ProofQuery("SELECT 'x'", equals="x"), "ok"),
    (ProofQuery("SELECT 'x'", equals="y"), "failed"),
    (ProofQuery("SELECT 2", equals=2.0), "ok"),
    (ProofQuery("SELECT max(note) FROM moves", min=1), "failed"),
    (ProofQuery("SELECT max(note) FROM moves"), "failed"),
    (ProofQuery("SELECT 1, 2"), "failed"),
    (ProofQuery("SELECT id FROM a"), "failed"),
    (ProofQuery("SELECT nonsense"), "failed"),
    (ProofQuery("DELETE FROM a"), "failed"),
    (ProofQuery("ATTACH '/tmp/dbguard-never.db' AS x"), "failed"),
    (ProofQuery("PRAGMA user_version"), "failed"),
    (ProofQuery("SELECT 1; SELECT 2"), "failed"),
    (ProofQuery("SELECT load_extension('x')"), "failed"),
]


@pytest.mark.parametrize("query, outcome", QUERIES, ids=[query.sql for query, _ in QUERIES])
def test_proof_queries(live, staging, query, outcome):
    ledger(live)
    before = directory(live.parent)
    found = make(live, staging).examine(live, [query], no_progress)
    assert [one.outcome for one in found.findings if one.name.startswith("query")] == [outcome], found.findings
    assert found.ok == (outcome == "ok")
    assert directory(live.parent) == before


@pytest.mark.parametrize(
    "query, told",
    [
        (ProofQuery("SELECT note FROM moves LIMIT 1", min=5), "a text of 6 characters, expected at least 5"),
        (ProofQuery("SELECT note FROM moves LIMIT 1"), "a text of 6 characters"),
        (ProofQuery("SELECT note FROM moves LIMIT 1", equals="x"), "a text of 6 characters, expected 'x'"),
        (ProofQuery("SELECT note FROM moves LIMIT 1", equals="canary"), "'canary'"),
        (ProofQuery("SELECT cast(note AS blob) FROM moves LIMIT 1"), "6 bytes"),
        (ProofQuery("SELECT json_extract('{}', note) FROM moves LIMIT 1"), "SQLITE_ERROR while it ran"),
        (ProofQuery("SELECT cast(x'ff' || note AS text) FROM moves LIMIT 1"), "a text of 7 characters"),
        (ProofQuery("SELECT count(*) FROM moves", max=0), "1, expected at most 0"),
        (ProofQuery("SELECT nonsense"), "no such column: nonsense"),
    ],
    ids=str,
)
def test_what_stands_in_rows_is_not_told(live, staging, query, told):
    """Only what the policy itself expected is repeated."""
    ledger(live)
    with closing(sqlite3.connect(live)) as db, db:
        db.execute("DELETE FROM moves")
        db.execute("INSERT INTO moves (note) VALUES ('canary')")
    (finding,) = [
        one for one in make(live, staging).examine(live, [query], no_progress).findings if one.name.startswith("query")
    ]
    assert finding.detail == told


def test_a_proof_query_can_be_cancelled(live, staging):
    ledger(live)
    endless = ProofQuery("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n")
    shown = []

    def cancel(step, done, total):
        shown.append(step)
        if len(shown) > 400:
            raise Cancelled("job: cancelled")

    with pytest.raises(Cancelled):
        make(live, staging).examine(live, [endless], cancel)


def test_no_queries_are_not_painted_green(live, staging):
    ledger(live)
    found = make(live, staging).examine(live, [], no_progress)
    assert [one.outcome for one in found.findings if one.name == "proof queries"] == ["not configured"]


def test_an_index_that_lies_is_found(live, staging):
    ledger(live, "delete")
    shell(live, "INSERT INTO moves(note) VALUES('one'), ('two');")
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET rootpage=(SELECT rootpage FROM sqlite_schema WHERE name='filler') "
                   "WHERE name='moves_note'")  # fmt: skip
    found = make(live, staging).examine(live, [], no_progress)
    assert not found.ok


def test_a_missing_collation_is_inconclusive(live, staging):
    with closing(sqlite3.connect(live)) as db:
        db.create_collation("mine", lambda a, b: (a > b) - (a < b))
        db.execute("CREATE TABLE t(x TEXT COLLATE mine)")
        db.execute("CREATE INDEX i ON t(x)")
        db.executemany("INSERT INTO t VALUES(?)", [("b",), ("a",)])
        db.commit()
    engine, tree = backup(live, staging)
    found = engine.examine(live, [], no_progress)
    assert [one.outcome for one in found.findings if one.name == "integrity_check"] == ["inconclusive"]
    assert found.fingerprint.tables["t"].rows == 2


# ------------------------------------------------------------------------------------------------ replace


@pytest.mark.parametrize("page_size", [1024, 4096])
@pytest.mark.parametrize("live_mode", ["wal", "delete"])
@pytest.mark.parametrize("source_mode", ["wal", "delete"])
def test_replaced_in_place(live, staging, tmp_path, live_mode, source_mode, page_size):
    ledger(live, live_mode, page_size=page_size, filler=300_000)
    live.chmod(0o640)
    source = tmp_path / "source.db"
    ledger(source, source_mode, accounts=70)
    inode, engine, told = live.stat().st_ino, make(live, staging), []
    engine.replace(source, lambda step, done, total: told.append(total))
    assert {*told} == {None, source.stat().st_size}  # bytes, and no pages
    assert live.stat().st_ino == inode
    assert live.stat().st_mode & 0o7777 == 0o640
    assert directory(live.parent).keys() == {"app.db"}
    found = engine.examine(live, [], no_progress)
    assert found.ok
    assert found.fingerprint == engine.examine(source, [], no_progress).fingerprint


def test_a_log_left_by_a_crash_does_not_come_back(live, staging, tmp_path):
    ledger(live)
    with using(live, "crash-after-commit"):
        pass
    ledger(tmp_path / "source.db", accounts=70)
    make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert shell(live, "SELECT count(*) FROM a; SELECT count(*) FROM moves;").split() == ["70", "0"]


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("action", ["idle", "open-transaction", "exclusive"])
def test_a_database_in_use_is_not_replaced(live, staging, tmp_path, journal_mode, action):
    ledger(live, journal_mode)
    ledger(tmp_path / "source.db", accounts=70)
    with using(live, action) as user:
        before = live.read_bytes()
        with pytest.raises(TargetInUse) as refused:
            make(live, staging).replace(tmp_path / "source.db", no_progress)
        assert refused.value.facts["pids"] == [user.child.pid]
        assert live.read_bytes() == before


def test_a_cancelled_replacement_is_rolled_back(live, staging, tmp_path):
    ledger(live, filler=200_000)
    ledger(tmp_path / "source.db", accounts=70, filler=40_000_000)
    before = make(live, staging).examine(live, [], no_progress).fingerprint

    def cancel(step, done, total):
        if done:
            raise Cancelled("job: cancelled")

    with pytest.raises(Cancelled):
        make(live, staging).replace(tmp_path / "source.db", cancel)
    assert balance(live) == 0
    assert make(live, staging).examine(live, [], no_progress).fingerprint == before


def test_a_missing_database_is_created(live, staging, tmp_path):
    ledger(tmp_path / "source.db", accounts=70)
    make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert shell(live, "SELECT count(*) FROM a;") == "70\n"


KILLED = """
import os, signal, sys
from pathlib import Path
from dbguardd.engines.sqlite.replace import replace

def die(event, arguments):
    if event == sys.argv[3] and os.path.lexists(sys.argv[1]) == (event == "os.remove"):
        if any(str(one).endswith(".swapping.dbguard") for one in arguments) and os.path.lexists(str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
replace(sys.argv[1], Path(sys.argv[2]), lambda *_: None)
"""


@pytest.mark.parametrize("moment", ["os.remove", "os.link"], ids=["a second name", "a copy"])
@pytest.mark.parametrize("next", ["dump", "replace"])
def test_what_a_killed_restore_in_place_has_left_goes_with_whoever_comes_next(live, staging, tmp_path, moment, next):
    source = tmp_path / "source.db"
    ledger(source, accounts=70)
    words = [sys.executable, "-c", KILLED, str(live), str(source), moment]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    left = [path for path in live.parent.iterdir() if path != live]
    assert left and live.exists() == (moment == "os.remove")
    if not live.exists():
        shutil.copy(source, live)
        until(lambda: time.time() - max(path.lstat().st_ctime for path in left) > 1.1, "old enough to be nobody's")
    engine = make(live, staging)
    if next == "dump":
        engine.dump(MemorySink(), no_progress)
        engine.release()
    else:
        engine.replace(source, no_progress)
    assert [path.name for path in live.parent.iterdir()] == ["app.db"]
    assert (live.stat().st_nlink, shell(live, "SELECT count(*) FROM a;")) == (1, "70\n")


def test_what_a_deleted_database_has_left_is_set_aside_and_not_applied(live, staging, tmp_path):
    """Whoever removes the file alone, with an application in WAL mode killed or running, leaves its log."""
    ledger(live)
    with using(live, "crash-after-commit"):
        pass
    log = Path(f"{live}-wal").read_bytes()
    live.unlink()
    ledger(tmp_path / "source.db", accounts=70)
    (tmp_path / "source.db").chmod(0o640)
    make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert shell(live, "SELECT count(*) FROM a; SELECT count(*) FROM moves;").split() == ["70", "0"]
    assert live.stat().st_mode & 0o7777 == 0o640
    assert Path(f"{live}.before-restore-wal").read_bytes() == log
    live.unlink()
    Path(f"{live}-wal").write_bytes(b"other")
    with pytest.raises(TargetExists):
        make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert Path(f"{live}.before-restore-wal").read_bytes() == log
    assert directory(live.parent).keys() & {"app.db", "app.db-wal"} == {"app.db-wal"}


def test_a_deleted_database_comes_back_where_the_link_of_its_path_leads(live, staging, tmp_path):
    ledger(tmp_path / "source.db", accounts=70)
    (live.parent / "data").mkdir()
    live.symlink_to("data/real.db")
    (live.parent / "data/real.db-wal").write_bytes(b"left")
    engine = make(live, staging)
    engine.check_unused()
    engine.replace(tmp_path / "source.db", no_progress)
    assert live.is_symlink() and shell(live.resolve(), "SELECT count(*) FROM a;") == "70\n"
    assert directory(live.parent / "data").keys() == {"real.db", "real.db.before-restore-wal"}


@pytest.mark.parametrize("sides", [True, False])
def test_who_goes_on_in_a_deleted_database_is_named_first(live, staging, tmp_path, sides):
    ledger(live)
    ledger(tmp_path / "source.db", accounts=70)
    with using(live, "idle") as user:
        for path in live.parent.glob("app.db*") if not sides else [live]:
            path.unlink()
        engine = make(live, staging)
        for refuses in (engine.check_unused, lambda: engine.replace(tmp_path / "source.db", no_progress)):
            with pytest.raises(TargetInUse, match="deleted") as refused:
                refuses()
            assert refused.value.facts["pids"] == [user.child.pid]
    assert not live.exists()


def test_a_file_without_a_header_is_set_aside_with_its_log(live, staging, tmp_path):
    ledger(tmp_path / "source.db", accounts=70)
    live.write_bytes(b"ruins" * 2000)
    live.chmod(0o640)
    Path(f"{live}-wal").write_bytes(b"evidence")
    make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert directory(live.parent).keys() == {"app.db", "app.db.before-restore", "app.db.before-restore-wal"}
    assert Path(f"{live}.before-restore").read_bytes() == b"ruins" * 2000
    assert Path(f"{live}.before-restore-wal").read_bytes() == b"evidence"
    assert live.stat().st_mode & 0o7777 == 0o640
    assert shell(live, "SELECT count(*) FROM a;") == "70\n"


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_the_checksums_of_the_checksum_vfs_are_those_that_were_restored(live, staging, tmp_path, mode):
    """SQLite itself changes page 1 when it copies a database, and does not know of the checksum at its end."""
    for path, rows in ((live, 3), (tmp_path / "source.db", 500)):
        with closing(apsw.Connection(str(path))) as db:
            db.reserve_bytes(None, 8)
            db.execute("CREATE TABLE a(x)")
            db.executemany("INSERT INTO a VALUES(?)", ((n,) for n in range(rows)))
            db.execute(f"PRAGMA journal_mode={mode}").fetchall()
    live.chmod(0o640)
    make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert live.read_bytes() == (tmp_path / "source.db").read_bytes()
    assert (directory(live.parent).keys(), live.stat().st_mode & 0o7777) == ({"app.db"}, 0o640)
    assert shell(live, "SELECT count(*) FROM a;") == "500\n"


def test_a_second_ruin_does_not_overwrite_the_first(live, staging, tmp_path):
    ledger(tmp_path / "source.db")
    Path(f"{live}.before-restore").write_text("first")
    live.write_text("second")
    with pytest.raises(TargetExists):
        make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert live.read_text() == "second"


def test_fingerprint_needs_a_snapshot(live, staging):
    with pytest.raises(SourceMissing):
        make(live, staging).fingerprint(no_progress)


def test_an_error_after_the_replacement_says_that_it_was_made(live, staging, tmp_path):
    """The source is damaged: its pages go in, reading them back fails."""
    ledger(live)
    shutil.copy(live, tmp_path / "source.db")
    with open(tmp_path / "source.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(ProofFailed, match="was replaced") as caught:
        make(live, staging).replace(tmp_path / "source.db", no_progress)
    assert caught.value.facts[REPLACED]


class Late(Pouring):
    """Lets a reader in between the trial of the lock and the first page."""

    def __init__(self, enter):
        self._enter = enter
        super().__init__()

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if value == "pour":
            self._enter()


def test_who_enters_after_the_lock_was_tried_is_not_waited_for(live, tmp_path):
    """The backup interface of Python would wait for a reader for ever."""
    for path, rows in ((live, 3), (tmp_path / "source.db", 5)):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE t (a)")
            db.executemany("INSERT INTO t VALUES (?)", ((n,) for n in range(rows)))
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN'); "
    code += "db.execute('SELECT * FROM t').fetchall(); print('in', flush=True); sys.stdin.read()"
    reader = [sys.executable, "-c", code, live]
    with subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with pytest.raises(sqlite3.OperationalError) as caught:
            pour(str(live), tmp_path / "source.db", Late(process.stdout.readline))
        process.communicate()
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
    assert shell(live, "SELECT count(*) FROM t") == "3\n"


NO_ROOM = """
import os, resource, sqlite3, sys
from pathlib import Path
from dbguardd.engines.base import ProofQuery
from dbguardd.engines.sqlite.examine import examine
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
query = ProofQuery("SELECT count(*) FROM (SELECT DISTINCT body FROM big ORDER BY body)", equals=20000)
for finding in examine(Path(sys.argv[1]), [query], lambda *_: None).findings:
    print(finding.outcome, finding.name.split()[0])
"""


def test_no_room_for_a_temporary_file_is_no_verdict_on_the_database(tmp_path):
    with closing(sqlite3.connect(tmp_path / "new.db")) as db, db:
        db.execute("CREATE TABLE big (body)")
        db.executemany("INSERT INTO big VALUES (?)", ((os.urandom(1000),) for _ in range(20_000)))
    argv = [sys.executable, "-c", NO_ROOM, tmp_path / "new.db"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == [*("ok size", "ok content", "ok integrity_check", "ok foreign_key_check"), "inconclusive query:"]


def test_what_was_cleared_before_it_is_in_its_place_is_missed_before_anything_is_touched(tmp_path):
    """Another backup in that directory may just be looking at it: it is waited for, and believed."""
    work = tmp_path / ".app.db.swapping.dbguard"
    work.write_bytes(b"copy")
    with work.open("rb") as other, ThreadPoolExecutor() as threads:
        fcntl.flock(other, fcntl.LOCK_EX)
        held = threads.submit(hold, work)
        until(lambda: [path.resolve() for path in Path("/proc/self/fd").iterdir()].count(work) == 2, "it waits")
        work.unlink()
        fcntl.flock(other, fcntl.LOCK_UN)
        with pytest.raises(FileNotFoundError):
            held.result()
