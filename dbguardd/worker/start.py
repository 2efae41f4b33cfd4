"""Starts both halves of a worker, joins them by the seam, and watches them until the job ends.

The daemon calls this for each job, and so does `dbguardd run`. Children get a clean environment, a session of their
own and the job on a pipe; they die with this process. Cancelling is SIGTERM, then SIGKILL of both sessions.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import pwd
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dbguardd.errors import (
    Cancelled,
    GuardError,
    Internal,
    SourceDenied,
    Stalled,
    WorkerDied,
    from_problem,
    of_file,
)
from dbguardd.wire import ENGINE_VERBS, NOWHERE, QUESTION_VERBS
from dbguardd.words import discreet
from dbguardd.worker.asking import cannot_read, reader, unnamed

_MESSAGE_BYTES = 16 << 20  # the plan of an expiry of 100,000 backups is one message
_STDERR_BYTES = 8 << 10
_GRACE_SECONDS = 30.0
_EXIT_SECONDS = 0.005  # between two looks whether a half has ended
_SEED_BYTES = 32
_MOST_LINKS = 40  # as the kernel

OnMessage = Callable[[dict[str, Any]], None]


async def run_worker(
    spec: Mapping[str, Any], on_message: OnMessage, cancel: asyncio.Event, *, stall_timeout: float
) -> dict[str, Any]:
    """Run one job in a new worker and return its result.

    `on_message` gets every progress and report message as it comes. Raises the problem that the job reports,
    Cancelled after `cancel` was set, Stalled when nothing was heard for `stall_timeout` seconds, WorkerDied (with the
    end of standard error as detail) when a half ended without a word.

    The answer to a question is in a file that never had a name: it is gone with the last process that has it open.
    `on_message` gets it as the last message, of the type answer, and closes it.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    children: list[asyncio.subprocess.Process] = []
    answer: IO[bytes] | None = None
    try:
        if spec["verb"] in ENGINE_VERBS:
            database, run_as = spec["database"], _owner(spec["database"], spec["request"])
            spec = {**spec, "run_as": run_as}
            spec = {**spec, "staging": staging_of(spec["state"], database["name"], run_as, spec["verb"] == "follow")}
            make_way(Path(spec["staging"]), run_as)
            settings = {**database["settings"], "engine": database["engine"], "staging": spec["staging"]}
            children.append(await _start("engine", there, settings, run_as))
        elif spec["verb"] in QUESTION_VERBS:
            answer = unnamed(Path(spec["state"]))
            spec = {**spec, "answer": answer.fileno()}
            settings = {**spec["database"]["settings"], "engine": spec["database"]["engine"], "staging": NOWHERE}
            children.append(await _start("question", there, settings, reader(_may_become_others())))
        kept = () if answer is None else (answer.fileno(),)
        children.insert(0, await _start("repository", here, spec, os.geteuid(), kept))
        here.close()
        there.close()
        result = await _watch(children, on_message, cancel, stall_timeout)
        if answer is not None:
            on_message({"type": "answer", "file": answer})
            answer = None
        return result
    except SourceDenied as error:
        raise _without_power(error, spec) from None
    finally:
        if answer is not None:
            answer.close()
        here.close()
        there.close()
        await asyncio.gather(*(_end(child) for child in children))


def staging_of(state: str, database: str, run_as: int, follows: bool = False) -> str:
    """Return the private directory of the engine half: one for each database and user, so that leftovers are found.

    What follows the log runs beside all other jobs of the database, and has one of its own.

    Nobody else can know its name. Anybody may make names in the directory above, and who makes this one first, again
    and again, keeps the database from being backed up; but nobody may list it.
    """
    whose = f"{run_as}-{database}{'-log' * follows}"
    mark = hashlib.blake2b(whose.encode(), key=_seed(Path(state)), digest_size=10)
    return str(Path(state) / "staging" / f"{database}-{run_as}-{mark.hexdigest()}")


