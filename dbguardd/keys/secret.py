"""Secret bytes that do not appear in a repr, a log line, a traceback with locals or a pickle."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes that only reveal() returns. Comparison takes constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes. The caller must keep them out of messages."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a set or a dictionary key would compare in data-dependent time

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")
