"""The keys that may open a repository: the machine's key, a passphrase, an age recipient with its identity elsewhere.

KEYS is the table of kinds; open_wrappers opens the keys of a policy. pyrage and segno are imported where they are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dbguardd.errors import KeyMissing, PolicyInvalid
from dbguardd.keys.age import AgeRecipient, new_identity
from dbguardd.keys.base import KeyWrapper
from dbguardd.keys.machine import MachineKey
from dbguardd.keys.passphrase import Cost, Passphrase
from dbguardd.keys.secret import Secret
from dbguardd.keys.secrets import read_secret
from dbguardd.keys.sheet import qr_svg, qr_text, recovery_sheet

__all__ = [
    "KEYS",
    "AgeRecipient",
    "Cost",
    "KeyWrapper",
    "MachineKey",
    "Passphrase",
    "Secret",
    "make_key",
    "new_identity",
    "open_wrappers",
    "qr_svg",
    "qr_text",
    "read_secret",
    "recovery_sheet",
]


def _machine(settings: Mapping[str, Any], environ: Mapping[str, str]) -> KeyWrapper:
    if name := settings.get("credential"):
        return MachineKey.from_credential(str(name), environ)
    return MachineKey.from_file(Path(settings["path"]))


def _passphrase(settings: Mapping[str, Any], environ: Mapping[str, str]) -> KeyWrapper:
    return Passphrase(read_secret(settings.get("secret") or {}, environ))


KEYS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str]], KeyWrapper]] = {
    "machine": _machine,
    "passphrase": _passphrase,
}
"""Every kind of key that a policy can name, and the function that opens it. Recipients are listed in `recovery`."""


def open_wrappers(settings: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> list[KeyWrapper]:
    """Open the key of a job spec, and its recovery recipients, which can only wrap.

    Raises KeyMissing, KeyUnsafe, SecretMissing, PolicyUnsafe, PolicyInvalid.
    """
    kind = settings.get("type", "machine")
    if kind not in KEYS:
        raise PolicyInvalid(f"{settings.get('name', 'key')}: unknown type {kind!r}", detail=", ".join(KEYS))
    return [KEYS[kind](settings, environ), *map(AgeRecipient, settings.get("recovery", ()))]


def make_key(settings: Mapping[str, Any], missing: KeyMissing) -> None:
    """Create the key file of a fresh installation. Raises `missing` for a key that only a user can provide."""
    if settings["type"] != "machine" or "path" not in settings:
        raise missing
    MachineKey.create(Path(settings["path"]))
