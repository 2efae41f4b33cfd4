"""The log of a real cluster, followed: nothing is lost whatever ends, and what was lost is said to be."""

import os
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from postgres_follow_world import STAGING, Follower, asked, base, followable, moment, opened, restored
from postgres_pages_world import own_place
from postgres_world import as_owner, owner, until

from dbguardd.engines.postgresql.physical.segments import parse_lsn
from dbguardd.engines.postgresql.physical.slot import name_of
from dbguardd.engines.postgresql.refusals import refusal
from dbguardd.errors import GuardError, LogBroken, NoSpace, ServerUnreachable, SourceLocked, SourceReplaced, Unsupported
from dbguardd.flow import TURNS

SLOT = name_of(STAGING)


@pytest.fixture(scope="module")
def live():
    with followable() as made:
        yield made


@pytest.fixture
def follower(live, tmp_path):
    made = Follower(live, tmp_path)
    yield made
    if made.process is not None and made.process.is_alive():
        made.kill()
    until(lambda: not slots(live, "AND active"), "the end of its connection")
    live.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def slots(live, more=""):
    return live.sql(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' {more}") == "1"


def commits(live, count=20):
    last = "(SELECT coalesce(max(id), 0) FROM ledger)"
    live.sql(f"INSERT INTO ledger SELECT {last} + n, 'x' FROM generate_series(1, {count}) n")


def written(live, since, until_):
    """What the server has in its files between two places."""
    found = bytearray()
    for name in sorted(os.listdir(live.data / "pg_wal")):
        if len(name) == 24 and name[:8] == since["round"].split("/")[1].rjust(8, "0"):
            start = (int(name[8:16], 16) << 32) + int(name[16:], 16) * (16 << 20)
            if start + (16 << 20) > since["position"] and start < until_["position"]:
                data = (live.data / "pg_wal" / name).read_bytes()
                found += data[max(0, since["position"] - start) : until_["position"] - start]
    return bytes(found)


def test_what_is_stored_is_what_the_server_wrote_whatever_is_killed(live, follower):
    follower.start()
    follower.catches_up()
    for turn in range(4):
        commits(live)
        if turn == 1:
            live.sql("SELECT pg_switch_wal()")  # the next place is at the start of a file, or near it
            follower.catches_up()
        follower.kill()
        commits(live)
        if turn == 2:
            live.stop(signal.SIGINT)
            live.start()
        follower.start()
    live.sql("SET synchronous_commit = off; INSERT INTO ledger VALUES (100000, 'not on disk yet')")
    written_ = parse_lsn(live.sql("SELECT pg_current_wal_insert_lsn()"))
    follower.catches_up()
    assert follower.resume()["position"] >= written_
    assert [begun[2] for begun in follower.events("begin")][:2] == [False, True] and len(follower.chains()) == 1
    body, since, end = follower.body()
    assert body == written(live, since, end)


def test_a_server_at_rest_is_left_at_rest(live, follower):
    follower.start()
    follower.catches_up()
    live.sql("CHECKPOINT")
    follower.catches_up()

    def state():
        return live.sql("SELECT pg_current_wal_insert_lsn()"), len(follower.events("segment"))

    def rests():
        """Look for a while; by itself a server writes a record each 15 seconds at most, and once it rests none."""
        before = state()
        for _ in range(5):
            follower.catches_up()
        return state() == before

    until(rests, "a server at rest")


def test_a_server_that_is_stopped_waits_for_nobody_and_is_followed_again(live, follower):
    follower.start()
    follower.catches_up()
    commits(live)
    live.stop(signal.SIGINT)  # it would wait for a reader that does not say what it has, for ever: see followable
    assert isinstance(follower.ended(), ServerUnreachable)
    live.start()
    follower.start()
    follower.catches_up()
    assert [begun[2] for begun in follower.events("begin")] == [False, True]


def test_a_sender_that_hangs_while_its_server_answers_is_not_waited_for(live, follower):
    follower.start(patience_seconds=3)
    follower.catches_up()
    sender = int(live.sql("SELECT pid FROM pg_stat_replication"))
    os.kill(sender, signal.SIGSTOP)
    try:
        commits(live)
        ended = follower.ended()
        assert isinstance(ended, ServerUnreachable) and "the server does not send the WAL that it has" in ended.message
    finally:
        os.kill(sender, signal.SIGCONT)
    follower.start()
    follower.catches_up()
    assert [begun[2] for begun in follower.events("begin")] == [False, True]


def test_what_is_not_stored_stays_on_the_server(live, follower):
    follower.start()
    commits(live)
    follower.catches_up()
    follower.path.chmod(0o700)
    commits(live)
    assert isinstance(follower.ended(), OSError)
    for _ in range(3):
        live.sql("SELECT pg_switch_wal()")
        live.sql("CHECKPOINT")
    follower.path.chmod(0o600)
    follower.start()
    follower.catches_up()
    assert [begun[2] for begun in follower.events("begin")] == [False, True]
    body, since, end = follower.body()
    assert body == written(live, since, end)


def lost(live):
    """Drop the slot, and have the server remove the log that it held."""
    until(lambda: not slots(live, "AND active"), "the end of its connection")
    live.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    for _ in range(3):
        commits(live)
        live.sql("SELECT pg_switch_wal()")
        live.sql("CHECKPOINT")


def test_a_slot_that_was_dropped_is_a_gap_if_its_log_is_gone(live, follower):
    follower.start()
    follower.catches_up()
    commits(live)
    follower.catches_up()
    follower.kill()
    lost(live)
    follower.start()
    follower.catches_up()
    _, (_, place, continued, because) = follower.events("begin")
    assert not continued and "has removed a part of its log" in because and "its slot was gone" in because
    commits(live)
    follower.catches_up()
    follower.kill()
    until(lambda: not slots(live, "AND active"), "the end of its connection")
    live.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    follower.start()
    follower.catches_up()
    assert follower.events("begin")[-1][2]  # all of it was still there


def test_a_slot_that_holds_too_much_is_a_gap(live, follower):
    follower.start()
    follower.catches_up()
    follower.kill()
    live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    live.sql("SELECT pg_reload_conf()")
    try:
        for _ in range(4):
            commits(live)
            live.sql("SELECT pg_switch_wal()")
            live.sql("CHECKPOINT")
        until(lambda: slots(live, "AND wal_status = 'lost'"), "the loss of its slot")
        follower.start()
        follower.catches_up()
        assert "max_slot_wal_keep_size" in follower.events("begin")[-1][3]
    finally:
        live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'")
        live.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("wrong", "because"),
    [
        ({"round": "{system}/1/0123"}, "tablespace"),
        ({"check": "0" * 64}, "differs from the stored log"),
        ({"position": 1 << 50}, "ends before the stored log"),
    ],
)
def test_a_log_goes_on_where_the_very_same_lies_before_it_only(live, follower, wrong, because):
    follower.start()
    commits(live)
    follower.catches_up()
    follower.kill()
    system = follower.resume()["round"].split("/")[0]
    told = {name: value.format(system=system) if isinstance(value, str) else value for name, value in wrong.items()}
    follower.start(resume={**follower.resume(), **told})
    follower.catches_up()
    assert because in follower.events("begin")[-1][3] and not follower.events("begin")[-1][2]


