"""The repository half: opens storage, keys and repository, and runs one job. It never opens a database.

It reports to the daemon in JSON lines on standard output: progress, reports, and one result or problem.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from dbguardd import __version__
from dbguardd.errors import (
    Cancelled,
    GuardError,
    KeyMissing,
    NoSpace,
    NotARepository,
    NotFound,
    Outdated,
    Unreachable,
)
from dbguardd.jobs import JOBS, job_of
from dbguardd.jobs.base import Run
from dbguardd.keys import AgeRecipient, KeyWrapper, Secret, make_key, open_wrappers
from dbguardd.repository import Repository
from dbguardd.serialize import to_json
from dbguardd.storage import open_storage
from dbguardd.storage.base import Storage
from dbguardd.worker.channel import Channel, problem_of
from dbguardd.worker.remote import RemoteEngine, check_writable
from dbguardd.worker.remote_delta_restore import RemoteDeltaRestore
from dbguardd.worker.remote_questions import RemoteQuestions
from dbguardd.worker.remote_standby import RemoteStandby

_PROGRESS_SECONDS = 0.2
_SEEN = 1000  # how many objects in a wrong directory are looked at: there may be any number
_LIMITLESS = frozenset(("verify", "expire", "sweep", "hold", "release", "recall"))
"""Verbs that only write small records and may use the room of keep_free: freeing space must not need space."""
_MAKES = frozenset(("backup", "scan", "recovery-sheet"))
"""Verbs that create a repository where there never was one. Other verbs only make sense with an existing one."""
_BY_IDENTITY = frozenset(("recover", "recovery-test"))
"""Verbs for which the user provides a recovery identity: they must work if the key of this machine is lost."""


class Reporter:
    """Writes messages to the daemon, one a line; progress at most five times a second."""

    def __init__(self, out: int, cancelled: Callable[[], bool]) -> None:
        self._out = out
        self._cancelled = cancelled
        self._lock = Lock()
        self._spoke = 0.0
        self._step = ""

    def progress(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        """Report progress. Raises Cancelled if the job should stop: jobs call this at safe points."""
        if self._cancelled():
            raise Cancelled("the job was cancelled")
        now = time.monotonic()
        if step != self._step or now - self._spoke >= _PROGRESS_SECONDS:
            self._step, self._spoke = step, now
            self.say({"type": "progress", "step": step, "done_bytes": done_bytes, "total_bytes": total_bytes})

    def report(self, event: str, /, **facts: Any) -> None:
        """Report an event that the daemon stores."""
        self.say({"type": "report", "event": event, "facts": to_json(facts)})

    def say(self, message: Mapping[str, Any]) -> None:
        """Write one complete line."""
        data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        with self._lock:
            while data:
                data = data[os.write(self._out, data) :]


def run(channel: Channel, spec: Mapping[str, Any], cancelled: Callable[[], bool]) -> int:
    """Run the job of `spec` to its end and report how it ended."""
    voice = Reporter(1, cancelled)
    try:
        _check_version(spec["version"])
        engine = RemoteEngine(channel)
        if spec["verb"] == "follow" and spec["request"]["end"]:  # this does not need the stored log
            engine.unfollow()
            voice.say({"type": "result", "result": {}})
            return 0
        try:
            storage, repository = open_repository(spec, voice, datetime.now(UTC))
        except GuardError as error:
            if spec["verb"] == "follow":
                _look_after(engine, error)
            raise
        if spec["verb"] not in JOBS:
            raise NotFound(f"there is no job {spec['verb']}")
        job = job_of(spec["verb"])
        result = job.run(
            Run(
                id=spec["job"],
                actor=spec["actor"],
                spec=spec,
                storage=storage,
                repository=repository,
                snapshots=engine,
                log=engine,
                staging=spec.get("staging", ""),
                now=lambda: datetime.now(UTC),
                monotonic=time.monotonic,
                report=voice.report,
                progress=voice.progress,
                cancelled=cancelled,
                questions=RemoteQuestions(channel, engine),
                standby=RemoteStandby(engine),
                delta_restore=RemoteDeltaRestore(engine),
                find_restore_point=engine.find,
                check_writable=partial(check_writable, engine),
            ),
            job.request(**spec["request"]),
        )
    except Exception as error:  # noqa: BLE001 every way to fail is told to the daemon
        if isinstance(error, GuardError) and spec["database"]:
            error.facts.setdefault("database", spec["database"]["name"])
        voice.say({"type": "problem", "problem": problem_of(error)})
        if not isinstance(error, GuardError):
            raise  # a bug: the trace goes to standard error, the end of which is kept with the job
        return 1
    voice.say({"type": "result", "result": to_json(result)})
    return 0


def _check_version(running: str) -> None:
    """Raise Outdated if the code on disk was replaced: what this worker says may mean something else to the daemon."""
    if running != __version__:
        raise Outdated(
            f"dbguardd {running} is running, but {__version__} is installed",
            detail="Workers load the installed version, and only a daemon of the same version can use them.",
            hints=["systemctl restart dbguardd"],
        )


def _look_after(engine: RemoteEngine, error: GuardError) -> None:
    """Keep a server from filling its disk with a log that cannot be stored. Raises NoSpace if the log was released."""
    try:
        engine.unfollow(if_short=True)
    except NoSpace as short:
        short.detail = f"{short.detail} It is not stored because: {error.message}"
        raise


def open_repository(spec: Mapping[str, Any], voice: Reporter, now: datetime) -> tuple[Storage, Repository]:
    """Open the repository that the policy names; the verbs in _MAKES create it if there never was one.

    The daemon remembers which repository it has seen in a storage (`repository_id`). If that one is gone, a disk is
    unmounted or worse, and nothing is created in its place.
    """
    expected = spec["storage"].get("repository_id")
    settings = spec["storage"]
    if spec["verb"] in _LIMITLESS:
        settings = {**settings, "keep_free": 0, "max_bytes": None}
    may_make = expected is None and spec["verb"] in _MAKES
    with _one_maker(spec["state"]) if may_make else nullcontext():
        storage = _opened(settings, create=may_make, seen=expected is not None)
        try:
            repository = Repository.open(storage, _wrappers(spec))
        except (NotARepository, KeyMissing) as error:
            if not may_make or not _is_free(storage):
                raise _no_repository(storage, error, may_make) from error
            if isinstance(error, KeyMissing):
                make_key(spec["key"], error)
            repository = Repository.create(storage, open_wrappers(spec["key"]), now)
            voice.report("repository.created", storage=spec["storage"]["name"], id=repository.id)
    if expected is not None and repository.id != expected:
        raise NotARepository(
            f"storage {spec['storage']['name']} holds a different repository than before",
            detail=f"Repository {repository.id} is there, {expected} was used until now.",
            hints=["mount the right disk, or give the new one a storage table of its own in the policy"],
        )
    if expected is None:
        voice.report("repository.opened", storage=spec["storage"]["name"], id=repository.id)
    _admit(spec, repository, voice)
    return storage, repository


def _opened(settings: Mapping[str, Any], *, create: bool, seen: bool) -> Storage:
    """Open a storage. Raises Unreachable, with a hint if it was never seen and is not created yet."""
    try:
        return open_storage(settings, create=create)
    except Unreachable as error:
        place = Path(str(settings.get("path", "")))
        if seen or create or os.path.lexists(place) or not place.parent.is_dir():
            raise
        raise Unreachable(
            f"storage {settings['name']}: {place} does not exist yet",
            detail="The first backup creates it. If it should be on a disk of its own, mount that first.",
            hints=["dbguardctl backup --all", f"findmnt -T {shlex.quote(str(place.parent))}"],
        ) from error


@contextmanager
def _one_maker(state: str) -> Iterator[None]:
    """Make workers create a key and a repository one after the other: the first jobs of a daemon may run at once."""
    lock = os.open(Path(state) / "making.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_free(storage: Storage) -> bool:
    """Return whether a repository may be created: nothing is there but the remains of an attempt before any backup."""
    return all(entry.name.startswith(Repository.PRELUDE) for entry in storage.list(""))


def _no_repository(storage: Storage, error: GuardError, may_make: bool) -> GuardError:
    """Return why nothing opens: a missing repository matters more than a missing key."""
    try:
        Repository.open(storage, ())
    except NotARepository as none:
        if may_make:
            there = sorted({entry.name.partition("/")[0] for entry in islice(storage.list(""), _SEEN)})
            none.detail = f"{none.detail}. One is made only where nothing else is, and there is: {', '.join(there[:5])}"
        return none
    except GuardError:
        pass
    return error


def _wrappers(spec: Mapping[str, Any]) -> list[KeyWrapper]:
    """Return what opens the repository: the key of the policy, or the identity that a user provides after a loss."""
    if spec["verb"] in _BY_IDENTITY:
        return [AgeRecipient.from_identity(Secret(spec["request"]["identity"].encode()))]
    return open_wrappers(spec["key"])


def _admit(spec: Mapping[str, Any], repository: Repository, voice: Reporter) -> None:
    """Give the recovery recipients in the policy access to the repository."""
    known = {label for _, label, _ in repository.recipients()}
    for recipient in spec["key"].get("recovery", ()):
        if recipient not in known:
            repository.add_recipient(AgeRecipient(recipient))
            voice.report("recovery.added", recipient=recipient, key=spec["key"]["name"])
