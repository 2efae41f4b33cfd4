"""Dumps of a real server: backed up while it is written, brought back in a throw-away one, and equal."""

import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_world import alive_processes, as_owner, cluster, owner, until

from dbguardd.engines import ENGINES
from dbguardd.engines.base import ProofQuery
from dbguardd.engines.postgresql.dump import Contents, Part
from dbguardd.engines.postgresql.dump_files import manual
from dbguardd.engines.postgresql.prove import examine, without_rows
from dbguardd.engines.postgresql.snapshot import Database
from dbguardd.errors import (
    Cancelled,
    ServerUnreachable,
    SourceChanged,
    SourceDenied,
    SourceLocked,
    SourceMissing,
    TargetExists,
    Unsupported,
)

HOSTILE = "-gr\u00fc\u00dfe \"quoted\" 'and' \\\\ -- ; user=low"
ROLE = """"od'd\n\\! x ""role\""""
SHOP = """
CREATE EXTENSION pg_trgm; CREATE SCHEMA "ext ra"; CREATE EXTENSION citext SCHEMA "ext ra";
CREATE TABLE "ext ra".mine (n int);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0);
CREATE SCHEMA crm;
CREATE TABLE crm.customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,
  mail "ext ra".citext UNIQUE, kind varchar(10) CHECK (kind IN ('new', 'old')), since timestamptz DEFAULT now(),
  mood mood, gone int);
ALTER TABLE crm.customer DROP COLUMN gone;
CREATE TABLE purchase (id serial PRIMARY KEY, customer bigint REFERENCES crm.customer ON DELETE CASCADE, total price,
  tax numeric GENERATED ALWAYS AS (total * 0.19) STORED, body jsonb, raw bytea, span tstzrange, tags text[]);
CREATE TABLE event (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE event_2026 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE INDEX ON event (what); CREATE INDEX ON crm.customer USING gin (name gin_trgm_ops);
CREATE INDEX ON crm.customer (lower(name)) WHERE mood = 'ok';
CREATE UNLOGGED TABLE cache (k text PRIMARY KEY, v text);
CREATE TABLE nothing (); CREATE VIEW happy AS SELECT name FROM crm.customer WHERE mood = 'happy';
CREATE MATERIALIZED VIEW totals AS SELECT customer, sum(total) FROM purchase GROUP BY 1;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 2';
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.body = coalesce(NEW.body, ''{}''); RETURN NEW; END';
CREATE TRIGGER touch BEFORE INSERT ON purchase FOR EACH ROW EXECUTE FUNCTION touch();
ALTER TABLE crm.customer ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON crm.customer FOR SELECT TO seller USING (true);
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch();
"""
NAMES = """SET client_encoding = 'UTF8'; CREATE SCHEMA "s.\n""x";
CREATE TABLE "s.\n""x"."t;\r\n--\u00e9" ("c, ""1" text);
INSERT INTO "s.\n""x"."t;\r\n--\u00e9" VALUES ('\u00e9'), (NULL), ('\\N'), ('\\.');
CREATE TABLE "a SCHEMA - pg_catalog b" AS SELECT 1 AS n"""
ROWS = """
INSERT INTO crm.customer (name, mail, kind, mood) SELECT 'c' || n, 'C' || n || '@Example.org', 'new', 'happy'
  FROM generate_series(1, 200) n;
INSERT INTO purchase (customer, total, body, raw, span, tags) SELECT 1 + n % 200, n * 1.5, '{"a": [1, null]}',
  decode(md5(n::text), 'hex'), tstzrange(now(), NULL), ARRAY['x', NULL, 'y,z'] FROM generate_series(1, 1000) n;
INSERT INTO event SELECT date '2025-06-01' + n, E'line\\n\\t\\\\' || n FROM generate_series(1, 400) n;
INSERT INTO cache VALUES ('k', 'v');
CREATE TABLE floats AS SELECT random() x, 'NaN'::float8 y, '-Infinity'::float4 z FROM generate_series(1, 100);
SELECT lo_from_bytea(0, 'a large object');
REFRESH MATERIALIZED VIEW totals;
"""


