"""@frozen makes what @dataclass(frozen=True, slots=True) makes, and compiles only __init__ (decision 0090)."""

import dataclasses
from dataclasses import KW_ONLY, field

import pytest

from dbguardd.frozen import frozen
from tests.architecture.tree import calls, product

ALONE = {"dbguardd/repository/recover.py"}  # it shares no code with the rest


@frozen
class Place:
    round: str
    position: int
    turns: list = field(default_factory=list)
    key: bytes = field(default=b"", repr=False)
    seen: int = field(default=0, compare=False)


@frozen
class Named(Place):
    _: KW_ONLY
    name: str


def test_it_is_a_dataclass_with_slots():
    place = Place("a", 1)
    assert [member.name for member in dataclasses.fields(Place)] == ["round", "position", "turns", "key", "seen"]
    assert dataclasses.replace(place, position=2) == Place("a", 2)
    assert dataclasses.asdict(Named("a", 1, name="n"))["name"] == "n"
    assert not hasattr(place, "__dict__")
    with pytest.raises(TypeError, match="position"):
        Place("a")
    match place:
        case Place(round="a", position=position):
            assert position == 1
        case _:
            pytest.fail("it does not match")


def test_it_is_compared_by_its_fields_and_its_class():
    assert Place("a", 1) == Place("a", 1, seen=7)
    assert Place("a", 1) != Place("a", 2)
    assert Place("a", 1) != Named("a", 1, name="")
    assert Place("a", 1) != ("a", 1, [], b"", 0)
    assert {Place("a", 1, ()), Place("a", 1, ())} == {Place("a", 1, ())}
    with pytest.raises(TypeError, match="unhashable"):
        hash(Place("a", 1))


def test_what_is_secret_is_not_shown():
    assert repr(Place("a", 1, [2], b"key")) == "Place(round='a', position=1, turns=[2], seen=0)"


def test_what_a_class_defines_itself_stays():
    @frozen
    class Hidden(Place):
        def __repr__(self) -> str:
            return "Hidden(***)"

        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = None

    hidden = Hidden("a", 1)
    assert repr(hidden) == "Hidden(***)" and hidden != Hidden("a", 1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(hidden)


def test_only_init_is_compiled():
    made = {name: made.__code__.co_filename for name, made in vars(Named).items() if hasattr(made, "__code__")}
    assert [name for name, file in made.items() if file == "<string>"] == ["__init__"]


def test_mypy_refuses_assignments():
    told = frozen.__dataclass_transform__
    assert {**told["kwargs"], **told}["frozen_default"] is True  # Python 3.11 has no parameter of its own for it


def test_it_is_the_one_way_to_make_them():
    others = [
        source.name
        for source in product()
        for called, node in calls(source.tree)
        if called.endswith("dataclass") and any(word.arg == "frozen" for word in node.keywords)
    ]
    assert set(others) <= ALONE
