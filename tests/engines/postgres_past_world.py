"""A cluster of a hostile owner and his neighbours, backed up twice, for tests of the questions to its backups."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from engine_memory import MemorySink, no_progress
from past_world import Told
from postgres_pages_world import stored, tree
from postgres_world import as_owner, cluster

from dbguardd.engines.base import Bounds
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.past.ask import query
from dbguardd.engines.postgresql.past.compare import Side, difference
from dbguardd.engines.postgresql.past.missing import missing
from dbguardd.engines.postgresql.past.reading import Meter, Reader
from dbguardd.engines.postgresql.past.revive import Revival
from dbguardd.engines.postgresql.past.take_out import table
from dbguardd.errors import GuardError

BOUNDS = Bounds("cluster, backup B1", 60.0, 1000, 64 << 20)

CALM = r"""
CREATE FUNCTION calm(t text) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE found bigint; BEGIN
EXECUTE 'SELECT sum(n) FROM ' || t INTO found; RETURN found; EXCEPTION WHEN OTHERS THEN RETURN 0; END $$;
"""
SHOP = r"""
CREATE TABLE buyer (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, raw bytea, share float8,
  loud text GENERATED ALWAYS AS (upper(name)) STORED);
INSERT INTO buyer (name, raw, share) SELECT E'it''s \\ ' || n || E'\n', decode(md5(n::text), 'hex'), n / 3.0
FROM generate_series(1, 40) n;
UPDATE buyer SET share = 'NaN', raw = NULL WHERE id = 40;
CREATE TABLE pair (a text, b int, note text, PRIMARY KEY (b, a)); INSERT INTO pair VALUES ('x,', 1, NULL), ('x', 2, '');
CREATE TABLE keyless (n int, t text); INSERT INTO keyless VALUES (1, 'a'), (1, 'a'), (2, NULL);
CREATE TABLE part (n int PRIMARY KEY) PARTITION BY RANGE (n);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (50);
CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (50) TO (100); INSERT INTO part SELECT generate_series(0, 99);
CREATE UNLOGGED TABLE passing (n int);
CREATE SCHEMA "odd.S"; CREATE TABLE "odd.S"."T""
x" ("c, 1" int PRIMARY KEY); INSERT INTO "odd.S"."T""
x" VALUES (7);
CREATE SCHEMA a; CREATE TABLE a.twice (n int PRIMARY KEY); CREATE SCHEMA b; CREATE TABLE b.twice (n int PRIMARY KEY);
CREATE TABLE going (n int PRIMARY KEY); INSERT INTO going VALUES (1), (2);
"""
KINDS = r"""
CREATE TYPE pairs AS (a int, b text);
CREATE TABLE kinds (id int, own int GENERATED ALWAYS AS IDENTITY, at timestamptz, doc json, many text[], pair pairs,
  place point, words varchar, fixed char(4), twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id));
INSERT INTO kinds (id, at, doc, many, pair, place, words, fixed) SELECT n, '2026-01-01 03:04:05.678901+02',
  '{"a":  1}', '{"x,y",NULL}', '(1,"q""; --")', '(0.1,2)', NULL, 'a ' FROM generate_series(1, 3) n;
