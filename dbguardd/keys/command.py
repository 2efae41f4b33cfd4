"""Runs a command that prints a secret: without a shell, with a minimal environment, bounded output and a deadline."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from dbguardd.errors import SecretMissing
from dbguardd.keys.files import MOST_BYTES

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HANDED_ON = ("HOME", "CREDENTIALS_DIRECTORY")


def output_of(command: Sequence[str], environ: Mapping[str, str], timeout_seconds: float) -> bytes:
    """Return the output of the command. If it fails, hangs or prints too much, it is killed with its children.

    Raises SecretMissing, which quotes neither arguments nor output.
    """
    program = command[0]
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
    return output


def _read_all(program: str, pipe: IO[bytes], deadline: float) -> bytes:
    """Read to the end. Raises TimeoutError; SecretMissing if there is too much."""
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
