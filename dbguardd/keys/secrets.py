"""Reads the secrets that a policy names: {credential = NAME}, {file = PATH} or {command = [PROGRAM, ...]}."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dbguardd.errors import PolicyInvalid, PolicyUnsafe, SecretMissing
from dbguardd.keys.files import MOST_BYTES, credential_path, read_private
from dbguardd.keys.secret import Secret

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HANDED_ON = ("HOME", "CREDENTIALS_DIRECTORY")


def read_secret(
    reference: Mapping[str, Any], environ: Mapping[str, str] = os.environ, *, timeout_seconds: float = 30.0
) -> Secret:
    """Return the secret that `reference` names, without the line break at its end.

    A file must be private (0600). A command is an argument list with an absolute program, run without a shell, with
    hardly any environment; it must print the secret within `timeout_seconds` and end with 0.
    Raises SecretMissing, PolicyUnsafe, PolicyInvalid.
    """
    named = {kind: value for kind, value in reference.items() if value is not None}
    match named:
        case {"credential": str(name), **rest} if not rest:
            return _from_credential(name, environ)
        case {"file": str(path), **rest} if not rest:
            return _from_file(Path(path))
        case {"command": [str(program), *arguments], **rest} if not rest and program.startswith("/"):
            return _from_command([program, *map(str, arguments)], environ, timeout_seconds)
    raise PolicyInvalid(
        "secret: name exactly one of credential, file, command", detail=f"named: {', '.join(named) or 'none'}"
    )


def _from_credential(name: str, environ: Mapping[str, str]) -> Secret:
    try:
        return _trimmed(f"credential {name}", read_private(credential_path(name, environ), _unsafe, credential=True))
    except OSError as error:
        raise SecretMissing(f"credential {name}: cannot be read", detail=str(error.strerror)) from error


def _from_file(path: Path) -> Secret:
    try:
        return _trimmed(str(path), read_private(path, _unsafe))
    except OSError as error:
        raise SecretMissing(f"{path}: cannot be read", detail=str(error.strerror)) from error


def _from_command(command: Sequence[str], environ: Mapping[str, str], timeout_seconds: float) -> Secret:
    program = command[0]  # the arguments may be private, the program's name is in the policy
    environment = {"PATH": _PATH, "LANG": "C.UTF-8", **{key: environ[key] for key in _HANDED_ON if key in environ}}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it may repeat the secret
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SecretMissing(f"{program}: cannot be started", detail=str(error.strerror)) from error
    with process:
        assert process.stdout is not None  # noqa: S101  # it is a pipe
        deadline = time.monotonic() + timeout_seconds
        try:
            output = _read_all(program, process.stdout, deadline)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, (TimeoutError, subprocess.TimeoutExpired)):
                raise SecretMissing(f"{program}: did not end in time", detail=f"{timeout_seconds:g} s") from error
            raise
    if status:
        raise SecretMissing(f"{program}: printed no secret", detail=f"exit status {status}")
    return _trimmed(program, Secret(output))


def _read_all(program: str, pipe: IO[bytes], deadline: float) -> bytes:
    """Read until the end. Raises TimeoutError; SecretMissing if it becomes too much."""
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(pipe.fileno(), MOST_BYTES)
            if not piece:
                return output
            output += piece
            if len(output) > MOST_BYTES:
                raise SecretMissing(f"{program}: printed too much", detail=f"more than {MOST_BYTES} bytes")


def _unsafe(message: str, detail: str) -> PolicyUnsafe:
    return PolicyUnsafe(message, detail=detail)


def _trimmed(what: str, secret: Secret) -> Secret:
    value = secret.reveal().removesuffix(b"\n").removesuffix(b"\r")
    if not value:
        raise SecretMissing(f"{what}: empty")
    return Secret(value)
