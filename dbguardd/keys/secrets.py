"""Reads the secrets that a policy names: {credential = NAME}, {file = PATH} or {command = [PROGRAM, ...]}."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbguardd.errors import PolicyInvalid, PolicyUnsafe, SecretMissing
from dbguardd.keys.files import credential_path, read_private
from dbguardd.keys.secret import Secret


def read_secret(
    reference: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, timeout_seconds: float = 30.0
) -> Secret:
    """Return the secret that `reference` names, without a final line break.

    A file must be private (0600). A command is an argument list with an absolute program path; it runs without a shell
    and with a minimal environment, and must print the secret and exit with 0 within `timeout_seconds`.
    Raises SecretMissing, PolicyUnsafe, PolicyInvalid.
    """
    named = {kind: value for kind, value in reference.items() if value is not None}
    match named:
        case {"credential": str(name), **rest} if not rest:
            return _from_credential(name, environ)
        case {"file": str(path), **rest} if not rest:
            return _from_file(Path(path))
        case {"command": [str(program), *arguments], **rest} if not rest and program.startswith("/"):
            from dbguardd.keys.command import output_of  # noqa: PLC0415  # subprocess is slow to load and rarely needed

            return _trimmed(program, Secret(output_of([program, *map(str, arguments)], environ, timeout_seconds)))
    raise PolicyInvalid(
        "secret: name exactly one of credential, file, command", detail=f"named: {', '.join(named) or 'none'}"
    )


def _from_credential(name: str, environ: Mapping[str, str]) -> Secret:
    try:
        return _trimmed(f"credential {name}", read_private(credential_path(name, environ), _unsafe, credential=True))
    except OSError as error:
        hints = [f"dbguardctl credential set {name}", "systemctl restart dbguardd"]
        raise SecretMissing(f"credential {name}: cannot be read", detail=str(error.strerror), hints=hints) from error


def _from_file(path: Path) -> Secret:
    try:
        return _trimmed(str(path), read_private(path, _unsafe))
    except OSError as error:
        raise SecretMissing(f"{path}: cannot be read", detail=str(error.strerror)) from error


def _unsafe(message: str, detail: str) -> PolicyUnsafe:
    return PolicyUnsafe(message, detail=detail)


def _trimmed(what: str, secret: Secret) -> Secret:
    value = secret.reveal().removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SecretMissing(f"{what}: empty")
    return Secret(value)
