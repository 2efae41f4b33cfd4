"""An engine that cannot be opened says why: its half answers every call with that, and is not taken for dead."""

import socket
import threading
from contextlib import suppress

import pytest

from dbguardd.errors import Cancelled, NotFound, PolicyInvalid, WorkerDied
from dbguardd.worker.channel import Channel
from dbguardd.worker.engine_half import run
from dbguardd.worker.remote import RemoteEngine


@pytest.mark.parametrize(
    ("engine", "kind"), [("postgresql", PolicyInvalid), ("no such", NotFound)], ids=["wrong address", "unknown engine"]
)
def test_a_half_without_an_engine_tells_each_call_why(tmp_path, engine, kind):
    staging = tmp_path / "staging"
    settings = {"engine": engine, "url": "postgresql:///?bogus=1", "staging": str(staging), "left": str(staging)}
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def half() -> None:
        with there, suppress(WorkerDied, Cancelled):
            run(Channel(there, lambda: False), settings)

    thread = threading.Thread(target=half)
    thread.start()
    try:
        remote = RemoteEngine(Channel(here, lambda: False))
        for call in (remote.probe, remote.release, remote.check_unused):
            with pytest.raises(kind):
                call()
    finally:
        here.close()
        thread.join()
    assert not staging.exists()