@pytest.fixture(scope="module")
def live():
    with cluster("--data-checksums") as made:
        made.sql("CREATE ROLE seller LOGIN PASSWORD 'secret'; CREATE ROLE " + ROLE + " IN ROLE seller")
        made.sql("CREATE DATABASE shop")
        made.sql(SHOP + ROWS, "shop")
        quoted = HOSTILE.replace('"', '""')
        made.sql(f"""CREATE DATABASE "{quoted}" TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'""")
        made.sql(NAMES, HOSTILE)
        yield made


@pytest.fixture
def place():
    """A directory of the owner's, where a job has its staging directory and what it restores."""
    base = Path(tempfile.mkdtemp(prefix="dbg-"))
    base.chmod(0o755)
    os.chown(base, owner(), -1)
    yield base
    assert alive_processes(str(base)) == []
    shutil.rmtree(base)


def made(live, place, **settings):
    (place / "staging").mkdir(exist_ok=True)
    settings = {"url": live.url, "staging": str(place / "staging"), "lock_timeout_seconds": 2, **settings}
    return ENGINES["postgresql"](settings).snapshots


def url(live, database):
    return live.url.replace("postgresql:///", f"postgresql:///{database}")


def backed_up(engine, meanwhile=None):
    sink = MemorySink(meanwhile)
    facts = engine.dump(sink, no_progress)
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink, facts, taken


def round_trip(live, place, queries=(), meanwhile=None, **settings):
    engine = made(live, place, **settings)
    sink, facts, taken = backed_up(engine, meanwhile)
    engine.restore(MemoryTree(sink, facts), place / "restored", no_progress)
    found = engine.examine(place / "restored", queries, no_progress)
    left = list((place / "staging").iterdir())
    assert left == []
    return sink.streams, facts, taken, found


def outcomes(found):
    return {finding.name: (finding.outcome, finding.detail) for finding in found.findings}


def test_all_databases_of_a_server_come_back_equal(live, place):
    queries = [
        ProofQuery("SELECT count(*) FROM purchase", equals=1000, database="shop"),
        ProofQuery("SELECT sum(total) FROM purchase", equals=750750, database="shop"),
        ProofQuery("SELECT 'x'", equals="y", database="shop"),
        ProofQuery("SELECT * FROM nowhere", min=1, database="shop"),
        ProofQuery("DELETE FROM purchase RETURNING 1", min=0, database="shop"),
        ProofQuery("SELECT 1", equals=1, database="absent"),
    ]
    streams, facts, taken, found = as_owner(round_trip, live, place, queries)
    assert found.fingerprint == taken
    assert not [name for name, (outcome, _) in outcomes(found).items() if outcome != "ok" and "query" not in name]
    assert taken.rows > 1700 and facts["database_count"] == 3 and facts["role_passwords"]
    assert taken.tables["shop.public.event_2026"].rows and "shop.public.event" not in taken.tables
    assert any("\u00e9" in name for name in taken.tables) or any("\\xe9" in name for name in taken.tables)
    told = [outcome for name, (outcome, _) in outcomes(found).items() if name.startswith("query: ")]
    assert told == ["ok", "ok", "failed", "failed", "failed", "failed"]
    assert b"SCRAM-SHA-256" in streams["roles.sql"] and "contents.json" in streams