def _seed(state: Path) -> bytes:
    """Return what makes the names in staging unknown to others; made once. Raises NoSpace, PlaceDenied, Degraded."""
    path = state / "staging.seed"
    with suppress(OSError):
        if len(seed := path.read_bytes()) == _SEED_BYTES:
            return seed
    seed, draft = os.urandom(_SEED_BYTES), path.with_suffix(".tmp")
    try:
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as opened:
            opened.write(seed)
        draft.replace(path)
    except OSError as error:
        raise of_file(f"{path}: cannot be written", error) from error
    return seed


def make_way(staging: Path, run_as: int) -> None:
    """Take away what somebody else put where the engine half wants its directory.

    Anybody may make names in the directory above (its mode is 1733), but only its owner, who we are, may move those of
    others. What is not empty is set aside, for a person to look at.
    """
    with suppress(OSError):
        found = os.lstat(staging)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == run_as:
            return
        try:
            (staging.rmdir if stat.S_ISDIR(found.st_mode) else staging.unlink)()
        except OSError:
            staging.rename(staging.with_name(f"foreign-{staging.name}-{time.time_ns()}"))


def _owner(database: Mapping[str, Any], request: Mapping[str, Any]) -> int:
    """Return who opens the database: the user that the policy names, or who owns its place (or the directory of that).

    A daemon that cannot become someone else tries with its own rights. A database of which only backups are left is
    restored by whoever owns the place that it goes to, but never as root: nobody has said that it was root's.
    """
    if database.get("run_as") is not None:
        return int(database["run_as"])
    place = database["place"]
    if place is None:
        return os.geteuid()  # a server elsewhere: nobody here owns it
    if place != NOWHERE:
        return owner_near(Path(str(place)))
    return (owner_near(Path(str(request["to"]))) if request.get("to") else 0) or os.geteuid()


def owner_near(path: Path) -> int:
    """Return who owns a path or, if it is not there, the directory that it should be in.

    What hides from us in a directory that only its owner may enter is taken to be that owner's. A process that cannot
    become somebody else can only ask itself, but not over the link of a third person either: there may be things that
    it can read and that one cannot.
    """
    for place in (path, *path.parents):
        try:
            owner = owner_of(place)
        except PermissionError:
            continue
        except OSError:
            if place != path:
                break
        else:
            return owner if _may_become_others() else os.geteuid()
    return os.geteuid()


def owner_of(place: Path) -> int:
    """Return who owns what an absolute path leads to; OSError passes.

    Raises SourceDenied if a symbolic link of a third person is on the way: the owner of one database could otherwise
    have another one read, or replaced, in the name of that one's owner.
    """
    way, here, links = list(place.parts[1:]), Path("/"), list[tuple[Path, int]]()
    found = os.lstat(here)
    while way:
        part = way.pop(0)
        step = here.parent if part == ".." else here / part
        found = os.lstat(step)
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links.append((step, found.st_uid))
        if len(links) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place))
        leads = os.readlink(step)
        here = Path("/") if leads.startswith("/") else here
        way[:0] = [part for part in leads.split("/") if part]
    for link, owner in links:
        if owner not in (0, os.geteuid(), found.st_uid):
            raise SourceDenied(
                f"{place}: leads over a symbolic link of another user",
                detail=f"{link} belongs to uid {owner}, the database to uid {found.st_uid}",
                hints=["set run_as for the database", f"ls -l {link}"],
            )
    return found.st_uid


def _may_become_others() -> bool:
    """Say if this process has CAP_SETUID (bit 7 of its effective capabilities)."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 7 & 1)
    return os.geteuid() == 0


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
    return process


def environment() -> dict[str, str]:
    """Return the environment of every child: nothing of ours but where the credentials are."""
    kept = {name: os.environ[name] for name in ("CREDENTIALS_DIRECTORY",) if name in os.environ}
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
    return {**kept, **clean, "MALLOC_ARENA_MAX": "1"}  # one arena for all threads: less memory, no slower (measured)


def identity(run_as: int) -> dict[str, Any]:
    """Return how the child gets the database owner's identity; nothing if it is ours already."""
    if run_as == os.geteuid():
        return {}
    try:
        user = pwd.getpwuid(run_as)
    except KeyError as error:
        raise SourceDenied(f"no user has the id {run_as}, which owns the database") from error
    if not _may_become_others():
        name = pwd.getpwuid(os.geteuid()).pw_name
        raise SourceDenied(
            f"the database belongs to {user.pw_name}, and dbguardd runs as {name}",
            detail="Without CAP_SETUID the daemon can only read databases of its own user.",
            hints=[f'run dbguardd as a service, or set run_as = "{name}" if that user may read the database'],
        )
    return {"user": run_as, "group": user.pw_gid, "extra_groups": os.getgrouplist(user.pw_name, user.pw_gid)}


