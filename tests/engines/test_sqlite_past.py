"""Questions to a backup that nobody restored: the answers are those of the restored file."""

from __future__ import annotations

import csv
import io
import math
import sqlite3
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from past_world import BOUNDS, PAST, FilePages, Told, ask, back, make, typed

from dbguardd.engines.base import Bounds
from dbguardd.errors import Unsupported, Usage

# ------------------------------------------------------------------------------------------------ the same answers

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=6
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30)
VALUES = (
    st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=30)
)
KEYS = st.sampled_from(["", "integer primary key", "text primary key", "primary key", "blob unique", "int"])
PAGE_SIZES = st.sampled_from([512, 4096, 65536])


@st.composite
def contents(draw):
    """A table of any columns and rows: (name, declarations, options, rows)."""
    columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.lower))
    columns = [name for name in columns if name.lower() not in ("rowid", "oid", "_rowid_")] or ["a"]
    kinds = [draw(st.sampled_from(["", "text", "integer", "real", "blob", "text collate nocase"])) for _ in columns]
    key = draw(KEYS)
    without = "without rowid" if "primary" in key and draw(st.booleans()) else ""
    declared = [f"{quoted(name)} {kind}" for name, kind in zip(columns, kinds, strict=True)]
    declared[0] = f"{quoted(columns[0])} {key}"
    many = draw(st.integers(0, 60))
    return "t", declared, without, draw(st.lists(st.tuples(*[VALUES] * len(columns)), min_size=many, max_size=many))


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def built(path, content, page_size=4096, encoding="UTF-8"):
    name, declared, without, rows = content
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"pragma page_size = {page_size}")
        db.execute(f"pragma encoding = '{encoding}'")
        db.execute(f"create table {name} ({', '.join(declared)}) {without}")
        for row in rows:
            with suppress(sqlite3.IntegrityError):  # a text for an integer key
                db.execute(f"insert or ignore into {name} values ({', '.join('?' * len(row))})", row)
    return path


def read(path, sql, text=None):
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        if text:
            db.text_factory = text
        cursor = db.execute(sql)
        return [column[0] for column in cursor.description], cursor.fetchall()


@settings(max_examples=60)
@given(contents(), PAGE_SIZES, st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]))
def test_the_answer_is_that_of_the_restored_file(content, page_size, encoding):
    with tempfile.TemporaryDirectory() as place:
        path = built(Path(place) / "db", content, page_size, encoding)
        for sql in (
            "select * from t",
            "select count(*), max(1) from t",
            "select *, 1 as one from t order by 1 desc, 2",
        ):
            head, rows = read(path, sql)
            found = ask(path, sql)
            assert (found[0], found[2]) == (head, None)
            assert typed(found[1]) == typed(rows)


@settings(max_examples=60)
@given(contents(), PAGE_SIZES, st.sampled_from(["UTF-8", "UTF-16le"]))
def test_a_table_that_is_taken_out_is_the_same_in_the_shell(content, page_size, encoding):
    with tempfile.TemporaryDirectory() as place:
        path, copy = built(Path(place) / "db", content, page_size, encoding), Path(place) / "copy"
        told = Told()
        facts = PAST.table(FilePages(path), "T", "sql", BOUNDS, told)
        run = subprocess.run(["sqlite3", "-bail", copy], input=told.data, capture_output=True, check=False, timeout=60)
        assert (run.returncode, run.stderr) == (0, b"")
        head, rows = read(path, "select * from t")
        assert facts == {"rows": len(rows), "triggers": 0}
        assert (read(copy, "select * from t")[0], typed(read(copy, "select * from t")[1])) == (head, typed(rows))
        assert [row[4] for row in read(path, "select * from sqlite_schema")[1]] == [
            row[4] for row in read(copy, "select * from sqlite_schema")[1]
        ]


# ------------------------------------------------------------------------------------------------ differences


def totals(**known):
    names = ("tables", "differing", "not_compared", "added", "removed", "changed", "listed")
    return dict.fromkeys(names, 0) | known


