"""Several databases of a server are dumped at a time, and each is read in a process of its own beside its dump."""

import io
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from engine_memory import MemorySink, no_progress
from postgres_world import alive_processes, as_owner, cluster, until
from test_postgresql_dump import altering, made, place, round_trip, url

from dbguardd.engines.fingerprint import NoFingerprint
from dbguardd.engines.postgresql.child import side_by_side
from dbguardd.engines.postgresql.connect import address_of, connected, rows
from dbguardd.engines.postgresql.dump import decode
from dbguardd.engines.postgresql.signs import Signs
from dbguardd.engines.postgresql.snapshot import holding, list_databases
from dbguardd.engines.postgresql.taking import ServerDump, at_once
from dbguardd.errors import SourceDenied, Stalled

__all__ = ["place"]

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^(dbguard|pg_dump)'"


@pytest.fixture(scope="module")
def live():
    with cluster() as made:
        for name in ("one", "two"):
            made.sql(f"CREATE DATABASE {name}")
            made.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n", name)
        made.sql("CREATE ROLE keeper LOGIN; GRANT pg_read_all_data TO keeper")
        yield made


class Watched(MemorySink):
    """Knows which streams are open, and calls `first` with the name of each that gets its first data."""

    def __init__(self, first=lambda name: None):
        super().__init__()
        self.open, self.together, self.first = set(), set(), first

    @contextmanager
    def write(self, name, *, stamp=""):
        self.open.add(name)
        self.together.add(frozenset(self.open))
        try:
            with super().write(name, stamp=stamp) as out:
                yield _Told(out, lambda: self.first(name))
        finally:
            self.open.remove(name)


class _Told(io.RawIOBase):
    def __init__(self, out, first):
        self.out, self.first = out, first

    def write(self, data):
        if self.first is not None:
            self.first()
            self.first = None
        return self.out.write(data)


def test_two_databases_are_dumped_at_a_time_and_come_back_equal(live, place):  # noqa: F811 - a fixture
    def dump():
        engine, sink = made(live, place), Watched()
        facts = engine.dump(sink, no_progress)
        taken = engine.fingerprint(no_progress)
        engine.release()
        return sink.streams, sink.together, facts, taken

    streams, together, facts, taken = as_owner(dump)
    assert max(map(len, together)) == 2
    assert facts["databases"] == ["one", "postgres", "two"]
    assert [part.stream for part in decode(streams["contents.json"]).parts] == list(
        map(live.stream, ("one", "postgres", "two"))
    )
    assert {name: table.rows for name, table in taken.tables.items()} == {"one.public.t": 50000, "two.public.t": 50000}
    _, _, taken, found = as_owner(round_trip, live, place)
    assert found.fingerprint == taken


def test_an_error_in_one_database_ends_the_others_and_nothing_stays(live, place):  # noqa: F811 - a fixture
    live.sql("CREATE TABLE hidden (n int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY", "two")
    keeper = live.url.replace("user=postgres", "user=keeper")

    def dump():
        sink = Watched()
        with pytest.raises(SourceDenied, match="database two") as denied:
            made(live, place, url=keeper).dump(sink, no_progress)
        return denied.value, sorted(sink.streams), sink.open, alive_processes("pg_dump", str(live.socket))

    try:
        error, kept, still_open, running = as_owner(dump)
    finally:
        live.sql("DROP TABLE hidden", "two")
    assert "row-level security" in error.detail
    assert "ALTER ROLE ROLE BYPASSRLS;" in error.hints[0]
    assert (still_open, running) == (set(), [])
    assert kept in ([], [live.stream("one")], [live.stream("postgres")])
    until(lambda: live.sql(OURS) == "0", "the end of its connections")


