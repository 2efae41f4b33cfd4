"""Frames: the content of packs, and the keyed digests that identify all content.

A frame is at most 1 MiB of plaintext of one kind, compressed as one zstd frame that states its content size, or stored
uncompressed if that is not larger. Its digest is::

    part(x)  = keyed BLAKE3 of at most 65536 bytes, 16 bytes,  key = derive("part")
    digest   = keyed BLAKE3 of part(0) || part(1) || ... || length of the plaintext as u64, 32 bytes,
               key = derive("frame"); the parts are the plaintext cut every 65536 bytes, the last one may be shorter

So a frame cut from a paged stream also has the digests of its extents: an extent is a part.

A page tag only tells whether a page differs from the same page of the parent. It is the first 8 bytes of the GMAC tag
(AES-256-GCM without plaintext) of the page under derive("tag") and an all-zero nonce. GMAC is a universal hash: an
attacker who does not know the key and never sees a tag (they are stored sealed) cannot make two pages of up to 65536
bytes with equal tags with a probability above 2^-51. The nonce may repeat because the key encrypts nothing. GMAC was
chosen by measurement: it is 2.5 times as fast as keyed BLAKE3 on pages of 4096 bytes.
"""

from __future__ import annotations

import threading
from struct import Struct
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dbguardd.errors import Damaged
from dbguardd.frozen import frozen

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain
    from dbguardd.storage.base import Buffer

PART = 65536
FRAME_LIMIT = 1 << 20
TAG = 8
PAGES, CHUNK, LEAVES, ROOT = 1, 2, 3, 4

_LENGTH = Struct(">Q")
_ZERO_NONCE = bytes(12)


class Digests:
    """The keyed digests of one domain. Several threads may use them at once."""

    def __init__(self, domain: Domain) -> None:
        self._part = domain.derive(b"part")
        self._frame = domain.derive(b"frame")
        self._stream = domain.derive(b"stream")
        self._gmac = AESGCM(domain.derive(b"tag"))
        self._own = threading.local()

    @property
    def unpacker(self) -> zstandard.ZstdDecompressor:
        """A decompressor for the calling thread: creating one costs a fifth of the work it then does."""
        if not hasattr(self._own, "unpacker"):
            self._own.unpacker = zstandard.ZstdDecompressor()
        unpacker: zstandard.ZstdDecompressor = self._own.unpacker
        return unpacker

    def parts(self, data: Buffer) -> bytes:
        """Return the digests of the parts of `data`, 16 bytes each, joined."""
        view, key = memoryview(data), self._part
        return b"".join([blake3(view[at : at + PART], key=key).digest(16) for at in range(0, len(view), PART)])

    def frame(self, parts: bytes, length: int) -> bytes:
        """Return the digest of a frame from its parts."""
        return blake3(parts + _LENGTH.pack(length), key=self._frame).digest()

    def stream(self, size: int) -> blake3:
        """Return a hash that takes the digests of a stream of `size` bytes; its digest identifies the content."""
        return blake3(_LENGTH.pack(size), key=self._stream)

    def tags(self, data: memoryview, unit: int) -> bytes:
        """Return the tags of the pages of `unit` bytes in `data`, 8 bytes each, joined."""
        mac = self._gmac.encrypt
        tags = b"".join([mac(_ZERO_NONCE, b"", data[at : at + unit]) for at in range(0, len(data), unit)])
        return memoryview(tags).cast("Q")[::2].tobytes()  # the first 8 bytes of every 16


@frozen
class Frame:
    """A frame ready to be sealed: `body` will be encrypted; `check` tells whether it is still the verified body."""

    kind: int
    compressed: bool
    length: int  # of the plaintext
    digest: bytes
    body: bytes
    parts: bytes
    check: bytes


def compress(kind: int, data: Buffer, digests: Digests, squeezer: zstandard.ZstdCompressor) -> Frame:
    """Make a frame of `data`. Raises Damaged if the compressed bytes do not decompress to it.

    It is decompressed at once, while the data is at hand: all of it is compared, and the digests are computed from the
    decompressed bytes. The other half of the proof is that the sealed pack opens to the same body: see packs.prove.
    """
    length = len(data)
    body = bytes(memoryview(squeezer.compress(data)))  # the compressor's own buffer has the size of the worst case
    smaller = len(body) < length
    body = body if smaller else bytes(data)
    told = blake3(body)  # before it is decompressed: any later change in it is detected when it is sealed
    opened = decompress(body, length, "a new frame", digests.unpacker) if smaller else body
    if not opened.startswith(data):  # both have that length; comparing a memoryview with == would go byte by byte
        raise Damaged("a new frame: it decompresses to other bytes", detail="the memory or the processor is faulty")
    parts = digests.parts(opened)
    digest = digests.frame(parts, length)
    told.update(digest)
    return Frame(kind, smaller, length, digest, body, parts, told.digest())


def check(digest: bytes, body: Buffer) -> bytes:
    """Return a value that shows whether a body is still the one verified to have this digest."""
    told = blake3(body)
    told.update(digest)
    return told.digest()


def decompress(body: Buffer, length: int, name: str, unpacker: zstandard.ZstdDecompressor) -> bytes:
    """Return the plaintext of a compressed frame, never more than `length` bytes. Raises Damaged."""
    try:
        stated = zstandard.frame_content_size(body)  # first, because max_output_size is ignored if this is larger
        if stated != length:
            raise Damaged(f"{name}: a frame has the wrong size", detail=f"expected {length} bytes, it states {stated}")
        data = unpacker.decompress(body, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"{name}: a frame does not decompress", detail=str(error)) from error
    if len(data) != length:
        raise Damaged(f"{name}: a frame has the wrong size", detail=f"expected {length} bytes, got {len(data)}")
    return data
