"""Physical backups that the server sends: of a cluster whose files are not read here, equal to those of one that is."""

import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest
from engine_memory import no_progress
from postgres_follow_world import Follower
from postgres_pages_world import OURS, failed, proven, tree, writers
from postgres_sent_world import clean, here, live, opened, over, place, sent
from postgres_world import stranger, until
from psycopg import pq

from dbguardd.engines.fingerprint import Fingerprint
from dbguardd.engines.postgresql.connect import address_of, connected
from dbguardd.engines.postgresql.physical.datadir import DataDirectory
from dbguardd.engines.postgresql.physical.sent import BaseBackupStream
from dbguardd.engines.postgresql.physical.slot import check_own
from dbguardd.engines.postgresql.physical.stream import Stream
from dbguardd.errors import LogBroken, NoSpace, ServerUnreachable, SourceChanged, SourceDenied, SourceInvalid

__all__ = ["live", "place"]


def test_what_the_server_sends_comes_back_equal_while_it_is_written(live, place):
    with writers(live):
        streams, facts, taken = here(sent, live, place)
    found = here(proven, live, streams, facts, place / "restored")
    assert failed(found) == {} and isinstance(taken, Fingerprint) and found.fingerprint == taken
    assert (facts["read_by"], facts["directory"], facts["reused_files"]) == ("replication", None, 0)
    assert "cannot be read" in facts["not_read_here"]
    assert b"dbguard-config/more.d" in streams["files.tar"] and any(name.startswith("base/") for name in streams)
    assert live.sql("SELECT count(*) FROM pg_replication_slots") == "0" and live.sql(OURS) == "0"


def test_a_server_that_sends_its_backup_spreads_the_checkpoint_as_well(live, place):
    for awaited, checkpoint in ((False, "force wait"), (True, "immediate force wait")):
        live.sql("CHECKPOINT")  # so that a spread one is soon done
        before = len(live.checkpoints)
        here(partial(sent, compared=False, awaited=awaited), live, place)
        assert live.checkpoints[before] == checkpoint


def probed(live, place, url="", continuous=False):
    found = opened(live, place, url, continuous=continuous, follows=str(place)).probe()
    return {one.name: (one.outcome, one.detail) for one in found.findings}, found.facts


def test_a_role_for_replication_is_enough_and_check_says_what_it_lacks(live, place):
    url = over(live, place)

    def said():
        return here(probed, live, place, url)[0]["backups by pages"]

    def mended(words):
        for one in re.findall(r"(?:ALTER|GRANT|SELECT) [^;]*;", words.partition("Fix: ")[2]):
            live.sql(one)

    live.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
    live.sql("SELECT pg_reload_conf()")
    for lack in ("REPLICATION", "max_slot_wal_keep_size"):
        outcome, words = said()
        assert outcome == "failed" and lack in words.partition("Fix: ")[2]
        mended(words)
    outcome, words = said()
    line = re.search("host replication dbguard 127.0.0.1/32 scram-sha-256", words)
    assert outcome == "failed" and line, words
    with (live.config / "pg_hba.conf").open("a") as hba:
        hba.write(f"{line[0]}\n")
    live.sql("SELECT pg_reload_conf()")
    outcome, words = until(lambda: (found := said())[0] == "ok" and found, "it is let in")
    assert "all of them each time" in words
    streams, facts, _ = here(sent, live, place, url)
    assert f"{live.config}/postgresql.conf" in facts["left_out"] and b"dbguard-config" not in streams["files.tar"]
    here(lambda: opened(live, place, url).restore(tree(streams, facts), place / "bare", no_progress))
    text = (place / "bare" / "RESTORE.txt").read_text().partition("role of the same name:\n")[2]
    typed = text.partition("#")[0]
    asked = f"{live.programs}/postgres -D {place}/bare -C data_directory"
    assert here(subprocess.call, ["sh", "-c", asked]) and not here(subprocess.call, ["sh", "-ec", typed])
    assert not here(subprocess.call, ["sh", "-c", asked]) and (place / "bare" / "pg_hba.conf").exists()
    mended(words)
    streams, facts, taken = here(sent, live, place, url)
    assert facts["left_out"] == [] and b"work_mem = '7MB'" in streams["files.tar"]
    assert isinstance(taken, Fingerprint) and facts["read_by"] == "replication"


def test_what_takes_no_connection_for_replication_is_mended_by_what_is_said(live, place):
    def lively():
        with connected(address_of(over(live, place)), about="it") as connection:
            line = socket.socket(fileno=os.dup(connection.fileno()))
            with line:
                return line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)

    assert lively() == 60
    live.sql("ALTER SYSTEM SET max_wal_senders = 0")
    live.stop(signal.SIGINT)
    live.start()
    try:
        _, words = here(probed, live, place, live.url)[0]["backups by pages"]
        assert "SET max_wal_senders" in words.partition("Fix: ")[2] and "pg_hba" not in words
    finally:
        live.sql("ALTER SYSTEM RESET max_wal_senders")
        live.stop(signal.SIGINT)
        live.start()


