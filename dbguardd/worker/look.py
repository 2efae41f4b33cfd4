"""Examines a path or a server with the rights of its owner, before a policy names it.

The daemon opens no database and may be unable to see the path. So a process of the owner examines it, or of the owner
of the directory that hides it. `python -I -m dbguardd.worker.look PARENT_PID` is that process; what to examine arrives
on standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbguardd.engines import ENGINES
from dbguardd.engines.sqlite.still import is_empty
from dbguardd.errors import GuardError, Stalled, WorkerDied, from_problem
from dbguardd.kinds import engine_of
from dbguardd.policy.addresses import socket_of
from dbguardd.requests import NOWHERE
from dbguardd.serialize import to_json
from dbguardd.worker.channel import problem_of
from dbguardd.worker.child import prepare
from dbguardd.worker.owner import identity, not_started, owner_near
from dbguardd.worker.start import environment

HEAD_BYTES = 64
_SECONDS = 30.0


async def look(place: str) -> Mapping[str, Any]:
    """Return what is at an absolute path: its real `path`, `regular`, `size_bytes`, `uid`, `head` (hex), `empty`.

    `head` is empty if its owner may not read it; `empty` tells whether no table has a row, None if unknown. For the
    address of a server: the `probe` of its engine, and the `uid` that asked. Raises OSError as stat(2) does for that
    process, SourceDenied, Stalled (a file system or a server that does not answer), WorkerDied, and the errors of the
    engine.
    """
    engine = engine_of(place)
    if engine is not None:
        return await _look_at_server(engine, place)
    found = await _asked(place, {"path": place}, owner_near(Path(place)))
    if "errno" in found:
        raise OSError(found["errno"], os.strerror(found["errno"]), place)
    return found


async def _look_at_server(engine: str, url: str) -> Mapping[str, Any]:
    socket = socket_of(url)
    uid = os.geteuid() if socket is None else owner_near(Path(socket))
    found = await _asked(url, {"engine": engine, "url": url, "staging": NOWHERE}, uid)
    if "problem" in found:
        raise from_problem(found["problem"])
    return {**found, "uid": uid}


async def _asked(about: str, question: Mapping[str, Any], uid: int) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-m", "dbguardd.worker.look", str(os.getpid())]
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/", env=environment(), start_new_session=True,
            **identity(uid),
        )  # fmt: skip
    except OSError as error:
        raise not_started("look", uid, error) from error
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate(json.dumps(question).encode())
    except TimeoutError:
        raise Stalled(f"{about}: did not answer for {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise WorkerDied(f"{about}: could not be looked at", detail=err.decode(errors="replace").strip()[-2000:])
    found: dict[str, Any] = json.loads(out)
    return found


def asked_of_server(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an engine finds, or its `problem`."""
    try:
        return {"probe": to_json(ENGINES[question["engine"]](question).snapshots.probe())}
    except GuardError as error:
        return {"problem": problem_of(error)}


def seen(path: str) -> dict[str, Any]:
    """Return what this process sees at a path, or the `errno`."""
    try:
        real = os.path.realpath(path)  # raises where it may not follow a link, for example below /proc
        status = os.stat(real)
    except OSError as error:
        return {"errno": error.errno}
    regular, head = stat.S_ISREG(status.st_mode), b""
    if regular:
        with suppress(OSError):  # stat may work where reading does not: the first backup will report that
            file = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            head = os.pread(file, HEAD_BYTES, 0)  # the process exits soon, which closes the descriptor
    empty = is_empty(Path(real)) if head.startswith(b"SQLite format 3\0") else None
    found = {"path": real, "regular": regular, "size_bytes": status.st_size, "uid": status.st_uid, "head": head.hex()}
    return {**found, "empty": empty}


if __name__ == "__main__":
    prepare(int(sys.argv[1]))
    asked = json.loads(sys.stdin.buffer.read())
    json.dump(seen(asked["path"]) if "path" in asked else asked_of_server(asked), sys.stdout)
