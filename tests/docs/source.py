"""The names of events and audit actions that the source reports, found by reading it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dbguardd.states import JobState

ROOT = Path(__file__).parents[2]
KEPT = {"report", "tell", "note"}  # in the catalog, and in the log too
LOGGED = {"log", "debug", "info", "warning", "error", "exception"}
AUDITED = {"_note", "_audited", "_reloading", "audited", "append"}
_NAME = re.compile(r"[a-z]+\.[a-z_-]+")
_FINAL = [state for state in JobState if state not in (JobState.QUEUED, JobState.RUNNING)]


def reported() -> dict[str, set[str]]:
    """Every name, by the way it is told: kept, logged, audited."""
    found: dict[str, set[str]] = {"kept": set(), "logged": set(), "audited": set()}
    for path in sorted((ROOT / "dbguardd").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                for way, names in (("kept", KEPT), ("logged", LOGGED), ("audited", AUDITED)):
                    if node.func.attr in names:
                        found[way].update(_names(node, known, _FINAL if way == "kept" else ["VERB"]))
    found["logged"] -= found["kept"]
    return found


def _constants(tree: ast.Module) -> dict[str, str]:
    """Texts that a module gives a name to."""
    return {
        node.targets[0].id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }


def _names(call: ast.Call, known: dict[str, str], ends: Sequence[str]) -> Iterator[str]:
    for given in [*call.args[:3], *(word.value for word in call.keywords if word.arg == "action")]:
        if isinstance(given, ast.JoinedStr) and ast.unparse(given).startswith("f'job.{"):
            yield from (f"job.{end}" for end in ends)
        text = known.get(given.id) if isinstance(given, ast.Name) else getattr(given, "value", None)
        if isinstance(text, str) and _NAME.fullmatch(text):
            yield text
