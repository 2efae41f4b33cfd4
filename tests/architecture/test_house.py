"""The house: decisions, dependencies, the README, the Makefile and the unit say what is so."""

import ast
import re
import stat
import sys
import tomllib
from typing import get_args, get_type_hints

from dbguardd.engines import ENGINES
from dbguardd.kinds import KINDS
from dbguardd.policy.model import Database
from tests.architecture.tree import ROOT, imported, product, sources

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {"spanned-toml": "spanned_toml", "tomli-w": "tomli_w", "pytest-xdist": "xdist", "import-linter": "importlinter"}
TOOLS = {"coverage", "import-linter", "mypy", "pytest-xdist", "ruff"}  # run, not imported


def test_decisions_have_numbers_and_reasons():
    found = sorted(path.name for path in (ROOT / "man" / "decisions").iterdir())
    assert len({name[:4] for name in found}) == len(found)
    for name in found:
        assert re.fullmatch(r"[0-9]{4}-[a-z0-9-]+\.md", name), name
        text = (ROOT / "man" / "decisions" / name).read_text()
        assert text.startswith("# "), name
        for part in ("**Context.**", "**Options.**", "**Outcome.**"):
            assert part in text, (name, part)
        assert len(text) < 3000, f"{name}: a decision is short"


def test_a_kind_of_database_has_a_row_in_each_table():
    """Who adds an engine and forgets one would hear of it from its first user."""
    assert list(ENGINES) == list(KINDS) == list(get_args(get_type_hints(Database)["engine"]))
    settings = set(Database.model_fields)
    for engine, kind in KINDS.items():
        assert {kind.where, *kind.own} <= settings, engine
        assert {*kind.followed} <= {*kind.methods}, engine


def declared(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", line).group() for line in requirements}


def test_every_dependency_is_used_and_declared():
    ours = {"dbguardd", "dbguardctl", "tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    used = {m.split(".")[0] for s in product() for m in imported(s.tree)} - set(sys.stdlib_module_names) - ours
    used.discard("pydantic_core")  # comes with pydantic, which documents it as its interface for errors
    runtime = declared(PROJECT["project"]["dependencies"])
    assert {NAMES.get(name, name) for name in runtime} == used
    dev = declared(PROJECT["project"]["optional-dependencies"]["dev"])
    in_tests = (
        {m.split(".")[0] for s in sources("tests") for m in imported(s.tree)} - set(sys.stdlib_module_names) - ours
    )
    known = {NAMES.get(name, name) for name in runtime | dev}
    assert in_tests - known - {"_pytest", "pydantic_core"} == set()
    assert {NAMES.get(name, name) for name in dev - TOOLS} <= in_tests


def test_no_address_of_a_registry():
    for name in ("pyproject.toml", "Makefile", ".ci/run"):
        assert not re.search(r"index-url|https?://", (ROOT / name).read_text()), name


def test_the_readme_names_what_exists():
    named = {path.rstrip("/") for path in re.findall(r"`([a-z.]+/[\w./-]+)`", README)}
    assert "dbguardd/jobs/backup.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", README)) <= targets
    assert targets == {"help", "demo", "test", "lint", "bench", "soak", "deb", "rpm", "clean"}
    for page in re.findall(r"`([a-z.-]+)\(([1-8])\)`", README):
        assert (ROOT / "man" / ".".join(page)).exists(), page
    assert README.count("<!-- transcript:begin -->") == README.count("<!-- transcript:end -->") == 1


def test_the_readme_fits_a_page():
    assert len(README.splitlines()) <= 150
    assert len(README.split("<!-- transcript:begin -->")[0].splitlines()) <= 24


def test_continuous_integration_runs_what_people_run():
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & stat.S_IXUSR
    assert "set -eu" in run.read_text()
    assert "make test" in run.read_text()


def test_what_make_runs_exists():
    for module in re.findall(r"\$\(PY\) -m (tests\.\w+)", (ROOT / "Makefile").read_text()):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_unit_starts_what_the_project_installs():
    unit = (ROOT / "systemd" / "dbguardd.service").read_text()
    for program in re.findall(r"^Exec\w+=\+?/usr/bin/(\w+)", unit, re.MULTILINE):
        assert program in PROJECT["project"]["scripts"]


def test_the_changelog_has_what_comes_next():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_module_says_that_annotations_are_not_evaluated():
    for source in product():
        if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in source.tree.body):
            assert "from __future__ import annotations" in source.text, source.name
