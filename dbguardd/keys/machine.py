"""The machine's own key: 32 random bytes in a file that only the daemon can read, or in a systemd credential."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from dbguardd.errors import KeyMissing, KeyRefused, KeyUnsafe
from dbguardd.keys.envelope import header_of, seal, unseal
from dbguardd.keys.files import credential_path, read_private, write_private
from dbguardd.keys.secret import Secret

KEY_BYTES = 32
_HEADER = b"machine"


class MachineKey:
    """Opens the repository unattended; it is lost together with the machine."""

    kind = "machine"
    offline = False

    def __init__(self, key: Secret, label: str) -> None:
        if len(key.reveal()) != KEY_BYTES:
            detail = f"{len(key.reveal())} bytes, must be {KEY_BYTES}"
            raise KeyUnsafe(f"{label}: not a machine key", detail=detail)
        self._key = key
        self.label = label

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create a key file (0600), durable on return. Raises TargetExists: a key is never overwritten."""
        key = Secret(os.urandom(KEY_BYTES))
        write_private(path, key)
        return cls(key, str(path))

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a key file. Raises KeyMissing; KeyUnsafe if others can read it or it is not 32 bytes long."""
        return cls(_read(path, str(path)), str(path))

    @classmethod
    def from_credential(cls, name: str, environ: Mapping[str, str]) -> Self:
        """Read a systemd credential (LoadCredentialEncrypted=). Raises KeyMissing, KeyUnsafe."""
        label = f"credential {name}"
        try:
            path = credential_path(name, environ)
        except FileNotFoundError as error:
            raise KeyMissing(
                f"{label}: not given to dbguardd",
                detail="The service manager gives it to dbguardd.service at its start (LoadCredentialEncrypted=).",
                hints=[f"dbguardctl credential set {name} --random", "systemctl restart dbguardd"],
            ) from error
        return cls(_read(path, label, credential=True), label)

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        return seal(self._key.reveal(), _HEADER, secret, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if header_of(wrapped, self.label) != _HEADER:
            raise KeyRefused(f"{self.label}: not wrapped by a machine key")
        return unseal(self._key.reveal(), wrapped, context, self.label)


def _read(path: Path, label: str, *, credential: bool = False) -> Secret:
    def unsafe(message: str, detail: str) -> KeyUnsafe:
        return KeyUnsafe(message, detail=detail, hints=[f"ls -l {path}", f"chmod 600 {path}"])

    try:
        return read_private(path, unsafe, credential=credential)
    except OSError as error:
        raise KeyMissing(f"{label}: cannot be read", detail=f"{path}: {error.strerror}") from error
