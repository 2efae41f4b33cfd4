"""Who may open a repository.

A repository is sealed with keys derived from one random 32-byte root key. The root key itself is stored only wrapped,
once for each wrapper: the machine's own key, and at least one that does not live on the machine.
"""

from __future__ import annotations

from typing import Protocol


class KeyWrapper(Protocol):
    """Wraps and unwraps the root key. `kind` says how; `label` tells wrappers of one kind apart (never a secret)."""

    @property
    def kind(self) -> str:
        """One of the names in KEYS."""

    @property
    def label(self) -> str:
        """What a person would call it: a key file's path, an age recipient, "passphrase"."""

    @property
    def offline(self) -> bool:
        """True if it opens the repository after the machine is lost."""

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Seal `secret`, bound to `context` (the repository's id)."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Open it again.

        Raises KeyRefused if the key or the context is another; KeyMissing if this wrapper can only wrap (an age
        recipient without its identity).
        """
