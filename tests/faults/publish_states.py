"""A model of the disk's possible states after a power cut, derived from the system calls that a storage made.

Nothing is durable before its fsync: of the directory entries that were made or removed since the last fsync of their
directory any subset may have reached the disk, and of unsynced writes nothing, half, all, or only the length.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbguardd.storage import Directory
from dbguardd.storage.calls import Calls


class Killed(BaseException):
    """The process was killed: not even the calls in its `finally` blocks reach the kernel."""


@dataclass(frozen=True)
class Make:
    """A new directory, or a file that has no name yet."""

    node: int
    folder: bool


@dataclass(frozen=True)
class Write:
    node: int
    data: bytes


@dataclass(frozen=True)
class Link:
    folder: int
    name: str
    node: int


@dataclass(frozen=True)
class Unlink:
    folder: int
    name: str


@dataclass(frozen=True)
class Sync:
    node: int


@dataclass(frozen=True)
class Acknowledge:
    """A put or a delete (data None) has returned."""

    name: str
    data: bytes | None


@dataclass(frozen=True)
class Withdraw:
    """A delete has begun: the object may be there or not."""

    name: str


Op = Make | Write | Link | Unlink | Sync | Acknowledge | Withdraw


@dataclass
class Recorder:
    """Makes real system calls and records them. After `lives` calls that change something the process is killed."""

    ops: list[Op] = field(default_factory=list)
    lives: int = 1 << 30
    _nodes: dict[int, int] = field(default_factory=dict)  # inode number -> node, while the inode lives
    _open: set[int] = field(default_factory=set)

    def calls(self) -> Calls:
        return Calls(
            open=self._do_open,
            writev=self._writev,
            fsync=self._fsync,
            link=self._link,
            unlink=self._unlink,
            mkdir=self._mkdir,
            close=self._close,
        )

    def node(self, fd: int | None) -> int:
        """Return the node of an open file; node 0 is the directory that contains the storage."""
        return 0 if fd is None else self._nodes.get(os.fstat(fd).st_ino, 0)

    def bury(self) -> None:
        """Close what the killed process left open, as the kernel does."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    def _step(self) -> None:
        if not self.lives:
            raise Killed
        self.lives -= 1

    def _new(self, number: int, *, folder: bool) -> int:
        self._nodes[number] = node = len(self.ops) + 1
        self.ops.append(Make(node, folder))
        return node

    def _do_open(self, path: str, flags: int, mode: int, *, dir_fd: int) -> int:
        self._step()
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        self._open.add(fd)
        node = self._new(os.fstat(fd).st_ino, folder=False)
        if flags & os.O_TMPFILE != os.O_TMPFILE:
            self.ops.append(Link(self.node(dir_fd), path, node))
        return fd

    def _writev(self, fd: int, parts: Sequence[memoryview]) -> int:
        self._step()
        data = b"".join(parts)[:5000]  # short writes, so that there is something to be torn between
        self.ops.append(Write(self.node(fd), data))
        return os.write(fd, data)

    def _fsync(self, fd: int) -> None:
        self._step()
        self.ops.append(Sync(self.node(fd)))

    def _link(self, source: str, name: str, *, dst_dir_fd: int, src_dir_fd: int | None = None, **more: object) -> None:
        self._step()
        os.link(source, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)  # type: ignore[arg-type]
        node = self._nodes[os.stat(name, dir_fd=dst_dir_fd).st_ino]
        self.ops.append(Link(self.node(dst_dir_fd), name, node))

    def _unlink(self, name: str, *, dir_fd: int) -> None:
        self._step()
        os.unlink(name, dir_fd=dir_fd)
        self.ops.append(Unlink(self.node(dir_fd), name))

    def _mkdir(self, path: str | Path, mode: int, *, dir_fd: int | None = None) -> None:
        self._step()
        os.mkdir(path, mode, dir_fd=dir_fd)
        node = self._new(os.stat(path, dir_fd=dir_fd).st_ino, folder=True)
        self.ops.append(Link(self.node(dir_fd), os.path.basename(path), node))

    def _close(self, fd: int) -> None:
        if self.lives:
            self._open.discard(fd)
            os.close(fd)


def live(recorder: Recorder, root: Path, work: Sequence[tuple[str, bytes | None]], *, nameless: bool) -> bool:
    """Open the storage and put (or delete: None) what `work` says; False if the process was killed on the way."""
    try:
        storage = Directory(root, create=True, calls=recorder.calls(), nameless=nameless)
        for name, data in work:
            if data is None:
                recorder.ops.append(Withdraw(name))
                storage.delete(name)
            else:
                storage.put(name, data)
            recorder.ops.append(Acknowledge(name, data))
    except Killed:
        recorder.bury()
        return False
    return True


Folders = dict[int, dict[str, int]]


def _apply(folders: Folders, op: Op) -> None:
    match op:
        case Link(folder, name, node):
            folders[folder][name] = node
        case Unlink(folder, name):
            folders[folder].pop(name, None)


@dataclass
class Disk:
    """What is certainly on disk, and what may be."""

    folders: Folders = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict)
    entries: list[Link | Unlink] = field(default_factory=list)
    writes: dict[int, bytes] = field(default_factory=dict)
    promised: dict[str, bytes | None] = field(default_factory=dict)

    def do(self, op: Op) -> None:
        match op:
            case Make(node, folder):
                if folder:
                    self.folders[node] = {}
                else:
                    self.files[node] = b""
            case Write(node, data):
                self.writes[node] = self.writes.get(node, b"") + data
            case Link() | Unlink():
                self.entries.append(op)
            case Acknowledge(name, data):
                self.promised[name] = data
            case Withdraw(name):
                self.promised.pop(name, None)
            case Sync(node):
                if node in self.writes:
                    self.files[node] += self.writes.pop(node)
                for entry in [entry for entry in self.entries if entry.folder == node]:
                    _apply(self.folders, entry)
                    self.entries.remove(entry)

    def states(self) -> Iterator[dict[str, bytes]]:
        """Yield every set of objects that may be found after a power cut now."""
        fates = [[b"", data[: len(data) // 2], bytes(len(data)), data] for data in self.writes.values()]
        for kept in itertools.product((False, True), repeat=len(self.entries)):
            folders = {folder: dict(entries) for folder, entries in self.folders.items()}
            for entry, keep in zip(self.entries, kept, strict=True):
                if keep:
                    _apply(folders, entry)
            for fate in itertools.product(*fates):
                files = dict(self.files)
                for node, data in zip(self.writes, fate, strict=True):
                    files[node] += data
                yield dict(_objects(folders, files, 0, ""))


def _objects(folders: Folders, files: dict[int, bytes], folder: int, path: str) -> Iterator[tuple[str, bytes]]:
    for name, node in folders[folder].items():
        if node in folders:
            yield from _objects(folders, files, node, f"{path}{name}/")
        elif not name.startswith("."):
            yield f"{path}{name}".partition("/")[2], files[node]


@dataclass
class Findings:
    states: int = 0
    torn: int = 0
    lost: int = 0


def cut_power_everywhere(ops: Sequence[Op], contents: dict[str, bytes]) -> Findings:
    """Check every state that a power cut after each call can leave. `contents` has the bytes of every object."""
    findings, disk = Findings(), Disk()
    for op in [None, *ops]:
        if op is not None:
            disk.do(op)
        for found in disk.states():
            findings.states += 1
            findings.torn += sum(data != contents[name] for name, data in found.items())
            findings.lost += sum(found.get(name) != data for name, data in disk.promised.items())
    return findings
