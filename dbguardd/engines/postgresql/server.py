"""A throw-away server: on our own data directory, with our configuration, reachable only by us, deleted afterwards.

Nothing in a backup configures it: no archive_command, no preloaded library, no address to listen on. It serves one
socket, in its data directory, which nobody else may enter. It may connect to nothing, start nothing, and write only
below its data directory's parent (see confine). It ends when we do, by a signal that lets it clean up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dbguardd.engines.postgresql.child import Alive, confined, end, environment, run
from dbguardd.engines.postgresql.connect import Address
from dbguardd.engines.postgresql.meaning import trouble
from dbguardd.engines.postgresql.tools import Tools
from dbguardd.errors import Degraded, NoSpace, ServerUnreachable, Unsupported, of_file
from dbguardd.frozen import frozen

USER = "dbguard"
"""The superuser of a throw-away server that initdb creates here."""

_LOOK_SECONDS = 0.05
_ENDS_SECONDS = 5.0
_SPARE_BYTES = 64 << 20
_LOG = "server.log"
_LOG_BYTES = 2000
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_directories": ".",  # the data directory, whose path may be too long for a socket
    "unix_socket_permissions": "0700",
    "port": "5432",
    "max_connections": "20",
    "max_locks_per_transaction": "4096",  # what is over thousands of partitions locks all of them
    "shared_buffers": "64MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "256MB",
    "temp_buffers": "8MB",
    "huge_pages": "off",
    "shared_memory_type": "mmap",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: deleted with it
    "max_wal_size": "1GB",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "archive_mode": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "ssl": "off",
    "jit": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "fatal",  # all else may quote rows, and be endless
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "lc_messages": "C",
    "client_connection_check_interval": "1s",
    "restart_after_crash": "off",
    "event_triggers": "off",
}
_SINCE = {"event_triggers": 17, "client_connection_check_interval": 14}
"""Settings that older versions do not know, with the first version that does."""


@frozen
class Server:
    """A throw-away server that accepts connections."""

    tools: Tools
    data: Path
    configuration: Path  # the directory of its configuration and its log
    place: int
    """A descriptor of its data directory. Programs that connect have to inherit it."""
    user: str

    def address(self, user: str = "") -> Address:
        """Return its address for libpq, by way of the descriptor: the path may be too long for a socket."""
        return {"host": f"/proc/self/fd/{self.place}", "port": "5432", "user": user or self.user, "sslmode": "disable"}

    def log(self) -> str:
        """Return the end of its log."""
        return _tail(self.configuration / _LOG)


def make_cluster(data: Path, tools: Tools, alive: Alive, *, user: str = USER) -> None:
    """Create an empty cluster in `data`, which must not exist; its superuser is `user`. Raises initdb's failure."""
    refuse_root()
    words = ["--no-sync", "--no-instructions", "--auth=trust", f"--username={user}", "--encoding=UTF8", "--locale=C"]
    said = run([tools.path("initdb"), *words, f"--pgdata={data}"], alive)
    if said.status != 0:
        shutil.rmtree(data, ignore_errors=True)
        kind = trouble(said.errors) or Degraded
        raise kind(f"{data}: initdb of PostgreSQL {tools.version} failed", detail=said.errors[-_LOG_BYTES:])


@contextmanager
def throwaway(
    data: Path,
    tools: Tools,
    alive: Alive,
    *,
    user: str = USER,
    settings: Mapping[str, str] | None = None,
    recovery: bool = False,
    keep: bool = False,
    configuration: Path | None = None,
    spaces: Sequence[Path] = (),
) -> Iterator[Server]:
    """Run a server on the cluster in `data` for the length of a block; then delete it with `data`.

    With `keep` it is shut down cleanly and `data` stays; then it may write nothing beside `data`.

    `data` belongs to us, and all configuration files are written anew: into `configuration`, so that nobody ever starts
    a server on `data` with our settings, which trade safety for speed; or into `data` if that is to be deleted.
    `settings` are added to ours. `spaces` are tablespaces elsewhere. A `recovery` may run its restore_command. Yields
    once the server accepts connections; `alive` is called until then. Raises Degraded with the end of its log if it
    does not start, and what `alive` raises.
    """
    refuse_root()
    process: subprocess.Popen[bytes] | None = None
    place = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        data.chmod(0o700)
        told = configuration or data
        (data / "postmaster.pid").unlink(missing_ok=True)
        configure(told, tools.major, settings or {})
        kind, writes = "recovery" if recovery else "server", [data if keep else data.parent, *spaces]
        process = _start(data, told, tools, confined(kind, signal.SIGQUIT, [str(place) for place in writes]))
        _await(data, told / _LOG, process, tools, alive)
        yield Server(tools, data, told, place, user)
        if keep:
            _shut_down(process, alive)
    except ServerUnreachable as error:
        if process is None or not _has_ended(process):
            raise
        said = _tail(told / _LOG) or error.detail
        meaning = trouble(said) or Degraded
        raise meaning(
            f"{data}: the throw-away server of PostgreSQL {tools.version} ended before all questions were answered",
            detail=f"{said}\nThis says nothing about the data. A host that is out of memory kills its largest process.",
            hints=["journalctl -k  # what ended it"],
        ) from error
    finally:
        if process is not None:
            end(process, signal.SIGINT if keep else signal.SIGQUIT)  # immediately if nothing is to be kept
        os.close(place)
        if not keep:
            shutil.rmtree(data, ignore_errors=True)


