"""One job in the foreground: `dbguardd run VERB`, for the day after a disaster and for scripts.

It needs the policy, the storage and the key; no running daemon, no socket, no catalog. The worker is the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dbguardd.errors import GuardError
from dbguardd.worker.start import run_worker


def run(spec: Mapping[str, Any], *, stall_timeout: float, as_json: bool) -> int:
    """Run the job of `spec`, show what happens, and return the exit status."""
    try:
        result = asyncio.run(_run(spec, stall_timeout, as_json))
    except GuardError as error:
        _complain(error, as_json)
        return error.exit_status
    _show({"type": "result", "result": result}, as_json)
    return 0


async def _run(spec: Mapping[str, Any], stall_timeout: float, as_json: bool) -> dict[str, Any]:
    cancel = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, cancel.set)
    return await run_worker(spec, lambda message: _show(message, as_json), cancel, stall_timeout=stall_timeout)


def _show(message: Mapping[str, Any], as_json: bool) -> None:
    """Print one message: JSON lines, or what a person wants to see."""
    if as_json:
        print(json.dumps(message), flush=True)
    elif message["type"] == "report":
        facts = " ".join(f"{key}={_value(value)}" for key, value in message["facts"].items() if value not in (None, ""))
        print(f"{message['event']} {facts}", flush=True)
    elif message["type"] == "result":
        print(json.dumps(message["result"], indent=2), flush=True)
    elif sys.stderr.isatty():
        total = message["total_bytes"]
        share = f" {100 * message['done_bytes'] // total} %" if total else ""
        with suppress(OSError):
            os.write(2, f"\r\033[K{message['step']}{share}\r".encode())


def _value(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)


def _complain(error: GuardError, as_json: bool) -> None:
    if as_json:
        print(json.dumps(error.problem()), file=sys.stderr)
        return
    lines = [f"error[{error.code}]: {error.message}", f"       {error.detail}" if error.detail else ""]
    lines += [f"       {error.meaning}", *(f"       try  {hint}" for hint in error.hints or (error.advice,))]
    print("\n".join(line for line in lines if line), file=sys.stderr)