def test_every_difference_is_found_by_what_tells_rows_apart(tmp_path):
    old = make(tmp_path / "old", "create table a (id integer primary key, v, w text collate nocase)",
               "insert into a values (1, 1, 'x'), (2, 'same', 'same'), (3, 'gone', null)",
               "create table b (v)", "insert into b values (1), (1), (2)",
               "create table c (k text, l text, primary key (k, l))",  # NULL tells nothing apart
               "insert into c values (null, 'a'), (null, 'a'), ('k', 'l')",
               "create table gone (v)", "insert into gone values (1), (2)", "create index av on a (v)")  # fmt: skip
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "update a set v = 1.0, w = 'X' where id = 1", "delete from a where id = 3",
         "insert into a values (4, 4, 4)",
         "delete from b where rowid = 2", "update c set l = 'b' where rowid = 2", "drop table gone",
         "create table fresh (v)", "insert into fresh values (7)", "drop index av")  # fmt: skip
    told = Told()
    facts = PAST.difference(FilePages(old), FilePages(new), "", BOUNDS, told)
    changes = [(row["table"], row["change"], row["key"]) for row in told.lines if "change" in row]
    assert changes == [
        ("a", "removed", {"id": 3}),  # what is lost comes first: a list of many that are new would hide it
        ("a", "changed", {"id": 1}),
        ("a", "added", {"id": 4}),
        ("b", "removed", {"rowid": 2}),
        ("c", "changed", {"rowid": 2}),
        ("fresh", "added", {}),
        ("gone", "removed", {}),
        ("gone", "removed", {}),
    ]
    assert facts == {
        "tables": 5,
        "differing": 5,
        "not_compared": 0,
        "added": 2,
        "removed": 4,
        "changed": 2,
        "listed": 8,
    }
    definitions = {(row["schema"]["kind"], row["schema"]["name"]) for row in told.lines if "schema" in row}
    assert definitions == {("index", "av"), ("table", "fresh"), ("table", "gone")}
    changed = next(row for row in told.lines if row.get("change") == "changed")
    assert (changed["before"], changed["after"]) == ({"id": 1, "v": 1, "w": "x"}, {"id": 1, "v": 1.0, "w": "X"})


def test_what_is_not_listed_is_counted_all_the_same(tmp_path):
    old = make(tmp_path / "old", "create table a (id integer primary key, v)")
    new = make(tmp_path / "new", "create table a (id integer primary key, v)",
               "with r(n) as (select 1 union all select n + 1 from r where n < 5000)"
               " insert into a select n, n from r")  # fmt: skip
    told = Told()
    facts = PAST.difference(FilePages(old), FilePages(new), "A", Bounds("app", 20, 3, 1 << 20), told)
    assert facts == {
        "tables": 1,
        "differing": 1,
        "not_compared": 0,
        "added": 5000,
        "removed": 0,
        "changed": 0,
        "listed": 3,
    }
    told = Told()
    facts = PAST.difference(FilePages(old), FilePages(new), "", Bounds("app", 20, 9999, 20_000), told)
    assert facts["added"] == 5000
    assert 0 < facts["listed"] < 5000
    assert len(told.data) <= 20_000
    assert told.lines[-1]["table"]["added"] == 5000


def test_tables_that_cannot_be_compared_are_said_to_be_so(tmp_path):
    old = make(tmp_path / "old", "create table a (id integer primary key, v, w)", "insert into a values (1, 2, 3)")
    new = make(tmp_path / "new", "create table a (v primary key, id, x)", "insert into a values (1, 2, 3)")
    told = Told()
    facts = PAST.difference(FilePages(old), FilePages(new), "a", BOUNDS, told)
    assert (facts["not_compared"], facts["added"]) == (1, 0)
    (line,) = told.lines
    assert (line["table"]["state"], line["table"]["why"], line["table"]["added"]) == (
        "not compared", "its key has changed", None,
    )  # fmt: skip
    wider = make(tmp_path / "wider", "create table a (id integer primary key, v, z)", "insert into a values (1, 5, 3)")
    told = Told()
    PAST.difference(FilePages(old), FilePages(wider), "a", BOUNDS, told)
    assert told.lines[-1]["table"]["why"] == "removed column, not compared: w; new column, not compared: z"
    assert told.lines[0]["after"] == {"id": 1, "v": 5}
    columns = ", ".join(f"c{number}" for number in range(1200))
    many = [f"create table many (id integer primary key, {columns})", "insert into many (id) values (1)"]
    make(wider, *many)
    for both in (wider, make(tmp_path / "more", "create table a (v)", *many)):
        told = Told()
        facts = PAST.difference(FilePages(both), FilePages(wider), "", BOUNDS, told)
        facts_of = [line["table"] for line in told.lines if isinstance(line.get("table"), dict)]
        assert "too many columns" in next(row["why"] for row in facts_of if row["table"] == "many")
        assert facts["not_compared"] == 1 + (both != wider)


