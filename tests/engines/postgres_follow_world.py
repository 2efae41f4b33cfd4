"""Followers of a real cluster, in processes that can be killed, and what they have stored, for restores."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context

from engine_memory import MemorySink, MemoryTree, no_progress
from postgres_world import _as_user, alive_processes, cluster, identity, owner, until

from dbguardd.engines.postgresql import open_postgresql

BOUNDED = "ALTER SYSTEM SET max_slot_wal_keep_size = '128MB'"
STAGING = "/nonexistent/cluster"


def opened(live, **settings):
    told = {"url": live.url, "staging": STAGING, "method": "pages", "look_seconds": 0.05}
    return open_postgresql({**told, **settings})


@contextmanager
def followable(prepared=0, *options):
    """A server whose log can be followed, with a ledger; it allows `prepared` prepared transactions."""
    with cluster(*options) as made:
        made.sql(BOUNDED)
        made.sql("ALTER SYSTEM SET wal_sender_timeout = 0")
        made.sql(f"ALTER SYSTEM SET max_prepared_transactions = {prepared}")
        made.stop(signal.SIGINT)
        made.start()
        made.sql("CREATE TABLE ledger (id int PRIMARY KEY, note text)")
        yield made


class _Shelf:
    """A LogSink that stores what it gets in a file; if the file has mode 0700 it counts as full."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def _put(self, *event):
        os.write(self.file, pickle.dumps(event))

    def begin(self, place, *, continued, because):
        self._put("begin", dict(place), continued, because)

    def ship(self, segment):
        if os.fstat(self.file).st_mode & 0o100:  # what follows may not look where it lies
            raise OSError("full")
        self._put("segment", segment)

    def reached(self, at):
        if at is not None:
            self._put("reached", at)


class Follower:
    """A follower that can be started repeatedly, and everything that it has stored."""

    def __init__(self, live, place, uid=None):
        self._live, self.path, self.process = live, place / "shelf", None
        self._uid = owner() if uid is None else uid
        self.path.touch(0o600)

    def start(self, *, anew=False, resume=None, **settings):
        """Follow from where the stored log ends."""
        shelf = _Shelf(self.path)

        def follow():
            opened(self._live, **settings).log.follow(shelf, resume)

        resume = None if anew else resume or self.resume()
        context = get_context("fork")
        self._said, there = context.Pipe(duplex=False)
        action = _as_user if os.geteuid() == 0 else _here
        self.process = context.Process(target=action, args=(there, self._uid, follow, ()))
        self.process.start()
        there.close()
        os.close(shelf.file)

    def kill(self):
        """Send it SIGKILL."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def ended(self):
        """Wait until it ends by itself; return the reason."""
        outcome, error = self._said.recv()
        self.process.join()
        assert outcome == "raised"
        return error

    def events(self, kind=""):
        """Return what it has reported so far."""
        found = []
        with self.path.open("rb") as file:
            while True:
                try:
                    found.append(pickle.load(file))
                except (EOFError, pickle.UnpicklingError):
                    return [event for event in found if not kind or event[0] == kind]

    def chains(self):
        """Return the segments of each chain."""
        found = []
        for event in self.events():
            if event[0] == "begin" and not event[2]:
                found.append([])
            elif event[0] == "segment":
                found[-1].append(event[1])
        return found

    def resume(self):
        """Return the place where the stored log ends, as a repository would."""
        ends = [(event[1].until, event[1].at) if event[0] == "segment" else (event[1], None)
                for event in self.events() if event[0] != "reached"]  # fmt: skip
        if not ends:
            return None
        place, at = ends[-1]
        return {**place, "sum": "", "at": (at or datetime.now(UTC)).isoformat()}

    def catches_up(self):
        """Wait until all that has committed by now is stored."""
        now = datetime.now(UTC)

        def reached():
            if self.process.exitcode is not None:
                raise self.ended()
            return self.events("reached")[-1:] and self.events("reached")[-1][1] > now

        until(reached, "all that has committed")

    def body(self):
        """Return the bytes of the newest chain, and the places of their start and end."""
        return self.body_of(self.chains()[-1])

    @staticmethod
    def body_of(segments):
        """Return the bytes of a chain, and the places of its start and end."""
        for one, other in zip(segments, segments[1:], strict=False):
            assert one.until == other.since and one.at <= other.at
        for one in segments:
            assert one.until["position"] - one.since["position"] == len(one.body)
        return b"".join(one.body for one in segments), segments[0].since, segments[-1].until


def _here(pipe, _uid, action, arguments):
    try:
        action(*arguments)
    except BaseException as error:  # noqa: BLE001 - it is raised again on the other side
        pipe.send(("raised", error))


def base(live):
    """Back the cluster up; return streams, facts and content."""
    snapshots, sink = opened(live).snapshots, MemorySink()
    facts = snapshots.dump(sink, no_progress)
    taken = snapshots.fingerprint(no_progress)
    snapshots.release()
    return sink.streams, facts, taken


def moment(backup, body, since, until_, target=None):
    """Return the tree of a moment, as the repository would make it."""
    streams, facts, _ = backup
    sink = MemorySink()
    sink.streams = {**streams, "log": body}
    return MemoryTree(sink, {**facts, "moment": {
        "stream": "log", "since": since, "until": until_, "target": target or {}
    }})  # fmt: skip


def restored(live, tree, target):
    """Restore a moment; a server started on it recovers by itself."""
    opened(live).snapshots.restore(tree, target, no_progress)


def proven(live, tree, target):
    """Restore a moment and prove it."""
    snapshots = opened(live).snapshots
    snapshots.restore(tree, target, no_progress)
    return snapshots.examine(target, (), no_progress)


def asked(live, data, *questions):
    """Start a server on a restored cluster, as RESTORE.txt does, and return what it answers."""
    options = f"-c unix_socket_directories={data.parent} -c port=6543 -c fsync=off"
    control = [live.programs / "pg_ctl", "-D", data, "-w", "-l", data.parent / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd="/", **identity())
    try:
        words = [live.programs / "psql", "-XqAt", "-h", data.parent, "-p", "6543", "-U", "postgres", "-d"]
        questions = [question if isinstance(question, tuple) else ("postgres", question) for question in questions]
        until(lambda: subprocess.run([*words, "postgres", "-c", "SELECT NOT pg_is_in_recovery()"], check=False, cwd="/",
                                     capture_output=True).stdout == b"t\n", "the end of its recovery")  # fmt: skip
        return [subprocess.run([*words, name, "-c", question], check=True, capture_output=True, text=True,
                               cwd="/").stdout.strip() for name, question in questions]  # fmt: skip
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/", **identity())
        until(lambda: not alive_processes(str(data)), "the end of the server")
