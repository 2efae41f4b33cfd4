"""Reads the content of a held database in a process of its own, beside its dump, which takes about as long.

The process is a fork that takes over the connection that holds the database: it has the locks and the snapshot, so
nothing more is locked, and nobody who waits to alter a table can come between. We do not touch that connection any
more; the process ends it when it is told that the dump is complete.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from dbguardd.engines.fingerprint import TablePrint
from dbguardd.engines.postgresql.connect import Connection
from dbguardd.engines.postgresql.content import prints_of
from dbguardd.engines.postgresql.refusals import refusals
from dbguardd.errors import GuardError, WorkerDied, from_problem

_PR_SET_PDEATHSIG = 1
_BEAT_SECONDS = 0.25
_PIECE_BYTES = 64 << 10
_GRACE_SECONDS = 5.0

Prints = dict[str, TablePrint]


class Reader:
    """The process, as we see it."""

    def __init__(self, end: socket.socket, about: str) -> None:
        self._end, self._about, self._heard = end, about, b""
        end.setblocking(False)
        self.read_bytes = 0
        self.found: Prints | GuardError | None = None
        """What was found, or what prevented it; None while it reads."""

    def begin(self) -> None:
        """Let it read: an error would end the snapshot, so the dump must have that by now."""
        with suppress(ConnectionError):  # listen() will find that out
            self._end.send(b"!")

    def fileno(self) -> int:
        """Return a descriptor that is readable when listen() should be called."""
        return self._end.fileno()

    def listen(self) -> None:
        """Take what the process has said, without waiting."""
        said = b""
        with suppress(ConnectionError):  # it was killed with our message unread
            try:
                said = self._end.recv(_PIECE_BYTES)
            except BlockingIOError:
                return
        if not said:
            self.found = WorkerDied(f"{self._about}: the process that reads the tables ended early")
            return
        *lines, self._heard = (self._heard + said).split(b"\n")
        for told in map(json.loads, lines):
            self.read_bytes = told.get("bytes", self.read_bytes)
            if "problem" in told:
                self.found = from_problem(told["problem"])
            elif "tables" in told:
                self.found = {name: TablePrint(*values) for name, values in told["tables"].items()}


@contextmanager
def reading(connection: Connection, excluded: Sequence[str], about: str, *, large: bool) -> Iterator[Reader]:
    """Read the tables of a connection's database in another process, from begin() on; it ends with the block.

    The rows of tables in `excluded` are not read (see Stored.shown); with `large`, large objects are. The connection
    must have a snapshot and a lock on each table. When the block ends, only close() may be called on it.
    """
    here, there = socket.socketpair()
    us = os.getpid()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            _alone(us, there.fileno(), connection.fileno())
            with suppress(ConnectionError):  # we are no longer needed
                _read(connection, there, excluded, about, large=large)
            status = 0
        except BaseException:  # noqa: BLE001 - a bug: the end of standard error is kept with the job
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)  # nothing of ours may be cleaned up twice
    there.close()
    try:
        with here:
            yield Reader(here, about)
            here.shutdown(socket.SHUT_WR)  # the dump is complete: it may end the connection
            _await_end(here)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        _cut(connection)


def _await_end(end: socket.socket) -> None:
    """Give the process a moment to take leave of the server."""
    end.settimeout(_GRACE_SECONDS)
    with suppress(OSError):
        while end.recv(_PIECE_BYTES):
            pass


def _cut(connection: Connection) -> None:
    """Make sure that the server ends the session; with TLS, only the other process could have said so."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _alone(parent: int, *kept: int) -> None:
    """Make this fork independent of what its parent has open, and let it die with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    first = 3
    for file in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        if first < file:  # an empty range would close everything
            os.closerange(first, file)
        first = file + 1


def _read(connection: Connection, end: socket.socket, excluded: Sequence[str], about: str, *, large: bool) -> None:
    told = _telling(end)
    if not end.recv(1):
        return
    try:
        with refusals(about):
            found = prints_of(connection, excluded, told, large=large)
        answer = {"tables": {name: [table.rows, table.digest] for name, table in found.items()}}
    except GuardError as error:
        end.sendall(json.dumps({"problem": error.problem()}).encode() + b"\n")
    else:
        end.sendall(json.dumps(answer).encode() + b"\n")
    end.recv(1)  # until the dump, which has our snapshot, is complete
    connection.close()


def _telling(end: socket.socket) -> Callable[[int], None]:
    """Return a function that tells how much was read, now and then."""
    last = time.monotonic()

    def tell(size: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _BEAT_SECONDS:
            last = now
            end.sendall(b'{"bytes": %d}\n' % size)

    return tell
