"""Since PostgreSQL 17 the server says which parts of its files have changed, and only these are read."""

import os
import re
import signal
import subprocess
from dataclasses import replace

import pytest
from engine_memory import no_progress
from postgres_pages_world import FACTS, bench, failed, made, own_place, writers
from postgres_world import as_owner, cluster, owner, until

from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.cluster import look
from dbguardd.engines.postgresql.physical.local import by_pages
from dbguardd.engines.postgresql.physical.summaries import OLDEST, Changes, look_up
from dbguardd.repository.saving import Saving
from dbguardd.repository.tree import Tree
from tests.repository.data_path import DOMAIN, Drawer, draft

MADE = """
CREATE TABLE big (n int PRIMARY KEY, t text);
INSERT INTO big SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 15000) n;
CREATE TABLE cut (LIKE big); INSERT INTO cut TABLE big;
CREATE TABLE filled (LIKE big); INSERT INTO filled TABLE big;
CREATE TABLE rewritten (LIKE big); INSERT INTO rewritten TABLE big;
CREATE TABLE moved (LIKE big); INSERT INTO moved TABLE big;
CREATE TABLE gone (LIKE big); INSERT INTO gone TABLE big;
CREATE TABLE still (LIKE big); INSERT INTO still TABLE big;
CREATE TABLE afar (LIKE big) TABLESPACE far; INSERT INTO afar TABLE big;
CREATE UNLOGGED TABLE passing (LIKE big); INSERT INTO passing TABLE big;
VACUUM (FREEZE, ANALYZE)
"""
CHANGED = """
UPDATE big SET t = 'changed' WHERE n = 7500;
DELETE FROM cut WHERE n > 5000; VACUUM cut; INSERT INTO cut SELECT n, repeat('z', 250) FROM generate_series(1, 9000) n;
INSERT INTO filled SELECT n, repeat('y', 250) FROM generate_series(1, 9000) n;
DELETE FROM rewritten WHERE n % 2 = 0; VACUUM FULL rewritten;
ALTER TABLE moved SET TABLESPACE far;
DROP TABLE gone; CREATE TABLE gone (LIKE big); INSERT INTO gone SELECT n, 'new' FROM generate_series(1, 30000) n;
UPDATE afar SET t = 'changed' WHERE n % 5000 = 0;
CREATE INDEX ON filled USING gist (point(n, n)); CREATE INDEX ON filled USING gin (string_to_array(t, 'a'));
ALTER TABLE passing SET LOGGED
"""

CHECKSUMS = pytest.mark.parametrize("live", ["checksums"], indirect=True)


@pytest.fixture(scope="module", params=["checksums", "hints are not logged"])
def live(request):
    with cluster(*(["--data-checksums"] if request.param == "checksums" else [])) as made:
        if made.major < OLDEST:
            pytest.skip(f"PostgreSQL {made.major} does not summarize its log: NOTHING of that is tested")
        summarize(made)
        (made.place / "far").mkdir()
        os.chown(made.place / "far", owner(), -1)
        made.sql(f"CREATE TABLESPACE far LOCATION '{made.place / 'far'}'")
        yield made


def summarize(live, on="on"):
    live.sql(f"ALTER SYSTEM SET summarize_wal = {on}; SELECT pg_reload_conf()")
    running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsummarizer'"
    until(lambda: live.sql(running) == str(int(on == "on")), "the summarizer")