def test_a_dump_is_of_one_moment_while_rows_are_written(live, place):
    live.sql("CREATE TABLE ledger (n int); CREATE TABLE mirror (n int)", "shop")
    stop = threading.Event()

    def write():
        while not stop.is_set():
            live.sql("BEGIN; INSERT INTO ledger VALUES (1); INSERT INTO mirror VALUES (1); COMMIT", "shop")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: int(live.sql("SELECT count(*) FROM ledger", "shop")) > 2, "the first rows")
        _, _, taken, found = as_owner(round_trip, live, place, [
            ProofQuery("SELECT (SELECT count(*) FROM ledger) = (SELECT count(*) FROM mirror)", equals=1)
        ])  # fmt: skip
    finally:
        stop.set()
        writer.join()
        live.sql("DROP TABLE ledger, mirror", "shop")
    assert taken.tables["shop.public.ledger"] == taken.tables["shop.public.mirror"]
    assert found.fingerprint == taken
    del found


@contextmanager
def altering(live, database, statement):
    """Somebody alters a table and does not commit."""
    words = [live.programs / "psql", "-XqAt", "-h", live.socket, "-p", str(live.port), "-U", "postgres", "-d", database]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as session:
        session.stdin.write(f"BEGIN; {statement}; SELECT 'there';\n")
        session.stdin.flush()
        assert session.stdout.readline() == "there\n"
        yield
        session.stdin.close()


def test_who_alters_a_table_is_waited_for_only_so_long(live, place):
    with altering(live, "shop", "ALTER TABLE purchase ADD later int"), pytest.raises(SourceLocked, match="shop"):
        as_owner(round_trip, live, place)


def test_nobody_can_empty_a_table_between_the_snapshot_and_its_fingerprint(live, place):
    """A TRUNCATE is not undone for an older snapshot: the dump would be whole, and what it is compared with empty."""

    def empty(name):
        if name == live.stream("shop"):
            with pytest.raises(AssertionError, match="lock timeout"):
                live.sql("SET lock_timeout = '100ms'; TRUNCATE cache", "shop")

    _, _, taken, found = as_owner(lambda: round_trip(live, place, meanwhile=empty, url=url(live, "shop")))
    assert found.fingerprint == taken and taken.tables["shop.public.cache"].rows == 1


def test_who_alters_a_table_waits_for_the_dump_of_that_database_only(live, place):
    def alter(name):
        if name == live.stream("postgres"):
            live.sql("SET lock_timeout = '5s'; ALTER TABLE cache ADD more int; ALTER TABLE cache DROP more", "shop")

    live.sql("ALTER ROLE postgres CONNECTION LIMIT 4")  # leaves room for one database at a time: the largest is first
    try:
        _, facts, taken, found = as_owner(lambda: round_trip(live, place, meanwhile=alter))
    finally:
        live.sql("ALTER ROLE postgres CONNECTION LIMIT -1")
    assert found.fingerprint == taken and facts["database_count"] == 3 and facts["snapshot_spread_seconds"] > 0


def test_what_is_left_out_is_said_and_the_rest_is_equal(live, place):
    _, facts, taken, found = as_owner(
        lambda: round_trip(live, place, url=url(live, "shop"), exclude=["public.event*", "shop.crm.nobody", "*.cache"])
    )
    assert facts["excluded"] == ["shop.public.cache", "shop.public.event_2025", "shop.public.event_2026"]
    assert facts["exclude_unmatched"] == ["shop.crm.nobody"]
    assert not any("event" in name or "cache" in name for name in taken.tables)
    assert found.fingerprint == taken and "left out" in outcomes(found)["content"][1]


@pytest.mark.parametrize("step", ["a database", "roles.sql"])
def test_cancelling_leaves_no_program_and_no_connection(live, place, step):
    def cancelled():
        engine = made(live, place)
        engine.dump(MemorySink(), no_progress, compared=False)
        assert engine.fingerprint(no_progress).rows == 0  # none was read

        def stop(name):
            if name == (live.stream("shop") if step == "a database" else step):
                raise Cancelled("enough")

        try:
            engine.dump(MemorySink(stop), no_progress)
        finally:
            engine.release()

    with pytest.raises(Cancelled):
        as_owner(cancelled)
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^(dbguard|pg_dump)'"
    until(lambda: live.sql(asked) == "0", "the end of its connections")
    assert alive_processes("pg_dump", str(live.socket)) == []


