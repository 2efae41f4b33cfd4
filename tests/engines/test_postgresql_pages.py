"""Physical backups of a real cluster: taken beside its users, recovered by its own server, and equal."""

import os
import subprocess
import tarfile
import threading
import time
from contextlib import closing
from datetime import datetime
from io import BytesIO

import pytest
from engine_memory import MemorySink, no_progress
from postgres_pages_world import (
    backed_up,
    by_hand,
    failed,
    made,
    own_place,
    proven,
    round_trip,
    shop,
    stored,
    timed,
    writers,
)
from postgres_world import as_owner, identity, owner, until

from dbguardd.engines.base import ProofQuery
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.cluster import look
from dbguardd.engines.postgresql.physical.copy import Copy
from dbguardd.engines.postgresql.physical.datadir import DataDirectory, is_relation
from dbguardd.engines.postgresql.physical.segments import WalTimeline, format_lsn, parse_lsn
from dbguardd.engines.postgresql.physical.snapshot_place import Snapshot, between
from dbguardd.errors import SourceChanged, SourceDamaged
from dbguardd.repository.tree import Tree
from tests.repository.data_path import DOMAIN, Drawer, saving

# ----------------------------------------------------------------------------------------------- it is what it was


@pytest.fixture(scope="module")
def live():
    with shop() as made:
        yield made


@pytest.fixture(scope="module")
def kept(live):
    """A backup that several tests restore: streams, facts, fingerprint."""
    return as_owner(stored, live)


@pytest.fixture
def place():
    with own_place() as made:
        yield made


def test_a_cluster_comes_back_equal_to_its_snapshot_while_it_is_written(live, place):
    target = place / "restored"
    sums = [
        ProofQuery(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)", equals=1
        ),
        ProofQuery(
            "SELECT (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)", min=1
        ),
        ProofQuery("SELECT count(*) FROM passing", equals=0, database="shop"),
        ProofQuery("SELECT 1", equals=1, database="absent"),
    ]
    with writers(live):
        streams, facts, taken, found = as_owner(round_trip, live, target, sums)
        _, _, later, other = as_owner(round_trip, live, place / "later")
    assert list(failed(found)) == ["query: SELECT 1"]
    assert isinstance(taken, Fingerprint) and found.fingerprint == taken
    assert found.fingerprint != other.fingerprint == later
    assert {name.partition(".")[0] for name in taken.tables} == {"shop", "postgres", "template1"}
    assert taken.tables["shop.public.big"].rows == 12000 and "shop.public.passing" not in taken.tables
    assert facts["snapshot_tries"] >= 1 and facts["left_out"] == []
    assert any(name.startswith("base/") for name in streams) and {"files.tar", "log.tar"} < set(streams)
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    assert target.stat().st_mode & 0o777 == 0o700


def test_a_backup_is_of_no_later_moment_than_its_snapshot(live):
    """What commits while the end of its log is read and stored is not in it; most of it is stored before."""
    _, facts, taken, told = as_owner(timed, live)
    assert isinstance(taken, Fingerprint) and datetime.fromisoformat(facts["snapshot_at"]) < told["snapshot"]
    assert told["held"] == 0


class Elsewhere:
    """A server on what was restored, whose tablespaces lie in its data directory: it is backed up like any other."""

    def __init__(self, url):
        self.url = url


def test_the_restored_directory_starts_with_the_servers_own_tools_beside_the_original(live, place, kept):
    found = as_owner(proven, live, *kept[:2], place / "restored")
    assert found.fingerprint == kept[2]
    target = place / "restored"
    space = next((target / "pg_tblspc").iterdir())
    assert space.resolve().is_relative_to(target)
    assert not (target / "recovery.signal").exists() and not list(target.glob("*.dbguard*"))
    assert "recovery_target" not in (target / "postgresql.auto.conf").read_text()
    assert f"port = {live.port}" in (target / "postgresql.conf").read_text()
    options = f"-c unix_socket_directories={place} -c port=6543"
    words = [live.programs / "pg_ctl", "-D", target, "-w", "-l", place / "log", "-o", options]
    subprocess.run([*words, "start"], check=True, cwd="/", capture_output=True, **identity())
    try:
        asked = [live.programs / "psql", "-XqAt", "-h", place, "-p", "6543", "-U", "postgres", "-d", "shop"]
        url = f"postgresql:///?host={place}&port=6543&user=postgres"
        _, facts, taken, again = as_owner(round_trip, Elsewhere(url), place / "again")
        told = subprocess.run([*asked, "-c", "INSERT INTO afar VALUES (501); SELECT count(*) FROM afar"],
                              check=True, capture_output=True, text=True, cwd="/")  # fmt: skip
    finally:
        subprocess.run([*words, "-m", "fast", "stop"], check=True, cwd="/", capture_output=True, **identity())
    assert told.stdout.strip() == "501"
    assert failed(again) == {} and again.fingerprint == taken and facts["timeline"] == 2
    assert taken.tables == kept[2].tables
    assert live.sql("SELECT count(*) FROM afar", "shop") == "500"


