"""The foundation of the PostgreSQL engine: its connections, programs, and throw-away servers."""

import ctypes
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from postgres_world import alive_processes, as_owner, cluster, ended, owner, until
from psycopg import errors

from dbguardd.engines import ENGINES
from dbguardd.engines.postgresql.child import run, tool
from dbguardd.engines.postgresql.connect import address_of, connected, rows, version_of
from dbguardd.engines.postgresql.physical.local import BY_PAGES
from dbguardd.engines.postgresql.physical.stream import replicating
from dbguardd.engines.postgresql.refusals import refusal
from dbguardd.engines.postgresql.server import make_cluster, throwaway
from dbguardd.engines.postgresql.tools import Tools, find_tools
from dbguardd.errors import (
    Cancelled,
    Degraded,
    GuardError,
    ServerUnreachable,
    SourceDenied,
    SourceMissing,
    ToolMissing,
    Unsupported,
    WorkerDied,
)
from dbguardd.humanize import safe


@pytest.fixture(scope="module")
def live():
    with cluster() as made:
        made.sql("CREATE ROLE low LOGIN; CREATE TABLE t(n int); INSERT INTO t SELECT generate_series(1, 10)")
        yield made


@pytest.fixture
def place():
    """A directory of the owner's, with a path as long as those that a job gets."""
    base = Path(tempfile.mkdtemp(prefix="dbg-"))
    base.chmod(0o755)
    deep = base / ("a-database-with-a-long-name-" + "x" * 80)
    deep.mkdir()
    os.chown(deep, owner(), -1)
    yield deep
    assert list(deep.iterdir()) == []
    shutil.rmtree(base)


def test_a_program_that_was_killed_is_neither_missing_nor_has_it_found_anything(tmp_path, monkeypatch):
    """As the kernel does it where memory is short."""
    with pytest.raises(WorkerDied, match="/bin/sh: was killed") as caught:
        run(["/bin/sh", "-c", "echo half; kill -9 $$"], quiet)
    assert "says nothing about the data" in caught.value.detail
    assert run(["/bin/sh", "-c", "exit 3"], quiet).status == 3
    for program, end in (("pg_dump", "kill -9 $$"), ("pg_restore", "exit 1")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{end}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerDied, match="pg_dump: was killed"):
        find_tools("pg_dump", 99)
    with pytest.raises(ToolMissing):
        find_tools("pg_restore", 99)


def quiet():
    """Nothing to tell."""


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql:///?host=/nowhere", "pg_lsclusters" if shutil.which("pg_lsclusters") else "ls -A /nowhere"),
        ("service=nosuch", "/.pg_service.conf, "),
    ],
)
def test_what_is_not_reached_is_said_with_what_to_look_at(url, hint):
    with pytest.raises(ServerUnreachable) as caught, connected(address_of(url)):
        pass
    assert caught.value.hints and hint in caught.value.hints[0]


