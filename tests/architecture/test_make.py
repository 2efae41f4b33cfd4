"""The gate itself: whatever fails, `make test` goes on to the end, says which, and fails."""

import os
import shutil
import subprocess

import pytest

from tests.architecture.tree import ROOT

TOOLS = ("ruff", "mypy", "lint-imports", "python")


@pytest.fixture
def make(program, tmp_path):
    """make(failing) runs `make test` with tools that only say that they ran; `failing` also fails."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in TOOLS:
        (tools / name).write_text(f'#!/bin/sh\necho ran {name} "$@"\n[ {name} != "$FAILING" ]\n')
        (tools / name).chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    path = program("make")

    def run(failing, *words):
        environment = {**os.environ, "FAILING": failing, "MAKEFLAGS": "", "MAKELEVEL": ""}
        return subprocess.run(
            [path, *(words or ["test"])], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_all_good(make):
    done = make("nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all good\n")
    assert all(f"ran {name}" in done.stdout for name in TOOLS)


@pytest.mark.parametrize("failing", TOOLS)
def test_one_failure_fails_and_hides_nothing(make, failing):
    done = make(failing)
    assert done.returncode != 0
    assert "FAILED (1)" in done.stdout
    assert all(f"ran {name}" in done.stdout for name in TOOLS)


@pytest.mark.parametrize(
    ("kind", "program_of_it", "how"),
    [("deb", "dh", "apt-get install build-essential debhelper"), ("rpm", "rpmbuild", "dnf install rpm-build gcc")],
)
def test_what_a_package_needs_is_said_in_one_line(make, kind, program_of_it, how):
    done = make("nothing", kind, "--silent", "PATH=/nonexistent")
    assert (done.returncode, done.stdout) == (2, "")
    said, ended = done.stderr.splitlines()
    assert said.startswith(f"make {kind} needs ") and f". As root: {how}" in said
    assert program_of_it in said.partition(".")[0].split()
    assert ended.startswith("make: ***")


@pytest.mark.parametrize("name", ['my "Büro".db', "$(shell touch pwned)", "`touch pwned`", "$HOME $$.db", "it's", ""])
def test_the_name_of_a_database_is_a_name_and_no_order(make, name, tmp_path):
    done = make("nothing", "demo", f"DB={name}")
    assert (done.stdout, done.stderr) == (f"ran python -m tests.demo {name}\n", "")
    assert not (tmp_path / "pwned").exists()
