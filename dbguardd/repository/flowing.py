"""Saves a flow stream: cuts it by content and stores the chunks that the parent does not have.

Boundaries come from FastCDC (the fastcdc library: at least 64 KiB, 256 KiB on average, at most 1 MiB). The library has
no key, so boundaries depend only on the content. They are not relied on as a secret: packs reveal neither the number
nor the lengths of the frames in them. A chunk is a frame of kind 2, identified by that frame's keyed digest. Chunks are
compared with those of the same stream in the parent and with earlier ones of the same stream, not with other streams,
so no global index is needed.
"""

from __future__ import annotations

import io
import threading
from array import array
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import zstandard

from dbguardd.errors import SourceChanged
from dbguardd.repository.chunks import FlowMap, FlowRoot
from dbguardd.repository.frames import CHUNK, FRAME_LIMIT, ROOT, Digests, Frame, compress
from dbguardd.repository.paged import MAP_LEVEL, ROOT_FRAMES, Saved
from dbguardd.repository.writing import PackHandle, PackWriter

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST, AVERAGE, MOST = 64 << 10, 256 << 10, FRAME_LIMIT
_BUFFER = 4 << 20
_AHEAD = 8


Found = tuple[bytes, Frame | None, int]
"""Digest of a chunk, its frame unless it is known, its length."""


class FlowSaver(io.RawIOBase):
    """The file object that an engine writes one flow stream into."""

    def __init__(
        self,
        writer: PackWriter,
        digests: Digests,
        name: str,
        *,
        level: int,
        parent: FlowMap | None,
        progress: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._writer, self._digests, self._stream_name, self._level = writer, digests, name, level
        self._parent, self._progress = parent, progress
        self._buffer = bytearray()
        self._under_way: deque[Future[Found]] = deque()
        self._own = threading.local()
        self._known: dict[bytes, tuple[str | PackHandle, int]] = {}
        if parent is not None:
            self._known.update(parent.known())
        self._chunks: list[tuple[bytes, int, str | PackHandle, int]] = []
        self._size = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Accept bytes; raises what the storage raises, and Cancelled."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), _BUFFER):
            self._buffer += view[at : at + _BUFFER]
            if len(self._buffer) >= _BUFFER:
                self._cut(last=False)
        self._size += len(view)
        self._progress(len(view))
        return len(view)

    def finish(self) -> Saved:
        """Store the rest and the list of chunks."""
        if self.closed:
            raise SourceChanged(f"{self._stream_name}: the stream was closed before its end")
        self._cut(last=True)
        while self._under_way:
            self._collect()
        hashed = self._digests.stream(self._size)
        hashed.update(b"".join([chunk[0] for chunk in self._chunks]))
        digest = hashed.digest()
        if self._parent is not None and digest == self._parent.root.digest:
            return Saved(self._size, digest, None, tuple(self._parent.root.names), True, self._size)
        return self._list(digest)

    def _cut(self, *, last: bool) -> None:
        from fastcdc.fastcdc_cy import fastcdc_cy  # noqa: PLC0415 - it imports click: only when a flow is written

        data = bytes(self._buffer)
        cuts = [(chunk.offset, chunk.length) for chunk in fastcdc_cy(data, LEAST, AVERAGE, MOST)]
        if not last:
            cuts.pop()  # more bytes may move its end
        done = 0
        for offset, length in cuts:
            done = offset + length
            self._under_way.append(self._writer.submit(self._examine, data[offset:done]))
            while len(self._under_way) > _AHEAD:
                self._collect()
        del self._buffer[:done]

    def _examine(self, data: bytes) -> Found:
        digest = self._digests.frame(self._digests.parts(data), len(data))
        if digest in self._known:
            return digest, None, len(data)
        if not hasattr(self._own, "squeezer"):
            self._own.squeezer = zstandard.ZstdCompressor(level=self._level)
        frame = compress(CHUNK, data, self._digests, self._own.squeezer)
        return frame.digest, frame, len(data)

    def _collect(self) -> None:
        digest, frame, length = self._under_way.popleft().result()
        place = self._known.get(digest)
        if place is None and frame is not None:
            place = self._known[digest] = self._writer.add(frame)
            if self._writer.full():
                self._writer.flush()
        if place is None:
            raise SourceChanged(f"{self._stream_name}: a chunk was lost on the way")
        self._chunks.append((digest, length, *place))

    def _list(self, digest: bytes) -> Saved:
        self._writer.reserve(ROOT_FRAMES)  # the currently open pack must be the one with the list
        numbers: dict[str | PackHandle, int] = {}
        packs = array("I", [numbers.setdefault(pack, len(numbers)) for _, _, pack, _ in self._chunks])
        root = FlowRoot(
            self._size,
            digest,
            [pack if isinstance(pack, str) else "" if pack.open else pack.name() for pack in numbers],
            b"".join([chunk[0] for chunk in self._chunks]),
            array("I", [chunk[1] for chunk in self._chunks]),
            packs,
            array("H", [chunk[3] for chunk in self._chunks]),
        ).encode()
        squeezer, parts = zstandard.ZstdCompressor(level=MAP_LEVEL), range(0, len(root), FRAME_LIMIT)
        frames = [compress(ROOT, root[at : at + FRAME_LIMIT], self._digests, squeezer) for at in parts]
        place = self._writer.add_all(frames)
        inherited = any([isinstance(pack, str) for pack in numbers])
        kept = sum([length for _, length, pack, _ in self._chunks if isinstance(pack, str)])
        return Saved(self._size, digest, place, tuple(numbers), inherited, kept)
