"""The interface of the keys that may open a repository.

A repository is sealed with keys derived from one random 32-byte root key. The root key itself is stored only wrapped,
once for each wrapper: the machine's own key, and at least one that is kept off the machine.
"""

from __future__ import annotations

from typing import Protocol


class KeyWrapper(Protocol):
    """Wraps and unwraps the root key. `kind` names the method; `label` (never secret) the wrapper among its kind."""

    @property
    def kind(self) -> str:
        """One of the names in KEYS."""

    @property
    def label(self) -> str:
        """The name for people: the path of a key file, an age recipient, "passphrase"."""

    @property
    def offline(self) -> bool:
        """True if it still opens the repository after the machine is lost."""

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Seal `secret`, bound to `context` (the repository's id)."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the secret.

        Raises KeyRefused if the key or the context is a different one; KeyMissing if this wrapper can only wrap (an age
        recipient without its identity).
        """
