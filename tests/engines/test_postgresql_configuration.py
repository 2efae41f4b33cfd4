"""What configures a cluster from outside of its data directory is in its backup, and starts what is restored."""

import os
import resource
import shutil
import signal
import subprocess

import pytest
from engine_memory import no_progress
from postgres_pages_world import by_hand, made, move_out, own_place, round_trip, stored, tree
from postgres_world import as_owner, cluster, identity, owner

from dbguardd.engines.postgresql import open_postgresql
from dbguardd.engines.postgresql.physical import resting
from dbguardd.errors import NoSpace


def linked(live):
    """Have the directory itself lead to what configures the cluster, as some do to have that where all else is."""
    live.stop(signal.SIGINT)
    live.config.rename(etc := live.place / "etc")
    live.config = live.data
    text = (etc / "postgresql.conf").read_text()
    kept = [
        line for line in text.splitlines(keepends=True) if not line.startswith(("data_dir", "include", "hba_", "id"))
    ]
    (etc / "postgresql.conf").write_text("".join(kept))
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (live.data / name).symlink_to(etc / name)
    live.start()


def test_a_cluster_that_was_configured_elsewhere_is_started_as_its_text_says():
    with cluster() as live, own_place() as place:
        move_out(live)
        live.sql("CREATE TABLE kept AS SELECT 42 AS answer")
        target = place / "restored"
        streams, _, _, found = as_owner(round_trip, live, target)
        assert found.ok and found.facts["next"].startswith(str(target / "RESTORE.txt"))
        config = target / "dbguard-config"
        assert (config / "conf.d" / "own.conf").read_text() == "work_mem = '7MB'\n"
        assert not (config / "conf.d" / "large.conf").exists() and not (target / "postgresql.conf").exists()
        live.stop(signal.SIGINT)
        by_hand(live, streams, place / "recovered")  # it has no RESTORE.txt, only the manual
        try:
            live.port, own = 5433, live.port
            assert live.sql("SHOW work_mem; SELECT answer FROM kept").split() == ["7MB", "42"]
        finally:
            live.port = own
            stop = [live.programs / "pg_ctl", "-D", place / "recovered", "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, capture_output=True, cwd="/", **identity())
        told = next(line for line in (target / "RESTORE.txt").read_text().splitlines() if not line.startswith("#"))
        told = told.replace(f"/usr/lib/postgresql/{live.major}/bin", str(live.programs))
        subprocess.run(["/bin/sh", "-c", told], check=True, cwd="/", **identity())
        try:
            live.port = 5433
            said = live.sql("SHOW work_mem; SHOW data_directory; SHOW archive_mode; SELECT answer FROM kept")
            assert said.split() == ["7MB", str(target), "off", "42"]
        finally:
            stop = [live.programs / "pg_ctl", "-D", target, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, capture_output=True, cwd="/", **identity())
        live.port = own
        linked(live)
        as_owner(round_trip, live, place / "linked")
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            assert (place / "linked/dbguard-config" / name).read_text() == (live.place / "etc" / name).read_text()
            assert not (place / "linked" / name).exists()


def test_what_replaces_a_lost_cluster_and_its_lost_configuration_is_started_as_the_restore_says():
    """In place, there is no RESTORE.txt: what is said is all that a person has."""
    with cluster() as live:
        move_out(live)
        live.sql("CREATE TABLE kept AS SELECT 42 AS answer")
        streams, facts, _ = as_owner(stored, live)
        live.stop(signal.SIGINT)

        def in_place():
            engine = open_postgresql({"url": live.url, "staging": "/nonexistent", "method": "pages"})
            where = engine.delta_restore.overwrite(tree(streams, facts), live.data, no_progress)
            examined = engine.snapshots.examine(where, (), no_progress)
            engine.delta_restore.publish(live.data)
            return examined.facts["next"]

        assert "as before" in as_owner(in_place)
        assert not (live.data / "dbguard-config").exists()
        shutil.rmtree(live.data)
        shutil.rmtree(live.config)
        told = as_owner(in_place)
        assert told.endswith(f": {live.data}/dbguard-config")
        told = told.split(": ", 1)[1].replace(f"/usr/lib/postgresql/{live.major}/bin", str(live.programs))
        told = told[told.index(str(live.programs)) :]  # without "runuser": it runs as the owner here
        subprocess.run(["/bin/sh", "-c", told], check=True, cwd="/", **identity())
        try:
            assert live.sql("SHOW work_mem; SELECT answer FROM kept").split() == ["7MB", "42"]
        finally:
            stop = [live.programs / "pg_ctl", "-D", live.data, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, capture_output=True, cwd="/", **identity())


def test_what_alone_lies_elsewhere_is_in_the_backup_and_what_is_not_is_named():
    with cluster() as live, own_place() as place:
        live.stop(signal.SIGINT)
        etc = live.place / "etc"
        etc.mkdir()
        for name in ("pg_hba.conf", "pg_ident.conf"):
            (live.data / name).rename(etc / name)
        (live.data / "pg_hba.conf").symlink_to(etc / "pg_hba.conf")
        (live.data / "server.crt").symlink_to("/nonexistent/server.crt")
        (etc / "more.conf").write_text("work_mem = '7MB'\n")
        with (live.data / "postgresql.conf").open("a") as conf:
            conf.write(f"ident_file = '{etc}/pg_ident.conf'\ninclude_if_exists '{etc}/more.conf'\n")
        for path in (etc, *etc.iterdir()):
            os.chown(path, owner(), -1)
        live.start()
        target = place / "restored"
        streams, facts, _, found = as_owner(round_trip, live, target)
        assert found.ok and facts["left_out"] == ["server.crt"]
        config = target / "dbguard-config"
        for name in ("pg_hba.conf", "pg_ident.conf"):
            assert (config / name).read_text() == (etc / name).read_text()
        assert (config / f"elsewhere{etc}/more.conf").read_text() == "work_mem = '7MB'\n"
        text = (target / "RESTORE.txt").read_text()
        assert f"hba_file={config}/pg_hba.conf" in text and "config_file" not in text
        live.stop(signal.SIGINT)
        (live.data / "postgresql.conf").write_text("")
        for path in etc.iterdir():
            path.unlink()
        told = next(line for line in text.splitlines() if not line.startswith("#"))
        told = told.replace(f"/usr/lib/postgresql/{live.major}/bin", str(live.programs))
        for command, data in ((["/bin/sh", "-c", told], target), (None, place / "recovered")):
            if command is None:
                by_hand(live, streams, data)
            else:
                subprocess.run(command, check=True, cwd="/", **identity())
            try:
                live.port, own = 5433, live.port
                assert live.sql("SHOW port; SHOW hba_file").split() == ["5433", f"{data}/dbguard-config/pg_hba.conf"]
            finally:
                live.port = own
                stop = [live.programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
                subprocess.run(stop, check=True, capture_output=True, cwd="/", **identity())


def test_a_cluster_with_prepared_transactions_is_restored_with_the_commands_that_end_them():
    with cluster() as live, own_place() as place:
        live.sql("CREATE TABLE held (n int)")
        as_owner(round_trip, live, place / "without")
        assert "PREPARED" not in (place / "without" / "RESTORE.txt").read_text()
        live.sql("ALTER SYSTEM SET max_prepared_transactions = 4")
        live.stop(signal.SIGINT)
        live.start()
        live.sql("BEGIN; INSERT INTO held VALUES (1); LOCK TABLE held; PREPARE TRANSACTION 'left over'")
        target = place / "with"
        streams, facts, _ = as_owner(stored, live)
        as_owner(lambda: made(live).restore(tree(streams, facts), target, no_progress))
        told = [line for line in (target / "RESTORE.txt").read_text().splitlines() if not line.startswith("#")]
        start, list_them, end_one = told[:3]
        environment = {"PATH": f"{live.programs}:/usr/bin:/bin", "PGHOST": str(live.socket), "PGUSER": "postgres"}

        def typed(command):
            how = {"text": True, "cwd": "/", "env": environment, **identity()}
            return subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, check=True, **how).stdout

        live.stop(signal.SIGINT)  # there is room for one server
        start = start.replace(f"/usr/lib/postgresql/{live.major}/bin", str(live.programs))
        subprocess.run(["/bin/sh", "-c", start], check=True, cwd="/", **identity())
        try:
            assert "left over | postgres" in typed(list_them)
            typed(end_one.replace("DATABASE", "postgres").replace("GID", "left over"))
            assert "(0 rows)" in typed(list_them)
        finally:
            stop = [live.programs / "pg_ctl", "-D", target, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, capture_output=True, cwd="/", **identity())
        live.start()


def test_a_disk_without_room_for_our_lock_leaves_a_cluster_that_starts():
    """No server starts with an empty postmaster.pid, and a full disk may be why somebody restores."""
    with cluster() as live:
        live.stop(signal.SIGINT)

        def refused():
            before, files = resource.getrlimit(resource.RLIMIT_FSIZE), os.listdir("/proc/self/fd")
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            try:
                with pytest.raises(NoSpace), resting.held(resting.look_at(live.data), live.data, ""):
                    pass
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return files == os.listdir("/proc/self/fd")

        assert as_owner(refused)
        live.start()
        assert live.sql("SELECT 1") == "1"
