"""Runs one job in the foreground: `dbguardd run VERB`, for the day after a disaster and for scripts.

It needs the policy, the storage and the key, but no daemon, socket or catalog. It uses the same worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from dbguardd.errors import Cancelled, GuardError, Stalled, WorkerDied
from dbguardd.humanize import OVERWRITING, REPLACING, UNTOUCHED, safe
from dbguardd.policy import Policy
from dbguardd.requests import QUESTION_VERBS
from dbguardd.worker import by_hand_text
from dbguardd.worker.start import run_worker

_STALL_SECONDS = 3600.0


def run(policy: Policy, state: str, verb: str, request: Mapping[str, Any], *, as_json: bool) -> int:
    """Run one job according to `policy`, print its messages, and return the exit status. Raises the job's problem.

    The caller owns the state directory during the run. As in the daemon, a second job proves a backup with `verify`.
    """
    began = time.monotonic()
    result = asyncio.run(_run(_spec(policy, state, verb, request), as_json))
    if verb == "backup" and request["verify"]:
        proving = {"database": request["database"], "backup": result["backup"]["id"]}
        result |= asyncio.run(_run(_spec(policy, state, "verify", proving), as_json))
    if verb in QUESTION_VERBS:  # standard output gets nothing but the answer
        for line in by_hand_text.of_result(verb, request, result, time.monotonic() - began):
            print(safe(line), file=sys.stderr)
    elif as_json:
        _show({"type": "result", "result": result}, as_json)
    else:
        with suppress(BrokenPipeError):
            for line in by_hand_text.of_result(verb, request, result, time.monotonic() - began):
                _tell(line)
    return by_hand_text.status(verb, result)


def _spec(policy: Policy, state: str, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job spec that the daemon would make."""
    if "database" in request:
        parts = policy.spec(str(request["database"]), state)
    else:
        keys = {policy.guarded(name).key for name in policy.names()} or {"main"}
        parts = {
            "database": None,
            "storage": policy.storage_spec(str(request["storage"]), state),
            "key": policy.key_spec(min(keys), state),
        }
    return {
        **parts,
        "job": secrets.token_hex(13).upper(),
        "verb": verb,
        "request": dict(request),
        "actor": pwd.getpwuid(os.getuid()).pw_name,
        "state": state,
    }


async def _run(spec: Mapping[str, Any], as_json: bool) -> dict[str, Any]:
    cancel = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, cancel.set)
    heard = dict[str, Mapping[str, Any]]()

    def hear(message: dict[str, Any]) -> None:
        heard[str(message.get("event"))] = message.get("facts") or {}
        if message["type"] == "answer":
            _hand_out(message["file"])
        elif spec["verb"] not in QUESTION_VERBS:
            _show(message, as_json)

    try:
        return await run_worker(spec, hear, cancel, stall_timeout=_STALL_SECONDS)
    except (Cancelled, Stalled, WorkerDied) as error:
        if spec["verb"] == "undo" or spec["request"].get("in_place"):
            name, replacing = spec["database"]["name"], "restore.replacing" in heard
            over = OVERWRITING if heard.get("restore.replacing", {}).get("over") else REPLACING
            error.detail = f"{error.detail}\n{over if replacing else UNTOUCHED}".lstrip()
            error.hints = (*error.hints, *[f"dbguardctl restore undo {name} --confirm {name}"] * replacing)
        raise


def _show(message: Mapping[str, Any], as_json: bool) -> None:
    """Print one message: as a JSON line, or as text for people."""
    with suppress(BrokenPipeError):  # the reader is gone, but the job matters more than its output
        _print(message, as_json)


def _hand_out(answer: IO[bytes]) -> None:
    """Write an answer to standard output unchanged; on a terminal, escape its control characters."""
    with answer, suppress(BrokenPipeError):
        answer.seek(0)
        while portion := answer.read(1 << 18):
            if sys.stdout.isatty():
                portion = safe(portion.decode(errors="replace"), keep="\n").encode()
            sys.stdout.buffer.write(portion)
        sys.stdout.flush()


def _print(message: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(message), flush=True)
    elif message["type"] == "report":
        if line := by_hand_text.of_report(message["event"], message["facts"]):
            _tell(line)
    elif _on_terminal():
        total = message["total_bytes"]
        share = f" {100 * message['done_bytes'] // total} %" if total else ""
        with suppress(OSError):
            os.write(2, f"\r\033[K{message['step']}{share}\r".encode())


def _on_terminal() -> bool:
    """True if there is a terminal that can erase a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def complain(error: GuardError, program: Sequence[str], *, as_json: bool) -> None:
    """Print an error on standard error, for people or for programs."""
    if as_json:
        print(json.dumps(error.problem()), file=sys.stderr)
        return
    for line in by_hand_text.of_error(error, program):
        print(safe(line), file=sys.stderr)


def _tell(line: str) -> None:
    """Print one line; first erase any progress on the line."""
    if _on_terminal():
        with suppress(OSError):
            os.write(2, b"\033[K")
    print(safe(line), flush=True)
