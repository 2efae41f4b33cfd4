"""Builds packages as `make deb` and `make rpm` do, in a tree of the suite they are for; what did not change is kept."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.packaging.trees import BUILD, MACHINE, cache, made, tree

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    *("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"),
    *("dbguardd", "dbguardctl", "etc", "man", "packaging", "systemd"),
)
"""What packaging/build-* copies from."""

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
_CHROOT = """
set -eu
mount -t tmpfs tmpfs "$PLACE"
mkdir "$PLACE/upper" "$PLACE/work" "$PLACE/root"
mount -t overlay -o lowerdir="$TREE",upperdir="$PLACE/upper",workdir="$PLACE/work" overlay "$PLACE/root"
cd "$PLACE/root"
mkdir source wheels out
mount --rbind "$SOURCE" source
mount --rbind "$WHEELS" wheels
mount --rbind "$OUT" out
mount --rbind /dev dev
mount -t proc proc proc
exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
"""


def in_build_tree(
    suite: str, wheels: Path, out: Path, *argv: str, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command in a layer above the build tree, with /source, /wheels and /out, and without a network.

    The tree also has the packages `more`.
    """
    place = out / "room"
    place.mkdir(parents=True)
    where = {
        "PLACE": place,
        "TREE": tree(suite, (*MACHINE, *BUILD, *more)),
        "SOURCE": ROOT,
        "WHEELS": wheels,
        "OUT": out,
    }
    done = subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
         "--propagation", "private", "sh", "-c", _CHROOT, "sh", *argv],
        env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", **{name: str(path) for name, path in where.items()}},
        check=False, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    place.rmdir()
    return done


def wheels(suite: str) -> Path:
    """Return a directory with what packaging/constraints*.txt pin for the Python of the suite."""
    digest = digest_of(sorted((ROOT / "packaging").glob("constraints*.txt")))
    path = cache() / f"wheels-{PYTHONS[suite]}-{digest}"
    with made(path) as draft:
        if draft is not None:
            subprocess.run([ROOT / "packaging/fetch", draft, PYTHONS[suite]], check=True)
    return path


def package(suite: str, kind: str) -> Path:
    """Return the .deb or .rpm for a suite, built from the sources as they are."""
    found = wheels(suite)
    path = cache() / f"{kind}-{suite}-{digest_of([ROOT / name for name in SOURCES])}-{found.name}"
    with made(path) as draft:
        if draft is not None:
            build(suite, kind, draft)
    (built,) = path.glob(f"*.{kind}")
    return built


def build(suite: str, kind: str, out: Path) -> Path:
    """Build a package into `out`, a new directory."""
    done = in_build_tree(suite, wheels(suite), out, f"/source/packaging/build-{kind}", "/source", "/wheels", "/out")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    (built,) = out.glob(f"*.{kind}")
    return built


def digest_of(paths: Sequence[Path]) -> str:
    """Return a digest of files and of what is in directories, names included."""
    digest = hashlib.sha256()
    for top in paths:
        files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
        for path in files:
            if "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode & 0o111}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
