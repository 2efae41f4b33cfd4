"""The fingerprint of a live cluster: of the very tables of the snapshot, and nothing of their owners runs for it."""

import pytest
from postgres_pages_world import own_place, proven, stored
from postgres_world import as_owner, cluster

from dbguardd.engines.base import Fingerprint, Untold

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
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_what_is_no_more_the_table_of_the_snapshot_is_not_told(live, swap):
    live.sql("CREATE TABLE kept AS SELECT generate_series(1, 10) AS n", "shop")
    try:
        _streams, _facts, taken = as_owner(stored, live, None, lambda: live.sql(swap, "shop"))
        assert isinstance(taken, Untold) and "kept" in taken.why
    finally:
        live.sql('DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE "none" ()', "shop")


def test_a_label_that_is_renamed_while_its_values_are_read_is_not_told(live):
    live.sql("CREATE TYPE mood AS ENUM ('fine', 'so'); CREATE TABLE said AS SELECT 'so'::mood AS how", "shop")
    try:
        rename = "ALTER TYPE mood RENAME VALUE 'so' TO 'so so'"
        _streams, _facts, taken = as_owner(stored, live, None, lambda: live.sql(rename, "shop"))
        assert isinstance(taken, Untold) and "label" in taken.why
        add = "ALTER TYPE mood ADD VALUE 'bad'"
        _streams, _facts, taken = as_owner(stored, live, None, lambda: live.sql(add, "shop"))
        assert isinstance(taken, Fingerprint)
    finally:
        live.sql("DROP TABLE said; DROP TYPE mood", "shop")