def configure(place: Path, major: int, settings: Mapping[str, str]) -> None:
    """Write all configuration files of a server into a directory, replacing files and links that are there."""
    told = {name: value for name, value in _SETTINGS.items() if major >= _SINCE.get(name, 0)} | dict(settings)
    lines = "".join(f"{name} = '{_quoted(value)}'\n" for name, value in told.items())
    ours = {
        "postgresql.conf": lines,
        "postgresql.auto.conf": "",
        "pg_hba.conf": "local all all trust\n",
        "pg_ident.conf": "",
        _LOG: "",
    }
    for name, content in ours.items():
        path = place / name
        try:
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "w", encoding="utf-8") as opened:
                opened.write(content)
        except OSError as error:
            raise of_file(f"{path}: cannot be written", error) from error


def roomy(place: Path, alive: Alive) -> Alive:
    """Return `alive` for running others' code: it raises NoSpace before that code has filled the disk.

    Others write to the disk too; a restore makes sure that twice this minimum stays free.
    """
    disk = os.statvfs(place)
    least = min(_SPARE_BYTES, disk.f_blocks * disk.f_frsize // 20) // 2

    def look() -> None:
        alive()
        if (free := room(place)) < least:
            raise NoSpace(
                f"{place}: the test restore has filled the free space",
                detail=f"No space left on its disk: {free} bytes. A function in the database may have caused that.",
                facts={"free_bytes": free},
            )

    return look


def room(place: Path) -> int:
    """Return how many bytes may be written on the disk of a place."""
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def refuse_root() -> None:
    """Raise Unsupported for root: PostgreSQL does not run as root, and we could not confine it either."""
    if os.geteuid() == 0:
        raise Unsupported(
            "PostgreSQL does not run as root, so no throw-away server can be started",
            detail="It is started by the user who opens the database; for a local server, that is its owner.",
            hints=['set run_as = "postgres" for the database'],
        )


def _start(data: Path, told: Path, tools: Tools, first: list[str]) -> subprocess.Popen[bytes]:
    files = {"config_file": "postgresql.conf", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    places = [word for setting, name in files.items() for word in ("-c", f"{setting}={told / name}")]
    words = [*first, tools.path("postgres"), "-D", str(data), *places]
    try:
        with (told / _LOG).open("ab") as log:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), cwd="/")
    except OSError as error:
        raise of_file(f"{tools.path('postgres')}: cannot be started", error) from error


def _await(data: Path, log: Path, process: subprocess.Popen[bytes], tools: Tools, alive: Alive) -> None:
    """Return when the server accepts connections, according to the last line of its postmaster.pid."""
    while True:
        with suppress(FileNotFoundError):
            state = (data / "postmaster.pid").read_text(errors="replace").splitlines()
            if len(state) >= 8 and state[7].strip() == "ready":  # "standby": in recovery, and accepts no connections
                return
        if process.poll() is not None:
            said = _tail(log)
            kind = trouble(said) or Degraded
            raise kind(f"{data}: a throw-away server of PostgreSQL {tools.version} did not start", detail=said)
        alive()
        time.sleep(_LOOK_SECONDS)


def _shut_down(process: subprocess.Popen[bytes], alive: Alive) -> None:
    """Wait until a server has written all that it changed: a slow disk takes long, and if killed it has to recover."""
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        alive()
        time.sleep(_LOOK_SECONDS)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether an unreachable server has ended: its socket may disappear just before the process does."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDS_SECONDS)
    return process.returncode is not None


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _tail(path: Path) -> str:
    with suppress(OSError):
        return path.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
    return ""
