"""Physical backups of a real cluster: taken beside its users, recovered by its own server, and equal."""

import os
import resource
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import fastcdc.fastcdc_cy  # noqa: F401 - the owner of the server may not read where it lies: it is loaded before
import pytest
from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_world import alive_processes, as_owner, cluster, identity, owner, until

from dbguardd.engines.base import Fingerprint, Query, Untold
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.cluster import look
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.mode import BackupMode
from dbguardd.errors import (
    Cancelled,
    Damaged,
    GuardError,
    NoSpace,
    SourceChanged,
    SourceDamaged,
    SourceInvalid,
    TargetExists,
    Unsupported,
)
from dbguardd.repository.tree import Tree
from tests.repository.data_path import DOMAIN, Drawer, saving

MADE = """
CREATE TABLE big (n int PRIMARY KEY, t text);
INSERT INTO big SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 12000) n;
CREATE UNLOGGED TABLE passing (n int PRIMARY KEY); INSERT INTO passing SELECT generate_series(1, 1000);
CREATE TABLE "odd.\n""name" ("c, 1" text, mood numeric, raw bytea);
INSERT INTO "odd.\n""name" SELECT 'r' || n, n / 3.0, decode(md5(n::text), 'hex') FROM generate_series(1, 300) n;
CREATE TABLE part (n int) PARTITION BY RANGE (n); CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
INSERT INTO part SELECT generate_series(0, 99);
CREATE TABLE gone AS SELECT n FROM generate_series(1, 50) n; DELETE FROM gone WHERE n > 40;
CREATE TABLE afar (n int PRIMARY KEY) TABLESPACE far; INSERT INTO afar SELECT generate_series(1, 500);
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM big;
SELECT lo_from_bytea(0, 'a large object');
VACUUM ANALYZE;
"""

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbguard'"


@pytest.fixture(scope="module")
def live():
    with cluster("--data-checksums") as made:
        far = made.place / "far"
        far.mkdir()
        os.chown(far, owner(), -1)
        made.sql(f"CREATE TABLESPACE far LOCATION '{far}'; CREATE DATABASE shop")
        made.sql(MADE, "shop")
        subprocess.run(bench(made, "-i", "-q", "-s", "1"), check=True, capture_output=True, cwd="/")
        yield made


@pytest.fixture(scope="module")
def kept(live):
    """A backup that several tests restore: streams, facts, fingerprint."""
    return as_owner(stored, live)


@pytest.fixture
def place():
    """A directory of the owner's, where a job restores; nothing is left running in it."""
    base = Path(tempfile.mkdtemp(prefix="dbg-"))
    os.chown(base, owner(), -1)
    yield base
    assert alive_processes(str(base)) == []
    shutil.rmtree(base)


def bench(live, *words):
    return [live.programs / "pgbench", "-h", live.socket, "-p", str(live.port), "-U", "postgres", *words, "shop"]


@contextmanager
def writers(live):
    """Eight clients who transfer money, for the length of a block."""
    before = live.sql("SELECT count(*) FROM pgbench_history", "shop")
    words = bench(live, "-n", "-c", "8", "-R", "800", "-T", "120")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")
    try:
        until(lambda: live.sql("SELECT count(*) FROM pgbench_history", "shop") != before, "the first transfers")
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()


def made(live, **settings):
    return open_postgresql({"url": live.url, "method": "pages", **settings}).snapshots


def backed_up(live, before=None, after=None):
    """Back up and read the content of the snapshot. `before` is called with each stream, `after` before the reading."""
    engine, sink = made(live), MemorySink(before)
    facts = engine.dump(sink, no_progress)
    if after is not None:
        after()
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink, facts, taken


def stored(live, before=None, after=None):
    sink, facts, taken = backed_up(live, before, after)
    return sink.streams, facts, taken


def tree(streams, facts):
    sink = MemorySink()
    sink.streams = dict(streams)
    return MemoryTree(sink, facts)


def proven(live, streams, facts, target, queries=()):
    engine = made(live)
    engine.restore(tree(streams, facts), target, no_progress)
    return engine.examine(target, queries, no_progress)


