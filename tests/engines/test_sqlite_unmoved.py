"""A database that nobody changes is read where it is. Whatever is done to it meanwhile, one commit of it is kept."""

import os
import subprocess
from contextlib import ExitStack

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import balance, directory, ledger, make, shell, using

from dbguardd.errors import SourceChanged, SourceLocked

COMMIT = (
    "BEGIN; UPDATE a SET amount=amount-1 WHERE id=1; UPDATE b SET amount=amount+1 WHERE id=2;"
    "INSERT INTO moves(note) VALUES('during'); UPDATE filler SET data=randomblob(50000) WHERE rowid % 5 = 0; COMMIT;"
)
MODES = ("wal", "delete", "truncate", "persist")


class Middle(MemorySink):
    """Does something before a step is asked for: 0 is the first, -1 the last, when all was read."""

    def __init__(self, action, step=0):
        super().__init__()
        self.action, self.step, self.asked = action, step, 0

    def adopt(self, name, file, page_size, *, stamp="", filled=None, on_demand=False, changing=False):
        def acting():
            for there in filled:
                last = there == os.fstat(file).st_size
                if self.step == 0:
                    self.act()
                yield there
                if last and self.step == -1:
                    self.act()

        self.asked += on_demand
        super().adopt(
            name, file, page_size, filled=acting() if on_demand else filled, on_demand=on_demand, changing=changing
        )

    def act(self):
        action, self.action = self.action, None
        if action:
            action()


def stays(live, staging):
    """Say if files are read in place here: where the file system clones them, a copy is better."""
    facts = make(live, staging).dump(MemorySink(), no_progress)
    return not facts["cloned"]


@pytest.fixture(autouse=True)
def _no_clones(tmp_path):
    ledger(tmp_path / "probe.db")
    if not stays(tmp_path / "probe.db", tmp_path / "probing"):
        pytest.skip("this file system copies in one step")


def restored(engine, sink, facts, target):
    """Restore what a sink holds and return what is found, and the pages as they are."""
    engine.restore(MemoryTree(sink, facts), target, no_progress)
    found = engine.examine(target, [], no_progress)
    assert found.ok, found.findings
    assert balance(target) == 0
    return found


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_copied_before_the_backup_is_there(live, staging, tmp_path, mode):
    ledger(live, mode, filler=2_000_000)
    before, copies = directory(live.parent), []
    sink = Middle(lambda: copies.append(directory(staging)), -1)
    engine = make(live, staging)
    facts = engine.dump(sink, no_progress)
    assert (facts["way"], facts["tries"], facts["blocked_seconds"], copies) == ("unmoved", 1, 0.0, [{}])
    assert sink.streams["database"] == live.read_bytes()
    taken = engine.fingerprint(no_progress)
    engine.release()
    assert directory(staging) == {}
    assert directory(live.parent) == before
    assert restored(engine, sink, facts, tmp_path / "restored.db").fingerprint == taken


def vacuum(live):
    shell(live, "DELETE FROM filler WHERE rowid > 3; VACUUM;")


def grow(live):
    shell(live, "INSERT INTO filler SELECT data FROM filler;")


def swap(live):
    ledger(live.with_name("other.db"), accounts=7)
    os.replace(live.with_name("other.db"), live)


EVENTS = {
    "commit": lambda live: shell(live, COMMIT),
    "vacuum": vacuum,
    "grow": grow,
    "to another mode": lambda live: shell(live, f"PRAGMA journal_mode=WAL; {COMMIT} PRAGMA journal_mode=DELETE;"),
    "replaced": swap,
}


@pytest.mark.parametrize("step", [0, -1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", EVENTS)
def test_who_changes_it_meanwhile_has_it_copied(live, staging, tmp_path, mode, event, step):
    ledger(live, mode, filler=1_500_000)
    engine, sink = make(live, staging), Middle(lambda: EVENTS[event](live), step)
    facts = engine.dump(sink, no_progress)
    assert (facts["way"] == "unmoved", facts["tries"], sink.asked) == (False, 2, 1)
    taken = engine.fingerprint(no_progress)
    engine.release()
    assert restored(engine, sink, facts, tmp_path / "restored.db").fingerprint == taken
    assert taken.tables["a"].rows == (7 if event == "replaced" else 50)


@pytest.mark.parametrize("mode", MODES)
def test_an_application_in_the_middle_of_a_transaction(live, staging, tmp_path, mode):
    ledger(live, mode, filler=1_500_000)
    with ExitStack() as users:
        engine, sink = make(live, staging), Middle(lambda: users.enter_context(using(live, "open-transaction")))
        facts = engine.dump(sink, no_progress)
        taken = engine.fingerprint(no_progress, MemoryTree(sink, facts))
        assert restored(engine, sink, facts, tmp_path / "restored.db").fingerprint == taken
    assert taken.tables["moves"].rows == 0
    assert shell(live, "SELECT note FROM moves").split() == ["mine"]


@pytest.mark.parametrize("mode", MODES)
def test_nobody_waits_for_it(live, staging, mode):
    """An application may have the file for itself while it is read, at once."""
    ledger(live, mode, filler=1_500_000)
    done = []
    alone = "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; INSERT INTO moves(note) VALUES('alone'); COMMIT;"
    sink = Middle(lambda: done.append(subprocess.run(["sqlite3", "-bail", str(live), alone], check=True)))
    make(live, staging).dump(sink, no_progress)
    assert done


def test_an_application_that_has_it_for_itself_at_the_end_is_waited_for(live, staging):
    """It may be in the middle of a commit: no state that is seen beside it says anything."""
    ledger(live, "delete", filler=1_500_000)
    with ExitStack() as users:
        engine = make(live, staging, lock_timeout_seconds=0.2)
        with pytest.raises(SourceLocked):
            engine.dump(Middle(lambda: users.enter_context(using(live, "exclusive")), -1), no_progress)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("event", ["commit", "vacuum", "replaced", "deleted"])
def test_the_rows_are_those_of_the_backup_if_it_changed_afterwards(live, staging, tmp_path, mode, event):
    ledger(live, mode, filler=1_500_000)
    engine, sink = make(live, staging), MemorySink()
    facts = engine.dump(sink, no_progress)
    assert facts["way"] == "unmoved"
    live.unlink() if event == "deleted" else EVENTS[event](live)
    with pytest.raises(SourceChanged):
        engine.fingerprint(no_progress)
    assert directory(staging) == {}
    taken = engine.fingerprint(no_progress, MemoryTree(sink, facts))
    assert taken.tables["moves"].rows == 0
    assert restored(engine, sink, facts, tmp_path / "restored.db").fingerprint == taken
    engine.release()
    assert directory(staging) == {}


def test_a_log_that_is_there_is_part_of_the_database(live, staging):
    ledger(live, filler=100_000)
    with using(live, "crash-after-commit"):
        pass
    assert make(live, staging).dump(MemorySink(), no_progress)["way"] == "idle"


def test_a_writer_that_was_killed_leaves_a_journal_that_counts(live, staging, tmp_path):
    """It dies while the file is read: with half of its transaction there, and the other half in the journal."""
    ledger(live, "delete", filler=1_500_000)

    def die():
        with using(live, "crash", 200):
            pass

    engine, sink = make(live, staging), Middle(die)
    facts = engine.dump(sink, no_progress)
    assert (facts["way"], facts["tries"]) == ("hot-journal", 2)
    assert restored(engine, sink, facts, tmp_path / "restored.db").fingerprint.tables["moves"].rows == 0
