"""Both methods restore exactly: random schemas, values and histories; and every page size and kind of table."""

import io
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_world import directory, make, round_trip

from dbguardd.engines.sqlite import content
from dbguardd.engines.sqlite.content import fingerprint
from dbguardd.engines.sqlite.script import replay
from dbguardd.errors import Cancelled, Unsupported

METHODS = ["pages", "dump"]
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.text("a;'\"\n\r\0.-/ \t", max_size=12),
    st.binary(max_size=40),
)
TYPES = st.sampled_from(["", "INTEGER", "TEXT", "REAL", "BLOB", "NUMERIC", "VARCHAR(9)"])
NAMES = st.sampled_from(["a", "B b", 'q"q', "it's", "rowid", "oid", "semi;\nc", "select", "é"])


@st.composite
def histories(draw):
    """Statements that make a database: settings, then tables, rows, changes and further schema."""
    steps = [
        (f"PRAGMA page_size={2 ** draw(st.integers(9, 16))}", ()),
        (f"PRAGMA encoding='{draw(st.sampled_from(['UTF-8', 'UTF-16le', 'UTF-16be']))}'", ()),
        (f"PRAGMA auto_vacuum={draw(st.integers(0, 2))}", ()),
        (f"PRAGMA journal_mode={draw(st.sampled_from(['wal', 'delete']))}", ()),
        (f"PRAGMA user_version={draw(st.integers(-(2**31), 2**31 - 1))}", ()),
    ]
    for number in range(draw(st.integers(1, 3))):
        table = f'"t{number};"'
        columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.lower))
        quoted = ['"' + name.replace('"', '""') + '"' for name in columns]
        defined = [f"{name} {draw(TYPES)}" for name in quoted]
        kind = draw(st.sampled_from(["rowid", "key", "auto", "desc", "without", "generated"]))
        key = {"key": "id INTEGER PRIMARY KEY", "auto": "id INTEGER PRIMARY KEY AUTOINCREMENT"}
        key |= {"desc": "id INTEGER PRIMARY KEY DESC", "without": "id INTEGER PRIMARY KEY"}
        key |= {"generated": f"g AS (typeof({quoted[0]})) STORED, h AS (length({quoted[-1]}))"}
        defined += [key[kind]] if kind in key else []
        steps.append((f"CREATE TABLE {table}({', '.join(defined)}) {'WITHOUT ROWID' if kind == 'without' else ''}", ()))
        given_id = kind == "without"
        marks = ",".join("?" * (len(columns) + given_id))
        into = ", ".join([*quoted, "id"] if given_id else quoted)
        for row in range(draw(st.integers(0, 8))):
            values = [draw(VALUES) for _ in columns]
            steps.append((f"INSERT INTO {table}({into}) VALUES({marks})", [*values, row] if given_id else values))
        after = [
            f"DELETE FROM {table} WHERE {quoted[0]} IS NULL",
            f"UPDATE {table} SET {quoted[-1]} = x'00ff'",
            f'CREATE INDEX {table[:-1]}i" ON {table}({quoted[0]})',
            f'CREATE VIEW {table[:-1]}v" AS SELECT * FROM {table}',
            f'CREATE TRIGGER {table[:-1]}g" AFTER INSERT ON {table} BEGIN DELETE FROM {table}; SELECT 1; END',
            f"ALTER TABLE {table} ADD COLUMN added DEFAULT 'it''s'",
            "ANALYZE",
            "VACUUM",
        ]
        steps += [(step, ()) for step in draw(st.lists(st.sampled_from(after), unique=True, max_size=4))]
    return steps


def build(path, steps):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        for sql, values in steps:
            db.execute(sql, values).fetchall()


def fingerprint_of(path):
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
        return fingerprint(db, path.stat().st_size, lambda done: None)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=histories())
def test_random_histories(method, steps):
    with TemporaryDirectory() as place:
        live = Path(place, "live.db")
        build(live, steps)
        engine, sink = make(live, Path(place, "staging"), method=method), MemorySink()
        facts = engine.dump(sink, no_progress)
        taken = engine.fingerprint(no_progress)
        engine.release()
        engine.restore(MemoryTree(sink, facts), Path(place, "restored.db"), no_progress)
        found = engine.examine(Path(place, "restored.db"), [], no_progress)
        assert found.ok, found.findings
        assert found.fingerprint == taken
        if method == "pages":
            assert Path(place, "restored.db").read_bytes() == live.read_bytes()
            return
        by_shell = Path(place, "shell.db")
        subprocess.run(
            ["sqlite3", "-bail", str(by_shell)], input=sink.streams["dump.sql"], check=True, capture_output=True
        )
        assert fingerprint_of(by_shell) == taken


