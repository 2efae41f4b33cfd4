"""Questions to backups of a cluster: the answers are those of the server, and a hostile owner gains nothing by them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import tracemalloc
from itertools import chain

import pytest
from postgres_pages_world import own_place
from postgres_past_world import KINDS_LATER, WAYS, Told, loaded_by, twice
from postgres_world import alive_processes, until

from dbguardd.engines.base import Bounds
from dbguardd.engines.postgresql.questions.compare import _definitions
from dbguardd.engines.postgresql.questions.tables import Table, known
from dbguardd.engines.postgresql.questions.take_out import _copied
from dbguardd.errors import Cancelled, Damaged, SourceDamaged, TooCostly, ToolMissing, Unsupported, Usage

DUMP_IN_SOAK = pytest.mark.parametrize("past", ["pages", pytest.param("dump", marks=pytest.mark.soak)], indirect=True)
"""Marks a test of what is asked of a server that runs: how a dump becomes one is what the others are about."""


@pytest.fixture(scope="module")
def made():
    with own_place() as place, twice(place) as both:
        yield both


@pytest.fixture(scope="module", params=["pages", "dump"])
def past(made, request):
    """What is asked is told in the same way, whatever the backup was made by."""
    made.backups = made.all[request.param]
    with own_place() as place, made.standing(place):
        yield made
    assert os.listdir(made.place) == []


def psql(past, text, database, *words):
    """Run a text that came out of a backup as its reader would; return what psql says."""
    live = past.live
    said = subprocess.run(
        [live.programs / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", live.socket, "-p", str(live.port),
         "-U", "postgres", "-d", database, *words],
        input=text, capture_output=True, check=False, timeout=60, cwd="/",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return said.stdout


def test_no_table_is_taken_for_another_that_is_called_like_its_whole_name():
    real, other = (
        Table(schema, name, quoted, whole=False, owner="o", within=False, columns=())
        for schema, name, quoted in (("app", "orders", "app.orders"), ("public", "app.orders", 'public."app.orders"'))
    )
    assert known({one.quoted: one for one in (real, other)}, "app.orders", "b", None) is real


def test_definitions_of_any_number_are_not_in_memory_at_once():
    read = []

    class Defined:
        def __init__(self, text):
            self._text = text

        def rows(self, _query):
            for number in range(1000):
                read.append(number)
                yield b"function f%03d" % number, b"function", b"f%03d" % number, self._text

    found = _definitions(Defined(b"a"), Defined(b"b"))
    assert next(found) == {"kind": "function", "name": "f000", "before": "a", "after": "b"} and len(read) < 5
    assert len(list(found)) == 999


class _Counted:
    """A Meter that keeps nothing."""

    size = 0

    def write(self, data):
        self.size += len(data)


def test_a_row_of_any_length_is_written_without_being_in_memory():
    size, meter = 100 << 20, _Counted()
    long = (b"x" * (256 << 10) for _ in range(size // (256 << 10)))
    head, tail = b'COPY "a\nb" FROM st', b"\nsecond FROM stdin;\n\\.\nno row\n"
    tracemalloc.start()
    try:
        rows = _copied(chain((head, b"din;\n"), long, (tail[:-9], tail[-9:])), meter)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert (rows, meter.size) == (2, size + len(head) + 5 + len(tail))


# ------------------------------------------------------------------------------------------------ query


def test_the_answer_is_that_of_the_server_as_it_was(past):
    sql = "SELECT id, name, raw, share, share > 5, id::numeric AS exact FROM buyer WHERE id IN (7, 40) ORDER BY id"
    facts, told = past.ask("query", sql)
    head, *rows = told.lines
    assert facts == {"rows": 2, "more": None} and head == ["id", "name", "raw", "share", "?column?", "exact"]
    seven = [7, "it's \\ 7\n", {"base64": "jxSb3oUPP+kt9mQ2O4n+Qg=="}, 7 / 3, False, "7"]
    assert rows[0][:2] + rows[0][3:] == seven[:2] + seven[3:] and set(rows[0][2]) == {"base64"}
    assert rows[1] == [40, "it's \\ 40\n", None, {"real": "nan"}, True, "40"]
    ((facts, _),) = past.several(("query", sql), of="two")
    assert facts == {"rows": 0, "more": None}


def test_a_question_only_reads_is_one_statement_and_says_nothing_of_a_row_when_it_fails(past):
    wrong = {
        "SELECT 1; SELECT 2": "one statement at a time",
        "DELETE FROM buyer RETURNING id": "may only read",
        "SELECT * FROM buyer FOR UPDATE": "may only read",
        "WITH gone AS (DELETE FROM buyer RETURNING id) SELECT * FROM gone": "may only read",
        "CREATE TABLE more (n int)": "one SELECT is expected",
        "COMMIT": "one SELECT is expected",
        "": "one SELECT is expected",
        "SELECT nosuch FROM buyer": 'column "nosuch" does not exist',
        "SELECT * FROM buyer WHERE name = $1": "no parameters",
        "SELECT pg_read_file('/etc/passwd')": "cannot answer that: InsufficientPrivilege",
        "SELECT lo_export(1, '/tmp/x')": "cannot answer that: InsufficientPrivilege",
        "SELECT name::int FROM buyer": "cannot answer that: InvalidTextRepresentation",
    }
    found = past.several(*(("query", sql) for sql in wrong))
    for (sql, words), error in zip(wrong.items(), found, strict=True):
        assert isinstance(error, Usage), sql
        assert words in f"{error.message}: {error.detail}" and "it's" not in str(error.problem()), sql


@pytest.mark.parametrize("past", ["pages"], indirect=True)
def test_a_question_ends_by_its_bounds(past):
    (few, told), (short, _) = past.several(
        ("query", "SELECT generate_series(1, 10)", Bounds("b", 60.0, 3, 1 << 20)),
        ("query", "SELECT repeat('x', 700) FROM generate_series(1, 9)", Bounds("b", 60.0, 9, 2000)),
    )
    assert few == {"rows": 3, "more": "rows"} and told.lines[1:] == [[1], [2], [3]]
    assert short == {"rows": 2, "more": "bytes"}
    endless = ("SELECT count(*) FROM generate_series(1, 10000000000)", "SELECT * FROM lair.slow WHERE n + 1 = 2")
    asked = [("query", sql) for sql in endless]
    found = past.several(*asked, database="other", bounds=Bounds("b", 1.0, 3, 1 << 20))
    assert [type(error) for error in found] == [TooCostly, TooCostly]


@pytest.mark.parametrize("past", ["pages"], indirect=True)
def test_a_table_whose_owner_lets_nobody_read_it_keeps_no_other_from_being_compared(past):
    pair = ("one", "two")
    ((facts, told),) = past.several(("difference", ""), of=pair, database="other", bounds=Bounds("b", 12.0, 3, 1 << 20))
    states = {line["table"]["table"]: line["table"]["state"] for line in told.lines}
    assert states == {"lair.slow": "not compared", "public.neighbour": "same"} and facts["not_compared"] == 1
    assert "no answer within the time" in told.lines[0]["table"]["why"]


@pytest.mark.parametrize("past", ["pages"], indirect=True)
def test_a_question_that_is_cancelled_leaves_nothing_behind(past):
    with pytest.raises(Cancelled):
        past.ask("query", "SELECT count(*) FROM generate_series(1, 10000000000)", told=Told(6))
    assert os.listdir(past.place) == []
    until(lambda: alive_processes(str(past.place)) == [], "the end of the server")


def test_which_database_is_meant_is_said_or_clear(past):
    with pytest.raises(Usage, match="several") as caught:
        past.ask("query", "SELECT 1", database="")
    assert "books, other, postgres, shop" in caught.value.detail and caught.value.hints[0].startswith("--database ")
    with pytest.raises(Usage, match="no database shpo"):
        past.ask("query", "SELECT 1", database="shpo")
    named = past.live.url.replace("///", "///shop")
    facts, told = past.ask("query", "SELECT current_database()", database="", url=named)
    assert told.lines[1] == ["shop"]


# ------------------------------------------------------------------------------------------------ hostile


def test_a_hostile_owner_gains_nothing_by_what_runs_when_his_tables_are_read_or_taken_out(past):
    asked = [("query", f"SELECT n::int FROM lair.{name} WHERE n + 1 > 0 ORDER BY 1") for name in WAYS]
    asked += [("table", f"lair.{name}", form) for name in WAYS for form in ("sql", "csv")]
    seen, *found = past.several(("query", "SELECT who, current_setting('is_superuser') FROM lair.seen"), *asked)
    assert seen[1].lines[1][0].startswith("dbguard_") and seen[1].lines[1][1] == "off"  # it did run
    for question, one in zip(asked, found, strict=True):
        assert not isinstance(one, Exception), (question, one)
        assert one[0]["rows"] == 2, question


# ------------------------------------------------------------------------------------------------ get


def test_a_table_that_is_taken_out_is_the_same_in_psql(past):
    names = ("buyer", 'odd.S.T"\nx', "part", "pair")
    rows = "SELECT id, name, raw, loud FROM buyer WHERE id <= 7 AND id <> 8 ORDER BY id"
    *found, (_, told) = past.several(
        *(("table", name, "sql") for name in names), ("query", f"SELECT json_agg(b) FROM ({rows}) AS b")
    )
    schema = past.ask("table", "b.*", "sql")
    past.live.sql("CREATE DATABASE copy")
    try:
        for name, (_, table) in zip(names, found, strict=True):
            text = table.data if name != 'odd.S.T"\nx' else b'CREATE SCHEMA "odd.S";\n' + table.data
            psql(past, text, "copy", "-1")
        assert schema[0]["rows"] == 0
        psql(past, schema[1].data, "copy", "-1")
        assert past.live.sql("SELECT count(*) FROM b.twice", "copy") == "0"
        assert past.live.sql(f"SELECT json_agg(b) FROM ({rows}) AS b", "copy") == told.lines[1][0].strip()
        assert past.live.sql("SELECT count(*), sum(n) FROM part", "copy") == "100|4950"
        assert past.live.sql("SELECT a, b, note IS NULL FROM pair ORDER BY b", "copy") == "x,|1|t\nx|2|f"
        assert past.live.sql("INSERT INTO buyer (name) VALUES ('n') RETURNING id", "copy") == "41"
    finally:
        past.live.sql("DROP DATABASE copy")


@DUMP_IN_SOAK
def test_a_table_comes_as_csv_and_is_found_by_its_name_or_named_that_is_meant(past):
    wrong = {
        "byer": "Did you mean public.buyer?", "twice": "a.twice, b.twice", "nosuch.buyer": "Its tables",
        "lair.seen": "no table that a backup has rows of", "passing": "no table that a backup has rows of",
    }  # fmt: skip
    names = ("public.buyer", "part", "BUYER", *wrong)
    (facts, told), (part, _), (buyer, _), *refused, short = past.several(
        *(("table", name, "csv") for name in names), ("table", "buyer", "sql", Bounds("b", 60.0, 1, 3000))
    )
    head, *rows = csv.reader(io.StringIO(told.data.decode(), newline=""))
    assert facts == buyer == {"rows": 40, "triggers": 0} and head == ["id", "name", "raw", "share"]
    assert rows[6][:2] == ["7", "it's \\ 7\n"] and rows[39][2:] == ["", "NaN"] and len(rows) == 40
    assert part["rows"] == 100
    for (name, words), error in zip(wrong.items(), refused, strict=True):
        assert isinstance(error, Usage | Unsupported) and words in f"{error.message} {error.detail}", name
    assert isinstance(short, TooCostly)


# ------------------------------------------------------------------------------------------------ diff, undelete


@DUMP_IN_SOAK
def test_what_has_changed_is_told_by_key(past):
    few_bounds = Bounds("b", 60.0, 2, 1 << 20)
    (facts, told), few = past.several(("difference", ""), ("difference", "buyer", few_bounds), of=("one", "two"))
    tables = {line["table"]["table"]: line["table"] for line in told.lines if isinstance(line.get("table"), dict)}
    counted = {name: (row["added"], row["removed"], row["changed"]) for name, row in tables.items()}
    differing = {name: counts for name, counts in counted.items() if tables[name]["state"] != "same"}
    assert differing == {
        "public.buyer": (1, 2, 1), "public.pair": (0, 1, 0), "public.keyless": (1, 1, 0), "public.part": (0, 2, 0),
        "public.going": (0, 2, 0), "public.fresh": (1, 0, 0), '"odd.S"."T""\nx"': (0, 1, 0),
        "public.kinds": (0, 0, 4),
    }  # fmt: skip
    assert facts == {"tables": len(tables), "differing": 8, "not_compared": 0,
                     "added": 3, "removed": 9, "changed": 5, "listed": 17}  # fmt: skip
    assert tables["public.pair"]["keyed_by"] == ["b", "a"] and "no primary key" in tables["public.keyless"]["why"]
    changes = [line for line in told.lines if "change" in line]
    (changed,) = (line for line in changes if (line["change"], line["table"]) == ("changed", "public.buyer"))
    assert (changed["key"], changed["before"]["name"], changed["after"]["name"]) == ({"id": 8}, "it's \\ 8\n", "other")
    assert {"table": "public.pair", "change": "removed", "key": {"b": 1, "a": "x,"},
            "before": {"a": "x,", "b": 1, "note": None}} in changes  # fmt: skip
    definitions = {line["schema"]["name"]: line["schema"] for line in told.lines if "schema" in line}
    assert {name.split(".")[1] for name in definitions} == {"going", "fresh"}
    assert definitions["public.going"]["after"] is None and definitions["public.fresh"]["before"] is None
    assert {tables[f"lair.{name}"]["state"] for name in WAYS} == {"same"}
    assert (few[0]["listed"], few[0]["removed"], len(few[1].lines)) == (2, 2, 3)


@DUMP_IN_SOAK
def test_rows_that_are_gone_come_back_by_the_sql_and_nothing_else_does(past):
    text = "SELECT name, md5(raw), share, loud FROM buyer WHERE id IN (7, 40) ORDER BY id"
    (few, some), (_, pair), (facts, script), (_, odd), hostile, *refused, (_, then) = past.several(
        ("missing", ("buyer", "name LIKE 'it''s%' -- all"), "rows"),
        ("missing", ("pair", ""), "rows"),
        ("missing", ("buyer", ""), "sql"),
        ("missing", ('odd.S.T"\nx', ""), "sql"),
        ("missing", ("lair.indexed", "n + 1 > 0"), "rows"),
        ("missing", ("keyless", ""), "rows"),
        ("missing", ("going", ""), "rows"),
        ("missing", ("buyer", "id >"), "rows"),
        ("query", f"SELECT json_agg(b) FROM ({text}) AS b"),
        of=("one", "two"),
    )
    assert few == facts == {"rows": 2, "listed": 2} and [row[0] for row in some.lines[1:]] == [7, 40]
    assert pair.lines[1:] == [["x,", 1, None]]
    assert hostile[0] == {"rows": 0, "listed": 0, "differing": 0}
    assert [type(error) for error in refused] == [Unsupported, Unsupported, Usage]
    past.live.sql('DELETE FROM buyer WHERE id IN (7, 40); DELETE FROM "odd.S"."T""\nx"', "shop")  # of another method
    before = past.live.sql("SELECT count(*) FROM buyer", "shop")
    for _ in range(2):  # what is there stays
        psql(past, script.data, "shop")
        assert past.live.sql("SELECT count(*) FROM buyer", "shop") == str(int(before) + 2)
    psql(past, odd.data, "shop")  # what is in a name is no line of the text
    assert past.live.sql('SELECT count(*) FROM "odd.S"."T""\nx"', "shop") == "1"
    assert past.live.sql(f"SELECT json_agg(b) FROM ({text}) AS b", "shop") == then.lines[1][0].strip()


TAKEN = """
CREATE FUNCTION won(varchar, varchar) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'gained'; END $$;
CREATE OPERATOR = (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = won);
"""
"""Whoever may make something in a schema of the search path has it taken for that of the server."""


@DUMP_IN_SOAK
def test_rows_that_were_changed_are_set_back_but_those_that_were_changed_again(past):
    kinds = "SELECT string_agg(k::text, ';' ORDER BY id) FROM kinds k WHERE id < 3"
    (facts, told), (none, _), (_, script), (hostile, text), odd, (same, _), (_, then) = past.several(
        ("missing", ("buyer", "id < 10"), "changed rows"),
        ("missing", ("buyer", "id = 8"), "rows"),
        ("missing", ("buyer", ""), "changed sql"),
        ("missing", ("lair.ruled", ""), "changed sql"),
        ("missing", ("kinds", ""), "changed sql"),
        ("missing", ("kinds", "id = 5"), "changed rows"),
        ("query", kinds),
        of=("one", "two"),
    )
    assert facts == {"rows": 1, "listed": 1} and none == {"rows": 0, "listed": 0, "differing": 1}
    (line,) = told.lines
    assert (line["key"], line["before"]["name"], line["after"]["name"]) == ({"id": 8}, "it's \\ 8\n", "other")
    assert same["rows"] == 0  # by what is written of a regclass, too
    assert (hostile["rows"], b"\nUPDATE " in text.data) == (0, False)
    asked = "SELECT name, loud FROM buyer WHERE id = 8"
    for changed, left in (("share = 0", "other|OTHER"), ("share = 8 / 3.0", "it's \\ 8\n|IT'S \\ 8")):
        past.live.sql(f"UPDATE buyer SET {changed} WHERE id = 8", "shop")
        psql(past, script.data, "shop")
        assert past.live.sql(asked, "shop").split() == left.split()
    past.live.sql("UPDATE buyer SET name = 'other' WHERE id = 8", "shop")  # of another method
    past.live.sql("UPDATE kinds SET words = 'x' WHERE id = 3; UPDATE kinds SET name = 'Y' WHERE id = 4", "shop")
    before = past.live.sql(kinds, "shop")
    past.live.sql("ALTER DATABASE shop SET array_nulls = off", "shop")  # so NULL in an array was read as a text
    past.live.sql(TAKEN, "shop")
    psql(past, odd[1].data, "shop")
    past.live.sql("DROP FUNCTION won CASCADE; ALTER DATABASE shop RESET array_nulls", "shop")
    assert (
        odd[0]["rows"] == 4 and past.live.sql("SELECT words || name FROM kinds WHERE id IN (3, 4)", "shop") == "xy\nY"
    )
    assert before != past.live.sql(f"SET timezone = 'UTC'; SET datestyle = 'ISO'; {kinds}", "shop") == then.lines[1][0]
    past.live.sql(KINDS_LATER, "shop")


@pytest.mark.parametrize("past", ["pages"], indirect=True)
def test_a_cluster_that_does_not_recover_is_damage_and_leaves_nothing(past):
    streams, facts = past.backups["one"]
    past.backups["torn"] = {name: data for name, data in streams.items()}, {**facts, "recovery_lsn": "FF/28"}
    with pytest.raises(SourceDamaged):
        past.ask("query", "SELECT 1", of="torn")
    subprocess.run(["rm", "-rf", *past.place.iterdir()], check=True)  # as the half does with its staging directory


# ------------------------------------------------------------------------------------------------ dumps


def test_of_a_dump_only_what_a_question_is_about_is_loaded(made):
    assert loaded_by(made, "SELECT count(*) FROM account") == ([[9]], {"public.account"})
    assert loaded_by(made, "SELECT count(*) FROM rich") == ([[5]], {"public.account", "public.booking"})
    answer, loaded = loaded_by(made, "SELECT total()")  # which tables a function reads, it alone knows
    assert answer == [[45]] and "public.account" in loaded and "public.session" not in loaded


def test_a_function_that_goes_on_after_errors_takes_nothing_for_empty(past):
    found = past.several(("query", "SELECT calm('keyless')"), ("query", "SELECT 1 UNION ALL SELECT 1"))
    assert [told.lines[1:] for _, told in found] == [[[4]], [[1], [1]]]
    (books,) = past.several(("query", "SELECT calm('session');"), database="books")  # which the policy leaves out
    if past.backups is past.all["dump"]:
        assert isinstance(books, Unsupported) and "continues after errors" in books.detail
    else:
        assert books[1].lines[1:] == [[1]]


def test_a_condition_that_goes_on_after_errors_takes_nothing_for_empty_either(past):
    (found,) = past.several(("missing", ("buyer", "id < 10 AND calm('keyless') = 4 -- all"), "rows"), of=("one", "two"))
    assert [row[0] for row in found[1].lines[1:]] == [7]
    heard, books = past.several(
        ("missing", ("account", "total() = 45"), "rows"), ("missing", ("account", "calm('session') = 1"), "rows"),
        of=("one", "two"), database="books",
    )  # fmt: skip
    assert heard[0] == {"rows": 0, "listed": 0, "differing": 0}
    if past.backups is past.all["dump"]:
        assert isinstance(books, Unsupported) and "continues after errors" in books.detail
    else:
        assert books[0] == heard[0]


def test_large_objects_can_be_asked_for_and_are_said_to_be_in_no_table(past):
    """Each is asked of a server of its own: what brings it back for one question must not be there for the next."""
    for sql, found in (
        ("SELECT encode(lo_get(page), 'escape') FROM scan WHERE id = 2", [["a page"]]),
        ("SELECT page(1)", [["a page"]]),
        ("SELECT count(*) FROM pg_largeobject", [[2]]),
    ):  # fmt: skip
        ((_, told),) = past.several(("query", sql), database="books")
        assert told.lines[1:] == found
    gone, table, calm, missing, (_, told) = past.several(
        ("query", "SELECT lo_get(1)"), ("table", "scan", "sql"), ("table", "account", "csv"),
        ("missing", ("scan", ""), "sql"), ("difference", "scan"), of=("one", "two"), database="books",
    )  # fmt: skip
    assert isinstance(gone, Usage) and "a large object that was deleted" in gone.message
    assert table[0]["large_objects"] == ["page"] and b"only their numbers: page." in table[1].data
    assert "large_objects" not in calm[0]
    assert missing[0]["large_objects"] == ["page"] and b"only their numbers: page." in missing[1].data
    assert told.lines[0]["table"]["why"] == "large objects are not compared, only their numbers: page"


@DUMP_IN_SOAK
def test_a_partition_on_another_server_keeps_nobody_from_what_is_here(past):
    whole, part, rows, (_, told) = past.several(
        ("table", "spread", "sql"), ("table", "spread1", "csv"), ("table", "spread", "csv"), ("difference", ""),
        of=("one", "two"), database="books",
    )  # fmt: skip
    assert whole[0]["rows"] == part[0]["rows"] == 2
    assert isinstance(rows, Unsupported) and "another server" in rows.message
    tables = {line["table"]["table"]: line["table"] for line in told.lines if "table" in line}
    assert "another server" in tables["public.spread"]["why"] and tables["public.spread"]["state"] == "not compared"
    assert tables["public.spread1"]["state"] == "same" and "public.spread2" not in tables


@pytest.mark.parametrize("past", ["dump"], indirect=True)
def test_rows_that_the_policy_left_out_are_said_to_be(past):
    *left_out, function, definer, view, sequence, table, (facts, told) = past.several(
        ("query", "SELECT count(*) FROM session"), ("table", "session", "sql"), ("table", "session", "csv"),
        ("query", "SELECT sessions()"), ("query", "SELECT seen()"), ("query", "SELECT * FROM sums"),
        ("query", "SELECT last_value FROM account_id_seq"), ("difference", "session"), ("difference", ""),
        of=("one", "two"), database="books",
    )  # fmt: skip
    for found in (*left_out, table):
        assert isinstance(found, Unsupported) and "public.session are not in this backup" in found.message
    assert isinstance(function, Usage) and isinstance(definer, Usage)  # never a wrong answer
    assert "materialized view" in view.message and sequence[1].lines[1] == [9]
    whys = {line["table"]["table"]: line["table"]["why"] for line in told.lines if "table" in line}
    assert facts["not_compared"] == 2 and "the policy leaves them out" in whys["public.session"]


@pytest.mark.parametrize("past", ["dump"], indirect=True)
def test_a_table_out_of_a_dump_has_all_that_it_had(past):
    names = ("account", "booking", "acc ount")
    found = past.several(*(("table", name, "sql") for name in names), database="books")
    assert [facts["rows"] for facts, _ in found] == [9, 5, 1]
    assert b"-- As its owner (clerk):" in found[0][1].data
    past.live.sql("CREATE DATABASE copy")
    try:
        psql(past, b"CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END';", "copy")
        psql(past, b"".join(bytes(told.data) for _, told in found), "copy", "-1")
        asked = "SELECT count(*), sum(n), has_table_privilege('auditor', 'account', 'SELECT'), "
        asked += "has_sequence_privilege('auditor', 'account_id_seq', 'USAGE'), col_description('account'::regclass, 2)"
        assert past.live.sql(f"{asked} FROM public.account", "copy") == "9|45|t|t|a remark"
        assert past.live.sql("INSERT INTO account (n) VALUES (1) RETURNING id", "copy") == "10"
        kinds = "SELECT string_agg(contype::text, '' ORDER BY contype) FROM pg_constraint WHERE conrelid >= 16384"
        assert past.live.sql(kinds, "copy") == "cfpp"
        assert past.live.sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal", "copy") == "1"
    finally:
        past.live.sql("DROP DATABASE copy")


@pytest.mark.parametrize("past", ["dump"], indirect=True)
def test_an_index_that_can_never_be_made_keeps_nobody_from_asking_a_dump(past):
    ((facts, _),) = past.several(("query", "SELECT * FROM neighbour"), database="other")
    assert facts["rows"] == 1


@pytest.mark.parametrize("past", ["dump"], indirect=True)
def test_a_dump_by_a_newer_program_than_there_is_here_is_refused_in_words(past):
    streams, facts = past.backups["one"]
    told = json.loads(streams["contents.json"])
    for name, said in (("newer", {"dumped_by": "99.1"}), ("broken", {"parts": None})):
        past.backups[name] = {**streams, "contents.json": json.dumps({**told, **said}).encode()}, facts
    with pytest.raises(ToolMissing, match="which pg_dump 99.1 has written, needs a server of that version"):
        past.ask("query", "SELECT 1", of="newer")
    with pytest.raises(Damaged):
        past.ask("query", "SELECT 1", of="broken")
    subprocess.run(["rm", "-rf", *past.place.iterdir()], check=True)
