"""A cluster whose server is stopped: which processes use it, what it is, and a backup of it exactly as it lies there.

An undo restores such a backup: all files, including the WAL, as the server left them. No server is started on it;
whether it was shut down cleanly or crashed, its own server continues from there.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from dbguardd.engines.base import Progress
from dbguardd.engines.landing import describe, naming, outcome, outcomes, users
from dbguardd.engines.postgresql.physical.cluster import Cluster
from dbguardd.engines.postgresql.physical.copy import Copy, now
from dbguardd.engines.postgresql.physical.datadir import CONTROL, TABLESPACES, DataDirectory
from dbguardd.engines.postgresql.physical.facts import ClusterFacts
from dbguardd.engines.postgresql.physical.segments import WalTimeline
from dbguardd.engines.postgresql.tools import find_tools
from dbguardd.engines.postgresql.typed import as_owner
from dbguardd.errors import GuardError, SourceInvalid, TargetInUse
from dbguardd.flow import Facts, Sink
from dbguardd.frozen import frozen

LOCK = "postmaster.pid"
_CONTROL = struct.Struct("=QIII4xqQQIIB")
"""pg_control of version 15 and later: system identifier, version, catalog, state, time, last checkpoint, redo start,
timeline, previous timeline, and whether full_page_writes was on.
"""
_SPACE = re.compile(r"\d+")


@frozen
class Resting:
    """What the files of a cluster say about it."""

    data: Path
    major: int
    system: int
    catalog: int
    timeline: int
    checkpoint: int
    whole_pages: bool
    spaces: Mapping[str, str]  # the places of its tablespaces, by OID

    @property
    def version_directory(self) -> str:
        """The name of this version's directory in a tablespace."""
        return f"PG_{self.major}_{self.catalog}"

    @property
    def directories(self) -> list[str]:
        """The directories that contain its files."""
        log = os.path.realpath(self.data / "pg_wal")
        return [str(self.data), *self.spaces.values(), *([log] if Path(log).parent != self.data else [])]


def look_at(data: Path) -> Resting:
    """Read what is there. Raises SourceInvalid if it is no cluster."""
    try:
        major = int((data / "PG_VERSION").read_bytes())
        told = _CONTROL.unpack_from((data / CONTROL).read_bytes())
        links = [link for link in (data / TABLESPACES).iterdir() if _SPACE.fullmatch(link.name) and link.is_symlink()]
    except (OSError, ValueError, struct.error) as error:
        raise SourceInvalid(
            f"{data}: it is not known whose cluster is there",
            detail=f"Nothing of it is overwritten. {error}",
            hints=[shlex.join(["mv", "-nT", str(data), f"{data}.broken"]) + "  # and restore again"],
        ) from error
    spaces = {link.name: os.readlink(link) for link in links}
    return Resting(data, major, told[0], told[2], told[7], told[5], bool(told[9]), spaces)


def refuse_users(resting: Resting, live: Path, service: str) -> None:
    """Raise TargetInUse, with the command that ends it, if a server or another process uses the directories."""
    data = str(resting.data)
    found = users(resting.directories, below=True)
    server = _server(resting.data)
    if server in found:
        raise TargetInUse(
            f"{live}: a server runs there ({describe(server)})",
            hints=[f"systemctl stop {shlex.quote(service)}" if service else _stop(resting)],
            facts={"pids": found},
        )
    if found:
        named = ", ".join(describe(pid) for pid in found)
        raise TargetInUse(f"{data}: in use by {named}", hints=[naming(found, data)], facts={"pids": found})


def _server(data: Path) -> int:
    with suppress(OSError, ValueError):
        return int((data / LOCK).read_text().split("\n", 1)[0])
    return 0


def _stop(resting: Resting) -> str:
    try:
        control = find_tools("pg_ctl", resting.major).path("pg_ctl")
    except GuardError:
        control = "pg_ctl"
    return shlex.join(as_owner(control, "-D", str(resting.data), "-m", "fast", "stop"))


@contextmanager
def held(resting: Resting, live: Path, service: str) -> Iterator[None]:
    """Keep every server from starting in the directory for the length of a block, by creating its postmaster.pid.

    Raises TargetInUse. If we are killed, the next server sees that our process is gone.
    """
    refuse_users(resting, live, service)
    lock = resting.data / LOCK
    try:
        lock.unlink(missing_ok=True)  # left by a crashed server: no process is here
        file = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise TargetInUse(f"{live}: a server was started there just now") from None
    except OSError as error:
        raise outcome(resting.data, error) from error
    try:
        with os.fdopen(file, "wb", buffering=0) as opened, outcomes(resting.data):
            opened.write(f"{os.getpid()}\n{resting.data}\n".encode())
        refuse_users(resting, live, service)
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # also one that the disk had no room for: no server starts with an empty one


def keep(resting: Resting, sink: Sink, facts: ClusterFacts, progress: Progress) -> Facts:
    """Back up everything as it lies there. `facts`, of a backup of the same cluster, supply what no file says.

    All files are read: one damaged on disk has its old timestamps, and may be the reason for the restore.
    """
    log = WalTimeline(resting.system, resting.timeline, facts.segment_bytes)
    spaces = {oid: (facts.tablespaces.get(oid, (oid, ""))[0], place) for oid, place in resting.spaces.items()}
    opened = DataDirectory(str(resting.data), resting.spaces, resting.version_directory, resting=True)
    with closing(opened) as directory:
        cluster = Cluster(
            version=facts.server_version,
            major=resting.major,
            directory=directory.path,
            page=facts.page_size,
            checksums=facts.checksums,
            whole_pages=resting.whole_pages,
            catalog=resting.catalog,
            prepared=facts.prepared,
            locks=facts.locks,
            bounded=False,
            started=b"",
            standby=False,
            log=log,
            tablespaces={oid: (name.encode(), place) for oid, (name, place) in spaces.items()},
            configuration={},
        )
        copy = Copy(directory, cluster, sink, now(), lambda done: progress("copy", done, None), every=True)
        copy.relations()
        directory.check_walked()  # an undo without a tablespace, whose disk is missing, would mix two states
        copy.files()
        copy.last()
        copy.control()
        kept = replace(
            facts,
            resting=True,
            owner=pwd.getpwuid(os.fstat(directory.file).st_uid).pw_name,
            major=resting.major,
            system=resting.system,
            timeline=resting.timeline,
            start_lsn=resting.checkpoint,
            stop_lsn=resting.checkpoint,
            recovery_lsn=resting.checkpoint,
            recovery_record_bytes=None,
            started="",
            snapshots={},
            snapshot_at=datetime.now(UTC).isoformat(),
            tablespaces=spaces,
            size_bytes=copy.done,
            log_place=None,
        )
        return {**kept.stored(), "left_out": directory.left_out, "reused_files": copy.reused}