def test_the_drivers_own_openssl_is_told_whom_the_system_trusts(monkeypatch):
    """Its own place for certificates is one that no distribution has."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, "")
        del os.environ[name]
    with pytest.raises(ServerUnreachable), connected(address_of("postgresql://a@127.0.0.1:1/b?sslrootcert=system")):
        pass
    assert os.environ["SSL_CERT_DIR"] == ssl.get_default_verify_paths().openssl_capath


def tools_of(live):
    return find_tools("postgres", live.major)


def asked(place, live, statements, settings=None):
    """Answers (or the SQLSTATE) of a throw-away server to statements of its superuser."""
    make_cluster(place / "data", tools_of(live), quiet)
    answers = []
    with throwaway(place / "data", tools_of(live), quiet, settings=settings) as server:
        for statement in statements:
            try:
                with connected(server.address(), "postgres") as db:
                    found = db.execute(statement.encode())
                    answers.append(found.fetchall() if found.description else [])
            except GuardError as error:
                answers.append(error.detail)
        left = [path.name for path in server.data.iterdir()]
    return answers, left


def test_a_server_is_asked_in_the_bytes_of_its_database(live):
    with connected(address_of(live.url), "postgres") as db:
        assert int(version_of(db).split(".")[0]) == live.major
        assert rows(db, b"SELECT 'gr\xc3\xbc\xc3\x9fe', current_setting('timezone')") == [
            (b"gr\xc3\xbc\xc3\x9fe", b"UTC")
        ]


def test_money_looks_the_same_whatever_a_server_or_a_database_makes_of_it(live):
    with connected(address_of(live.url), "postgres") as db:
        assert rows(db, b"SHOW lc_monetary") == [(b"C",)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("user=postgres", "user=nobody_known"), SourceDenied),
        (("postgresql:///", "postgresql:///not_there"), SourceMissing),
        (("port=54321", "port=54322"), ServerUnreachable),
        (("host=/", "host=/nowhere/"), ServerUnreachable),
    ],
)
def test_what_keeps_us_from_a_server_is_told_apart(live, change, kind):
    with pytest.raises(kind) as caught, connected(address_of(live.url.replace(*change))):
        pass
    assert caught.value.detail


@pytest.mark.parametrize(
    ("refused", "mend"),
    [
        (b"SELECT * FROM public.t", "GRANT pg_read_all_data TO "),  # and not what a file of SQLite needs
        (b"SELECT current_setting('data_directory')", "GRANT pg_monitor TO "),
        (b"SELECT count(*) FROM pg_ls_waldir()", "/*as a superuser"),
        (b"SELECT pg_read_binary_file('PG_VERSION', 0, 1)", "/*as a superuser"),  # there are four of that name
        (b"SELECT pg_create_physical_replication_slot('mine', false, true)", "ALTER ROLE "),
        (b"SELECT count(*) FROM public.hidden", "ALTER ROLE "),
    ],
)
def test_what_a_role_may_not_do_is_denied_with_what_lets_it(live, refused, mend):
    live.sql("CREATE ROLE lower LOGIN; CREATE TABLE hidden (n int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; "
             "GRANT SELECT ON hidden TO lower")  # fmt: skip

    def ask():
        with connected({**address_of(live.url), "user": "lower"}, "postgres") as db:
            rows(db, refused)

    try:
        with pytest.raises(SourceDenied, match="refused") as denied:
            ask()
        (hint,) = denied.value.hints
        assert hint.startswith(mend)
        live.sql(hint.replace("ROLE;", "lower;").replace("ROLE ROLE", "ROLE lower").replace("TO ROLE'", "TO lower'"))
        ask()
    finally:
        live.sql("DROP TABLE hidden; DROP OWNED BY lower; DROP ROLE lower")


def test_a_server_whose_disk_is_full_is_not_said_to_be_stopped():
    (hint,) = refusal("it", errors.DiskFull("could not write: No space left on device")).hints
    assert hint.startswith("df -h")


def test_what_is_told_to_type_means_whoever_is_called_whatever(live):
    """In one line that a terminal shows, psql does what it says; also of who may not even begin a backup by pages."""
    name = 'it\'s "x" \\ \n \x1b[31m m\u00fcller'
    quoted = '"{}"'.format(name.replace('"', '""'))
    live.sql(f"CREATE ROLE {quoted} LOGIN; CREATE DATABASE {quoted} ALLOW_CONNECTIONS false; "
             "CREATE TABLE guarded (n int); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")  # fmt: skip
    url = live.url.replace("user=postgres", f"user={quote(name)}")

    def told():
        found = {
            one.name: one
            for one in ENGINES["postgresql"]({"url": url, "staging": "/nonexistent"}).snapshots.probe().findings
        }
        return {
            about: found[about] for about in ("privileges", "row security", "databases", BY_PAGES) if about in found
        }

    try:
        mends = 0
        for finding in as_owner(told).values():
            detail = safe(finding.detail)
            assert finding.outcome != "ok" and detail.isprintable(), finding
            mends += len(typed := re.findall(r"(?:ALTER|GRANT) [^;]*;", detail))
            live.sql("\n".join(typed))
        assert mends == 7
        after = as_owner(told)
        assert "row security" not in after and "databases" not in after and after["privileges"].outcome == "ok"
        assert "max_slot_wal_keep_size" in after[BY_PAGES].detail or after[BY_PAGES].outcome == "ok"
    finally:
        live.sql(f"DROP TABLE guarded; DROP DATABASE {quoted}")
        live.sql(f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")


@pytest.mark.parametrize("replication", [False, True])
def test_who_is_not_let_in_is_told_the_line_that_lets_him(live, replication):
    """Whether a line refuses him, or none is there; and also where who follows comes first to be refused."""
    kept = (live.data / "pg_hba.conf").read_text()
    live.sql("CREATE ROLE lower LOGIN REPLICATION")
    address = {**address_of(live.url), "user": "lower"}

    def reach():
        with replicating(address, "it") if replication else connected(address):
            pass

    def set_to(lines):
        (live.data / "pg_hba.conf").write_text(lines)
        live.sql("SELECT pg_reload_conf()")

    try:
        for refused in (
            "local all lower reject\nlocal replication lower reject\n" + kept,
            "local all postgres trust\n",
        ):
            set_to(refused)
            with pytest.raises(SourceDenied, match="refuses the login") as denied:
                until(reach, "the new lines")
            (hint,) = denied.value.hints
            said = re.match(r"first in pg_hba.conf: (local \w+ lower) peer  -- then SELECT pg_reload_conf", hint)
            set_to(f"{said[1]} trust\n{refused}")
            until(lambda: not outcome(reach), "it is let in")
    finally:
        set_to(kept)
        live.sql("DROP ROLE lower")


def outcome(action):
    try:
        action()
    except SourceDenied as denied:
        return denied
    return None


def test_a_server_whose_replication_slots_are_all_in_use_is_told_with_which_they_are_and_how_to_have_more(live):
    slot = "SELECT pg_create_physical_replication_slot('slot' || n) FROM generate_series({}) AS n"
    live.sql(slot.format("1, 4"))
    try:
        with pytest.raises(ServerUnreachable) as caught, connected(address_of(live.url)) as db:
            db.execute(slot.format("5, 5").encode())
    finally:
        live.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    look, more = caught.value.hints
    assert look.startswith("SELECT slot_name") and live.sql(look) == "" and "max_replication_slots" in more


def test_programs_of_the_servers_version_are_found_and_what_is_missing_has_its_command(live):
    assert find_tools("pg_dump", live.major).major == live.major
    assert find_tools("pg_dump", live.major - 1, or_newer=True).major >= live.major - 1
    with pytest.raises(ToolMissing) as caught:
        find_tools("pg_dump", 99, need="to read it")
    assert caught.value.hints == ("apt-get install postgresql-client-99",)
    assert f"is {find_tools('pg_dump', live.major).version}" in caught.value.detail


def test_a_program_is_ended_with_the_block_and_its_last_words_are_kept():
    def ended():
        with tool(["/bin/sh", "-c", "echo said; echo why >&2; exec sleep 1000"]) as child:
            assert child.read(quiet) == b"said\n"
            pid = child._process.pid
        return pid, run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], quiet)

    pid, said = as_owner(ended)
    assert not Path(f"/proc/{pid}").exists()
    assert (said.status, said.output, said.errors) == (3, b"out\n", "err")


def test_of_a_program_that_talks_without_end_the_begin_and_the_end_are_kept():
    talk = "echo first >&2; i=0; while [ $i -lt 20000 ]; do echo 0123456789 >&2; i=$((i+1)); done; echo last >&2"
    said = as_owner(run, ["/bin/sh", "-c", talk], quiet)
    assert said.errors.startswith("first\n0123456789\n") and said.errors.endswith("0123456789\nlast")
    assert len(said.errors) < 40_000 and said.status == 0


def test_a_throwaway_server_serves_us_and_leaves_nothing(live, place):
    answers, left = as_owner(asked, place, live, ["SELECT 1", "SHOW shared_preload_libraries"])
    assert answers == [[(1,)], [(b"",)]]
    assert "postmaster.pid" in left
    assert alive_processes(str(place)) == []


def test_nothing_that_a_cluster_contains_configures_a_throwaway_server(live, place):
    def hostile():
        make_cluster(place / "data", tools_of(live), quiet)
        mark = place / "ran"
        with (place / "data/postgresql.auto.conf").open("a") as conf:
            conf.write(f"archive_mode = on\narchive_command = 'touch {mark}'\nlisten_addresses = '*'\n")
            conf.write("shared_preload_libraries = 'nothing_like_that'\n")
        (place / "data/pg_hba.conf").unlink()
        (place / "data/pg_hba.conf").symlink_to("/etc/passwd")
        with throwaway(place / "data", tools_of(live), quiet) as server, connected(server.address()) as db:
            db.execute(b"SELECT pg_switch_wal()")
            found = rows(
                db, b"SELECT name, setting FROM pg_settings WHERE name IN ('archive_mode', 'listen_addresses')"
            )
        return sorted(found), mark.exists()

    found, ran = as_owner(hostile)
    assert found == [(b"archive_mode", b"off"), (b"listen_addresses", b"")]
    assert not ran


def test_its_superuser_can_start_nothing_and_connect_to_nothing(live, place):
    mark, outside = place / "ran", place.parent / "outside"
    place.parent.chmod(0o777)
    statements = [
        f"COPY (SELECT 1) TO PROGRAM 'touch {mark}'",
        f"COPY (SELECT 1) TO '{outside}'",
        "CREATE EXTENSION dblink SCHEMA public",
        f"SELECT public.dblink_connect('host={live.socket} port={live.port} user=postgres')",
        "SELECT public.dblink_connect('host=127.0.0.1 port=5432 user=postgres')",
    ]
    (program, file, extension, local, remote), _ = as_owner(asked, place, live, statements)
    assert not mark.exists() and not isinstance(program, list)
    if ctypes.CDLL(None).syscall(444, None, 0, 1) > 0:  # landlock is there
        assert not outside.exists() and "Permission denied" in file
    if extension:
        pytest.skip(f"dblink is not installed: {extension}")
    assert "SQLSTATE 08" in local
    assert "SQLSTATE 08" in remote


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(live, place):
    with pytest.raises(Degraded, match="did not start") as caught:
        as_owner(asked, place, live, [], {"shared_preload_libraries": "no_such_library"})
    assert "no_such_library" in caught.value.detail


SLOW = """#!{} -IS
import pathlib, signal, sys, time
data = pathlib.Path(sys.argv[2])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
(data / "postmaster.pid").write_text("." + 7 * chr(10) + "ready")
signal.sigwait([signal.SIGINT])
(data / "stopping").touch()
while not (data / "waited").exists():
    time.sleep(0.02)
