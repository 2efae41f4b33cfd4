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
