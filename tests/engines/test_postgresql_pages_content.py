"""The fingerprint of a live cluster: of the very tables of the snapshot, and nothing of their owners runs for it."""

import struct

import pytest
from blake3 import blake3
from postgres_pages_world import own_place, proven, stored
from postgres_world import as_owner, cluster

from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.content import fingerprint

HOSTILE = """
CREATE ROLE mallory LOGIN; CREATE SCHEMA s AUTHORIZATION mallory; SET ROLE mallory;
CREATE FUNCTION s.acts(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
  IF current_user = 'postgres' THEN RAISE EXCEPTION 'mallory acts as postgres'; END IF; RETURN n; END $$;
CREATE TABLE s.t (a int, b int GENERATED ALWAYS AS (s.acts(a)) STORED, c text DEFAULT s.acts(1)::text);
INSERT INTO s.t (a) SELECT generate_series(1, 50);
CREATE INDEX ON s.t ((s.acts(1) + a)); CREATE STATISTICS s.st ON (s.acts(1) + a), (s.acts(2) + a) FROM s.t;
ALTER TABLE s.t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON s.t USING (s.acts(1) = 2);
CREATE MATERIALIZED VIEW s.m AS SELECT a FROM s.t; CREATE INDEX ON s.m ((s.acts(1) + a));
RESET ROLE;
"""


@pytest.fixture(scope="module")
def live():
    with cluster() as made:
        made.sql("CREATE DATABASE shop")
        made.sql('CREATE SCHEMA p; CREATE SCHEMA "p.q"; CREATE TABLE "p.q".r AS SELECT 1 AS a;'
                 'CREATE TABLE p."q.r" AS SELECT 2 AS a; CREATE TABLE "none" ()', "shop")  # fmt: skip
        yield made


def test_nothing_of_an_owner_runs_while_his_table_is_read(live):
    live.sql(HOSTILE, "shop")
    try:
        with own_place() as place:
            streams, facts, taken = as_owner(stored, live)
            found = as_owner(proven, live, streams, facts, place / "restored")
        assert isinstance(taken, Fingerprint)
        assert taken.tables["shop.s.t"].rows == 50
        assert found.fingerprint == taken
    finally:
        live.sql("DROP OWNED BY mallory CASCADE; DROP ROLE mallory", "shop")


def test_names_with_dots_are_not_taken_for_each_other(live):
    _streams, _facts, taken = as_owner(stored, live)
    assert {'shop."p.q".r', 'shop.p."q.r"', 'shop.public."none"'} <= set(taken.tables)
    assert taken.tables['shop."p.q".r'].digest != taken.tables['shop.p."q.r"'].digest


