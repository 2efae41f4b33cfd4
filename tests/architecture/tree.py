"""The source as these tests see it: parsed once."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    name: str  # relative to the top
    text: str
    tree: ast.Module


@cache
def sources(*tops):
    """Every Python file below these directories."""
    found = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return [Source(str(path.relative_to(ROOT)), path.read_text(), ast.parse(path.read_text())) for path in found]


def product():
    return sources("dbguardd", "dbguardctl")


def calls(tree):
    """Every call in a tree, as the dotted name that stands there."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(tree):
    """Every module that is imported anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
