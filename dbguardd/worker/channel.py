"""Messages between the two halves of a worker: JSON, raw bytes and open files over one Unix socket pair.

The socket is SOCK_SEQPACKET, so messages are never split or joined. The first byte is the type: `D` up to 128 KiB of
stream data; `J` a JSON object, perhaps with one file descriptor; `P` the first parts of a JSON object that is longer
than one message. An object has at most 16 MiB. Neither half trusts the other beyond that: a longer or different message
ends the conversation.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dbguardd.errors import Cancelled, GuardError, Internal, WorkerDied, from_problem
from dbguardd.humanize import discreet
from dbguardd.serialize import to_json

DATA_BYTES = 128 << 10
"""The most stream data in one message; fits the kernel's default socket buffer."""
OBJECT_BYTES = 16 << 20
NAMES = 10_000
"""How many names of streams are in one message; a message with fewer is the last."""
ASKS = "filled?"
"""The answer that asks how much of a file is there (see flow.Sink.adopt); any other says that all of it was read."""
_POLL_SECONDS = 0.25
_TEXT, _SIGN, _ITEMS, _PROBLEM_BYTES = 4000, 40, 50, 64 << 10

Object = dict[str, Any]


class Channel:
    """One end of the seam. `cancelled` is polled at least four times a second while waiting for the other half."""

    def __init__(self, end: socket.socket, cancelled: Callable[[], bool]) -> None:
        self._end = end
        self._cancelled = cancelled
        self._end.settimeout(_POLL_SECONDS)

    def send(self, message: Mapping[str, Any], file: int | None = None) -> None:
        """Send one JSON message, with a descriptor of which the other half gets its own copy."""
        raw = memoryview(json.dumps(message, separators=(",", ":")).encode())
        if len(raw) > OBJECT_BYTES:
            raise Internal(f"seam: an object of {len(raw)} bytes is over the limit of {OBJECT_BYTES}")
        while len(raw) > DATA_BYTES:
            part, raw = raw[:DATA_BYTES], raw[DATA_BYTES:]
            self._patiently(lambda part=part: self._end.sendmsg([b"P", part]))  # type: ignore[misc]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))] if file is not None else []
        self._patiently(lambda: self._end.sendmsg([b"J", raw], ancillary))

    def offer(self, message: Mapping[str, Any]) -> None:
        """Send a short message if there is room for it now; for messages that the next of their kind supersedes."""
        if select.select([], [self._end], [], 0)[1]:
            self.send(message)

    def send_data(self, data: bytes | bytearray | memoryview, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Send stream data in as many messages as needed. `meanwhile` is called before each, and while waiting.

        It must receive what the other half sends unasked, or both halves could wait forever for each other.
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), DATA_BYTES):
            piece = view[start : start + DATA_BYTES]
            meanwhile()
            self._patiently(lambda piece=piece: self._end.sendmsg([b"D", piece]), meanwhile)  # type: ignore[misc]

    def said_something(self) -> bool:
        """Return whether a message of the other half, or its end, is waiting."""
        return bool(select.select([self._end], [], [], 0)[0])

    def receive(self) -> tuple[Object | bytes, int | None]:
        """Return the next message (an object or stream data) and the descriptor that came with it."""
        parts: list[bytes] = []
        while True:
            raw, file = self._receive_raw()
            if raw[:1] == b"D" and not parts and file is None:
                return raw[1:], None
            parts.append(raw[1:])
            if raw[:1] == b"J":
                break
            if raw[:1] != b"P" or file is not None or len(parts) * DATA_BYTES > OBJECT_BYTES:
                _drop(file)
                raise WorkerDied("the other half of the worker sent an invalid message")
        try:
            message = json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            message = error
        if not isinstance(message, dict):
            _drop(file)
            raise WorkerDied("the other half of the worker sent an invalid message")
        return message, file

    def receive_into(self, place: memoryview) -> None:
        """Fill a buffer with stream data from as many messages as needed. Raises WorkerDied if other messages come."""
        kind = bytearray(1)
        while place:
            buffers, room = [kind, place[:DATA_BYTES]], socket.CMSG_SPACE(16)
            count, more, flags, _ = self._patiently(lambda b=buffers, r=room: self._end.recvmsg_into(b, r))  # type: ignore[misc]
            file = self._descriptor(count, more, flags)
            if kind != b"D" or file is not None or count == 1:
                _drop(file)
                raise WorkerDied("the other half of the worker sent another message instead of data")
            place = place[count - 1 :]

    def _receive_raw(self) -> tuple[bytes, int | None]:
        raw, ancillary, flags, _ = self._patiently(lambda: self._end.recvmsg(DATA_BYTES + 1, socket.CMSG_SPACE(16)))
        return raw, self._descriptor(len(raw), ancillary, flags)

    def _descriptor(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> int | None:
        """Return the descriptor that came with a message of `count` bytes, or None."""
        files = _descriptors(ancillary)
        if not count or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(files) > 1:
            for file in files:
                os.close(file)
            if self._cancelled():  # the other half learnt of it from an answer, and may have ended first
                raise Cancelled("the job was cancelled")
            detail = "It sent an invalid message." if count else "It closed the seam."
            raise WorkerDied("the other half of the worker ended early", detail=detail)
        return files[0] if files else None

    def receive_object(self) -> Object:
        """Return the next message, which must be an object without a descriptor."""
        message, file = self.receive()
        _drop(file)
        if not isinstance(message, dict):
            raise WorkerDied("the other half of the worker sent data out of turn")
        return message

    def answer(self) -> Any:
        """Wait for the answer to the last request: return its value, or raise its problem."""
        message = self.receive_object()
        if "problem" in message:
            raise from_problem(message["problem"])
        return message["value"]

    def serve(self, call: Callable[[str, Mapping[str, Any]], Any]) -> None:
        """Answer calls of the other half until it hangs up: with what `call(name, arguments)` returns or raises.

        Raises WorkerDied at the end of the conversation, and Cancelled, which is not sent as an answer.
        """
        while True:
            asked = self.receive_object()
            try:
                self.send({"return": to_json(call(str(asked["call"]), asked["args"]))})
            except Cancelled:
                raise
            except Exception as error:  # noqa: BLE001 the other half decides what an error means
                if not isinstance(error, GuardError):
                    sys.excepthook(*sys.exc_info())  # a bug: the end of standard error is kept with the job
                self.send({"return": None, "problem": problem_of(error)})

    def close(self) -> None:
        """End the conversation; the other half notices."""
        self._end.close()

    def _patiently(self, act: Callable[[], Any], meanwhile: Callable[[], None] = lambda: None) -> Any:
        """Repeat until it succeeds; raise Cancelled as soon as the job is cancelled."""
        while True:
            try:
                return act()
            except TimeoutError:
                if self._cancelled():
                    raise Cancelled("the job was cancelled") from None
                meanwhile()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise WorkerDied("the other half of the worker ended early", detail=str(error)) from error


def _drop(file: int | None) -> None:
    """Close a descriptor that was not expected."""
    if file is not None:
        os.close(file)


def problem_of(error: BaseException) -> Object:
    """Return the problem object of any exception; an unexpected one is an Internal error.

    Its size is limited, because the daemon stores it with the job and its events, and the owner of the database chooses
    the names that SQLite puts into a message.
    """
    if not isinstance(error, GuardError):
        error = Internal(discreet(f"{type(error).__name__}: {error}"))
    problem = {name: _cut(value) for name, value in error.problem().items()}
    return {name: value for name, value in problem.items() if len(json.dumps(value)) <= _PROBLEM_BYTES}


def _cut(value: Any) -> Any:
    """Return a member of a problem with its texts shortened."""
    if isinstance(value, str) and len(value) > _TEXT + _SIGN:  # allows for the suffix: both halves do this
        return f"{value[:_TEXT]}… ({len(value)} characters)"
    return [_cut(item) for item in value[:_ITEMS]] if isinstance(value, list) else value


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    for file in found:
        os.set_inheritable(file, False)
    return list(found)
