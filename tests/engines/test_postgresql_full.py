"""A full disk under a test restore says something about this host, and nothing about the backup."""

import os
import subprocess

import pytest
from engine_memory import MemoryTree, no_progress
from postgres_world import as_owner, cluster
from test_postgresql_dump import backed_up, made, place, url

from dbguardd.errors import NoSpace

__all__ = ["place"]


@pytest.fixture(scope="module")
def live():
    with cluster() as made:
        made.sql("CREATE DATABASE big")
        made.sql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 400000) n", "big")
        yield made


@pytest.fixture
def disk(place):  # noqa: F811 - a fixture
    """A small file system under the staging directory, as large as it is told to be."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = []

    def mount(size):
        staging = place / "staging"
        staging.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"mode=0777,size={size}", "tmpfs", staging]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(staging)

    yield mount
    for staging in mounted:
        subprocess.run(["umount", staging], check=True)


@pytest.mark.parametrize("size", ["20m", "75m"])
def test_a_full_disk_is_no_verdict(live, place, disk, size):  # noqa: F811 - a fixture
    """Once it is full before there is a server, once in the middle of the restore."""
    disk(size)

    def prove():
        engine = made(live, place, url=url(live, "big"))
        sink, facts, _ = backed_up(engine)
        engine.restore(MemoryTree(sink, facts), place / "restored", no_progress)
        try:
            engine.examine(place / "restored", (), no_progress)
        finally:
            assert list((place / "staging").iterdir()) == []

    with pytest.raises(NoSpace):
        as_owner(prove)


def test_who_keeps_the_disk_of_a_proof_full_is_ended(live, place, disk):  # noqa: F811 - a fixture
    """Others write there: the daemon, all other databases. By a function in an index of his table."""
    disk("150m")
    live.sql("CREATE ROLE low; CREATE DATABASE evil OWNER low")
    live.sql("""SET ROLE low; CREATE UNLOGGED TABLE big (x text); ALTER TABLE big ALTER x SET STORAGE external;
        CREATE FUNCTION fill() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LOOP
          BEGIN INSERT INTO public.big SELECT repeat('x', 1000000);
          EXCEPTION WHEN disk_full THEN PERFORM pg_sleep(1000); END; END LOOP; END $$;
        CREATE FUNCTION bad(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
          IF current_setting('port') = '5432' THEN PERFORM public.fill(); END IF; RETURN n; END $$;
        CREATE TABLE t AS SELECT 1 AS n; CREATE INDEX ON t ((bad(n)));""", "evil")  # fmt: skip

    def prove():
        engine = made(live, place, url=url(live, "evil"))
        sink, facts, _ = backed_up(engine)
        engine.restore(MemoryTree(sink, facts), place / "restored", no_progress)
        engine.examine(place / "restored", (), no_progress)

    try:
        with pytest.raises(NoSpace, match="filled the free space"):
            as_owner(prove)
    finally:
        live.sql("DROP DATABASE evil")
        live.sql("DROP ROLE low")
    assert list((place / "staging").iterdir()) == []
