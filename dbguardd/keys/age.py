"""A recovery key that is kept off the machine: an age recipient, whose identity is printed and put away.

The wrapped key is an ordinary age file (age-encryption.org/v1), so stock age opens it without dbguard. It contains one
line of JSON: {"context": hex, "secret": hex}. pyrage is imported when something is wrapped or opened.
"""

from __future__ import annotations

import json
from types import ModuleType
from typing import Self

from dbguardd.errors import Damaged, KeyMissing, KeyRefused, KeyUnsafe, Unsupported
from dbguardd.keys.secret import Secret

_MOST = 64 << 10  # bytes of a wrapped key
_BEGIN, _LENGTH = "AGE-SECRET-KEY-1", 74
_LETTERS = frozenset("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L")  # of bech32, which leaves out easily confused characters


class AgeRecipient:
    """Wraps for the holder of the identity of `recipient` ("age1..."); unwraps only if the identity is given."""

    kind = "age"
    offline = True

    def __init__(self, recipient: str, identity: Secret | None = None) -> None:
        self.label = recipient
        self._identity = identity

    @classmethod
    def from_identity(cls, text: Secret) -> Self:
        """Open from an identity in the form in which people have it. Raises KeyUnsafe if it is invalid.

        That is a file of age-keygen with its comments, or text typed from a recovery sheet: spaces, line breaks and
        case do not matter.
        """
        lines = text.reveal().decode("ascii", errors="replace").splitlines()
        identity = "".join("".join(line.split()) for line in lines if not line.lstrip().startswith("#")).upper()
        age = _age()
        try:
            recipient = str(age.x25519.Identity.from_str(identity).to_public())
        except age.IdentityError as error:
            raise KeyUnsafe(
                "recovery identity: not readable; a character may be mistyped or missing",
                detail=_mistyped(identity),
                hints=["type it again from the sheet, or scan its QR code"],
            ) from error
        return cls(recipient, Secret(identity.encode()))

    def check(self) -> None:
        """Raise KeyUnsafe unless this recipient is valid."""
        self._recipient()

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        plain = json.dumps({"context": context.hex(), "secret": secret.hex()}, separators=(",", ":"))
        wrapped: bytes = _age().encrypt(f"{plain}\n".encode(), [self._recipient()])
        return wrapped

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if self._identity is None:
            raise KeyMissing(f"{self.label}: its identity is not on this machine")
        if len(wrapped) > _MOST:
            raise Damaged(f"{self.label}: too large for a wrapped key", detail=f"{len(wrapped)} bytes")
        age = _age()
        identity = age.x25519.Identity.from_str(self._identity.reveal().decode())
        try:
            plain = json.loads(age.decrypt(wrapped, [identity]))
            found, secret = bytes.fromhex(plain["context"]), bytes.fromhex(plain["secret"])
        except age.DecryptError as error:
            if "No matching keys" in str(error):
                raise KeyRefused(f"{self.label}: wrapped for another recipient") from error
            raise Damaged(f"{self.label}: the wrapped key is damaged", detail=str(error).splitlines()[0]) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged(f"{self.label}: something else is wrapped") from error
        if found != context:
            raise KeyRefused(f"{self.label}: wrapped for another repository", detail=f"{found.hex()[:64]}")
        return secret

    def _recipient(self) -> object:
        age = _age()
        try:
            return age.x25519.Recipient.from_str(self.label)
        except age.RecipientError as error:
            raise KeyUnsafe(f"{self.label[:80]}: not an age recipient", detail=str(error)) from error


def new_identity() -> tuple[Secret, str]:
    """Create a recovery key: the identity to write down, and the recipient ("age1...") that wraps for it."""
    identity = _age().x25519.Identity.generate()
    return Secret(str(identity).encode()), str(identity.to_public())


def _mistyped(identity: str) -> str:
    """Return why a text is not an identity, quoting at most one character, which no identity contains."""
    if not identity.startswith(_BEGIN) or len(identity) != _LENGTH:
        return f"{len(identity)} characters, should be {_LENGTH}, starting with {_BEGIN}"
    for place, letter in enumerate(identity[len(_BEGIN) :], 1):
        if letter not in _LETTERS:
            return f"Character {place} after {_BEGIN} is {letter!r}, which no recovery key has."
    return "All 74 characters are there, and their checksum is wrong: one is mistyped, or two changed places."


def _age() -> ModuleType:
    try:
        import pyrage  # noqa: PLC0415  # slow to import, and needed only for recovery
    except ImportError as error:
        raise Unsupported("recovery key: pyrage is not installed", detail=str(error)) from error
    module: ModuleType = pyrage
    return module