@pytest.mark.parametrize(("round", "because"), [("7/1", "different cluster"), ("{system}/9", "left behind")])
def test_another_cluster_and_a_server_of_the_past_are_never_followed(live, follower, round, because):
    follower.start()
    follower.catches_up()
    follower.kill()
    system = follower.resume()["round"].split("/")[0]
    follower.start(resume={**follower.resume(), "round": round.format(system=system)})
    refused = follower.ended()
    assert isinstance(refused, SourceReplaced) and because in refused.message
    assert len(follower.events("begin")) == 1 and not slots(live)


def test_a_slot_without_a_bound_is_refused_and_none_is_left(live, follower):
    follower.start()
    follower.catches_up()
    follower.kill()
    live.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
    live.sql("SELECT pg_reload_conf()")
    try:
        until(lambda: live.sql("SHOW max_slot_wal_keep_size") == "-1", "the setting")
        follower.start()
        refused = follower.ended()
        assert isinstance(refused, Unsupported) and not slots(live)
        words = shlex.split(refused.hints[0], comments=True)
        live.sql(words[words.index("-c") + 1])
        live.sql("SELECT pg_reload_conf()")
        follower.start()
        follower.catches_up()
    finally:
        live.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'")
        live.sql("SELECT pg_reload_conf()")


def short(live):
    """What is done when it is not followed since its storage is away."""
    opened(live).log.unfollow(if_short=True)