def test_what_a_role_may_not_read_is_said_with_the_grant(live, place):
    low = url(live, "shop").replace("user=postgres", "user=seller")
    with pytest.raises(SourceDenied) as denied:
        as_owner(lambda: round_trip(live, place, url=low))
    assert denied.value.hints[0].startswith("GRANT pg_read_all_data TO ")
    live.sql("CREATE SCHEMA closed; CREATE TABLE closed.t (n int)", "shop")
    live.sql("CREATE TABLE closed (n int)", "shop")
    try:
        findings = {f.name: f for f in as_owner(lambda: made(live, place, url=low).probe()).findings}
    finally:
        live.sql("DROP SCHEMA closed CASCADE; DROP TABLE closed", "shop")
    assert "GRANT pg_read_all_data TO seller;" in findings["privileges"].detail
    assert "ALTER ROLE seller BYPASSRLS;" in findings["row security"].detail
    assert {findings["privileges"].outcome, findings["row security"].outcome} == {"failed"}


def test_a_role_that_may_read_the_tables_and_nothing_else_is_enough(live, place):
    live.sql("CREATE ROLE keeper LOGIN; CREATE DATABASE plain")
    live.sql("CREATE SCHEMA own; CREATE TABLE own.t AS SELECT generate_series(1, 9) n", "plain")
    live.sql("GRANT USAGE ON SCHEMA own TO keeper; GRANT SELECT ON own.t TO keeper", "plain")
    keeper = url(live, "plain").replace("user=postgres", "user=keeper")
    try:
        streams, facts, taken, found = as_owner(lambda: round_trip(live, place, url=keeper))
        findings = {f.name: f for f in as_owner(made(live, place, url=keeper.replace("plain", "shop")).probe).findings}
    finally:
        live.sql("DROP DATABASE plain")
        live.sql("DROP ROLE keeper")
    assert not facts["role_passwords"] and b"SCRAM" not in streams["roles.sql"]
    assert found.fingerprint == taken and taken.tables["plain.own.t"].rows == 9
    assert "They have no passwords" in (place / "restored/RESTORE.txt").read_text()
    assert findings["large objects"].outcome == findings["privileges"].outcome == "failed"
    pages = findings["backups by pages"]
    assert pages.outcome == "not configured" and "a url that names no database" in pages.detail


def test_a_server_is_found_with_all_that_a_backup_needs(live, place):
    found = as_owner(lambda: made(live, place).probe())
    others = {finding.name: finding.outcome for finding in found.findings}
    assert others.pop("following its log") == "not configured" and set(others.values()) == {"ok"}
    assert found.version.startswith(str(live.major)) and found.facts["databases"] == 3 and found.warnings == ()


def test_a_check_says_what_is_left_out_and_what_fits_nothing(live, place):
    engine = made(live, place, exclude=["public.cache", "public.cahce"])
    found = [finding for finding in as_owner(engine.probe).findings if finding.name == "exclude"]
    assert [finding.outcome for finding in found] == ["inconclusive", "ok"]
    assert "public.cahce" in found[0].detail and "shop.public.cache" in found[1].detail


def test_what_is_not_there_is_said(live, place):
    with pytest.raises(SourceMissing, match="no database absent"):
        as_owner(lambda: round_trip(live, place, url=url(live, "absent")))
    with pytest.raises(ServerUnreachable):
        as_owner(lambda: round_trip(live, place, url=live.url.replace("54321", "54399")))
    live.sql('CREATE DATABASE "clo""sed" ALLOW_CONNECTIONS false')
    with pytest.raises(SourceDenied, match="nobody can connect") as denied:
        as_owner(lambda: round_trip(live, place, url=url(live, "clo%22sed")))
    live.sql('DROP DATABASE "clo""sed"')
    assert denied.value.hints[0].startswith('ALTER DATABASE "clo""sed" ALLOW_CONNECTIONS true;')


