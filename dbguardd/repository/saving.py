"""A backup being made: the Sink that an engine writes into. The backup exists once seal() has returned."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from dbguardd.errors import (
    Damaged,
    GuardError,
    ObjectMissing,
    SourceChanged,
    SourceDenied,
    SourceInvalid,
    Unsupported,
    Usage,
)
from dbguardd.flow import Facts
from dbguardd.lean import give_back
from dbguardd.repository.chunks import FlowMap
from dbguardd.repository.examine import Examiner
from dbguardd.repository.flowing import FlowSaver
from dbguardd.repository.frames import Digests
from dbguardd.repository.growing_file import GrowingFile
from dbguardd.repository.model import Backup, Root, Stream, encode
from dbguardd.repository.paged import PagesSaver, Saved
from dbguardd.repository.pagemap import EXTENT, UNIT, PageMap
from dbguardd.repository.reading import PackReader
from dbguardd.repository.tree import open_flow, open_pages, stream_needs
from dbguardd.repository.writing import PACK_SIZE, PackHandle, PackWriter

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain
    from dbguardd.storage.base import Storage

Publish = Callable[[Backup, AbstractSet[str]], Backup]
"""Commits a backup that needs these packs (names in hex)."""

_PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))
_MORE_PACKS = 128
_MAP_CACHE = 4 << 20
_NAME, _FACTS = 1024, 64 << 10
_MOST = 4 << 40  # bytes of a paged stream: its map takes memory, and a sparse file of any size costs its owner nothing


class Saving:
    """Saves one backup; flow.Sink. For one thread. A context manager: leaving it without seal() leaves no backup.

    `draft` is the backup with everything known beforehand; its streams, sizes, kind and facts are filled in. `progress`
    is called with the bytes of the source processed so far. Raises what the storage raises, Cancelled when `cancelled`
    returns true, SourceChanged. An unreadable parent does not prevent the backup: what it should have provided is
    stored again, and the error is added to `doubts`.
    """

    def __init__(
        self,
        storage: Storage,
        domain: Domain,
        draft: Backup,
        *,
        parent: Backup | None,
        publish: Publish,
        level: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda done_bytes: None,
        randomness: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._draft, self._parent, self._publish, self._level = draft, parent, publish, level
        self._writer = PackWriter(storage, domain, cancelled=cancelled, randomness=randomness)
        self._reader = PackReader(storage, domain, cache=_MAP_CACHE)
        self._digests = Digests(domain)
        self._old = {stream.name: stream for stream in parent.streams} if parent else {}
        self._streams: dict[str, tuple[Stream, tuple[PackHandle, int] | None]] = {}
        self._needs: set[str | PackHandle] = set()
        self._inherited = False
        self._kept_bytes = 0
        self._progress = progress
        self.written_bytes = 0
        self.admits: Callable[[Facts], None] = lambda facts: None
        """Called with the facts known beforehand; raises if the backup is to be refused."""
        self.doubts: list[GuardError] = []

    def __enter__(self) -> Saving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)
        self._reader.forget()
        give_back()

    def admit(self, facts: Facts) -> None:
        """Let the job refuse the backup; see flow.Sink."""
        self.admits(facts)

    def parent(self) -> Facts:
        """Return the facts of the parent; see flow.Sink."""
        return {} if self._parent is None else self._parent.raw_facts

    @contextmanager
    def write(self, name: str, *, stamp: str = "") -> Iterator[BinaryIO]:
        """Open a flow stream; see flow.Sink."""
        self._new(name)
        flow = FlowSaver(
            self._writer,
            self._digests,
            name,
            level=self._level,
            parent=self._parent_flow(name),
            progress=self._count,
        )
        yield cast(BinaryIO, flow)
        self._keep(Stream(name, "flow", 0, 0, "", stamp, Root("", 0)), flow.finish())

    def adopt(
        self,
        name: str,
        file: int,
        page_size: int,
        *,
        stamp: str = "",
        filled: Iterable[int] | None = None,
        on_demand: bool = False,  # it is always set
        changing: bool = False,
        changed: bytes | None = None,
    ) -> None:
        """Save a paged stream; see flow.Sink.

        Raises SourceChanged if a file that is not `changing` becomes shorter or longer, SourceInvalid if it is no
        regular file, Unsupported above 4 TiB.
        """
        self._new(name)
        if page_size not in _PAGE_SIZES:
            raise Usage(f"{name}: invalid page size of {page_size} bytes", detail=f"one of {_PAGE_SIZES}")
        size = _size(name, file)
        if changed is not None and self._is_unchanged(name, size, page_size, changed) and self._inherit(name, stamp):
            return
        filling, unit = GrowingFile(size, filled, changing=changing), max(page_size, UNIT)
        examiner = Examiner(file, name, self._digests, filling=filling, unit=unit, level=self._level, changed=changed)
        done = self.written_bytes
        try:
            saved = self._save_pages(examiner, page_size, self._parent_pages(name, page_size))
            filling.finish()  # not earlier: damage in the parent may show at the end, and then everything is read again
        except BaseException:
            self.written_bytes = done
            raise
        if (now := _size(name, file)) != size and not changing:
            raise SourceChanged(f"{name}: its size changed during the backup", detail=f"from {size} to {now} bytes")
        self._keep(Stream(name, "paged", 0, page_size, "", stamp, Root("", 0)), saved)

    def reuse(self, name: str, stamp: str) -> bool:
        """Reuse a stream of the parent; see flow.Sink."""
        self._new(name)
        old = self._old.get(name)
        return old is not None and stamp != "" and old.stamp == stamp and self._inherit(name, stamp)

    def seal(self, facts: Facts, created_at: datetime | None = None) -> Backup:
        """Commit: wait until all packs are durable and read back, then publish the manifest. Call it once.

        `created_at` is the moment of the data, if it differs from that of the draft.

        Raises Usage if `facts` exceed 64 KiB: every list of backups reads them.
        """
        if (size := len(encode(facts))) > _FACTS:
            raise Usage(f"{self._draft.database}: the facts of a backup have {size} bytes", detail=f"at most {_FACTS}")
        self._writer.finish()
        streams = []
        for stream, place in self._streams.values():
            root = Root(place[0].name(), place[1]) if place else stream.root
            streams.append(dataclasses.replace(stream, root=root))
        packs = {pack if isinstance(pack, str) else pack.name() for pack in self._needs}
        inherited = self._inherited and self._parent is not None
        backup = dataclasses.replace(
            self._draft,
            created_at=created_at or self._draft.created_at,
            kind="incremental" if inherited else "full",
            parent=self._parent.id if inherited and self._parent else None,
            raw_facts=dict(facts),
            streams=tuple(streams),
            source_bytes=sum([stream.size for stream in streams]),
            stored_bytes=self._writer.stored_bytes,
            packs=len(packs),
        )
        return self._publish(backup, packs)

    def kept_bytes(self, parent: str) -> int:
        """Return how many bytes are unchanged since the backup `parent`; 0 if this one does not build on it."""
        return self._kept_bytes if self._parent is not None and self._parent.id == parent else 0

    def _is_unchanged(self, name: str, size: int, page_size: int, changed: bytes) -> bool:
        old = self._old.get(name)
        same = old is not None and (old.kind, old.size, old.page_size) == ("paged", size, page_size)
        return same and len(changed) * 8 * EXTENT >= size and not any(changed)

    def _inherit(self, name: str, stamp: str) -> bool:
        """Take a stream over from the parent without reading anything of it; False if its map is unreadable."""
        old = self._old[name]
        try:
            self._needs |= stream_needs(self._reader, old)
        except (Damaged, ObjectMissing) as error:
            self.doubts.append(error)
            return False
        self._inherited = True
        self._kept_bytes += old.size
        self._streams[name] = (dataclasses.replace(old, stamp=stamp), None)
        self._count(old.size)
        return True

    def _count(self, size: int) -> None:
        self.written_bytes += size
        self._progress(self.written_bytes)

    def _new(self, name: str) -> None:
        if len(name) > _NAME:
            raise Usage(f"{name[:80]}…: the name of a stream has {len(name)} characters", detail=f"at most {_NAME}")
        if name in self._streams:
            raise Usage(f"{name}: the backup already has a stream of this name")

    def _keep(self, stream: Stream, saved: Saved) -> None:
        root = stream.root if saved.place else self._old[stream.name].root
        kept = dataclasses.replace(stream, size=saved.size, digest=saved.digest.hex(), root=root)
        self._streams[stream.name] = (kept, saved.place)
        self._needs |= {*saved.needs, saved.place[0] if saved.place else root.pack}
        self._inherited |= saved.inherited
        self._kept_bytes += saved.kept_bytes

    def _save_pages(self, examiner: Examiner, page_size: int, parent: PageMap | None) -> Saved:
        done = self.written_bytes
        try:
            return PagesSaver(self._writer, examiner, page_size, parent, self._count).run()
        except (Damaged, ObjectMissing) as error:
            if parent is None or self._writer.failed:
                raise
            self.doubts.append(error)
        self.written_bytes = done
        return PagesSaver(self._writer, examiner, page_size, None, self._count).run()

    def _parent_flow(self, name: str) -> FlowMap | None:
        old = self._old.get(name)
        if old is None or old.kind != "flow":
            return None
        try:
            flow = open_flow(self._reader, old)
        except (Damaged, ObjectMissing) as error:
            self.doubts.append(error)
            return None
        return None if scattered(len(flow.root.names), -(-old.size // PACK_SIZE), 0, 0) else flow

    def _parent_pages(self, name: str, page_size: int) -> PageMap | None:
        old = self._old.get(name)
        if old is None or old.kind != "paged" or old.page_size != page_size:
            return None
        try:
            pages = open_pages(self._reader, old)
        except (Damaged, ObjectMissing) as error:
            self.doubts.append(error)
            return None
        held = sum([use.size for use in pages.root.packs.values()])
        base = pages.root.base
        return None if scattered(len(pages.root.packs), -(-base // PACK_SIZE), held, base) else pages


def scattered(packs: int, base_packs: int, held: int, base: int) -> bool:
    """Return whether a stream has become too scattered to build on, so that everything is stored again.

    `packs` are needed by the parent, which began as a full backup of `base` bytes in `base_packs`; the packs needed now
    contain `held` bytes in total. Too much is 128 packs more than at the beginning (each costs a restore three
    requests), or more than twice the bytes of the beginning plus 16 MiB (they cannot be deleted).
    """
    return packs > base_packs + _MORE_PACKS or held > 2 * base + 2 * PACK_SIZE


def _size(name: str, file: int) -> int:
    try:
        found = os.fstat(file)
    except OSError as error:
        raise SourceDenied(f"{name}: cannot be read", detail=error.strerror or str(error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceInvalid(f"{name}: not a regular file", detail=stat.filemode(found.st_mode))
    if found.st_size > _MOST:
        raise Unsupported(f"{name}: too large", detail=f"{found.st_size} bytes, at most {_MOST}")
    return found.st_size