@settings(max_examples=80)
@given(st.data())
def test_the_difference_applied_to_the_one_gives_the_other(data):
    content = data.draw(contents())
    with tempfile.TemporaryDirectory() as place:
        old, new, copy = (Path(place) / name for name in ("old", "new", "copy"))
        built(old, content)
        new.write_bytes(old.read_bytes())
        _change(new, data)
        told = Told()
        facts = PAST.difference(FilePages(old), FilePages(new), "", BOUNDS, told)
        copy.write_bytes(old.read_bytes())
        changes = [line for line in told.lines if "change" in line]
        assert len(changes) == facts["added"] + facts["removed"] + facts["changed"]
        _apply(copy, changes)
        everything = "select typeof({0}), {0}, * from t order by 1, 2".format(_key(new))
        assert typed(read(copy, everything)[1]) == typed(read(new, everything)[1])
        assert told.lines[-1]["table"]["state"] == ("differs" if changes else "same")


def _key(path):
    rows = read(path, "pragma table_xinfo(t)")[1]
    return "rowid" if not any(row[5] for row in rows) else quoted(next(row[1] for row in rows if row[5]))


def _change(path, data):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        columns = [row[1] for row in db.execute("pragma table_info(t)")]
        for _ in range(data.draw(st.integers(0, 6))):
            row = data.draw(st.tuples(*[VALUES] * len(columns)))
            name = quoted(data.draw(st.sampled_from(columns)))
            one = f"{name} in (select {name} from t limit 1 offset {data.draw(st.integers(0, 20))})"
            insert = f"insert or ignore into t values ({', '.join('?' * len(row))})"
            update = f"update or ignore t set {name} = ? where {one}"
            what = [(insert, row), (update, row[:1]), (f"delete from t where {one}", ())]
            with suppress(sqlite3.IntegrityError):  # a text for an integer key
                db.execute(*data.draw(st.sampled_from(what)))