class Stamps(MemorySink):
    """Knows what files are known by."""

    def __init__(self):
        super().__init__()
        self.stamps = set()

    def adopt(self, name, file, page_size, *, stamp="", **more):
        self.stamps.add(stamp)


def rest(live):
    """Let the files of databases look as if nothing was written for a while."""
    live.sql("CHECKPOINT")
    for path in (*live.data.glob("base/*/*"), *live.data.glob("base/*")):
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    changed = max(int(path.stat().st_ctime_ns) for path in live.data.glob("base/*/*"))
    until(lambda: time.time_ns() > changed + 2_100_000_000, "times that are old enough")


def test_what_is_unchanged_is_not_read_again_and_what_is_changed_is_stored_page_by_page(live, place):
    def twice(storage):
        parent, found = None, []
        for turn in range(4):
            engine = made(live)
            if turn == 3:
                live.sql("UPDATE big SET t = 'new' WHERE n = 6000; CHECKPOINT", "shop")
            with saving(storage, parent) as sink:
                facts = engine.dump(sink, no_progress)
                parent = sink.seal(facts)
            found.append((parent, facts, engine.fingerprint(no_progress)))
            engine.release()
        return found, proven_from(storage, parent), [stamps(0, off=True), stamps(3600), stamps(0)]

    def stamps(ahead, off=False):
        """What files are known by, of a backup that was begun when the clock said so much more."""
        live.sql(f"ALTER SYSTEM SET full_page_writes = {'off' if off else 'on'}; SELECT pg_reload_conf()")
        until(lambda: live.sql("SHOW full_page_writes") == ("off" if off else "on"), "the setting")
        sink = Stamps()
        with connected(address_of(live.url)) as keeper:
            asked = look(keeper, "here")
        with closing(DataDirectory(str(live.data), {}, asked.version_directory)) as directory:
            Copy(directory, asked, sink, time.time() + ahead, lambda done: None).relations()
        return sink.stamps - {""}

    def proven_from(storage, backup):
        engine = made(live)
        with Tree(storage, DOMAIN, backup) as tree:
            engine.restore(tree, place / "restored", no_progress)
        return engine.examine(place / "restored", (), no_progress)

    live.sql("VACUUM (FREEZE)", "shop")  # what a fingerprint reads next has nothing to prune and no hint to set
    rest(live)
    found, examined, (no_whole_pages, set_back, usual) = as_owner(twice, Drawer())
    assert usual and not set_back and not no_whole_pages
    (first, facts1, _), (second, facts2, _), (third, facts3, _), (fourth, facts4, taken) = found
    assert first.kind == "full" and second.kind == third.kind == "incremental"
    assert facts1["reused_files"] == 0 and facts2["reused_files"] >= 2 and facts3["reused_files"] >= 2
    assert 0 < facts4["reused_files"] < facts3["reused_files"]
    last = {stream.name: stream.stamp for stream in third.streams if stream.stamp}
    again = {stream.name for stream in fourth.streams if last.get(stream.name) == stream.stamp}
    (shop,) = (f"base/{number}.tar" for number in [live.sql("SELECT oid FROM pg_database WHERE datname = 'shop'")])
    archives = {name for name in last if name.endswith(".tar")}
    assert shop in archives and archives - {shop} <= again  # of other databases nothing is read
    assert second.stored_bytes < first.stored_bytes / 5
    assert fourth.stored_bytes < first.stored_bytes / 4
    assert failed(examined) == {} and examined.fingerprint == taken


# ------------------------------------------------------------------------------------- what changes while it is copied


