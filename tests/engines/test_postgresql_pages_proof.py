"""Proofs of physical backups: of clusters that are hostile, that are locked, and that have many databases."""

import ctypes
import os
import signal
import struct
import time

import pytest
from engine_memory import no_progress
from postgres_pages_world import failed, made, own_place, proven, round_trip, shop, stored, tree
from postgres_world import alive_processes, as_owner, cluster, until

from dbguardd.engines.base import ProofQuery
from dbguardd.engines.fingerprint import NoFingerprint
from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.check import check_structure


@pytest.fixture(scope="module")
def live():
    with shop() as made:
        yield made


@pytest.fixture
def place():
    with own_place() as made:
        yield made


# ------------------------------------------------------------------------------------------------------------- hostile

TRAP = """
CREATE TABLE bait (n int); INSERT INTO bait VALUES (1);
CREATE FUNCTION spring() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE home text := current_setting('data_directory'); place text; tried text[];
BEGIN
  IF current_setting('port') <> '5432' THEN RETURN; END IF;  -- the live server
  tried := ARRAY['COPY (SELECT 1) TO ''' || home || '/ran''',
    'COPY (SELECT 1) TO PROGRAM ''cat > ' || home || '/program''',
    'COPY (SELECT 1) TO ''' || home || '/RESTORE.txt''',
    'COPY (SELECT 1) TO ''' || home || '/pg_hba.conf.dbguard-aside'''];
  FOR place IN SELECT name FROM pg_catalog.pg_ls_dir(home || '/..', true, true) AS name LOOP
    tried := tried || ('COPY (SELECT 1) TO ''' || home || '/../' || place || '/pg_hba.conf''');
  END LOOP;
  FOREACH place IN ARRAY tried LOOP
    BEGIN EXECUTE place; EXCEPTION WHEN OTHERS THEN NULL; END;
  END LOOP;
END $$;
CREATE FUNCTION trap(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN PERFORM public.spring(); RETURN n; END $$;
CREATE INDEX ON bait ((n + trap(1)));
"""
"""The server runs the function, which is a superuser's, when an index is checked."""


def test_a_function_that_runs_in_the_proof_starts_no_program_and_reaches_nothing_that_configures(live, place):
    live.sql(TRAP, "shop")
    target = place / "restored"
    try:
        _, _, taken, found = as_owner(round_trip, live, target)
    finally:
        live.sql("DROP TABLE bait; DROP FUNCTION trap, spring", "shop")
    assert (target / "ran").exists()  # it did run, and as a superuser
    assert not (target / "program").exists()
    assert (target / "pg_hba.conf").read_text() == (live.data / "pg_hba.conf").read_text()
    text = (target / "RESTORE.txt").read_text()
    assert text.startswith("# A PostgreSQL") and "If\n# it is not installed, or" in text
    assert failed(found) == {} and found.fingerprint == taken
    assert os.listdir(place) == ["restored"]


def test_a_proof_that_is_killed_leaves_what_configures_the_cluster_until_the_next_restore(live, place):
    streams, facts, _ = as_owner(stored, live)

    def killed(step, done, total):
        if step == "read":
            os.kill(os.getpid(), signal.SIGKILL)

    def prove():
        engine = made(live)
        engine.restore(tree(streams, facts), place / "restored", no_progress)
        engine.examine(place / "restored", (), killed)

    with pytest.raises(pytest.fail.Exception, match="-9"):
        as_owner(prove)
    until(lambda: alive_processes(str(place)) == [], "the end of the throw-away server")
    (aside,) = place.glob(".restored.*.dbguard")
    assert (aside / "pg_hba.conf").read_text() == (live.data / "pg_hba.conf").read_text()
    assert (aside / "RESTORE.txt").exists() and not (place / "restored" / "RESTORE.txt").exists()

    def again():
        made(live).restore(tree(streams, facts), place / f"again{len(os.listdir(place))}", no_progress)
        return not aside.exists()

    until(lambda: as_owner(again), "a restore that clears it away")


def test_a_kernel_that_cannot_confine_writing_is_named_and_the_content_is_compared_all_the_same(live, place):
    def without_landlock():
        libc = ctypes.CDLL(None)
        steps = ((0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000))  # ENOSYS
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter_, 0, 0) == 0
        return round_trip(live, place / "restored")

    if os.geteuid() != 0:
        pytest.skip("NOT RUN: no child is made for the owner, and what it is refused cannot be taken back")
    _, _, taken, found = as_owner(without_landlock)
    assert list(failed(found)) == ["the server was kept to its directory"]
    assert found.ok and found.fingerprint == taken


