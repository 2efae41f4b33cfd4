"""Trees of Debian, made once and kept outside the repository; whatever is done in them is done in a layer that goes.

A tree comes from the mirrors that this host's own apt uses. Its name says what is in it, so that another list of
packages is another tree.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

SUITES = ("bookworm", pytest.param("trixie", marks=pytest.mark.soak))
"""What packages are tested on: a second release takes a second package and a second machine, and minutes of CI."""

ONE_SUITE = pytest.mark.parametrize("suite", ["bookworm"], indirect=True)
"""Marks a test of what depends on no release of Debian."""

MACHINE = ("systemd", "systemd-sysv", "dbus", "python3", "tzdata", "rpm")
"""What a machine has before dbguard comes: all that the package depends on, because no machine has a network.

And rpm, on which the package does not depend: a second tree with it takes as long to make as the first.
"""

BUILD = ("build-essential", "debhelper", "dh-python", "python3-dev", "python3-venv", "rpmlint")
PROGRAMS = ("mmdebstrap", "systemd-nspawn", "apt-get", "unshare", "nsenter", "setpriv")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def cache() -> Path:
    """Where trees, wheels and packages stay from one run to the next."""
    home = os.environ.get("XDG_CACHE_HOME")
    place = Path(home) if home else Path("/var/cache")
    return place / "dbguard-test"


def missing() -> str:
    """Say what keeps this host from booting machines; nothing if it can."""
    if os.geteuid() != 0:
        return "only root can boot machines"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install mmdebstrap systemd-container"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        return "this host lets nobody make namespaces: a container without privileges?"
    return "" if _mirrors() else "apt here has no Debian to take trees from"


@contextmanager
def made(path: Path) -> Iterator[Path | None]:
    """Give a place to make `path` in, or None if it is there; whoever comes at the same time waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        draft = path.with_name(f"{path.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        yield draft
        draft.rename(path)


def tree(suite: str, packages: Sequence[str]) -> Path:
    """Return a minimal system of this suite with these packages. Skips where the mirrors do not give it."""
    digest = hashlib.sha256("\0".join((suite, *packages)).encode()).hexdigest()[:12]
    with made(cache() / f"{suite}-{digest}") as draft:
        if draft is not None:
            _fill(draft, "minbase", suite, packages)
            (draft / "etc/machine-id").write_text("")  # machine-id(5): each boot gets one, and asks nothing
    return cache() / f"{suite}-{digest}"


def programs(suite: str, package: str, folder: str) -> Path:
    """Return where the programs of a package of another suite are, which run on this host. Skips like tree().

    They are bound to the loader and the libraries that were unpacked with them: those of this host may be older.
    """
    absent = [name for name in ("mmdebstrap", "patchelf") if shutil.which(name) is None]
    if os.geteuid() != 0 or absent or not _mirrors():
        pytest.skip(f"no {package}: needs root, apt with Debian, and {' '.join(absent) or 'no program'}")
    place = cache() / f"{package}-{suite}"
    with made(place) as draft:
        if draft is not None:
            _fill(draft, "extract", suite, [package])
            (loader,) = draft.glob("usr/lib/*-linux-gnu/ld-linux*.so.*")
            loader = place / loader.relative_to(draft)
            bound = ["--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent]
            for program in (draft / folder).iterdir():
                if program.read_bytes()[:4] == b"\x7fELF":
                    subprocess.run(["patchelf", *bound, program], check=True)
    return place / folder


def _fill(draft: Path, variant: str, suite: str, packages: Sequence[str]) -> None:
    sources = [f"deb [signed-by={_KEYRING}] {mirror} {suite} main" for mirror in _mirrors()]
    done = subprocess.run(  # in a namespace of its own: what it has mounted goes with it, also if it is killed
        ["unshare", "--mount", "mmdebstrap", "--mode=root", f"--variant={variant}",
         "--dpkgopt=force-unsafe-io", f"--include={','.join(packages)}", *_options(), suite, draft, *sources],
        check=False, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no tree of {suite}: {done.stderr.strip().splitlines()[-1:]}")


def _mirrors() -> list[str]:
    """Return where apt on this host gets the release that it is of: other releases of Debian are there too."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line).get("VERSION_CODENAME", "").strip('"')
    form = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Identifier: Packages"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    known = [line.split(" ", 2) for line in asked.stdout.splitlines()]
    return list(dict.fromkeys(uri for suite, component, uri in known if (suite, component) == (release, "main")))


def _options() -> list[str]:
    """Return how apt on this host is told to get at them: proxies, retries, clocks that are wrong."""
    kept = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until")
    told = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [f"--aptopt={line}" for line in told if line.startswith(kept) and not line.endswith(' "";')]
