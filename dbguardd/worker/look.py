"""Looks at a path with the rights of who may: before a policy names it, nobody has said whose database it is.

The daemon opens no database and may see little. A process of the owner looks, or of the owner of the directory that
hides the path, and says what is there. `python -I -m dbguardd.worker.look PARENT_PID` is that process; the path comes
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

from dbguardd.errors import Stalled, WorkerDied
from dbguardd.worker.child import settle
from dbguardd.worker.start import environment, identity, not_started, owner_near

HEAD_BYTES = 64
_SECONDS = 10.0


async def look(path: str) -> Mapping[str, Any]:
    """Return what lies at an absolute path: its real `path`, `regular`, `size_bytes`, `uid` and `head` (hex).

    `head` is empty if its owner may not read it. Raises OSError as stat(2) does for the one who looks, SourceDenied,
    Stalled (a file system that does not answer), WorkerDied.
    """
    uid = owner_near(Path(path))
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
            out, err = await process.communicate(os.fsencode(path))
    except TimeoutError:
        raise Stalled(f"{path}: its file system did not answer for {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise WorkerDied(f"{path}: could not be looked at", detail=err.decode(errors="replace").strip()[-2000:])
    found: dict[str, Any] = json.loads(out)
    if "errno" in found:
        raise OSError(found["errno"], os.strerror(found["errno"]), path)
    return found


def seen(path: str) -> dict[str, Any]:
    """Return what lies at a path for this process, or the `errno` of looking."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError as error:
        return {"errno": error.errno}
    regular, head = stat.S_ISREG(status.st_mode), b""
    if regular:
        with suppress(OSError):  # it may be looked at and not be read: the first backup will tell
            file = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            head = os.pread(file, HEAD_BYTES, 0)  # the process ends at once, and with it the descriptor
    return {"path": real, "regular": regular, "size_bytes": status.st_size, "uid": status.st_uid, "head": head.hex()}


if __name__ == "__main__":
    settle(int(sys.argv[1]))
    json.dump(seen(os.fsdecode(sys.stdin.buffer.read())), sys.stdout)
