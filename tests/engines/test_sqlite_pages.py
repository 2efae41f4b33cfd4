"""Method pages: what is backed up is what the last commit made, whatever goes on beside it."""

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import balance, directory, ledger, using

from dbguardd.engines import ENGINES


def make(live, staging, **settings):
    return ENGINES["sqlite"]({"path": str(live), "staging": str(staging), **settings}).snapshots


def round_trip(engine, target):
    sink = MemorySink()
    facts = engine.dump(sink, no_progress)
    taken = engine.fingerprint(no_progress)
    engine.release()
    engine.restore(MemoryTree(sink, facts), target, no_progress)
    return facts, taken, engine.examine(target, [], no_progress)


@pytest.mark.parametrize("journal_mode", ["wal", "delete", "truncate", "persist", "memory"])
@pytest.mark.parametrize("pause", [0.0, 0.002])
def test_a_backup_beside_a_writer_is_one_commit(live, staging, tmp_path, journal_mode, pause):
    ledger(live, journal_mode, filler=2_000_000)
    with using(live, "write", pause) as writer:
        engine = make(live, staging, max_block_seconds=1.0)
        for number in range(3):
            target = tmp_path / f"restored-{number}.db"
            facts, taken, found = round_trip(engine, target)
            assert found.fingerprint == taken
            assert found.ok, found.findings
            assert balance(target) == 0
            assert facts["way"] == ("wal" if journal_mode == "wal" else "rollback")
        assert writer.end()["commits"] > 20
    assert directory(staging) == {}
