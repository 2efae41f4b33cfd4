"""The listening socket: inherited from systemd, or created so that no other process can replace or displace it."""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from dbguardd.errors import PolicyInvalid, PolicyUnsafe, SecondInstance, Usage, of_file
from dbguardd.frozen import frozen

_BACKLOG = 128
_FIRST_INHERITED = 3  # sd_listen_fds(3)


@frozen
class Listener:
    """A non-blocking listening socket; close() closes it and removes the files that were created for it."""

    socket: socket.socket
    made: tuple[Path, int, int] | None  # path, device and inode of the socket file, if this process created it
    lock: int | None  # holds PATH.lock while listening

    def close(self) -> None:
        """Stop listening. The socket file is removed only if it is still the one that this process created."""
        self.socket.close()
        if self.made is not None:
            path, device, inode = self.made
            try:
                seen = path.lstat()
                if (seen.st_dev, seen.st_ino) == (device, inode):
                    path.unlink()
            except FileNotFoundError:
                pass
        if self.lock is not None:
            os.close(self.lock)


def listen(path: Path, group: str | None, mode: int, environ: Mapping[str, str], pid: int) -> Listener:
    """Return the socket that systemd passed (LISTEN_FDS), or one created at `path`.

    Raises SecondInstance (another process listens there or holds its lock), PolicyUnsafe, PolicyInvalid, Usage.
    """
    inherited = _inherited(path, environ, pid)
    if inherited is not None:
        return Listener(inherited, None, None)
    try:
        _safe_directory(path.parent)
        lock = _lock(path)
    except OSError as error:
        raise of_file(f"{path}: the socket cannot be made there", error) from error
    try:
        _not_answered(path)
        return _make(path, group, mode, lock)
    except BaseException:
        os.close(lock)
        raise


def _inherited(path: Path, environ: Mapping[str, str], pid: int) -> socket.socket | None:
    if environ.get("LISTEN_PID") != str(pid) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    if environ["LISTEN_FDS"] != "1":
        raise Usage(
            f"{path}: one socket is expected from the service manager", detail=f"LISTEN_FDS={environ['LISTEN_FDS']}"
        )
    try:
        passed = socket.socket(fileno=_FIRST_INHERITED)
    except OSError as error:
        raise Usage("LISTEN_FDS: descriptor 3 is not a socket", detail=str(error)) from error
    fits = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
    if not fits or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        passed.detach()
        raise Usage("LISTEN_FDS: descriptor 3 is not a listening Unix stream socket")
    passed.setblocking(False)
    passed.set_inheritable(False)
    return passed


def _safe_directory(directory: Path) -> None:
    """Create the directory if only its last part is missing; refuse one in which others could replace the socket."""
    if not directory.exists():
        directory.mkdir(mode=0o755)
    seen = directory.stat()
    if seen.st_uid not in (0, os.geteuid()):
        raise PolicyUnsafe(f"{directory}: has another owner", detail=f"owner uid {seen.st_uid}")
    shared = seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not seen.st_mode & stat.S_ISVTX:
        raise PolicyUnsafe(
            f"{directory}: others may replace the socket in it",
            detail=f"mode {stat.S_IMODE(seen.st_mode):04o}",
            hints=(f"chmod go-w {directory}",),
        )


def _lock(path: Path) -> int:
    """Take PATH.lock: without it, two daemons that start together could both find the socket unused."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SecondInstance(f"{path}: another dbguardd listens there", detail=f"{path}.lock is held") from error
    return lock


def _not_answered(path: Path) -> None:
    """Refuse if a process listens at the path without the lock, or if the file there is not a socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise PolicyUnsafe(f"{path}: is in the way and is not a socket", hints=(f"ls -l {path}",))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:  # EAGAIN: it listens and its queue is full; on other errors, do not replace it either
            raise SecondInstance(
                f"{path}: another process listens there", detail=error.strerror or str(error)
            ) from error
    raise SecondInstance(f"{path}: another process listens there")


def _make(path: Path, group: str | None, mode: int, lock: int) -> Listener:
    """Bind under a draft name, set mode and group, listen, then rename to the path: no half-made socket is visible."""
    mark = "+" if path.name.startswith("~") else "~"
    draft = path.with_name(mark + path.name[1:])  # not longer than the path itself: the kernel allows 107 bytes
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if draft.is_socket():
            draft.unlink()  # left by a killed start; we hold the lock, so no other process is creating one
        made.bind(str(draft))
        draft.chmod(mode)
        if group is not None:
            os.chown(draft, -1, grp.getgrnam(group).gr_gid, follow_symlinks=False)
        made.listen(_BACKLOG)
        made.setblocking(False)
        draft.rename(path)
        seen = path.lstat()
        return Listener(made, (path, seen.st_dev, seen.st_ino), lock)
    except KeyError as error:
        made.close()
        draft.unlink(missing_ok=True)
        raise PolicyInvalid(f"{group}: no such group; it should own {path}", hints=(f"groupadd {group}",)) from error
    except OSError as error:
        made.close()
        if draft.is_socket():
            draft.unlink()
        if "too long" in str(error):
            raise Usage(f"{path}: the path of a Unix socket has at most 107 bytes") from error
        raise of_file(f"{path}: the socket cannot be made there", error) from error
