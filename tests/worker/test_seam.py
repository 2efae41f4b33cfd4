"""The seam: whatever an engine does with a Sink or a Tree works the same across two processes' channel."""

import io
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import pytest

from dbguardd.engines.base import Engine, Examination, Finding, Probe
from dbguardd.engines.fingerprint import Fingerprint, TablePrint
from dbguardd.errors import Cancelled, Damaged, NoSpace, SourceLocked, SourceReplaced, TargetInUse, WorkerDied
from dbguardd.worker.channel import Channel
from dbguardd.worker.engine_half import EngineHalf
from dbguardd.worker.remote import RemoteEngine


class MemorySink:
    """A Sink that keeps streams in a dict; `full` makes every write fail."""

    def __init__(self, full: bool = False) -> None:
        self.streams: dict[str, bytes] = {}
        self.told: dict[str, object] = {}
        self.full = full

    @contextmanager
    def write(self, name: str, *, stamp: str = "") -> Iterator[io.BytesIO]:
        out = io.BytesIO()
        yield out
        if self.full:
            raise NoSpace("storage: full")
        self.streams[name] = out.getvalue()

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
        if self.full:
            raise NoSpace("storage: full")
        for _ in filled or ():
            pass
        self.streams[name] = os.pread(file, os.fstat(file).st_size, 0)
        self.told[name] = {"stamp": stamp, "changing": changing, "changed": changed}

    def admit(self, facts):
        if facts["system"] != "7":
            raise SourceReplaced("another cluster")

    def parent(self):
        return {"made": "before"}

    def reuse(self, name: str, stamp: str) -> bool:
        return stamp == "same"


class MemoryTree:
    """A Tree over a dict; reading the stream `damaged` fails after its first bytes."""

    def __init__(self, streams: dict[str, bytes]) -> None:
        self.streams = streams
        self.facts = {"made": "here"}

    def names(self) -> Iterator[str]:
        yield from self.streams

    @contextmanager
    def read(self, name: str) -> Iterator[io.BytesIO]:
        if name == "damaged":
            raise Damaged("pack: not what was stored")
        yield io.BytesIO(self.streams[name])

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        return os.pwrite(file, self.streams[name], 0)