def test_an_archiver_elsewhere_is_told_that_it_cannot_hand_over_its_files(live, place):
    outcome, words = here(probed, live, place, "", "archive")[0]["following its log"]
    assert outcome == "failed" and words.endswith("Fix: set continuous = true: then the server sends its log"), words


def test_its_log_is_followed_over_the_network_and_has_no_gap_after_a_kill(live, place):
    live.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
    follower, known = Follower(live, place, stranger()), 0
    os.chown(follower.path, stranger(), -1)
    for _ in range(2):
        follower.start()
        live.sql(f"INSERT INTO ledger SELECT n, 'x' FROM generate_series({known + 1}, {known + 100}) n")
        known += 100
        follower.catches_up()
        follower.kill()
    (chain,) = follower.chains()
    assert all(one.until == other.since for one, other in zip(chain, chain[1:], strict=False))
    assert [event[2] for event in follower.events("begin")] == [False, True]
    until(lambda: live.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == "0", "the end of it")
    live.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots; DROP TABLE ledger")


# --------------------------------------------------------------------------------------------------- ends in the middle


def test_what_ends_in_the_middle_leaves_nothing_behind(live, place):
    def sender_ended(name):
        live.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'")

    def holder_ended(name):
        live.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")

    def we_killed(name):
        os.kill(os.getpid(), signal.SIGKILL)

    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        sent(live, place)

    for before, kind in ((sender_ended, ServerUnreachable), (holder_ended, LogBroken)):
        with pytest.raises(kind):
            here(sent, live, place, "", before)
        until(lambda: clean(live), "the end of it")
    with pytest.raises(pytest.fail.Exception, match="said nothing"):
        here(sent, live, place, "", we_killed)
    until(lambda: clean(live), "the end of it")
    here(lambda: [shutil.rmtree(left) for left in (place / "room").iterdir()])  # as the next job does
    with pytest.raises(NoSpace, match="cannot be written there"):
        here(no_room)
    until(lambda: clean(live), "the end of it")
    assert not list((place / "room").iterdir())


class Hostile:
    """The connection of a server that sends what it likes: these messages of one COPY, and then says where it ended."""

    def __init__(self, *messages):
        self.pgconn, self._messages = self, list(messages)
        self._results = [SimpleNamespace(status=pq.ExecStatus.COPY_OUT)]
        self.status = pq.ConnStatus.OK

    def send_query(self, words):
        assert words.startswith(b"BASE_BACKUP")

    def is_busy(self):
        return False

    def get_result(self):
        return self._results.pop() if self._results else None

    def get_copy_data(self, _):
        return (len(self._messages[0]), memoryview(self._messages.pop(0))) if self._messages else (-1, memoryview(b""))


def header(name, kind=b"0", size=b"0", link=b"", magic=b"ustar\0", prefix=b""):
    """A header of tar with these fields, and the right checksum."""
    start = name.ljust(100, b"\0") + b"0000600 " * 3 + size.rjust(11, b"0")[:11] + b" " + b"0" * 11 + b" "
    rest = kind + link.ljust(100, b"\0") + magic + b"00" + bytes(80) + prefix.ljust(155, b"\0") + bytes(12)
    return start + b"%06o\0 " % sum(start + b" " * 8 + rest) + rest


@pytest.mark.parametrize(
    "wrong",
    [
        *(header(name) for name in (b"../x", b"/etc/passwd", b"base/../../x", b"a//b", b"", b"./", b"a/\0b")),
        *(header(b"pg_tblspc/1", kind, link=b"/etc") for kind in (b"1", b"2", b"3", b"L", b"x", b"g")),
        header(b"base/1", b"5", size=b"1000"),
        header(b"base/1/1", size=b"9" * 11),
        header(b"base/1/1", size=b"-0000000001"),
        header(b"base/1/1", magic=b"posix\0"),
        header(b"base/1/1", prefix=b".."),
        header(b"base/1/1")[:-1] + b"x",
        header(b"base/1/1", size=b"7777"),
        bytes(512) + b"x",
        b"short",
    ],
)
def test_what_is_no_base_backup_is_refused(wrong):
    hostile = Hostile(b"nbase.tar\0\0", b"d" + wrong)
    with pytest.raises(SourceInvalid, match="what it sends is not a base backup"):
        [list(entry.pieces()) for entry in BaseBackupStream(hostile, "it", {}, lambda: None, 60.0).entries()]


@pytest.mark.parametrize(
    "messages", [(), (b"nx.tar\0\0",), (b"nbase.tar\0",), (b"dx",), (b"m",), (b"nbase.tar\0\0", b"x")]
)
def test_messages_that_nobody_asked_for_are_refused(messages):
    with pytest.raises(SourceInvalid, match="what it sends is not a base backup"):
        list(BaseBackupStream(Hostile(*messages), "it", {}, lambda: None, 60.0).entries())