# ---------------------------------------------------------------------------------------------------------------- many


def test_a_cluster_of_many_databases_is_proven_and_without_snapshots_each_is_read_by_itself(live, place):
    def allowing(connections):
        live.sql(f"ALTER SYSTEM SET max_connections = {connections}")
        live.stop(signal.SIGINT)
        live.start()

    names = [f"many{number}" for number in range(5)]
    allowing(24)  # of which a quarter may be taken
    for name in names:
        live.sql(f"CREATE DATABASE {name} STRATEGY file_copy")
    try:
        _, _, without = as_owner(stored, live)
        allowing(200)
        streams, facts, taken, found = as_owner(round_trip, live, place / "restored")
    finally:
        for name in names:
            live.sql(f"DROP DATABASE {name}")
    assert isinstance(without, NoFingerprint) and "max_connections" in without.why
    assert failed(found) == {} and found.fingerprint == taken and len(facts["snapshots"]) == len(names) + 3
    found = as_owner(proven, live, streams, {**facts, "snapshots": {}}, place / "other")
    read = {finding.name for finding in found.findings if finding.outcome == "ok"}
    assert {f"every table of {name} can be read" for name in ("shop", *names)} <= read
    assert failed(found) == {} and found.fingerprint is None


def test_a_cluster_whose_log_has_large_files_is_proven(place):
    with cluster("--wal-segsize=64") as other:  # of which a server wants two, and more than it takes by itself
        _, _, taken, found = as_owner(round_trip, other, place / "restored")
    assert set(failed(found)) == {"page checksums"} and found.fingerprint == taken


# -------------------------------------------------------------------------------------------------------------- locked


def test_what_a_prepared_transaction_has_locked_is_not_waited_for_and_is_no_damage(place):
    deadline = time.monotonic() + 600

    def patient(step, done, total):
        assert time.monotonic() < deadline, f"it waits: {step}"

    def tried(live, target):
        streams, facts, taken = stored(live)
        engine = made(live)
        engine.restore(tree(streams, facts), target, no_progress)
        return taken, engine.examine(target, [ProofQuery("SELECT count(*) FROM public.own", equals=1)], patient)

    with cluster() as live:
        live.sql("ALTER SYSTEM SET max_prepared_transactions = 4; ALTER SYSTEM SET max_locks_per_transaction = 512")
        live.stop(signal.SIGINT)
        live.start()
        live.sql("CREATE TABLE own (n int PRIMARY KEY); INSERT INTO own VALUES (1)")
        many = "SELECT count(pg_advisory_xact_lock(n)) FROM generate_series(1, 20000) n"  # more than there is room for
        live.sql(f"BEGIN; LOCK TABLE own IN ACCESS EXCLUSIVE MODE; {many}; PREPARE TRANSACTION 'kept'")
        taken, found = as_owner(tried, live, place / "restored")
        live.sql("ROLLBACK PREPARED 'kept'")
        later, whole = as_owner(tried, live, place / "later")
    assert isinstance(taken, NoFingerprint) and "own" in taken.why
    told = {one.name: one for one in found.findings if one.name in failed(found)}
    query = "query: SELECT count(*) FROM public.own"
    assert set(told) == {"every table can be read", "structure of postgres", query, "page checksums"}
    assert {one.outcome for name, one in told.items() if name != "page checksums"} == {"inconclusive"}
    assert all("prepared transaction" in one.detail for name, one in told.items() if name != "page checksums")
    assert "public.own" in told["structure of postgres"].detail
    assert set(failed(whole)) == {"page checksums"} and whole.ok and whole.fingerprint == later


# --------------------------------------------------------------------------------------------- an owner, no superuser