def round_trip(live, target, queries=(), before=None, after=None):
    streams, facts, taken = stored(live, before, after)
    return streams, facts, taken, proven(live, streams, facts, target, queries)


def failed(found):
    return {finding.name: finding.detail for finding in found.findings if finding.outcome != "ok"}


# ----------------------------------------------------------------------------------------------- it is what it was


def test_a_cluster_comes_back_equal_to_its_snapshot_while_it_is_written(live, place):
    target = place / "restored"
    sums = [
        Query(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)", equals=1
        ),
        Query(
            "SELECT (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches)", min=1
        ),
        Query("SELECT count(*) FROM passing", equals=0, database="shop"),
        Query("SELECT 1", equals=1, database="absent"),
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
        told = subprocess.run([*asked, "-c", "INSERT INTO afar VALUES (501); SELECT count(*) FROM afar"],
                              check=True, capture_output=True, text=True, cwd="/")  # fmt: skip
    finally:
        subprocess.run([*words, "-m", "fast", "stop"], check=True, cwd="/", capture_output=True, **identity())
    assert told.stdout.strip() == "501"
    assert live.sql("SELECT count(*) FROM afar", "shop") == "500"


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
        return found, proven_from(storage, parent)

    def proven_from(storage, backup):
        engine = made(live)
        with Tree(storage, DOMAIN, backup) as tree:
            engine.restore(tree, place / "restored", no_progress)
        return engine.examine(place / "restored", (), no_progress)

    live.sql("CHECKPOINT", "shop")
    for path in (*live.data.glob("base/*/*"), *live.data.glob("base/*")):  # as if nothing was written for a while
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    changed = max(int(path.stat().st_ctime_ns) for path in live.data.glob("base/*/*"))
    until(lambda: time.time_ns() > changed + 2_100_000_000, "times that are old enough")
    found, examined = as_owner(twice, Drawer())
    (first, facts1, _), (second, facts2, _), (third, facts3, _), (fourth, facts4, taken) = found
    assert first.kind == "full" and second.kind == third.kind == "incremental"
    assert facts1["reused_files"] == 0 and facts2["reused_files"] >= 2 and facts3["reused_files"] >= 2
    assert facts4["reused_files"] == facts3["reused_files"] - 1  # the table; the key of an updated row stays
    assert second.stored_bytes < first.stored_bytes / 5
    assert fourth.stored_bytes < first.stored_bytes / 4
    assert failed(examined) == {} and examined.fingerprint == taken


# ------------------------------------------------------------------------------------- what changes while it is copied