@pytest.fixture
def shop(live):
    live.sql("CREATE DATABASE shop")
    live.sql(MADE, "shop")
    yield live
    for name in ("shop", "child"):
        live.sql(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture
def place():
    with own_place() as made:
        yield made


class Told(Saving):
    """Knows which parts of each file the engine said had changed; `before` is called with each stream's name."""

    def __init__(self, storage, parent, before):
        name = f"01J{int(parent.id[3:]) + 1 if parent else 0:023}"
        super().__init__(storage, DOMAIN, draft(name), parent=parent, publish=lambda backup, packs: backup)
        self.changed, self._before = {}, before

    def adopt(self, name, file, page_size, *, changed=None, **more):
        self._before(name)
        self.changed[name] = changed
        super().adopt(name, file, page_size, changed=changed, **more)

    def write(self, name, **more):
        self._before(name)
        return super().write(name, **more)


class Line:
    """Backups of a cluster, each compared with the one before."""

    def __init__(self, live):
        self.live, self.storage, self.last = live, Drawer(), None

    def goes_on(self, before=lambda name: None):
        """Make the next backup; return its facts, what had changed, and its fingerprint."""
        engine = made(self.live)
        with Told(self.storage, self.last, before) as sink:
            facts = engine.dump(sink, no_progress)
            self.last = sink.seal(facts)
        taken = engine.fingerprint(no_progress)
        engine.release()
        return facts, sink.changed, taken

    def proven(self, place):
        engine = made(self.live)
        with Tree(self.storage, DOMAIN, self.last) as tree:
            engine.restore(tree, place, no_progress)
        return engine.examine(place, (), no_progress)

    def path(self, table, database="shop"):
        return self.live.sql(f"SELECT pg_relation_filepath('{table}')", database)


def wrong(examined):
    return {name: said for name, said in failed(examined).items() if name != "page checksums" or "none" not in said}


def bits(changed):
    return None if changed is None else sum(byte.bit_count() for byte in changed)


def test_only_what_the_log_mentions_is_read_and_what_comes_back_is_equal(shop, place):
    def in_turn():
        line = Line(shop)
        first, told, _ = line.goes_on()
        assert first["no_summaries"] is None and set(told.values()) == {None}
        shop.sql(CHANGED, "shop")
        shop.sql("CREATE DATABASE child TEMPLATE shop STRATEGY file_copy")
        facts, changed, taken = line.goes_on()
        found = {name: changed[line.path(name)] for name in ("big", "afar", "cut", "filled", "rewritten", "gone")}
        found |= {"child": changed[line.path("big", "child")], "moved": changed[line.path("moved")]}
        return (
            facts,
            {name: bits(one) for name, one in found.items()},
            len(found["big"]),
            taken,
            line.proven(place / "out"),
        )

    facts, found, length, taken, examined = as_owner(in_turn)
    assert facts["no_summaries"] is None and facts["summarized_files"] >= 3
    assert 0 < found["big"] <= 4 < length * 8 and 0 < found["afar"] <= 6
    assert found["filled"] > 0
    for name in ("cut", "rewritten", "gone", "child", "moved"):  # truncated, or made since
        assert found[name] is None, name
    assert wrong(examined) == {} and examined.fingerprint == taken


def test_what_changed_only_in_hints_is_the_parents(shop, place):
    """Who reads a row first notes in its page that its transaction has committed; without checksums in no log."""
    shop.sql("CREATE TABLE hinted (LIKE big); INSERT INTO hinted TABLE big; CHECKPOINT", "shop")

    def in_turn():
        line = Line(shop)
        line.goes_on()  # the fingerprint reads every row
        shop.sql("CHECKPOINT", "shop")
        before = {one.name: one.digest for one in line.last.streams}
        facts, changed, taken = line.goes_on()
        path = line.path("hinted")
        same = before[path] == next(one.digest for one in line.last.streams if one.name == path)
        return facts, bits(changed[path]), same, taken, line.proven(place / "out")

    facts, count, same, taken, examined = as_owner(in_turn)
    logged = shop.sql("SHOW data_checksums") == "on"
    assert facts["no_summaries"] is None and bool(count) == logged and same != logged
    assert wrong(examined) == {} and examined.fingerprint == taken


@CHECKSUMS
def test_beside_writers_each_backup_of_a_line_is_what_it_was(live, place):
    live.sql("CREATE DATABASE shop")
    subprocess.run(bench(live, "-i", "-q", "-s", "3"), check=True, capture_output=True, cwd="/")
    steps = iter(("TRUNCATE cut; INSERT INTO cut VALUES (7)", "DROP TABLE gone; CREATE TABLE gone AS SELECT 1 AS n"))
    live.sql("CREATE TABLE cut AS SELECT n, repeat('x', 500) t FROM generate_series(1, 9000) n", "shop")
    live.sql("CREATE TABLE gone AS TABLE cut", "shop")

    def in_turn():
        line = Line(live)
        line.goes_on()
        facts, found = [], []
        for turn in range(2):
            each = (lambda name: live.sql(next(steps, "SELECT"), "shop")) if turn else lambda name: None
            told, _, taken = line.goes_on(each)
            facts.append(told)
            found.append((taken, line.proven(place / f"out{turn}")))
        return facts, found

    try:
        with writers(live):
            facts, found = as_owner(in_turn)
    finally:
        live.sql("DROP DATABASE shop")
    assert all(told["no_summaries"] is None and told["summarized_files"] > 0 for told in facts)
    for taken, examined in found:
        assert wrong(examined) == {} and examined.fingerprint == taken


@CHECKSUMS
@pytest.mark.parametrize("so", ["off", "without a part", "restarted"])
def test_where_not_all_is_known_all_is_read(shop, so):
    def in_turn():
        line = Line(shop)
        line.goes_on()
        shop.sql(
            "UPDATE big SET t = 'changed' WHERE n = 1; CHECKPOINT; UPDATE big SET t = 'changed' WHERE n = 2", "shop"
        )
        if so == "off":
            summarize(shop, "off")
        elif so == "restarted":
            shop.stop(signal.SIGINT)
            shop.start()
        else:
            until(lambda: len(parts()) > 1, "the part up to the checkpoint")
            parts()[-1].unlink()
        return line.goes_on()

    def parts():
        return sorted((shop.data / "pg_wal" / "summaries").glob("*.summary"))

    try:
        facts, changed, _ = as_owner(in_turn) if so != "restarted" else in_turn()
    finally:
        summarize(shop)
    said = {"off": "summarize_wal is off", "without a part": "has no summary", "restarted": "was started since"}
    assert said[so] in facts["no_summaries"] and facts["summarized_files"] == 0
    assert len(changed) > 3 and set(changed.values()) == {None}


@CHECKSUMS
def test_check_says_how_to_have_less_read_and_that_does_it(live):
    def told():
        return by_pages(address_of(live.url)).detail

    try:
        summarize(live, "off")
        said = as_owner(told)
        assert "summarize_wal is off. Fix: " in said
        for statement in re.findall(r"-c '?([^']*?)'?(?= -[cd] |$)", said.partition("Fix: ")[2]):
            live.sql(statement)
        until(lambda: "summarize_wal" not in as_owner(told), "that it is on")
    finally:
        summarize(live)


@CHECKSUMS
def test_a_server_is_asked_only_about_a_log_that_goes_on_from_the_backup_before(live):
    """Else the same places may have been written twice: by a copy of the cluster, or after its disk was set back."""

    def never(stack):
        raise AssertionError("nobody is to be asked")

    with connected(address_of(live.url)) as connection:
        cluster = look(connection, "here")
    before = replace(FACTS, system=cluster.log.system, timeline=cluster.log.timeline, started=cluster.started.decode())
    for other, said in (
        (replace(before, system=1), "turned"),
        (replace(before, timeline=cluster.log.timeline + 1), "turned"),
        (replace(before, stop_lsn=FACTS.stop_lsn + 1), "turned"),
        (replace(before, started=""), "does not say"),
        (replace(before, started="2026-01-01 00:00:00+00"), "was started"),
    ):
        told = look_up(never, cluster, lambda other=other: other.stored(), FACTS.stop_lsn, lambda: None)
        assert said in told.unknown and told.within("base/5/16384", 1 << 20) is None
    assert "the backup before" in look_up(never, cluster, lambda: {"system": "?"}, 1, lambda: None).unknown
    for asked in (replace(cluster, major=16), replace(cluster, standby=True)):
        assert look_up(never, asked, before.stored, FACTS.stop_lsn, lambda: None) == Changes()
    assert look_up(never, cluster, dict, FACTS.stop_lsn, lambda: None) == Changes()  # a full backup


def test_only_of_main_forks_that_kept_their_length_is_it_known_what_changed():
    per_file, page = 1 << 17, 8192
    known = Changes(
        "",
        per_file,
        page,
        {(1663, 5, 7, 0): bytearray(b"\x81"), (1663, 5, 8, 1): bytearray(16), (9, 5, 7, 0): bytearray(b"\x02")},
        {(1663, 5, 8): per_file + 5, (1663, 6, 0): 0, (1664, 0, 1262): 0},
    )
    two = 2 << 20  # 32 parts
    assert known.within("base/5/7", two) == b"\x81\0\0\0" and known.within("base/5/7", 8192) == b"\x81"
    assert known.within("pg_tblspc/9/PG_17_202406281/5/7", two) == b"\x02\0\0\0"
    assert known.within("base/5/99", two) == bytes(4) and known.within("global/1260", two) == bytes(4)
    assert known.within("base/5/8", 1 << 30) == bytes(2048)  # it was truncated behind this file
    for path in ("base/5/8.1", "base/5/8.2", "base/6/7", "base/5/7_vm", "base/5/7_fsm", "base/5/7_init", "global/1262",
                 "base/5/7_vm.1", "base/x/7", "pg_xact/0000"):  # fmt: skip
        assert known.within(path, two) is None, path
    assert known.within("base/5/7", two + 1) is None and Changes("unknown").within("base/5/7", two) is None
