"""A live file that is read in place, through the seam into a repository and back."""

import os
import socket
import sqlite3
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime

import pytest

from dbguardd.engines import ENGINES
from dbguardd.engines.base import Engine
from dbguardd.errors import Cancelled, WorkerDied
from dbguardd.keys import MachineKey
from dbguardd.repository import Repository
from dbguardd.worker.channel import Channel
from dbguardd.worker.engine_half import EngineHalf
from dbguardd.worker.remote import RemoteEngine, no_progress
from tests.storage.memory import Memory

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROWS = 3000


def write(path, sql):
    with closing(sqlite3.connect(path, isolation_level=None)) as user:
        user.execute(sql)


@pytest.fixture(params=["wal", "delete"])
def live(request, tmp_path):
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as user:
        user.execute(f"PRAGMA journal_mode={request.param}").fetchall()
        user.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, x)")
        user.execute(
            f"WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {ROWS}) "
            "INSERT INTO t SELECT n, randomblob(3000) FROM up"
        )
    return path


@pytest.fixture
def halves(live, tmp_path):
    """The engine half of a database in a thread, and what the repository half has of it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    engine: Engine = ENGINES["sqlite"]({"path": str(live), "staging": str(tmp_path / "staging")})

    def serve():
        with there, suppress(WorkerDied, Cancelled):
            EngineHalf(Channel(there, lambda: False), engine).serve()

    thread = threading.Thread(target=serve)
    thread.start()
    key = MachineKey.create(tmp_path / "key")
    yield RemoteEngine(Channel(here, lambda: False)), Repository.create(Memory(), [key], NOW)
    here.close()
    thread.join()


def back_up(remote, repository, during=lambda stored: None):
    with repository.saving("app", "sqlite", "pages", NOW, progress=during) as saving:
        return saving.seal(remote.dump(saving, no_progress))


@pytest.mark.parametrize("sql", ["DELETE FROM t WHERE n > 5", f"INSERT INTO t SELECT n + {ROWS}, x FROM t"])
def test_what_changes_after_the_backup_is_not_in_its_fingerprint(live, halves, sql):
    remote, repository = halves
    made, pages = back_up(remote, repository), live.read_bytes()
    assert made.raw_facts["way"] == "unmoved" or made.raw_facts["cloned"]
    write(live, sql)
    write(live, "VACUUM")
    with repository.tree(made) as stored:
        assert remote.fingerprint(no_progress, stored).tables["t"].rows == ROWS
        with stored.read("database") as kept:
            assert kept.read() == pages


@pytest.mark.parametrize("sql", ["DELETE FROM t WHERE n > 5; VACUUM", f"INSERT INTO t SELECT n + {ROWS}, x FROM t"])
def test_what_changes_while_it_is_stored_is_stored_again(live, halves, sql, tmp_path):
    """The file becomes shorter or longer under the reader, which may see that before the engine does."""
    remote, repository = halves
    left = [2]

    def once(stored):
        left[0] -= 1
        if not left[0]:
            for statement in sql.split("; "):
                write(live, statement)

    made = back_up(remote, repository, once)
    if made.raw_facts["cloned"]:
        pytest.skip("this file system copies in one step")
    assert made.raw_facts["tries"] == 2
    print_ = remote.fingerprint(no_progress)
    remote.release()
    with repository.tree(made) as stored:
        remote.restore(stored, tmp_path / "restored.db", no_progress)
    found = remote.examine(tmp_path / "restored.db", [], no_progress)
    assert found.ok
    assert found.fingerprint == print_
    assert print_.tables["t"].rows in (5, 2 * ROWS)
    assert os.listdir(tmp_path / "staging") == []