def test_a_database_that_is_dropped_by_force_meanwhile_fails_the_backup_and_nothing_else(live, place):
    live.sql("CREATE DATABASE gone")
    stream = live.stream("gone")

    def drop(name):
        if name == stream:
            live.sql("DROP DATABASE gone WITH (FORCE)")

    with pytest.raises((ServerUnreachable, SourceChanged, SourceMissing)) as caught:
        as_owner(lambda: round_trip(live, place, meanwhile=drop))
    assert "gone" in caught.value.message + caught.value.detail
    as_owner(lambda: round_trip(live, place))


def test_a_restore_never_overwrites_and_a_failed_one_leaves_nothing(live, place):
    (place / "restored").mkdir(mode=0o755)
    with pytest.raises(TargetExists):
        as_owner(lambda: round_trip(live, place, url=url(live, "shop")))
    assert sorted(path.name for path in place.iterdir()) == ["restored", "staging"]


def test_in_place_is_refused_in_words(live, place):
    engine = made(live, place)
    for refused in (engine.check_unused, lambda: engine.replace(place, no_progress)):
        with pytest.raises(Unsupported, match="does not replace"):
            refused()


def test_a_hostile_owner_gains_nothing_when_his_dump_is_proven(live, place):
    """What ran as a superuser when his dump was restored would run as the owner of the live server."""
    live.sql("CREATE ROLE low LOGIN; CREATE DATABASE evil OWNER low")
    mark = place / "ran"
    live.sql(f"""SET ROLE low; SET check_function_bodies = off;
        CREATE FUNCTION bad(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
          IF current_database() <> 'evil' OR NOT pg_is_in_recovery() AND current_setting('port') <> '{live.port}' THEN
            BEGIN EXECUTE 'ALTER ROLE ' || quote_ident(session_user) || ' SUPERUSER';
            EXCEPTION WHEN OTHERS THEN NULL; END;
            BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {mark}'''; EXCEPTION WHEN OTHERS THEN NULL; END;
            BEGIN EXECUTE 'COPY (SELECT 1) TO ''{mark}'''; EXCEPTION WHEN OTHERS THEN NULL; END;
            IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user) THEN RAISE 'superuser'; END IF;
          END IF; RETURN true; END $$;
        CREATE TABLE t (a text CHECK (public.bad(a)));
        INSERT INTO t VALUES ('x'); CREATE INDEX ON t ((public.bad(a)));""", "evil")  # fmt: skip
    try:
        _, _, taken, found = as_owner(lambda: round_trip(live, place, url=url(live, "evil")))
    finally:
        live.sql("DROP DATABASE evil")
        live.sql("DROP ROLE low")
    assert not mark.exists()
    assert outcomes(found)["database evil"][0] == "ok"
    assert found.fingerprint == taken


@pytest.mark.parametrize("answer", ["RETURN current_user = 'low'", "IF current_user <> 'low' THEN RAISE 'no'; END IF"])
def test_what_only_the_code_of_its_owner_refuses_leaves_open_whether_the_backup_is_whole(live, place, answer):
    """One owner of a server decides by it whether all of it is proven, and not that it is damaged."""
    live.sql("CREATE ROLE low LOGIN; CREATE DATABASE picky OWNER low")
    live.sql(f"""SET ROLE low; CREATE FUNCTION mine(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        {answer}; RETURN true; END $$;
        CREATE TABLE t (n int CHECK (public.mine(n))); INSERT INTO t VALUES (1);""", "picky")  # fmt: skip
    try:
        found = as_owner(lambda: round_trip(live, place, url=url(live, "picky")))[3]
    finally:
        live.sql("DROP DATABASE picky")
        live.sql("DROP ROLE low")
    outcome, detail = outcomes(found)["database picky"]
    assert outcome == "inconclusive" and 'table "t"' in detail and "its owner wrote" in detail
    assert found.fingerprint is None and "failed" not in [outcome for outcome, _ in outcomes(found).values()]


