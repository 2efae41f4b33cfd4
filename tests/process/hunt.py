"""Searches for a secret everywhere but in the daemon's own memory: files, process listings, output, answers.

A search that finds nothing proves nothing: each one also searches for a text that must be there.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbguardd.errors import GuardError
from tests.process.house import House
from tests.process.journald import Journal

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - looked at, not used
MOST_BYTES = 64 << 20


def forms(secret: bytes) -> list[bytes]:
    """Return the encodings in which a secret could leak."""
    known = [secret, secret.lower(), secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
    coded = [base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b32encode(secret)]
    escaped = json.dumps(secret.decode("latin-1"))[1:-1].encode()
    return [*known, escaped, *(form.rstrip(b"=")[:-1] for form in coded)]


class Hunt:
    """A search of one house. `planted` are the files in which the secret belongs."""

    def __init__(self, house: House, *planted: Path, journal: Journal | None = None) -> None:
        self.house = house
        self.planted = {path.resolve() for path in planted}
        self.journal = journal
        self._before = set(_temporary())

    def is_nowhere(self, *secrets: str | bytes) -> None:
        """Assert that no secret is found anywhere, while the same search finds a text that is no secret."""
        places = list(self.everywhere())
        assert any(str(self.house.policy).encode() in content for where, content in places if where.endswith("cmdline"))
        _search(places, secrets)

    def is_nowhere_kept(self, *secrets: str | bytes) -> None:
        """Assert the same after the daemon has ended."""
        _search(list(self._kept()), secrets)

    def everywhere(self) -> Iterator[tuple[str, bytes]]:
        """Yield every place by name, with its content."""
        yield from self._kept()
        yield from self._processes()
        yield from self._answers()

    def _kept(self) -> Iterator[tuple[str, bytes]]:
        """Yield what is still there after the daemon has ended."""
        yield "log", self.house.log.read_bytes()
        if self.journal is not None:
            yield "journal files", self.journal.raw()
            yield "journal", self.journal.journalctl("--output=export", "--all").encode()
            yield "journal -x", self.journal.journalctl("-x", "--all").encode()
        yield from self._files()

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the files in the daemon's directories, and the temporary files created since the search began."""
        ours = [path for path in self.house.place.rglob("*") if path != self.house.log]
        for path in [*ours, *(set(_temporary()) - self._before)]:
            if path.resolve() not in self.planted:
                with suppress(OSError):
                    if path.is_file() and not path.is_symlink():
                        yield str(path), path.read_bytes()[:MOST_BYTES]

    def _processes(self) -> Iterator[tuple[str, bytes]]:
        """Yield what /proc shows of every process, and the files that the daemon's processes have open."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            for part in ("cmdline", "environ"):
                with suppress(OSError):
                    yield f"/proc/{name}/{part}", Path(f"/proc/{name}/{part}").read_bytes()
        for options in (["-eww", "-o", "args"], ["eww", "-e"]):
            yield f"ps {options}", subprocess.run(["ps", *options], capture_output=True, check=False).stdout
        for pid in self.tree():
            with suppress(OSError):
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    yield from self._open(file)

    def _open(self, file: Path) -> Iterator[tuple[str, bytes]]:
        with suppress(OSError):
            leads = os.readlink(file)
            if stat.S_ISREG(file.stat().st_mode) and Path(leads).resolve() not in self.planted:
                yield f"{file} -> {leads}", file.read_bytes()[:MOST_BYTES]

    def tree(self) -> list[int]:
        """Return the pids of the daemon and all its descendants."""
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        found = [] if self.house.process is None else [self.house.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def _answers(self) -> Iterator[tuple[str, bytes]]:
        """Yield the daemon's answers to a peer with the role read."""
        names = [row["name"] for row in self._ask("status")["databases"]]
        ids = [row["id"] for row in self.house.jobs()]
        ids += [row["id"] for name in names for row in self.house.backups(name)]
        asked = ["status", "keys", "audit", "schedule", "config", "config/diff"]
        for what in (*asked, *(f"show/{name}" for name in (*names, *ids))):
            yield f"GET {what}", json.dumps(self._ask(*what.split("/")), ensure_ascii=False).encode()
        yield "GET events", json.dumps(self._ask("events", limit=10_000), ensure_ascii=False).encode()
        yield "dbguardctl log", self.house.ctl("log", "-v", "-n", "10000").out.encode()

    def _ask(self, *parts: str, **query: object) -> dict[str, Any]:
        """Return an answer; a refusal is one, too."""
        try:
            return self.house.api.get(*parts, **query)
        except GuardError as error:
            return error.problem()


def _search(places: list[tuple[str, bytes]], secrets: Sequence[str | bytes]) -> None:
    assert any(b"daemon.ready" in content for where, content in places if where in ("log", "journal"))
    assert any(where.endswith("catalog.db") for where, _ in places)
    for secret in secrets:
        looks = forms(secret if isinstance(secret, bytes) else secret.encode())
        found = [where for where, content in places if any(form in content for form in looks)]
        assert not found, found


def _temporary() -> Iterator[Path]:
    """Yield the files in the temporary directories, and one level below them."""
    for top in TEMPORARY:
        for folder, folders, names in os.walk(top):  # which passes over what others remove just now
            if folder != top:
                folders.clear()
            files = (Path(folder, name) for name in names)
            yield from (path for path in files if path.is_file() and not path.is_symlink())
