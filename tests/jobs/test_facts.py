"""What is said of a backup: the word of an engine half, which may be anything."""

import pytest

from dbguardd.facts import BackupFacts


@pytest.mark.parametrize("told", ["7", [], {"1": "x"}, {"1": ["name"]}, {"1": ["name", None]}, {"1": ["a", "b", "c"]}])
def test_what_is_no_tablespace_is_none_and_takes_nothing_else_away(told):
    said = BackupFacts.read({"tablespaces": told, "system": "7", "place": 1})
    assert said == BackupFacts(system="7")


def test_a_tablespace_has_a_name_and_a_place():
    told = {"1": ["fast", "/fast"], "2": "?"}
    assert BackupFacts.read({"tablespaces": told}).tablespaces == {"1": ("fast", "/fast")}


@pytest.mark.parametrize(("told", "seconds"), [(2, 2.0), (0, 0.0), (0.25, 0.25), ("2", None), (None, None)])
def test_whole_seconds_are_seconds(told, seconds):
    assert BackupFacts.read({"blocked_seconds": told}).blocked_seconds == seconds
