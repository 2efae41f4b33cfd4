"""Databases in words that only a newer SQLite knows, or their application: nothing is wrong with them."""

import sqlite3
from contextlib import closing

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from sqlite_world import make

from dbguardd.engines.base import ProofQuery
from dbguardd.engines.fingerprint import NoFingerprint
from dbguardd.errors import SourceDamaged

TRIGGER = "CREATE TRIGGER kept BEFORE DELETE ON t BEGIN SELECT rise(old.a) SOMETIMES; END"
VIEW = "CREATE VIEW seen AS SELECT a FROM t SOMETIMES ORDERED"  # which is understood up to its last word
TABLE = "CREATE TABLE u (x DEFAULT 1_0_)"


def written(path, *changes, version=3_999_001):
    """Make a database in which definitions are as a later version of SQLite may write them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        db.executemany("INSERT INTO t (b) VALUES (?)", [("one",), ("two",)])
        db.execute("CREATE TABLE u (x)")
        db.execute("INSERT INTO u VALUES (1)")
        db.execute("CREATE VIEW seen AS SELECT a FROM t")
        db.execute("CREATE TRIGGER kept BEFORE DELETE ON t BEGIN SELECT 1; END")
        db.execute("PRAGMA writable_schema=ON")
        for name, sql in changes:
            db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", [sql, name])
    with path.open("r+b") as file:
        file.seek(96)
        file.write(version.to_bytes(4, "big"))


def taken(live, staging):
    """Back up; return the engine, the backup, and what its content was said to be."""
    engine, sink = make(live, staging), MemorySink()
    facts = engine.dump(sink, no_progress)
    content = engine.fingerprint(no_progress)
    engine.release()
    return engine, MemoryTree(sink, facts), content


def outcomes(found):
    return {one.name: one.outcome for one in found.findings}


def test_words_of_a_newer_sqlite_are_no_damage(live, staging, tmp_path):
    written(live, ("kept", TRIGGER), ("seen", VIEW))
    engine, tree, content = taken(live, staging)
    assert (len(content.tables), content.rows) == (2, 3)
    engine.restore(tree, tmp_path / "new.db", no_progress)
    queries = [ProofQuery("SELECT count(*) FROM t", equals=2), ProofQuery("SELECT max(a) FROM seen", min=0)]
    found = engine.examine(tmp_path / "new.db", queries, no_progress)
    assert found.fingerprint == content
    assert [one.outcome for one in found.findings] == ["ok"] * 5 + ["inconclusive"]  # nobody knows the view


def test_a_table_in_words_of_a_newer_sqlite_is_kept_and_not_judged(live, staging, tmp_path):
    written(live, ("u", TABLE))
    engine, tree, content = taken(live, staging)
    assert isinstance(content, NoFingerprint)
    assert "table u" in content.why
    engine.restore(tree, tmp_path / "new.db", no_progress)
    found = engine.examine(tmp_path / "new.db", [], no_progress)
    assert found.fingerprint is None
    assert [outcomes(found)[name] for name in ("content", "integrity_check")] == ["inconclusive"] * 2


def test_what_no_newer_sqlite_has_written_is_damage(live, staging):
    written(live, ("seen", VIEW), version=3_007_000)
    with pytest.raises(SourceDamaged):
        taken(live, staging)


@pytest.mark.parametrize("changes", [(("seen", VIEW),), (("u", TABLE),)])
@pytest.mark.parametrize("changed", ["live", "restored", "both"])
def test_it_is_replaced_in_place(live, staging, tmp_path, changes, changed):
    written(live, *(changes if changed != "restored" else ()))
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("INSERT INTO t (b) VALUES ('newer')")
    source = tmp_path / "source.db"
    written(source, *(changes if changed != "live" else ()))
    inode = live.stat().st_ino
    make(live, staging).replace(source, no_progress)
    assert live.stat().st_ino == inode
    with closing(sqlite3.connect(live)) as db, closing(sqlite3.connect(source)) as wanted:
        for each in (db, wanted):
            each.execute("PRAGMA writable_schema=ON")
        question = "SELECT (SELECT count(*) FROM t), group_concat(sql) FROM sqlite_schema"
        assert db.execute(question).fetchall() == wanted.execute(question).fetchall()


def test_an_index_over_a_function_of_the_application_is_inconclusive(live, staging):
    with closing(sqlite3.connect(live)) as db:
        db.create_function("mine", 1, lambda text: text[::-1], deterministic=True)
        db.execute("CREATE TABLE t (x TEXT)")
        db.execute("CREATE INDEX i ON t (mine(x))")
        db.executemany("INSERT INTO t VALUES (?)", [("ab",), ("cd",)])
        db.commit()
    found = make(live, staging).examine(live, [], no_progress)
    assert outcomes(found)["integrity_check"] == "inconclusive"
    assert found.fingerprint.tables["t"].rows == 2