def test_the_servers_process_of_pg_dump_gives_way_as_we_do(live, place):  # noqa: F811 - a fixture
    def dump():
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        os.nice(5)
        niceness = {}

        def look(name):
            if name == live.stream("one"):
                asked = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name ~ '^dbguard '"
                niceness.update((pid, os.getpriority(os.PRIO_PROCESS, int(pid))) for pid in live.sql(asked).split())

        made(live, place, url=url(live, "one")).dump(Watched(look), no_progress)
        return usual, list(niceness.values())

    usual, found = as_owner(dump)
    assert found == [usual + 5]


class Nowhere:
    """Dumps nothing."""

    signs = Signs({})

    def database(self, held, stream, excluded, begins):
        begins()
        yield from ()

    def alive(self):
        pass

    def moved(self):
        pass


def taken_of(live, before):
    address = address_of(live.url)
    taking = ServerDump(address, Nowhere(), (), 5.0, no_progress, compared=True)
    with connected(address) as connection:
        (database,) = list_databases(connection, "one")
    with holding(address, database) as held:
        side_by_side([taking.take_held(before(held))], 1, lambda: None)
    return taking.fingerprint(), len(taking.parts)


def test_a_dump_that_could_not_be_read_once_more_is_a_backup_without_a_fingerprint(live):
    def end(held):
        live.sql(f"SELECT pg_terminate_backend({held.connection.info.backend_pid}, 60000)")
        return held

    untold, count = as_owner(taken_of, live, end)
    assert isinstance(untold, NoFingerprint) and "terminating connection" in untold.why and count == 1