SWAPS = {
    "another table": "ALTER TABLE kept RENAME TO old; CREATE TABLE kept (LIKE old)",
    "a view": "DROP TABLE kept; CREATE VIEW kept AS SELECT 1 / 0 AS n",
    "a materialized view": "DROP TABLE kept; CREATE MATERIALIZED VIEW kept AS SELECT 1 AS n",
    "nothing": "DROP TABLE kept",
    "itself, emptied": "TRUNCATE kept",
    "with a column more": "ALTER TABLE kept ADD COLUMN more int",
    "with another column of the name": "ALTER TABLE kept DROP COLUMN n; ALTER TABLE kept ADD COLUMN n int",
    "with a column of another type": "ALTER TABLE kept ALTER COLUMN n TYPE oid",
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_what_is_no_more_the_table_of_the_snapshot_is_not_told(live, swap):
    live.sql("CREATE TABLE kept AS SELECT generate_series(1, 10) AS n", "shop")
    try:
        _streams, _facts, taken = as_owner(stored, live, None, lambda: live.sql(swap, "shop"))
        assert isinstance(taken, NoFingerprint) and "kept" in taken.why
    finally:
        live.sql('DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE "none" ()', "shop")


def test_a_label_that_is_renamed_while_its_values_are_read_is_not_told(live):
    live.sql("CREATE TYPE mood AS ENUM ('fine', 'so'); CREATE TABLE said AS SELECT 'so'::mood AS how", "shop")
    try:
        rename = "ALTER TYPE mood RENAME VALUE 'so' TO 'so so'"
        back = "ALTER TYPE mood RENAME VALUE 'so so' TO 'so'"
        for renames in (rename, f"{back}; {rename}"):
            _streams, _facts, taken = as_owner(stored, live, None, lambda what=renames: live.sql(what, "shop"))
            assert isinstance(taken, NoFingerprint) and "label" in taken.why
        add = "ALTER TYPE mood ADD VALUE 'bad'"
        _streams, _facts, taken = as_owner(stored, live, None, lambda: live.sql(add, "shop"))
        assert isinstance(taken, Fingerprint)
    finally:
        live.sql("DROP TABLE said; DROP TYPE mood", "shop")


NAMING = """
CREATE ROLE passing; CREATE VIEW v AS SELECT 1 AS one; GRANT SELECT ON v TO passing; GRANT SELECT (one) ON v TO passing;
CREATE TYPE pair AS (n int, what regrole); CREATE DOMAIN views AS regclass[]; CREATE TABLE empty (what regtype);
CREATE TABLE naming (what regclass, more views, who pair, made oid GENERATED ALWAYS AS (what::oid) STORED, note text);
INSERT INTO naming (what, more, who, note)
  SELECT 'v', ARRAY['v'::regclass], ROW(n, 'passing')::pair, md5(n::text) FROM generate_series(1, 9) n;
CREATE INDEX ON naming ((made::regclass)); ANALYZE naming;
"""


def test_what_values_and_rights_name_is_told_by_number_whatever_it_is_called_meanwhile(live):
    """A view that its owner renames, a role that is dropped after an hour: of today, and not of the snapshot."""
    live.sql(NAMING, "shop")
    after = (
        "ALTER VIEW v RENAME TO w; DROP OWNED BY passing; DROP ROLE passing; "
        "ALTER TABLE naming ALTER made DROP EXPRESSION"
    )
    with own_place() as place:
        streams, facts, taken = as_owner(stored, live, None, lambda: live.sql(after, "shop"))
        found = as_owner(proven, live, streams, facts, place / "restored")
        older = as_owner(proven, live, streams, {**facts, "fingerprint_form": None}, place / "older")
    assert taken.tables["shop.public.naming"].rows == 9 and taken.tables["shop.public.empty"].rows == 0
    assert found.fingerprint == taken
    assert older.fingerprint is None and not older.ok
    assert [one.name for one in older.findings if one.outcome == "inconclusive"] == ["the fingerprint of the backup"]
    live.sql("UPDATE naming SET what = 'pg_class' WHERE ctid = (SELECT min(ctid) FROM naming)", "shop")
    assert as_owner(stored, live)[2].tables["shop.public.naming"] != taken.tables["shop.public.naming"]
    live.sql("DROP TABLE naming, empty; DROP TYPE pair; DROP DOMAIN views; DROP VIEW w", "shop")


KEPT = """
CREATE ROLE one; CREATE TABLE inner_one (n int) PARTITION BY RANGE (n);
CREATE TABLE outer_one (i inner_one, r regclass, a aclitem);
INSERT INTO outer_one VALUES (ROW(1), 'inner_one', 'one=r/postgres'), (ROW(2), 'inner_one', NULL);
"""


def test_what_has_no_number_in_any_form_is_not_told_if_it_was_renamed(live):
    """Rights that somebody has kept in a table, and rows in rows whose type was given a column."""
    live.sql(KEPT, "shop")
    try:
        for after, what in (
            ("ALTER ROLE one RENAME TO two", "a role"),
            ("ALTER TABLE inner_one RENAME TO inner_two", "a relation"),
            ("ALTER TABLE inner_two ADD COLUMN m int", "a type of rows"),
            ("CREATE ROLE one; CREATE TABLE inner_one (n int)", ""),
        ):
            taken = as_owner(stored, live, None, lambda after=after: live.sql(after, "shop"))[2]
            assert what in taken.why if what else isinstance(taken, Fingerprint), taken
    finally:
        live.sql("DROP TABLE IF EXISTS outer_one, inner_one, inner_two", "shop")
        live.sql("DROP ROLE IF EXISTS one; DROP ROLE IF EXISTS two")


HUGE = """CREATE TABLE huge (v varbit); DO $$ DECLARE v varbit := B'1'; BEGIN
FOR n IN 1..30 LOOP v := v || v; END LOOP; INSERT INTO huge VALUES (v); END $$"""


def test_a_value_whose_text_no_server_can_make_is_content(live):
    """That of bytea is twice its size, that of bits eight times: without it a whole backup is said to be damaged."""
    live.sql(HUGE, "shop")

    def read():
        with connected(address_of(live.url), "shop") as connection:
            connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ", prepare=False)
            return fingerprint([(b"shop", connection)], lambda: None)

    try:
        found = as_owner(read).tables["shop.public.huge"]
    finally:
        live.sql("DROP TABLE huge", "shop")
    row = blake3(struct.pack(">hii", 1, 4 + (1 << 27), 1 << 30) + b"\xff" * (1 << 27))
    assert (found.rows, found.digest) == (1, row.digest()[::-1].hex())