def test_relations_that_come_go_and_shrink_during_the_copy_are_what_the_log_says(live, place):
    live.sql("DROP DATABASE IF EXISTS passing")
    live.sql("CREATE TABLE shrinking AS SELECT n, repeat('x', 500) t FROM generate_series(1, 9000) n", "shop")
    live.sql("CREATE TABLE dropped AS TABLE shrinking; CREATE TABLE filled (n int, t text)", "shop")
    live.sql("CREATE DATABASE passing TEMPLATE shop")
    live.sql("CHECKPOINT")
    steps = iter(
        (
            "TRUNCATE shrinking; INSERT INTO shrinking VALUES (7, 'seven')",
            "DROP TABLE dropped; CREATE TABLE born AS TABLE big",
            "DROP DATABASE passing",
            "INSERT INTO filled SELECT n, repeat('y', 500) FROM generate_series(1, 9000) n; DELETE FROM filled "
            "WHERE n > 4000; VACUUM filled",
        )
    )
    try:
        _, _, taken, found = as_owner(
            round_trip, live, place / "restored", (), lambda name: live.sql(next(steps, "SELECT"), "shop")
        )
    finally:
        live.sql("DROP TABLE shrinking, filled; DROP TABLE IF EXISTS dropped, born", "shop")
    assert failed(found) == {} and found.fingerprint == taken
    counts = [taken.tables[f"shop.public.{name}"].rows for name in ("shrinking", "born", "filled")]
    assert counts == [1, 12000, 4000] and "shop.public.dropped" not in taken.tables


class Dropping:
    """A sink that drops a database once its files were looked at."""

    def __init__(self, sink, drop):
        self._sink, self._drop = sink, drop

    def __getattr__(self, name):
        return getattr(self._sink, name)

    def write(self, name, **more):
        if name == "files.tar":
            self._drop()
        return self._sink.write(name, **more)


def test_a_database_that_is_dropped_when_its_files_were_taken_over_does_no_harm(live, place):
    live.sql("CREATE DATABASE passing")
    number = live.sql("SELECT oid FROM pg_database WHERE datname = 'passing'")
    rest(live)

    def twice(storage):
        engine, parent, more = made(live), None, {"compared": False}
        for drop in (lambda: None, lambda: live.sql("DROP DATABASE passing")):
            with saving(storage, parent) as sink:
                parent = sink.seal(engine.dump(Dropping(sink, drop), no_progress, **more))
            more = {}
        taken = engine.fingerprint(no_progress)
        engine.release()
        with Tree(storage, DOMAIN, parent) as tree:
            engine.restore(tree, place / "restored", no_progress)
        return parent, taken, engine.examine(place / "restored", (), no_progress)

    backup, taken, found = as_owner(twice, Drawer())
    assert f"base/{number}.tar" in {stream.name for stream in backup.streams if stream.stamp}
    assert failed(found) == {} and found.fingerprint == taken
    assert not (place / "restored" / "base" / number).exists()


def test_what_somebody_has_put_among_the_files_of_a_database_is_kept(live, place):
    beside = live.data / "base" / "1" / "2 by hand"  # its name sorts between those of relations
    beside.mkdir()
    (beside / "file").touch()
    for path in (beside, beside / "file"):
        os.chown(path, owner(), -1)
    try:
        _, _, taken, found = as_owner(round_trip, live, place / "restored")
    finally:
        (beside / "file").unlink()
        beside.rmdir()
    assert failed(found) == {} and found.fingerprint == taken
    assert (place / "restored" / beside.relative_to(live.data) / "file").is_file()


def test_a_tablespace_that_is_made_during_the_backup_spoils_it(live):
    """A recovery would make it again: it would empty the directory of the live server's."""
    place = live.place / "near"
    place.mkdir()
    os.chown(place, owner(), -1)

    def make(name):
        if name == "files.tar":
            live.sql(f"CREATE TABLESPACE near LOCATION '{place}'")
            live.sql("DROP TABLESPACE near")

    with pytest.raises(SourceChanged, match="tablespace"):
        as_owner(backed_up, live, make)


def test_files_of_a_database_that_are_copied_during_the_backup_spoil_it(live, place):
    """A recovery would copy them again: from what the template was when it was read, later, or is no more."""
    live.sql("CREATE DATABASE template; CREATE DATABASE moved")

    def backed_up_beside(statement):
        steps = iter((statement, "CREATE TABLE later (n int)"))
        return round_trip(live, place / "restored", (), lambda name: live.sql(next(steps, "SELECT"), "template"))

    try:
        for statement in ("CREATE DATABASE child TEMPLATE template STRATEGY file_copy",
                          "ALTER DATABASE moved SET TABLESPACE far"):  # fmt: skip
            with pytest.raises(SourceChanged, match="copied or moved"):
                as_owner(backed_up_beside, statement)
            live.sql("DROP TABLE later", "template")
        live.sql("DROP DATABASE child")
        live.sql("CREATE TABLE sooner (n int)", "template")
        _, _, taken, found = as_owner(backed_up_beside, "CREATE DATABASE child TEMPLATE template STRATEGY wal_log")
    finally:
        for name in ("child", "moved", "template"):
            live.sql(f"DROP DATABASE IF EXISTS {name}")
    assert failed(found) == {} and found.fingerprint == taken
    assert "child.public.sooner" in taken.tables and "child.public.later" not in taken.tables


