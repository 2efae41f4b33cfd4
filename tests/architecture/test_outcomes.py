"""Every outcome in the table is used, documented and means one thing."""

import ast
import re

import pytest

from dbguardd import errors
from dbguardd.errors import EXIT_STATUSES, OUTCOMES, GuardError, from_problem
from tests.architecture.tree import ROOT, product

ROWS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GuardError)]
ROWS.remove(GuardError)


def test_every_class_is_a_row():
    assert set(ROWS) == set(OUTCOMES.values())
    assert len({kind.code for kind in ROWS}) == len(ROWS)


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.code)
def test_a_row_is_complete(kind):
    assert re.fullmatch(r"DBG-[0-9]{4}", kind.code)
    assert kind.exit_status in EXIT_STATUSES
    assert 400 <= kind.http_status < 600
    for text in (kind.meaning, kind.advice):
        assert text.endswith(".")
        assert "!" not in text
        assert "please" not in text.lower()
    assert kind.title
    assert not kind.title.endswith(".")
    again = from_problem(kind("x: y", detail="d", hints=["h"], facts={"n": 1}).problem())
    assert (type(again), again.message, again.detail, again.hints, again.facts) == (kind, "x: y", "d", ("h",), {"n": 1})


def test_every_row_is_used():
    used = set()
    for source in product():
        if source.name != "dbguardd/errors.py":
            used |= {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}
            used |= {node.attr for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
    assert sorted(kind.__name__ for kind in ROWS if kind.__name__ not in used) == []


def test_every_row_stands_in_the_manual():
    text = (ROOT / "man" / "dbguard-errors.7").read_text().replace("\\-", "-")
    assert [code for code in OUTCOMES if code not in text] == []
    assert sorted(set(re.findall(r"DBG-[0-9]{4}", text)) - OUTCOMES.keys()) == []


def test_codes_that_are_named_exist():
    for source in product():
        assert sorted(set(re.findall(r"DBG-[0-9]{4}", source.text)) - OUTCOMES.keys()) == [], source.name
