"""The engine half: runs as the owner of the database, opens it, and has no key and no repository.

It answers calls of the repository half. During a call, the engine's Sink and Tree use the same channel.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from dbguardd.engines import ENGINES
from dbguardd.engines.base import Engine, ProofQuery, ScratchRestore, Standby
from dbguardd.engines.fingerprint import Fingerprint, NoFingerprint
from dbguardd.engines.landing import check_writable
from dbguardd.errors import GuardError, NotFound, Unsupported, Usage
from dbguardd.flow import Facts, Images, Segment
from dbguardd.worker.channel import ASKS, DATA_BYTES, NAMES, OBJECT_BYTES, Channel
from dbguardd.worker.question_half import answered
from dbguardd.worker.streams import Pulling, Pushing

_BEAT_SECONDS = 0.1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PRINT_BYTES = OBJECT_BYTES - (1 << 20)  # leaves room for findings and facts

Content = TypeVar("Content", Fingerprint | None, Fingerprint | NoFingerprint)


class SeamSink:
    """A Sink whose other end is the repository half."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._into = ""  # the stream that data belongs to

    def admit(self, facts: Facts) -> None:
        self._channel.send({"sink": "admit", "facts": facts})
        self._channel.answer()

    def parent(self) -> Facts:
        self._channel.send({"sink": "parent"})
        return dict(self._channel.answer())

    @contextmanager
    def write(self, name: str, *, stamp: str = "") -> Iterator[BinaryIO]:
        """Open a flow stream; it is kept if the block ends without an exception. Several may be open at a time."""
        self._channel.send({"sink": "write", "name": name, "stamp": stamp})
        self._into = name
        raw = Pushing(self._channel, partial(self._turn, name))
        out = io.BufferedWriter(raw, DATA_BYTES)
        try:
            yield out
            out.flush()
        except BaseException:
            raw.given_up = True
            self._into = ""
            self._channel.send({"sink": "abort", "name": name})
            raise
        self._into = ""  # the other half expects a name before more data
        self._channel.send({"sink": "end", "name": name})
        self._channel.answer()

    def _turn(self, name: str) -> None:
        """Say which stream the next data belongs to, if it is another one than before."""
        if name != self._into:
            self._channel.send({"sink": "turn", "name": name})
            self._into = name

    def adopt(
        self,
        name: str,
        file: int,
        page_size: int,
        *,
        stamp: str = "",
        filled: Iterable[int] | None = None,
        on_demand: bool = False,
        changing: bool = False,
        changed: bytes | None = None,
    ) -> None:
        """Hand an open file to the repository half and wait until it has been read."""
        growing = filled is not None
        how = {"page_size": page_size, "stamp": stamp, "growing": growing, "on_demand": on_demand, "changing": changing}
        how |= {} if changed is None else {"changed": changed.hex()}
        self._channel.send({"sink": "adopt", "name": name, **how}, file)
        if filled is not None and on_demand:
            self._step_on_demand(filled)
            return
        if filled is not None:
            self._follow(filled)
        self._channel.answer()

    def _step_on_demand(self, filled: Iterable[int]) -> None:
        """Advance each time that the repository half asks for it, until it says that it has everything."""
        steps = iter(filled)
        while self._channel.answer() == ASKS:
            with self._aborting():
                there = next(steps, None)
            self._channel.send({"sink": "end"} if there is None else {"sink": "filled", "bytes": there})

    def _follow(self, filled: Iterable[int]) -> None:
        """Report how far the file is filled, as fast as it is: the repository half may lag behind."""
        with self._aborting():
            for there in filled:
                self._channel.offer({"sink": "filled", "bytes": there})
                if self._channel.said_something():
                    break  # it cannot continue; answer() says why
        self._channel.send({"sink": "end"})

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """Make the repository half discard the file if the block fails."""
        try:
            yield
        except BaseException:
            self._channel.send({"sink": "abort"})
            with suppress(GuardError):
                self._channel.answer()
            raise

    def reuse(self, name: str, stamp: str) -> bool:
        self._channel.send({"sink": "reuse", "name": name, "stamp": stamp})
        return bool(self._channel.answer())


