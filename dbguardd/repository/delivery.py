"""Delivers a stream: in order to a reader, or out of order into a file or over another state, two threads ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock, local
from typing import Protocol, TypeVar

from blake3 import blake3

from dbguardd.durable import write_at
from dbguardd.errors import FULL, Damaged, GuardError, NoSpace, ObjectMissing, Unreachable
from dbguardd.frozen import frozen

THREADS = 2
_AHEAD = 3
_BEHIND = 32 << 20  # bytes that may be waiting for the disk

T = TypeVar("T")

Old = Callable[[int, int], memoryview]
"""Reads `length` bytes from a place; they are valid until its next call."""

Piece = bytes | bytearray | memoryview


@frozen
class Batch:
    """Some MiB of a stream, checked, starting at byte `start`. A piece that is a number means that many zeros."""

    start: int
    pieces: Sequence[Piece | int]
    digests: bytes  # input for the digest of the stream


class Source(Protocol):
    """A stream in the repository. Any thread may assemble() any batch."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def digest(self) -> bytes: ...  # noqa: D102

    def hash(self) -> blake3:
        """Return the hash that takes the digests of all batches, in order."""

    def batches(self) -> Iterable[range]:
        """Yield the arguments for assemble(), in order."""

    def assemble(self, numbers: range) -> Batch:
        """Return a batch. Raises Damaged, ObjectMissing, Unreachable."""


class DeltaSource(Source, Protocol):
    """A stream that can be compared with another state of itself without being fetched."""

    def differing(self, numbers: range, old: Old, known: bytes) -> tuple[Sequence[tuple[int, Piece]], bytes]:
        """Return where a batch differs from the file that `old` reads: each new piece with its place, and the digests.

        The file is not read where digests() of another state, given as `known`, are the same. Raises like assemble().
        """

    def digests(self, numbers: range) -> bytes:
        """Return the digests of a batch, as far as the stream goes."""

    def span(self, numbers: range) -> tuple[int, int]:
        """Return where a batch lies: its first byte, and its length."""


def stream(source: Source, progress: Callable[[int], None]) -> Generator[Piece, None, None]:
    """Yield all bytes in order; the last batch only once the digest of the whole stream is confirmed."""
    digest, waiting = source.hash(), Batch(0, (), b"")
    for batch in _ahead(source, source.assemble):
        yield from _filled(waiting)
        progress(batch.start)
        digest.update(batch.digests)
        waiting = batch
    _confirm(source, digest)
    yield from _filled(waiting)


def deliver(source: Source, file: int, progress: Callable[[int], None]) -> int:
    """Write all bytes into a regular file, replacing its content; zeros become holes. Return the size.

    An exception from `progress` ends it.
    """
    _truncate(source, file)
    digest, one_writer = source.hash(), Lock()

    def write(numbers: range) -> tuple[int, bytes]:
        batch = source.assemble(numbers)
        with one_writer:  # two writers would spin on the inode lock: twice the processor time of the whole restore
            _write(source, file, batch)
        return batch.start, batch.digests

    for start, digests in _ahead(source, write):
        progress(start)
        digest.update(digests)
    _confirm(source, digest)
    return source.size


def deliver_delta(
    source: DeltaSource,
    file: int,
    progress: Callable[[int], None],
    known: DeltaSource | None = None,
    doubt: Callable[[GuardError], None] = lambda _: None,
) -> int:
    """Make a regular file equal to the stream, writing only where it differs. Return the size. See deliver().

    `known` is the content of the file a moment ago, if the size is the same: then only what differs is read. If `known`
    is damaged somewhere the file is read there, and `doubt` is called, possibly from several threads. A file that is
    already equal keeps its times.
    """
    digest, one_writer, own = source.hash(), Lock(), local()
    size = os.fstat(file).st_size
    known = known if known is not None and size == known.size else None
    if known is not None and (known.size, known.digest) == (source.size, source.digest):
        return source.size
    try:
        if size != source.size:
            os.ftruncate(file, source.size)
    except OSError as error:
        raise refused(source.name, error, f"{source.size} bytes") from error

    def write(numbers: range) -> tuple[int, bytes]:
        there = b""
        try:
            there = known.digests(numbers) if known is not None else b""
        except (Damaged, ObjectMissing) as error:
            doubt(error)
        pieces, digests = source.differing(numbers, lambda at, length: _there(source, file, at, length, own), there)
        with one_writer:
            for at, piece in pieces:
                _pwrite(source, file, [piece], at)
        return source.span(numbers)[0], digests

    for start, digests in _ahead(source, write):
        progress(start)
        digest.update(digests)
    _confirm(source, digest)
    return source.size


def _there(source: Source, file: int, start: int, length: int, own: local) -> memoryview:
    """Read into the buffer of this thread: allocating memory for each batch would cost more than reading."""
    if len(getattr(own, "buffer", b"")) < length:
        own.buffer = memoryview(bytearray(length))
    view: memoryview = own.buffer[:length]
    done = 0
    try:
        while done < length and (count := os.preadv(file, [view[done:]], start + done)):
            done += count
    except OSError as error:
        raise refused(source.name, error, f"{length} bytes at {start} to compare with") from error
    return view


def _ahead(source: Source, work: Callable[[range], T]) -> Iterator[T]:
    under_way: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(THREADS, "deliver")
    try:
        for numbers in source.batches():
            under_way.append(pool.submit(work, numbers))
            if len(under_way) > _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _filled(batch: Batch) -> Iterator[Piece]:
    for piece in batch.pieces:
        yield bytes(piece) if isinstance(piece, int) else piece


def _write(source: Source, file: int, batch: Batch) -> None:
    start, at, waiting = batch.start, batch.start, list[Piece]()
    for piece in batch.pieces:
        if isinstance(piece, int):
            _pwrite(source, file, waiting, start)
            at += piece
            start, waiting = at, []
        else:
            at += len(piece)
            waiting.append(piece)
    _pwrite(source, file, waiting, start)
    # Starts writing these bytes to disk and drops older ones from the cache: the final fsync finds little left to do,
    # and the cache stays with the applications.
    behind = max(0, batch.start - _BEHIND)
    with suppress(OSError):  # only advice: no restore fails because of it
        os.posix_fadvise(file, behind, at - behind, os.POSIX_FADV_DONTNEED)


def _pwrite(source: Source, file: int, pieces: Sequence[Piece], start: int) -> None:
    wanted = sum([len(piece) for piece in pieces])
    try:
        done = os.pwritev(file, pieces, start) if pieces else 0
        if done < wanted:
            write_at(file, memoryview(b"".join(pieces))[done:], start + done)
    except OSError as error:
        raise refused(source.name, error, f"{wanted} bytes at {start}") from error


def _truncate(source: Source, file: int) -> None:
    try:
        os.ftruncate(file, 0)
        os.ftruncate(file, source.size)
    except OSError as error:
        raise refused(source.name, error, f"{source.size} bytes") from error


def _confirm(source: Source, digest: blake3) -> None:
    if digest.digest() != source.digest:
        raise Damaged(
            f"{source.name}: the stream differs from what was backed up",
            detail=f"digest {digest.hexdigest()} instead of {source.digest.hex()}",
        )


def refused(name: str, error: OSError, what: str) -> NoSpace | Unreachable:
    """Return the error for a failed write of stream `name` into a file."""
    kind = NoSpace if error.errno in FULL else Unreachable
    return kind(f"{name}: the target cannot be written", detail=f"{what}: {error}")
