"""Streams across the seam: both ends of those that an engine writes into the sink, several at a time; what it reads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO

from dbguardd.errors import WorkerDied, from_problem
from dbguardd.flow import Sink
from dbguardd.worker.channel import DATA_BYTES, Channel, Object


class SourceAborted(Exception):  # noqa: N818
    """The engine left the block of a stream with an exception."""


class Pushing(io.RawIOBase):
    """A raw stream whose writes become data messages; after `given_up` they are discarded."""

    def __init__(self, channel: Channel, turn: Callable[[], None]) -> None:
        self._channel, self._turn = channel, turn
        self.given_up = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.given_up:
            self._turn()
            self._channel.send_data(data)
        return len(data)


class Pulling(io.RawIOBase):
    """A raw stream whose reads take data messages until the end message."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest and not self._ended:
            message, _ = self._channel.receive()
            if isinstance(message, bytes):
                self._rest = memoryview(message)
            else:
                self._ended = True
                if "problem" in message:
                    raise from_problem(message["problem"])
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken

    def drain(self) -> None:
        """Read the rest, so that the next request gets its own answer."""
        scratch = bytearray(DATA_BYTES)
        while not self._ended or self._rest:
            self.readinto(scratch)


def take_streams(channel: Channel, begun: Object, sink: Sink, tell: Callable[[Object], None]) -> None:
    """Copy data messages into the sink, from the message that begins a stream until all that were begun have ended.

    An aborted stream is discarded; the call's own problem says why. Other messages go to `tell`.
    """
    with ExitStack() as together:
        streams = _Streams(channel, sink, together)
        message: Object | bytes = begun
        while True:
            if isinstance(message, bytes):
                streams.write(message)
            elif not streams.serve(message):
                tell(message)
            if not streams.open:
                return
            message, stray = channel.receive()
            if stray is not None:
                os.close(stray)
                raise WorkerDied("the engine half sent a file out of turn")


class _Streams:
    """The streams that were begun and have not ended. Data belongs to the one that was begun or named last."""

    def __init__(self, channel: Channel, sink: Sink, together: ExitStack) -> None:
        self._channel, self._sink, self._together = channel, sink, together
        self._out: BinaryIO | None = None
        self.open: dict[str, tuple[ExitStack, BinaryIO]] = {}

    def write(self, data: bytes) -> None:
        if self._out is None:
            raise WorkerDied("the engine half sent data out of turn")
        self._out.write(data)

    def serve(self, message: Object) -> bool:
        """Do what a message asks for; return False if it is not about a stream."""
        name = str(message.get("name", ""))
        match message.get("sink"):
            case "write" if name not in self.open:
                one = self._together.enter_context(ExitStack())
                self._out = one.enter_context(self._sink.write(name, stamp=str(message.get("stamp", ""))))
                self.open[name] = one, self._out
            case "turn" if name in self.open:
                self._out = self.open[name][1]
            case "end" if name in self.open:
                self._out = None
                self.open.pop(name)[0].close()
                self._channel.send({"value": None})
            case "abort" if name in self.open:
                self._out = None
                with suppress(SourceAborted), self.open.pop(name)[0]:
                    raise SourceAborted
            case _:
                return False
        return True
