"""Method pages: the copy is one commit, whatever goes on beside it, and the live directory stays as it was."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import balance, directory, ledger, locks_on, make, round_trip, shell, using

from dbguardd.errors import Cancelled, SourceChanged, SourceLocked, WouldBlock


@pytest.mark.parametrize("journal_mode", ["wal", "delete", "truncate", "persist", "memory"])
@pytest.mark.parametrize("pause", [0.0, 0.002])
@pytest.mark.parametrize("growth", [1, 4 << 20])
def test_beside_a_writer(live, staging, tmp_path, journal_mode, pause, growth):
    ledger(live, journal_mode, filler=2_000_000)
    with using(live, "write", pause) as writer:
        engine = make(live, staging, max_block_seconds=1.0, growth_bytes=growth)
        for number in range(3):
            target = tmp_path / f"restored-{number}.db"
            facts, taken, found = round_trip(engine, target)
            assert found.fingerprint == taken
            assert found.ok, found.findings
            assert balance(target) == 0
            assert facts["way"] in (["wal"] if journal_mode == "wal" else ["rollback", "unmoved"])
        assert writer.end()["commits"] > 20
    assert directory(staging) == {}


@pytest.mark.parametrize("growth", [1, 100_000, 4 << 20])
@pytest.mark.parametrize("every", [1, 7, 200])
def test_beside_a_writer_that_checkpoints_all_the_time(live, staging, tmp_path, every, growth):
    ledger(live, filler=4_000_000)
    with using(live, "checkpoint-often", every), using(live, "checkpoint-often", every * 3):
        engine = make(live, staging, growth_bytes=growth)
        for number in range(6):
            target = tmp_path / f"restored-{number}.db"
            _, taken, found = round_trip(engine, target)
            assert found.fingerprint == taken
            assert found.ok, found.findings
            assert balance(target) == 0


def each_step(action, times=5):
    """A progress that runs `action` after each step of the copy; a step is 1 MiB, see beat_seconds."""
    left = [times]

    def progress(step, done, total):
        if step == "snapshot" and done and left[0]:
            left[0] -= 1
            action()

    return progress


COMMIT = (
    "UPDATE a SET amount=amount-1 WHERE id=1; UPDATE b SET amount=amount+1 WHERE id=2;"
    "INSERT INTO moves(note) VALUES('during');"
)
EVENTS = {
    "commits": f"BEGIN; {COMMIT} COMMIT;",
    "restart": f"PRAGMA wal_checkpoint(RESTART); BEGIN; {COMMIT} COMMIT;",
    "truncate": "PRAGMA wal_checkpoint(TRUNCATE);",
    "truncate and commit": f"PRAGMA wal_checkpoint(TRUNCATE); BEGIN; {COMMIT} COMMIT;",
    "vacuum": "VACUUM;",
    "schema": "CREATE TABLE IF NOT EXISTS extra(x); INSERT INTO extra VALUES(1); DROP INDEX IF EXISTS moves_note;",
    "shrink": "DELETE FROM filler; VACUUM; PRAGMA wal_checkpoint(PASSIVE);",
}


@pytest.mark.parametrize("growth", [1, 4 << 20])
@pytest.mark.parametrize("mark", ["zero", "above zero"])
@pytest.mark.parametrize("event", EVENTS)
def test_events_in_the_middle_of_a_wal_copy(live, staging, tmp_path, mark, event, growth):
    """Mark 0: the log is in the main file already when the copy begins. Above: the log has frames that are not."""
    ledger(live, filler=1_500_000)
    with using(live, "idle"):
        shell(live, f"BEGIN; {COMMIT} UPDATE filler SET data=zeroblob(40000) WHERE rowid<25; COMMIT;")
        if mark == "zero":
            shell(live, "PRAGMA wal_checkpoint(PASSIVE);")
        engine = make(live, staging, growth_bytes=growth)
        sink = MemorySink()
        facts = engine.dump(sink, each_step(lambda: shell(live, EVENTS[event])))
        taken = engine.fingerprint(no_progress)
        engine.release()
    assert facts["way"] == "wal"
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    found = engine.examine(tmp_path / "restored.db", [], no_progress)
    assert found.ok, found.findings
    assert found.fingerprint == taken
    assert balance(tmp_path / "restored.db") == 0
    with closing(sqlite3.connect(tmp_path / "restored.db")) as db:
        assert db.execute("SELECT count(*) FROM moves WHERE note='during'").fetchone()[0] >= 1


def test_a_busy_application_can_checkpoint_while_it_is_copied(live, staging, tmp_path):
    """Else all that was written meanwhile would be checkpointed at once afterwards, and the application would wait."""
    ledger(live, filler=6_000_000)
    done = []
    with using(live, "idle"), closing(sqlite3.connect(live, isolation_level=None)) as user:
        user.execute("PRAGMA wal_autocheckpoint=0")

        def busy():
            user.execute("UPDATE filler SET data=randomblob(50000) WHERE rowid < 9")
            done.append(user.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[2])

        engine, sink = make(live, staging, growth_bytes=100_000), MemorySink()
        facts = engine.dump(sink, each_step(busy, times=1000))
        expected = user.execute("SELECT rowid, data FROM filler").fetchall()
    assert facts["tries"] == 2
    assert len(set(done)) > 3, done  # under one mark the same frames each time
    (tmp_path / "restored.db").write_bytes(sink.streams["database"])
    with closing(sqlite3.connect(tmp_path / "restored.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert len(db.execute("SELECT rowid, data FROM filler").fetchall()) == len(expected)


def test_a_busy_application_is_backed_up_however_long_its_log_takes_to_copy(live, staging):
    ledger(live, filler=3_000_000)
    with using(live, "idle"):
        engine = make(live, staging, growth_bytes=100_000, lock_timeout_seconds=0)
        busy = each_step(lambda: shell(live, "UPDATE filler SET data=randomblob(50000) WHERE rowid < 9"))
        assert engine.dump(MemorySink(), busy)["tries"] == 2


def test_a_log_that_is_written_anew_while_it_is_copied(live, staging, tmp_path):
    """With mark 0 the log may begin again under our hands; half of the old one would bring old pages back.

    The first transaction lies in the part of the log that is copied before, the second in the part that is lost.
    """
    ledger(live, filler=1_500_000, accounts=3000)
    with using(live, "idle"):
        shell(live, "BEGIN; UPDATE a SET amount=-1 WHERE id=1; UPDATE b SET amount=1 WHERE id=1; COMMIT;")
        shell(live, "UPDATE filler SET data=randomblob(50000);")
        shell(live, "BEGIN; UPDATE a SET amount=0 WHERE id=1; UPDATE a SET amount=-1 WHERE id=2999; COMMIT;")
        shell(live, "PRAGMA wal_checkpoint(PASSIVE);")
        done_once = []

        def progress(step, done, total):
            if step == "snapshot" and done and not done_once:  # the first MiB of the log
                done_once.append(done)
                shell(live, "PRAGMA wal_checkpoint(RESTART); UPDATE filler SET data=randomblob(50000);")

        engine, sink = make(live, staging), MemorySink()
        facts = engine.dump(sink, progress)
    assert done_once
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    assert engine.examine(tmp_path / "restored.db", [], no_progress).ok
    assert balance(tmp_path / "restored.db") == 0


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_commit_that_was_answered_before_is_in_the_backup(live, staging, tmp_path, journal_mode):
    ledger(live, journal_mode)
    with using(live, "idle"):
        for number in range(5):
            shell(live, f"INSERT INTO moves(note) VALUES('number {number}');")
            target = tmp_path / f"{number}.db"
            round_trip(make(live, staging), target)
            with closing(sqlite3.connect(target)) as db:
                assert db.execute("SELECT count(*) FROM moves").fetchone() == (number + 1,)


# ------------------------------------------------------------------------------------------------ leaves no trace


def test_a_cleanly_closed_wal_database_keeps_its_directory(live, staging, tmp_path):
    ledger(live)
    before = directory(live.parent)
    facts, taken, found = round_trip(make(live, staging), tmp_path / "restored.db")
    assert directory(live.parent) == before == {"app.db": live.stat().st_size}
    assert facts["way"] == "unmoved" or facts["cloned"]
    assert found.fingerprint == taken
    assert directory(tmp_path / "staging") == {}


def test_a_crashed_wal_database_keeps_its_log(live, staging, tmp_path):
    ledger(live)
    with using(live, "crash-after-commit"):
        pass
    before = directory(live.parent)
    log = Path(f"{live}-wal").read_bytes()
    facts, taken, found = round_trip(make(live, staging), tmp_path / "restored.db")
    assert directory(live.parent) == before
    assert Path(f"{live}-wal").read_bytes() == log
    assert facts["way"] == "idle"
    assert found.fingerprint == taken
    assert found.fingerprint.tables["moves"].rows == 1


def test_a_database_in_use_keeps_its_directory(live, staging):
    ledger(live)
    with using(live, "idle"):
        shell(live, "INSERT INTO moves(note) VALUES('x');")
        before = directory(live.parent)
        make(live, staging).dump(MemorySink(), no_progress)
        assert directory(live.parent) == before


def test_an_application_that_ends_during_the_copy_loses_nothing(live, staging):
    ledger(live, filler=1_500_000)
    with using(live, "idle") as user:
        shell(live, "INSERT INTO moves(note) VALUES('x');")
        engine = make(live, staging)
        engine.dump(MemorySink(), each_step(user.end, times=1))
    assert shell(live, "SELECT count(*) FROM moves; PRAGMA integrity_check;").split() == ["1", "ok"]


def test_an_application_that_starts_during_an_idle_copy(live, staging, tmp_path):
    ledger(live, filler=1_500_000)
    with using(live, "crash-after-commit"):  # its log is there: else nothing would be copied
        pass
    engine = make(live, staging)
    sink = MemorySink()
    facts = engine.dump(sink, each_step(lambda: shell(live, f"BEGIN; {COMMIT} COMMIT;"), times=1))
    assert facts["tries"] == 2
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    assert balance(tmp_path / "restored.db") == 0


def test_cancelled_in_the_middle(live, staging):
    ledger(live, filler=3_000_000)
    with using(live, "idle"):
        before = directory(live.parent)

        def cancel():
            raise Cancelled("job: cancelled")

        engine = make(live, staging)
        with pytest.raises(Cancelled):
            engine.dump(MemorySink(), each_step(cancel))
        assert directory(staging) == {}
        assert directory(live.parent) == before
        shell(live, "INSERT INTO moves(note) VALUES('no lock is left');")


def test_a_sink_that_fails_leaves_nothing_after_release(live, staging):
    ledger(live)

    def fail(name):
        raise Cancelled("sink: cancelled")

    engine = make(live, staging)
    with pytest.raises(Cancelled):
        engine.dump(MemorySink(fail), no_progress)
    engine.release()
    assert directory(staging) == {}


def test_leftovers_in_staging_do_not_get_into_the_backup(live, staging, tmp_path):
    ledger(live)
    staging.mkdir()
    with using(live, "crash-after-commit"):
        pass
    for side in ("", "-wal", "-shm"):
        shutil.copy(f"{live}{side}", staging / f"snapshot.db{side}")
    live.unlink(), Path(f"{live}-wal").unlink(), Path(f"{live}-shm").unlink()
    ledger(live, "delete", accounts=5)
    _, _, found = round_trip(make(live, staging), tmp_path / "restored.db")
    assert found.fingerprint.tables["a"].rows == 5
    assert found.fingerprint.tables["moves"].rows == 0


# ------------------------------------------------------------------------------------------------ locks (M1)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_the_locks_of_a_writer_survive_a_backup(live, staging, journal_mode):
    ledger(live, journal_mode)
    with using(live, "open-transaction") as writer:
        before = locks_on(live, writer.child.pid)
        assert before
        make(live, staging).dump(MemorySink(), no_progress)
        assert locks_on(live, writer.child.pid) == before
        with pytest.raises(subprocess.CalledProcessError) as second:
            shell(live, "INSERT INTO moves(note) VALUES('second');")
        assert "locked" in second.value.stderr
        assert writer.end() == {"closed": True}
    assert shell(live, "SELECT note FROM moves").split() == ["mine"]


_WATCH = """
import sys
sys.path.insert(0, sys.argv[3])
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "sqlite3.connect" else None)
from engine_memory import MemorySink, no_progress
from dbguardd.engines import ENGINES
engine = ENGINES["sqlite"]({"path": sys.argv[1], "staging": sys.argv[2]}).snapshots
engine.probe(); engine.dump(MemorySink(), no_progress); engine.fingerprint(no_progress)
assert opened, "the hook saw nothing"
assert not [name for name in opened if "app.db" in name], opened
"""


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_the_engine_process_never_opens_the_live_file_through_sqlite(live, staging, journal_mode):
    ledger(live, journal_mode)
    with using(live, "idle"):
        here = str(Path(__file__).parent)
        subprocess.run([sys.executable, "-c", _WATCH, str(live), str(staging), here], check=True, timeout=60)


# ------------------------------------------------------------------------------------------------ rollback journal


def test_a_copy_longer_than_max_block_is_made_in_slices(live, staging, tmp_path):
    ledger(live, "delete", filler=20_000_000)
    engine = make(live, staging, max_block_seconds=0.001, method="dump")  # which is written from a copy
    facts, taken, found = round_trip(engine, tmp_path / "restored.db")
    assert facts["way"] == "split" or facts["cloned"]
    assert found.fingerprint == taken


def test_a_slice_is_no_larger_than_a_short_max_block_allows(live, staging):
    ledger(live, "delete", filler=2_000_000)
    seen = []
    engine = make(live, staging, max_block_seconds=1e-6, method="dump")
    facts = engine.dump(MemorySink(), lambda step, done, total: seen.append(done) if step == "snapshot" else None)
    assert facts["cloned"] or max(later - one for one, later in pairwise(seen)) == 64 << 10


def test_a_commit_between_slices_starts_the_copy_again(live, staging, tmp_path):
    ledger(live, "delete", filler=20_000_000)
    engine = make(live, staging, max_block_seconds=0.001, method="dump")
    sink = MemorySink()
    facts = engine.dump(sink, each_step(lambda: shell(live, f"BEGIN; {COMMIT} COMMIT;"), times=1))
    if facts["cloned"]:
        pytest.skip("this file system copies in one step")
    assert facts["tries"] == 2
    engine.restore(MemoryTree(sink, facts), tmp_path / "restored.db", no_progress)
    assert engine.examine(tmp_path / "restored.db", [], no_progress).fingerprint.tables["moves"].rows == 1


def test_a_writer_that_never_rests_postpones_the_backup(live, staging):
    ledger(live, "delete", filler=40_000_000)
    with using(live, "write", 0.0) as writer:
        engine = make(live, staging, max_block_seconds=0.001, lock_timeout_seconds=4.0)
        try:
            facts = engine.dump(MemorySink(), no_progress)
        except WouldBlock as error:
            assert error.facts["needed_seconds"] > 0.001
            assert "MB/s" in error.detail
        except SourceLocked as error:  # on a busy host each look may meet its lock
            assert error.facts["holder_pid"] in (writer.child.pid, None)
        else:
            assert facts["cloned"]
        assert writer.end()["commits"] > 20
    assert directory(staging).keys() <= {"snapshot.db"}


@pytest.mark.parametrize("journal_mode", ["delete", "truncate", "persist"])
def test_a_hot_journal_is_rolled_back_in_the_copy_only(live, staging, tmp_path, journal_mode):
    ledger(live, journal_mode, filler=200_000)
    clean = live.read_bytes()
    shell(live, f"PRAGMA journal_mode={journal_mode};")
    with using(live, "crash", 200):
        pass
    assert live.read_bytes() != clean  # the crash left half of its transaction in the file
    before, journal = directory(live.parent), Path(f"{live}-journal").read_bytes()
    facts, _, found = round_trip(make(live, staging), tmp_path / "restored.db")
    assert facts["way"] == "hot-journal"
    assert found.ok, found.findings
    assert found.fingerprint.tables["moves"].rows == 0
    assert balance(tmp_path / "restored.db") == 0
    assert directory(live.parent) == before
    assert Path(f"{live}-journal").read_bytes() == journal


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_an_exclusive_lock_is_waited_for_and_named(live, staging, journal_mode):
    ledger(live, journal_mode)
    shell(live, "PRAGMA journal_mode=delete;")
    with using(live, "exclusive") as user:
        with pytest.raises(SourceLocked) as locked:
            make(live, staging, lock_timeout_seconds=0.2).dump(MemorySink(), no_progress)
        assert locked.value.facts["holder_pid"] == user.child.pid


def test_a_file_replaced_during_the_copy(live, staging, tmp_path):
    ledger(live, filler=1_500_000)
    ledger(tmp_path / "other.db")

    def swap():
        os.replace(tmp_path / "other.db", live)

    with using(live, "idle"), pytest.raises(SourceChanged):
        make(live, staging).dump(MemorySink(), each_step(swap, times=1))
    assert directory(staging) == {}


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_only_the_living_part_of_the_log_is_copied(live, staging, page_size):
    """The log file keeps its greatest size; what a checkpoint has emptied is not copied again and again."""
    ledger(live, filler=1_000_000, page_size=page_size)
    with using(live, "idle"):
        shell(live, "UPDATE filler SET data=randomblob(50000);")
        shell(live, "PRAGMA wal_checkpoint(PASSIVE);")
        shell(live, "INSERT INTO moves(note) VALUES('x');")
        engine = make(live, staging)
        facts = engine.dump(MemorySink(), no_progress)
        assert engine.fingerprint(no_progress).tables["moves"].rows == 1
        engine.release()
    assert 0 < facts["log_bytes"] <= 32 + 4 * (page_size + 24)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("left", ["crashed", "in use"])
def test_pages_of_the_log_lie_all_over_a_large_file(live, staging, tmp_path, page_size, left):
    """What the sink is told to be final is read at once (MemorySink does), so each page must be right from then on."""
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        for pragma in (f"page_size={page_size}", "journal_mode=WAL", "wal_autocheckpoint=0"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute("CREATE TABLE big(n INTEGER PRIMARY KEY, x)")
        db.executemany("INSERT INTO big VALUES(?, randomblob(3000))", [(n,) for n in range(3000)])
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("UPDATE big SET x=randomblob(3000) WHERE n % 37 = 0 OR n < 20")
        db.execute("INSERT INTO big VALUES(9999, randomblob(200000))")
        expected = db.execute("SELECT * FROM big ORDER BY n").fetchall()
        if left == "crashed":
            copy = tmp_path / "crashed" / "app.db"
            copy.parent.mkdir()
            for side in ("", "-wal"):
                shutil.copy(f"{live}{side}", f"{copy}{side}")
            with open(f"{copy}-wal", "ab") as log:
                log.write(os.urandom(3 * (page_size + 24)))  # torn frames, which name pages of their own
            live = copy
        sink = MemorySink()
        facts = make(live, staging).dump(sink, no_progress)
    assert facts["way"] == ("idle" if left == "crashed" else "wal")
    (tmp_path / "restored.db").write_bytes(sink.streams["database"])
    with closing(sqlite3.connect(tmp_path / "restored.db")) as db:
        assert db.execute("SELECT * FROM big ORDER BY n").fetchall() == expected
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


class FileSink(MemorySink):
    """Copies pages to a sparse file: a gigabyte has no place in memory."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def adopt(self, name, file, page_size, *, stamp="", filled=None, on_demand=False, changing=False):
        for _ in filled or ():
            pass
        size = os.fstat(file).st_size
        with self.path.open("wb") as kept:
            for at in range(0, size, 8 << 20):
                data = os.pread(file, 8 << 20, at)
                if data.strip(b"\0"):
                    os.pwrite(kept.fileno(), data, at)
            kept.truncate(size)


@pytest.mark.slow
def test_a_database_across_the_lock_page(live, staging, tmp_path):
    """SQLite never uses the page at 1 GiB, where its lock bytes are; pages lie on both sides of it here."""
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        for pragma in ("page_size=65536", "synchronous=OFF", "journal_mode=OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE big(x)")
        db.executemany("INSERT INTO big VALUES(zeroblob(?))", [(180_000_000,)] * 6)
        db.execute("CREATE TABLE beyond(x)")
        db.execute("INSERT INTO beyond VALUES('beyond')")
        assert db.execute("SELECT rootpage FROM sqlite_schema WHERE name='beyond'").fetchone()[0] > (1 << 30) // 65536
        db.execute("PRAGMA journal_mode=WAL")
    with using(live, "idle"):
        shell(live, "INSERT INTO beyond VALUES('in the log');")
        engine = make(live, staging)
        engine.dump(FileSink(tmp_path / "kept.db"), no_progress)
    taken = engine.fingerprint(no_progress)
    engine.release()
    found = engine.examine(tmp_path / "kept.db", [], no_progress)
    assert found.ok, found.findings
    assert found.fingerprint == taken
    assert taken.tables["beyond"].rows == 2