def test_a_log_that_nobody_stores_never_takes_the_last_room_of_the_server(tmp_path):
    """And it is not held again before there is room for all that may be held."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: only root can mount a small disk for the log")
    with own_place() as place:
        disk = place / "disk"
        disk.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"mode=0700,uid={owner()},size=64m", "tmpfs", disk]
        if (done := subprocess.run(words, check=False, capture_output=True, text=True)).returncode:
            pytest.skip(f"NOT TESTED: no file system can be mounted here: {done.stderr.strip()}")
        try:
            with followable(0, "--wal-segsize=1", f"--waldir={disk / 'log'}") as other:
                other.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '44MB'")
                other.sql("ALTER SYSTEM SET max_wal_size = '4MB'")
                other.sql("ALTER SYSTEM SET min_wal_size = '2MB'")
                other.sql("SELECT pg_reload_conf()")
                follower = Follower(other, tmp_path)
                follower.start()
                follower.catches_up()
                follower.path.chmod(0o700)
                other.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)) FROM generate_series(1, 36)")
                assert isinstance(follower.ended(), OSError) and slots(other)
                follower.start()
                assert isinstance(follower.ended(), NoSpace) and not slots(other)
                follower.start()
                assert isinstance(follower.ended(), Unsupported) and not slots(other)
                other.sql("CHECKPOINT")
                other.sql("CHECKPOINT")
                follower.path.chmod(0o600)
                follower.start()
                follower.catches_up()
                assert not follower.events("begin")[-1][2]
                follower.kill()
                other.sql("CREATE TABLE more ()")
                with suppress(OSError):  # it holds a part of one file, which is no room: nothing is gained without it
                    (disk / "fill").write_bytes(bytes(64 << 20))
                as_owner(short, other)
                assert slots(other)
                (disk / "fill").unlink()
                other.sql("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000)) FROM generate_series(1, 36)")
                with pytest.raises(NoSpace):
                    as_owner(short, other)
                assert not slots(other)
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_tablespace_ends_a_log(live, follower):
    far = live.place / "far"
    far.mkdir()
    os.chown(far, live.data.stat().st_uid, -1)
    follower.start(watch_seconds=0)
    follower.catches_up()
    live.sql(f"CREATE TABLESPACE far LOCATION '{far}'")
    try:
        assert isinstance(follower.ended(), LogBroken)
        follower.start()
        follower.catches_up()
        assert "tablespace" in follower.events("begin")[-1][3]
    finally:
        live.sql("DROP TABLESPACE far")


def test_who_follows_no_more_leaves_nothing_behind(live, follower):
    follower.start()
    follower.catches_up()
    follower.kill()
    as_owner(opened(live).log.unfollow)
    assert not slots(live)
    as_owner(opened(live).log.unfollow)


def test_two_that_follow_one_server_have_a_slot_each_and_neither_takes_that_of_the_other(live, follower, tmp_path):
    (tmp_path / "other").mkdir()
    elsewhere, other = "/nonexistent/other", Follower(live, tmp_path / "other")
    follower.start()
    other.start(staging=elsewhere)
    commits(live)
    follower.catches_up()
    other.catches_up()
    assert live.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "2"
    with psycopg.connect(live.url) as db, pytest.raises(psycopg.errors.ObjectInUse) as refused:  # as a copy of one does
        db.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
    said = refusal("s", refused.value)
    assert isinstance(said, SourceLocked) and "a copy of this dbguard" in said.hints[0]
    other.kill()
    as_owner(opened(live, staging=elsewhere).log.unfollow)
    commits(live)
    follower.catches_up()
    assert live.sql("SELECT slot_name FROM pg_replication_slots") == SLOT
    assert len(follower.chains()) == 1


def test_a_server_that_was_a_standby_meanwhile_is_followed_on_along_its_new_timeline(follower, live):
    """Last in this file: the server stays on its new timeline."""
    follower.start()
    commits(live)
    follower.catches_up()
    backup = as_owner(base, live)
    live.stop(signal.SIGINT)
    assert isinstance(follower.ended(), GuardError)
    signal_file = Path(live.data) / "standby.signal"
    signal_file.touch()
    os.chown(signal_file, live.data.stat().st_uid, -1)
    live.start()
    follower.start()
    assert "standby" in follower.ended().message
    assert live.sql("SELECT pg_promote()") == "t"
    follower.start()
    commits(live)
    follower.catches_up()
    assert [begun[2] for begun in follower.events("begin")] == [False, True]
    segments = follower.chains()[-1]
    ((_, left, stored, _),) = segments[-1].until[TURNS]
    new = b"".join(one.body for one in segments if TURNS in one.until)
    assert left == stored and new == written(live, {**segments[-1].until, "position": left}, segments[-1].until)
    body = b"".join(one.body for one in segments)
    with own_place() as place:
        tree = moment(backup, body, segments[0].since, segments[-1].until)
        as_owner(restored, live, tree, place / "restored")
        question = "SELECT count(*) FROM ledger"
        assert asked(live, place / "restored", question) == [live.sql(question)]


def test_no_log_goes_on_over_what_was_written_at_wal_level_minimal(follower, live):
    """The server has all of it, and no recovery can continue past that. No server starts so while it has a slot."""
    follower.start()
    commits(live)
    follower.catches_up()
    follower.kill()
    live.sql(f"SELECT pg_drop_replication_slot('{SLOT}')" * until(lambda: not slots(live, "AND active"), "its end"))
    for level, senders in (("minimal", 0), ("replica", 4)):
        live.sql(f"ALTER SYSTEM SET wal_level = {level}")
        live.sql(f"ALTER SYSTEM SET max_wal_senders = {senders}")
        live.stop(signal.SIGINT)
        live.start()
        live.sql(f"CREATE TABLE at_{level} AS SELECT generate_series(1, 9) AS n")
    follower.start()
    commits(live)
    follower.catches_up()
    first, (_, place, continued, because) = follower.events("begin")
    assert not continued and "wal_level = minimal" in because and place["round"] == first[1]["round"]
    follower.kill()
    live.sql(f"SELECT pg_drop_replication_slot('{SLOT}')" * until(lambda: not slots(live, "AND active"), "its end"))
    follower.start()
    follower.catches_up()
    assert follower.events("begin")[-1][2]  # what lies behind it is all there
