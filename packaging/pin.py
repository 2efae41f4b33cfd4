"""Writes constraints.txt and constraints-build.txt anew: the newest versions that pyproject.toml allows, with hashes.

    .venv/bin/python packaging/pin.py

What is pinned is a version and the digests of the files that a package is built from, on the Pythons and machines of
PYTHONS and MACHINES. Where they come from is pip's own configuration, and not written down.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.13")  # of Debian 12 and 13
MACHINES = ("x86_64", "aarch64")
C_LIBRARIES = ("2_36", "2_34", "2_28", "2_17", "2_12", "2_5")  # not newer than that of Debian 12
SOURCES = ("fastcdc", "sdnotify")  # released without wheels: these are made when a package is built
TOOLS = ("cython", "poetry-core", "setuptools>=77", "wheel")  # what compiles those, and us
HEAD = "# Written by packaging/pin.py. {}\n"


def main() -> int:
    """Write both files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    write("constraints.txt", "What runs, in /usr/lib/dbguard.", project["project"]["dependencies"])
    write("constraints-build.txt", "What builds that; nothing of it is installed.", TOOLS)
    return 0


def write(file: str, what: str, wanted: Sequence[str]) -> None:
    """Resolve what is wanted and write its pins."""
    versions = {name(item): item["metadata"]["version"] for item in report(wanted)}
    pins: dict[str, set[str]] = {}
    for item in chosen(versions):
        pins.setdefault(name(item), set()).add(item["download_info"]["archive_info"]["hash"])
    lines = [HEAD.format(what)]
    for key in sorted(pins):
        hashes = "".join(f" \\\n    --hash={digest.replace('=', ':')}" for digest in sorted(pins[key]))
        lines.append(f"{key}=={versions[key]}{hashes}\n")
    (HERE / file).write_text("".join(lines))


def chosen(versions: dict[str, str]) -> Iterable[Any]:
    """Yield what pip would install of these versions, on every Python and machine."""
    pinned = [f"{key}=={version}" for key, version in versions.items() if key not in SOURCES]
    for python in PYTHONS:
        for machine in MACHINES:
            platforms = [word for libc in C_LIBRARIES for word in ("--platform", f"manylinux_{libc}_{machine}")]
            yield from report(pinned, "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms)
    sources = [f"{key}=={version}" for key, version in versions.items() if key in SOURCES]
    if sources:
        yield from report(sources, "--no-deps", "--no-binary=:all:")


def name(item: Any) -> str:
    """Return the name of a package in the one form that all its spellings have."""
    return re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()


def report(wanted: Sequence[str], *options: str) -> list[Any]:
    """Return what pip would install."""
    with tempfile.TemporaryDirectory() as nowhere:
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report=-"]
        done = subprocess.run([*command, f"--target={nowhere}", *options, *wanted], check=True, stdout=subprocess.PIPE)
    return list(json.loads(done.stdout)["install"])


if __name__ == "__main__":
    sys.exit(main())