def test_nothing_is_followed_out_of_the_data_directory(live, place):
    """Links and what is no file are named; names of any bytes come back."""
    secret, odd = live.place / "secret", live.data / os.fsdecode(b"odd \n\xff" + b"n" * 200)
    secret.write_text("of somebody else")
    (live.data / "link").symlink_to(secret)
    (live.data / "base" / "link").symlink_to(live.place)
    os.mkfifo(live.data / "pipe")
    odd.write_text("kept")
    for path in (odd, live.data / "pipe"):
        os.chown(path, owner(), -1)
    try:
        streams, facts, _, found = as_owner(round_trip, live, place / "restored")
    finally:
        for path in (live.data / "link", live.data / "base" / "link", live.data / "pipe", odd):
            path.unlink()
    assert sorted(facts["left_out"]) == ["base/link", "link", "pipe"] and failed(found) == {}
    assert not any(b"of somebody else" in data for data in streams.values())
    assert (place / "restored" / odd.name).read_text() == "kept"
    with tarfile.open(fileobj=BytesIO(streams["files.tar"])) as archive:  # anybody's tar can read it
        assert "PG_VERSION" in archive.getnames() and "global/pg_control" not in archive.getnames()
        assert not any("pgsql_tmp" in name or name.startswith("postmaster") for name in archive.getnames())


def test_a_definition_that_changes_while_the_content_is_read_leaves_the_backup_without_a_fingerprint(live, place):
    live.sql("CREATE TABLE doomed AS SELECT n FROM generate_series(1, 5) n", "shop")
    _, _, taken, found = as_owner(
        round_trip, live, place / "restored", (), None, lambda: live.sql("TRUNCATE doomed", "shop")
    )
    live.sql("DROP TABLE doomed", "shop")
    assert isinstance(taken, NoFingerprint) and "doomed" in taken.why
    assert failed(found) == {} and found.fingerprint is not None


def test_a_lock_is_not_waited_for_for_ever_and_nobody_is_in_a_database_that_was_read(live):
    def locked():
        words = [live.programs / "psql", "-Xq", "-h", live.socket, "-p", str(live.port), "-U", "postgres", "-d", "shop"]
        holder = subprocess.Popen([*words, "-c", "BEGIN; LOCK gone; SELECT 'held', pg_sleep(60)"], cwd="/")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND wait_event = 'PgSleep'"
        return holder, until(lambda: live.sql(waiting) == "1", "the lock")

    engine, ours = made(live), "FROM pg_stat_activity WHERE application_name = 'dbguard'"
    others = list[str]()

    def look():
        until(lambda: live.sql(f"SELECT count(*) {ours} AND wait_event_type = 'Lock'") == "1", "who waits")
        others.append(live.sql(f"SELECT DISTINCT datname {ours}"))

    def read():
        unread = engine.dump(MemorySink(), no_progress, compared=False)
        assert (unread["snapshots"], unread["recovery_lsn"]) == ({}, unread["stop_lsn"])  # nobody is in a database
        engine.dump(MemorySink(), no_progress)
        holder, _ = locked()
        looking = threading.Thread(target=look)
        looking.start()
        try:
            return engine.fingerprint(no_progress), others
        finally:
            looking.join()
            holder.terminate()
            holder.wait()
            engine.release()

    told, others = as_owner(read)
    assert isinstance(told, NoFingerprint) and "gone" in told.why
    assert others == ["shop"]  # the last one: template1 was read first, and whoever was read is left alone