def _apply(path, changes):
    """Remove first: a value that must be unique may have moved to another row."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for change in changes:
            if change["change"] != "added":
                where, values = _where(change["key"])
                assert db.execute(f"delete from t where {where}", values).rowcount == 1, change
        for change in changes:
            if change["change"] != "removed":
                row = {**change["after"], **({} if set(change["key"]) <= set(change["after"]) else change["key"])}
                names = ", ".join(map(quoted, row))
                marks = ", ".join("?" * len(row))
                db.execute(f"insert into t ({names}) values ({marks})", [back(item) for item in row.values()])


def _where(key):
    return " and ".join(f"{quoted(name)} = ?" for name in key), [back(item) for item in key.values()]


# ------------------------------------------------------------------------------------------------ missing rows


def put_back(old, new, where="", table="t", form="sql", then=()):
    """Run the SQL for what is missing on the newer one, with the real shell; return the facts. `then`: done before."""
    told = Told()
    facts = PAST.missing((FilePages(old), FilePages(new)), (table, where), form, BOUNDS, told)
    make(new, *then)
    run = subprocess.run(["sqlite3", "-bail", new], input=told.data, capture_output=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, b"")
    return facts


def test_missing_rows_come_back_and_what_is_there_stays(tmp_path):
    old = make(tmp_path / "old", "create table t (id integer primary key, v, gone)",
               "insert into t values (1, 'a', 1), (2, x'ff00', 2), (3, 9e999, 3), (4, null, 4)")  # fmt: skip
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "delete from t where id in (2, 3, 4)", "update t set v = 'changed' where id = 1",
         "alter table t drop column gone", "alter table t add column fresh default 7")  # fmt: skip
    told = Told()
    facts = PAST.missing((FilePages(old), FilePages(new)), ("T", "id < 4 -- a remark"), "rows", BOUNDS, told)
    assert facts == {"rows": 2, "listed": 2}
    assert [[back(item) for item in row] for row in told.lines] == [["id", "v"], [2, b"\xff\0"], [3, math.inf]]
    few = Bounds("app", 9, 1, 1 << 20)
    assert PAST.missing((FilePages(old), FilePages(new)), ("t", ""), "rows", few, Told()) == {"rows": 3, "listed": 1}
    make(new, "insert into t values (3, 'somebody else', 8)")
    assert put_back(old, new, "id <> 4") == {"rows": 1, "listed": 1}
    assert put_back(old, new, "id <> 4") == {"rows": 0, "listed": 0, "differing": 2}
    assert read(new, "select * from t")[1] == [(1, "changed", 7), (2, b"\xff\0", 7), (3, "somebody else", 8)]


def test_changed_rows_are_set_back_but_those_that_were_changed_again(tmp_path):
    old = make(tmp_path / "old", "create table t (k text collate nocase primary key, v, w, l as (length(w)) stored)",
               "insert into t values ('a', 1, x'00'), ('b', 1, 'o''; --\n')",
               "insert into t values ('c', 9e999, null), ('d', 'd', 'd')")  # fmt: skip
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "update t set v = 1.0, w = cast(x'ff' as text), k = 'A' where k = 'a'",
         "delete from t where k = 'd'",
         "update t set v = null, w = 'x' where k in ('b', 'c')",
         "alter table t add column fresh default 7")  # fmt: skip
    told = Told()
    sides = (FilePages(old), FilePages(new))
    facts = PAST.missing(sides, ("T", "k <> 'b' -- a remark"), "changed rows", BOUNDS, told)
    assert facts == {"rows": 2, "listed": 2} and [line["key"] for line in told.lines] == [{"k": "A"}, {"k": "c"}]
    assert back(told.lines[1]["before"]["v"]) == math.inf and told.lines[1]["after"]["w"] == "x"
    with pytest.raises(Usage, match="no such column"):
        PAST.missing(sides, ("t", "n.k = 1"), "changed rows", BOUNDS, Told())
    again = ["update t set w = 'again' where k = 'c'"]
    assert put_back(old, new, form="changed sql", then=again) == {"rows": 3, "listed": 3}
    assert typed(read(new, "select * from t order by k")[1]) == typed(
        [("a", 1, b"\0", 1, 7), ("b", 1, "o'; --\n", 7, 7), ("c", None, "again", 5, 7)]
    )


def test_no_table_has_too_many_columns_to_be_told_that_nothing_is_missing(tmp_path):
    columns = ", ".join(['"true"', *(f"c{number}" for number in range(600))])
    old = make(tmp_path / "old", f"create table t (k integer primary key, {columns})", "insert into t (k) values (1)")
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, 'update t set "true" = 1')
    facts = PAST.missing((FilePages(old), FilePages(new)), ("t", ""), "rows", BOUNDS, Told())
    assert facts == {"rows": 0, "listed": 0, "differing": 1}


def test_a_column_may_be_called_as_nothing_that_comes_out_of_a_select_is(tmp_path):
    made = 'create table t (k integer, "true", False, primary key (k, false)) without rowid'
    old = make(tmp_path / "old", made, "insert into t values (1, 'a', 1), (1, 'b', 2), (2, 'c', 1)")
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "update t set \"true\" = 'z'")
    for where, found in (("k = 1 -- all", ["a", "b"]), ("\"true\" = 'b'", ["b"]), ("false = 3", [])):
        told, sides = Told(), (FilePages(old), FilePages(new))
        facts = PAST.missing(sides, ("t", where), "changed rows", BOUNDS, told)
        assert [line["before"]["true"] for line in told.lines] == found and facts["rows"] == len(found)
        assert PAST.missing(sides, ("t", where), "rows", BOUNDS, Told())["differing"] == len(found)


@pytest.mark.parametrize(
    ("columns", "since", "said", "left"),
    [
        ("v unique on conflict replace, w", "insert into t values (2, 'a', 0)", "UNIQUE constraint", ("b", "w")),
        ("v, w", "alter table t rename w to x; update t set x = 0", "no such column", ("b", 0)),
    ],
)
def test_what_is_set_back_replaces_nothing_that_somebody_has_made_since(tmp_path, columns, since, said, left):
    old = make(
        tmp_path / "old", f"create table t (k integer primary key, {columns})", "insert into t values (1,'a','w')"
    )
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "update t set v = 'b'")
    told = Told()
    PAST.missing((FilePages(old), FilePages(new)), ("t", ""), "changed sql", BOUNDS, told)
    make(new, *since.split("; "))
    before = read(new, "select * from t")[1]
    run = subprocess.run(["sqlite3", "-bail", new], input=told.data, capture_output=True, check=False, timeout=60)
    assert run.returncode == 1 and said in run.stderr.decode()
    assert read(new, "select * from t")[1] == before and before[0] == (1, *left)


@settings(max_examples=25)
@given(contents(), st.data())
def test_what_was_changed_is_set_back(content, data):
    with tempfile.TemporaryDirectory() as place:
        old, new = Path(place) / "old", Path(place) / "new"
        built(old, content)
        new.write_bytes(old.read_bytes())
        key = _key(old)
        others = [name for row in read(old, "pragma table_info(t)")[1] if (name := quoted(row[1])) != key]
        assume(others)
        value = data.draw(st.sampled_from(["null", "1", "1.0", "'x'", "x'00'"]))
        make(new, f"update or ignore t set {data.draw(st.sampled_from(others))} = {value}")
        try:
            put_back(old, new, form="changed sql")
        except Unsupported:
            assert key == "rowid" or read(old, f"select count(*) from t where {key} is null")[1] != [(0,)]
            return
        everything = f"select typeof({key}), {key}, * from t order by 1, 2"
        assert typed(read(new, everything)[1]) == typed(read(old, everything)[1])


@settings(max_examples=40)
@given(contents(), st.data())
def test_what_was_deleted_comes_back(content, data):
    with tempfile.TemporaryDirectory() as place:
        old, new = Path(place) / "old", Path(place) / "new"
        built(old, content)
        new.write_bytes(old.read_bytes())
        key = _key(old)
        make(new, f"delete from t where abs(length(quote({key}))) % {data.draw(st.integers(1, 3))} = 0")
        try:
            put_back(old, new)
        except Unsupported:
            assert key == "rowid" or read(old, f"select count(*) from t where {key} is null")[1] != [(0,)]
            return
        everything = f"select typeof({key}), {key}, * from t order by 1, 2"
        assert typed(read(new, everything)[1]) == typed(read(old, everything)[1])


def test_only_a_key_says_for_sure_what_is_missing(tmp_path):
    old = make(tmp_path / "old", "create table a (v)", "insert into a values (1)",
               "create table b (k text primary key)", "insert into b values (null), ('x')",
               "create table c (v integer primary key)", "create table d (k)")  # fmt: skip
    new = tmp_path / "new"
    new.write_bytes(old.read_bytes())
    make(new, "drop table c", "drop table d", "create table d (k integer primary key)")
    for name in "abcd":
        with pytest.raises(Unsupported):
            put_back(old, new, table=name)
    with pytest.raises(Usage, match="no such table: e"):
        put_back(old, new, table="e")
    good = make(tmp_path / "good", "create table t (id integer primary key)")
    for where in ("idd = 1", "1); select (1", "id = (select id from nothing)", "load_extension('x')"):
        with pytest.raises(Usage):
            put_back(good, good, where)


# ------------------------------------------------------------------------------------------------ values


def test_values_of_every_kind_keep_what_they_are(tmp_path):
    path = make(tmp_path / "db", "create table t (a)",
                ("insert into t values (?), (?), (?), (?), (9e999), (cast(x'ff41' as text)), (?)",
                 (None, 1 << 62, "nul\0 and \x1b[31m", b"\0\xff", math.pi)))  # fmt: skip
    assert ask(path, "select a from t where typeof(a) <> 'text'")[1] == [
        (None,), (1 << 62,), (b"\0\xff",), (math.inf,), (math.pi,)
    ]  # fmt: skip
    assert ask(path, "select a from t where rowid = 3")[1] == [("nul\0 and \x1b[31m",)]
    with pytest.raises(Unsupported, match="not valid UTF-8"):
        ask(path, "select a from t")
    told = Told()
    PAST.table(FilePages(path), "t", "csv", BOUNDS, told)
    rows = list(csv.reader(io.StringIO(told.data.decode("utf-8", "surrogateescape").replace("\0", "NUL"))))
    assert [row[0] if row else "" for row in rows] == [
        *("a", "", str(1 << 62), "nulNUL and \x1b[31m", "00ff", "inf", "\udcffA", repr(math.pi))
    ]
    told = Told()
    PAST.table(FilePages(path), "t", "sql", BOUNDS, told)
    copy = tmp_path / "copy"
    subprocess.run(["sqlite3", "-bail", copy], input=told.data, check=True, timeout=60)
    raw = "select typeof(a), cast(a as blob) from t"
    assert read(copy, raw)[1] == read(path, raw)[1]