def _without_power(error: SourceDenied, spec: Mapping[str, Any]) -> SourceDenied:
    """Say why nobody else was asked to open the database, where that is what it lacked."""
    database = spec.get("database") or {}
    if database.get("run_as") is None and not _may_become_others():
        name = pwd.getpwuid(os.geteuid()).pw_name
        error.detail += f"\ndbguardd runs as {name} and without CAP_SETUID: it cannot become the owner of the database."
        error.hints = (*error.hints, "systemctl cat dbguardd", f"let {name} read the database")
    return error


def not_started(half: str, run_as: int, error: OSError) -> GuardError:
    """Return what it means that the kernel did not start a half: mostly that its user may not run our Python."""
    if isinstance(error, PermissionError) and run_as != os.geteuid():
        user = pwd.getpwuid(run_as).pw_name
        if half == "question":
            return cannot_read(user, error)
        return SourceDenied(
            f"{user}, who owns the database, cannot run {sys.executable}",
            detail=f"{error.strerror}. The database is opened by a process of its owner, which needs this Python.",
            hints=[f"let {user} read and execute it and what it imports", 'or set run_as = "root" for the database'],
        )
    return WorkerDied(f"the {half} half of the worker could not be started", detail=error.strerror or str(error))


async def _watch(
    children: list[asyncio.subprocess.Process], on_message: OnMessage, cancel: asyncio.Event, stall_timeout: float
) -> dict[str, Any]:
    """Read messages until the result; a stop request is passed on once."""
    repository = children[0]
    assert repository.stdout is not None  # noqa: S101 it was asked for
    errors = [asyncio.create_task(_tail(child)) for child in children]
    stopping = asyncio.create_task(_stop_on(cancel, repository))
    try:
        while True:
            try:
                async with asyncio.timeout(stall_timeout):  # wait_for() of Python 3.11 may forget to be cancelled
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
        for task in errors:
            task.cancel()


async def _stop_on(cancel: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    """Ask the repository half to stop at its next safe point; force it when it does not."""
    await cancel.wait()
    with suppress(ProcessLookupError):
        process.terminate()
    await asyncio.sleep(_GRACE_SECONDS)
    _kill(process)


async def _tail(process: asyncio.subprocess.Process) -> str:
    """Drain standard error, keeping its end."""
    assert process.stderr is not None  # noqa: S101 it was asked for
    kept = b""
    while data := await process.stderr.read(4096):
        kept = (kept + data)[-_STDERR_BYTES:]
    return kept.decode(errors="replace")


async def _explained(
    error: GuardError, children: list[asyncio.subprocess.Process], errors: list[asyncio.Task[str]]
) -> GuardError:
    """Add how the halves ended, and their last words, to an error that says that one did, or that there is a bug."""
    if not isinstance(error, WorkerDied | Internal):
        return error
    notes = [error.detail] if error.detail else []
    for name, child, tail in zip(("repository", "engine"), children, errors, strict=False):
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await _exit(child)
        if child.returncode:
            notes.append(f"The {name} half ended with {_ending(child.returncode)}.")
        with suppress(TimeoutError):
            notes.append(discreet((await asyncio.wait_for(asyncio.shield(tail), 2)).strip()[-2000:]))
    error.detail = "\n".join(note for note in notes if note)
    return error


def _ending(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"status {returncode}"


async def _end(child: asyncio.subprocess.Process) -> None:
    """Let a half end by itself for a moment, then kill its whole session; always reap it, and let its pipes go."""
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
    """Return when a half has ended.

    wait() also waits for the end of everybody who has its standard error: a process that the owner of the database left
    behind would keep the job, and with it the daemon, for ever.
    """
    while child.returncode is None:
        await asyncio.sleep(_EXIT_SECONDS)


def _kill(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
