"""How the peers of a cluster's backup are set up, back up, and restore. Only what is installed takes part.

Several releases of pgBackRest take part if several directories of PATH have one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.measure import Figures, run, size_of

if TYPE_CHECKING:
    from tests.bench.postgresql import Cluster

Act = Callable[[str], Figures | None]
"""Does one phase; None if the tool has nothing like it."""
Peer = tuple[str, Callable[["Cluster", Path], AbstractContextManager[Act]]]

NEW_PGBACKREST = "pgbackrest with blocks"
"""Any release that stores the blocks of a file that have changed (2.46), as the issue's 2.60 does."""


def peers() -> list[Peer]:
    """Return every peer that is installed here."""
    barman = shutil.which("barman")
    return [("pg_basebackup", _basebackup), *pgbackrests(), *([("barman", _barman)] if barman else [])]


@cache
def pgbackrests() -> tuple[Peer, ...]:
    """Return each release that is in PATH, the older ones by the plain name."""
    found: dict[str, Peer] = {}
    for directory in os.get_exec_path():
        program = Path(directory, "pgbackrest")
        if os.access(program, os.X_OK):
            version = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout.split()[1]
            blocks = tuple(map(int, version.split(".")[:2])) >= (2, 46)
            if version not in found:
                print(f"pgbackrest {version}: {program}, {'with' if blocks else 'without'} blocks")
                found[version] = (NEW_PGBACKREST if blocks else "pgbackrest", _pgbackrest(program, blocks))
    return tuple(found.values())


@contextmanager
def _basebackup(live: Cluster, work: Path) -> Iterator[Act]:
    program = str(live.programs / "pg_basebackup")

    def act(phase: str) -> Figures | None:
        if phase not in ("full", "changed"):
            return None
        target = work / "repo" / phase
        words = ["-D", str(target), "-Ft", "-Xs", "-cfast", "--compress=client-zstd:level=1,workers=2"]
        figures = run([[program, *words]], work, live.environment)
        figures.stored = size_of(target)
        return figures

    yield act


def _pgbackrest(program: Path, blocks: bool) -> Callable[[Cluster, Path], AbstractContextManager[Act]]:
    @contextmanager
    def running(live: Cluster, work: Path) -> Iterator[Act]:
        conf = work / "pgbackrest.conf"
        for name in ("lock", "log", "spool"):
            (work / name).mkdir()
        conf.write_text(
            f"[global]\nrepo1-path={work}/repo\nrepo1-retention-full=9\nrepo1-bundle=y\n"
            + ("repo1-block=y\n" if blocks else "")
            + "repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchbenchbench\ncompress-type=zst\ncompress-level=3\n"
            f"process-max=2\nstart-fast=y\nlog-path={work}/log\nlock-path={work}/lock\nspool-path={work}/spool\n"
            f"log-level-console=error\nlog-level-file=off\n"
            f"[main]\npg1-path={live.data}\npg1-port={live.port}\npg1-socket-path={live.place}\n"
        )
        command = [str(program), f"--config={conf}", "--stanza=main"]

        def act(phase: str) -> Figures | None:
            if phase == "delta":
                return None  # its own compares by times and sizes, or reads all of both
            before = size_of(work / "repo")
            words = ["--type=full" if phase == "full" else "--type=incr", "backup"]
            if phase == "restore":
                (work / "out").mkdir(mode=0o700)
                words = [f"--pg1-path={work}/out", "restore"]
            figures = run([[*command, *words]], work, live.environment)
            figures.stored = size_of(work / "repo") - before
            return figures

        with _archiving(live, f"{' '.join(command)} archive-push %p"):
            run([[*command, "stanza-create"]], work, live.environment)
            yield act

    return running


@contextmanager
def _barman(live: Cluster, work: Path) -> Iterator[Act]:
    """Files that have not changed are hard links to the backup before: it does not look into files."""
    home, conf = work / "repo", work / "barman.conf"
    incoming = home / "main" / "incoming"
    for directory in (incoming, work / "none"):
        directory.mkdir(parents=True)
    conf.write_text(
        f"[barman]\nbarman_home={home}\nbarman_user={live.environment.get('USER', 'postgres')}\n"
        f"log_file={work}/barman.log\nconfiguration_files_directory={work}/none\npath_prefix={live.programs}\n"
        f"[main]\ndescription=bench\nconninfo=host={live.place} port={live.port} user=postgres dbname=postgres\n"
        "backup_method=local-rsync\nreuse_backup=link\narchiver=on\nparallel_jobs=2\n"
    )
    command = [shutil.which("barman") or "", "-c", str(conf)]

    def act(phase: str) -> Figures | None:
        if phase == "delta":
            return None
        before = size_of(home)
        words = ["recover", "main", "latest", str(work / "out")] if phase == "restore" else ["backup", "main"]
        figures = run([[*command, *words]], work, live.environment)
        figures.stored = size_of(home) - before
        return figures

    with _archiving(live, f"cp %p {incoming}/%f"):
        subprocess.run([*command, "archive-wal", "main"], capture_output=True, check=False)  # makes its directories
        run([[*command, "switch-wal", "--force", "--archive", "main"]], work, live.environment)
        yield act


@contextmanager
def _archiving(live: Cluster, how: str) -> Iterator[None]:
    live.sql(f"ALTER SYSTEM SET archive_command = '{how}'")
    live.sql("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        live.sql("ALTER SYSTEM SET archive_command = '/bin/true'")
        live.sql("SELECT pg_reload_conf()")
