"""What is never done, whoever writes it."""

import ast
import re

import pytest

from tests.architecture.tree import ROOT, calls, imported, product, sources

UNFINISHED = re.compile("|".join((r"\bTO" + "DO\\b", r"\bFIX" + "ME\\b", r"\bXX" + "X\\b", "NotImplemented" + "Error")))
TOWERS = ("dbguardd/errors.py", "dbguardd/policy/model.py")  # a table of errors; keys that a class and a database share


def found(files, wrong):
    return [
        f"{source.name}:{node.lineno} {name}"
        for source in files
        for name, node in calls(source.tree)
        if wrong(name, node)
    ]


def keyword(node, name):
    return next((k.value for k in node.keywords if k.arg == name), None)


def test_no_shell():
    def wrong(name, node):
        shell = keyword(node, "shell")
        return name in ("os.system", "os.popen") or (shell is not None and ast.unparse(shell) != "False")

    assert found([*product(), *sources("tests")], wrong) == []


@pytest.mark.parametrize("module", ["pickle", "shelve", "tarfile", "xml", "unittest"])
def test_modules_that_nobody_needs(module):
    files = [*product(), *(sources("tests") if module == "unittest" else [])]
    users = [s.name for s in files if any(m == module or m.startswith(module + ".") for m in imported(s.tree))]
    assert users == []


def test_nothing_is_evaluated():
    assert (
        found(product(), lambda name, node: name in ("eval", "exec", "compile", "marshal.load", "marshal.loads")) == []
    )


def test_times_have_a_zone():
    def wrong(name, node):
        naive = name.endswith(("datetime.now", "datetime.fromtimestamp")) and not (keyword(node, "tz") or node.args)
        return naive or name.endswith(("utcnow", "utcfromtimestamp"))

    assert found([*product(), *sources("tests")], wrong) == []


def test_tests_wait_for_conditions():
    """No sleeping for luck: what waits, waits for an event or a condition."""
    tests = [source for source in sources("tests") if source.name.rsplit("/", 1)[1].startswith(("test_", "conftest"))]
    assert found(tests, lambda name, node: name in ("time.sleep", "sleep")) == []


def test_tests_replace_nothing_behind_the_back():
    files = sources("tests")
    assert found(files, lambda name, node: name.endswith("mock.patch") or name == "patch" or "MagicMock" in name) == []


def test_nothing_is_left_unfinished():
    assert [s.name for s in [*product(), *sources("tests")] if UNFINISHED.search(s.text)] == []


def test_no_failure_is_swallowed():
    bare = []
    for source in product():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                if broad and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body):
                    bare.append(f"{source.name}:{node.lineno}")
    assert bare == []


def test_modules_keep_no_state():
    """A module has constants and tables; what changes lives in an object that somebody owns."""
    state = []
    for source in product():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Global):
                state.append(f"{source.name}:{node.lineno}")
    assert state == []


def test_errors_are_ours():
    """Nothing raises a bare Exception or RuntimeError: what can go wrong stands in the table of outcomes."""
    bare = []
    for source in product():
        for node in ast.walk(source.tree):
            raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
            if raised.split("(")[0] in ("Exception", "RuntimeError", "BaseException", "AssertionError"):
                bare.append(f"{source.name}:{node.lineno}")
    assert bare == []


def test_inheritance_is_for_exceptions_and_contracts():
    """No towers: a class of ours that has a base of ours is an error, or that base has none itself."""
    bases = {}
    for source in product():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and source.name not in TOWERS:
                bases[node.name] = [ast.unparse(base) for base in node.bases]
    towers = [f"{name}({base})" for name, of in bases.items() for base in of if set(bases.get(base, ())) & bases.keys()]
    assert towers == []


def test_no_names_that_say_nothing():
    empty = re.compile(r"(Manager|Helper|Utils?|Handler|Base[A-Z])$|^(utils?|helpers?|misc|common)$")
    names = [
        f"{s.name}:{n.name}"
        for s in product()
        for n in ast.walk(s.tree)
        if isinstance(n, ast.ClassDef) and empty.search(n.name)
    ]
    files = [s.name for s in product() if empty.search(s.name.rsplit("/", 1)[1].removesuffix(".py"))]
    assert names + files == []


def test_every_test_lies_where_its_promise_does():
    stray = [p.name for p in (ROOT / "tests").glob("test_*.py")]
    assert stray == []
