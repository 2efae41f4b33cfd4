"""A passphrase that people know: Argon2id makes a key of it, which wraps the root key."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from dbguardd.errors import Damaged, KeyRefused, KeyUnsafe
from dbguardd.keys.envelope import header_of, seal, unseal
from dbguardd.keys.secret import Secret

SHORTEST = 12
"""Characters of a passphrase that may wrap a key. Whoever has the storage can guess as long as they like."""

_MAGIC = b"passphrase1"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess costs. The default is the second recommendation of RFC 9106: 64 MiB, about 0.2 s."""

    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4

    def encode(self) -> bytes:
        """Return 12 bytes: three big-endian u32."""
        return b"".join(number.to_bytes(4) for number in (self.memory_kib, self.iterations, self.lanes))

    @classmethod
    def decode(cls, data: bytes, what: str) -> Self:
        """Read them back. Raises Damaged if they would cost more than anyone would have asked for."""
        cost = cls(*(int.from_bytes(data[place : place + 4]) for place in (0, 4, 8)))
        if not (1 <= cost.lanes <= 16 and 1 <= cost.iterations <= 16 and 8 * cost.lanes <= cost.memory_kib <= 1 << 20):
            raise Damaged(f"{what}: the parameters of the passphrase are out of bounds", detail=str(cost))
        return cost


class Passphrase:
    """Opens the repository wherever somebody knows the words. Wrapping costs `cost`, unwrapping what was stored."""

    kind = "passphrase"
    label = "passphrase"
    offline = True

    def __init__(
        self, passphrase: Secret, *, cost: Cost | None = None, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._passphrase = _normal(passphrase)
        self._cost = cost or Cost()
        self._random = random

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Seal `secret`. Raises KeyUnsafe if the passphrase is too short to protect anything."""
        if (length := len(self._passphrase.reveal().decode(errors="replace"))) < SHORTEST:
            raise KeyUnsafe("passphrase: too short", detail=f"{length} characters, at least {SHORTEST}")
        salt = self._random(16)
        header = _MAGIC + self._cost.encode() + salt
        return seal(self._key(salt, self._cost), header, secret, context, self._random)

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
    # The same words typed on another system may come as other code points; bytes that are no text stay as they are.
    try:
        return Secret(unicodedata.normalize("NFC", passphrase.reveal().decode()).encode())
    except UnicodeDecodeError:
        return passphrase