def test_a_killed_reader_costs_the_fingerprint_and_not_the_backup(live, place):  # noqa: F811 - a fixture
    """Its connection holds the snapshot until the dump is complete, although nobody reads from it."""
    live.sql("CREATE TABLE slow AS SELECT repeat('x', 100) FROM generate_series(1, 2000000)", "one")
    stream = live.stream("one")

    def dump():
        def kill(name):
            us = os.getpid()
            for child in Path(f"/proc/{us}/task/{us}/children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() == Path(f"/proc/{us}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

        sink = Watched(lambda name: name == stream and kill(name))
        engine = made(live, place, url=url(live, "one"))
        engine.dump(sink, no_progress)
        return engine.fingerprint(no_progress), len(sink.streams[stream])

    try:
        untold, size = as_owner(dump)
    finally:
        live.sql("DROP TABLE slow", "one")
    assert isinstance(untold, NoFingerprint) and "ended early" in untold.why and size > 200_000_000


def test_a_role_with_few_connections_takes_one_database_at_a_time(live, place):  # noqa: F811 - a fixture
    live.sql("ALTER ROLE postgres CONNECTION LIMIT 4")
    try:
        sink = Watched()
        together = as_owner(lambda: (made(live, place).dump(sink, no_progress), sink.together)[1])
    finally:
        live.sql("ALTER ROLE postgres CONNECTION LIMIT -1")
    assert max(map(len, together)) == 1


def test_a_locked_table_keeps_no_other_database_waiting(live, place):  # noqa: F811 - a fixture
    """The lock ends only when the others are dumped, although the locked database would be the first."""
    with altering(live, "one", "ALTER TABLE t ADD later int"):

        def dump():
            sink = Watched()

            def progress(step, done, total):
                if len(sink.streams) == 2:
                    live.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^SELECT .there'")

            engine = made(live, place, lock_timeout_seconds=60)
            engine.dump(sink, progress)
            return engine.fingerprint(no_progress).rows

        assert as_owner(dump) == 100_000


def test_a_dump_of_a_silent_server_ends_and_one_with_a_pause_goes_on(live, place):  # noqa: F811 - a fixture
    """Its processes are stopped, so no connection breaks."""
    live.sql("CREATE TABLE slow AS SELECT repeat('x', 100) FROM generate_series(1, 1000000)", "one")

    def dump(stall_seconds, wakes):
        stopped, beats = [], []

        def stop(name):
            asked = "SELECT pid FROM pg_stat_activity WHERE datname = 'one' AND application_name ~ '^dbguard'"
            stopped.extend(map(int, live.sql(asked).split()))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

        def wake():
            while stopped:
                os.kill(stopped.pop(), signal.SIGCONT)

        def progress(step, done, total):
            beats.append(done)
            if wakes and stopped and beats[-5:] == [done] * 5:
                wake()

        engine = made(live, place, url=url(live, "one"), stall_seconds=stall_seconds)
        try:
            engine.dump(Watched(stop), progress)
            return engine.fingerprint(no_progress).rows
        except Stalled as error:
            return error.message, bool(stopped)
        finally:
            wake()

    try:
        (silent, still), rows = as_owner(dump, 2, False), as_owner(dump, 120, True)
    finally:
        live.sql("DROP TABLE slow", "one")
    assert "has sent nothing to the dump for 2 s" in silent and still
    assert rows == 1_050_000
    until(lambda: live.sql(OURS) == "0", "the end of its connections")


def test_a_database_keeps_its_stream_when_another_one_comes_or_it_is_renamed(live, place):  # noqa: F811 - a fixture
    """Each stream is deduplicated against that of the same name in the backup before."""

    def streams():
        engine, sink = made(live, place), MemorySink()
        engine.dump(sink, no_progress, compared=False)
        return {part.database.name: part.stream for part in decode(sink.streams["contents.json"]).parts}, list(
            sink.streams
        )

    before, _ = as_owner(streams)
    live.sql("CREATE DATABASE another")
    live.sql("ALTER DATABASE one RENAME TO renamed")
    try:
        after, there = as_owner(streams)
    finally:
        live.sql("DROP DATABASE another")
        live.sql("ALTER DATABASE renamed RENAME TO one")
    assert list(after) == ["another", "postgres", "renamed", "two"] and set(after.values()) < set(there)
    assert {**before, "renamed": before["one"], "another": after["another"]} == {**after, "one": before["one"]}
    assert after["another"] not in before.values()


def test_the_last_connections_are_not_taken_by_a_role_that_does_not_see_the_others(live):
    """Of other roles' sessions pg_stat_activity tells it nothing, so they seemed to be free."""
    keeper = url(live, "").replace("user=postgres", "user=keeper")

    def counted():
        with ExitStack() as stack:
            ours = stack.enter_context(connected(address_of(keeper), "postgres"))
            free = [at_once(ours)]
            ((most,),) = rows(ours, b"SELECT current_setting('max_connections')::int8")
            for _ in range(most - 12):
                stack.enter_context(connected(address_of(live.url)))
            return [*free, at_once(ours)]

    assert as_owner(counted) == [2, 1]


class _Held(ServerDump):
    """Takes the locks and the snapshot of a database, and does not dump it."""

    def take_held(self, held):
        yield ()


def test_a_table_that_is_dropped_just_when_it_would_be_locked_is_no_reason_to_fail(live):
    """Many tables: to lock them takes long enough for one to be dropped meanwhile, nearly each time."""
    live.sql("CREATE DATABASE churned")
    live.sql("DO $$ BEGIN FOR n IN 1..1500 LOOP EXECUTE 'CREATE TABLE t' || n || ' ()'; END LOOP; END $$", "churned")
    words = [live.programs / "psql", "-XqAt", "-h", live.socket, "-p", str(live.port), "-U", "postgres", "churned"]
    made = "CREATE TABLE zz (); SELECT pg_sleep(0.01); DROP TABLE zz; SELECT pg_sleep(0.03);\n"
    address = address_of(live.url)

    def take(database):
        taking = _Held(address, Nowhere(), (), 60.0, no_progress, compared=False)
        taking.take_all([database], 1, may_vanish=False)

    with tempfile.TemporaryFile("w+") as script:
        script.write(made * 10_000)
        script.seek(0)
        with subprocess.Popen(words, stdin=script, stdout=subprocess.DEVNULL, cwd="/") as session:
            try:
                with connected(address) as connection:
                    (database,) = list_databases(connection, "churned")
                for _ in range(15):
                    take(database)
                assert session.poll() is None
            finally:
                session.kill()
    live.sql("DROP DATABASE churned WITH (FORCE)")
