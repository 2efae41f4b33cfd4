"""What a question to a backup may not do: write, reach other files, end never, need too much, believe what it reads."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

import pytest
from past_world import BOUNDS, PAST, FilePages, Told, ask, make

from dbguardd.engines.base import Bounds
from dbguardd.errors import Cancelled, Damaged, SourceDamaged, TooCostly, Unsupported, Usage


@pytest.fixture
def shop(tmp_path):
    """A database in WAL mode, a few blocks long."""
    rows = [("insert into orders values (?, ?, ?)", (n, f"who {n % 7}", b"x" * 900)) for n in range(1000)]
    return make(tmp_path / "shop.db", "create table orders (id integer primary key, who text, body blob)",
                "begin", *rows, "commit", "create view few as select * from orders limit 3",
                journal_mode="wal")  # fmt: skip


# ------------------------------------------------------------------------------------------------ only reading

WRITES = [
    "delete from orders",
    "update orders set who = 'x'",
    "insert into orders values (9999, 'x', 'y')",
    "replace into orders values (1, 'x', 'y')",
    "create table x (a)",
    "create temp table x (a)",
    "create temp view x as select 1",
    "drop table orders",
    "attach '/etc/passwd' as x",
    "attach ':memory:' as x",
    "vacuum",
    "vacuum into '/tmp/never'",
    "reindex",
    "analyze",
    "begin immediate",
    "savepoint x",
    "pragma journal_mode = delete",
    "pragma writable_schema = 1",
    "pragma query_only = 0",
    "pragma trusted_schema = 1",
    "pragma temp_store_directory = '/tmp'",
    "pragma user_version = 7",
    "select load_extension('libm.so')",
    "select fts3_tokenizer('x', x'41')",
    "select writefile('/tmp/never', 'x')",
    "select readfile('/etc/passwd')",
    "create virtual table x using fts5 (a)",
]


@pytest.mark.parametrize("sql", WRITES)
def test_nothing_can_be_done_but_reading(shop, sql):
    before = shop.read_bytes()
    with pytest.raises(Usage):
        ask(shop, sql)
    assert shop.read_bytes() == before
    assert not os.path.exists("/tmp/never")


def test_one_statement_and_nothing_less(shop):
    with pytest.raises(Usage, match="one statement at a time"):
        ask(shop, "select 1; select 2")
    with pytest.raises(Usage, match="may only read"):
        ask(shop, "select 1; delete from orders")
    for sql in ("", "  ", "-- nothing", ";"):
        with pytest.raises(Usage, match="no statement"):
            ask(shop, sql)
    assert ask(shop, "select 1; -- and a remark")[1] == [(1,)]


def test_what_is_wrong_is_said_and_which_table_was_meant(shop):
    with pytest.raises(Usage, match="no such table: oders") as caught:
        ask(shop, "select * from oders")
    assert "Its tables: few, orders." in caught.value.detail
    assert "Did you mean orders?" in caught.value.detail
    with pytest.raises(Usage, match="no such column: whom"):
        ask(shop, "select whom from orders")
    with pytest.raises(Usage, match='near "selec": syntax error'):
        ask(shop, "selec 1")
    with pytest.raises(Usage, match="no such table: ordes") as caught:
        PAST.table(FilePages(shop), "ordes", "csv", BOUNDS, Told())
    assert "Did you mean orders?" in caught.value.detail
    with pytest.raises(Unsupported, match="few is a view"):
        PAST.table(FilePages(shop), "few", "csv", BOUNDS, Told())


def test_an_error_while_it_runs_quotes_no_row(shop):
    with pytest.raises(Usage) as caught:
        ask(shop, "select json_extract('{}', 'secret ' || who) from orders")
    assert "secret" not in caught.value.message + caught.value.detail


def test_what_a_schema_can_say_of_itself_may_be_asked(shop):
    assert ask(shop, "pragma table_info(orders)")[1][1][1:3] == ("who", "TEXT")
    assert ask(shop, "select name from pragma_table_list where schema = 'main' and type = 'view'")[1] == [("few",)]
    assert ask(shop, "explain query plan select * from orders where id = 1")[1]


# ------------------------------------------------------------------------------------------------ bounds


def test_a_point_lookup_reads_a_few_blocks(tmp_path):
    path = make(tmp_path / "db", "create table t (id integer primary key, who, body)",
                "with r(n) as (select 1 union all select n + 1 from r where n < 60000)"
                " insert into t select n, 'who ' || n, randomblob(900) from r",
                "create index w on t (who)")  # fmt: skip
    pages = FilePages(path)
    assert pages.size > 50 << 20
    assert ask(path, "select id from t where id = 54321", pages=pages)[1] == [(54321,)]
    assert len(set(pages.asked)) <= 5
    assert len(pages.asked) == len(set(pages.asked))
    assert ask(path, "select id from t where who = 'who 12345'", pages=pages)[1] == [(12345,)]
    assert len(pages.asked) <= 12


def test_more_rows_or_bytes_than_allowed_are_said(shop):
    assert ask(shop, "select id from orders", Bounds("app", 9, 10, 1 << 20))[1:] == ([(n,) for n in range(10)], "rows")
    told = Told()
    assert ask(shop, "select body from orders", Bounds("app", 9, 1000, 10_000), told)[2] == "bytes"
    assert len(told.data) <= 10_000
    assert ask(shop, "select id from orders limit 10", Bounds("app", 9, 10, 1 << 20))[2] is None
    with pytest.raises(TooCostly, match="no room"):
        PAST.table(FilePages(shop), "orders", "csv", Bounds("app", 9, 1, 10_000), Told())


ENDLESS = "with recursive r(n) as (select 1 union all select n + 1 from r) select {} from r"


@pytest.mark.parametrize("sql", [ENDLESS.format("count(*)"), ENDLESS.format("max(n)") + " where n < 0",
                                 "select count(*) from orders a, orders b, orders c, orders d"])  # fmt: skip
def test_what_never_ends_is_given_up_in_time(shop, sql):
    began = time.monotonic()
    with pytest.raises(TooCostly, match="no answer within the time"):
        ask(shop, sql, Bounds("app", 0.3, 1000, 1 << 20))
    assert time.monotonic() - began < 10


def test_what_is_cancelled_ends(shop):
    with pytest.raises(Cancelled):
        ask(shop, ENDLESS.format("count(*)"), told=Told(patience=20))


@pytest.mark.parametrize(
    "sql",
    [
        "select zeroblob(1000000000)",
        "select printf('%.*c', 900000000, 'x')",
        "select hex(zeroblob(60000000)) || hex(zeroblob(60000000))",
        "with recursive r(n, b) as (select 1, zeroblob(9000000) union all select n + 1, zeroblob(9000000 + n) from r)"
        " select n, b from r order by b, n desc",
        "with recursive r(n) as (select 1 union all select n + 1 from r limit 1000)"
        " select group_concat(hex(randomblob(100000))) from r",
    ],
)
def test_what_needs_too_much_memory_is_given_up(shop, sql):
    with pytest.raises(TooCostly) as caught:
        ask(shop, sql)
    assert "in the time" not in caught.value.message
    assert ask(shop, "select 1")[1] == [(1,)]


# ------------------------------------------------------------------------------------------------ hostile, damaged


def test_damage_that_is_met_is_raised_as_it_was_told(shop):
    pages = FilePages(shop, broken=[3])
    assert ask(shop, "select id from orders where id = 1", pages=pages)[1] == [(1,)]
    with pytest.raises(Damaged, match="block 3"):
        ask(shop, "select count(body) from orders", pages=pages)
    with pytest.raises(Damaged, match="block 0"):
        ask(shop, "select 1", pages=FilePages(shop, broken=[0]))
    with pytest.raises(Damaged, match="block 3"):
        PAST.difference(FilePages(shop), pages, "", BOUNDS, Told())


def test_a_database_that_was_damaged_when_it_was_backed_up_is_an_error(tmp_path, shop):
    data = bytearray(shop.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(SourceDamaged, match="damaged when it was backed up"):
        ask(tmp_path / "bad", "select * from orders")
    (tmp_path / "noise").write_bytes(os.urandom(100_000))
    with pytest.raises(SourceDamaged):
        ask(tmp_path / "noise", "select 1")


def test_a_hostile_schema_is_an_error_or_does_nothing(tmp_path):
    path = make(tmp_path / "db", "create table t (a)", "insert into t values (1)", "pragma writable_schema = 1")
    evil = "insert into sqlite_schema values (?, ?, ?, ?, ?)"
    trigger = "create trigger g after insert on t begin select load_extension('x'); end"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma writable_schema = 1")
        db.execute(evil, ("view", "v", "v", 0, "create view v as select load_extension('x')"))
        db.execute(evil, ("trigger", "g", "t", 0, trigger))
    assert ask(path, "select a from t")[1] == [(1,)]
    with pytest.raises(Usage):
        ask(path, "select * from v")
    told = Told()
    facts = PAST.table(FilePages(path), "t", "sql", BOUNDS, told)
    assert facts["triggers"] == 1
    assert b"load_extension" not in told.data


@pytest.mark.parametrize("sql", ["create nonsense", "create table t (a); drop table u", "create table t (a) /*", ""])
def test_a_definition_is_one_statement_or_an_error(tmp_path, sql):
    path = make(tmp_path / "db", "create table t (a)", "create table u (a)")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("pragma writable_schema = 1")
        db.execute("update sqlite_schema set sql = ? where name = 't'", (sql,))
    told = Told()
    with pytest.raises((SourceDamaged, Unsupported)):
        PAST.table(FilePages(path), "t", "sql", BOUNDS, told)
    assert told.data == b""


def test_pages_in_a_circle_do_not_hang(tmp_path):
    path = make(tmp_path / "db", "create table t (a)", "begin",
                *[("insert into t values (?)", (b"x" * 500,)) for _ in range(200)], "commit")  # fmt: skip
    data = bytearray(path.read_bytes())
    root = 4096
    assert data[root] == 5  # an interior page: let its rightmost child be itself
    data[root + 8 : root + 12] = (2).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises((SourceDamaged, TooCostly)):
        ask(path, "select count(a) from t", Bounds("app", 1, 1000, 1 << 20))
