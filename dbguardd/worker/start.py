"""Starts both halves of a worker, connects them by the seam, and watches them until the job ends.

The daemon calls this for each job, and so does `dbguardd run`. Children get a clean environment, their own session and
the job on a pipe; they die with this process. Cancelling is SIGTERM, then SIGKILL of both sessions.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dbguardd import __version__
from dbguardd.errors import (
    Cancelled,
    GuardError,
    Internal,
    SourceDenied,
    Stalled,
    WorkerDied,
    from_problem,
)
from dbguardd.humanize import discreet
from dbguardd.niceness import TRIES, WAIT_SECONDS, lower_session
from dbguardd.requests import BY_SCHEDULE, NOWHERE, QUESTION_VERBS
from dbguardd.verbs import has_engine_half, staging_suffix
from dbguardd.worker.asking import anonymous_file, question_uid
from dbguardd.worker.owner import explain_missing_setuid, identity, may_become_others, not_started, owner_of_database
from dbguardd.worker.staging import remove_foreign, staging_of, wipe

_MESSAGE_BYTES = 16 << 20  # the plan of an expiry of 100,000 backups is one message
_STDERR_BYTES = 8 << 10
_GRACE_SECONDS = 30.0
_EXIT_SECONDS = 0.005  # between two polls for the exit of a half

OnMessage = Callable[[dict[str, Any]], None]
Children = dict[str, asyncio.subprocess.Process]
"""The halves of a worker: repository, and engine or question."""


async def run_worker(
    spec: Mapping[str, Any], on_message: OnMessage, cancel: asyncio.Event, *, stall_timeout: float
) -> dict[str, Any]:
    """Run one job in a new worker and return its result.

    `on_message` gets every progress and report message as it arrives. Raises the problem that the job reports,
    Cancelled after `cancel` was set, Stalled after `stall_timeout` seconds without a message, WorkerDied (with the end
    of standard error as detail) if a half ended without a result.

    The answer to a question is in a file that never had a name: it vanishes with the last process that has it open.
    `on_message` gets it as the last message, of type answer, and closes it.
    """
    spec = {**spec, "version": __version__}  # the worker loads what is installed now
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    children: Children = {}
    answer: IO[bytes] | None = None
    try:
        engine = (spec["database"] or {}).get("engine")
        if spec["verb"] in QUESTION_VERBS:
            answer = anonymous_file(Path(spec["state"]))
            spec = {**spec, "answer": answer.fileno()}
        if has_engine_half(spec["verb"], engine):
            run_as = owner_of_database(spec["database"], spec["request"])
            settings = {**_engine_settings(spec, run_as), "stall_seconds": stall_timeout}
            spec = {**spec, "run_as": run_as, "staging": settings["staging"]}
            remove_foreign(Path(spec["staging"]), run_as)
            children["engine"] = await _start("engine", there, settings, run_as)
        elif answer is not None:
            settings = {**spec["database"]["settings"], "engine": engine, "staging": NOWHERE}
            children["question"] = await _start("question", there, settings, question_uid(may_become_others()))
        kept = () if answer is None else (answer.fileno(),)
        children["repository"] = await _start("repository", here, spec, os.geteuid(), kept)
        here.close()
        there.close()
        result = await _watch(children, on_message, cancel, stall_timeout)
        if answer is not None:
            on_message({"type": "answer", "file": answer})
            answer = None
        return result
    except SourceDenied as error:
        raise explain_missing_setuid(error, spec) from None
    finally:
        if answer is not None:
            answer.close()
        here.close()
        there.close()
        await asyncio.gather(*map(_end, children.values()))
        if "staging" in spec:
            await wipe(Path(spec["staging"]), int(spec["run_as"]))  # what a killed half has left


def _engine_settings(spec: Mapping[str, Any], run_as: int) -> dict[str, Any]:
    """Return the settings of an engine half: those of the database, and its private directories.

    `left` is the directory of a question, which a killed worker may have left; `follows` is that of the follower.
    `awaited` is whether somebody, or a log without a base, waits for the job: it is not scheduled.
    """
    database = spec["database"]

    def staging(verb: str, request: Mapping[str, Any]) -> str:
        return staging_of(spec["state"], database["name"], run_as, staging_suffix(verb, request))

    own = {"staging": staging(spec["verb"], spec["request"])}
    others = {"left": staging("query", {}), "follows": staging("follow", {})}
    awaited = spec["actor"] != BY_SCHEDULE
    return {**database["settings"], "engine": database["engine"], "awaited": awaited, **own, **others}


async def _start(
    half: str, seam: socket.socket, spec: Mapping[str, Any], run_as: int, kept: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-I", "-m", "dbguardd.worker", half, str(os.getpid()), str(seam.fileno())]
    who = identity(run_as)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if half == "repository" else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[seam.fileno(), *kept],
            start_new_session=True,
            limit=_MESSAGE_BYTES,
            env=environment(),
            cwd="/",
            **who,
        )
    except OSError as error:
        raise not_started(half, run_as, error) from error
    assert process.stdin is not None  # noqa: S101 it was asked for
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(json.dumps(spec).encode())
        await process.stdin.drain()
        process.stdin.close()
    for _ in range(TRIES):
        if lower_session(process.pid, os.getpriority(os.PRIO_PROCESS, 0)):
            break
        await asyncio.sleep(WAIT_SECONDS)
    return process


def environment() -> dict[str, str]:
    """Return the environment of every child: nothing of ours except where the credentials are."""
    kept = {name: os.environ[name] for name in ("CREDENTIALS_DIRECTORY",) if name in os.environ}
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
    return {**kept, **clean, "MALLOC_ARENA_MAX": "1"}  # one arena for all threads: less memory, no slower (measured)


async def _watch(
    children: Children, on_message: OnMessage, cancel: asyncio.Event, stall_timeout: float
) -> dict[str, Any]:
    """Read messages until the result; pass on a request to stop once."""
    repository = children["repository"]
    assert repository.stdout is not None  # noqa: S101 it was asked for
    errors = {half: asyncio.create_task(_tail(child)) for half, child in children.items()}
    stopping = asyncio.create_task(_stop_on(cancel, repository))
    try:
        while True:
            try:
                async with asyncio.timeout(stall_timeout):  # wait_for() of Python 3.11 may lose a cancellation
                    line = await repository.stdout.readline()
            except TimeoutError:
                raise Stalled(f"no progress for {stall_timeout:g} s") from None
            except ValueError as error:
                raise WorkerDied("the worker sent a message that is too long") from error
            if not line:
                break
            message = json.loads(line)
            if message["type"] == "result":
                result: dict[str, Any] = message["result"]
                return result
            if message["type"] == "problem":
                raise await _explained(from_problem(message["problem"]), children, errors)
            on_message(message)
        if cancel.is_set():
            raise Cancelled("the job was cancelled")
        raise await _explained(WorkerDied("the worker ended without a result"), children, errors)
    finally:
        stopping.cancel()
        for task in errors.values():
            task.cancel()


async def _stop_on(cancel: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    """Ask the repository half to stop at its next safe point; kill it if it does not."""
    await cancel.wait()
    with suppress(ProcessLookupError):
        process.terminate()
    await asyncio.sleep(_GRACE_SECONDS)
    _kill(process)


async def _tail(process: asyncio.subprocess.Process) -> str:
    """Drain standard error, and return its end."""
    assert process.stderr is not None  # noqa: S101 it was asked for
    kept = b""
    while data := await process.stderr.read(4096):
        kept = (kept + data)[-_STDERR_BYTES:]
    return kept.decode(errors="replace")


async def _explained(error: GuardError, children: Children, errors: Mapping[str, asyncio.Task[str]]) -> GuardError:
    """Add how the halves ended, and their last standard error, if the error means that one died or has a bug."""
    if not isinstance(error, WorkerDied | Internal):
        return error
    notes = [error.detail] if error.detail else []
    for half, child in children.items():
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await _exit(child)
        if child.returncode:
            notes.append(f"The {half} half ended with {_ending(child.returncode)}.")
        with suppress(TimeoutError):
            notes.append(discreet((await asyncio.wait_for(asyncio.shield(errors[half]), 2)).strip()[-2000:]))
    error.detail = "\n".join(note for note in notes if note)
    return error


def _ending(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"status {returncode}"


async def _end(child: asyncio.subprocess.Process) -> None:
    """Let a half exit by itself for a moment, then kill its session; always reap it and close its pipes."""
    try:
        async with asyncio.timeout(10):
            await _exit(child)
    except TimeoutError:
        _kill(child)
        await _exit(child)
    finally:
        if child.returncode is None:
            _kill(child)
        child._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no other way to close them


async def _exit(child: asyncio.subprocess.Process) -> None:
    """Return when a half has exited.

    wait() also waits for every process that has its standard error open: one that the owner of the database left behind
    would keep the job, and with it the daemon, forever.
    """
    while child.returncode is None:
        await asyncio.sleep(_EXIT_SECONDS)


def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