KINDS = """
CREATE VIRTUAL TABLE words USING fts5(title, body);
INSERT INTO words VALUES('one', 'the quick brown fox'), ('two', 'jumps over');
CREATE TABLE base(id INTEGER PRIMARY KEY, body TEXT);
CREATE VIRTUAL TABLE outside USING fts5(body, content='base', content_rowid='id');
INSERT INTO base VALUES(7, 'external words'); INSERT INTO outside(rowid, body) SELECT id, body FROM base;
CREATE VIRTUAL TABLE old USING fts4(x); INSERT INTO old VALUES('fourth');
CREATE VIRTUAL TABLE box USING rtree(id, low, high); INSERT INTO box VALUES(1, 0.5, 2.5);
CREATE TABLE pairs(k TEXT, n INT, v, PRIMARY KEY(k, n)) WITHOUT ROWID;
INSERT INTO pairs VALUES('b', 1, x'00'), ('a', 2, 'z');
CREATE TABLE strict(i INTEGER, r REAL, t TEXT, b BLOB, a ANY) STRICT;
INSERT INTO strict VALUES(1, 2.5, 't', x'ff', NULL);
CREATE TABLE made(a INT, b INT AS (a * 2) STORED, c TEXT AS (a || '!')); INSERT INTO made(a) VALUES(1), (2);
CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, x CHECK(x > 0)); INSERT INTO counted(x) VALUES(1), (2);
DELETE FROM counted; PRAGMA ignore_check_constraints=ON; INSERT INTO counted(x) VALUES(-1);
CREATE INDEX part ON base(lower(body)) WHERE id > 1; CREATE UNIQUE INDEX one ON pairs(v);
CREATE TABLE child(p REFERENCES base(id)); INSERT INTO child VALUES(99);
CREATE VIEW seen AS SELECT * FROM base JOIN pairs; ANALYZE; PRAGMA application_id=77;
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16be"])
def test_every_kind_of_table(live, staging, tmp_path, method, page_size, encoding):
    with closing(sqlite3.connect(live)) as db:
        db.executescript(
            f"PRAGMA page_size={page_size}; PRAGMA encoding='{encoding}'; PRAGMA auto_vacuum=FULL; {KINDS}"
        )
    facts, taken, found = round_trip(make(live, staging, method=method), tmp_path / "restored.db")
    assert found.fingerprint == taken
    assert {finding.name for finding in found.findings if finding.outcome == "failed"} <= {"integrity_check"}
    assert any("1 rows of child" in finding.detail for finding in found.findings)
    assert facts["page_size"] == page_size
    with closing(sqlite3.connect(tmp_path / "restored.db")) as db:
        assert db.execute("SELECT title FROM words WHERE words MATCH 'brown'").fetchall() == [("one",)]
        assert db.execute("SELECT rowid FROM outside WHERE outside MATCH 'external'").fetchall() == [(7,)]
        assert db.execute("INSERT INTO words(words) VALUES('integrity-check')").fetchall() == []
        assert db.execute("SELECT id FROM box WHERE low < 1").fetchall() == [(1,)]
        assert db.execute("SELECT seq FROM sqlite_sequence").fetchall() == [(3,)]
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (1,)


# ------------------------------------------------------------------------------------------------ fingerprint


def digest_of(rows, encoding="UTF-8", columns="x"):
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"PRAGMA encoding='{encoding}'")
        db.execute(f"CREATE TABLE t({columns})")
        for sql, values in rows:
            db.execute(f"INSERT INTO t VALUES({sql})", values)
        return fingerprint(db, 10**6, lambda done: None).tables["t"].digest


def test_values_of_different_types_or_bytes_differ():
    literals = ["NULL", "0", "0.0", "-0.0", "''", "x''", "'0'", "x'30'", "1", "'a'", "x'61'", "'a' || char(0)"]
    literals += ["CAST(x'ff' AS TEXT)", "CAST(x'c3bf' AS TEXT)", "CAST(x'eda080' AS TEXT)", "x'ff'", "9e999", "-9e999"]
    literals += ["9223372036854775807", "9223372036854775807.0", "'é'", "'e' || char(769)"]
    digests = [digest_of([(literal, ())]) for literal in literals]
    assert len(set(digests)) == len(literals)


def test_neighbouring_values_cannot_be_shifted():
    two = "x, y"
    assert digest_of([("?,?", ("ab", "c"))], columns=two) != digest_of([("?,?", ("a", "bc"))], columns=two)
    assert digest_of([("?", ("a",)), ("?", ("b",))]) != digest_of([("?", ("ab",))])
    assert digest_of([("?", (b"a",)), ("?", (b"b",))]) != digest_of([("?", (b"b",)), ("?", (b"a",))])


def test_the_digest_does_not_depend_on_how_the_table_was_read():
    """A large value, or text that is no UTF-8, makes the second, careful way be used."""
    small = [("?", (f"value {n}",)) for n in range(1000)]
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE t(x)")
        db.executemany("INSERT INTO t VALUES(?)", [values for _, values in small])
        query = db.execute("SELECT x FROM t")
        careful = content._scan(query, 1, 10**6, lambda done: None)[0].digest
    assert digest_of(small) == careful
    large = [*small, ("zeroblob(300000)", ()), ("?", ("x" * 300_000,))]
    assert digest_of(large) != digest_of(small)


def test_the_encoding_is_pinned():
    """Fingerprints live as long as backups: the same rows must give these digests with every Python and SQLite."""
    rows = [("NULL", ()), ("1", ()), ("-9223372036854775808", ()), ("0.1", ()), ("'é'", ()), ("x'00ff'", ())]
    rows += [("CAST(x'ff' AS TEXT)", ()), ("'interned'", ())]
    assert digest_of(rows) == PINNED


PINNED = "b83f5e1db5d21b22e932f720e97ecf23fe113bbd364483d8684e1dc452ce1b56"


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6), st.data())
def test_any_change_of_a_value_changes_the_fingerprint(values, data):
    position = data.draw(st.integers(0, len(values) - 1))
    other = data.draw(VALUES)
    changed = [*values[:position], other, *values[position + 1 :]]
    same = all(type(a) is type(b) and repr(a) == repr(b) for a, b in zip(values, changed, strict=True))
    one = digest_of([("?", (value,)) for value in values])
    two = digest_of([("?", (value,)) for value in changed])
    assert (one == two) == same


def test_schema_and_settings_are_part_of_it(live, staging):
    base = ["CREATE TABLE t(x)"]
    changes = [
        "CREATE INDEX i ON t(x)",
        "CREATE VIEW v AS SELECT 1",
        "PRAGMA user_version=5",
        "PRAGMA application_id=5",
    ]
    changes += ["CREATE TABLE u(x)", "ALTER TABLE t ADD COLUMN y", "DROP TABLE t"]
    found = set()
    for number, change in enumerate(["SELECT 1", *changes]):
        path = live.with_name(f"{number}.db")
        build(path, [(sql, ()) for sql in [*base, change]])
        found.add(fingerprint_of(path).schema_digest)
    assert len(found) == len(changes) + 1


def test_fingerprint_can_be_cancelled(live, staging):
    build(live, [("CREATE TABLE t(x)", ()), *[("INSERT INTO t VALUES(1)", ())] * 50])
    engine = make(live, staging)
    engine.dump(MemorySink(), no_progress)

    def cancel(step, done, total):
        raise Cancelled("job: cancelled")

    with pytest.raises(Cancelled):
        engine.fingerprint(cancel)
    engine.release()
    assert directory(staging) == {}


# ------------------------------------------------------------------------------------------------ hostile text


def test_a_definition_that_is_two_statements_is_refused(live, staging):
    build(live, [("CREATE TABLE t(x)", ())])
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql='CREATE TABLE t(x); ATTACH ''/tmp/evil'' AS e'")
    with pytest.raises(Unsupported):
        make(live, staging, method="dump").dump(MemorySink(), no_progress)


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH '{place}/evil.db' AS e;",
        "SELECT load_extension('{place}/evil.so');",
        "PRAGMA temp_store_directory='{place}';",
        "CREATE VIRTUAL TABLE v USING fts5(x);",
        "VACUUM INTO '{place}/evil.db';",
        "CREATE TEMP TABLE x(y);",
    ],
)
def test_replaying_allows_only_what_is_written(tmp_path, sql):
    text = sql.format(place=tmp_path).encode() + b"\n"
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db, pytest.raises(sqlite3.Error):
        replay(db, io.BytesIO(text), lambda done: None)
    assert directory(tmp_path) == {}


def test_a_text_that_was_cut_off_is_refused():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db, pytest.raises(sqlite3.Error):
        replay(db, io.BytesIO(b"CREATE TABLE t(x);\nINSERT INTO t VALUES('a"), lambda done: None)
