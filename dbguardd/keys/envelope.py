"""Seals a secret under a key: AES-256-GCM that commits to its key, so that a wrong key does not look like damage.

Bytes: magic "dbgwrap1" | u16 length of header | header | salt 32 | commitment 32 | ciphertext and tag | SHA-256 32.
encryption key || commitment = HKDF-SHA256(key, salt, "dbguard/v1/wrap" || u16 length of header || header || context).
The header is plaintext: what is needed to find the key (a kind, parameters). Each seal has a fresh salt and so a fresh
encryption key; therefore the nonce is constant. The final SHA-256 does not protect; it only distinguishes "damaged"
from "sealed with another key or for another repository".
"""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dbguardd.errors import Damaged, KeyRefused

_MAGIC = b"dbgwrap1"
_NONCE = bytes(12)
_MOST = 64 << 10  # bytes of a wrapped secret; bounds the parsing


def seal(key: bytes, header: bytes, secret: bytes, context: bytes) -> bytes:
    """Return `secret` sealed under `key` (32 bytes), bound to `header` and `context`."""
    salt = os.urandom(32)
    encryption, commitment = _derive(key, salt, header, context)
    front = _MAGIC + len(header).to_bytes(2) + header + salt + commitment
    body = front + AESGCM(encryption).encrypt(_NONCE, secret, front)
    return body + hashlib.sha256(body).digest()


def header_of(sealed: bytes, what: str) -> bytes:
    """Return the header of a sealed secret, not yet authenticated. Raises Damaged; `what` names the object."""
    return _parse(sealed, what)[0]


def unseal(key: bytes, sealed: bytes, context: bytes, what: str) -> bytes:
    """Return the secret. Raises KeyRefused if key or context differ, Damaged if the bytes are not those sealed."""
    header, salt, commitment, front, ciphertext = _parse(sealed, what)
    encryption, expected = _derive(key, salt, header, context)
    if not hmac.compare_digest(commitment, expected):
        raise KeyRefused(f"{what}: sealed with another key, or for another repository")
    try:
        return AESGCM(encryption).decrypt(_NONCE, ciphertext, front)
    except InvalidTag as error:
        raise Damaged(f"{what}: changed after it was sealed") from error


def _derive(key: bytes, salt: bytes, header: bytes, context: bytes) -> tuple[bytes, bytes]:
    info = b"dbguard/v1/wrap" + len(header).to_bytes(2) + header + context
    both = HKDF(SHA256(), 64, salt, info).derive(key)
    return both[:32], both[32:]


def _parse(sealed: bytes, what: str) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    length = int.from_bytes(sealed[8:10])
    front = 10 + length + 64
    body, checksum = sealed[:-32], sealed[-32:]
    if not (sealed.startswith(_MAGIC) and front + 16 <= len(body) and len(sealed) <= _MOST):
        raise Damaged(f"{what}: not a wrapped key", detail=f"{len(sealed)} bytes")
    if not hmac.compare_digest(hashlib.sha256(body).digest(), checksum):
        raise Damaged(f"{what}: the checksum does not fit", detail=f"{len(sealed)} bytes")
    salt, commitment = body[10 + length : 42 + length], body[42 + length : front]
    return body[10 : 10 + length], salt, commitment, body[:front], body[front:]