class SeamTree:
    """A Tree whose other end is the repository half."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def facts(self) -> Facts:
        self._channel.send({"tree": "facts"})
        return dict(self._channel.answer())

    def names(self) -> Iterator[str]:
        """Yield the names of the streams in the order they were written, in several messages if there are many."""
        told = 0
        while True:
            self._channel.send({"tree": "names", "after": told})
            names = self._channel.answer()
            yield from names
            told += len(names)
            if len(names) < NAMES:
                return

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """Open one stream. Only one at a time: it is drained when the block ends."""
        self._channel.send({"tree": "read", "name": name})
        source = Pulling(self._channel)
        try:
            yield io.BufferedReader(source, DATA_BYTES)
        finally:
            source.drain()

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Let the repository half write the stream into an open file."""
        self._channel.send({"tree": "deliver", "name": name, "delta": delta}, file)
        return int(self._channel.answer())


class SeamLogSink:
    """A LogSink whose other end is the repository half."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def begin(self, place: Facts, *, continued: bool, because: str) -> None:
        self._channel.send({"ship": "begin", "at": None, "place": place, "continued": continued, "because": because})

    def ship(self, segment: Segment) -> None:
        """Send a segment and wait until it is durable."""
        head = {name: getattr(segment, name) for name in ("stream", "since", "until")}
        match segment.body:
            case Images(page_size, size, data, sum):
                head |= {"page_size": page_size, "size": size, "count": segment.body.count, "sum": sum}
            case data:
                head |= {"bytes": len(data)}
        self._channel.send({"ship": "segment", "at": segment.at.isoformat(), **head})
        self._channel.send_data(data)
        self._channel.answer()

    def audited(self, wrong: str) -> None:
        self._channel.send({"ship": "audited", "at": None, "wrong": wrong})

    def held(self, log_bytes: int, by: Sequence[str]) -> None:
        self._channel.send({"ship": "held", "at": None, "log_bytes": log_bytes, "by": list(by)})

    def reached(self, at: datetime | None) -> None:
        self._channel.send({"ship": "reached", "at": None if at is None else at.isoformat()})


class EngineHalf:
    """Serves the calls of the repository half with one engine until the channel closes."""

    def __init__(self, channel: Channel, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._copy: Standby | None = None
        self._told = ("", 0.0)

    def serve(self) -> None:
        """Answer calls until the repository half hangs up."""
        self._channel.serve(self._call)

    def _call(self, name: str, args: Mapping[str, Any]) -> Any:
        snapshots, progress = self._engine.snapshots, self._progress
        match name:
            case "probe" | "release" | "check_unused":
                return getattr(snapshots, name)()
            case "dump":
                return snapshots.dump(SeamSink(self._channel), progress, compared=args["compared"])
            case "fingerprint":
                return _fitting(snapshots.fingerprint(progress, SeamTree(self._channel)))
            case "restore":
                more = [args["places"]] if args["places"] else []
                return snapshots.restore(SeamTree(self._channel), Path(args["target"]), progress, *more)
            case "examine":
                queries = [ProofQuery(**query) for query in args["queries"]]
                found = snapshots.examine(Path(args["target"]), queries, progress)
                return replace(found, fingerprint=_fitting(found.fingerprint))
            case "replace":
                return snapshots.replace(Path(args["source"]), progress)
            case "follow" | "unfollow" if (log := self._engine.log) is not None:
                return log.follow(SeamLogSink(self._channel), **args) if name == "follow" else log.unfollow(**args)
        ways = {
            "delta_restore": self._delta_restore,
            "standby": self._standby,
            "find": self._find,
            "check_writable": self._check_writable,
        }
        return ways.get(name.partition(".")[0], self._ask)(name, args)

    def _check_writable(self, _: str, args: Mapping[str, Any]) -> None:
        check_writable(Path(args["target"]))

    def _find(self, name: str, args: Mapping[str, Any]) -> Any:
        if self._engine.find_restore_point is None:
            raise Unsupported(f"in the log of this kind of database nothing has a name: {name}")
        found = self._engine.find_restore_point(SeamTree(self._channel), str(args["name"]), self._progress)
        return found and (found[0], found[1].isoformat())

    def _delta_restore(self, name: str, args: Mapping[str, Any]) -> Any:
        delta, progress, live = self._engine.delta_restore, self._progress, Path(args["live"])
        match name.removeprefix("delta_restore."):
            case _ if delta is None:
                raise Unsupported("this kind of database is not restored over the live one")
            case "inspect":
                return delta.inspect(live, args["facts"])
            case "check_unused":
                return delta.check_unused(live, args["facts"])
            case "save":
                return delta.save(live, args["facts"], SeamSink(self._channel), progress)
            case "overwrite":
                return str(delta.overwrite(SeamTree(self._channel), live, progress))
            case "publish":
                return delta.publish(live)
        raise Usage(f"the engine half has no call {name}")

    def _ask(self, name: str, args: Mapping[str, Any]) -> Any:
        questions = self._engine.server_questions
        if questions is None:
            raise Usage(f"the engine half has no call {name}")
        if name == "scratch_restore":
            questions.scratch_restore(SeamTree(self._channel), Path(args["place"]), args["database"], self._progress)
            return None
        asked = [ScratchRestore(Path(place), database) for place, database in args["asked"]]
        return answered(questions, name, asked, args, self._channel)

    def _standby(self, name: str, args: Mapping[str, Any]) -> Any:
        if self._engine.standby is None:
            raise Unsupported("of this kind of database no standby is kept", detail="Only a SQLite database has one.")
        standby = self._copy = self._copy or self._engine.standby()
        progress, tree = self._progress, SeamTree(self._channel)
        target, step = Path(args["target"]), name.removeprefix("standby.")
        match step:
            case "found":
                return standby.found(target, progress)
            case "make" | "advance" | "rebase":
                return getattr(standby, step)(tree, target, args["mark"], progress)
            case "promote":
                return standby.promote(target, [ProofQuery(**query) for query in args["queries"]], progress)
        raise Usage(f"the engine half has no call {name}")

    def _progress(self, step: str, done_bytes: int, total_bytes: int | None) -> None:
        """Report each new step, and otherwise ten times a second: an engine may call this for every row."""
        now = time.monotonic()
        known = step == self._told[0]
        if known and now - self._told[1] < _BEAT_SECONDS:
            return
        self._told = (step, now)
        tell = self._channel.offer if known else self._channel.send
        tell({"progress": [step, done_bytes, total_bytes]})


def _fitting(found: Content) -> Content:
    """Return a fingerprint shortened to fit into one message, whatever its number of tables; other values unchanged."""
    return found.folded(_PRINT_BYTES) if isinstance(found, Fingerprint) else found


def run(channel: Channel, settings: Mapping[str, Any]) -> None:
    """Open the engine with its own staging directory, serve, and leave nothing behind.

    Also remove what a killed worker of a question has left, because there may never be another question.
    """
    staging, left = Path(settings["staging"]), Path(settings["left"])
    _wipe(staging)
    if left != staging:
        _wipe_unheld(left)
    held = _hold(staging)
    try:
        engine = _opened(settings)
        if isinstance(engine, GuardError):
            channel.serve(partial(_refuse, engine))
        else:
            _serve(channel, engine)
    finally:
        _wipe(staging)
        os.close(held)


def _serve(channel: Channel, engine: Engine) -> None:
    try:
        EngineHalf(channel, engine).serve()
    finally:
        with suppress(Exception):
            engine.snapshots.release()


def _opened(settings: Mapping[str, Any]) -> Engine | GuardError:
    """Return the engine, or what every call is answered with: the address in the policy may be wrong, for example."""
    kind = settings["engine"]
    try:
        return ENGINES[kind](settings) if kind in ENGINES else NotFound(f"there is no engine {kind}")
    except GuardError as error:
        return error


def _refuse(error: GuardError, _name: str, _args: Mapping[str, Any]) -> NoReturn:
    raise error


def _hold(staging: Path) -> int:
    """Create the directory, and hold a lock on it while this process lives: see _wipe_unheld()."""
    while True:
        staging.mkdir(mode=0o700, parents=False)
        file = os.open(staging, _DIRECTORY)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.lstat(staging)):
                return file
        os.close(file)  # it was removed before the lock was taken


def _wipe_unheld(staging: Path) -> None:
    """Remove a directory of this user that no process holds."""
    with suppress(OSError):
        file = os.open(staging, _DIRECTORY)
        try:
            if os.fstat(file).st_uid == os.geteuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(staging, ignore_errors=True)
        finally:
            os.close(file)


def _wipe(staging: Path) -> None:
    """Remove what an earlier, killed worker left, but only a directory that belongs to this user."""
    if staging.is_symlink() or (staging.exists() and staging.stat().st_uid != os.geteuid()):
        sys.exit(f"{staging} belongs to someone else")
    shutil.rmtree(staging, ignore_errors=True)
