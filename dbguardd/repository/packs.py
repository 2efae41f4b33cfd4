"""Packs: objects of some MiB that contain many sealed frames. Their format, sealing and opening; without threads.

The name of a pack is packs/AA/NAME: NAME is the SHA-256 of all its bytes in hex, AA its first two digits. Integers are
big-endian::

    0    8   magic "DBGPACK1"
    8    16  repository id
    24   16  domain id
    40   32  salt = HMAC-SHA256(derive("salt"), 32 random bytes || BLAKE3(records of the trailer
                 || BLAKE3(plaintext || digest) of each frame))
    72   32  key commitment
    104      frames, one after the other: AES-256-GCM ciphertext and 16-byte tag
             trailer: ciphertext and tag of one record of 42 bytes per frame, in order:
                 0   32  digest of the frame
                 32  1   kind: 1 pages, 2 chunk of a flow, 3 leaves of a page map, 4 root of a stream
                 33  1   1 if the plaintext of the frame is a zstd frame, else 0
                 34  4   bytes of the frame in the pack, with its tag
                 38  4   bytes of the frame when decompressed, at most 1048576
    -12  4   bytes of the trailer, with its tag
    -8   8   "DBGEND01"

    key || commitment = HKDF-Expand-SHA256(derive("pack"), "pack" || salt, 64)
    frame i:  nonce = u32 0 || u64 i;  additional data = the 104 bytes || u64 i || kind || zstd || u32 length || digest
    trailer:  nonce = u32 1 || u64 0;  additional data = the 104 bytes || "trailer"

There is no slack: the frames exactly fill the space between header and trailer. A pack has at most 65535 frames. The
salt depends on every encrypted byte as well as on the random bytes. So even if the random generator repeats itself (on
a cloned machine), two plaintexts never share a key and nonce; for example the same pages compressed by two levels or
versions of zstd, which have the same digests. The commitment tells a wrong key from damage before anything is
decrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from struct import Struct, iter_unpack
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from dbguardd.errors import Damaged, KeyRefused
from dbguardd.frozen import frozen
from dbguardd.repository.frames import FRAME_LIMIT, Digests, Frame, check, decompress

if TYPE_CHECKING:
    from dbguardd.repository.seal import Domain

MAGIC, END = b"DBGPACK1", b"DBGEND01"
HEADER = 104
SEAL = 16
TAIL = 12
FRAMES_LIMIT = 65535

_RECORD = Struct(">32sBBII")
_PLACE = Struct(">QBBI32s")
_NONCE = Struct(">IQ")
_TAIL = Struct(">I8s")


def object_name(pack: str) -> str:
    """Return the name of the object in the storage."""
    return f"packs/{pack[:2]}/{pack}"


@frozen
class Record:
    """What the trailer says about one frame; `start` is its offset in the pack."""

    digest: bytes
    kind: int
    compressed: bool
    start: int
    stored: int
    length: int


def seal_pack(domain: Domain, frames: Sequence[Frame], randomness: Callable[[int], bytes] = os.urandom) -> bytearray:
    """Return the bytes of the pack that contains `frames`."""
    records = b"".join([_RECORD.pack(f.digest, f.kind, f.compressed, len(f.body) + SEAL, f.length) for f in frames])
    content = blake3(records)
    content.update(b"".join([frame.check for frame in frames]))
    salt = hmac.digest(domain.derive(b"salt"), randomness(32) + content.digest(), "sha256")
    key, commitment = _key(domain, salt)
    header = MAGIC + domain.repo_id + domain.id + salt + commitment
    cipher = AESGCM(key)
    size = HEADER + sum([len(frame.body) for frame in frames]) + SEAL * (len(frames) + 1) + len(records) + TAIL
    pack = bytearray(size)
    pack[:HEADER] = header
    view, at = memoryview(pack), HEADER
    for number, frame in enumerate(frames):
        end = at + len(frame.body) + SEAL
        place = header + _PLACE.pack(number, frame.kind, frame.compressed, frame.length, frame.digest)
        cipher.encrypt_into(_NONCE.pack(0, number), frame.body, place, view[at:end])
        at = end
    trailer = cipher.encrypt(_NONCE.pack(1, 0), records, header + b"trailer")
    pack[at:] = trailer + _TAIL.pack(len(trailer), END)
    return pack


class Pack:
    """One opened pack: its key and its records. It is opened from its two ends; frames are passed in one by one.

    Raises KeyRefused if the commitment shows that it was sealed with another key, Damaged for everything else.
    """

    def __init__(self, domain: Domain, name: str, size: int, header: bytes, tail: bytes) -> None:
        self.name, self.size = name, size
        self._header = header
        if len(header) != HEADER or header[:8] != MAGIC or tail[-8:] != END:
            raise self._damaged("it does not begin and end like a pack")
        if header[8:40] != domain.repo_id + domain.id:
            raise self._damaged(f"it belongs to {header[8:40].hex()}, not to {(domain.repo_id + domain.id).hex()}")
        key, commitment = _key(domain, header[40:72])
        if not hmac.compare_digest(commitment, header[72:]):
            raise KeyRefused(
                f"pack {name}: sealed with another key", detail=f"domain {domain.id.hex()} {domain.name!r}"
            )
        self._cipher = AESGCM(key)
        length = trailer_length(tail)
        if not SEAL <= length <= min(len(tail), size - HEADER) - TAIL:
            raise self._damaged(f"its trailer would have {length} bytes")
        try:
            plain = self._cipher.decrypt(_NONCE.pack(1, 0), tail[-TAIL - length : -TAIL], header + b"trailer")
        except InvalidTag as error:
            raise self._damaged("its trailer does not open") from error
        self.records = self._parse(plain, size - TAIL - length)

    def _parse(self, plain: bytes, end: int) -> tuple[Record, ...]:
        if len(plain) % _RECORD.size:
            raise self._damaged("its trailer ends within a record")
        records: list[Record] = []
        at = HEADER
        for digest, kind, compressed, stored, length in iter_unpack(_RECORD.format, plain):
            if stored < SEAL or length > FRAME_LIMIT or compressed > 1 or (not compressed and stored - SEAL != length):
                raise self._damaged(f"frame {len(records)} has impossible sizes, {stored} and {length} bytes")
            records.append(Record(digest, kind, bool(compressed), at, stored, length))
            at += stored
        if at != end:
            raise self._damaged(f"its frames end at {at}, its trailer starts at {end}")
        return tuple(records)

    def body(self, number: int, sealed: bytes | memoryview) -> bytes:
        """Decrypt frame `number`; its body may still be compressed. Raises Damaged."""
        record = self.records[number]
        place = _PLACE.pack(number, record.kind, record.compressed, record.length, record.digest)
        try:
            return self._cipher.decrypt(_NONCE.pack(0, number), sealed, self._header + place)
        except InvalidTag as error:
            raise self._damaged(f"frame {number} at {record.start}, {record.stored} bytes, does not open") from error

    def open(self, number: int, sealed: bytes | memoryview, digests: Digests) -> tuple[bytes, bytes]:
        """Return plaintext and part digests of frame `number` from its stored bytes. Raises Damaged."""
        record, data = self.records[number], self.body(number, sealed)
        if record.compressed:
            data = decompress(data, record.length, f"pack {self.name}", digests.unpacker)
        parts = digests.parts(data)
        if digests.frame(parts, len(data)) != record.digest:
            raise self._damaged(f"frame {number} does not match its digest")
        return data, parts

    def _damaged(self, detail: str) -> Damaged:
        return Damaged(f"pack {self.name}: damaged", detail=detail, facts={"object": object_name(self.name)})


def trailer_length(tail: bytes | bytearray) -> int:
    """Return the length of the trailer, from the last 12 bytes of a pack."""
    length, _end = _TAIL.unpack(tail[-TAIL:])
    return int(length)


def prove(domain: Domain, pack: bytearray, name: str, checks: Sequence[bytes]) -> None:
    """Open the sealed pack again, and compare every frame with its check. Raises Damaged.

    The content was decompressed, compared and hashed when the frame was made (frames.compress); here the body suffices.
    """
    view = memoryview(pack)
    opened = Pack(domain, name, len(pack), bytes(view[:HEADER]), bytes(view[-TAIL - trailer_length(pack[-TAIL:]) :]))
    found = [
        check(record.digest, opened.body(number, view[record.start : record.start + record.stored]))
        for number, record in enumerate(opened.records)
    ]
    if found != checks:
        raise Damaged(f"pack {name}: damaged", detail="its frames are not those that were sealed")


def pack_name(pack: bytearray | bytes) -> str:
    """Return the name of a pack, from its bytes."""
    return hashlib.sha256(pack).hexdigest()


def _key(domain: Domain, salt: bytes) -> tuple[bytes, bytes]:
    material = HKDFExpand(SHA256(), 64, b"pack" + salt).derive(domain.derive(b"pack"))
    return material[:32], material[32:]