OVERLOADS = """
CREATE EXTENSION amcheck; CREATE SCHEMA dbguard_amcheck;
SET ROLE mallory; CREATE TABLE q (n int PRIMARY KEY); INSERT INTO q SELECT generate_series(1, 5000);
CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('is_superuser') = 'on' THEN
    EXECUTE 'COPY (SELECT 1) TO ''' || current_setting('data_directory') || '/superuser''';
  ELSIF current_setting('port') = '5432' THEN
    RAISE EXCEPTION 'not a superuser'; END IF; END $$;
CREATE FUNCTION bt_index_check(oid, boolean) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM public.act(); END $$;
CREATE FUNCTION verify_heapam(relation oid, check_toast boolean)
  RETURNS TABLE (blkno bigint, offnum integer, attnum integer, msg text) LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.act(); END $$;
CREATE FUNCTION looks(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
  BEGIN PERFORM public.act(); EXCEPTION WHEN OTHERS THEN NULL; END; RETURN n; END $$;
CREATE VIEW v AS SELECT looks(n) AS n FROM q;
CREATE FUNCTION refuses() RETURNS event_trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM public.act(); RAISE EXCEPTION 'nobody defines anything here'; END $$;
RESET ROLE; CREATE EVENT TRIGGER refuses ON ddl_command_start EXECUTE FUNCTION refuses();
ALTER EVENT TRIGGER refuses ENABLE ALWAYS;
"""


@pytest.mark.parametrize("hurt", [False, True], ids=["whole", "damaged"])
def test_an_owner_who_is_no_superuser_becomes_none_and_hides_no_damage(place, hurt):
    """Functions of his have the names and arguments that checks are called by, and run in the admin's own queries."""
    asked = [ProofQuery("SELECT sum(n) FROM public.v", equals=12502500, database="shop")]

    def tried(live, target):
        streams, facts, taken = stored(live)
        index = live.sql("SELECT pg_relation_filepath('q_pkey')", "shop")
        engine = made(live)
        engine.restore(tree(streams, facts), target, no_progress)
        if hurt:
            data = bytearray((target / index).read_bytes())
            at = 8192 + 24  # the first leaf: two of its items change places
            data[at + 8 : at + 12], data[at + 12 : at + 16] = data[at + 12 : at + 16], data[at + 8 : at + 12]
            (target / index).write_bytes(data)
        return taken, engine.examine(target, asked, no_progress)

    with cluster() as live:
        live.sql("CREATE ROLE mallory LOGIN; CREATE DATABASE shop OWNER mallory")
        live.sql(OVERLOADS, "shop")
        taken, found = as_owner(tried, live, place / "restored")
    assert not (place / "restored" / "superuser").exists()
    assert found.fingerprint == taken
    assert set(failed(found)) - {"page checksums"} == ({"structure of shop"} if hurt else set())
    if hurt:
        assert "q_pkey" in failed(found)["structure of shop"]


def test_a_check_that_does_not_end_is_ended():
    """An index may be of an expression that catches whatever tells it to end."""
    stubborn = """CREATE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
      IF current_setting('my.wait', true) = 'yes' THEN
        LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END IF;
      RETURN n; END $$; CREATE TABLE t AS SELECT 1 AS n; CREATE INDEX slow ON t (f(n))"""

    def tried(live):
        with connected(address_of(live.url), "postgres") as connection:
            connection.execute(b"SET my.wait = 'yes'", prepare=False)
            connection.execute(b"BEGIN", prepare=False)
            return check_structure(connection, "postgres", lambda: None, least_seconds=4)

    with cluster() as live:
        live.sql(stubborn)
        found = as_owner(tried, live)
        assert found.outcome == "inconclusive" and "public.slow: its check did not end" in found.detail
        until(
            lambda: live.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%bt_index%check%'") == "1", "end"
        )


def test_an_index_that_another_library_has_sorted_is_not_called_damaged():
    """Of a server elsewhere: there a newer library may have put a before B, and here stands B before a."""
    sorted_there = """CREATE TABLE t AS SELECT word COLLATE "C" FROM unnest(ARRAY['a', 'B']) AS word;
      CREATE INDEX words ON t (word);
      UPDATE pg_index SET indcollation = '"und-x-icu"'::regcollation::oid::text::oidvector
      WHERE indexrelid = 'words'::regclass"""

    def tried(live):
        found = []
        for version in ("pg_collation_actual_version(oid)", "'1.2.3'"):
            live.sql(f"UPDATE pg_collation SET collversion = {version} WHERE collname = 'und-x-icu'")
            with connected(address_of(live.url), "postgres") as connection:
                connection.execute(b"BEGIN", prepare=False)
                found.append(check_structure(connection, "postgres", lambda: None))
        return found

    with cluster() as live:
        if live.sql("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'") == "0":
            pytest.skip("NOT TESTED: this PostgreSQL was built without ICU")
        live.sql(sorted_there)
        same, other = as_owner(tried, live)
    assert same.outcome == "failed" and "words" in same.detail
    assert other.outcome == "inconclusive" and "another version of its collation" in other.detail