(data / "whole").touch()
"""


def test_a_cluster_that_is_kept_is_shut_down_however_long_its_disk_takes(place):
    def kept():
        data, program = place / "data", place / "postgres"
        data.mkdir()
        program.write_text(SLOW.format(sys.executable))
        program.chmod(0o700)

        def waiting():
            if (data / "stopping").exists():
                (data / "waited").touch()

        with throwaway(data, Tools(15, "15.0", place), waiting, keep=True):
            pass
        found = (data / "whole").exists()
        shutil.rmtree(data)
        program.unlink()
        return found

    assert as_owner(kept)


def test_cancelling_the_start_leaves_nothing(live, place):
    def cancelled():
        def stop():
            raise Cancelled("enough")

        make_cluster(place / "data", tools_of(live), quiet)
        with throwaway(place / "data", tools_of(live), stop):
            pass

    with pytest.raises(Cancelled):
        as_owner(cancelled)
    assert alive_processes(str(place)) == []


def test_a_server_that_ends_before_its_time_is_said_to_have_ended_and_nothing_of_the_data(live, place):
    def killed():
        make_cluster(place / "data", tools_of(live), quiet)
        with throwaway(place / "data", tools_of(live), quiet) as server:
            os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
            with connected(server.address(), about="throw-away server") as db:
                rows(db, b"SELECT pg_sleep(60)")

    with pytest.raises(Degraded, match="ended before") as caught:
        as_owner(killed)
    assert "says nothing about the data" in caught.value.detail and "pg_lsclusters" not in str(caught.value.hints)


def test_it_ends_with_whoever_started_it_even_if_that_one_is_killed(live, place):
    def killed():
        make_cluster(place / "data", tools_of(live), quiet)
        with throwaway(place / "data", tools_of(live), quiet) as server:
            segments = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
            pid = int((server.data / "postmaster.pid").read_text().split()[0])
            (place / "pid").write_text(f"{pid}")
            (place / "shm").write_text((server.data / "postmaster.pid").read_text().splitlines()[6].split()[1])
            assert segments
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            as_owner(killed)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    pid, segment = int((place / "pid").read_text()), (place / "shm").read_text()
    until(lambda: ended(pid), "the end of the throw-away server")
    listed = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    assert segment not in [line.split()[1] for line in listed.splitlines() if len(line.split()) > 4]
    for path in list(place.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_query_ends_soon_after_whoever_asked_even_if_that_one_is_killed(live):
    def asking():
        with connected(address_of(live.url)) as db:
            db.execute(b"SELECT 'ours', pg_sleep(1000)")

    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''ours''%'"
    child = os.fork()
    if child == 0:
        try:
            asking()
        finally:
            os._exit(0)
    try:
        until(lambda: live.sql(running) == "1", "the query")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        until(lambda: live.sql(running) == "0", "its end")
    finally:
        live.sql(running.replace("count(*)", "pg_terminate_backend(pid)"))


def test_root_is_refused_with_what_to_do(live, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root is refused")
    with pytest.raises(Unsupported) as caught:
        make_cluster(tmp_path / "data", Tools(live.major, "", live.programs), quiet)
    assert 'run_as = "postgres"' in caught.value.hints[0]