def test_a_function_that_never_ends_keeps_no_proof_from_its_end(live, place):
    """It would be in the way of each backup of the server until job_timeout."""
    live.sql("CREATE DATABASE hangs")
    live.sql("""CREATE FUNCTION ever(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        WHILE current_setting('port') = '5432' LOOP END LOOP; RETURN n; END $$;
        CREATE TABLE t AS SELECT 1 AS n; CREATE INDEX ON t ((ever(n)));""", "hangs")  # fmt: skip

    def bounded():
        engine = made(live, place, url=url(live, "hangs"))
        sink, facts, _ = backed_up(engine)
        engine.restore(MemoryTree(sink, facts), place / "restored", no_progress)
        return examine(place / "restored", place / "staging", (), no_progress, "", least_seconds=1)

    try:
        found = outcomes(as_owner(bounded))
    finally:
        live.sql("DROP DATABASE hangs")
    assert found["database hangs"][0] == "inconclusive" and "may run forever" in found["database hangs"][1]


def test_a_changed_row_is_found(live, place):
    taken, found = as_owner(changed, live, place, live.stream("shop"), b"c17\t", b"c71\t")
    assert found.fingerprint.tables["shop.crm.customer"] != taken.tables["shop.crm.customer"]
    assert found.fingerprint.schema_digest == taken.schema_digest


def changed(live, place, stream, old, new):
    """Dump, change what is stored, and prove it."""
    engine = made(live, place, url=url(live, "shop"))
    sink, facts, taken = backed_up(engine)
    assert old in sink.streams[stream]
    sink.streams[stream] = sink.streams[stream].replace(old, new)
    engine.restore(MemoryTree(sink, facts), place / "restored", no_progress)
    return taken, engine.examine(place / "restored", (), no_progress)


def test_a_large_object_is_content_and_is_read_as_ever_whatever_an_owner_has_set(live, place):
    live.sql("ALTER DATABASE shop SET standard_conforming_strings = off")
    taken, found = as_owner(changed, live, place, live.stream("shop"), b"a large object", b"a LARGE object")
    live.sql("ALTER DATABASE shop RESET standard_conforming_strings")
    name = "shop: large objects"
    assert found.fingerprint.tables[name] != taken.tables[name]
    assert {**found.fingerprint.tables, name: None} == {**taken.tables, name: None}


def test_what_does_not_come_back_fails_and_quotes_no_value(live, place):
    _, found = as_owner(changed, live, place, live.stream("shop"), b"\thappy\n", b"\tsnipy\n")
    outcome, detail = outcomes(found)["database shop"]
    assert outcome == "failed" and "invalid input value for enum" in detail and "snipy" not in detail
    assert found.fingerprint is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('invalid input syntax for type integer: "hunter2"', "invalid input syntax for type integer …"),
        ('relation "public.t" already exists', 'relation "public.t" already exists'),
        (
            'new row for relation "t" violates check constraint "c"',
            'new row for relation "t" violates check constraint "c"',
        ),
        ('extension "postgis" is not available', 'extension "postgis" is not available'),
        ("must be superuser to create this", "must be superuser to create this"),
        ("the function says: 'hunter2'", "the function says …"),
        ('could not create unique index "t_key"', 'could not create unique index "t_key"'),
    ],
)
def test_only_names_are_told_of_what_a_server_says(said, shown):
    assert without_rows(said) == shown


def test_no_name_of_a_table_becomes_a_command_of_the_text_that_is_pasted():
    """Its owner chooses it, a pattern of the policy leaves it out, and a superuser pastes what the text says."""
    database = Database("shop", "UTF8", "c", "C", "C", "", 0)
    part = Part("0001.dump", database, (), ('public."log_\ntouch /tmp/gained"',), large=False)
    text = manual(Contents("15.1", (part,), ("postgres",), passwords=True), Path("/srv/back"), {})
    assert "gained" in text and "touch" not in [line.split(" ")[0] for line in text.splitlines()]
