"""Finds PostgreSQL's own programs of the server's major version, wherever the distribution puts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dbguardd.engines.postgresql.child import was_killed
from dbguardd.errors import ToolMissing
from dbguardd.frozen import frozen

OLDEST = 14
"""The oldest major version of a server that is backed up: PostgreSQL no longer maintains older ones."""
_PLACES = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/usr/lib64/pgsql/bin", "/usr/local/pgsql/bin")
_SECONDS = 20.0
_NEWEST_TRIED = 40


@frozen
class Tools:
    """The programs of one version."""

    major: int
    version: str
    directory: Path

    def path(self, program: str) -> str:
        """Return the absolute path of a program."""
        return str(self.directory / program)


def find_tools(program: str, major: int, *, or_newer: bool = False, need: str = "") -> Tools:
    """Return where `program` of a major version is; with `or_newer` the nearest newer one if there is none.

    `need` says in words what for. Raises ToolMissing, with the command that installs it; WorkerDied.
    """
    found = [tools for place in _places(major, or_newer) if (tools := _look(place, program)) is not None]
    fitting = [tools for tools in found if tools.major == major or (or_newer and tools.major > major)]
    if fitting:
        return min(fitting, key=lambda tools: tools.major)
    there = ", ".join(f"{tools.directory / program} is {tools.version}" for tools in found) or "none is installed"
    package = (
        f"postgresql-client-{major}" if program in ("pg_dump", "pg_dumpall", "pg_restore") else f"postgresql-{major}"
    )
    raise ToolMissing(
        f"{program} of PostgreSQL {major} is not here{f': {need}' if need else ''}",
        detail=f"PostgreSQL {major} is needed; of {program}, {there}." + " An older one refuses it." * or_newer,
        hints=[f"apt-get install {package}"],
        facts={"program": program, "major": major},
    )


def _places(major: int, or_newer: bool) -> Iterator[Path]:
    """Yield the directories to search, in order, each once."""
    majors = range(major, _NEWEST_TRIED) if or_newer else (major,)
    named = [place.format(number) for place in _PLACES for number in majors]
    seen = set[str]()
    for place in (*named, *os.environ.get("PATH", "").split(os.pathsep), "/usr/local/bin", "/usr/bin"):
        real = os.path.realpath(place)
        if place.startswith("/") and real not in seen and os.path.isdir(real):
            seen.add(real)
            yield Path(place)


def _look(place: Path, program: str) -> Tools | None:
    """Return the tools in a directory if the program is there and reports its version.

    Raises WorkerDied if it was killed: then it is not missing.
    """
    path = place / program
    if not os.access(path, os.X_OK):
        return None
    try:
        said = subprocess.run(
            [path, "--version"], check=True, capture_output=True, timeout=_SECONDS, env={"LC_ALL": "C"}
        ).stdout.decode(errors="replace")
    except subprocess.CalledProcessError as error:
        if error.returncode == -signal.SIGKILL:
            raise was_killed(str(path)) from error
        return None
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\(PostgreSQL\) ((\d+)\S*)", said)
    return None if match is None else Tools(int(match[2]), match[1], place)
