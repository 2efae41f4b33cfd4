"""Which jobs may make a repository, and where; and what is done for a database whose repository is away."""

import json
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dbguardd import __version__
from dbguardd.errors import NoSpace, NotARepository, Outdated, Unreachable, WorkerDied
from dbguardd.jobs import JOBS
from dbguardd.keys import new_identity
from dbguardd.worker.channel import Channel
from dbguardd.worker.repository_half import Reporter, open_repository, run

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MAKERS = {"backup", "scan", "recovery-sheet"}


def spec(place: Path, verb: str):
    storage = {"name": "local", "type": "directory", "path": str(place / "store")}
    key = {"name": "main", "type": "machine", "path": str(place / "key")}
    request = {"identity": new_identity()[0].reveal().decode()}  # of those that a person opens with a sheet
    told = {"verb": verb, "state": str(place), "storage": storage, "key": key, "request": request}
    return {**told, "version": __version__}


@pytest.fixture
def voice(tmp_path):
    with (tmp_path / "said").open("wb") as out:
        yield Reporter(out.fileno(), lambda: False)


@pytest.mark.parametrize("verb", sorted(MAKERS))
def test_what_begins_to_use_a_storage_makes_the_repository(tmp_path, voice, verb):
    _, made = open_repository(spec(tmp_path, verb), voice, NOW)
    _, opened = open_repository(spec(tmp_path, "restore"), voice, NOW)
    assert made.id == opened.id


@pytest.mark.parametrize("verb", sorted(JOBS.keys() - MAKERS))
def test_what_reads_or_deletes_makes_nothing_in_an_empty_mount_point(tmp_path, voice, verb):
    with pytest.raises(Unreachable, match="does not exist yet"):
        open_repository(spec(tmp_path, verb), voice, NOW)
    seen = spec(tmp_path, verb)
    seen["storage"]["repository_id"] = "0" * 32
    with pytest.raises(Unreachable, match="is its disk mounted"):
        open_repository(seen, voice, NOW)
    (tmp_path / "store").mkdir()
    with pytest.raises(NotARepository):
        open_repository(spec(tmp_path, verb), voice, NOW)
    assert not any((tmp_path / "store").iterdir())
    assert not (tmp_path / "key").exists()


def test_a_log_is_let_go_of_for_good_while_its_storage_is_away(tmp_path, capfd):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked = []

    def serve():
        with there, suppress(WorkerDied):
            Channel(there, lambda: False).serve(lambda name, args: asked.append((name, args)))

    engine = threading.Thread(target=serve)
    engine.start()
    told = {**spec(tmp_path, "follow"), "request": {"end": True}, "job": "j", "actor": "follower", "database": None}
    assert run(Channel(here, lambda: False), told, lambda: False) == 0
    here.close()
    engine.join()
    assert asked == [("unfollow", {"if_short": False})]
    assert json.loads(capfd.readouterr().out) == {"type": "result", "result": {}}


def test_a_worker_of_another_version_than_the_daemon_does_nothing(tmp_path, capfd):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = {**spec(tmp_path, "backup"), "version": "0.0.9", "database": {"name": "app"}}
    with here, there:
        assert run(Channel(here, lambda: False), told, lambda: False) == 1
    problem = json.loads(capfd.readouterr().out)["problem"]
    assert (problem["code"], problem["retryable"], problem["database"]) == (Outdated.code, True, "app")
    assert problem["message"] == f"dbguardd 0.0.9 is running, but {__version__} is installed"
    assert not (tmp_path / "store").exists() and not (tmp_path / "key").exists()


@pytest.mark.parametrize("short", [False, True])
def test_a_server_whose_log_cannot_be_stored_is_looked_after_all_the_same(tmp_path, capfd, short):
    """Its engine half is asked to let go of the log if that takes the last room; that is told, else what is away."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked = []

    def unfollow(name, args):
        asked.append((name, args))
        if short:
            raise NoSpace("the server needs the room", detail="It lets go.")

    def serve():
        with there, suppress(WorkerDied):  # when the other half hangs up
            Channel(there, lambda: False).serve(unfollow)

    engine = threading.Thread(target=serve)
    engine.start()
    told = {
        **spec(tmp_path, "follow"),
        "request": {"end": False},
        "job": "j",
        "actor": "follower",
        "database": {"name": "cluster"},
    }
    assert run(Channel(here, lambda: False), told, lambda: False) == 1
    here.close()
    engine.join()
    problem = json.loads(capfd.readouterr().out)["problem"]
    assert asked == [("unfollow", {"if_short": True})]
    assert problem["code"] == (NoSpace.code if short else Unreachable.code)
    assert "store does not exist yet" in (problem["detail"] if short else problem["message"])
