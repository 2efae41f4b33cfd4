"""The peers: how each of them is set up, backs up, and restores. Only what is installed takes part."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Commands = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Peer:
    """One tool on a directory of its own. Commands run in the directory of the source, named `db`."""

    name: str
    version: str
    init: Callable[[Path], Commands]
    backup: Callable[[Path, int], Commands]
    restore: Callable[[Path, int, Path], Commands]
    incremental: bool = True
    exact: bool = True  # the restored file equals the source byte by byte
    environment: dict[str, str] = field(default_factory=dict)


def peers() -> list[Peer]:
    """Return every peer that is installed here."""
    return [*_restic(), *_borg(), *_plain()]


def _version(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).split("\n")[0].strip()


def _restic() -> list[Peer]:
    restic = shutil.which("restic")
    if restic is None:
        return []

    def cmd(place: Path, *words: str) -> list[str]:
        return [restic, "-q", "-r", str(place / "repo"), "--cache-dir", str(place / "cache"), *words]

    return [
        Peer(
            "restic",
            _version(restic, "version"),
            lambda place: [cmd(place, "init")],
            lambda place, _: [cmd(place, "backup", "db")],
            lambda place, _, out: [cmd(place, "restore", "latest", "--target", str(out))],
            environment={"RESTIC_PASSWORD": "bench"},
        )
    ]


def _borg() -> list[Peer]:
    borg = shutil.which("borg")
    if borg is None:
        return []
    version = _version(borg, "--version")

    def make(name: str, *options: str) -> Peer:
        return Peer(
            name,
            version,
            lambda place: [[borg, "init", "-e", "repokey", str(place / "repo")]],
            lambda place, n: [[borg, "create", *options, "-C", "zstd,3", f"{place / 'repo'}::b{n}", "db"]],
            lambda place, n, out: [["env", "-C", str(out), borg, "extract", f"{place / 'repo'}::b{n}"]],
            environment={"BORG_PASSPHRASE": "bench", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"},
        )

    return [make("borg zstd-3"), make("borg fixed 64K", "--chunker-params", "fixed,65536")]


def _plain() -> list[Peer]:
    """The floor: tools that store everything again, without encryption."""
    found = []
    if sqlite := shutil.which("sqlite3"):
        version = _version(sqlite, "--version").split(" ")[0]
        for name, statement in (("sqlite3 .backup", ".backup {}"), ("VACUUM INTO", "vacuum into '{}'")):
            found.append(
                Peer(
                    name,
                    version,
                    lambda place: [["mkdir", "-p", str(place / "repo")]],
                    lambda place, n, statement=statement: [[sqlite, "db", statement.format(place / "repo" / f"b{n}")]],
                    lambda place, n, out: [["cp", str(place / "repo" / f"b{n}"), str(out / "db")]],
                    incremental=False,
                    exact=False,
                )
            )
    if zstd := shutil.which("zstd"):
        found.append(
            Peer(
                "zstd -1 -T2",
                _version(zstd, "--version"),
                lambda place: [["mkdir", "-p", str(place / "repo")]],
                lambda place, n: [[zstd, "-q", "-1", "-T2", "-f", "db", "-o", str(place / "repo" / f"b{n}")]],
                lambda place, n, out: [[zstd, "-q", "-d", str(place / "repo" / f"b{n}"), "-o", str(out / "db")]],
                incremental=False,
            )
        )
    return found


def environment(peer: Peer, place: Path) -> dict[str, str]:
    """Return what the tool's processes get to see."""
    return {**os.environ, **peer.environment, "BORG_BASE_DIR": str(place / "borg"), "HOME": str(place)}
