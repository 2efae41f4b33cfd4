"""A passphrase: Argon2id derives from it the key that wraps the root key."""

from __future__ import annotations

import os
import unicodedata
from typing import Self

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from dbguardd.errors import Damaged, KeyRefused, KeyUnsafe
from dbguardd.frozen import frozen
from dbguardd.keys.envelope import header_of, seal, unseal
from dbguardd.keys.secret import Secret

SHORTEST = 12
"""The least number of characters in a passphrase: an attacker who has the storage can guess without limit."""

_MAGIC = b"passphrase1"


@frozen
class Cost:
    """The cost of one guess. The default is the second recommendation of RFC 9106: 64 MiB, about 0.2 s."""

    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4

    def encode(self) -> bytes:
        """Return 12 bytes: three big-endian u32."""
        return b"".join(number.to_bytes(4) for number in (self.memory_kib, self.iterations, self.lanes))

    @classmethod
    def decode(cls, data: bytes, what: str) -> Self:
        """Parse these 12 bytes. Raises Damaged if the cost is unreasonably high."""
        cost = cls(*(int.from_bytes(data[place : place + 4]) for place in (0, 4, 8)))
        if not (1 <= cost.lanes <= 16 and 1 <= cost.iterations <= 16 and 8 * cost.lanes <= cost.memory_kib <= 1 << 20):
            raise Damaged(f"{what}: the parameters of the passphrase are out of bounds", detail=str(cost))
        return cost


class Passphrase:
    """Opens the repository anywhere. Wrapping has the cost `cost`, unwrapping the stored one."""

    kind = "passphrase"
    label = "passphrase"
    offline = True

    def __init__(self, passphrase: Secret, *, cost: Cost | None = None) -> None:
        self._passphrase = _normal(passphrase)
        self._cost = cost or Cost()

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Seal `secret`. Raises KeyUnsafe if the passphrase is too short to protect anything."""
        if (length := len(self._passphrase.reveal().decode(errors="replace"))) < SHORTEST:
            raise KeyUnsafe("passphrase: too short", detail=f"{length} characters, at least {SHORTEST}")
        salt = os.urandom(16)
        header = _MAGIC + self._cost.encode() + salt
        return seal(self._key(salt, self._cost), header, secret, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        header = header_of(wrapped, self.label)
        if not header.startswith(_MAGIC) or len(header) != len(_MAGIC) + 28:
            raise KeyRefused("passphrase: not wrapped by a passphrase")
        cost, salt = Cost.decode(header[-28:-16], self.label), header[-16:]
        return unseal(self._key(salt, cost), wrapped, context, self.label)

    def _key(self, salt: bytes, cost: Cost) -> bytes:
        memory, iterations, lanes = cost.memory_kib, cost.iterations, cost.lanes
        kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
        return kdf.derive(self._passphrase.reveal())


def _normal(passphrase: Secret) -> Secret:
    # The same text typed on another system may use other code points; bytes that are not UTF-8 stay unchanged.
    try:
        return Secret(unicodedata.normalize("NFC", passphrase.reveal().decode()).encode())
    except UnicodeDecodeError:
        return passphrase