def test_a_backup_becomes_a_cluster_by_hand_as_the_manual_says(live, place, kept):
    """Without dbguard: what recover.py writes, tar, and the server's own programs."""
    target = place / "recovered"
    by_hand(live, kept[0], target)
    try:
        asked = [live.programs / "psql", "-XqAt", "-h", live.socket, "-p", "5433", "-U", "postgres", "-d", "shop"]
        asked += ["-c", "SELECT (SELECT count(*) FROM afar) + (SELECT count(*) FROM big)"]
        told = subprocess.run(asked, check=True, capture_output=True, text=True, cwd="/").stdout.strip()
    finally:
        stop = [live.programs / "pg_ctl", "-D", target, "-m", "fast", "stop"]
        subprocess.run(stop, check=True, cwd="/", capture_output=True, **identity())
    assert told == "12500"


def test_a_control_file_that_is_not_whole_is_not_taken(live, place):
    """What is read while the server writes it may be half of the old and half of the new: its checksum tells."""
    old = (live.data / "global" / "pg_control").read_bytes()
    live.sql("SELECT pg_logical_emit_message(true, '', ''); CHECKPOINT")
    new = (live.data / "global" / "pg_control").read_bytes()
    first = next(n for n in range(512) if old[n] != new[n]) + 1
    (place / "global").mkdir()
    with closing(DataDirectory(str(place), {}, "")) as directory:
        for torn in (new[:first] + old[first:], b"", bytes(8192)):
            (place / "global" / "pg_control").write_bytes(torn)
            with pytest.raises(SourceDamaged, match="checksum"):
                directory.control()
        for whole in (old, new):
            (place / "global" / "pg_control").write_bytes(whole)
            assert directory.control() == whole


@pytest.mark.parametrize(
    ("settings", "checkpoint"),
    [
        ({"checkpoint": "spread", "awaited": False}, "force wait"),
        ({"checkpoint": "spread", "awaited": True}, "immediate force wait"),
        ({"checkpoint": "fast", "awaited": False}, "immediate force wait"),
    ],
)
def test_a_checkpoint_is_spread_if_nobody_waits_and_the_policy_does_not_want_it_fast(live, settings, checkpoint):
    live.sql("CHECKPOINT")  # so that a spread one is soon done
    before = len(live.checkpoints)
    as_owner(dumped, live, settings)
    assert live.checkpoints[before] == checkpoint


def dumped(live, settings):
    engine = made(live, **settings)
    engine.dump(MemorySink(), no_progress, compared=False)
    engine.release()


# ------------------------------------------------------------------------------------------------ places in the log


def test_there_is_a_place_only_where_what_is_seen_lies_before_what_is_not():
    seen, unseen = Snapshot(110, frozenset({105, 107})), Snapshot(106, frozenset())
    assert [seen.sees(xid) for xid in (99, 105, 106, 107, 109, 110, 200)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert between([], [seen], 50) == 50
    assert between([(10, 104), (20, 106)], [seen], 50) == 50  # all of it is seen
    assert between([(10, 104), (20, 105), (30, 111)], [seen], 50) == 20  # from there on, nothing is
    assert between([(10, 105), (20, 106)], [seen], 50) is None  # committed later, and seen earlier
    assert between([(10, 104), (20, 106)], [seen, unseen], 50) is None  # one database sees it, the other does not
    assert between([(60, 111)], [seen], 50) == 50


def test_numbers_of_transactions_go_on_where_32_bits_end():
    young = Snapshot((7 << 32) + 3, frozenset({(7 << 32) + 1}))
    assert [young.sees(xid) for xid in ((1 << 32) - 6, (1 << 32) - 1, 0, 1, 2, 3)] == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]


def test_files_of_the_log_and_of_relations_have_the_names_that_the_server_gives_them():
    log = WalTimeline(1, 10, 16 << 20)
    assert log.name(parse_lsn("16/B374D848")) == "0000000A00000016000000B3"
    assert WalTimeline(1, 1, 1 << 20).name(parse_lsn("2/0")) == "000000010000000200000000"
    assert [name for name, _ in log.names(parse_lsn("0/FEFFFFFF"), parse_lsn("1/1"))] == [
        "0000000A00000000000000FE", "0000000A00000000000000FF", "0000000A0000000100000000"
    ]  # fmt: skip
    assert format_lsn(parse_lsn("16/B374D848")) == "16/B374D848"
    for name in ("base/5/16384", "base/5/16384.12", "base/5/16384_fsm.1", "global/1262", "base/5/9_init",
                 "pg_tblspc/16400/PG_15_202209061/5/16401_vm"):  # fmt: skip
        assert is_relation(name), name
    for name in ("base/5/pg_filenode.map", "base/5/t3_16384", "base/5/../1", "pg_wal/1", "base/x/1", "1", "base/5/1\n"):
        assert not is_relation(name), name