class FakeEngine:
    """Does everything an engine can do with a Sink and a Tree."""

    asked: ClassVar[list[int]] = []  # which steps of what is only read when it is asked for were taken

    def __init__(self, file: Path) -> None:
        self.file = file

    def probe(self):
        return Probe("1.0", 5, {"a": 1}, ("careful",))

    def dump(self, sink, progress, *, compared):
        with pytest.raises(SourceReplaced):
            sink.admit({"system": "8"})
        sink.admit({"system": "7"})
        progress("snapshot", 1, 2)
        with sink.write("dump") as out:
            for number in range(50):
                out.write(b"0123456789" * 1000)
                progress(f"dump {number}", number, None)
        with pytest.raises(ZeroDivisionError), sink.write("thrown away") as out:
            out.write(b"half")
            raise ZeroDivisionError
        with sink.write("one") as one, pytest.raises(ZeroDivisionError), sink.write("given up in between") as two:
            for _ in range(3):
                one.write(b"1" * 200_000)
                two.write(b"2" * 200_000)
            one.flush()
            raise ZeroDivisionError
        with sink.write("odd") as odd, sink.write("even") as even:
            for number in range(200):
                (odd if number % 2 else even).write(bytes([number]) * 3000)
        with ExitStack() as empty, sink.write("two") as two:
            empty.enter_context(sink.write("empty"))
            two.write(b"2" * 200_000)
            empty.close()  # says nothing of "two", which was named last
            two.write(b"2" * 200_000)
        with self.file.open("rb") as source:
            sink.adopt("pages", source.fileno(), 4096)
            sink.adopt("alive", source.fileno(), 8192, stamp="now", changing=True, changed=b"\x05\xff")
            with pytest.raises(ZeroDivisionError):
                sink.adopt("given up", source.fileno(), 4096, filled=(1 // (2 - number) for number in range(5)))
            steps = []
            sink.adopt("growing", source.fileno(), 4096, filled=(steps.append(n) or n for n in range(20_000)))
            self.asked.clear()
            for name, last in (("asked", 1), ("moved", 0)):
                with nullcontext() if last else pytest.raises(ZeroDivisionError):
                    sink.adopt(name, source.fileno(), 4096, filled=self.watched(100, last), on_demand=True)
        reused = [sink.reuse("x", "same"), sink.reuse("x", "other")]
        return {"reused": reused, "steps": len(steps), "parent": sink.parent()}

    def watched(self, steps, last):
        for number in range(steps):
            self.asked.append(number)
            yield number
        yield steps // last

    def fingerprint(self, progress, stored):
        return Fingerprint("s", {f"table {n} with a long name": TablePrint(n, "d" * 64) for n in range(5000)})

    def release(self):
        pass

    def restore(self, tree, target, progress):
        assert tree.facts == {"made": "here"}
        names = list(tree.names())
        with tree.read(names[0]) as source:
            source.read(10)  # the rest is left unread on purpose
            for number in range(2000):  # more than the socket holds, while the other half sends and waits
                progress(f"restore {number}", number, None)
        with target.open("wb") as out:
            tree.deliver(names[1], out.fileno())
        if "damaged" in names:
            with tree.read("damaged") as source:
                source.read()
        return ["owner app: gone"]

    def examine(self, target, queries, progress):
        return Examination([Finding("opened", "ok", queries[0].sql if queries else "")], None, {"n": 1})

    def check_unused(self):
        raise TargetInUse("app: in use", facts={"pids": [1]})

    def replace(self, source, progress):
        raise SourceLocked("app: locked", detail="by pid 1", hints=["wait"], facts={"pid": 1})


@pytest.fixture
def seam(tmp_path):
    """A RemoteEngine whose engine half runs in a thread; yields it with the cancel switch."""
    file = tmp_path / "pages"
    file.write_bytes(b"p" * 10_000)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stop = threading.Event()

    def serve() -> None:
        with pytest.raises((WorkerDied, Cancelled)):
            EngineHalf(Channel(there, lambda: False), Engine("fake", FakeEngine(file))).serve()
        there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield RemoteEngine(Channel(here, stop.is_set)), stop, here
    here.close()
    thread.join()


def silent(*_):
    """Progress that nobody looks at."""


def test_dump_crosses_with_streams_files_and_answers(seam):
    remote, _, _ = seam
    sink, steps = MemorySink(), []
    facts = remote.dump(sink, lambda *step: steps.append(step))
    assert facts == {"reused": [True, False], "steps": 20_000, "parent": {"made": "before"}}
    pages = b"p" * 10_000
    streams = {name: pages for name in ("pages", "alive", "growing", "asked")}
    streams |= {name: b"".join(bytes([n]) * 3000 for n in range(at, 200, 2)) for at, name in enumerate(("even", "odd"))}
    assert sink.streams == {
        "dump": b"0123456789" * 50_000,
        "one": b"1" * 600_000,
        "two": b"2" * 400_000,
        "empty": b"",
        **streams,
    }
    assert sink.told["pages"] == {"stamp": "", "changing": False, "changed": None}
    assert sink.told["alive"] == {"stamp": "now", "changing": True, "changed": b"\x05\xff"}
    assert steps == [("snapshot", 1, 2), *((f"dump {number}", number, None) for number in range(50))]


def test_objects_longer_than_a_message_cross(seam):
    remote, _, _ = seam
    print_ = remote.fingerprint(silent)
    assert len(print_.tables) == 5000
    assert print_.tables["table 7 with a long name"] == TablePrint(7, "d" * 64)


def test_restore_and_examine_cross(seam, tmp_path):
    remote, _, _ = seam
    steps = []
    tree = MemoryTree({"a": b"x" * 3_000_000, "b": b"page"})
    assert remote.restore(tree, tmp_path / "out", lambda *step: steps.append(step)) == ["owner app: gone"]
    assert steps == [(f"restore {number}", number, None) for number in range(2000)]
    assert (tmp_path / "out").read_bytes() == b"page"
    assert remote.probe() == Probe("1.0", 5, {"a": 1}, ("careful",))
    assert remote.examine(tmp_path / "out", (), silent).findings == [Finding("opened", "ok", "")]


def test_errors_of_either_side_arrive_whole_and_the_channel_goes_on(seam, tmp_path):
    remote, _, _ = seam
    with pytest.raises(SourceLocked) as caught:
        remote.replace(tmp_path, silent)
    assert (caught.value.detail, caught.value.hints, caught.value.facts) == ("by pid 1", ("wait",), {"pid": 1})
    with pytest.raises(TargetInUse) as caught:
        remote.check_unused()
    assert caught.value.facts == {"pids": [1]}
    with pytest.raises(Damaged):
        remote.restore(MemoryTree({"a": b"x", "b": b"y", "damaged": b""}), tmp_path / "out", silent)
    with pytest.raises(NoSpace):
        remote.dump(MemorySink(full=True), silent)


def test_a_writer_is_told_when_nobody_can_read_on(seam):
    """Far more messages than the socket holds: the writer neither waits for the reader nor fills for nothing."""

    class Broken(MemorySink):
        def adopt(self, name, file, page_size, *, stamp="", filled=None, on_demand=False, changing=False, changed=None):
            if name == "growing":
                next(iter(filled))
                raise NoSpace("storage: full")
            super().adopt(name, file, page_size, stamp=stamp, filled=filled, on_demand=on_demand)

    remote, _, _ = seam
    with pytest.raises(NoSpace):
        remote.dump(Broken(), silent)
    assert remote.probe().version == "1.0"


def test_who_is_asked_takes_no_step_that_nobody_wants(seam):
    """A live file is watched for as long as it is read, and not a moment less: so the reader sets the pace."""
    remote, _, _ = seam
    paces = []

    class Slow(MemorySink):
        def adopt(self, name, file, page_size, *, stamp="", filled=None, on_demand=False, changing=False, changed=None):
            assert on_demand == (name in ("asked", "moved"))
            if on_demand:
                for there in filled:
                    paces.append((there, len(FakeEngine.asked)))
                    if there == 7:
                        raise NoSpace("storage: full")
            super().adopt(name, file, page_size, stamp=stamp, filled=filled, on_demand=on_demand)

    with pytest.raises(NoSpace):
        remote.dump(Slow(), silent)
    assert paces == [(number, number + 1) for number in range(8)]
    assert remote.probe().version == "1.0"


def test_cancelling_while_the_other_half_is_silent():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, pytest.raises(Cancelled):
        Channel(here, lambda: True).receive()


@pytest.mark.parametrize("nonsense", [b"X", b"Jnot json", b"J[1]", b"D", b"P" + b"x" * 10, b"J" + b"[" * 100_000])
@pytest.mark.parametrize("with_file", [False, True])
def test_a_hostile_other_half_ends_the_conversation_and_leaves_no_file_open(nonsense, with_file):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here:
        before = len(os.listdir("/proc/self/fd"))
        with there:
            socket.send_fds(there, [nonsense], [there.fileno()] * with_file)
        with pytest.raises(WorkerDied):
            Channel(here, lambda: False).receive_object()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # there


def test_a_file_in_the_middle_of_a_stream_ends_the_conversation():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        there.send(b'J{"sink":"write","name":"dump","stamp":""}')
        socket.send_fds(there, [b'J{"progress":["dump",0,null]}'], [there.fileno()])
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(WorkerDied, match="out of turn"):
            RemoteEngine(Channel(here, lambda: False)).dump(MemorySink(), silent)
        assert len(os.listdir("/proc/self/fd")) == before