"""
KINDS_LATER = r"""
UPDATE kinds SET at = NULL, doc = '{"a": 1}', many = '{}', pair = '(,)', place = '(1,2)', words = '', fixed = 'b';
"""
SHOP += KINDS
LATER = """
DELETE FROM buyer WHERE id IN (7, 40); UPDATE buyer SET name = 'other' WHERE id = 8;
INSERT INTO buyer (name) VALUES ('new'); DELETE FROM pair WHERE a = 'x,';
INSERT INTO keyless VALUES (3, 'z'); DELETE FROM keyless WHERE ctid = '(0,1)';
DELETE FROM part WHERE n IN (3, 77); DROP TABLE going; CREATE TABLE fresh (n int PRIMARY KEY);
INSERT INTO fresh VALUES (1); DELETE FROM "odd.S"."T""
x";
"""
LATER += KINDS_LATER

HOSTILE = r"""
CREATE ROLE mallory LOGIN; CREATE SCHEMA lair AUTHORIZATION mallory; GRANT CREATE ON DATABASE shop TO mallory;
SET ROLE mallory;
CREATE FUNCTION lair.gain() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE won text := '';
BEGIN
  IF current_setting('port') <> '5432' THEN RETURN ''; END IF;  -- the live server
  IF current_setting('is_superuser') = 'on' THEN RAISE EXCEPTION 'gained: superuser'; END IF;
  BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; IF current_setting('is_superuser') = 'on' THEN won := 'reset'; END IF;
  EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'SET transaction_read_only = off'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'ALTER ROLE mallory SUPERUSER'; won := won || 'role'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''cat'''; won := won || 'program'; EXCEPTION WHEN OTHERS THEN NULL; END;
  BEGIN EXECUTE 'INSERT INTO lair.loot VALUES (1)'; IF current_user !~ '_restores$' THEN won := won || 'row'; END IF;
  EXCEPTION WHEN OTHERS THEN NULL; END;  -- who makes a dump anew owns it
  BEGIN PERFORM pg_read_file('/etc/passwd'); won := won || 'file'; EXCEPTION WHEN OTHERS THEN NULL; END;
  IF won <> '' THEN RAISE EXCEPTION 'gained: %', won; END IF;
  RETURN current_user;
END $$;
CREATE FUNCTION lair.trap(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
  $$ BEGIN PERFORM lair.gain(); RETURN n; END $$;
CREATE TABLE lair.loot (n int);
CREATE TABLE lair.indexed (n int PRIMARY KEY); INSERT INTO lair.indexed VALUES (1), (2);
CREATE INDEX ON lair.indexed ((n + lair.trap(1)));
CREATE STATISTICS lair.told ON (n + lair.trap(2)), n FROM lair.indexed;
CREATE TABLE lair.checked (n int PRIMARY KEY CHECK (lair.trap(n) = n)); INSERT INTO lair.checked VALUES (1), (2);
CREATE DOMAIN lair.kind AS int CHECK (lair.trap(VALUE) = VALUE);
CREATE TABLE lair.typed (n lair.kind PRIMARY KEY); INSERT INTO lair.typed VALUES (1), (2);
CREATE TABLE lair.hidden (n int PRIMARY KEY); INSERT INTO lair.hidden VALUES (1), (2);
ALTER TABLE lair.hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON lair.hidden USING (lair.gain() = 'nobody');
CREATE VIEW lair.seen AS SELECT lair.gain() AS who;
CREATE TABLE lair.ruled (n int PRIMARY KEY DEFAULT lair.trap(1)); INSERT INTO lair.ruled VALUES (1), (2);
CREATE FUNCTION lair.fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM lair.gain(); RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON lair.ruled FOR EACH ROW EXECUTE FUNCTION lair.fired();
RESET ROLE;
ANALYZE lair.indexed;
"""
ENDLESS = r"""
CREATE SCHEMA lair;
CREATE FUNCTION lair.endless(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
  $$ BEGIN WHILE current_setting('port') = '5432' LOOP END LOOP; RETURN n; END $$;
CREATE TABLE lair.slow (n int); CREATE INDEX ON lair.slow ((n + lair.endless(1)));
CREATE TABLE neighbour (n int PRIMARY KEY); INSERT INTO neighbour VALUES (1);
"""
BOOKS = r"""
CREATE ROLE clerk; CREATE ROLE auditor;
CREATE TABLE account (id serial PRIMARY KEY, n int CHECK (n > 0)); ALTER TABLE account OWNER TO clerk;
INSERT INTO account (n) SELECT n FROM generate_series(1, 9) n; COMMENT ON COLUMN account.n IS 'a remark';
GRANT SELECT ON account TO auditor; GRANT USAGE ON SEQUENCE account_id_seq TO auditor;
CREATE TABLE booking (id int PRIMARY KEY, account int REFERENCES account);
INSERT INTO booking SELECT n, 1 FROM generate_series(1, 5) n;
CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no rows for you'; END $$;
CREATE TRIGGER never BEFORE INSERT ON booking FOR EACH ROW EXECUTE FUNCTION fired();
CREATE TABLE "acc ount" (n int); INSERT INTO "acc ount" VALUES (1);
CREATE TABLE session (n int); INSERT INTO session VALUES (1);
CREATE FUNCTION total() RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN (SELECT sum(n) FROM account); END $$;
CREATE FUNCTION sessions() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT sum(n) FROM session); END $$;
CREATE FUNCTION seen() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT sum(n) FROM session';
CREATE VIEW rich AS SELECT b.id FROM booking b JOIN account a ON a.id = b.account;
CREATE MATERIALIZED VIEW sums AS SELECT sum(n) FROM account;
"""
WAYS = ("indexed", "checked", "typed", "hidden", "ruled")
"""Tables by which the owner hopes to act; each has the rows 1 and 2."""


class Twice:
    """Two backups of one cluster by each method, and what asks those of one."""

    def __init__(self, live, place, one, two):
        self.live, self.place = live, place
        self.all = {method: {"one": one[method], "two": two[method]} for method in one}
        self.backups = self.all["pages"]
        self.number = 0

    def several(self, *questions, of="one", database="shop", bounds=BOUNDS):
        """Ask one server, or two, several questions (verb, words ...), each over connections of its own; see ask().

        Return facts and answer of each, or what it raised.
        """
        names = [of] if isinstance(of, str) else of

        def asking():
            with ExitStack() as stack:
                pasts, revival = [], Revival({})
                for name in names:
                    revived = revival.revive(
                        tree(*self.backups[name]), self.place / f"all{name}", database, no_progress
                    )
                    pasts.append(stack.enter_context(revival.asked(revived, "b", lambda: None)))
                return [self._answered(pasts, verb, words, bounds) for verb, *words in questions]

        return as_owner(asking)

    def _answered(self, pasts, verb, words, bounds):
        told = Told()
        meter = Meter(bounds, told, self.place)
        with ExitStack() as stack:
            connections = [stack.enter_context(past.reading()) for past in pasts]
            try:
                if verb == "query":
                    return query(*pasts, *words, meter), told
                if verb == "table":
                    return table(*pasts, Reader(*connections, meter), *words, meter), told
                sides = [Side.of(past, Reader(one, meter), meter) for past, one in zip(pasts, connections, strict=True)]
                return {"difference": difference, "missing": missing}[verb](*sides, *words, meter), told
            except GuardError as error:
                return error

    def past(self, **settings):
        return open_postgresql({"url": self.live.url, "staging": "/nonexistent", **settings}).reviving

    def ask(self, verb, *words, of="one", database="shop", bounds=BOUNDS, told=None, **settings):
        """Ask as the owner; return the facts and the answer. `of`: a backup, or two."""
        self.number += 1
        places = [(name, self.place / f"past{self.number}{name}") for name in ([of] if isinstance(of, str) else of)]
        told = told or Told()

        def asking():
            past = self.past(**settings)
            revived = [past.revive(tree(*self.backups[name]), place, database, no_progress) for name, place in places]
            asked = (revived,) if verb == "missing" else revived
            facts = dict(getattr(past, verb)(*asked, *words, bounds, told))
            assert facts.pop("in_database") == (database or "shop")
            return facts, told

        return as_owner(asking)


@contextmanager
def twice(place, *later):
    """A cluster of two users' databases, backed up before and after it has changed."""
    with cluster("--data-checksums") as live:
        live.sql("CREATE DATABASE shop; CREATE DATABASE other; CREATE DATABASE books")
        live.sql(BOOKS + CALM, "books")
        live.sql(SHOP + CALM, "shop")
        live.sql(HOSTILE, "shop")
        live.sql(ENDLESS, "other")
        one = as_owner(by_each_method, live, place)
        live.sql(LATER, "shop")
        for text in later:
            live.sql(text, "shop")
        yield Twice(live, place, one, as_owner(by_each_method, live, place))


def loaded_by(made, sql):
    """Ask one backup by a dump; return the answer, and the tables whose rows were loaded for it."""

    def asking():
        revival, told = Revival({}), Told()
        revived = revival.revive(tree(*made.all["dump"]["one"]), made.place / "loaded", "books", no_progress)
        with revival.asked(revived, "b", lambda: None) as past:
            query(past, sql, Meter(BOUNDS, told, made.place))
            return told.lines[1:], {name.decode() for name in past.dump.loaded}

    return as_owner(asking)


def by_each_method(live, place):
    """Back up by pages and by a dump; return streams and facts of each."""
    sink = MemorySink()
    settings = {"url": live.url, "staging": str(place), "method": "dump", "exclude": ["books.public.session"]}
    facts = open_postgresql(settings).snapshots.dump(sink, no_progress)
    return {"pages": stored(live)[:2], "dump": (sink.streams, facts)}
