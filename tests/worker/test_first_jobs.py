"""The first jobs of a fresh installation come at once: they make one key and one repository."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

from dbguardd.worker.repository_half import Reporter, open_repository

NOW = datetime(2026, 3, 1, tzinfo=UTC)
TOGETHER = 8


def test_all_of_them_open_the_same_repository(tmp_path):
    spec = {
        "verb": "backup",
        "state": str(tmp_path),
        "storage": {"name": "local", "type": "directory", "path": str(tmp_path / "store")},
        "key": {"name": "main", "type": "machine", "path": str(tmp_path / "machine.key"), "recovery": []},
    }
    start = Barrier(TOGETHER)
    nowhere = os.open(os.devnull, os.O_WRONLY)

    def first_job(_):
        start.wait()
        return open_repository(spec, Reporter(nowhere, lambda: False), NOW)[1].id

    try:
        with ThreadPoolExecutor(TOGETHER) as pool:
            assert len(set(pool.map(first_job, range(TOGETHER)))) == 1
    finally:
        os.close(nowhere)
