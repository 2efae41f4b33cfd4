"""A finished backup, for reading: flow.Tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from dbguardd.errors import Damaged, GuardError, NotFound, ObjectMissing, Unsupported
from dbguardd.flow import Facts
from dbguardd.lean import give_back
from dbguardd.repository.chunks import FlowMap, FlowReader
from dbguardd.repository.delivery import Source, deliver, deliver_delta, stream
from dbguardd.repository.extents import PagesReader
from dbguardd.repository.joined import joined
from dbguardd.repository.model import Backup, Stream
from dbguardd.repository.pagemap import PageMap
from dbguardd.repository.reading import PackReader

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain
    from dbguardd.storage.base import Storage


BytesDone = Callable[[int], None]
"""Called with the number of bytes of a stream read so far; if it raises, reading ends."""


def ignore(done_bytes: int) -> None:
    """Ignore progress."""


class Tree:
    """Reads one backup. Raises Damaged, ObjectMissing, KeyRefused, Unreachable before a wrong byte gets out."""

    def __init__(
        self,
        storage: Storage,
        domain: Domain,
        backup: Backup,
        progress: BytesDone = ignore,
        *,
        beside: Tree | None = None,
        there: Tree | None = None,
    ) -> None:
        self._progress, self._there = progress, there
        self._backup, self._domain = backup, domain
        shared = beside is not None and beside._domain == domain
        self._reader: PackReader = beside._reader if beside is not None and shared else PackReader(storage, domain)
        self._streams = {stream.name: stream for stream in backup.streams}
        self._doubts: dict[str, GuardError] = {}

    def __enter__(self) -> Tree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams = {}
        self._reader.forget()
        give_back()

    @property
    def facts(self) -> Facts:
        return self._backup.raw_facts

    def names(self) -> Iterator[str]:
        yield from self._streams

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """Open a stream of either kind for reading from its start. Raises NotFound."""
        pieces = stream(self._source(name), self._progress)
        with closing(pieces), joined(pieces) as file:
            yield file

    def deliver(self, name: str, file: int, *, delta: bool = False) -> int:
        """Write the whole stream into the open file; see flow.Tree. Holes stay holes. Raises NotFound, NoSpace."""
        source = self._source(name)
        if delta and isinstance(source, PagesReader):
            doubt = self._doubt if self._there is None else self._there._doubt
            return deliver_delta(source, file, self._progress, self._known(name), doubt)
        return deliver(source, file, self._progress)

    def pages(self, name: str) -> PagesReader:
        """Open a paged stream for random access: flow.Pages. Raises NotFound, Unsupported, Damaged."""
        source = self._source(name)
        if not isinstance(source, PagesReader):
            raise Unsupported(f"backup {self._backup.id}: {name!r} is a flow stream, which has no pages")
        return source

    def _known(self, name: str) -> PagesReader | None:
        """Return the known content of a stream to be overwritten, if of the same key, so that digests compare."""
        there = self._there
        if there is None or there._domain != self._domain or name not in there._streams:
            return None
        try:
            known = there._source(name)
        except (Damaged, ObjectMissing) as error:
            there._doubt(error)
            return None
        return known if isinstance(known, PagesReader) else None

    @property
    def doubts(self) -> list[GuardError]:
        """Errors in reading this backup while another one was delivered over it."""
        return [*self._doubts.values()]

    def _doubt(self, error: GuardError) -> None:
        self._doubts.setdefault(error.message, error)

    def _source(self, name: str) -> Source:
        found = self._streams.get(name)
        if found is None:
            raise NotFound(
                f"backup {self._backup.id}: has no stream {name!r}", detail=f"it has {', '.join(self._streams)}"
            )
        if found.kind == "paged":
            return PagesReader(open_pages(self._reader, found), name)
        return FlowReader(open_flow(self._reader, found), name)


def open_pages(reader: PackReader, stream: Stream) -> PageMap:
    """Open the page map of a paged stream; it must be the one named by the manifest. Raises Damaged."""
    pages = PageMap(reader, stream.root.pack, stream.root.frame)
    _expect(stream, pages.root.size, pages.root.digest)
    return pages


def open_flow(reader: PackReader, stream: Stream) -> FlowMap:
    """Open the list of chunks of a flow stream; it must be the one named by the manifest. Raises Damaged."""
    flow = FlowMap(reader, stream.root.pack, stream.root.frame)
    _expect(stream, flow.root.size, flow.root.digest)
    return flow


def stream_needs(reader: PackReader, stream: Stream) -> set[str]:
    """Return the names of the packs that a stream needs. Raises Damaged, ObjectMissing."""
    if stream.kind == "paged":
        return {stream.root.pack, *open_pages(reader, stream).names.values()}
    return {stream.root.pack, *open_flow(reader, stream).root.names}


def packs_of(storage: Storage, domain: Domain, backup: Backup) -> frozenset[str]:
    """Return the names (hex) of all packs that a backup needs. Raises Damaged, ObjectMissing."""
    reader = PackReader(storage, domain)
    return frozenset().union(*(stream_needs(reader, stream) for stream in backup.streams))


def _expect(stream: Stream, size: int, digest: bytes) -> None:
    if (size, digest.hex()) != (stream.size, stream.digest):
        raise Damaged(
            f"{stream.name}: its map is not the one that the manifest names",
            detail=f"{size} bytes {digest.hex()} instead of {stream.size} bytes {stream.digest}",
        )
