"""A cluster is restored over the one that is there: what differs is written, and the way back is whole."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from engine_memory import MemorySink, no_progress
from postgres_pages_world import FACTS, failed, proven, shop, tree
from postgres_world import alive_processes, as_owner, identity, owner, until

from dbguardd.engines.base import REPLACED
from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.physical.rebuild import manual
from dbguardd.errors import (
    NoSpace,
    SourceInvalid,
    SourceMissing,
    SourceReplaced,
    TargetExists,
    TargetInUse,
    Usage,
)


def opened(live):
    return open_postgresql({"url": live.url, "staging": "/nonexistent", "method": "pages"})


def backed_up(live):
    engine, sink = opened(live).snapshots, MemorySink()
    facts = engine.dump(sink, no_progress)
    taken = engine.fingerprint(no_progress)
    engine.release()
    return sink.streams, facts, taken


@pytest.fixture(scope="module")
def live():
    with shop() as made:
        yield made


@pytest.fixture
def kept(live):
    """A backup; afterwards the server runs on whatever is there."""
    if live.process is None:
        live.start()
    found = as_owner(backed_up, live)
    yield found
    aside = live.data.with_name("data.in-restore")
    if aside.exists():
        assert not live.data.exists()
        aside.rename(live.data)


def state(live):
    """All files of a cluster that rests, with their content; where its links lead."""
    found = {}
    for above in (live.data, live.place / "far"):
        for path in sorted(above.rglob("*")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file() and path.name != "postmaster.opts":
                found[str(path)] = path.read_bytes()
    return found


class Known(MemorySink):
    """A repository in which the backup before bears the stamp of every file."""

    def reuse(self, name, stamp):
        return True


def keep(live, facts, sink_of=MemorySink):
    sink = sink_of()
    made = opened(live).delta_restore.save(live.data, facts, sink, no_progress)
    return sink.streams, made


def overwritten(live, streams, facts):
    engine = opened(live)
    where = engine.delta_restore.overwrite(tree(streams, facts), live.data, no_progress)
    assert where.name == "data.in-restore" and not live.data.exists()
    examined = engine.snapshots.examine(where, (), no_progress)
    engine.delta_restore.publish(live.data)
    return examined


def test_what_was_done_since_is_gone_and_the_undo_brings_every_byte_back(live, kept):
    streams, facts, taken = kept
    live.sql("DROP TABLE pgbench_accounts; INSERT INTO afar VALUES (501); CREATE TABLE newest AS SELECT 1 AS n", "shop")
    live.sql("CREATE DATABASE later")
    live.stop(signal.SIGINT)
    before = state(live)
    safe = as_owner(keep, live, facts)
    assert state(live) == before
    looked = as_owner(proven, live, *safe, live.place / "look")  # elsewhere it can be started, and read
    assert looked.ok and (live.place / "look" / "RESTORE.txt").exists() and state(live) == before
    found = as_owner(overwritten, live, streams, facts)
    assert failed(found).keys() <= {"the server was kept to its directory"} and found.fingerprint == taken
    assert os.readlink(next((live.data / "pg_tblspc").iterdir())) == str(live.place / "far")
    live.start()
    assert live.sql("SELECT count(*) FROM pgbench_accounts", "shop") == "100000"
    assert live.sql("SELECT count(*) FROM afar", "shop") == "500"
    live.sql("INSERT INTO afar VALUES (502)", "shop")
    live.stop(signal.SIGQUIT)  # it falls
    as_owner(overwritten, live, *safe)
    log = {path for path in before if "/pg_wal/" in path}  # used files of it that wait to be written anew do not count
    after = state(live)
    assert {path: data for path, data in after.items() if path not in log} == {
        path: data for path, data in before.items() if path not in log
    }
    live.start()
    assert live.sql("SELECT count(*) FROM afar", "shop") == "501"
    assert live.sql("SELECT n FROM newest", "shop") == "1"
    live.sql("DROP DATABASE later")
    live.sql("DELETE FROM afar WHERE n > 500", "shop")


def test_a_file_that_is_as_it_was_keeps_its_times_so_a_backup_need_not_read_it_again(live, kept):
    live.stop(signal.SIGINT)
    safe = as_owner(keep, live, kept[1])
    assert "PG_VERSION" not in safe[0]  # in the archive of the small files

    def times():
        found = {path: path.stat() for path in live.data.rglob("*") if path.is_file() and not path.is_symlink()}
        return {
            path: (one.st_ino, one.st_mtime_ns, one.st_ctime_ns)
            for path, one in found.items()
            if one.st_size < 1 << 20
            and path.parent.name != "pg_wal"
            and path.name not in ("RESTORE.txt", "postmaster.opts")
        }

    before = times()
    as_owner(overwritten, live, *safe)
    assert len(before) > 900 and times() == before
    live.start()


def test_what_is_there_is_read_also_where_nobody_has_written_since(live, kept):
    """What a disk lets rot bears the times of before: an overwriting that trusts this copy would leave it."""
    live.stop(signal.SIGINT)
    large = [path for path in live.data.rglob("base/*/*") if path.stat().st_size >= 1 << 20]
    assert large
    until(lambda: time.time() > max(path.stat().st_ctime for path in large) + 5, "file times that can be believed")
    read, made = as_owner(keep, live, kept[1], Known)
    assert {str(path.relative_to(live.data)) for path in large} <= read.keys() and made["reused_files"] == 0
    live.start()


def killed(live, streams, facts, step, count):
    """Restore over the live cluster, and be killed at the so-many-th call of a step."""
    calls = 0

    def progress(now, done, total):
        nonlocal calls
        calls += now == step
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = opened(live)
    where = engine.delta_restore.overwrite(tree(streams, facts), live.data, progress)
    engine.snapshots.examine(where, (), progress)


def unstartable(live):
    """Say that no server starts on it; one whose parent we are would take our hold on the directory for its own."""
    words = ["sh", "-c", '"$0" -D "$1"; exit $?', live.programs / "postgres", live.data]
    return subprocess.run(words, check=False, capture_output=True, cwd="/", timeout=60, **identity()).returncode != 0


def test_who_is_killed_leaves_nothing_that_a_server_starts_on_and_the_next_one_makes_it_right(live, kept):
    streams, facts, taken = kept
    live.sql("CREATE TABLE newer AS SELECT generate_series(1, 9) AS n; DELETE FROM afar WHERE n <= 100", "shop")
    live.stop(signal.SIGINT)
    safe = as_owner(keep, live, facts)
    for step, count in (("restore", 200), ("recover", 2), ("read", 2)):
        with pytest.raises(pytest.fail.Exception, match="-9"):
            as_owner(killed, live, streams, facts, step, count)
        until(lambda: alive_processes(str(live.place)) == [], "the end of the throw-away server")
        assert not live.data.exists() and unstartable(live)
        with pytest.raises(SourceMissing):
            as_owner(keep, live, facts)
        for left in live.place.glob(".*.dbguard"):
            until(lambda left=left: time.time() - left.stat().st_ctime > 1.1, "old enough to be nobody's")
    live.data.mkdir()
    with pytest.raises(TargetExists, match="half of a restore"):
        as_owner(overwritten, live, streams, facts)
    live.data.rmdir()
    found = as_owner(overwritten, live, streams, facts)
    assert found.fingerprint == taken and found.ok
    assert list(live.place.glob(".*.dbguard")) == []
    with pytest.raises(pytest.fail.Exception, match="-9"):
        as_owner(killed, live, *safe, "restore", 200)
    as_owner(overwritten, live, *safe)
    live.start()
    assert live.sql("SELECT count(*), (SELECT count(*) FROM afar) FROM newer", "shop") == "9|400"
    live.sql("DROP TABLE newer; INSERT INTO afar SELECT generate_series(1, 100)", "shop")


def test_nobody_may_be_there_and_nobody_gets_in(live, kept):
    streams, facts, _ = kept
    before = as_owner(lambda: opened(live).delta_restore.inspect(live.data, facts))
    assert before.bytes > 20_000_000 and before.disks[0].free_bytes > 0 and not before.begun
    assert {part for disk in before.disks for part in disk.parts} == {"", "log", *facts["tablespaces"]}
    with pytest.raises(TargetInUse, match="a server runs there") as refused:
        as_owner(overwritten, live, streams, facts)
    assert refused.value.facts.get(REPLACED) is None and f"-D {live.data} -m fast stop" in refused.value.hints[0]
    with pytest.raises(TargetInUse) as refused:
        as_owner(lambda: opened(live).delta_restore.check_unused(live.data, {**facts, "service": "postgresql@15-main"}))
    assert refused.value.hints == ("systemctl stop postgresql@15-main",)
    live.stop(signal.SIGINT)
    other = subprocess.Popen(["sleep", "1000"], cwd=live.data / "base", **identity())
    try:
        with pytest.raises(TargetInUse, match=rf"process {other.pid} \(sleep\)"):
            as_owner(overwritten, live, streams, facts)
    finally:
        other.kill()
        other.wait()

    def kept_meanwhile():
        tried = []

        def progress(step, done, total):
            if not tried:
                tried.append(unstartable(live))

        engine, sink = opened(live), MemorySink()
        engine.delta_restore.save(live.data, facts, sink, progress)
        return engine, tried

    def used_since():
        engine, tried = kept_meanwhile()
        started = subprocess.Popen([live.programs / "postgres", "-D", live.data], stderr=subprocess.DEVNULL, cwd="/")
        until(lambda: "ready" in live._status(), "the server")
        started.send_signal(signal.SIGINT)
        started.wait()
        try:
            engine.delta_restore.overwrite(tree(streams, facts), live.data, no_progress)
        except TargetInUse as error:
            return tried, error.message, error.facts

    tried, message, told = as_owner(used_since)
    assert tried == [True] and "has run there since" in message and REPLACED not in told


def test_what_is_another_cluster_or_has_no_room_is_refused_before_anything_is_changed(live, kept):
    streams, facts, taken = kept
    live.stop(signal.SIGINT)
    before = state(live)
    for wrong, error in (({"system": "1"}, SourceReplaced), ({"size_bytes": 1 << 60}, NoSpace)):
        with pytest.raises(error) as refused:
            as_owner(overwritten, live, streams, {**facts, **wrong})
        assert REPLACED not in refused.value.facts
    (space,) = (live.place / "far").iterdir()
    space.rename(live.place / "helped")  # nothing is written, nor emptied, where a person's link leads
    space.symlink_to(live.place / "helped")
    with pytest.raises(SourceInvalid, match=f"{space.name}: is a link"):
        as_owner(keep, live, facts)
    space.unlink()
    (live.place / "helped").rename(space)
    (live.data / "PG_VERSION").rename(live.place / "PG_VERSION")
    with pytest.raises(SourceInvalid, match="whose cluster"):
        as_owner(overwritten, live, streams, facts)
    (live.place / "PG_VERSION").rename(live.data / "PG_VERSION")
    (live.place / "far").rename(live.place / "unmounted")  # an undo without it would be a mixture of two states
    for _ in range(2):
        with pytest.raises(SourceInvalid, match="far: a tablespace"):
            as_owner(keep, live, facts)
        (live.place / "far").mkdir(exist_ok=True)  # as a place is where a disk would be
        os.chown(live.place / "far", owner(), -1)
    (live.place / "far").rmdir()
    (live.place / "unmounted").rename(live.place / "far")
    assert state(live) == before
    shutil.rmtree(live.data)
    with pytest.raises(TargetExists, match="tablespace"):
        as_owner(overwritten, live, streams, facts)
    shutil.rmtree(live.place / "far")
    assert not as_owner(lambda: opened(live).delta_restore.inspect(live.data, facts)).bytes
    found = as_owner(overwritten, live, streams, facts)
    assert found.ok and found.fingerprint == taken
    live.start()
    assert live.sql("SELECT count(*) FROM afar", "shop") == "500"


def test_what_lies_elsewhere_stays_there_and_what_lies_within_is_within(live, kept):
    """The log may lie elsewhere, and the tablespaces of a cluster that was restored before lie below it."""
    streams, facts, taken = kept
    live.stop(signal.SIGINT)
    elsewhere, within = live.place / "log-of-it", live.data / "tablespaces"
    (live.data / "pg_wal").rename(elsewhere)
    (live.data / "pg_wal").symlink_to(elsewhere)
    (live.data / "server.crt").symlink_to("/etc/ssl/server.crt")  # no server starts without it, and no backup has it
    link = next((live.data / "pg_tblspc").iterdir())
    within.mkdir(0o700)
    os.chown(within, owner(), -1)
    shutil.copytree(live.place / "far", within / link.name)
    for path in (within / link.name, *within.rglob("*")):
        os.chown(path, owner(), -1)
    link.unlink()
    link.symlink_to(within / link.name)
    far = {path: path.read_bytes() for path in (live.place / "far").rglob("*") if path.is_file()}
    safe = as_owner(keep, live, facts)
    before = {path.name for path in elsewhere.iterdir()}
    found = as_owner(overwritten, live, streams, facts)
    assert found.ok and found.fingerprint == taken
    assert os.readlink(live.data / "pg_wal") == str(elsewhere) and (elsewhere / "00000002.history").exists()
    assert os.readlink(link) == str(within / link.name)
    as_owner(overwritten, live, *safe)
    assert {path.name for path in elsewhere.iterdir()} <= before and os.readlink(link) == str(within / link.name)
    assert {path: path.read_bytes() for path in far} == far
    assert os.readlink(live.data / "server.crt") == "/etc/ssl/server.crt"
    (live.data / "server.crt").unlink()
    (live.data / "pg_wal").unlink()
    elsewhere.rename(live.data / "pg_wal")
    live.start()
    assert live.sql("SELECT count(*), (SELECT count(*) FROM afar) FROM big", "shop") == "12000|500"


def test_a_tablespace_goes_where_it_is_told_to_and_never_over_anything(live, kept):
    streams, facts, taken = kept
    target, new = live.place / "moved", live.place / "new"

    def to(places):
        engine = opened(live).snapshots
        engine.restore(tree(streams, facts), target, no_progress, places)
        return engine.examine(target, (), no_progress)

    ((_, far),) = facts["tablespaces"].values()
    taken_already = live.place / "there"
    taken_already.mkdir()
    for wrong, error in (({"far": str(taken_already)}, TargetExists), ({"near": str(new)}, Usage)):
        with pytest.raises(error):
            as_owner(to, wrong)
        assert not target.exists() and not new.exists() and list(live.place.glob(".*.dbguard")) == []
    found = as_owner(to, {far: str(new)})
    assert found.ok and found.fingerprint == taken
    (number,) = facts["tablespaces"]
    assert os.readlink(target / "pg_tblspc" / number) == str(new)
    assert not [path for path in target.glob("tablespaces/**/*") if path.is_file()]
    assert [path.name[:3] for path in new.iterdir()] == ["PG_"]
    assert f"tablespaces/{number}" not in (target / "RESTORE.txt").read_text()


def test_what_is_typed_to_take_the_place_of_the_original_goes_wholly_or_not_at_all(tmp_path):
    """Who restores twice has the first original beside it: nothing of the second may then be begun, or started."""
    original, before, target = tmp_path / "it's", tmp_path / "it's.before", tmp_path / "restored"
    for place in (original, before, target):
        (place / "pg_tblspc").mkdir(parents=True)
    (original / "pg_tblspc" / "1").symlink_to("/srv/fast")
    facts = replace(FACTS, directory=str(original), service="", tablespaces={"1": ("fast", "/srv/fast")})
    text = manual(target, facts, "").partition("To replace the original")[2]
    typed = "\n".join(line for line in text.splitlines()[1:] if not line.startswith("#"))

    def paste():
        return subprocess.run(["bash"], input=f"{typed}\n", check=False, capture_output=True, text=True)

    said = paste()
    assert "it's.before: already exists" in said.stdout and said.returncode and target.is_dir()
    assert os.readlink(original / "pg_tblspc" / "1") == "/srv/fast" and (before / "pg_tblspc").is_dir()
    shutil.rmtree(before)
    assert paste().returncode == 0 and not target.exists()
    assert os.readlink(before / "pg_tblspc" / "1") == "/srv/fast"
    assert os.readlink(original / "pg_tblspc" / "1") == f"{original}/tablespaces/1"