def test_relations_that_come_go_and_shrink_during_the_copy_are_what_the_log_says(live, place):
    live.sql("CREATE TABLE shrinking AS SELECT n, repeat('x', 500) t FROM generate_series(1, 9000) n", "shop")
    live.sql("CREATE TABLE dropped AS TABLE shrinking; CREATE TABLE filled (n int, t text); CHECKPOINT", "shop")
    steps = iter(
        (
            "TRUNCATE shrinking; INSERT INTO shrinking VALUES (7, 'seven')",
            "DROP TABLE dropped; CREATE TABLE born AS TABLE big",
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
    assert isinstance(taken, Untold) and "doomed" in taken.why
    assert failed(found) == {} and found.fingerprint is not None


def test_a_lock_that_somebody_holds_is_not_waited_for_for_ever(live):
    def locked():
        words = [live.programs / "psql", "-Xq", "-h", live.socket, "-p", str(live.port), "-U", "postgres", "-d", "shop"]
        holder = subprocess.Popen([*words, "-c", "BEGIN; LOCK gone; SELECT 'held', pg_sleep(60)"], cwd="/")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND wait_event = 'PgSleep'"
        return holder, until(lambda: live.sql(waiting) == "1", "the lock")

    engine = made(live)

    def read():
        engine.dump(MemorySink(), no_progress)
        holder, _ = locked()
        try:
            return engine.fingerprint(no_progress)
        finally:
            holder.terminate()
            holder.wait()
            engine.release()

    told = as_owner(read)
    assert isinstance(told, Untold) and "gone" in told.why


# --------------------------------------------------------------------------------------------------- ends in the middle


def test_a_killed_engine_leaves_no_slot_no_backup_mode_and_no_session(live):
    def die(name):
        assert live.sql("SELECT slot_type, temporary FROM pg_replication_slots") == "physical|t"
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(pytest.fail.Exception, match="-9"):
        as_owner(backed_up, live, die)
    until(
        lambda: live.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbguard'") == "0", "the end"
    )
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    assert not (live.data / "backup_label").exists()
    assert "aborting backup due to backend exiting before pg_backup_stop was called" in (live.place / "log").read_text()


def test_a_cancelled_backup_and_a_server_that_stops_leave_nothing(live):
    def cancelled(step, done, total):
        if step == "copy":
            raise Cancelled("no more")

    def give_up():
        engine = made(live)
        with pytest.raises(Cancelled):
            engine.dump(MemorySink(), cancelled)
        return isinstance(engine.fingerprint(no_progress), Untold)

    assert as_owner(give_up)
    until(
        lambda: live.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dbguard'") == "0", "the end"
    )
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0"

    def end_session(name):
        live.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dbguard'")

    with pytest.raises(GuardError) as caught:
        as_owner(backed_up, live, end_session)
    assert caught.value.code in ("DBG-2011", "DBG-2006")


def test_no_room_and_a_place_that_is_taken_leave_nothing(live, place, kept):
    def narrow():
        (place / "taken").mkdir()
        with pytest.raises(TargetExists):
            made(live).restore(tree(*kept[:2]), place / "taken", no_progress)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(NoSpace):
            made(live).restore(tree(*kept[:2]), place / "restored", no_progress)
        return sorted(os.listdir(place))

    assert as_owner(narrow) == ["taken"]


# ------------------------------------------------------------------------------------------------ what is damaged


def test_a_damaged_page_is_a_finding_of_whatever_reads_it(live, place):
    """In a table, the fingerprint meets it; in an index, the proof does. The backup is kept as it is."""
    live.sql("CREATE TABLE hurt AS SELECT n, md5(n::text) t FROM generate_series(1, 3000) n; "
             "CREATE INDEX hurt_index ON hurt (t); CHECKPOINT", "shop")  # fmt: skip
    paths = [live.data / live.sql(f"SELECT pg_relation_filepath('{name}')", "shop") for name in ("hurt_index", "hurt")]
    live.stop(signal.SIGINT)
    kept = [path.read_bytes() for path in paths]
    seen = []
    try:
        for number, path in enumerate(paths):
            path.write_bytes(kept[number][:20_000] + b"\xff\xff" + kept[number][20_002:])
            live.start()
            try:
                seen.append(as_owner(round_trip, live, place / str(number)))
            except SourceDamaged as error:
                seen.append(error)
            live.stop(signal.SIGINT)
            path.write_bytes(kept[number])
    finally:
        live.stop()
        for path, data in zip(paths, kept, strict=True):
            path.write_bytes(data)
        live.start()
        live.sql("DROP TABLE hurt", "shop")
    _, _, taken, found = seen[0]
    assert found.fingerprint == taken
    assert set(failed(found)) == {"structure of shop", "page checksums"}
    assert "hurt_index" in failed(found)["structure of shop"] and paths[0].name in failed(found)["page checksums"]
    assert isinstance(seen[1], SourceDamaged) and "XX001" in seen[1].detail


def test_a_backup_that_is_not_whole_does_not_become_a_cluster_that_looks_whole(live, place, kept):
    """M10, M11: without its label or a piece of its log, a server would start with less, and say nothing."""

    streams, facts, _ = kept

    def tried():
        said = {}
        for what, name, broken in (
            ("label", "log.tar", without(streams["log.tar"], "backup_label")),
            ("log", "log.tar", without(streams["log.tar"], max)),
            ("place", "log.tar", streams["log.tar"]),
            ("files", "files.tar", streams["files.tar"][:100_000]),
            ("relation", "base/../../../x", b"x"),
            ("link", "files.tar", linked()),
        ):
            other = {**streams, name: broken}
            told = {**facts, "recovery_lsn": "7/0"} if what == "place" else facts
            try:
                said[what] = failed(proven(live, other, told, place / what))
            except Damaged as error:
                said[what] = error.message
        return said, sorted(os.listdir(place))

    said, left = as_owner(tried)
    assert {what: type(told) for what, told in said.items()} == {
        "label": str, "log": dict, "place": dict, "files": str, "relation": str, "link": str
    }  # fmt: skip
    assert list(said["log"]) == list(said["place"]) == ["recovery to the place of the backup"]
    assert left == ["log", "place"]  # nothing of what was refused


def making(out):
    return tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)


def without(archive, which):
    """The archive without one member: one of this name, or the last file of the log."""
    out = BytesIO()
    with (
        tarfile.open(fileobj=BytesIO(archive)) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        names = old.getnames()
        gone = which if isinstance(which, str) else which(name for name in names if name.startswith("pg_wal/"))
        for member in old:
            if member.name != gone:
                new.addfile(member, old.extractfile(member))
    return out.getvalue()


def linked():
    out = BytesIO()
    with making(out) as new:
        member = tarfile.TarInfo("base")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        new.addfile(member)
    return out.getvalue()


def test_nothing_that_configures_the_original_acts_in_the_proof(live, place):
    hostile = place / "acted"
    lines = {
        "postgresql.auto.conf": f"archive_mode = 'on'\narchive_command = 'touch {hostile}'\n"
        f"recovery_end_command = 'touch {hostile}'\nshared_preload_libraries = 'nowhere'\nport = 1\n",
        "pg_hba.conf": "local all all reject\n",
    }
    kept = {name: (live.data / name).read_text() for name in lines}
    live.sql("ALTER DATABASE shop SET default_transaction_read_only = on; ALTER ROLE postgres SET lock_timeout = 900")
    try:
        streams, facts, _ = as_owner(stored, live)
        for name, text in lines.items():
            streams["files.tar"] = replaced(streams["files.tar"], name, text.encode())
        found = as_owner(proven, live, streams, facts, place / "restored")
    finally:
        live.sql("ALTER DATABASE shop RESET ALL; ALTER ROLE postgres RESET ALL")
    assert failed(found) == {} and not hostile.exists()
    assert {name: (live.data / name).read_text() for name in lines} == kept
    assert (place / "restored" / "postgresql.auto.conf").read_text() == lines["postgresql.auto.conf"]
    assert (place / "restored" / "pg_hba.conf").read_text() == lines["pg_hba.conf"]


def replaced(archive, name, data):
    out = BytesIO()
    with (
        tarfile.open(fileobj=BytesIO(archive)) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            content = BytesIO(data) if member.name == name else old.extractfile(member)
            member.size = len(data) if member.name == name else member.size
            new.addfile(member, content)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_no_physical_backup_can_be_made_of_is_refused(live):
    with cluster() as other:
        other.sql("ALTER SYSTEM SET wal_level = 'minimal'; ALTER SYSTEM SET max_wal_senders = 0")
        other.stop(signal.SIGINT)
        other.start()
        with pytest.raises(Unsupported, match="wal_level"):
            as_owner(backed_up, other)
        foreign = DataDirectory(str(other.data), {}, "")
        try:
            with (
                connected(address_of(live.url)) as keeper,
                pytest.raises(SourceInvalid, match="is not the data directory"),
            ):
                BackupMode(keeper, look(keeper, "here").log.system).hold(foreign)
        finally:
            foreign.close()
    live.sql("CREATE ROLE low LOGIN")
    try:
        with pytest.raises(GuardError) as caught:
            as_owner(lambda: open_postgresql(
                {"url": live.url.replace("user=postgres", "user=low"), "method": "pages", "staging": "/nonexistent"}
            ).snapshots.dump(MemorySink(), no_progress))  # fmt: skip
        assert caught.value.code == "DBG-2007"
    finally:
        live.sql("DROP ROLE low")