def test_a_server_that_says_what_it_likes_for_ever_ends_with_the_job():
    """Nothing is waited for there, so nothing else looks whether the job is to end."""

    class Endless(Hostile):
        status_found = pq.ExecStatus.TUPLES_OK

        def get_result(self):
            return SimpleNamespace(status=self.status_found, ntuples=2)

        def get_copy_data(self, _):
            return 9, memoryview(b"p12345678")

    class Sending(Endless):
        status_found = pq.ExecStatus.COPY_OUT

    for kind in (Endless, Sending):
        lives = iter(range(100))
        with pytest.raises(RuntimeError):  # StopIteration, in a generator
            list(BaseBackupStream(kind(), "it", {}, lambda lives=lives: next(lives), 60.0).entries())


def test_a_server_that_sends_nothing_more_is_not_waited_for():
    """Its connection is there; and before the first byte it makes a checkpoint, which takes what it takes."""

    class Busy(Hostile):
        asked = 0

        def is_busy(self):
            self.asked += 1
            return self.asked < 3

        def get_copy_data(self, _):
            return 0, memoryview(b"")

        def consume_input(self):
            pass

    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ServerUnreachable, match="sends nothing more") as caught:
        busy = Busy()
        busy.socket = ours.fileno()
        list(BaseBackupStream(busy, "it", {}, lambda: None, 0.01).entries())
    assert busy.asked == 3 and caught.value.transient


def test_what_tls_has_taken_already_is_not_waited_for():
    class Silent(Hostile):
        """Nothing comes by its socket: the rest of a record lies here, and is got by asking."""

        here = False

        def get_copy_data(self, _):
            return super().get_copy_data(_) if self.here else (0, memoryview(b""))

        def consume_input(self):
            self.here = True

    waits = iter([None] * 6)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        silent = Silent(b"nbase.tar\0\0", b"d" + header(b"a", size=b"0"), b"d" + bytes(1024))
        silent.socket = ours.fileno()
        entries = BaseBackupStream(silent, "it", {}, lambda: next(waits), 60.0).entries()
        assert next(entries).path == "a"


def test_a_server_that_says_nothing_but_that_it_lives_holds_nobody_up():
    said, lives = iter(range(1000)), struct.pack(">cQqB", b"k", 0, 0, 0)
    server = SimpleNamespace(
        get_copy_data=lambda _: next(said) is not None and (len(lives), memoryview(lives)),
        put_copy_data=lambda data: None,
        flush=lambda: None,
    )
    assert Stream(SimpleNamespace(pgconn=server), "it").receive(0.0) == b""


def test_a_name_that_leads_elsewhere_makes_no_directory_that_of_a_server(live):
    system = int(live.sql("SELECT system_identifier FROM pg_control_system()"))
    with closing(DataDirectory(str(live.data), {}, "")) as directory, pytest.raises(SourceInvalid, match="is not the"):
        check_own(directory, "../base", system)


def test_what_was_not_all_there_is_no_backup(live):
    whole = (b"nbase.tar\0\0", b"d" + header(b"a\n b", size=b"3"), b"dxyz" + bytes(509), b"d" + bytes(1024))
    sent = BaseBackupStream(Hostile(*whole), "it", {"16384": "/far"}, lambda: None, 60.0)
    with pytest.raises(SourceChanged, match="not all of its files came") as caught:
        assert [(entry.path, b"".join(entry.pieces())) for entry in sent.entries()] == [("a\n b", b"xyz")]
    assert "/far" in caught.value.detail
    sent = BaseBackupStream(Hostile(b"n7.tar\0/x\0", *whole), "it", {}, lambda: None, 60.0)
    with pytest.raises(SourceChanged, match="a tablespace was made"):
        list(sent.entries())


def test_what_a_server_cannot_send_is_said_in_its_words(live, place):
    def steps():
        told = []
        sent(live, place, progress=lambda step, done, total: told.append(step))
        return told.index("copy"), told.index("log") - told[: told.index("log")][::-1].index("checkpoint")

    copied, begun = here(steps)
    assert begun <= copied  # no step back
    for name, mode, words in (("its.key", 0, "its.key"), ("x" * 120, 0o644, "too long")):
        (live.data / name).touch(mode)
        with pytest.raises(SourceDenied if not mode else SourceChanged) as caught:
            here(sent, live, place)
        (live.data / name).unlink()
        assert words in caught.value.detail and not caught.value.hints, caught.value


def test_no_backup_lacks_what_a_server_silently_leaves_out(live, place):
    """It sends no link, and of a tablespace whose disk is not there nothing."""
    live.sql("VACUUM; CHECKPOINT", "shop")
    live.stop(signal.SIGINT)
    xact, aside = live.data / "pg_xact", live.place / "aside"
    xact.rename(aside)
    xact.symlink_to(aside)
    (live.data / "more").symlink_to("/nonexistent")
    live.start()
    with pytest.raises(SourceInvalid, match=f"{xact}: is a link"):
        here(sent, live, place)
    live.stop(signal.SIGINT)
    xact.unlink()
    aside.rename(xact)
    live.start()
    assert here(sent, live, place)[1]["left_out"] == ["more"]
    (live.data / "more").unlink()
    (live.place / "far").rename(aside)
    (live.place / "far").mkdir()
    with pytest.raises(SourceInvalid, match=f"{live.place}/far: a tablespace"):
        here(sent, live, place)
    (live.place / "far").rmdir()
    aside.rename(live.place / "far")
